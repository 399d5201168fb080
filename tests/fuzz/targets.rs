//! What each fuzz target does with its bytes; shared by the fuzzer and the replay of its corpus.
#![allow(dead_code, clippy::allow_attributes, reason = "each fuzz binary uses one of them")]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::auth::{Acl, Methods, Operation, PasswordHash, Subject, parse_passwords};
use lockgate::broker::{
    Admission, Change, Closing, Command, ConnectionId, Core, Input, Letter, Limits, MessageId, Note, Options, Outbox,
    Payload, ShardId, Ticket, Wanted,
};
use lockgate::codec::{self, Packet, Version};
use lockgate::store::{Answer, MemoryStore, Store};
use lockgate::types::{ClientId, Filter, Identity, Realm, Topic};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// Decodes packet after packet in each version; what decodes encodes to something that decodes alike.
pub(crate) fn codec(bytes: &[u8]) {
    for version in VERSIONS {
        let mut rest = bytes;
        while let Ok(Some(frame)) = codec::frame(rest, 1 << 20) {
            if let Ok(packet) = codec::decode(rest, frame, version) {
                let wire = match &packet {
                    Packet::Connect(connect) => connect.version,
                    _ => version,
                };
                let mut again = Vec::new();
                codec::encode(&mut again, &packet, wire);
                if !again.is_empty() {
                    let frame = codec::frame(&again, codec::PACKET_SIZE_MAX)
                        .expect("our own header is sound")
                        .expect("and the packet is whole");
                    let back = codec::decode(&again, frame, wire).expect("what we encode decodes");
                    let mut third = Vec::new();
                    codec::encode(&mut third, &back, wire);
                    assert_eq!(again, third);
                }
            }
            rest = &rest[frame.end..];
        }
    }
}

/// Matches a filter against a topic, ours against the plainest that there is.
pub(crate) fn filter(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Some((filter, topic)) = text.split_once('\n') else { return };
    let (Ok(filter), Ok(topic)) = (Filter::parse(filter), Topic::parse(topic)) else { return };
    let wanted: Vec<&str> = filter.path().split('/').collect();
    let levels: Vec<&str> = topic.as_str().split('/').collect();
    assert_eq!(filter.matches(topic), naive(&wanted, &levels, true), "{filter:?} {topic:?}");
}

fn naive(wanted: &[&str], levels: &[&str], first: bool) -> bool {
    match (wanted.first(), levels.first()) {
        (Some(&"#"), Some(level)) if first && level.starts_with('$') => false,
        (Some(&"#"), _) => true,
        (None, None) => true,
        (None, Some(_)) | (Some(_), None) => false,
        (Some(&"+"), Some(level)) => !(first && level.starts_with('$')) && naive(&wanted[1..], &levels[1..], false),
        (Some(one), Some(other)) => one == other && naive(&wanted[1..], &levels[1..], false),
    }
}

/// Reads an ACL and asks it; its answers name lines that it has.
pub(crate) fn acl(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(acl) = Acl::parse(text) else { return };
    for subject in [
        Subject { identity: None, client_id: "c", realm: Realm::SITE },
        Subject { identity: Some("device1"), client_id: "a/b", realm: Realm::SITE },
        Subject { identity: Some("user"), client_id: "#", realm: Realm::SITE },
    ] {
        for topic in ["a", "a/b", "$SYS/x", "device1/x", "ä//"] {
            let topic = Topic::parse(topic).expect("a topic");
            for operation in [Operation::Read, Operation::Write] {
                let decision = acl.check(subject, operation, topic);
                assert!(decision.line.is_some() || !decision.allowed);
                assert!(decision.line.is_none_or(|line| line as usize <= text.lines().count()));
                assert!(!acl.allows_all(subject, operation) || topic.is_system() || decision.allowed);
            }
        }
        for filter in ["#", "a/+", "$share/g/a", "+/#"] {
            let _ = acl.may_subscribe(subject, Filter::parse(filter).expect("a filter"));
        }
    }
}

/// Reads a password file.
pub(crate) fn passwords(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = parse_passwords(text);
    for line in text.lines() {
        let _ = PasswordHash::parse(line);
    }
}

/// Reads a configuration; problems are said with their place.
pub(crate) fn yaml(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Err(error) = lockgate::config::parse(Path::new("config/lockgate.yaml"), text, []) {
        assert!(!error.to_string().is_empty());
    }
}

/// The core's output: kept within what decodes.
#[derive(Default)]
struct Sink {
    versions: BTreeMap<ConnectionId, Version>,
    closed: BTreeMap<ConnectionId, ()>,
    store: MemoryStore,
    asked: BTreeMap<(ClientId, u64), ShardId>,
    letters: BTreeMap<ShardId, VecDeque<(ShardId, Letter)>>,
    speaking: ShardId,
    backlog: usize,
}

impl Outbox for Sink {
    fn ask(&mut self, _: ConnectionId, _: &str, payload: &[u8]) -> bool {
        payload.len().is_multiple_of(2)
    }

    fn write(&mut self, to: ConnectionId, bytes: &[u8]) {
        assert!(!self.closed.contains_key(&to), "written after close");
        let version = self.versions[&to];
        let mut rest = bytes;
        while !rest.is_empty() {
            let frame = codec::frame(rest, codec::PACKET_SIZE_MAX).expect("a sound header").expect("a whole packet");
            codec::decode(rest, frame, version).expect("a sound packet");
            rest = &rest[frame.end..];
        }
    }

    fn publish(&mut self, to: ConnectionId, head: &[u8], payload: Payload<'_>) {
        self.write(to, &[head, payload.as_slice()].concat());
    }

    fn backlog(&self, _: ConnectionId) -> usize {
        self.backlog
    }

    fn close(&mut self, to: ConnectionId, _: Closing) {
        assert!(self.closed.insert(to, ()).is_none(), "closed twice");
    }

    fn persist(&mut self, ticket: Option<Ticket>, changes: &[Change]) {
        self.store.append(ticket, changes);
    }

    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted) {
        self.asked.insert((client.clone(), number), self.speaking);
        self.store.fetch(client, number, wanted);
    }

    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        self.store.rewind(client, inflight);
    }

    fn tell(&mut self, to: ShardId, letter: Letter) {
        self.letters.entry(to).or_default().push_back((self.speaking, letter));
    }

    fn note(&mut self, _: Note<'_>) {}
}

/// Feeds the shards of a broker operations: the first byte of each says what, the rest is a packet.
pub(crate) fn core(bytes: &[u8]) {
    let Some((&kind, mut rest)) = bytes.split_first() else { return };
    let shards = [1, 2, 4, 1][usize::from(kind & 3)];
    let limits = Limits {
        inflight_max: 2,
        receive_maximum: 3,
        queued_messages_max: 4,
        backlog_bytes_max: 1_024,
        retained_messages_max: 8,
        subscriptions_max: 6,
        sessions_max: 6,
        slice: 2,
        ..Limits::default()
    };
    let acl = Arc::new(Acl::parse("pattern readwrite #\nuser a\ntopic deny secret/#\n").expect("an ACL"));
    let seed = [1, 2, 3, 4];
    let durable = kind & 4 != 0;
    let mut cores: Vec<Core> = (0..shards)
        .map(|shard| {
            let shard = ShardId(shard);
            let methods = Methods::default();
            Core::new(Options { limits: limits.clone(), durable, seed, shard, shards, methods }, acl.clone())
        })
        .collect();
    let mut sink = Sink::default();
    if kind & 8 != 0 {
        sink.store.hold();
    }
    let mut now = Instant::now();
    let mut open: Vec<(ConnectionId, usize)> = Vec::new();
    let mut epoch = 1;
    while let Some((&operation, after)) = rest.split_first() {
        rest = after;
        let which = usize::from(operation >> 4);
        open.retain(|(id, _)| !sink.closed.contains_key(id));
        match operation & 0x0F {
            0..=2 => {
                let Ok(Some(frame)) = codec::frame(rest, 4_096) else { break };
                let packet = &rest[..frame.end];
                rest = &rest[frame.end..];
                let Ok(Packet::Connect(connect)) = codec::decode(packet, frame, Version::V5) else { continue };
                let client = ClientId::new(if connect.client_id.is_empty() { "x" } else { connect.client_id })
                    .expect("not empty");
                let index = (0..).find(|index| !open.iter().any(|(id, _)| id.index == *index)).expect("one is free");
                let id = ConnectionId { index, epoch };
                epoch += 1;
                let home = usize::from(Core::shard_of(seed, shards, &client).0);
                open.push((id, home));
                sink.versions.insert(id, connect.version);
                let admission = Admission {
                    connect: &connect,
                    client,
                    assigned: false,
                    identity: Identity::parse(["a", "b"][which & 1]).ok(),
                    authentication_data: None,
                    notice: None,
                    entrance: std::sync::Arc::default(),
                };
                sink.speaking = ShardId(home as u16);
                cores[home].handle(now, Input::Connected(id, admission), &mut sink);
            }
            3..=9 => {
                let Some((id, home)) = open.get(which % open.len().max(1)).copied() else { continue };
                let version = sink.versions[&id];
                sink.speaking = ShardId(home as u16);
                match codec::frame(rest, 4_096) {
                    Ok(None) => break,
                    Err(error) => {
                        cores[home].handle(now, Input::Malformed(id, error), &mut sink);
                        break;
                    }
                    Ok(Some(frame)) => {
                        let packet = &rest[..frame.end];
                        rest = &rest[frame.end..];
                        match codec::decode(packet, frame, version) {
                            Ok(packet) => cores[home].handle(now, Input::Received(id, packet), &mut sink),
                            Err(error) => cores[home].handle(now, Input::Malformed(id, error), &mut sink),
                        }
                    }
                }
            }
            10 => {
                let Some((id, home)) = open.get(which % open.len().max(1)).copied() else { continue };
                sink.speaking = ShardId(home as u16);
                let input =
                    if which & 1 == 0 { Input::Lost(id) } else { Input::Command(Command::Kick(id, Closing::Kicked)) };
                sink.closed.remove(&id);
                let lost = matches!(input, Input::Lost(_));
                cores[home].handle(now, input, &mut sink);
                if lost {
                    sink.closed.insert(id, ());
                }
            }
            11 => now += Duration::from_millis(1 << which),
            12 => sink.backlog = which * 256,
            13 => sink.store.set_failing(which & 1 == 1),
            14 => sink.store.release(which, |waiting| waiting.saturating_sub(1) * (which & 1)),
            _ => {
                for (id, home) in open.clone() {
                    sink.speaking = ShardId(home as u16);
                    cores[home].handle(now, Input::Drained(id), &mut sink);
                }
            }
        }
        settle(&mut cores, &mut sink, now);
    }
}

fn settle(cores: &mut [Core], sink: &mut Sink, now: Instant) {
    let shards = cores.len() as u16;
    for _ in 0..10_000 {
        let mut moved = false;
        for (at, core) in cores.iter_mut().enumerate() {
            sink.speaking = ShardId(at as u16);
            if let Some((from, letter)) = sink.letters.get_mut(&ShardId(at as u16)).and_then(VecDeque::pop_front) {
                core.handle(now, Input::Heard(from, letter), sink);
                moved = true;
            }
            if core.next_deadline(now).is_some_and(|due| due <= now) {
                core.handle(now, Input::Timer, sink);
                moved = true;
            }
        }
        if let Some(answer) = sink.store.poll_answer() {
            let at_ticket = |ticket: Ticket| ShardId((ticket.0 % u64::from(shards)) as u16);
            let (at, input) = match answer {
                Answer::Committed(ticket) => (at_ticket(ticket), Input::Committed(ticket)),
                Answer::Failed(ticket) => (at_ticket(ticket), Input::Failed(ticket)),
                Answer::Fetched(client, number, found) => {
                    let asked = sink.asked.remove(&(client.clone(), number)).expect("somebody asked");
                    (asked, Input::Fetched(client, number, found))
                }
            };
            sink.speaking = at;
            cores[usize::from(at.0)].handle(now, input, sink);
            moved = true;
        }
        if !moved {
            return;
        }
    }
    panic!("the shards do not come to rest");
}
