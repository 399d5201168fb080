//! The retained messages that a new subscription brings (MQTT 5 section 3.3.1.3), in slices.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::change::{Change, QueuedFor, Ticket};
use super::commit::Waiting;
use super::letter::{Content, ShardId, Slice};
use super::message::{Body, Delivery, Message, Origin};
use super::outbox::Outbox;
use super::retained::Scan;
use super::scans::Liveness;
use super::session::Subscription;
use super::{Core, permitted};
use crate::auth::Operation;
use crate::types::{ClientId, Filter, QoS, Topic};

/// A scan that goes on when the changes of retained messages before it are safe: what they will be
/// was not sent to its client as it came, and is not there to be found yet.
#[derive(Debug)]
pub(super) struct ScanWaiting {
    /// The newest change that it waits for.
    upto: u64,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    Session(ClientId),
    Shard { from: ShardId, client: ClientId, serial: u32, scan: Scan },
}

impl Whose {
    fn is_of(&self, wanted: &ClientId) -> bool {
        match self {
            Whose::Session(client) | Whose::Shard { client, .. } => client == wanted,
        }
    }
}

impl Core {
    /// Retained messages are to be looked at for a subscription that was just made.
    pub(super) fn begin_scan(&mut self, at: u32, filter: Filter<'_>, subscription: Subscription) {
        let serial = self.next_scan;
        self.next_scan = self.next_scan.wrapping_add(1);
        let session = &mut self.sessions[at as usize];
        session.scans.insert(serial, filter, subscription, &self.hasher);
    }

    /// A live message of `topic` is about to go to a session that scans: what is retained of the topic
    /// goes before it, unless the message replaces that, and no scan will bring it again. What another
    /// shard retains cannot go before it.
    pub(super) fn retained_goes_first(
        &mut self,
        now: Instant,
        at: u32,
        topic: Topic<'_>,
        replaces: bool,
        out: &mut impl Outbox,
    ) {
        if self.sessions[at as usize].scans.is_empty() {
            return;
        }
        // One that replaces, or voids what is elsewhere, is noted once it is on its way: a limit may drop it yet.
        if replaces || !self.is_home(topic.as_str()) {
            return;
        }
        let message = self.retained.get(topic).cloned();
        if message.is_none() {
            return;
        }
        let me = self.shard();
        if let Some(message) = message {
            let session = &self.sessions[at as usize];
            let matching = session.scans.matching(topic);
            let bringing: Vec<(Subscription, u64)> = matching
                .into_iter()
                .filter(|scan| match (scan.shard.cmp(&me), &scan.scan) {
                    (Ordering::Less, _) => true,
                    (Ordering::Equal, Some(cursor)) => !cursor.has_passed(topic),
                    (Ordering::Equal, None) | (Ordering::Greater, _) => false,
                })
                .map(|scan| (scan.subscription, scan.since))
                .collect();
            let mut changes = Vec::new();
            for (subscription, since) in bringing {
                self.deliver_retained(now, at, subscription, since, message.clone(), &mut changes, out);
            }
            let client = self.sessions[at as usize].client.clone();
            self.persist_scanned(client, changes, out);
        }
        self.needs_no_scan(at, topic);
    }

    /// What is retained of `topic` is not to be found for the session any more.
    pub(super) fn needs_no_scan(&mut self, at: u32, topic: Topic<'_>) {
        let scans = &mut self.sessions[at as usize].scans;
        if !scans.is_empty() {
            let hash = self.hasher.hash_one(topic.as_str());
            scans.note_live(topic, hash, self.options.limits.queued_bytes_max);
        }
    }

    /// The session's scans of just now wait for `ticket`: not every shard forwards yet what they match.
    pub(super) fn scans_wait(&mut self, at: u32, ticket: Ticket) {
        let session = &mut self.sessions[at as usize];
        for scan in session.scans.values_mut().filter(|scan| scan.after.is_none() && scan.upto.is_none()) {
            scan.after = Some(ticket);
        }
    }

    /// One slice of a session's retained scans; what is left goes on when its turn comes and the
    /// client has taken what it got.
    pub(super) fn scan_retained(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let me = self.shard();
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        // Its turn comes again when the client is there and has taken what it got.
        if session.connection.is_none() || session.outgoing.waiting() > 0 {
            return;
        }
        let client = session.client.clone();
        let (asked, waits) = (session.scans.asked, session.scans.waits);
        let Some((serial, current)) = session.scans.oldest_mut() else { return };
        if current.after.is_some_and(|ticket| self.waiting.contains_key(&ticket)) {
            return;
        }
        let shard = current.shard;
        if shard != me {
            // One question at a time.
            if !asked && let Some(scan) = current.scan.take() {
                session.scans.asked = true;
                self.tell(now, shard, Content::Scan { client, serial, scan }, out);
            }
            return;
        }
        let Some(scan) = current.scan.take() else { return };
        if !scan.has_begun() {
            let upto = *current.upto.get_or_insert_with(|| self.retained_changes.last().copied().unwrap_or(0));
            if self.retained_changes.first().is_some_and(|first| *first <= upto) {
                current.scan = Some(scan);
                if !waits {
                    session.scans.waits = true;
                    // A session of this client that is no more waits for nothing.
                    self.scans_waiting.retain(|waiting| !waiting.whose.is_of(&client));
                    self.scans_waiting.push(ScanWaiting { upto, whose: Whose::Session(client) });
                }
                return;
            }
        }
        let slice = self.slice_of(scan);
        self.scanned(now, &client, serial, slice, out);
    }

    /// One step of a scan of this shard's: no more than a session's queue may hold.
    fn slice_of(&self, mut scan: Scan) -> Slice {
        let from = scan.clone();
        let limits = &self.options.limits;
        let (mut found, mut bytes): (Vec<Arc<Message>>, usize) = (Vec::new(), 0);
        let is_over = self.retained.scan(&mut scan, limits.slice, |message| {
            bytes += message.size();
            // One is always taken: the client may have room where a queue has not.
            let has_room =
                found.is_empty() || (found.len() < limits.queued_messages_max && bytes <= limits.queued_bytes_max);
            if has_room {
                found.push(message.clone());
            }
            has_room
        });
        Slice { from, scan, found, is_over }
    }

    /// Looks at a slice of what this shard retains for a session of another.
    pub(super) fn scan_for(
        &mut self,
        now: Instant,
        from: ShardId,
        client: ClientId,
        serial: u32,
        scan: Scan,
        out: &mut impl Outbox,
    ) {
        if !scan.has_begun()
            && let Some(upto) = self.retained_changes.last().copied()
        {
            self.scans_waiting.retain(|waiting| !waiting.whose.is_of(&client));
            return self.scans_waiting.push(ScanWaiting { upto, whose: Whose::Shard { from, client, serial, scan } });
        }
        let slice = Box::new(self.slice_of(scan));
        self.tell(now, from, Content::Scanned { client, serial, slice }, out);
    }

    /// A change that scans may have waited for is answered.
    pub(super) fn resume_scans(&mut self, now: Instant, out: &mut impl Outbox) {
        if self.scans_waiting.is_empty() {
            return;
        }
        let first = self.retained_changes.first().copied().unwrap_or(u64::MAX);
        let ready: Vec<ScanWaiting> = self.scans_waiting.extract_if(.., |scan| scan.upto < first).collect();
        for waiting in ready {
            match waiting.whose {
                Whose::Session(client) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        self.sessions[at as usize].scans.waits = false;
                        self.pump(now, at, out);
                    }
                }
                Whose::Shard { from, client, serial, mut scan } => {
                    scan.begin();
                    self.scan_for(now, from, client, serial, scan, out);
                }
            }
        }
    }

    /// A slice of retained messages is there for a session.
    pub(super) fn scanned(
        &mut self,
        now: Instant,
        client: &ClientId,
        serial: u32,
        slice: Slice,
        out: &mut impl Outbox,
    ) {
        let Some(&at) = self.by_client.get(client) else { return };
        let shards = self.options.shards;
        let me = self.shard();
        let session = &mut self.sessions[at as usize];
        let is_connected = session.connection.is_some();
        let Some(current) = session.scans.get_mut(serial) else {
            // Unsubscribed, or subscribed again, meanwhile.
            session.scans.asked = false;
            return self.pump(now, at, out);
        };
        let is_mine = current.shard == me;
        let (subscription, since) = (current.subscription, current.since);
        if !is_connected {
            // Nobody is there to take it: it is looked at again when somebody is.
            current.scan = Some(slice.from);
            session.scans.asked = false;
            return;
        }
        let mut changes = Vec::new();
        for message in slice.found {
            self.deliver_retained(now, at, subscription, since, message, &mut changes, out);
        }
        self.persist_scanned(client.clone(), changes, out);
        let session = &mut self.sessions[at as usize];
        session.scans.asked &= is_mine;
        let current = session.scans.get_mut(serial).expect("found above");
        if !slice.is_over {
            current.scan = Some(slice.scan);
        } else if current.shard.0 + 1 < shards {
            current.shard.0 += 1;
            current.upto = None;
            current.scan = Some(Scan::new(Filter::from_parsed(&current.filter)));
        } else {
            let filter = std::mem::take(&mut current.filter);
            session.scans.remove(&filter);
        }
        self.pump(now, at, out);
    }

    /// Copies of retained messages are written down.
    fn persist_scanned(&mut self, client: ClientId, changes: Vec<Change>, out: &mut impl Outbox) {
        if !changes.is_empty() {
            let kept = changes.iter().filter_map(Change::message_id).collect();
            let ticket = self.persist(&changes, out);
            self.wait(ticket, Waiting::Scanned(client, kept));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one of a slice, by its two readers")]
    fn deliver_retained(
        &mut self,
        now: Instant,
        at: u32,
        subscription: Subscription,
        since: u64,
        message: Arc<Message>,
        changes: &mut Vec<Change>,
        out: &mut impl Outbox,
    ) {
        let topic = self.hasher.hash_one(&*message.topic);
        let session = &mut self.sessions[at as usize];
        // Sent already, before a live message of this topic, or replaced by one.
        match session.scans.liveness(topic, since) {
            Liveness::Current => {}
            Liveness::Void => return,
            Liveness::Unknown => {
                self.counters.dropped.queue_full += 1;
                return;
            }
        }
        if message.is_expired(now) {
            return;
        }
        // [MQTT-3.8.3-3]: no local is for what is retained too.
        if subscription.options.no_local
            && message.publisher.as_ref().is_some_and(|publisher| publisher.client == session.client)
        {
            return;
        }
        if !permitted(&self.acl, self.acl_generation, session, Operation::Read, message.topic()) {
            return;
        }
        let source = message.publisher.as_ref().filter(|_| self.options.limits.checks_retained_source);
        if let Some(subject) = source.and_then(|publisher| publisher.subject())
            && !self.acl.check(subject, Operation::Write, message.topic()).allowed
        {
            return;
        }
        // Live ones may have taken the room; one alone goes to a client that has room where a queue has not.
        if session.outgoing.waiting() > 0 && !self.has_queue_room(at, message.size(), true, out) {
            return;
        }
        let session = &mut self.sessions[at as usize];
        let qos = self.options.limits.delivered(subscription.options.qos, message.qos);
        let kept = qos != QoS::AtMostOnce && self.options.durable && session.is_durable();
        if kept {
            let to = QueuedFor {
                client: session.client.clone(),
                qos,
                packet_id: None,
                retain: true,
                subscription_identifiers: subscription.identifier.into_iter().collect(),
                shared: None,
                at_hand: true,
            };
            // The store has its body, unless that is about to be replaced.
            let is_there = self.options.shards == 1 && !self.retained_pending.contains_key(&*message.topic);
            changes.push(match is_there {
                true => Change::QueuedRetained { message: message.clone(), to },
                false => {
                    Change::Message { message: message.clone(), received: None, queued: vec![to], retained: false }
                }
            });
        }
        // [MQTT-3.3.1-8] of 3.1.1, section 3.3.1.3: RETAIN is set on what a new subscription brings.
        session.outgoing.push_queue(Delivery {
            size: message.size() as u32,
            published: message.qos,
            body: Body::Here(message),
            qos,
            retain: true,
            kept,
            identifiers: subscription.identifier.into_iter().collect(),
            hold: None,
            origin: Origin::Retained,
        });
    }
}
