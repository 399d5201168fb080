use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use super::change::Ticket;
use crate::auth::Subject;
use crate::types::{ClientId, Identity, QoS, Realm, Topic};

/// Numbers messages in the order that they came in; never reused while a store knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MessageId(pub u64);

/// An application message that is kept: queued, in flight or retained. Shared by all that wait
/// for it.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    pub id: MessageId,
    pub(super) topic: Box<str>,
    pub payload: Bytes,
    /// Encoded properties that go on unaltered.
    pub forwarded: Box<[u8]>,
    /// As published; a delivery may have a lower one.
    pub qos: QoS,
    /// When it is not to be sent any more.
    pub expires: Option<Instant>,
    /// Who published it, where that is asked later: of a retained message.
    pub publisher: Option<Arc<Publisher>>,
}

/// Who published a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publisher {
    pub client: ClientId,
    /// Its identity, and where it was; `None`: that was not written down.
    pub came_as: Option<(Option<Identity>, Realm)>,
}

impl Publisher {
    /// Who asks the ACL, if that is known.
    pub(super) fn subject(&self) -> Option<Subject<'_>> {
        let (identity, realm) = self.came_as.as_ref()?;
        let identity = identity.as_ref().map(|name| name.as_str());
        Some(Subject { identity, client_id: self.client.as_str(), realm: *realm })
    }
}

impl Message {
    /// As a store has kept it.
    pub fn new(
        id: MessageId,
        topic: Topic<'_>,
        payload: Bytes,
        forwarded: Box<[u8]>,
        qos: QoS,
        expires: Option<Instant>,
        publisher: Option<Arc<Publisher>>,
    ) -> Message {
        Message { id, topic: topic.as_str().into(), payload, forwarded, qos, expires, publisher }
    }

    pub fn topic(&self) -> Topic<'_> {
        Topic::from_parsed(&self.topic)
    }

    /// What it counts against a limit in bytes.
    pub fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.forwarded.len()
    }

    pub fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// Seconds of a message's life that remain: the interval it came with less the whole seconds it
/// waited here [MQTT-3.3.2-6].
pub(super) fn remaining_secs(expires: Instant, now: Instant) -> u32 {
    let left = expires.saturating_duration_since(now);
    let secs = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    u32::try_from(secs).unwrap_or(u32::MAX)
}

pub(super) fn expires_at(now: Instant, interval_secs: Option<u32>) -> Option<Instant> {
    interval_secs.and_then(|secs| now.checked_add(Duration::from_secs(u64::from(secs))))
}

/// The subscription identifiers that a delivery carries [MQTT-3.3.4-3, -4].
pub(super) type Identifiers = SmallVec<[u32; 2]>;

/// One message for one session.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) body: Body,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    /// The store has it too.
    pub(super) kept: bool,
    pub(super) identifiers: Identifiers,
    /// Not to leave before this is committed.
    pub(super) hold: Option<Ticket>,
    pub(super) origin: Origin,
    /// As it was published; `qos` may be lower.
    pub(super) published: QoS,
    pub(super) size: u32,
}

/// What brought a delivery to its session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Live,
    /// A new subscription found it retained: a newer live one makes it void.
    Retained,
    /// The shared subscription of this filter: others can take it instead.
    Shared(Arc<str>),
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Here(Arc<Message>),
    /// Only in the store: of what was sent before a restart, until it is sent again.
    Stored(MessageId),
}

impl Delivery {
    pub(super) fn message_id(&self) -> MessageId {
        match &self.body {
            Body::Here(message) => message.id,
            Body::Stored(id) => *id,
        }
    }
}
