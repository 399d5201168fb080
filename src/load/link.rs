//! A client's connection in an event loop.

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::{Interest, Registry, Token};
use rustls::ClientConnection;

use super::endpoint::Endpoint;

/// How long a broker may take to let somebody in.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that rustls takes before they are sent.
const TLS_BATCH: usize = 128 * 1024;

/// A socket, with TLS on it or not.
#[derive(Debug)]
pub(super) struct Link {
    socket: mio::net::TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Link {
    /// Dials, says CONNECT and, where there is a filter, SUBSCRIBE; gives the link once the broker has agreed.
    pub(super) fn enter(endpoint: &Endpoint, client_id: &str, subscribe: Option<&[u8]>) -> io::Result<Link> {
        let (mut stream, mut tls) = endpoint.dial()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        converse(&mut stream, tls.as_mut(), &endpoint.connect(client_id), &mut [0; 4], |connack| connack[3] == 0)?;
        if let Some(packet) = subscribe {
            converse(&mut stream, tls.as_mut(), packet, &mut [0; 5], |suback| suback[4] < 0x80)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Link { socket: mio::net::TcpStream::from_std(stream), tls: tls.map(Box::new) })
    }

    pub(super) fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        registry.register(&mut self.socket, Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    /// `Ok(0)`: the broker closed.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Sends what TLS holds back.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Says how many bytes were taken: all of `bytes` unless the socket is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        let count = tls.writer().write(&bytes[..bytes.len().min(TLS_BATCH)])?;
        self.flush()?;
        Ok(count)
    }
}

/// Sends a packet and waits for an answer of a known length.
pub(super) fn converse(
    stream: &mut std::net::TcpStream,
    tls: Option<&mut ClientConnection>,
    packet: &[u8],
    answer: &mut [u8],
    is_good: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    match tls {
        None => {
            stream.write_all(packet)?;
            stream.read_exact(answer)?;
        }
        Some(tls) => {
            let mut stream = rustls::Stream::new(tls, stream);
            stream.write_all(packet)?;
            stream.flush()?;
            stream.read_exact(answer)?;
        }
    }
    match is_good(answer) {
        true => Ok(()),
        false => Err(io::Error::other("the broker refuses (user name, password or ACL)")),
    }
}
