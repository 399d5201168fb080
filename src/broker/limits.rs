use std::time::Duration;

use crate::types::QoS;

/// What happens to a message for a session whose queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum QueuePolicy {
    /// The message that comes is dropped.
    #[default]
    DropNew,
    /// The oldest one waiting is dropped for it.
    DropOldest,
}

/// Limits of the engine, each with a name that the configuration uses and a counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest packet taken from a client, bytes; larger ones end the connection (0x95).
    pub packet_size_max: u32,
    /// QoS 1 and 2 messages in flight to one client, at most (its receive maximum may be lower).
    pub inflight_max: u16,
    /// QoS 1 and 2 messages in flight from one MQTT 5 client: our Receive Maximum (0x93).
    pub receive_maximum: u16,
    /// Messages waiting for one session beyond those in flight.
    pub queued_messages_max: usize,
    /// The same in bytes.
    pub queued_bytes_max: usize,
    pub queue_policy: QueuePolicy,
    /// Bytes written for a client and not yet taken by its socket: from here on QoS 0 is dropped
    /// and QoS 1 and 2 wait in the session's queue.
    pub backlog_bytes_max: usize,
    /// Filters of one session (SUBACK 0x97).
    pub subscriptions_max: usize,
    /// Filters in one SUBSCRIBE (0x97).
    pub filters_per_subscribe_max: usize,
    /// Levels of a topic or filter (0x90, 0x8F).
    pub topic_levels_max: usize,
    /// The same in bytes.
    pub topic_bytes_max: usize,
    /// Retained messages (PUBACK 0x97, QoS 0 dropped).
    pub retained_messages_max: usize,
    /// The same in bytes.
    pub retained_bytes_max: usize,
    /// Sessions, connected or not (CONNACK 0x97).
    pub sessions_max: usize,
    /// Longest that a session outlives its connection, seconds; MQTT 5 clients are told.
    pub session_expiry_secs_max: u32,
    /// Longest keep alive, seconds; 0: no cap. MQTT 5 clients are told.
    pub keep_alive_secs_max: u16,
    /// Topic aliases that a client may set.
    pub topic_alias_max: u16,
    /// Topic aliases that are set for one client, at most; fewer if it takes fewer.
    pub client_topic_alias_max: u16,
    /// What a client that asks for it is told to build its response topics from (MQTT 5 section
    /// 3.2.2.3.15); `%c` stands for its client id.
    pub response_information: Option<Box<str>>,
    /// Largest payload of a PUBLISH, bytes (PUBACK 0x97, QoS 0 dropped).
    pub payload_size_max: usize,
    /// Maximum QoS (MQTT 5 section 3.2.2.3.4).
    pub qos_max: QoS,
    /// Retain Available (section 3.2.2.3.5).
    pub retain_available: bool,
    /// QoS 1 and 2 bytes in flight to one client, at most; one message always may.
    pub inflight_bytes_max: usize,
    /// QoS 0 messages are kept for sessions whose clients are away, as those of QoS 1 are.
    pub queues_qos_0: bool,
    /// A message comes at its subscription's QoS, be it higher than it was published with.
    pub upgrades_qos: bool,
    /// What is retained reaches new subscriptions only as long as who published it may write its topic.
    pub checks_retained_source: bool,
    /// The birth certificates of Sparkplug's edge nodes and devices are retained below `$sparkplug/certificates/` too.
    pub sparkplug_aware: bool,
    /// Where the standard leaves it open, as Mosquitto does: filters are granted whatever the ACL says, which is asked
    /// for each message alone; a refusal is not explained; an MQTT 3 client with a longer keep alive is refused; what is
    /// published below `$CONTROL/` asks the broker itself, and goes to nobody.
    pub as_mosquitto: bool,
    /// Retained messages looked at in one go before others get their turn.
    pub slice: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            packet_size_max: 16 * 1024 * 1024,
            inflight_max: 1000,
            receive_maximum: 100,
            queued_messages_max: 10_000,
            queued_bytes_max: 64 * 1024 * 1024,
            queue_policy: QueuePolicy::DropNew,
            backlog_bytes_max: 1024 * 1024,
            subscriptions_max: 10_000,
            filters_per_subscribe_max: 1_000,
            topic_levels_max: 128,
            topic_bytes_max: 65_535,
            retained_messages_max: 1_000_000,
            retained_bytes_max: 1024 * 1024 * 1024,
            sessions_max: 200_000,
            session_expiry_secs_max: u32::MAX,
            keep_alive_secs_max: 0,
            topic_alias_max: 32,
            client_topic_alias_max: 32,
            response_information: None,
            payload_size_max: 256 * 1024 * 1024,
            qos_max: QoS::ExactlyOnce,
            retain_available: true,
            inflight_bytes_max: 64 * 1024 * 1024,
            queues_qos_0: false,
            upgrades_qos: false,
            checks_retained_source: false,
            sparkplug_aware: false,
            as_mosquitto: false,
            slice: 256,
        }
    }
}

impl Limits {
    /// One shard's share of what the whole broker may hold.
    pub(super) fn share(mut self, shards: u16) -> Limits {
        let shards = usize::from(shards.max(1));
        for limit in [&mut self.retained_messages_max, &mut self.retained_bytes_max, &mut self.sessions_max] {
            *limit = limit.div_ceil(shards);
        }
        self
    }

    /// The QoS at which a message comes by a subscription of such a QoS (MQTT 5 section 3.8.4).
    pub(super) fn delivered(&self, subscribed: QoS, published: QoS) -> QoS {
        if self.upgrades_qos { subscribed } else { subscribed.min(published) }
    }

    /// Whether any session may have a message of this QoS written down.
    pub(super) fn may_keep(&self, published: QoS) -> bool {
        published != QoS::AtMostOnce || self.upgrades_qos || self.queues_qos_0
    }

    /// Whether a topic, or a filter without its share, has too many levels or bytes.
    pub(super) fn is_topic_too_large(&self, text: &str) -> bool {
        text.len() > self.topic_bytes_max
            || (text.len() >= self.topic_levels_max && text.split('/').nth(self.topic_levels_max).is_some())
    }
}

/// One and a half times the keep alive [MQTT-3.1.2-22].
pub(super) fn keep_alive_deadline(keep_alive_secs: u16) -> Duration {
    Duration::from_millis(u64::from(keep_alive_secs) * 1500)
}
