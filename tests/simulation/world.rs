use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{Admission, Closing, ConnectionId, Input, Limits};
use lockgate::codec::{self, Connect, ConnectProperties, Packet, Version, Will, WillProperties};
use lockgate::store::{Clocks, MemoryStore, Sizes};
use lockgate::types::{ClientId, Filter, Identity, QoS, Topic};

use crate::cluster::Cluster;
use crate::model::{Fate, Got, Key, Outcome, Seen};
use crate::recorder::Recorder;

#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) shards: u16,
    pub(crate) durable: bool,
    /// The store answers late and out of order.
    pub(crate) late: bool,
    pub(crate) failing: bool,
    /// Queues are short and messages expire, so that limits are met.
    pub(crate) tight: bool,
    /// The power goes and comes back.
    pub(crate) crashing: Option<Syncs>,
    /// Calls to the store's disk fail.
    pub(crate) disk_fails: bool,
}

/// What the disk does when it is told to sync.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Syncs {
    Honest,
    Lies,
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, chance: usize) -> bool {
        self.below(chance) == 0
    }

    fn qos(&mut self, from: usize) -> QoS {
        [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][from + self.below(3 - from)]
    }
}

/// A message on its way from a publisher.
struct Outgoing {
    key: Key,
    qos: QoS,
    retain: bool,
    packet_id: u16,
    released: bool,
}

struct Client {
    seen: Seen,
    version: Version,
    /// What it asked for in this session, also if it no longer does: something may be on its way.
    filters: BTreeSet<&'static str>,
    connection: Option<ConnectionId>,
    connected: bool,
    /// Its session ends with its connection, and before 3.1.1 nobody tells it so.
    ends: bool,
    /// Its will is published if this connection ends without DISCONNECT.
    will: u32,
    outgoing: VecDeque<Outgoing>,
    next_id: u16,
    /// QoS 2 identifiers received and not released.
    received: BTreeSet<u16>,
    /// Answers that it will send, some time.
    answers: VecDeque<[u8; 4]>,
}

/// So small that a run makes segments and checkpoints, copies bodies and removes files.
const SIZES: Sizes =
    Sizes { segment: 8 * 1024, reserve: 2 * 1024, frame_max: 1024, checkpoint_every: 4 * 1024, copied_max: 16 * 1024 };

/// Some time in 2026.
const WALL_SECS: u64 = 1_780_000_000;
const TOPICS: usize = 4;
const STEPS: usize = 400;
const SHARED: &str = "$share/g/s/+";
/// Everybody may see everything but the secrets, which are for `client0`.
const ACL: &str = "pattern readwrite t/+\npattern readwrite s/+\npattern readwrite r/+\npattern readwrite w/+\n\
                   pattern write secret/+\nuser client0\ntopic read secret/+\n";

pub(crate) struct World {
    options: Options,
    random: Random,
    core: Cluster,
    wire: Recorder,
    now: Instant,
    began: Instant,
    limits: Limits,
    acl: Arc<Acl>,
    next_epoch: u32,
    /// Connections that the core has not closed.
    living: Vec<ConnectionId>,
    clients: Vec<Client>,
    shared_qos: QoS,
    retained_qos: QoS,
    next_number: BTreeMap<String, u32>,
    fates: BTreeMap<Key, (QoS, Fate)>,
    sent_to_the_gone: BTreeSet<Key>,
    next_will: u32,
    wills_due: BTreeSet<u32>,
    wills_possible: BTreeSet<u32>,
    trace: bool,
}

impl World {
    pub(crate) fn new(options: Options) -> World {
        let mut random = Random(options.seed);
        let limits = Limits {
            inflight_max: 1 + random.below(20) as u16,
            receive_maximum: 50,
            backlog_bytes_max: 2_000,
            slice: 1 + random.below(8),
            queued_messages_max: if options.tight { 5 } else { 10_000 },
            ..Limits::default()
        };
        let acl = Arc::new(Acl::parse(ACL).unwrap());
        let core = Cluster::new(options.shards, &limits, &acl, options.durable, &Methods::default());
        let versions = [Version::V5, Version::V5, Version::V311, Version::V31];
        let clients = (0..8)
            .map(|at| Client {
                seen: Seen { name: format!("client{at}"), steady: at < 4, asked: None, got: Vec::new() },
                version: versions[random.below(versions.len())],
                filters: BTreeSet::new(),
                connection: None,
                connected: false,
                ends: false,
                will: 0,
                outgoing: VecDeque::new(),
                next_id: 1,
                received: BTreeSet::new(),
                answers: VecDeque::new(),
            })
            .collect();
        let clocks = Clocks::new(Instant::now(), WALL_SECS, None);
        let (shared_qos, retained_qos) = (random.qos(1), random.qos(1));
        World {
            options,
            random,
            core,
            wire: Recorder { trace: trace(), store: MemoryStore::new(clocks, SIZES), ..Recorder::default() },
            now: clocks.now,
            began: clocks.now,
            limits,
            acl,
            next_epoch: 1,
            living: Vec::new(),
            clients,
            shared_qos,
            retained_qos,
            next_number: BTreeMap::new(),
            fates: BTreeMap::new(),
            sent_to_the_gone: BTreeSet::new(),
            next_will: 1,
            wills_due: BTreeSet::new(),
            wills_possible: BTreeSet::new(),
            trace: trace(),
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.wire.digest
    }

    pub(crate) fn run(&mut self) {
        // The steady ones subscribe before anything is published.
        for at in 0..4 {
            self.connect(at);
            self.settle(true);
            let qos = self.random.qos(1);
            self.clients[at].seen.asked = Some(qos);
            self.subscribe(at, "t/+", qos);
            match at {
                0 | 1 => self.subscribe(at, SHARED, self.shared_qos),
                2 => self.subscribe(at, "w/+", QoS::AtLeastOnce),
                _ => self.subscribe(at, "r/+", QoS::AtLeastOnce),
            }
            self.settle(true);
        }
        if self.options.late {
            self.wire.store.hold();
        }
        if self.options.crashing.is_some() || self.options.disk_fails {
            self.wire.store.be_lazy();
        }
        if self.options.crashing == Some(Syncs::Lies) {
            self.wire.store.disk().lie_about_syncing();
        }
        for _ in 0..STEPS {
            self.step();
        }
        self.finish();
        let retained = self.what_is_retained();
        Outcome {
            clients: self.clients.iter().map(|client| &client.seen).collect(),
            fates: &self.fates,
            sent_to_the_gone: &self.sent_to_the_gone,
            wills_due: &self.wills_due,
            wills_possible: &self.wills_possible,
            retained,
            shared_qos: self.shared_qos,
            failing: self.options.failing,
            tight: self.options.tight,
            crashing: self.options.crashing.is_some(),
        }
        .check();
    }

    fn step(&mut self) {
        let at = self.random.below(self.clients.len());
        match self.random.below(22) {
            0 => self.lose(at),
            1 | 2 => self.connect(at),
            3..=8 => self.publish(at),
            9..=13 => self.answer(at),
            14 => self.stall(at),
            15 => self.drain(at),
            16 | 17 if !self.clients[at].seen.steady => self.change_subscriptions(at),
            18 if self.options.disk_fails => {
                let (from, count) = (self.random.below(8) as u64, 1 + self.random.below(40) as u64);
                self.wire.store.disk().fail(from, count);
            }
            18 if self.options.failing => {
                let failing = self.random.one_in(3);
                self.wire.store.set_failing(failing);
            }
            19 => {
                let by = Duration::from_millis(self.random.below(1_500) as u64);
                self.advance(by);
            }
            20 if !self.clients[at].seen.steady => self.leave(at),
            21 if self.options.crashing.is_some() && self.random.one_in(4) => self.crash(),
            _ => {
                self.wire.store.work();
                let count = 1 + self.random.below(4);
                let random = &mut self.random;
                self.wire.store.release(count, |waiting| if random.one_in(4) { random.below(waiting) } else { 0 });
            }
        }
        // Letters take their time.
        let at_once = self.random.one_in(2);
        if !at_once {
            for _ in 0..self.random.below(4) {
                let shard = self.random.below(self.core.len());
                self.core.hear(shard, self.now, &mut self.wire);
            }
        }
        self.settle(at_once);
        self.check_limits();
    }

    /// Every queue is within its limit, whatever happens.
    fn check_limits(&self) {
        // A slice of retained messages may come on top, and what other members left behind.
        let most = self.limits.queued_messages_max + 2 * self.limits.slice;
        for session in self.core.sessions() {
            assert!(session.inflight_messages <= usize::from(u16::MAX), "{session:?}");
            assert!(session.queued_messages <= most, "{session:?}");
        }
    }

    fn handle(&mut self, input: Input<'_>) {
        self.core.handle(self.now, input, &mut self.wire);
    }

    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        for _ in 0..10_000 {
            let Some(at) = self.core.next_deadline(self.now).filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            self.tick();
            self.handle(Input::Timer);
            self.settle(true);
        }
        self.now = until;
        self.tick();
    }

    /// The store's clocks go with the world's.
    fn tick(&mut self) {
        let since = self.now.saturating_duration_since(self.began);
        self.wire.store.set_clocks(Clocks::new(self.now, WALL_SECS + since.as_secs(), None));
    }

    /// Letters and the store's answers to the shards, packets to the clients, until all rest.
    fn settle(&mut self, letters: bool) {
        self.living.retain(|id| !self.wire.closed.contains_key(id));
        while (letters && self.core.hear_all(self.now, &mut self.wire))
            || self.core.answer(self.now, &mut self.wire)
            || self.deliver()
        {}
    }

    /// Gives each client what was written for it; `false` if there was nothing.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.clients.len() {
            let Some(id) = self.clients[at].connection else { continue };
            if !self.wire.stalled.contains_key(&id)
                && let Some(bytes) = self.wire.written.remove(&id)
            {
                any = true;
                self.read(at, &bytes);
            }
            if self.wire.closed.contains_key(&id) && self.clients[at].connection == Some(id) {
                any = true;
                // The store's failure is the one reason for this side to end a connection.
                if self.clients[at].connected && self.clients[at].will > 0 {
                    self.wills_due.insert(self.clients[at].will);
                }
                self.gone(at);
            }
        }
        any
    }

    fn read(&mut self, at: usize, bytes: &[u8]) {
        let version = self.clients[at].version;
        let mut rest = bytes;
        while let Some(frame) = codec::frame(rest, codec::PACKET_SIZE_MAX).unwrap() {
            let packet = codec::decode(rest, frame, version).unwrap();
            self.take(at, &packet);
            rest = &rest[frame.end..];
        }
        assert!(rest.is_empty(), "{rest:02x?} is left of {bytes:02x?}");
    }

    /// With `LOCKGATE_TRACE=1` a run says what happens in it.
    fn trace(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    fn take(&mut self, at: usize, packet: &Packet<'_>) {
        self.trace(|| format!("  client{at} <- {packet:?}"));
        let client = &mut self.clients[at];
        let name = client.seen.name.clone();
        let answer = |first: u8, id: u16| [first, 2, id.to_be_bytes()[0], id.to_be_bytes()[1]];
        assert!(client.connected || matches!(packet, Packet::ConnAck(_)), "something before CONNACK: {packet:?}");
        match packet {
            Packet::ConnAck(connack) if connack.reason.is_error() => {}
            Packet::ConnAck(connack) => {
                client.connected = true;
                if !connack.session_present && client.version != Version::V31 {
                    client.received.clear();
                    assert!(!client.seen.steady || client.filters.is_empty(), "{name}'s session is gone");
                    client.filters.clear();
                }
                self.repeat(at);
            }
            Packet::Publish(publish) => {
                let topic = Topic::parse(publish.topic).unwrap();
                let number: u32 = str::from_utf8(publish.payload).unwrap().parse().unwrap();
                assert!(!publish.topic.starts_with("secret/"), "{name} got a secret");
                let asked = client.filters.iter().any(|filter| Filter::parse(filter).unwrap().matches(topic));
                assert!(asked, "{name} never asked for {}", publish.topic);
                let got = Got {
                    key: (publish.topic.to_owned(), number),
                    qos: publish.qos,
                    retain: publish.retain,
                    dup: publish.dup,
                };
                match publish.qos {
                    QoS::AtMostOnce => client.seen.got.push(got),
                    QoS::AtLeastOnce => {
                        client.seen.got.push(got);
                        client.answers.push_back(answer(0x40, publish.packet_id.unwrap().value()));
                    }
                    QoS::ExactlyOnce => {
                        let id = publish.packet_id.unwrap().value();
                        if client.received.insert(id) {
                            client.seen.got.push(got);
                        }
                        client.answers.push_back(answer(0x50, id));
                    }
                }
            }
            Packet::PubRel(ack) => {
                client.received.remove(&ack.packet_id.value());
                client.answers.push_back(answer(0x70, ack.packet_id.value()));
            }
            Packet::PubAck(ack) => {
                self.settled(at, ack.packet_id.value(), QoS::AtLeastOnce, ack.reason.is_error());
            }
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.settled(at, ack.packet_id.value(), QoS::ExactlyOnce, true);
            }
            Packet::PubRec(ack) => {
                let id = ack.packet_id.value();
                if let Some(message) = client.outgoing.iter_mut().find(|message| message.packet_id == id) {
                    message.released = true;
                    self.fates.insert(message.key.clone(), (QoS::ExactlyOnce, Fate::Accepted));
                }
                let [high, low] = id.to_be_bytes();
                self.send(at, &[0x62, 2, high, low]);
            }
            Packet::PubComp(ack) => {
                let id = ack.packet_id.value();
                client.outgoing.retain(|message| message.packet_id != id);
            }
            Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp | Packet::Disconnect(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn settled(&mut self, at: usize, packet_id: u16, qos: QoS, refused: bool) {
        let client = &mut self.clients[at];
        if let Some(found) =
            client.outgoing.iter().position(|message| message.packet_id == packet_id && message.qos == qos)
        {
            let message = client.outgoing.remove(found).unwrap();
            let fate = if refused { Fate::Refused } else { Fate::Accepted };
            self.fates.insert(message.key, (qos, fate));
        }
    }

    /// What was not acknowledged is sent again, in its order.
    fn repeat(&mut self, at: usize) {
        let version = self.clients[at].version;
        let packets: Vec<Vec<u8>> = self.clients[at]
            .outgoing
            .iter()
            .map(|message| match message.released {
                true => {
                    let [high, low] = message.packet_id.to_be_bytes();
                    vec![0x62, 2, high, low]
                }
                false => encode(message, version, true),
            })
            .collect();
        for packet in packets {
            self.send(at, &packet);
        }
    }

    fn send(&mut self, at: usize, bytes: &[u8]) {
        let Some(id) = self.clients[at].connection.filter(|id| !self.wire.closed.contains_key(id)) else { return };
        let frame = codec::frame(bytes, codec::PACKET_SIZE_MAX).unwrap().unwrap();
        let packet = codec::decode(bytes, frame, self.clients[at].version).unwrap();
        self.trace(|| format!("client{at} -> {packet:?}"));
        self.core.handle(self.now, Input::Received(id, packet), &mut self.wire);
    }

    /// Connects, which takes over a connection that there is.
    fn connect(&mut self, at: usize) {
        let steady = self.clients[at].seen.steady;
        // A session that ends with its connection promises nothing beyond.
        let may_end = self.options.crashing.is_none() || self.clients[at].version == Version::V5;
        let clean_start = !steady && may_end && self.random.one_in(3);
        self.owe_will(at);
        if let Some(old) = self.clients[at].connection.take() {
            // What is under way to the old connection never arrives.
            self.lose_bytes(at, old);
        }
        let client = &mut self.clients[at];
        if client.ends {
            // It ended with its connection.
            client.received.clear();
            client.filters.clear();
        }
        client.ends = clean_start && client.version != Version::V5;
        if clean_start {
            // Its messages are its own affair; what was sent to the broker may be lost now.
            client.outgoing.clear();
            // Where the power can go, the old session is over when CONNACK says so.
            if self.options.crashing.is_none() {
                client.received.clear();
                client.filters.clear();
            }
        }
        let expiry = if steady || self.random.one_in(2) { 1_000_000 } else { 1 };
        client.connected = false;
        client.answers.clear();
        // The lowest index that no living connection has, as the shard would take it.
        let index = (0..).find(|index| !self.living.iter().any(|id| id.index == *index)).unwrap();
        let id = ConnectionId { index, epoch: self.next_epoch };
        self.next_epoch += 1;
        self.living.push(id);
        client.connection = Some(id);
        client.will = if self.random.one_in(2) { self.next_will } else { 0 };
        self.next_will += 1;
        let will_topic = format!("w/{at}");
        let will_payload = client.will.to_string();
        let connect = Connect {
            version: client.version,
            clean_start,
            keep_alive: 0,
            properties: ConnectProperties {
                session_expiry_interval: (client.version == Version::V5).then_some(expiry),
                receive_maximum: 1 + self.random.below(30) as u16,
                topic_alias_maximum: 0,
                ..ConnectProperties::default()
            },
            client_id: &client.seen.name,
            will: (client.will > 0).then_some(Will {
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: WillProperties::default(),
                topic: &will_topic,
                payload: will_payload.as_bytes(),
            }),
            user_name: None,
            password: None,
        };
        let admission = Admission {
            connect: &connect,
            client: ClientId::new(&client.seen.name).unwrap(),
            assigned: false,
            identity: Some(Identity::parse(&client.seen.name).unwrap()),
            authentication_data: None,
            notice: None,
            entrance: Arc::default(),
        };
        if self.trace {
            eprintln!("client{at} connects: {connect:?}");
        }
        self.core.handle(self.now, Input::Connected(id, admission), &mut self.wire);
    }

    /// Its connection is about to end without DISCONNECT.
    fn owe_will(&mut self, at: usize) {
        let client = &self.clients[at];
        let alive = client.connection.is_some_and(|id| !self.wire.closed.contains_key(&id));
        if alive && client.connected && client.will > 0 {
            self.wills_due.insert(client.will);
        } else if self.options.crashing.is_some() {
            // Written down, perhaps, and not acknowledged.
            self.wills_possible.insert(client.will);
        }
    }

    /// Bytes that never arrive: who may have been sent a shared QoS 2 message keeps it.
    fn lose_bytes(&mut self, at: usize, id: ConnectionId) {
        self.wire.stalled.remove(&id);
        let Some(bytes) = self.wire.written.remove(&id) else { return };
        let version = self.clients[at].version;
        let mut rest = &bytes[..];
        while let Ok(Some(frame)) = codec::frame(rest, codec::PACKET_SIZE_MAX) {
            if let Ok(Packet::Publish(publish)) = codec::decode(rest, frame, version)
                && publish.topic.starts_with("s/")
            {
                let number = str::from_utf8(publish.payload).unwrap().parse().unwrap();
                self.sent_to_the_gone.insert((publish.topic.to_owned(), number));
            }
            rest = &rest[frame.end..];
        }
    }

    fn lose(&mut self, at: usize) {
        if let Some(id) = self.clients[at].connection.filter(|id| !self.wire.closed.contains_key(id)) {
            self.owe_will(at);
            self.trace(|| format!("client{at} is lost"));
            self.handle(Input::Lost(id));
            self.wire.closed.insert(id, Closing::Lost);
            self.lose_bytes(at, id);
            self.gone(at);
        }
    }

    /// The power goes, or the process alone, perhaps in the middle of a commit, and comes back; of what was
    /// not synced the disk keeps nothing, all or any part.
    fn crash(&mut self) {
        self.trace(|| "the power goes".to_owned());
        let store = &mut self.wire.store;
        if self.random.one_in(2) {
            let from = self.random.below(6) as u64;
            store.disk().fail(from, u64::MAX);
            store.work();
        }
        for at in 0..self.clients.len() {
            self.owe_will(at);
            self.gone(at);
        }
        let random = &mut self.random;
        let kept = random.below(4);
        match kept {
            // The process alone: what it wrote and did not sync is read back, and goes with a later cut.
            3 => self.wire.store.disk().fail(0, 0),
            _ => self.wire.store.disk().cut_power(|| match kept {
                0 => false,
                1 => true,
                _ => random.one_in(2),
            }),
        }
        self.core.restart(self.now, &self.limits, &self.acl, &mut self.wire);
        self.living.clear();
    }

    /// Says goodbye: its will is not published.
    fn leave(&mut self, at: usize) {
        if self.clients[at].connected {
            if self.options.crashing.is_some() {
                // If it is not written down in time, it was not said.
                self.wills_possible.insert(self.clients[at].will);
            }
            self.send(at, &[0xE0, 0]);
            if let Some(id) = self.clients[at].connection {
                self.lose_bytes(at, id);
            }
            self.gone(at);
        }
    }

    fn gone(&mut self, at: usize) {
        if let Some(id) = self.clients[at].connection.take() {
            self.lose_bytes(at, id);
        }
        let client = &mut self.clients[at];
        client.connected = false;
        client.answers.clear();
    }

    fn change_subscriptions(&mut self, at: usize) {
        let qos = self.random.qos(0);
        match self.random.below(6) {
            0 => self.subscribe(at, "t/+", qos),
            1 | 2 => self.subscribe(at, SHARED, self.shared_qos),
            3 => self.subscribe(at, "r/+", qos),
            4 => self.subscribe(at, "+/9", qos),
            _ => self.unsubscribe(at, SHARED),
        }
    }

    fn subscribe(&mut self, at: usize, filter: &'static str, qos: QoS) {
        if !self.clients[at].connected {
            return;
        }
        // From its sending on, messages may come.
        self.clients[at].filters.insert(filter);
        self.ask(at, 0x82, filter, Some(qos));
    }

    fn unsubscribe(&mut self, at: usize, filter: &'static str) {
        if self.clients[at].connected {
            self.ask(at, 0xA2, filter, None);
        }
    }

    fn ask(&mut self, at: usize, first_byte: u8, filter: &str, qos: Option<QoS>) {
        let mut body = vec![0, 1];
        if self.clients[at].version == Version::V5 {
            body.push(0);
        }
        body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
        body.extend_from_slice(filter.as_bytes());
        body.extend(qos.map(QoS::bits));
        let packet = [&[first_byte, body.len() as u8][..], &body].concat();
        self.send(at, &packet);
    }

    fn publish(&mut self, at: usize) {
        // One publisher a topic, so that there is an order to keep.
        if at >= TOPICS || !self.clients[at].connected || self.clients[at].outgoing.len() >= 40 {
            return;
        }
        let kind = ["t", "t", "t", "s", "r", "secret"][self.random.below(6)];
        let retain = kind == "r";
        let qos = match kind {
            // All of one QoS, or a repetition at QoS 1 could come after its QoS 2 successor.
            "r" => self.retained_qos,
            "s" => self.random.qos(1),
            _ => self.random.qos(0),
        };
        let topic = if kind == "secret" { "secret/9".to_owned() } else { format!("{kind}/{at}") };
        let next = self.next_number.entry(topic.clone()).or_insert(0);
        let number = *next;
        *next += 1;
        let client = &mut self.clients[at];
        let packet_id = client.next_id;
        client.next_id = client.next_id % 60_000 + 1;
        let message = Outgoing { key: (topic, number), qos, retain, packet_id, released: false };
        let bytes = encode(&message, client.version, false);
        if qos != QoS::AtMostOnce {
            client.outgoing.push_back(message);
        }
        self.send(at, &bytes);
    }

    /// One of the answers that a client owes; acknowledgements may be out of order.
    fn answer(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.answers.is_empty() || !client.connected {
            return;
        }
        let chosen = if self.random.one_in(4) { self.random.below(client.answers.len()) } else { 0 };
        let answer = client.answers.remove(chosen).unwrap();
        self.send(at, &answer);
    }

    fn stall(&mut self, at: usize) {
        if let Some(id) = self.clients[at].connection.filter(|_| self.clients[at].connected) {
            self.wire.stalled.entry(id).or_insert(0);
        }
    }

    fn drain(&mut self, at: usize) {
        if let Some(id) = self.clients[at].connection
            && self.wire.stalled.remove(&id).is_some()
        {
            self.handle(Input::Drained(id));
        }
    }

    /// Everybody comes back, reads and answers, and the store works.
    fn finish(&mut self) {
        self.wire.store.set_failing(false);
        self.wire.store.disk().fail(0, 0);
        for _ in 0..2_000 {
            self.wire.store.work();
            self.wire.store.release(100, |_| 0);
            self.settle(true);
            for at in 0..self.clients.len() {
                self.drain(at);
                // Clean sessions end with what waits in them: they come back as they are.
                if self.clients[at].connection.is_none() {
                    self.connect(at);
                }
                while !self.clients[at].answers.is_empty() && self.clients[at].connected {
                    let answer = self.clients[at].answers.pop_front().unwrap();
                    self.send(at, &answer);
                }
            }
            self.advance(Duration::from_millis(300));
        }
        for client in self.clients.iter().filter(|client| client.seen.steady) {
            assert!(client.outgoing.is_empty(), "{} still waits for acknowledgements", client.seen.name);
        }
    }

    /// What somebody who comes in the end finds retained.
    fn what_is_retained(&mut self) -> BTreeMap<String, u32> {
        let at = 4;
        self.lose(at);
        self.clients[at].version = Version::V311;
        self.connect(at);
        for _ in 0..20 {
            self.wire.store.work();
            self.wire.store.release(100, |_| 0);
            self.settle(true);
        }
        let before = self.clients[at].seen.got.len();
        self.subscribe(at, "r/+", QoS::AtMostOnce);
        for _ in 0..100 {
            self.wire.store.work();
            self.wire.store.release(100, |_| 0);
            self.advance(Duration::from_millis(1));
            self.settle(true);
        }
        let got = &self.clients[at].seen.got[before..];
        got.iter().filter(|got| got.retain).map(|got| got.key.clone()).collect()
    }
}

/// `LOCKGATE_TRACE=1`
fn trace() -> bool {
    std::env::var_os("LOCKGATE_TRACE").is_some()
}

fn encode(message: &Outgoing, version: Version, dup: bool) -> Vec<u8> {
    let payload = message.key.1.to_string();
    let publish = codec::Publish {
        dup: dup && message.qos != QoS::AtMostOnce,
        qos: message.qos,
        retain: message.retain,
        topic: &message.key.0,
        packet_id: lockgate::types::PacketId::new(message.packet_id).filter(|_| message.qos != QoS::AtMostOnce),
        properties: codec::PublishProperties::default(),
        payload: payload.as_bytes(),
    };
    let mut bytes = Vec::new();
    codec::encode(&mut bytes, &Packet::Publish(publish), version);
    bytes
}
