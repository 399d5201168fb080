//! The broker's core: sans-I/O and pure.
//!
//! [`Core::handle`] takes what happened and writes what follows from it to an [`Outbox`];
//! [`Core::next_deadline`] says when it wants [`Input::Timer`]. It knows no socket, file, clock or
//! random generator, and no order in it depends on hashing: the same inputs give the same bytes.
//!
//! `connect` is a session's beginning and end, `receive` what a client may send, `subscribe` its
//! subscriptions, `scan` the retained messages that they bring, `route` the way of a message to those
//! who want it, `send` its way out, `shared` the members of shared subscriptions, `commit` what waits
//! for the store, `restore` what it had at start, `border` what the shards of one broker tell each other.

mod authenticate;
mod border;
mod change;
mod commit;
mod connect;
mod connection;
mod counters;
mod dialect;
mod frames;
mod index;
mod keys;
mod letter;
mod limits;
mod message;
mod outbox;
mod receive;
mod restore;
mod retained;
mod route;
mod scan;
mod scans;
mod send;
mod session;
mod shared;
mod snapshot;
mod sparkplug;
mod subscribe;
mod timers;
mod violation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;
use smallvec::SmallVec;

pub use change::{
    Change, Fetched, QueuedFor, Restored, RestoredInflight, RestoredPosition, RestoredSession, RestoredSubscription,
    StoredPosition, StoredWill, Ticket, Wanted,
};
pub use connection::ConnectionId;
pub use counters::{Counters, Drops, Gauges, Refusals};
pub use letter::{Letter, ShardId};
pub use limits::{Limits, QueuePolicy};
pub use message::{Message, MessageId, Publisher};
pub use outbox::{Admission, Announcement, Closing, Command, Input, Note, Outbox, Payload};
pub(crate) use shared::group_as_client;
pub use snapshot::SessionSnapshot;
pub use violation::Violation;

use crate::auth::{Acl, Methods, Operation};
use crate::types::{ClientId, QoS, Topic};
use border::Border;
use commit::Waiting;
use connect::Farewell;
use connection::Connection;
use index::Index;
use retained::Retained;
use session::{Permissions, Session};
use timers::{Timer, Timers};

/// What the core is made with.
#[derive(Clone, Debug)]
pub struct Options {
    pub limits: Limits,
    /// Whether changes go to a store and acknowledgements wait for it; otherwise nothing outlives
    /// the process.
    pub durable: bool,
    /// Keys the hash tables, so that nobody outside can aim at their buckets. All shards of a broker
    /// have the same.
    pub seed: [u64; 4],
    /// Which of the broker's shards this is, and of how many (1 to 64).
    pub shard: ShardId,
    pub shards: u16,
    /// Methods of extended authentication (MQTT 5 section 4.12).
    pub methods: Methods,
}

impl Options {
    /// The only shard of a broker.
    pub fn alone(limits: Limits, durable: bool, seed: [u64; 4]) -> Options {
        Options { limits, durable, seed, shard: ShardId(0), shards: 1, methods: Methods::default() }
    }
}

/// The broker engine of one shard.
#[derive(Debug)]
pub struct Core {
    options: Options,
    hasher: ahash::RandomState,
    keys: keys::Keys,
    acl: Arc<Acl>,
    acl_generation: u64,
    connections: Vec<Option<Connection>>,
    connected: usize,
    sessions: slab::Slab<Session>,
    by_client: HashMap<ClientId, u32, ahash::RandomState>,
    next_session: u64,
    index: Index,
    retained: Retained,
    /// Changes of retained messages that wait for their commit.
    retained_pending: HashMap<Box<str>, RetainedPending, ahash::RandomState>,
    /// Their numbers, in the order in which they came.
    retained_changes: BTreeSet<u64>,
    next_retained_change: u64,
    /// Scans that wait for changes before them.
    scans_waiting: Vec<scan::ScanWaiting>,
    next_scan: u32,
    timers: Timers,
    /// Sessions with retained scans to go on with, in turn.
    scanning: VecDeque<u32>,
    waiting: HashMap<Ticket, SmallVec<[Waiting; 2]>, ahash::RandomState>,
    /// Tickets that are done when so many parts of them are.
    parts: BTreeMap<Ticket, usize>,
    border: Border,
    elsewheres: shared::Elsewheres,
    /// Shared subscriptions of which the store was asked for messages without a member; whether more have
    /// come since.
    draining: BTreeMap<Arc<str>, bool>,
    next_fetch: u64,
    next_ticket: u64,
    next_message: u64,
    counters: Counters,
    scratch: Option<Box<route::Scratch>>,
    frames: frames::Frames,
    /// Room for a packet that is being encoded.
    packet_room: Vec<u8>,
    /// Room for the properties that are passed on.
    forwarded_room: Vec<u8>,
    shutting_down: bool,
}

/// Changes of one topic's retained message that the store has not answered.
#[derive(Debug)]
struct RetainedPending {
    changes: u32,
    /// The newest that committed.
    done: u64,
}

impl Core {
    pub fn new(mut options: Options, acl: Arc<Acl>) -> Core {
        options.limits = options.limits.share(options.shards);
        let [a, b, c, d] = options.seed;
        let hasher = ahash::RandomState::with_seeds(a, b, c, d);
        Core {
            acl,
            acl_generation: 1,
            connections: Vec::new(),
            connected: 0,
            sessions: slab::Slab::new(),
            by_client: HashMap::with_hasher(hasher.clone()),
            next_session: 0,
            index: Index::new(hasher.clone()),
            retained: Retained::default(),
            retained_pending: HashMap::with_hasher(hasher.clone()),
            retained_changes: BTreeSet::new(),
            next_retained_change: 1,
            scans_waiting: Vec::new(),
            next_scan: 1,
            timers: Timers::default(),
            scanning: VecDeque::new(),
            waiting: HashMap::with_hasher(hasher.clone()),
            parts: BTreeMap::new(),
            border: Border::new(options.shard, options.shards),
            elsewheres: shared::Elsewheres::new(hasher.clone()),
            draining: BTreeMap::new(),
            next_fetch: 0,
            // Numbers that no other shard of the broker gives.
            next_ticket: u64::from(options.shards.max(1)) + u64::from(options.shard.0),
            next_message: u64::from(options.shards.max(1)) + u64::from(options.shard.0),
            counters: Counters::default(),
            scratch: None,
            frames: frames::Frames::default(),
            packet_room: Vec::new(),
            forwarded_room: Vec::new(),
            shutting_down: false,
            keys: keys::Keys::new(hasher.clone()),
            hasher,
            options,
        }
    }

    /// Takes one input; everything that follows from it goes to `out` before this returns.
    pub fn handle(&mut self, now: Instant, input: Input<'_>, out: &mut impl Outbox) {
        match input {
            Input::Received(id, packet) => self.receive(now, id, packet, out),
            Input::Drained(id) => self.drained(now, id, out),
            Input::Connected(id, admission) => {
                // A session or a will whose time is up is not saved by who comes a moment too late.
                self.run_due(now, out);
                self.connect(now, id, &admission, out);
            }
            Input::Malformed(id, error) => self.violate(now, id, Violation::Undecodable(error), out),
            Input::Lost(id) => self.disconnected(now, id, Closing::Lost, out),
            Input::Timer => self.timer(now, out),
            Input::Committed(ticket) => self.committed(now, ticket, out),
            Input::Failed(ticket) => self.failed(now, ticket, out),
            Input::Fetched(client, number, messages) => self.fetched(now, &client, number, messages, out),
            Input::Restored(restored) => {
                self.restore(now, restored, out);
                self.run_due(now, out);
            }
            Input::Command(command) => self.command(now, command, out),
            Input::Heard(from, letter) => self.heard(now, from, letter.0, out),
        }
    }

    /// When [`Input::Timer`] is due; work in slices that is not done wants it at once.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        if !self.scanning.is_empty() {
            return Some(now);
        }
        [self.timers.next(), self.retained.next_expiry()].into_iter().flatten().min()
    }

    /// A new ACL or new limits take effect with the next packet.
    pub fn configure(&mut self, limits: Limits, acl: Arc<Acl>) {
        self.options.limits = limits.share(self.options.shards);
        self.acl = acl;
        self.acl_generation += 1;
    }

    /// Connections of realms that are no more, since listeners were configured anew.
    pub fn strangers(&self) -> Vec<ConnectionId> {
        let connections = self.connections.iter().flatten();
        let strange =
            connections.filter(|connection| !self.acl.knows(self.sessions[connection.session as usize].realm));
        strange.map(|connection| connection.id).collect()
    }

    /// The shard of a broker that has a client's session.
    pub fn shard_of(seed: [u64; 4], shards: u16, client: &ClientId) -> ShardId {
        Border::home_of(seed, shards, client.as_str())
    }

    pub fn limits(&self) -> &Limits {
        &self.options.limits
    }

    fn run_due(&mut self, now: Instant, out: &mut impl Outbox) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::KeepAlive(index) => self.keep_alive_due(now, index, out),
                Timer::WillDelay(session) => self.will_due(now, session, out),
                Timer::SessionExpiry(session) => self.session_expired(now, session, out),
                Timer::Retry(session) => self.retry(now, session, out),
            }
        }
    }

    fn timer(&mut self, now: Instant, out: &mut impl Outbox) {
        self.run_due(now, out);
        for _ in 0..self.options.limits.slice {
            let Some(message) = self.retained.expire_one(now) else { break };
            self.counters.dropped.expired += 1;
            // A change under way replaces it in the store anyway.
            if self.options.durable && !self.retained_pending.contains_key(&*message.topic) {
                out.persist(None, &[Change::RetainedCleared { topic: message.topic.clone() }]);
            }
        }
        if let Some(session) = self.scanning.pop_front() {
            if let Some(session) = self.sessions.get_mut(session as usize) {
                session.in_scanning = false;
            }
            self.scan_retained(now, session, out);
        }
    }

    fn command(&mut self, now: Instant, command: Command, out: &mut impl Outbox) {
        match command {
            Command::Kick(id, why) => {
                if self.connection(id).is_some() {
                    let farewell = match why {
                        Closing::CertificateExpired => Farewell::CertificateExpired,
                        _ => Farewell::Administrator,
                    };
                    self.say_goodbye(id, farewell, out);
                    self.finish(now, id, why, out);
                }
            }
            Command::Forget(identity, realm) => {
                let owned: Vec<u32> = self
                    .sessions
                    .iter()
                    .filter(|(_, session)| session.identity.as_ref() == Some(&identity))
                    .filter(|(_, session)| realm.is_none_or(|realm| session.realm == realm))
                    .map(|(at, _)| at as u32)
                    .collect();
                for at in owned {
                    if let Some(id) = self.sessions[at as usize].connection {
                        self.say_goodbye(id, Farewell::Administrator, out);
                        self.finish(now, id, Closing::Revoked, out);
                    }
                    if self.sessions.contains(at as usize) {
                        self.end_session(now, at, out);
                    }
                }
            }
            Command::Announce(messages) => self.say_of_itself(now, &messages, out),
            Command::ShutDown => {
                self.shutting_down = true;
                for index in 0..self.connections.len() {
                    if let Some(id) = self.connections[index].as_ref().map(|connection| connection.id) {
                        self.say_goodbye(id, Farewell::ShuttingDown, out);
                        self.finish(now, id, Closing::ShuttingDown, out);
                    }
                }
            }
        }
    }

    fn say_of_itself(&mut self, now: Instant, messages: &[Announcement], out: &mut impl Outbox) {
        for Announcement { topic, text, retained, to } in messages {
            let Ok(topic) = Topic::parse(topic) else { continue };
            if let Some(client) = to {
                self.tell_client(client, topic, text, out);
                continue;
            }
            let incoming = route::Incoming {
                topic,
                payload: text.as_bytes(),
                qos: QoS::AtMostOnce,
                retain: *retained,
                message_expiry_interval_secs: None,
                forwarded: &[],
                publisher: index::ELSEWHERE,
                connection: None,
                received: None,
                with: None,
            };
            self.route(now, &incoming, out);
        }
    }

    /// `None` for a connection that is gone: what comes of it late is ignored.
    fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(id.index as usize)?.as_ref().filter(|connection| connection.id == id)
    }

    fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id.index as usize)?.as_mut().filter(|connection| connection.id == id)
    }

    /// Has `changes` written down together; what depends on them can wait for the ticket.
    /// What nobody waits for goes to the outbox without a ticket.
    fn persist(&mut self, changes: &[Change], out: &mut impl Outbox) -> Ticket {
        let ticket = self.ticket();
        out.persist(Some(ticket), changes);
        ticket
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += u64::from(self.options.shards.max(1));
        self.waiting.insert(ticket, SmallVec::new());
        ticket
    }

    /// Whether the session's client may read or write `topic`, by its shortcut or by the ACL.
    fn allows(&mut self, session: u32, operation: Operation, topic: Topic<'_>) -> bool {
        let session = &mut self.sessions[session as usize];
        permitted(&self.acl, self.acl_generation, session, operation, topic)
    }
}

/// The ACL's answer for a session, by its shortcut where there is one.
fn permitted(acl: &Acl, generation: u64, session: &mut Session, operation: Operation, topic: Topic<'_>) -> bool {
    if session.permissions.generation != generation {
        let subject = session.subject();
        session.permissions = Permissions {
            generation,
            reads_all: acl.allows_all(subject, Operation::Read),
            writes_all: acl.allows_all(subject, Operation::Write),
        };
    }
    let all = match operation {
        Operation::Read => session.permissions.reads_all,
        Operation::Write => session.permissions.writes_all,
    };
    (all && !topic.is_system()) || acl.check(session.subject(), operation, topic).allowed
}
