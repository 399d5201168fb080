//! A socket that is not let in yet, with whatever runs on it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use super::admit::Stop;
use super::handshake;
use super::material::{ListenerMaterial, TlsMaterial};
use super::upgrade::{self, HEAD_MAX};
use crate::config::WebSocket;
use crate::websocket::{CloseCode, Decoder, End, close_frame, encode_header};

/// Bytes of a WebSocket's frame before its client is let in: CONNECT with what is sent right behind it.
const FRAME_MAX: u64 = 16 * 1024 * 1024;

pub(super) enum Carrier {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(super) struct Link {
    pub(super) carrier: Carrier,
    /// Once a WebSocket has begun on it.
    pub(super) web: Option<Box<Decoder>>,
    /// Bytes of its first frames, which came with the request.
    early: Vec<u8>,
}

impl From<Carrier> for Link {
    fn from(carrier: Carrier) -> Link {
        Link { carrier, web: None, early: Vec::new() }
    }
}

impl Link {
    /// Appends what comes next; fails when the peer has gone.
    async fn read(&mut self, bytes: &mut Vec<u8>, tls: Option<&TlsMaterial>) -> Result<(), Stop> {
        let count = match &mut self.carrier {
            Carrier::Tcp(stream) => stream.read_buf(bytes).await.map_err(|_| Stop::Quiet("broke"))?,
            Carrier::Unix(stream) => stream.read_buf(bytes).await.map_err(|_| Stop::Quiet("broke"))?,
            Carrier::Tls(stream) => {
                let tls = tls.expect("a TLS link has a TLS listener");
                handshake::read(stream, bytes, tls).await.map_err(Stop::Handshake)?
            }
        };
        if count == 0 { Err(Stop::Quiet("closed before it was let in")) } else { Ok(()) }
    }

    async fn write_raw(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let written = match &mut self.carrier {
            Carrier::Tcp(stream) => stream.write_all(bytes).await,
            Carrier::Unix(stream) => stream.write_all(bytes).await,
            Carrier::Tls(stream) => match stream.write_all(bytes).await {
                Ok(()) => stream.flush().await,
                error => error,
            },
        };
        written.map_err(|_| Stop::Quiet("broke"))
    }

    /// Appends MQTT bytes, at least one.
    pub(super) async fn read_more(&mut self, bytes: &mut Vec<u8>, material: &ListenerMaterial) -> Result<(), Stop> {
        let start = bytes.len();
        loop {
            // What came before its end was taken; now there is nothing else.
            match self.web.as_ref().map(|decoder| decoder.end()) {
                None => return self.read(bytes, material.tls.as_ref()).await,
                Some(None) => {}
                Some(Some(End::Closed(_))) => return Err(Stop::Quiet("closed its WebSocket before it was let in")),
                Some(Some(End::Breach(breach))) => {
                    let why = format!("its WebSocket is broken: {breach}");
                    return Err(Stop::Handshake(handshake::Failure { kind: "websocket", why }));
                }
            }
            match self.early.is_empty() {
                true => self.read(bytes, material.tls.as_ref()).await?,
                false => bytes.append(&mut self.early),
            }
            let decoder = self.web.as_mut().expect("looked at above");
            let decoded = decoder.decode(&mut bytes[start..]);
            let count = decoded.payload.len();
            bytes.copy_within(start + decoded.payload.start..start + decoded.payload.end, start);
            bytes.truncate(start + count);
            if let Some(pong) = decoded.pong {
                self.write_raw(&pong).await?;
            }
            if count > 0 {
                return Ok(());
            }
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        match self.web {
            None => self.write_raw(bytes).await,
            Some(_) => self.write_raw(&framed(bytes)).await,
        }
    }

    /// Reads the request that begins a WebSocket and answers it; what was read of one for something else, where there
    /// is something else, comes back.
    pub(super) async fn upgrade(
        &mut self,
        rules: &WebSocket,
        material: &ListenerMaterial,
    ) -> Result<Option<Vec<u8>>, Stop> {
        let mut head = Vec::with_capacity(1024);
        let upgrade = loop {
            self.read(&mut head, material.tls.as_ref()).await?;
            let upgrade = match upgrade::upgrade(&head, &rules.origins) {
                Err(refusal) if refusal.is_no_upgrade() && material.pages.is_some() => return Ok(Some(head)),
                upgrade => upgrade.map_err(Stop::Http)?,
            };
            match upgrade {
                Some(upgrade) => break upgrade,
                None if head.len() > HEAD_MAX => return Err(Stop::Quiet("its request has no end")),
                None => {}
            }
        };
        self.write_raw(&upgrade.response).await?;
        self.early = head.split_off(upgrade.used);
        self.web = Some(Box::new(Decoder::new(FRAME_MAX)));
        Ok(None)
    }

    /// Says `answer`, which is MQTT's where a WebSocket has begun, and closes. What the client has sent meanwhile is
    /// read away, or the kernel would reset the connection over it and the answer be lost.
    pub(super) async fn leave(self, mut answer: Vec<u8>) {
        if let Some(decoder) = &self.web {
            let code = match decoder.end() {
                Some(End::Breach(breach)) => breach.close_code(),
                Some(End::Closed(code)) => code,
                None => CloseCode::Policy,
            };
            if !answer.is_empty() {
                answer = framed(&answer);
            }
            answer.extend(close_frame(code));
        }
        let goodbye = async {
            match self.carrier {
                Carrier::Tcp(stream) => leave(stream, &answer).await,
                Carrier::Unix(stream) => leave(stream, &answer).await,
                Carrier::Tls(stream) => leave(*stream, &answer).await,
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes.len() + 10);
    encode_header(bytes.len(), &mut frame);
    frame.extend_from_slice(bytes);
    frame
}

async fn leave(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    if stream.write_all(answer).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut sink = [0; 1024];
        while matches!(stream.read(&mut sink).await, Ok(1..)) {}
    }
}
