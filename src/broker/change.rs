//! Durable changes as plain data: what the store writes down and gives back at start.

use std::sync::Arc;

use super::message::{Message, MessageId};
use crate::codec::SubscriptionOptions;
use crate::types::{ClientId, Identity, PacketId, QoS};

/// Names one unit of durability: the core holds what depends on it until `Committed`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// One thing that must survive. Everything in one `persist` call commits together.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A session that outlives its connection was opened, resumed or changed.
    Session {
        client: ClientId,
        identity: Option<Identity>,
        expiry_interval_secs: u32,
        will: Option<Arc<StoredWill>>,
        connected: bool,
    },
    /// A session is gone with everything in it.
    SessionEnded {
        client: ClientId,
    },
    Subscribed {
        client: ClientId,
        filter: Box<str>,
        options: SubscriptionOptions,
        identifier: Option<u32>,
    },
    Unsubscribed {
        client: ClientId,
        filter: Box<str>,
    },
    /// A message with its inbound packet identifier and all durable sessions that it is for. A
    /// session's queue is in the order of the messages' identifiers.
    Message {
        message: Arc<Message>,
        received: Option<(ClientId, PacketId)>,
        queued: Vec<QueuedFor>,
        retained: bool,
    },
    RetainedCleared {
        topic: Box<str>,
    },
    /// A queued message got its outgoing packet identifier.
    Sent {
        client: ClientId,
        message: MessageId,
        packet_id: PacketId,
    },
    /// PUBREC came in: only PUBREL remains.
    Received {
        client: ClientId,
        packet_id: PacketId,
    },
    /// PUBACK or PUBCOMP came in, or the message was dropped: the session is done with it.
    Done {
        client: ClientId,
        message: MessageId,
        packet_id: Option<PacketId>,
    },
    /// A message of a shared subscription goes to another session than the one that it waited for. Where
    /// that one ends first, it goes to the group: a client named U+0000 and the shared filter.
    Moved {
        message: MessageId,
        /// The message, where it is at hand.
        body: Option<Arc<Message>>,
        from: ClientId,
        /// Its outgoing identifier there, if it had one.
        packet_id: Option<PacketId>,
        to: QueuedFor,
    },
    /// PUBREL came in: the inbound identifier is free.
    Released {
        client: ClientId,
        packet_id: PacketId,
    },
}

impl Change {
    /// Whether a store may answer that it could not keep this: then whoever asked for it is told so. What
    /// only notes that something is over it has to write down when it can.
    pub fn may_fail(&self) -> bool {
        !matches!(self, Change::Done { .. } | Change::Moved { .. } | Change::SessionEnded { .. })
    }
}

/// One durable session that a message is queued for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueuedFor {
    pub client: ClientId,
    pub qos: QoS,
    /// Its outgoing identifier, where it was sent at once.
    pub packet_id: Option<PacketId>,
    pub retain: bool,
    pub subscription_identifiers: Vec<u32>,
    /// The shared subscription that brought it, by its filter.
    pub shared: Option<Arc<str>>,
}

/// A Will as it is kept until it is published or withdrawn.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredWill {
    pub topic: Box<str>,
    pub payload: bytes::Bytes,
    pub qos: QoS,
    pub retain: bool,
    pub delay_interval_secs: u32,
    pub message_expiry_interval_secs: Option<u32>,
    pub forwarded: Box<[u8]>,
}
