//! The way to a broker: its address, and the streams that lead there.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where a broker is, and whether TLS leads there.
#[derive(Clone, Debug)]
pub enum Way {
    Network { host: String, port: u16, tls: Option<Arc<ClientConfig>> },
    Unix(PathBuf),
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    #[error("the name {host} cannot be resolved: {error}")]
    Name { host: String, error: io::Error },
    #[error("{address}: {error}")]
    Connect { address: String, error: io::Error },
    #[error("{address}: {}", super::words::describe(.error))]
    Tls { address: String, error: io::Error },
    #[error("{0:?} is neither a name nor an address")]
    BadName(String),
    #[error("{address}: nothing came within {secs} s")]
    TimedOut { address: String, secs: u64 },
}

/// A stream to a broker.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Network { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Way::Network { host, port, .. } => write!(f, "{host}:{port}"),
            Way::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Way {
    /// Goes it, with TLS where that is wanted.
    pub async fn open(&self, patience: Duration) -> Result<Stream, WayError> {
        let late = || WayError::TimedOut { address: self.to_string(), secs: patience.as_secs() };
        tokio::time::timeout(patience, self.go()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn go(&self) -> Result<Stream, WayError> {
        let unreachable = |error| WayError::Connect { address: self.to_string(), error };
        match self {
            Way::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix).map_err(unreachable),
            Way::Network { host, port, tls } => {
                let addresses = resolve(host, *port).await?;
                let stream = TcpStream::connect(&addresses[..]).await.map_err(unreachable)?;
                drop(stream.set_nodelay(true));
                let Some(config) = tls else { return Ok(Stream::Tcp(stream)) };
                let name = server_name(host)?;
                let connected = TlsConnector::from(config.clone()).connect(name, stream).await;
                let refused = |error| WayError::Tls { address: self.to_string(), error };
                connected.map(|stream| Stream::Tls(Box::new(stream))).map_err(refused)
            }
        }
    }
}

/// The addresses that a name has, at least one.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, WayError> {
    let failed = |error| WayError::Name { host: host.to_owned(), error };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect();
    if found.is_empty() { Err(failed(io::ErrorKind::NotFound.into())) } else { Ok(found) }
}

pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, WayError> {
    ServerName::try_from(host.to_owned()).map_err(|_| WayError::BadName(host.to_owned()))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
