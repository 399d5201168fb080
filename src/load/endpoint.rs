//! A broker's address, and how to be let in.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;

use crate::client;
use crate::codec::{self, Connect, ConnectProperties, Packet, Version};

/// What the generator speaks.
pub(super) const VERSION: Version = Version::V311;
/// How long a broker may take to let somebody in.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker, and who comes to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Tried in this order.
    addresses: Vec<SocketAddr>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    login: Option<(String, String)>,
}

/// Why there is no way to a broker.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0:?} is no address of a broker: give mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")]
    Url(String),
    #[error("{host}: {error}")]
    Name { host: String, error: io::Error },
    #[error(transparent)]
    Trust(#[from] client::TrustError),
    #[error("mqtts:// needs the CA that the broker's certificate is of: --ca FILE")]
    NoCa,
}

/// Files for TLS.
#[derive(Clone, Copy, Default, Debug)]
pub struct Trust<'a> {
    pub ca: Option<&'a Path>,
    /// The client's certificate and key.
    pub identity: Option<(&'a Path, &'a Path)>,
}

impl Endpoint {
    /// `mqtt://HOST[:PORT]`, or `mqtts://` for TLS; the ports are 1883 and 8883 unless they are named.
    pub fn new(url: &str, trust: Trust<'_>, login: Option<(String, String)>) -> Result<Endpoint, EndpointError> {
        let bad = || EndpointError::Url(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let (is_tls, default_port) = match scheme {
            "mqtt" | "tcp" => (false, 1883),
            "mqtts" | "ssl" => (true, 8883),
            _ => return Err(bad()),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (rest, default_port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(bad());
        }
        let named = |error| EndpointError::Name { host: host.to_owned(), error };
        let addresses = (host, port).to_socket_addrs().map_err(named)?.collect();
        let tls = match is_tls {
            false => None,
            true => Some((Arc::new(configuration(trust)?), ServerName::try_from(host.to_owned()).map_err(|_| bad())?)),
        };
        Ok(Endpoint { addresses, tls, login })
    }

    /// Lets itself in: once this returns the broker has agreed.
    pub(super) fn enter(&self, client_id: &str) -> io::Result<Connected> {
        let stream = TcpStream::connect(&self.addresses[..])?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let tls = self.tls.as_ref().map(|(config, name)| {
            rustls::ClientConnection::new(config.clone(), name.clone()).map(Box::new).map_err(io::Error::other)
        });
        let mut connected = Connected { stream, tls: tls.transpose()? };
        connected.ask(&self.connect(client_id), &mut [0; 4], |connack| connack[3] == 0)?;
        Ok(connected)
    }

    /// A CONNECT without a session that stays.
    fn connect(&self, client_id: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let connect = Packet::Connect(Box::new(Connect {
            version: VERSION,
            clean_start: true,
            // Longer than any run; some brokers refuse none.
            keep_alive: 3_600,
            properties: ConnectProperties::default(),
            client_id,
            will: None,
            user_name: self.login.as_ref().map(|(name, _)| name.as_str()),
            password: self.login.as_ref().map(|(_, password)| password.as_bytes()),
        }));
        codec::encode(&mut bytes, &connect, VERSION);
        bytes
    }
}

/// A connection that a broker has accepted, and that blocks.
pub(super) struct Connected {
    pub(super) stream: TcpStream,
    pub(super) tls: Option<Box<rustls::ClientConnection>>,
}

impl Connected {
    /// Sends a packet and waits for an answer of a known length.
    pub(super) fn ask(&mut self, packet: &[u8], answer: &mut [u8], is_good: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        match &mut self.tls {
            None => {
                self.stream.write_all(packet)?;
                self.stream.read_exact(answer)?;
            }
            Some(tls) => {
                let mut stream = rustls::Stream::new(&mut **tls, &mut self.stream);
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

    /// DISCONNECT, and the end of the stream.
    pub(super) fn leave(mut self) -> io::Result<()> {
        const DISCONNECT: [u8; 2] = [0xE0, 0];
        match &mut self.tls {
            None => self.stream.write_all(&DISCONNECT),
            Some(tls) => {
                let mut stream = rustls::Stream::new(&mut **tls, &mut self.stream);
                stream.write_all(&DISCONNECT)?;
                stream.conn.send_close_notify();
                stream.flush()
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let _ = self.stream.set_nonblocking(false);
        match looked {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Every handshake is a full one: what it costs is to be seen.
fn configuration(trust: Trust<'_>) -> Result<ClientConfig, EndpointError> {
    let ca = trust.ca.ok_or(EndpointError::NoCa)?;
    let identity = trust.identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
    let mut config = client::configuration(&client::Trust { ca: Some(ca.to_owned()), identity, ..Default::default() })?;
    config.resumption = Resumption::disabled();
    Ok(config)
}
