//! What the gate gives the shard: everything of a client that was let in.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::codec::Version;
use crate::types::{CertificateId, ClientId, Entrance, Identity, Level};
use crate::websocket::Decoder;

/// A client that was let in, whole.
pub struct Handover {
    pub socket: Socket,
    pub tls: Option<Box<rustls::ServerConnection>>,
    /// Where MQTT comes in WebSocket frames: how far the last one was read.
    pub web: Option<Box<Decoder>>,
    /// Bytes of the MQTT stream that were read and not used: its CONNECT, and what came with it.
    pub bytes: Vec<u8>,
    pub client: ClientId,
    /// The gate made the client id up.
    pub assigned: bool,
    pub identity: Option<Identity>,
    /// What the last step of an extended authentication had to say.
    pub authentication_data: Option<Vec<u8>>,
    /// What the client should know, for CONNACK's reason string.
    pub notice: Option<String>,
    pub entrance: Arc<Entrance>,
    pub about: About,
    /// Its place among the connections that the gate counts: given back when this is dropped.
    pub slot: Box<dyn Any + Send>,
}

/// The transport below TLS, in non-blocking mode.
#[derive(Debug)]
pub enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// What the log and an administrator want to know of a connection.
#[derive(Clone, Debug)]
pub struct About {
    /// One number for all the log says of it.
    pub number: u64,
    pub peer: Peer,
    pub listener: Arc<str>,
    pub version: Version,
    pub level: Level,
    /// As its CONNECT says.
    pub clean_start: bool,
    pub keep_alive_secs: u16,
    pub words: Words,
    pub certificate: Option<Box<PeerCertificate>>,
    pub since: SystemTime,
}

/// In whose words the log speaks of a connection's beginning and end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Words {
    #[default]
    Own,
    /// Those that people who had Mosquitto look for.
    Mosquitto,
    /// In none.
    None,
}

/// What is remembered of a client's certificate while it is connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerCertificate {
    /// The client's own, then those that it sent with it.
    pub chain: Box<[CertificateId]>,
    pub expires: SystemTime,
}

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Network(SocketAddr),
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Network(address) => match address.ip().to_canonical() {
                std::net::IpAddr::V4(v4) => write!(f, "{v4}:{}", address.port()),
                std::net::IpAddr::V6(_) => address.fmt(f),
            },
            Peer::Unix => f.write_str("unix socket"),
        }
    }
}
