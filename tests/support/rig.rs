//! The core under virtual time, with a recorder for its output and the memory store behind it. With
//! `LOCKGATE_SHARDS=4` each test runs on as many shards.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{Admission, Closing, Command, ConnectionId, Input, Limits};
use lockgate::codec::{self, Connect, ConnectProperties, Packet, Version, Will};
use lockgate::store::Clocks;
use lockgate::types::{ClientId, Entrance, Identity};

use crate::cluster::Cluster;
use crate::describe::describe_all;
use crate::recorder::Recorder;

pub(crate) struct Rig {
    pub(crate) core: Cluster,
    pub(crate) out: Recorder,
    pub(crate) now: Instant,
    /// The shards do not read their letters.
    pub(crate) deaf: bool,
    /// What the listener lays down that clients come by from now on.
    pub(crate) entrance: Arc<Entrance>,
    next: u32,
    versions: BTreeMap<ConnectionId, Version>,
}

/// How a client connects; the rest has defaults.
pub(crate) struct Client<'a> {
    pub(crate) id: &'a str,
    pub(crate) identity: Option<&'a str>,
    pub(crate) version: Version,
    pub(crate) clean_start: bool,
    pub(crate) keep_alive: u16,
    pub(crate) properties: ConnectProperties<'a>,
    pub(crate) will: Option<Will<'a>>,
    pub(crate) assigned: bool,
    pub(crate) authentication_data: Option<&'a [u8]>,
}

/// An MQTT 5 client named `id` whose identity is its id, without a session that outlives it.
pub(crate) fn client(id: &str) -> Client<'_> {
    Client {
        id,
        identity: Some(id),
        version: Version::V5,
        clean_start: true,
        keep_alive: 0,
        properties: ConnectProperties::default(),
        will: None,
        assigned: false,
        authentication_data: None,
    }
}

impl Client<'_> {
    /// Takes up its session, or leaves one for an hour.
    pub(crate) fn kept(mut self) -> Self {
        self.clean_start = false;
        self.properties.session_expiry_interval = Some(3_600);
        self
    }

    pub(crate) fn v311(mut self) -> Self {
        self.version = Version::V311;
        self
    }
}

/// How many shards the broker has.
pub(crate) fn shards() -> u16 {
    std::env::var("LOCKGATE_SHARDS").map_or(1, |count| count.parse().expect("a number"))
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(Limits::default(), Acl::open(), false)
    }

    pub(crate) fn durable() -> Rig {
        Rig::with(Limits::default(), Acl::open(), true)
    }

    pub(crate) fn limited(change: impl FnOnce(&mut Limits)) -> Rig {
        let mut limits = Limits::default();
        change(&mut limits);
        Rig::with(limits, Acl::open(), false)
    }

    pub(crate) fn with_acl(text: &str) -> Rig {
        Rig::with(Limits::default(), Acl::parse(text).unwrap(), false)
    }

    /// One shard, whatever is asked for: for limits that shards have their shares of, and for what
    /// holds only for retained messages that lie where their subscriber is.
    pub(crate) fn alone(change: impl FnOnce(&mut Limits)) -> Rig {
        let mut limits = Limits::default();
        change(&mut limits);
        Rig::on(1, limits, Acl::open(), false, Methods::default())
    }

    pub(crate) fn with(limits: Limits, acl: Acl, durable: bool) -> Rig {
        Rig::on(shards(), limits, acl, durable, Methods::default())
    }

    pub(crate) fn on(shards: u16, limits: Limits, acl: Acl, durable: bool, methods: Methods) -> Rig {
        Rig {
            core: Cluster::new(shards, &limits, &Arc::new(acl), durable, &methods),
            out: Recorder::default(),
            now: Instant::now(),
            deaf: false,
            entrance: Arc::default(),
            next: 0,
            versions: BTreeMap::new(),
        }
    }

    pub(crate) fn handle(&mut self, input: Input<'_>) {
        self.core.handle(self.now, input, &mut self.out);
        self.settle();
    }

    pub(crate) fn handle_timer(&mut self) {
        self.handle(Input::Timer);
    }

    /// Gives the shards their letters and the store's answers until there are none.
    pub(crate) fn settle(&mut self) {
        loop {
            let heard = !self.deaf && self.core.hear_all(self.now, &mut self.out);
            if heard || self.core.answer(self.now, &mut self.out) {
                continue;
            }
            // Alone, a core does the first slice of its work at once; shards ask each other for it.
            let due = !self.deaf && self.core.next_deadline(self.now).is_some_and(|at| at <= self.now);
            if self.core.len() == 1 || !due {
                return;
            }
            self.core.handle(self.now, Input::Timer, &mut self.out);
        }
    }

    /// Lets held answers of the store go, oldest first.
    pub(crate) fn commit(&mut self, count: usize) {
        self.out.store.release(count, |_| 0);
        self.settle();
    }

    /// Moves the clock, firing what is due on the way.
    pub(crate) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(at) = self.core.next_deadline(self.now).filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.handle(Input::Timer);
        }
        self.now = until;
    }

    /// Connects with the bytes of a CONNECT, as the gate would let it in with its client id for an identity.
    pub(crate) fn connect_bytes(&mut self, bytes: &[u8]) -> ConnectionId {
        let frame = codec::frame(bytes, codec::PACKET_SIZE_MAX).unwrap().expect("a whole packet");
        let Ok(Packet::Connect(connect)) = codec::decode(bytes, frame, Version::V5) else { panic!("no CONNECT") };
        self.connect(Client {
            id: connect.client_id,
            identity: Some(connect.client_id),
            version: connect.version,
            clean_start: connect.clean_start,
            keep_alive: connect.keep_alive,
            properties: connect.properties,
            will: connect.will,
            assigned: false,
            authentication_data: None,
        })
    }

    /// Connects and leaves CONNACK to be read.
    pub(crate) fn connect(&mut self, client: Client<'_>) -> ConnectionId {
        let id = ConnectionId { index: self.next % 7, epoch: self.next };
        // Indices are used again once their connection is gone.
        let id = (0..)
            .map(|step| ConnectionId { index: id.index + 7 * step, epoch: self.next })
            .find(|id| !self.versions.keys().any(|known| known.index == id.index && !self.is_closed(*known)))
            .unwrap();
        self.next += 1;
        self.versions.insert(id, client.version);
        let connect = Connect {
            version: client.version,
            clean_start: client.clean_start,
            keep_alive: client.keep_alive,
            properties: client.properties,
            client_id: client.id,
            will: client.will,
            user_name: None,
            password: None,
        };
        let admission = Admission {
            connect: &connect,
            client: ClientId::new(client.id).unwrap(),
            assigned: client.assigned,
            identity: client.identity.map(|name| Identity::parse(name).unwrap()),
            authentication_data: client.authentication_data,
            notice: None,
            entrance: self.entrance.clone(),
        };
        self.handle(Input::Connected(id, admission));
        id
    }

    /// Connects and reads CONNACK, which must be a success.
    pub(crate) fn join(&mut self, client: Client<'_>) -> ConnectionId {
        let id = self.connect(client);
        let got = self.take(id);
        assert!(got[0].starts_with("CONNACK") && !got[0].contains("0x"), "{got:?}");
        id
    }

    fn is_closed(&self, id: ConnectionId) -> bool {
        self.out.closed.contains_key(&id)
    }

    /// Packets as a client sends them: `encode`d here, decoded as the shard would.
    pub(crate) fn send_bytes(&mut self, id: ConnectionId, bytes: &[u8]) {
        let version = self.versions[&id];
        let mut rest = bytes;
        while !rest.is_empty() {
            let frame = codec::frame(rest, codec::PACKET_SIZE_MAX).unwrap().expect("a whole packet");
            match codec::decode(rest, frame, version) {
                Ok(packet) => self.handle(Input::Received(id, packet)),
                Err(error) => self.handle(Input::Malformed(id, error)),
            }
            rest = &rest[frame.end..];
        }
    }

    /// `PUBLISH` at `qos` with identifier `packet_id` and encoded properties.
    pub(crate) fn publish_with(
        &mut self,
        id: ConnectionId,
        topic: &str,
        payload: &str,
        flags: u8,
        packet_id: u16,
        properties: &[u8],
    ) {
        let mut body = Vec::new();
        body.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        body.extend_from_slice(topic.as_bytes());
        if flags & 0b110 != 0 {
            body.extend_from_slice(&packet_id.to_be_bytes());
        }
        if self.versions[&id] == Version::V5 {
            body.push(u8::try_from(properties.len()).unwrap());
            body.extend_from_slice(properties);
        }
        body.extend_from_slice(payload.as_bytes());
        self.send_bytes(id, &framed(0x30 | flags, &body));
    }

    pub(crate) fn publish(&mut self, id: ConnectionId, topic: &str, payload: &str, qos: u8, packet_id: u16) {
        self.publish_with(id, topic, payload, qos << 1, packet_id, &[]);
    }

    pub(crate) fn retain(&mut self, id: ConnectionId, topic: &str, payload: &str) {
        self.publish_with(id, topic, payload, 1, 0, &[]);
    }

    /// SUBSCRIBE with options bytes and encoded properties; SUBACK is left to be read.
    pub(crate) fn subscribe_with(&mut self, id: ConnectionId, filters: &[(&str, u8)], properties: &[u8]) {
        let mut body = vec![0, 1];
        if self.versions[&id] == Version::V5 {
            body.push(properties.len() as u8);
            body.extend_from_slice(properties);
        }
        for (filter, options) in filters {
            body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
            body.extend_from_slice(filter.as_bytes());
            body.push(*options);
        }
        self.send_bytes(id, &framed(0x82, &body));
    }

    /// Subscribes at `qos` and reads SUBACK.
    pub(crate) fn subscribe(&mut self, id: ConnectionId, filter: &str, qos: u8) {
        self.subscribe_with(id, &[(filter, qos)], &[]);
        let got = self.take(id);
        assert_eq!(got[0], format!("SUBACK #1 {qos}"));
        assert_eq!(got.len(), 1, "{got:?}");
    }

    pub(crate) fn unsubscribe(&mut self, id: ConnectionId, filter: &str) {
        self.unsubscribe_from(id, &[filter], 1);
    }

    pub(crate) fn unsubscribe_from(&mut self, id: ConnectionId, filters: &[&str], packet_id: u16) {
        let mut body = packet_id.to_be_bytes().to_vec();
        if self.versions[&id] == Version::V5 {
            body.push(0);
        }
        for filter in filters {
            body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
            body.extend_from_slice(filter.as_bytes());
        }
        self.send_bytes(id, &framed(0xA2, &body));
    }

    pub(crate) fn puback(&mut self, id: ConnectionId, packet_id: u16) {
        self.ack(id, 0x40, packet_id);
    }

    pub(crate) fn ack(&mut self, id: ConnectionId, first_byte: u8, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send_bytes(id, &[first_byte, 2, high, low]);
    }

    pub(crate) fn disconnect(&mut self, id: ConnectionId) {
        self.send_bytes(id, &[0xE0, 0]);
    }

    /// Nothing more will be asked of a connection that is closed.
    pub(crate) fn forget(&mut self, id: ConnectionId) {
        self.versions.remove(&id);
        self.out.closed.remove(&id);
    }

    pub(crate) fn lose(&mut self, id: ConnectionId) {
        self.handle(Input::Lost(id));
        self.out.closed.insert(id, Closing::Lost);
    }

    /// The socket takes nothing from here on.
    pub(crate) fn stall(&mut self, id: ConnectionId) {
        self.out.stalled.insert(id, 0);
    }

    /// The socket takes everything again.
    pub(crate) fn drain(&mut self, id: ConnectionId) {
        self.out.stalled.remove(&id);
        self.handle(Input::Drained(id));
    }

    /// What the clocks say from now on: the wall, in seconds since 1970, and what the system says of it.
    pub(crate) fn set_wall(&mut self, wall_secs: u64, synchronised: Option<bool>) {
        self.out.store.set_clocks(Clocks::new(self.now, wall_secs, synchronised));
    }

    /// The process ends at once, and another goes on with what the store has.
    pub(crate) fn restart(&mut self) {
        let (limits, acl) = (Limits::default(), Arc::new(Acl::open()));
        self.core.restart(self.now, &limits, &acl, &mut self.out);
        self.settle();
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.handle(Input::Command(command));
    }

    /// Reason strings of what was written to a connection since the last look, packet by packet.
    pub(crate) fn take_reasons(&mut self, id: ConnectionId) -> Vec<Option<String>> {
        let bytes = self.take_bytes(id);
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while let Some(frame) = codec::frame(rest, codec::PACKET_SIZE_MAX).unwrap() {
            let text = match codec::decode(rest, frame, self.versions[&id]).unwrap() {
                Packet::ConnAck(packet) => packet.reason_string,
                Packet::PubAck(packet) | Packet::PubRec(packet) | Packet::PubRel(packet) | Packet::PubComp(packet) => {
                    packet.reason_string
                }
                Packet::SubAck(packet) => packet.reason_string,
                Packet::UnsubAck(packet) => packet.reason_string,
                Packet::Disconnect(packet) => packet.reason_string,
                _ => None,
            };
            found.push(text.map(str::to_owned));
            rest = &rest[frame.end..];
        }
        found
    }

    /// The bytes that were written to a connection since the last look.
    pub(crate) fn take_bytes(&mut self, id: ConnectionId) -> Vec<u8> {
        self.out.written.remove(&id).unwrap_or_default()
    }

    /// What was written to a connection since the last look.
    pub(crate) fn take(&mut self, id: ConnectionId) -> Vec<String> {
        let bytes = self.out.written.remove(&id).unwrap_or_default();
        describe_all(&bytes, self.versions[&id])
    }

    pub(crate) fn closing(&self, id: ConnectionId) -> Option<Closing> {
        self.out.closed.get(&id).copied()
    }
}

/// A packet of this first byte and body.
pub(crate) fn framed(first_byte: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first_byte];
    let mut length = body.len();
    loop {
        let low = (length & 0x7F) as u8;
        length >>= 7;
        bytes.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}
