use std::time::SystemTime;

use crate::broker::{Counters, Gauges};
use crate::types::{Histogram, Level, QoS};

/// What a shard says of itself.
#[derive(Debug)]
pub struct ShardReport {
    pub counters: Counters,
    pub gauges: Gauges,
    /// Connections by level, weakest first.
    pub levels: [usize; 3],
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Control packets of all kinds.
    pub packets_received: u64,
    pub packets_sent: u64,
    /// How long the store took to commit; where there are several shards none keeps anything.
    pub commits: std::sync::Arc<Histogram>,
}

impl ShardReport {
    /// Both together.
    pub(super) fn and(mut self, other: ShardReport) -> ShardReport {
        self.counters += other.counters;
        self.gauges += other.gauges;
        for (sum, more) in self.levels.iter_mut().zip(other.levels) {
            *sum += more;
        }
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.packets_received += other.packets_received;
        self.packets_sent += other.packets_sent;
        self
    }
}

/// One session as an administrator sees it.
#[derive(Clone, Debug)]
pub struct ClientRow {
    pub client: String,
    pub identity: Option<String>,
    /// `None`: the session waits for its client.
    pub connected: Option<ConnectedRow>,
    pub subscriptions: usize,
    /// What they are, with the QoS that was granted, where that was asked for.
    pub filters: Vec<(String, QoS)>,
    pub queued_messages: usize,
    pub queued_bytes: usize,
    pub inflight_messages: usize,
}

#[derive(Clone, Debug)]
pub struct ConnectedRow {
    pub number: u64,
    pub address: String,
    pub listener: String,
    pub level: Level,
    pub version: &'static str,
    pub since: SystemTime,
}
