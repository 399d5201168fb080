use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use smallvec::SmallVec;

use super::change::Ticket;
use crate::codec::Version;
use crate::types::{PacketId, QoS};

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
    /// Topic aliases that the client set, by number less one.
    pub(super) aliases: Vec<Option<Box<str>>>,
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
}
