//! A client's connection in an event loop.

use std::io::{self, Read, Write};

use mio::{Interest, Registry, Token};
use rustls::ClientConnection;

use super::endpoint::Connected;

/// Bytes that rustls takes before they are sent.
const TLS_BATCH: usize = 128 * 1024;

/// A socket, with TLS on it or not.
#[derive(Debug)]
pub(super) struct Link {
    socket: mio::net::TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Link {
    pub(super) fn new(connected: Connected, registry: &Registry, token: usize) -> io::Result<Link> {
        connected.stream.set_nonblocking(true)?;
        let mut socket = mio::net::TcpStream::from_std(connected.stream);
        registry.register(&mut socket, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Link { socket, tls: connected.tls })
    }

    /// Reads once; `None`: nothing is there now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.read_some(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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

    /// Sends what TLS holds back, as far as the socket takes it.
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

    /// Says how many bytes were taken; 0: the socket is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.tls {
            None => self.socket.write(bytes),
            Some(_) => {
                self.flush()?;
                let tls = self.tls.as_mut().expect("looked at above");
                if tls.wants_write() {
                    return Ok(0);
                }
                let written = tls.writer().write(&bytes[..bytes.len().min(TLS_BATCH)]);
                self.flush()?;
                written
            }
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    /// Writes as much of `out` as the socket takes, and takes that out of it.
    pub(super) fn send(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.flush()?;
        while !out.is_empty() {
            match self.write(out)? {
                0 => break,
                count => drop(out.drain(..count)),
            }
        }
        Ok(())
    }
}
