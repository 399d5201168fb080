//! A few raw packets over a socket, for what no sound client would send, and for exact bytes.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;

use lockgate::codec::{self, Connect, ConnectProperties, Packet, Version};

use crate::describe::describe_all;
use crate::site::PATIENCE;

/// Encodes a CONNECT.
pub(crate) fn connect_bytes(version: Version, client_id: &str, login: Option<(&str, &str)>) -> Vec<u8> {
    let connect = Connect {
        version,
        clean_start: true,
        keep_alive: 60,
        properties: ConnectProperties::default(),
        client_id,
        will: None,
        user_name: login.map(|(name, _)| name),
        password: login.map(|(_, password)| password.as_bytes()),
    };
    let mut bytes = Vec::new();
    codec::encode(&mut bytes, &Packet::Connect(Box::new(connect)), version);
    bytes
}

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    version: Version,
    bytes: Vec<u8>,
}

impl Raw {
    pub(crate) fn open(port: u16, version: Version) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, version, bytes: Vec::new() }
    }

    /// Connects, sends CONNECT and gives the answer.
    pub(crate) fn connect(port: u16, version: Version, client_id: &str, login: Option<(&str, &str)>) -> (Raw, String) {
        let mut raw = Raw::open(port, version);
        raw.send(&connect_bytes(version, client_id, login));
        let answer = raw.packet().unwrap_or_else(|| "closed".to_owned());
        (raw, answer)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next packet as a text; `None` when the broker closed.
    pub(crate) fn packet(&mut self) -> Option<String> {
        loop {
            if let Some(frame) = codec::frame(&self.bytes, codec::PACKET_SIZE_MAX).unwrap() {
                let packet: Vec<u8> = self.bytes.drain(..frame.end).collect();
                return describe_all(&packet, self.version).pop();
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing comes: {error}"),
            }
        }
    }
}
