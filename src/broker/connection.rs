use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::change::{StoredWill, Ticket};
use super::frames::{Alias, HIDDEN};
use crate::auth::Exchange;
use crate::codec::Version;
use crate::types::{Entrance, PacketId, QoS};

/// Names one connection's incarnation: an index is used again, its epoch is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnectionId {
    pub index: u32,
    pub epoch: u32,
}

/// What the core knows of a network connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) session: u32,
    pub(super) version: Version,
    /// CONNACK has left: nothing goes before it [MQTT-3.2.0-1].
    pub(super) open: bool,
    /// Its socket takes less than it is sent: wait for `Drained`.
    pub(super) congested: bool,
    /// CONNECT had a session expiry interval other than zero.
    pub(super) may_set_expiry: bool,
    /// Seconds; 0: none.
    pub(super) keep_alive_secs: u16,
    pub(super) heard: Instant,
    /// When the keep-alive timer that is set will fire.
    pub(super) keep_alive_set: Option<Instant>,
    pub(super) receive_maximum: u16,
    pub(super) packet_size_max: u32,
    /// Whether the client wants reason strings on what is no CONNACK and no DISCONNECT.
    pub(super) wants_reasons: bool,
    /// Topic aliases that the client set, by number less one.
    pub(super) aliases: Vec<Option<Box<str>>>,
    pub(super) sent_aliases: SentAliases,
    /// Where CONNECT had an Authentication Method.
    pub(super) authentication: Option<Box<Authentication>>,
    /// What its CONNECT changed of the session, until CONNACK says that it holds.
    pub(super) before: Option<Box<Before>>,
    /// Its publishes that other shards have not answered for.
    pub(super) forwarded: u32,
    /// Acknowledgements that wait for a commit, and those behind them: they leave in the order in
    /// which their packets came.
    pub(super) held: VecDeque<Held>,
    /// QoS 1 messages from the client whose PUBACK is held.
    pub(super) unacknowledged: u32,
    /// QoS 2 messages that came on this connection and are not completed: with the former what
    /// counts against our receive maximum (section 4.9: not preserved across connections).
    pub(super) incomplete: BTreeSet<PacketId>,
    /// As CONNACK told the client.
    pub(super) our_receive_maximum: u16,
    pub(super) our_topic_alias_max: u16,
    pub(super) entrance: Arc<Entrance>,
}

impl Connection {
    /// How many bytes of a topic its client does not see; [`HIDDEN`]: all of it, since nothing is left.
    pub(super) fn cut(&self, topic: &str) -> u16 {
        let mount_point = &*self.entrance.mount_point;
        match mount_point.is_empty() || (topic.len() > mount_point.len() && topic.starts_with(mount_point)) {
            true => mount_point.len() as u16,
            false => HIDDEN,
        }
    }
}

/// Extended authentication (MQTT 5 section 4.12).
#[derive(Debug)]
pub(super) struct Authentication {
    pub(super) method: Box<str>,
    /// Re-authentication under way (section 4.12.1).
    pub(super) exchange: Option<Box<dyn Exchange>>,
}

/// A session as it was before a CONNECT that may yet be refused.
#[derive(Debug)]
pub(super) enum Before {
    /// There was none.
    New,
    Known {
        will: Option<Arc<StoredWill>>,
        will_due: Option<Instant>,
        expires: Option<Instant>,
        expiry_secs: u32,
    },
}

/// Topic Aliases that we set on a connection: the first topics that come get them.
#[derive(Debug, Default)]
pub(super) struct SentAliases {
    max: u16,
    numbers: BTreeMap<Box<str>, u16>,
}

impl SentAliases {
    pub(super) fn new(max: u16) -> SentAliases {
        SentAliases { max, numbers: BTreeMap::new() }
    }

    /// How the alias for `topic` stands [MQTT-3.1.2-26], [MQTT-3.1.2-27].
    pub(super) fn of(&self, topic: &str) -> Alias {
        // Shorter than what an alias takes itself.
        if self.max == 0 || topic.len() <= 3 {
            return Alias::None;
        }
        match self.numbers.get(topic) {
            Some(number) => Alias::Known(*number),
            // [MQTT-3.3.2-11], [MQTT-3.3.2-12]: within what the client said it holds.
            None if self.numbers.len() < usize::from(self.max) => Alias::Set(self.numbers.len() as u16 + 1),
            None => Alias::None,
        }
    }

    /// The alias has left with its topic.
    pub(super) fn note(&mut self, alias: Alias, topic: &str) {
        if let Alias::Set(number) = alias {
            self.numbers.insert(topic.into(), number);
        }
    }
}

#[derive(Debug)]
pub(super) struct Held {
    /// `None`: ready, waits only for those before it.
    pub(super) ticket: Option<Ticket>,
    pub(super) kind: HeldKind,
    pub(super) bytes: SmallVec<[u8; 16]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeldKind {
    ConnAck,
    PubAck(PacketId, QoS),
    PubComp,
    /// SUBACK, UNSUBACK, PINGRESP.
    Other,
    /// What a QoS 0 message that is retained gets: nothing. It counts like the others.
    Nothing,
}
