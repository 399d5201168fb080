use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::auth::Acl;
use lockgate::broker::{Admission, Closing, ConnectionId, Core, Input, Limits};
use lockgate::codec::{self, Connect, ConnectProperties, Packet, Version};
use lockgate::store::{Answer, Store};
use lockgate::types::{ClientId, Identity, QoS};

use crate::recorder::Recorder;

pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) durable: bool,
    pub(crate) late: bool,
    pub(crate) failing: bool,
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
}

/// A message on its way from a publisher.
struct Outgoing {
    topic: usize,
    number: u32,
    qos: QoS,
    packet_id: u16,
    released: bool,
}

struct Client {
    name: String,
    version: Version,
    /// Keeps its session and its subscription throughout: it must get everything.
    steady: bool,
    subscribed: Option<QoS>,
    connection: Option<ConnectionId>,
    connected: bool,
    outgoing: VecDeque<Outgoing>,
    next_id: u16,
    /// QoS 2 identifiers received and not released.
    received: BTreeSet<u16>,
    /// Answers that it will send, some time.
    answers: VecDeque<[u8; 4]>,
    /// Per topic: numbers as they came, without the repetitions of QoS 1.
    got: Vec<(usize, u32, QoS, bool)>,
}

/// What became of a published message.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Accepted,
    Refused,
}

const TOPICS: usize = 4;
const STEPS: usize = 400;

pub(crate) struct World {
    options: Options,
    random: Random,
    core: Core,
    wire: Recorder,
    now: Instant,
    next_epoch: u32,
    /// Connections that the core has not closed.
    living: Vec<ConnectionId>,
    clients: Vec<Client>,
    next_number: [u32; TOPICS],
    fates: BTreeMap<(usize, u32), (QoS, Fate)>,
    publishers: BTreeMap<(usize, u32), usize>,
}

impl World {
    pub(crate) fn new(options: Options) -> World {
        let mut random = Random(options.seed);
        let limits = Limits {
            inflight_max: 1 + random.below(20) as u16,
            receive_maximum: 50,
            backlog_bytes_max: 2_000,
            slice: 8,
            ..Limits::default()
        };
        let core_options =
            lockgate::broker::Options { limits, durable: options.durable, seed: [1, 2, 3, options.seed] };
        let core = Core::new(core_options, Arc::new(Acl::open()));
        let versions = [Version::V5, Version::V5, Version::V311, Version::V31];
        let clients = (0..8)
            .map(|at| Client {
                name: format!("client{at}"),
                // A version that cannot be told of a failure is disconnected by it: for the rest of
                // the model all the same.
                version: versions[random.below(versions.len())],
                steady: at < 4,
                subscribed: None,
                connection: None,
                connected: false,
                outgoing: VecDeque::new(),
                next_id: 1,
                received: BTreeSet::new(),
                answers: VecDeque::new(),
                got: Vec::new(),
            })
            .collect();
        World {
            options,
            random,
            core,
            wire: Recorder::default(),
            now: Instant::now(),
            next_epoch: 1,
            living: Vec::new(),
            clients,
            next_number: [0; TOPICS],
            fates: BTreeMap::new(),
            publishers: BTreeMap::new(),
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.wire.digest
    }

    pub(crate) fn run(&mut self) {
        // The steady ones subscribe before anything is published.
        for at in 0..self.clients.len() {
            if self.clients[at].steady {
                self.connect(at);
                self.settle();
                let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][self.random.below(2)];
                self.subscribe(at, qos);
                self.settle();
            }
        }
        if self.options.late {
            self.wire.store.hold();
        }
        for _ in 0..STEPS {
            self.step();
        }
        self.finish();
        self.check();
    }

    fn step(&mut self) {
        let at = self.random.below(self.clients.len());
        match self.random.below(20) {
            0 => self.lose(at),
            1 | 2 => self.connect(at),
            3..=8 => self.publish(at),
            9..=13 => self.answer(at),
            14 => self.stall(at),
            15 => self.drain(at),
            16 if !self.clients[at].steady => {
                let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][self.random.below(3)];
                self.subscribe(at, qos);
            }
            17 if self.options.failing => {
                let failing = self.random.one_in(3);
                self.wire.store.set_failing(failing);
            }
            18 => {
                let by = Duration::from_millis(self.random.below(1_500) as u64);
                self.advance(by);
            }
            _ => {
                let count = 1 + self.random.below(4);
                let random = &mut self.random;
                self.wire.store.release(count, |waiting| if random.one_in(4) { random.below(waiting) } else { 0 });
            }
        }
        self.settle();
    }

    fn handle(&mut self, input: Input<'_>) {
        self.core.handle(self.now, input, &mut self.wire);
    }

    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        for _ in 0..10_000 {
            let Some(at) = self.core.next_deadline(self.now).filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            self.handle(Input::Timer);
            self.settle();
        }
        self.now = until;
    }

    /// Store answers to the core, packets to the clients, until both rest.
    fn settle(&mut self) {
        self.living.retain(|id| !self.wire.closed.contains_key(id));
        loop {
            if let Some(answer) = self.wire.store.poll_answer() {
                self.handle(match answer {
                    Answer::Committed(ticket) => Input::Committed(ticket),
                    Answer::Failed(ticket) => Input::Failed(ticket),
                });
            } else if let Some((client, wanted)) = self.wire.fetched.pop() {
                let found = wanted.into_iter().map(|id| (id, self.wire.store.fetch(id))).collect();
                self.handle(Input::Fetched(client, found));
            } else if !self.deliver() {
                return;
            }
        }
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

    fn take(&mut self, at: usize, packet: &Packet<'_>) {
        let client = &mut self.clients[at];
        let answer = |first: u8, id: u16| [first, 2, id.to_be_bytes()[0], id.to_be_bytes()[1]];
        assert!(client.connected || matches!(packet, Packet::ConnAck(_)), "something before CONNACK: {packet:?}");
        match packet {
            Packet::ConnAck(connack) if connack.reason.is_error() => {}
            Packet::ConnAck(connack) => {
                client.connected = true;
                if !connack.session_present && client.version != Version::V31 {
                    client.received.clear();
                    assert!(!client.steady || client.subscribed.is_none(), "{}'s session is gone", client.name);
                    if !client.steady {
                        client.subscribed = None;
                    }
                }
                self.repeat(at);
            }
            Packet::Publish(publish) => {
                let topic: usize = publish.topic.strip_prefix("t/").unwrap().parse().unwrap();
                let number: u32 = str::from_utf8(publish.payload).unwrap().parse().unwrap();
                assert!(client.subscribed.is_some(), "{} never asked for {}", client.name, publish.topic);
                match publish.qos {
                    QoS::AtMostOnce => client.got.push((topic, number, publish.qos, false)),
                    QoS::AtLeastOnce => {
                        client.got.push((topic, number, publish.qos, publish.dup));
                        client.answers.push_back(answer(0x40, publish.packet_id.unwrap().value()));
                    }
                    QoS::ExactlyOnce => {
                        let id = publish.packet_id.unwrap().value();
                        if client.received.insert(id) {
                            client.got.push((topic, number, publish.qos, false));
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
                    self.fates.insert((message.topic, message.number), (QoS::ExactlyOnce, Fate::Accepted));
                }
                let [high, low] = id.to_be_bytes();
                self.send(at, &[0x62, 2, high, low]);
            }
            Packet::PubComp(ack) => {
                let id = ack.packet_id.value();
                client.outgoing.retain(|message| message.packet_id != id);
            }
            Packet::SubAck(_) | Packet::PingResp | Packet::Disconnect(_) => {}
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
            self.fates.insert((message.topic, message.number), (qos, fate));
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
        self.core.handle(self.now, Input::Received(id, packet), &mut self.wire);
    }

    /// Connects, which takes over a connection that there is.
    fn connect(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let clean_start = !client.steady && self.random.one_in(3);
        if clean_start {
            // Its messages are its own affair; what was sent to the broker may be lost now.
            client.outgoing.clear();
            client.received.clear();
            client.subscribed = None;
        }
        let expiry = if client.steady || self.random.one_in(2) { 1_000_000 } else { 1 };
        if let Some(old) = client.connection.take() {
            // What is under way to the old connection never arrives.
            self.wire.written.remove(&old);
        }
        client.connected = false;
        client.answers.clear();
        // The lowest index that no living connection has, as the shard would take it.
        let index = (0..).find(|index| !self.living.iter().any(|id| id.index == *index)).unwrap();
        let id = ConnectionId { index, epoch: self.next_epoch };
        self.next_epoch += 1;
        self.living.push(id);
        client.connection = Some(id);
        let connect = Connect {
            version: client.version,
            clean_start,
            keep_alive: 0,
            properties: ConnectProperties {
                session_expiry_interval: (client.version == Version::V5).then_some(expiry),
                receive_maximum: 1 + self.random.below(30) as u16,
                ..ConnectProperties::default()
            },
            client_id: &client.name,
            will: None,
            user_name: None,
            password: None,
        };
        let admission = Admission {
            connect: &connect,
            client: ClientId::new(&client.name).unwrap(),
            assigned: false,
            identity: Some(Identity::parse(&client.name).unwrap()),
        };
        self.core.handle(self.now, Input::Connected(id, admission), &mut self.wire);
    }

    fn lose(&mut self, at: usize) {
        if let Some(id) = self.clients[at].connection.filter(|id| !self.wire.closed.contains_key(id)) {
            self.handle(Input::Lost(id));
            self.wire.written.remove(&id);
            self.wire.closed.insert(id, Closing::Lost);
            self.gone(at);
        }
    }

    fn gone(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if let Some(id) = client.connection.take() {
            self.wire.stalled.remove(&id);
            self.wire.written.remove(&id);
        }
        client.connected = false;
        client.answers.clear();
    }

    fn subscribe(&mut self, at: usize, qos: QoS) {
        if !self.clients[at].connected {
            return;
        }
        // From its sending on, messages may come.
        self.clients[at].subscribed = Some(qos);
        let mut body = vec![0, 1];
        if self.clients[at].version == Version::V5 {
            body.push(0);
        }
        body.extend_from_slice(&[0, 3, b't', b'/', b'+', qos.bits()]);
        let packet = [&[0x82, body.len() as u8][..], &body].concat();
        self.send(at, &packet);
    }

    fn publish(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if !client.connected || client.outgoing.len() >= 40 {
            return;
        }
        // One publisher a topic, so that there is an order to keep.
        let topic = at % TOPICS;
        if at >= TOPICS {
            return;
        }
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][self.random.below(3)];
        let number = self.next_number[topic];
        self.next_number[topic] += 1;
        let packet_id = client.next_id;
        client.next_id = client.next_id % 60_000 + 1;
        let message = Outgoing { topic, number, qos, packet_id, released: false };
        let bytes = encode(&message, client.version, false);
        self.publishers.insert((topic, number), at);
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
        for _ in 0..2_000 {
            self.wire.store.release(100, |_| 0);
            self.settle();
            for at in 0..self.clients.len() {
                self.drain(at);
                if self.clients[at].steady && self.clients[at].connection.is_none() {
                    self.connect(at);
                }
                while !self.clients[at].answers.is_empty() && self.clients[at].connected {
                    let answer = self.clients[at].answers.pop_front().unwrap();
                    self.send(at, &answer);
                }
            }
            self.advance(Duration::from_millis(300));
        }
    }

    fn check(&self) {
        for client in self.clients.iter().filter(|client| client.steady) {
            let asked = client.subscribed.unwrap();
            assert!(client.outgoing.is_empty(), "{} still waits for acknowledgements", client.name);
            for (key, (qos, fate)) in &self.fates {
                let effective = (*qos).min(asked);
                let count = client
                    .got
                    .iter()
                    .filter(|(topic, number, got, _)| (*topic, *number) == *key && *got == effective)
                    .count();
                match (fate, effective) {
                    (Fate::Accepted, QoS::ExactlyOnce) => {
                        assert_eq!(count, 1, "{} got {key:?} at QoS 2 {count} times", client.name);
                    }
                    (Fate::Accepted, _) => {
                        assert!(count >= 1, "{} never got {key:?} (published at {qos:?})", client.name)
                    }
                    // Withdrawn before its 0x97 left: no copy of a QoS 2 message goes before its commit.
                    (Fate::Refused, _) if *qos == QoS::ExactlyOnce => {
                        assert_eq!(count, 0, "{} got {key:?}, which was refused", client.name);
                    }
                    (Fate::Refused, _) => {}
                }
            }
            self.check_order(client);
        }
        // QoS 0 is never doubled, for anybody.
        for client in &self.clients {
            let mut seen = BTreeSet::new();
            for (topic, number, qos, _) in &client.got {
                if *qos == QoS::AtMostOnce && client.steady {
                    assert!(seen.insert((*topic, *number)), "{} got {topic}/{number} at QoS 0 twice", client.name);
                }
            }
        }
    }

    /// First deliveries of one topic at one QoS come in the order of their publication
    /// [MQTT-4.6.0-6], where the publisher did not repeat them.
    fn check_order(&self, client: &Client) {
        for topic in 0..TOPICS {
            for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                let mut seen = BTreeSet::new();
                let mut last = None;
                for (_, number, _, _) in client.got.iter().filter(|(t, _, q, _)| (*t, *q) == (topic, qos)) {
                    if !seen.insert(*number) {
                        continue;
                    }
                    // With a failing store a publisher's own repetition may change the order.
                    if !self.options.failing {
                        let published = |number: &u32| self.fates.get(&(topic, *number)).map(|(qos, _)| *qos);
                        if let Some(previous) = last.filter(|previous| published(previous) == published(number)) {
                            assert!(
                                previous < *number,
                                "{}: t/{topic} {number} after {previous} at {qos:?}",
                                client.name
                            );
                        }
                    }
                    last = Some(*number);
                }
            }
        }
    }
}

fn encode(message: &Outgoing, version: Version, dup: bool) -> Vec<u8> {
    let topic = format!("t/{}", message.topic);
    let payload = message.number.to_string();
    let publish = codec::Publish {
        dup: dup && message.qos != QoS::AtMostOnce,
        qos: message.qos,
        retain: false,
        topic: &topic,
        packet_id: lockgate::types::PacketId::new(message.packet_id).filter(|_| message.qos != QoS::AtMostOnce),
        properties: codec::PublishProperties::default(),
        payload: payload.as_bytes(),
    };
    let mut bytes = Vec::new();
    codec::encode(&mut bytes, &Packet::Publish(publish), version);
    bytes
}
