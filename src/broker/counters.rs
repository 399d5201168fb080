use std::ops::AddAssign;

/// What the engine counts; read by snapshots, never by a decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub connects: u64,
    pub takeovers: u64,
    /// PUBLISH packets by QoS, from and to clients.
    pub publishes_received: [u64; 3],
    pub publishes_sent: [u64; 3],
    pub publish_bytes_received: [u64; 3],
    pub publish_bytes_sent: [u64; 3],
    pub refused: Refusals,
    pub dropped: Drops,
    pub acl_denied_publish: u64,
    pub acl_denied_subscribe: u64,
    pub violations: u64,
    pub wills_published: u64,
    /// Sessions that nobody came back to in time.
    pub sessions_expired: u64,
}

/// Clients that the gate let in and the engine refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// The session belongs to another identity.
    pub not_owner: u64,
    pub keep_alive: u64,
    /// The will's topic is outside the ACL, too deep, or its payload is not what it says.
    pub will: u64,
    /// `sessions-max`.
    pub sessions_full: u64,
    pub shutting_down: u64,
}

/// Messages that were dropped, each cause with a limit that has a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drops {
    /// QoS 0 to a client that does not read fast enough (`backlog-bytes-max`).
    pub slow_consumer: u64,
    /// `queued-messages-max` or `queued-bytes-max`.
    pub queue_full: u64,
    /// Message expiry interval.
    pub expired: u64,
    /// The receiver's maximum packet size.
    pub too_large: u64,
    /// `retained-messages-max` or `retained-bytes-max`.
    pub retained_full: u64,
    /// The store could not keep it.
    pub store_failed: u64,
    /// The last member of a shared subscription went before it took it.
    pub nobody_left: u64,
}

/// How much there is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gauges {
    pub connections: usize,
    pub sessions: usize,
    pub subscriptions: usize,
    /// Of those, in shared subscriptions.
    pub shared_subscriptions: usize,
    pub retained_messages: usize,
    pub retained_bytes: usize,
}

/// What several shards counted, together.
impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        for (sum, more) in [
            (&mut self.publishes_received, other.publishes_received),
            (&mut self.publishes_sent, other.publishes_sent),
            (&mut self.publish_bytes_received, other.publish_bytes_received),
            (&mut self.publish_bytes_sent, other.publish_bytes_sent),
        ] {
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        self.connects += other.connects;
        self.takeovers += other.takeovers;
        self.refused.not_owner += other.refused.not_owner;
        self.refused.keep_alive += other.refused.keep_alive;
        self.refused.will += other.refused.will;
        self.refused.sessions_full += other.refused.sessions_full;
        self.refused.shutting_down += other.refused.shutting_down;
        self.dropped.slow_consumer += other.dropped.slow_consumer;
        self.dropped.queue_full += other.dropped.queue_full;
        self.dropped.expired += other.dropped.expired;
        self.dropped.too_large += other.dropped.too_large;
        self.dropped.retained_full += other.dropped.retained_full;
        self.dropped.store_failed += other.dropped.store_failed;
        self.dropped.nobody_left += other.dropped.nobody_left;
        self.acl_denied_publish += other.acl_denied_publish;
        self.acl_denied_subscribe += other.acl_denied_subscribe;
        self.violations += other.violations;
        self.wills_published += other.wills_published;
        self.sessions_expired += other.sessions_expired;
    }
}

impl AddAssign for Gauges {
    fn add_assign(&mut self, other: Gauges) {
        self.connections += other.connections;
        self.sessions += other.sessions;
        self.subscriptions += other.subscriptions;
        self.shared_subscriptions += other.shared_subscriptions;
        self.retained_messages += other.retained_messages;
        self.retained_bytes += other.retained_bytes;
    }
}
