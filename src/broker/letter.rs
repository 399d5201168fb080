//! What shards tell each other, as plain data.

use std::sync::Arc;

use super::change::{QueuedFor, Ticket};
use super::index::Subscriber;
use super::message::{Body, Delivery, Identifiers, Message, MessageId, Origin};
use super::retained::Scan;
use super::session::Session;
use super::shared::{Departure, Elsewhere, Rank};
use crate::types::{ClientId, QoS};

/// Names one of a broker's shards, from 0 on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct ShardId(pub u16);

/// What one shard tells another.
#[derive(Debug)]
pub struct Letter(pub(super) Content);

#[derive(Debug)]
pub(super) enum Content {
    /// A message for those who want it at the receiver; answered by `Routed`.
    Publish {
        reference: u64,
        message: Arc<Message>,
        retain: bool,
        to: Audience,
        settles: bool,
    },
    Routed {
        reference: u64,
        answer: Box<Answer>,
    },
    /// What was routed under `reference` is safe, or is not and will not be.
    Settled {
        reference: u64,
        kept: bool,
    },
    /// The sender's sessions want, or no longer want, topics of this first level (`None`: any).
    /// Answered by `Ready`, if wanted.
    Interest {
        reference: u64,
        level: Option<Box<str>>,
        wanted: bool,
    },
    /// A session of the sender takes part in a shared subscription of the receiver; answered by
    /// `Ready`.
    Join {
        reference: u64,
        share: Box<str>,
        subscriber: Subscriber,
        member: Box<Elsewhere>,
    },
    Leave {
        share: Box<str>,
        client: ClientId,
    },
    Ready {
        reference: u64,
    },
    /// How well a client of the sender can take a message of the receiver's shared subscriptions.
    Rank {
        client: ClientId,
        rank: Rank,
    },
    /// To the owner of a shared subscription: the store has messages of it that have no member.
    Drain {
        share: Arc<str>,
    },
    /// To the owner of a shared subscription: a message whose member goes.
    Move(Box<Move>),
    /// From the owner: it is for this session now.
    Moved(Box<Move>, Box<Handed>),
    /// From the owner: nobody else takes it.
    Returned(Box<Move>),
    /// One slice of the receiver's retained messages; answered by `Scanned`.
    Scan {
        client: ClientId,
        serial: u32,
        scan: Scan,
    },
    Scanned {
        client: ClientId,
        serial: u32,
        slice: Box<Slice>,
    },
}

/// What a step of a scan found.
#[derive(Debug)]
pub(super) struct Slice {
    /// Where it began: from there it is looked at again, if nobody could take it.
    pub(super) from: Scan,
    pub(super) scan: Scan,
    pub(super) found: Vec<Arc<Message>>,
    pub(super) is_over: bool,
}

/// Whom a forwarded message is for.
#[derive(Clone, Debug)]
pub(super) enum Audience {
    /// Whoever wants it.
    Everyone,
    /// A member of a shared subscription.
    Member(Handed),
    /// Whomever this shared subscription chooses next.
    Group(Arc<str>),
}

/// A member of a shared subscription that was chosen and is elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Handed {
    pub(super) shard: ShardId,
    pub(super) client: ClientId,
    pub(super) share: Arc<str>,
}

#[derive(Default, Debug)]
pub(super) struct Answer {
    /// Durable sessions that it waits for.
    pub(super) queued: Vec<QueuedFor>,
    /// It is kept as the topic's retained message.
    pub(super) retained: bool,
    /// Copies wait for `Settled`.
    pub(super) holds: bool,
    /// Members elsewhere that were chosen for it.
    pub(super) chosen: Vec<Handed>,
    /// The member that it was for has left this shared subscription.
    pub(super) returned: Option<Arc<str>>,
}

/// A message of a shared subscription on its way from one member to another.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) share: Arc<str>,
    /// The member that it was for, and its session.
    pub(super) client: ClientId,
    pub(super) session: u64,
    /// For whom it lies in the store, if it does: the group.
    pub(super) kept_for: Option<ClientId>,
    pub(super) message: MessageId,
    pub(super) body: Option<Arc<Message>>,
    pub(super) published: QoS,
    pub(super) size: u32,
    pub(super) departure: Departure,
    /// As it was delivered there.
    pub(super) qos: QoS,
    pub(super) identifiers: Identifiers,
    pub(super) hold: Option<Ticket>,
}

impl Move {
    pub(super) fn new(session: &Session, delivery: Delivery, departure: Departure) -> Move {
        let message = delivery.message_id();
        let Origin::Shared(share) = delivery.origin else { unreachable!("only those of shared subscriptions move") };
        Move {
            share,
            client: session.client.clone(),
            session: session.serial,
            kept_for: None,
            message,
            body: match delivery.body {
                Body::Here(message) => Some(message),
                Body::Stored(_) => None,
            },
            published: delivery.published,
            size: delivery.size,
            departure,
            qos: delivery.qos,
            identifiers: delivery.identifiers,
            hold: delivery.hold,
        }
    }

    /// As the store is told for whom it waits from now on.
    pub(super) fn queued_for(&self, client: ClientId, qos: QoS, subscription_identifiers: Vec<u32>) -> QueuedFor {
        let shared = Some(self.share.clone());
        QueuedFor { client, qos, packet_id: None, retain: false, subscription_identifiers, shared, at_hand: false }
    }
}
