//! The retained messages that a new subscription brings (MQTT 5 section 3.3.1.3), in slices.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::change::{Change, QueuedFor, Ticket};
use super::letter::{Content, ShardId};
use super::message::{Body, Delivery, Message, Origin};
use super::outbox::Outbox;
use super::retained::Scan;
use super::session::{RetainedScan, Subscription};
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
    Shard { from: ShardId, client: ClientId, serial: u64, scan: Scan },
}

impl Core {
    /// Retained messages are to be looked at for a subscription that was just made.
    pub(super) fn begin_scan(&mut self, at: u32, filter: Filter<'_>, subscription: Subscription) {
        let serial = self.next_scan;
        self.next_scan += 1;
        let session = &mut self.sessions[at as usize];
        // One scan a filter: the new one sees all that the old one had left.
        session.scans.retain(|scan| &*scan.filter != filter.as_str());
        session.scans.push_back(RetainedScan {
            filter: filter.as_str().into(),
            subscription,
            since: session.live.now,
            after: None,
            shard: ShardId(0),
            scan: Some(Scan::new(filter)),
            serial,
            upto: None,
        });
    }

    /// A live message of `topic` is about to go to a session that scans: what is retained of the topic
    /// goes before it, unless the message replaces that, and no scan will bring it again. What another
    /// shard retains cannot go before it: it follows, unless it was replaced.
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
        let is_here = self.is_home(topic.as_str());
        let message = if is_here { self.retained.get(topic).cloned() } else { None };
        // One that replaces is noted once it is on its way: a limit may drop it yet.
        if replaces || message.is_none() {
            return;
        }
        let me = self.shard();
        if let Some(message) = message {
            let session = &self.sessions[at as usize];
            let bringing: Vec<(Subscription, u64)> = session
                .scans
                .iter()
                .filter(|scan| {
                    let is_ahead = match (scan.shard.cmp(&me), &scan.scan) {
                        (Ordering::Less, _) => true,
                        (Ordering::Equal, Some(cursor)) => !cursor.has_passed(topic),
                        (Ordering::Equal, None) | (Ordering::Greater, _) => false,
                    };
                    is_ahead && Filter::from_parsed(&scan.filter).matches(topic)
                })
                .map(|scan| (scan.subscription, scan.since))
                .collect();
            let mut changes = Vec::new();
            for (subscription, since) in bringing {
                if self.has_queue_room(at, message.size(), out) {
                    self.deliver_retained(now, at, subscription, since, message.clone(), &mut changes);
                }
            }
            if !changes.is_empty() {
                self.persist(changes, out);
            }
        }
        self.needs_no_scan(at, topic);
    }

    /// What is retained of `topic` is not to be found for the session any more.
    pub(super) fn needs_no_scan(&mut self, at: u32, topic: Topic<'_>) {
        let session = &mut self.sessions[at as usize];
        if !session.scans.is_empty() {
            session.live.note(self.hasher.hash_one(topic.as_str()), self.options.limits.queued_bytes_max);
        }
    }

    /// The session's scans of just now wait for `ticket`: not every shard forwards yet what they match.
    pub(super) fn scans_wait(&mut self, at: u32, ticket: Ticket) {
        let session = &mut self.sessions[at as usize];
        for scan in session.scans.iter_mut().filter(|scan| scan.after.is_none() && scan.upto.is_none()) {
            scan.after = Some(ticket);
        }
    }

    /// One slice of a session's retained scans; what is left goes on when its turn comes and the
    /// client has taken what it got.
    pub(super) fn scan_retained(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let slice = self.options.limits.slice;
        let me = self.shard();
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        // Its turn comes again when the client is there and has taken what it got.
        if session.connection.is_none() || !session.outgoing.queue.is_empty() {
            return;
        }
        let client = session.client.clone();
        let Some(current) = session.scans.front_mut() else { return };
        if current.after.is_some_and(|ticket| self.waiting.contains_key(&ticket)) {
            return;
        }
        let Some(mut scan) = current.scan.take() else { return };
        let (shard, serial) = (current.shard, current.serial);
        if shard != me {
            return self.tell(now, shard, Content::Scan { client, serial, scan }, out);
        }
        if !scan.has_begun() {
            let known = current.upto;
            let upto = *current.upto.get_or_insert_with(|| self.retained_changes.last().copied().unwrap_or(0));
            if self.retained_changes.first().is_some_and(|first| *first <= upto) {
                current.scan = Some(scan);
                if known.is_none() {
                    self.scans_waiting.push(ScanWaiting { upto, whose: Whose::Session(client) });
                }
                return;
            }
        }
        let mut found = Vec::new();
        let is_over = self.retained.scan(&mut scan, slice, |message| {
            found.push(message.clone());
            found.len() < slice
        });
        self.scanned(now, &client, serial, scan, found, is_over, out);
    }

    /// Looks at a slice of what this shard retains for a session of another.
    pub(super) fn scan_for(
        &mut self,
        now: Instant,
        from: ShardId,
        client: ClientId,
        serial: u64,
        mut scan: Scan,
        out: &mut impl Outbox,
    ) {
        if !scan.has_begun()
            && let Some(upto) = self.retained_changes.last().copied()
        {
            return self.scans_waiting.push(ScanWaiting { upto, whose: Whose::Shard { from, client, serial, scan } });
        }
        let slice = self.options.limits.slice;
        let mut found = Vec::new();
        let is_over = self.retained.scan(&mut scan, slice, |message| {
            found.push(message.clone());
            found.len() < slice
        });
        self.tell(now, from, Content::Scanned { client, serial, scan, found, is_over }, out);
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
    #[expect(clippy::too_many_arguments, reason = "a letter taken apart")]
    pub(super) fn scanned(
        &mut self,
        now: Instant,
        client: &ClientId,
        serial: u64,
        scan: Scan,
        found: Vec<Arc<Message>>,
        is_over: bool,
        out: &mut impl Outbox,
    ) {
        let Some(&at) = self.by_client.get(client) else { return };
        let shards = self.options.shards;
        let session = &mut self.sessions[at as usize];
        // Unsubscribed, or subscribed again, meanwhile.
        let Some(place) = session.scans.iter().position(|current| current.serial == serial) else { return };
        let current = &session.scans[place];
        let (subscription, since) = (current.subscription, current.since);
        let mut changes = Vec::new();
        for message in found {
            self.deliver_retained(now, at, subscription, since, message, &mut changes);
        }
        if !changes.is_empty() {
            self.persist(changes, out);
        }
        let session = &mut self.sessions[at as usize];
        let current = &mut session.scans[place];
        if !is_over {
            current.scan = Some(scan);
        } else if current.shard.0 + 1 < shards {
            current.shard.0 += 1;
            current.upto = None;
            current.scan = Some(Scan::new(Filter::from_parsed(&current.filter)));
        } else {
            session.scans.remove(place);
            if session.scans.is_empty() {
                session.live.clear();
            }
        }
        self.pump(now, at, out);
    }

    fn deliver_retained(
        &mut self,
        now: Instant,
        at: u32,
        subscription: Subscription,
        since: u64,
        message: Arc<Message>,
        changes: &mut Vec<Change>,
    ) {
        let topic = self.hasher.hash_one(&*message.topic);
        let session = &mut self.sessions[at as usize];
        // Sent already, before a live message of this topic, or replaced by one.
        if session.live.is_after(topic, since) {
            self.counters.dropped.queue_full += u64::from(session.live.is_full);
            return;
        }
        if message.is_expired(now) {
            return;
        }
        // [MQTT-3.8.3-3]: no local is for what is retained too.
        if subscription.options.no_local && message.publisher.as_ref() == Some(&session.client) {
            return;
        }
        if !permitted(&self.acl, self.acl_generation, session, Operation::Read, message.topic()) {
            return;
        }
        let qos = message.qos.min(subscription.options.qos);
        if qos != QoS::AtMostOnce && self.options.durable && session.is_durable() {
            changes.push(Change::Message {
                message: message.clone(),
                received: None,
                queued: vec![QueuedFor {
                    client: session.client.clone(),
                    qos,
                    packet_id: None,
                    retain: true,
                    subscription_identifiers: subscription.identifier.into_iter().collect(),
                    shared: None,
                }],
                retained: false,
            });
        }
        // [MQTT-3.3.1-8] of 3.1.1, section 3.3.1.3: RETAIN is set on what a new subscription brings.
        session.outgoing.push_queue(Delivery {
            size: message.size() as u32,
            published: message.qos,
            body: Body::Here(message),
            qos,
            retain: true,
            identifiers: subscription.identifier.into_iter().collect(),
            hold: None,
            origin: Origin::Retained,
        });
    }
}
