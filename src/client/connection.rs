//! An MQTT connection as a client has it: packets go out, packets come in.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::way::Stream;
use crate::codec::{self, Ack, Connect, DecodeError, Disconnect, Frame, Packet, Version};
use crate::types::{PacketId, QoS, ReasonCode};

/// A packet that came, with the bytes that it borrows from.
#[derive(Debug)]
pub struct Incoming {
    bytes: Vec<u8>,
    frame: Frame,
    version: Version,
}

impl Incoming {
    pub fn packet(&self) -> Result<Packet<'_>, DecodeError> {
        codec::decode(&self.bytes, self.frame, self.version)
    }
}

/// Why a broker does not let a client in.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// CONNACK's reason (before MQTT 5 the one that its return code stands for), and its reason string.
    #[error("the broker refuses: {reason}{}", super::words::because(.why.as_deref()))]
    Refused { reason: ReasonCode, why: Option<String> },
    #[error("no answer to CONNECT: {}", super::words::describe(.0))]
    Ended(io::Error),
    #[error("the broker does not answer CONNECT within {0} s")]
    TimedOut(u64),
    #[error("it answers CONNECT with something else: {0}")]
    NotMqtt(String),
}

/// A connection that a broker has accepted.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    version: Version,
    input: Vec<u8>,
    next_id: u16,
}

impl Connection {
    /// Sends CONNECT and waits for CONNACK, which comes along.
    pub async fn connect(
        stream: Stream,
        connect: &Connect<'_>,
        patience: Duration,
    ) -> Result<(Connection, Incoming), ConnectError> {
        let mut connection = Connection { stream, version: connect.version, input: Vec::new(), next_id: 0 };
        let asked = async {
            connection.send(&Packet::Connect(Box::new(connect.clone()))).await?;
            connection.receive().await
        };
        let answer = tokio::time::timeout(patience, asked).await;
        let answer =
            answer.map_err(|_| ConnectError::TimedOut(patience.as_secs()))?.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData if super::words::tls_error(&error).is_none() => {
                    ConnectError::NotMqtt(error.to_string())
                }
                _ => ConnectError::Ended(error),
            })?;
        let refused = match answer.packet() {
            Ok(Packet::ConnAck(connack)) if !connack.reason.is_error() => None,
            Ok(Packet::ConnAck(connack)) => {
                Some(ConnectError::Refused { reason: connack.reason, why: connack.reason_string.map(str::to_owned) })
            }
            Ok(other) => Some(ConnectError::NotMqtt(format!("{other:?}"))),
            Err(error) => Some(ConnectError::NotMqtt(error.to_string())),
        };
        if let Ok(Packet::ConnAck(connack)) = answer.packet()
            && connack.session_present
        {
            // Identifiers may be in use there, by a run that was cut off: a message under one of them would be taken
            // for the one before (section 4.3.3). Which they are nobody knows here.
            let mut random = [0; 2];
            getrandom::fill(&mut random).expect("the kernel's random generator");
            connection.next_id = u16::from_ne_bytes(random);
        }
        match refused {
            Some(error) => Err(error),
            None => Ok((connection, answer)),
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// TLS, where the connection has it.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// A packet identifier that was not used for the longest time (section 2.2.1).
    pub fn next_id(&mut self) -> PacketId {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.next_id).expect("never 0")
    }

    pub async fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, packet, self.version);
        self.send_bytes(&bytes).await
    }

    /// Bytes of whole packets.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// PUBACK or PUBREC for what came at this QoS.
    pub async fn acknowledge(&mut self, packet_id: PacketId, qos: QoS) -> io::Result<()> {
        let ack = Ack::new(packet_id, ReasonCode::Success);
        match qos {
            QoS::AtMostOnce => Ok(()),
            QoS::AtLeastOnce => self.send(&Packet::PubAck(ack)).await,
            QoS::ExactlyOnce => self.send(&Packet::PubRec(ack)).await,
        }
    }

    /// PUBREL, after PUBREC for what was published.
    pub async fn release(&mut self, packet_id: PacketId) -> io::Result<()> {
        self.send(&Packet::PubRel(Ack::new(packet_id, ReasonCode::Success))).await
    }

    /// PUBCOMP, after PUBREL for what came.
    pub async fn complete(&mut self, packet_id: PacketId) -> io::Result<()> {
        self.send(&Packet::PubComp(Ack::new(packet_id, ReasonCode::Success))).await
    }

    /// The next packet; nothing is lost where this is given up half-way.
    pub async fn receive(&mut self) -> io::Result<Incoming> {
        let broken = |error: DecodeError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        loop {
            if let Some(frame) = codec::frame(&self.input, codec::PACKET_SIZE_MAX).map_err(broken)? {
                let rest = self.input.split_off(frame.end);
                let bytes = std::mem::replace(&mut self.input, rest);
                return Ok(Incoming { bytes, frame, version: self.version });
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// DISCONNECT (section 3.14), and the end of the stream.
    pub async fn leave(mut self, reason: ReasonCode) -> io::Result<()> {
        self.send(&Packet::Disconnect(Disconnect::new(reason))).await?;
        self.stream.shutdown().await
    }
}
