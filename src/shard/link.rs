use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

use super::output::Output;
use crate::handover::Socket;
use crate::websocket::{Decoder, End};

/// A client's transport: a socket, with TLS on it or not.
#[derive(Debug)]
pub(super) struct Link {
    socket: MioSocket,
    tls: Option<Box<ServerConnection>>,
    /// Where MQTT comes in WebSocket frames.
    web: Option<Box<Decoder>>,
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
    pub(super) fn new(socket: Socket, tls: Option<Box<ServerConnection>>, mut web: Option<Box<Decoder>>) -> Link {
        if let Some(web) = &mut web {
            // From here on the limit on packets is the one that counts.
            web.frame_size_max = u64::MAX;
        }
        let socket = match socket {
            Socket::Tcp(stream) => MioSocket::Tcp(mio::net::TcpStream::from_std(stream)),
            Socket::Unix(stream) => MioSocket::Unix(mio::net::UnixStream::from_std(stream)),
        };
        Link { socket, tls, web }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.source().register(registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    pub(super) fn is_web(&self) -> bool {
        self.web.is_some()
    }

    /// How its WebSocket ended, if it did: nothing more comes.
    pub(super) fn web_end(&self) -> Option<End> {
        self.web.as_ref().and_then(|web| web.end())
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.socket {
            MioSocket::Tcp(stream) => stream,
            MioSocket::Unix(stream) => stream,
        }
    }

    /// Reads MQTT bytes into `buffer`, as [`Link::read_plain_bytes`] reads them, out of their frames.
    pub(super) fn read(&mut self, buffer: &mut [u8], sealed: &mut [u8]) -> io::Result<Taken> {
        if self.web_end().is_some() {
            return Ok(Taken::default());
        }
        let mut taken = self.read_plain_bytes(buffer, sealed)?;
        if let Some(web) = &mut self.web {
            let decoded = web.decode(&mut buffer[..taken.count]);
            taken.mqtt = decoded.payload;
            taken.pong = decoded.pong;
            // No event tells of an end that is in these bytes.
            taken.is_drained &= web.end().is_none();
        }
        Ok(taken)
    }

    /// Reads plain bytes into `buffer`, by way of `sealed` where they come by TLS; that must be smaller by a record
    /// at least, for one may be left from before.
    /// `WouldBlock`: nothing more now; `Interrupted`: much was read and none of it was plain, others should get
    /// their turn.
    fn read_plain_bytes(&mut self, buffer: &mut [u8], sealed: &mut [u8]) -> io::Result<Taken> {
        let Some(tls) = &mut self.tls else {
            let count = read_socket(&mut self.socket, buffer)?;
            return Ok(Taken::of(count, count > 0 && count < buffer.len()));
        };
        // What came with the handshake.
        match read_plain(tls, buffer)? {
            Some(0) => {}
            held => return Ok(Taken::of(held.unwrap_or(0), false)),
        }
        for _ in 0..RECORDS {
            let whole = read_socket(&mut self.socket, sealed)?;
            if whole == 0 {
                return Ok(Taken::default());
            }
            let (mut rest, mut count, mut is_over) = (&sealed[..whole], 0, false);
            while !rest.is_empty() && !is_over {
                tls.read_tls(&mut rest)?;
                match tls.process_new_packets() {
                    // Its close_notify may come with the last bytes, and no event after it.
                    Ok(state) => is_over = state.peer_has_closed(),
                    Err(error) => {
                        // The alert says why.
                        drop(tls.write_tls(&mut self.socket));
                        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                    }
                }
                count += read_plain(tls, &mut buffer[count..])?.unwrap_or(0);
            }
            if count > 0 || is_over {
                return Ok(Taken::of(count, whole < sealed.len() && !is_over));
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Writes what `output` holds; the error may be `WouldBlock`. What was added since the last time leaves as frames
    /// of its own where a WebSocket is.
    pub(super) fn write(&mut self, output: &mut Output) -> io::Result<()> {
        if self.is_web() {
            output.frame();
        }
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

/// What a read brought.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Plain bytes, those of frames' heads too; 0: the peer closed.
    pub(super) count: usize,
    /// Where among them MQTT's are.
    pub(super) mqtt: Range<usize>,
    /// What a ping is to be answered with.
    pub(super) pong: Option<Vec<u8>>,
    /// The socket has no more: an event will tell when it has.
    pub(super) is_drained: bool,
}

impl Taken {
    fn of(count: usize, is_drained: bool) -> Taken {
        Taken { count, mqtt: 0..count, pong: None, is_drained }
    }
}

/// Takes what is decrypted; `None` once the peer has closed and all is taken.
fn read_plain(tls: &mut ServerConnection, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut count = 0;
    while count < buffer.len() {
        match tls.reader().read(&mut buffer[count..]) {
            Ok(0) if count == 0 => return Ok(None),
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // A peer that goes away without close_notify goes away all the same: MQTT has its own goodbye.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && count == 0 => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Some(count))
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
