//! A small MQTT 3.1.1 client on a Unix socket that blocks: what `lockgate torture` drives a broker with.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::codec::{
    self, Ack, Connect, ConnectProperties, Packet, PublishProperties, SubscriptionOptions, UserProperties, Version,
};
use crate::types::{PacketId, QoS, ReasonCode};

const VERSION: Version = Version::V311;

/// A connection that the broker has accepted.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    bytes: Vec<u8>,
    /// Of `bytes`, read already.
    taken: usize,
}

/// What a client receives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Publish { topic: String, payload: Vec<u8>, qos: QoS, dup: bool, retain: bool, packet_id: Option<PacketId> },
    PubAck(PacketId),
    PubRec(PacketId),
    PubRel(PacketId),
    PubComp(PacketId),
    SubAck,
}

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: QoS,
    pub retain: bool,
    pub dup: bool,
    /// `Some` exactly at QoS 1 and 2.
    pub packet_id: Option<PacketId>,
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl Client {
    /// Connects by a Unix socket; `clean`: no session is kept. Waits at most `patience` for CONNACK.
    pub fn connect(socket: &Path, client_id: &str, clean: bool, patience: Duration) -> io::Result<Client> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(patience))?;
        let mut client = Client { stream, bytes: Vec::new(), taken: 0 };
        client.send(&Packet::Connect(Box::new(Connect {
            version: VERSION,
            clean_start: clean,
            keep_alive: 0,
            properties: ConnectProperties::default(),
            client_id,
            will: None,
            user_name: None,
            password: None,
        })))?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(frame) = client.frame()? {
                let bytes = client.take(frame.end);
                return match codec::decode(&bytes, frame, VERSION).map_err(broken)? {
                    Packet::ConnAck(connack) if !connack.reason.is_error() => Ok(client),
                    other => Err(broken(format!("not let in: {other:?}"))),
                };
            }
            client.read(Duration::from_millis(100))?;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, packet, VERSION);
        self.stream.write_all(&bytes)
    }

    pub fn publish(&mut self, message: Message<'_>) -> io::Result<()> {
        self.send(&Packet::Publish(codec::Publish {
            dup: message.dup,
            qos: message.qos,
            retain: message.retain,
            topic: message.topic,
            packet_id: message.packet_id,
            properties: PublishProperties::default(),
            payload: message.payload,
        }))
    }

    /// One filter; answered by [`Event::SubAck`].
    pub fn subscribe(&mut self, filter: &str, qos: QoS) -> io::Result<()> {
        let mut bytes = Vec::new();
        let filters = [(filter, SubscriptionOptions::at(qos))];
        codec::encode_subscription(&mut bytes, PacketId::FIRST, &filters, UserProperties::default(), VERSION);
        self.stream.write_all(&bytes)
    }

    /// PUBACK or PUBREC for a message.
    pub fn acknowledge(&mut self, packet_id: PacketId, qos: QoS) -> io::Result<()> {
        let ack = Ack::new(packet_id, ReasonCode::Success);
        self.send(&if qos == QoS::ExactlyOnce { Packet::PubRec(ack) } else { Packet::PubAck(ack) })
    }

    pub fn release(&mut self, packet_id: PacketId) -> io::Result<()> {
        self.send(&Packet::PubRel(Ack::new(packet_id, ReasonCode::Success)))
    }

    pub fn complete(&mut self, packet_id: PacketId) -> io::Result<()> {
        self.send(&Packet::PubComp(Ack::new(packet_id, ReasonCode::Success)))
    }

    pub fn disconnect(mut self) -> io::Result<()> {
        self.stream.write_all(&[0xE0, 0])
    }

    /// The next event; `None` if none came within `patience`.
    pub fn receive(&mut self, patience: Duration) -> io::Result<Option<Event>> {
        if self.frame()?.is_none() {
            self.read(patience)?;
        }
        let Some(frame) = self.frame()? else { return Ok(None) };
        let bytes = self.take(frame.end);
        Ok(Some(match codec::decode(&bytes, frame, VERSION).map_err(broken)? {
            Packet::Publish(publish) => Event::Publish {
                topic: publish.topic.to_owned(),
                payload: publish.payload.to_vec(),
                qos: publish.qos,
                dup: publish.dup,
                retain: publish.retain,
                packet_id: publish.packet_id,
            },
            Packet::PubAck(ack) => Event::PubAck(ack.packet_id),
            Packet::PubRec(ack) => Event::PubRec(ack.packet_id),
            Packet::PubRel(ack) => Event::PubRel(ack.packet_id),
            Packet::PubComp(ack) => Event::PubComp(ack.packet_id),
            Packet::SubAck(suback) if suback.reasons.iter().all(|reason| !reason.is_error()) => Event::SubAck,
            other => return Err(broken(format!("unexpected: {other:?}"))),
        }))
    }

    fn frame(&self) -> io::Result<Option<codec::Frame>> {
        codec::frame(&self.bytes[self.taken..], codec::PACKET_SIZE_MAX).map_err(broken)
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let packet = self.bytes[self.taken..self.taken + len].to_vec();
        self.taken += len;
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        }
        packet
    }

    fn read(&mut self, patience: Duration) -> io::Result<()> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.bytes.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
