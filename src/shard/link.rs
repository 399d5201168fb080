use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

use super::output::Output;
use crate::handover::Socket;

/// A client's transport: a socket, with TLS on it or not.
#[derive(Debug)]
pub(super) struct Link {
    socket: MioSocket,
    tls: Option<Box<ServerConnection>>,
}

#[derive(Debug)]
enum MioSocket {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

/// Reads of one turn that may bring no plain byte.
const RECORDS: usize = 64;
/// Plain bytes that rustls takes before it is made to give encrypted ones.
const TLS_BATCH: usize = 256 * 1024;

impl Link {
    pub(super) fn new(socket: Socket, tls: Option<Box<ServerConnection>>) -> Link {
        let socket = match socket {
            Socket::Tcp(stream) => MioSocket::Tcp(mio::net::TcpStream::from_std(stream)),
            Socket::Unix(stream) => MioSocket::Unix(mio::net::UnixStream::from_std(stream)),
        };
        Link { socket, tls }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.source().register(registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) {
        drop(self.source().deregister(registry));
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.socket {
            MioSocket::Tcp(stream) => stream,
            MioSocket::Unix(stream) => stream,
        }
    }

    /// Reads plain bytes into `buffer`. `Ok(0)`: the peer closed; `WouldBlock`: nothing more now;
    /// `Interrupted`: much was read and none of it was plain, others should get their turn.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return read_socket(&mut self.socket, buffer);
        };
        for _ in 0..RECORDS {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that goes away without close_notify goes away all the same: MQTT has its
                // own goodbye.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert says why.
                drop(tls.write_tls(&mut self.socket));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Writes what `output` holds; the error may be `WouldBlock`.
    pub(super) fn write(&mut self, output: &mut Output) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return output.write_to(&mut self.socket);
        };
        loop {
            while tls.wants_write() {
                tls.write_tls(&mut self.socket)?;
            }
            if output.is_empty() {
                return Ok(());
            }
            output.write_to(&mut Batch { writer: &mut tls.writer(), left: TLS_BATCH }).or_else(|error| match error
                .kind()
            {
                io::ErrorKind::WouldBlock => Ok(()),
                _ => Err(error),
            })?;
        }
    }

    /// Nothing more will be written: tells the peer so.
    pub(super) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            drop(tls.write_tls(&mut self.socket));
        }
        drop(match &self.socket {
            MioSocket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            MioSocket::Unix(stream) => stream.shutdown(Shutdown::Write),
        });
    }

    /// Reads from the socket alone and throws away; for a connection that is done for.
    pub(super) fn discard(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_socket(&mut self.socket, buffer)
    }
}

fn read_socket(socket: &mut MioSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Read for MioSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            MioSocket::Tcp(stream) => stream.read(buffer),
            MioSocket::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for MioSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            MioSocket::Tcp(stream) => stream.write(bytes),
            MioSocket::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            MioSocket::Tcp(stream) => stream.write_vectored(slices),
            MioSocket::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets a batch through, then says `WouldBlock`: rustls would take everything and hold it twice.
struct Batch<'a, W> {
    writer: &'a mut W,
    left: usize,
}

impl<W: Write> Write for Batch<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.writer.write(&bytes[..bytes.len().min(self.left)])?;
        if count == 0 {
            // Its own buffer is full.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.left -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
