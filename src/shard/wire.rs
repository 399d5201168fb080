use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::link::Link;
use super::mischief::Mischief;
use super::output::Output;
use super::{Peers, Question};
use crate::broker::{Change, Closing, ConnectionId, Letter, MessageId, Note, Outbox, Payload, ShardId, Ticket, Wanted};
use crate::codec::Version;
use crate::config::{SUBSCRIBE_LINES, UNSUBSCRIBE_LINES};
use crate::handover::{About, Words};
use crate::store::Store;
use crate::types::{ClientId, Identity, ReasonCode};

/// A connection as the shard drives it.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) link: Link,
    pub(super) version: Version,
    /// A packet that is not there whole.
    pub(super) input: Vec<u8>,
    pub(super) output: Output,
    /// Its socket did not take all, or the core may have seen its backlog full: the core is told
    /// when everything is written.
    pub(super) pressed: bool,
    /// Not read from until it takes what was written for it.
    pub(super) parked: bool,
    /// When its socket last took something.
    pub(super) took: Instant,
    /// As it was told in CONNACK.
    pub(super) packet_size_max: usize,
    /// Waits in the list of those to read.
    pub(super) ready: bool,
    /// The peer has ended its side: it is read until that comes, for no other event tells of it.
    pub(super) read_closed: bool,
    /// Waits in the list of those to write.
    pub(super) dirty: bool,
    /// The core is done with it; what was written may still leave.
    pub(super) closing: Option<Closing>,
    /// Everything was written and the peer told so.
    pub(super) finished: bool,
    /// The log has its last line.
    pub(super) said_why: bool,
    /// Its WebSocket's close frame is written.
    pub(super) said_close: bool,
    /// In the list of those that are let go after a while.
    pub(super) lingers: bool,
    /// Publishes and subscriptions that were refused: the first has its line in the log.
    pub(super) denials: u64,
    pub(super) client: ClientId,
    pub(super) identity: Option<Identity>,
    pub(super) about: About,
    /// Its place at the gate.
    pub(super) _slot: Box<dyn std::any::Any + Send>,
}

/// How long a keep alive rests for a client that takes nothing of what was written for it.
const STUCK: Duration = Duration::from_secs(60);

/// Bytes of a question to the broker itself.
const QUESTION_MAX: usize = 64 * 1024;

/// Bytes that the store has not written down: from here on nobody is read.
const PENDING_MAX: usize = 64 * 1024 * 1024;

/// The core's way out: connections' buffers, the store, the log.
pub(super) struct Wire {
    pub(super) connections: Slab<Connection>,
    pub(super) dirty: Vec<usize>,
    pub(super) store: Box<dyn Store + Send>,
    pub(super) peers: Peers,
    /// Where questions to the broker itself go.
    pub(super) questions: Option<Sender<Question>>,
    pub(super) mischief: Option<Box<Mischief>>,
    /// Control packets of all kinds.
    pub(super) packets_sent: u64,
}

impl Wire {
    pub(super) fn new(
        store: Box<dyn Store + Send>,
        peers: Peers,
        questions: Option<Sender<Question>>,
        mischief: Option<Box<Mischief>>,
    ) -> Wire {
        Wire { connections: Slab::new(), dirty: Vec::new(), store, peers, questions, mischief, packets_sent: 0 }
    }

    /// The store has so much to write down that nobody is asked for more.
    pub(super) fn is_store_busy(&self) -> bool {
        self.store.pending_size() >= PENDING_MAX
    }

    pub(super) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id.index as usize).filter(|connection| connection.id == id)
    }

    /// A connection that the core may still write to.
    fn open(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let Wire { connections, dirty, .. } = self;
        let connection = connections
            .get_mut(id.index as usize)
            .filter(|connection| connection.id == id && connection.closing.is_none())?;
        if !connection.dirty {
            connection.dirty = true;
            dirty.push(id.index as usize);
        }
        Some(connection)
    }

    /// Something was written for it that is not the core's.
    pub(super) fn touch(&mut self, key: usize) {
        let Wire { connections, dirty, .. } = self;
        if let Some(connection) = connections.get_mut(key)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            dirty.push(key);
        }
    }

    fn first_denial(&mut self, id: ConnectionId) -> bool {
        self.connection(id).is_some_and(|connection| {
            connection.denials += 1;
            connection.denials == 1
        })
    }

    fn name(&self, id: ConnectionId) -> String {
        let connection = self.connections.get(id.index as usize).filter(|connection| connection.id == id);
        connection.map_or_else(String::new, |connection| who(connection.identity.as_ref()))
    }

    fn number(&self, id: ConnectionId) -> u64 {
        self.connections
            .get(id.index as usize)
            .filter(|connection| connection.id == id)
            .map_or(0, |connection| connection.about.number)
    }
}

impl Outbox for Wire {
    fn write(&mut self, to: ConnectionId, bytes: &[u8]) {
        if let Some(mischief) = &self.mischief {
            let left = mischief.leaving(bytes);
            if let Some(connection) = self.open(to) {
                connection.output.copy(&left);
            }
            return;
        }
        if let Some(connection) = self.open(to) {
            connection.output.copy(bytes);
            self.packets_sent += 1;
        }
    }

    fn publish(&mut self, to: ConnectionId, head: &[u8], payload: Payload<'_>) {
        let doubles = self.mischief.as_mut().is_some_and(|mischief| mischief.doubles(to, head[0]));
        if doubles && let Some(connection) = self.open(to) {
            connection.output.copy(head);
            connection.output.copy(payload.as_slice());
            let mut again = head.to_vec();
            // DUP
            again[0] |= 1 << 3;
            connection.output.copy(&again);
            connection.output.copy(payload.as_slice());
            return;
        }
        if let Some(connection) = self.open(to) {
            connection.output.copy(head);
            match payload {
                Payload::Borrowed(bytes) => connection.output.copy(bytes),
                Payload::Shared(bytes) => connection.output.share(bytes),
            }
            self.packets_sent += 1;
        }
    }

    fn backlog(&self, to: ConnectionId) -> usize {
        self.connections.get(to.index as usize).map_or(0, |connection| connection.output.len())
    }

    fn is_read(&self, from: ConnectionId) -> bool {
        self.connections.get(from.index as usize).is_none_or(|connection| {
            // Not its turn yet, or not read from at all.
            let waits = connection.ready || connection.parked;
            let waited = super::turn::clock().saturating_duration_since(connection.took);
            // One that takes none of its answers for so long is as good as gone.
            !waits || (waited > STUCK && !connection.output.is_empty())
        })
    }

    fn close(&mut self, to: ConnectionId, why: Closing) {
        if let Some(connection) = self.open(to) {
            connection.closing = Some(why);
        }
    }

    fn persist(&mut self, ticket: Option<Ticket>, changes: &[Change]) {
        self.store.append(ticket, changes);
    }

    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted) {
        self.store.fetch(client, number, wanted);
    }

    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        self.store.rewind(client, inflight);
    }

    fn tell(&mut self, to: ShardId, letter: Letter) {
        self.peers.tell(to, letter);
    }

    fn ask(&mut self, from: ConnectionId, topic: &str, payload: &[u8]) -> bool {
        let found = self.connections.get(from.index as usize).filter(|connection| connection.id == from);
        let Some(connection) = found.filter(|_| payload.len() <= QUESTION_MAX) else { return false };
        let question = Question {
            topic: topic.to_owned(),
            payload: payload.to_vec(),
            client: connection.client.clone(),
            identity: connection.identity.clone(),
        };
        self.questions.as_ref().is_some_and(|questions| questions.try_send(question).is_ok())
    }

    fn note(&mut self, note: Note<'_>) {
        match note {
            Note::Connected { connection, session_present } => {
                let Some(connection) = self.connection(connection) else { return };
                let about = &connection.about;
                match about.words {
                    Words::Own => {}
                    Words::None => return,
                    Words::Mosquitto => {
                        let level = about.version.mosquitto_number();
                        let user = connection.identity.as_ref().map(|name| format!(", u'{name}'")).unwrap_or_default();
                        let (client, clean, keep) =
                            (&connection.client, u8::from(about.clean_start), about.keep_alive_secs);
                        info!(
                            "New client connected from {} as {client} (p{level}, c{clean}, k{keep}{user}).",
                            about.peer
                        );
                        return;
                    }
                }
                let session = if session_present { "session resumed" } else { "new session" };
                info!(
                    id = about.number,
                    address = %about.peer,
                    listener = &*about.listener,
                    security = %about.level,
                    version = %about.version,
                    "{} connected as client {:?}, {session}",
                    who(connection.identity.as_ref()),
                    connection.client,
                );
            }
            Note::PublishDenied { connection, topic } => {
                if !self.first_denial(connection) {
                    return;
                }
                warn!(
                    id = self.number(connection),
                    "publish of {} to {topic:?} refused by the ACL",
                    self.name(connection)
                );
            }
            Note::Subscribed { connection, filter, qos } => {
                let Some(connection) = self.connection(connection) else { return };
                tracing::debug!(target: SUBSCRIBE_LINES, "{} {} {}", connection.client, qos.bits(), filter.escape_debug());
            }
            Note::Unsubscribed { connection, filter } => {
                let Some(connection) = self.connection(connection) else { return };
                tracing::debug!(target: UNSUBSCRIBE_LINES, "{} {}", connection.client, filter.escape_debug());
            }
            Note::SubscribeDenied { connection, filter, reason } => {
                if !self.first_denial(connection) {
                    return;
                }
                let by = if reason == ReasonCode::NotAuthorized { " by the ACL" } else { "" };
                let name = self.name(connection);
                warn!(id = self.number(connection), "subscription of {name} to {filter:?} refused{by}: {reason}");
            }
            Note::QueueFull { client } => {
                warn!(
                    "the queue of client {client:?} is full (limits.queued-messages-max, queued-bytes-max): messages are dropped"
                );
            }
            Note::RetainedFull { topic } => {
                warn!("no room to retain {topic:?} (limits.retained-messages-max, retained-bytes-max)");
            }
            Note::SessionExpired { client } => info!("the session of client {client:?} expired"),
        }
    }
}

pub(super) fn who(identity: Option<&Identity>) -> String {
    identity.map_or_else(|| "anonymous".to_owned(), ToString::to_string)
}
