use super::{ConnectionId, Core, Counters, Gauges};
use crate::codec::Version;
use crate::types::{ClientId, Identity, QoS};

/// A session as an administrator sees it.
#[derive(Clone, Debug)]
pub struct SessionSnapshot {
    pub client: ClientId,
    pub identity: Option<Identity>,
    pub connection: Option<ConnectionId>,
    pub version: Option<Version>,
    pub subscriptions: usize,
    /// What they are, with the QoS that was granted; none if nobody asked.
    pub filters: Vec<(String, QoS)>,
    pub queued_messages: usize,
    pub queued_bytes: usize,
    pub inflight_messages: usize,
}

/// Acknowledgements of one connection that may wait for the store.
const HELD_MAX: usize = 1_000;

impl Core {
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What is cheap to know; the queues are summed up by walking [`Core::sessions`] in slices.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            connections: self.connected,
            sessions: self.sessions.len(),
            subscriptions: self.index.len(),
            shared_subscriptions: self.index.shared_len(),
            retained_messages: self.retained.len(),
            retained_bytes: self.retained.bytes(),
        }
    }

    /// What waits for all sessions together, and is under way to them: messages, and bytes. Looks at each session.
    pub fn queued(&self) -> (usize, usize) {
        let each = self.sessions.iter().map(|(_, session)| {
            let outgoing = &session.outgoing;
            (outgoing.waiting() + outgoing.inflight.len(), outgoing.queue_bytes + outgoing.inflight_bytes)
        });
        each.fold((0, 0), |(count, bytes), (more, size)| (count + more, bytes + size))
    }

    /// Whether a connection's packets have to rest: CONNACK waits for the store [MQTT-3.1.4-6], or so many
    /// of its acknowledgements do, or of its messages for other shards.
    pub fn must_wait(&self, id: ConnectionId) -> bool {
        let waits = |connection: &super::connection::Connection| !connection.open || connection.held.len() >= HELD_MAX;
        self.connection(id).is_some_and(waits) || self.waits_for_shards(id)
    }

    /// Whether anything that a connection asked for waits for the store.
    pub fn awaits_commit(&self, id: ConnectionId) -> bool {
        self.connection(id).is_some_and(|connection| !connection.held.is_empty())
    }

    /// Up to `most` sessions from `cursor` on, and where to go on; `None` at the end. A session
    /// that comes or goes meanwhile may be missing, none is there twice.
    pub fn sessions(&self, cursor: usize, most: usize, with_filters: bool) -> (Vec<SessionSnapshot>, Option<usize>) {
        let mut page = Vec::new();
        let end = (cursor + most).min(self.sessions.capacity());
        for at in cursor..end {
            let Some(session) = self.sessions.get(at) else { continue };
            let version = session.connection.and_then(|id| self.connection(id)).map(|connection| connection.version);
            page.push(SessionSnapshot {
                client: session.client.clone(),
                identity: session.identity.clone(),
                connection: session.connection,
                version,
                subscriptions: session.subscriptions.len(),
                filters: match with_filters {
                    false => Vec::new(),
                    true => {
                        let all = session.subscriptions.iter();
                        all.map(|(filter, subscription)| (filter.to_string(), subscription.options.qos)).collect()
                    }
                },
                queued_messages: session.outgoing.waiting(),
                queued_bytes: session.outgoing.queue_bytes,
                inflight_messages: session.outgoing.inflight.len(),
            });
        }
        (page, (end < self.sessions.capacity()).then_some(end))
    }
}
