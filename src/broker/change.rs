//! Durable changes as plain data: what the store writes down and gives back at start.

use std::sync::Arc;
use std::time::Duration;

use super::message::{Message, MessageId};
use crate::codec::SubscriptionOptions;
use crate::types::{ClientId, Identity, PacketId, QoS, Realm};

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
        /// Of the listener that its client came in by.
        realm: Realm,
        expiry_interval_secs: u32,
        will: Option<Arc<StoredWill>>,
        connected: bool,
        /// It was not there before: it need not be.
        is_new: bool,
    },
    /// A session is gone with everything in it. Messages of shared subscriptions that others can take
    /// [MQTT-4.8.2-5] go to their group: a client named U+0000 and the shared filter.
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
    /// What is retained waits for a session too: its body is there.
    QueuedRetained {
        message: Arc<Message>,
        to: QueuedFor,
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
    /// A message of a shared subscription goes to another session than the one that it waited for.
    Moved {
        message: MessageId,
        /// The message, where the store does not have it.
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
    /// Messages of a shared subscription that a client will not be sent: they go to the group.
    GivenUp {
        client: ClientId,
        share: Arc<str>,
        messages: Vec<MessageId>,
    },
}

impl Change {
    /// The message whose body comes with it.
    pub(super) fn message_id(&self) -> Option<MessageId> {
        match self {
            Change::Message { message, .. } | Change::QueuedRetained { message, .. } => Some(message.id),
            _ => None,
        }
    }

    /// What only notes that something is over: a store has to write it down when it can, with all that
    /// comes with it. Of other changes it may answer that it could not keep them: whoever asked for that is
    /// told so.
    pub fn must_be_kept(&self) -> bool {
        matches!(
            self,
            Change::Done { .. }
                | Change::Moved { .. }
                | Change::SessionEnded { .. }
                | Change::Session { is_new: false, .. }
                | Change::GivenUp { .. }
                | Change::Released { .. }
        )
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
    /// The core has it in memory: the store need not give it to it.
    pub at_hand: bool,
}

/// What is wanted of a client's queue in the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The first so many that the core does not have at hand, and has not sent.
    Next(usize),
    /// Those that were sent under these identifiers.
    Sent(Vec<(PacketId, MessageId)>),
}

/// One message of a queue, brought back.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub id: MessageId,
    pub to: QueuedFor,
    /// As it was published; its QoS in the queue may be lower.
    pub published: QoS,
    /// `None`: it cannot be read any more.
    pub message: Option<Arc<Message>>,
}

impl Fetched {
    /// What the store does not have.
    pub fn missing(client: &ClientId, packet_id: PacketId, id: MessageId) -> Fetched {
        let to = QueuedFor {
            client: client.clone(),
            qos: QoS::AtLeastOnce,
            packet_id: Some(packet_id),
            retain: false,
            subscription_identifiers: Vec::new(),
            shared: None,
            at_hand: true,
        };
        Fetched { id, to, published: QoS::AtLeastOnce, message: None }
    }
}

/// What a store gives back at start.
#[derive(Debug, Default)]
pub struct Restored {
    pub sessions: Vec<RestoredSession>,
    /// Shared subscriptions with messages that have no member, as clients.
    pub groups: Vec<ClientId>,
    pub retained: Vec<Arc<Message>>,
    /// Topics whose retained message cannot be read any more.
    pub unreadable: Vec<Box<str>>,
    /// Message identifiers below this are used.
    pub next_message: u64,
}

#[derive(Debug)]
pub struct RestoredSession {
    pub client: ClientId,
    /// Otherwise a queue alone is left of it.
    pub is_session: bool,
    pub identity: Option<Identity>,
    pub realm: Realm,
    pub connected: bool,
    pub expiry_interval_secs: u32,
    /// What is left of that.
    pub expires_in: Duration,
    pub will: Option<Arc<StoredWill>>,
    /// What is left of its delay.
    pub will_in: Duration,
    pub subscriptions: Vec<RestoredSubscription>,
    /// Inbound QoS 2 identifiers.
    pub received: Vec<PacketId>,
    /// First those that are released, in the order of their PUBREC.
    pub inflight: Vec<RestoredInflight>,
    /// Those that wait.
    pub waiting: Vec<StoredPosition>,
    /// The shared subscriptions that brought some of them.
    pub shares: Vec<Arc<str>>,
}

/// A message that waits in a queue, and that only the store has: 16 bytes, for there can be very many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredPosition {
    pub message: MessageId,
    /// What it counts in the queue, bytes.
    pub size: u32,
    /// The shared subscription that brought it: its place in the session's `shares`, plus one; 0: none.
    pub share: u32,
}

#[derive(Debug)]
pub struct RestoredSubscription {
    pub filter: Box<str>,
    pub options: SubscriptionOptions,
    pub identifier: Option<u32>,
}

#[derive(Debug)]
pub struct RestoredInflight {
    pub packet_id: PacketId,
    pub message: MessageId,
    /// `None`: PUBREC came.
    pub sent: Option<RestoredPosition>,
}

#[derive(Debug)]
pub struct RestoredPosition {
    pub size: u32,
    pub published: QoS,
    pub to: QueuedFor,
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
