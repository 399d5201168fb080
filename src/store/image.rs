//! What is kept, as it stands: the sum of all records.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::record::{Body, Record, To};
use super::time::Moment;
use crate::broker::{MessageId, QueuedFor, StoredWill};
use crate::codec::SubscriptionOptions;
use crate::types::{ClientId, Identity, PacketId, QoS, Realm};

/// Where a body lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// One message in one queue: 32 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) place: Place,
    /// What it counts in the queue.
    pub(super) size: u32,
    /// Seconds of the store's time; 0: never.
    expires_secs: u32,
    /// In [`Image::extras`], plus one; 0: none.
    extra: u32,
    /// 0: not sent.
    packet_id: u16,
    flags: u8,
}

const RETAIN: u8 = 1 << 4;
const AT_HAND: u8 = 1 << 5;

impl Entry {
    pub(super) fn packet_id(&self) -> Option<PacketId> {
        PacketId::new(self.packet_id)
    }

    pub(super) fn qos(&self) -> QoS {
        QoS::from_bits(self.flags & 3).expect("written from one")
    }

    pub(super) fn published(&self) -> QoS {
        QoS::from_bits((self.flags >> 2) & 3).expect("written from one")
    }

    /// In whole seconds, rounded up, so that nothing expires early; 0: never.
    pub(super) fn expires(&self) -> Moment {
        Moment::from(self.expires_secs) * 1000
    }

    fn is_at_hand(&self) -> bool {
        self.flags & AT_HAND != 0
    }
}

/// What few messages have beside the usual.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Extra {
    pub(super) identifiers: Vec<u32>,
    pub(super) shared: Option<Arc<str>>,
}

/// Those that are in use, each once.
#[derive(Default, Debug)]
struct Extras {
    known: slab::Slab<(Extra, usize)>,
    by_value: BTreeMap<Extra, u32>,
}

impl Extras {
    fn take(&mut self, extra: Extra) -> u32 {
        if extra == Extra::default() {
            return 0;
        }
        let at = match self.by_value.get(&extra) {
            Some(at) => *at,
            None => {
                let at = self.known.insert((extra.clone(), 0)) as u32;
                self.by_value.insert(extra, at);
                at
            }
        };
        self.known[at as usize].1 += 1;
        at + 1
    }

    fn get(&self, at: u32) -> Option<&Extra> {
        at.checked_sub(1).map(|at| &self.known[at as usize].0)
    }

    fn release(&mut self, at: u32) {
        let Some(at) = at.checked_sub(1) else { return };
        let known = &mut self.known[at as usize];
        known.1 -= 1;
        if known.1 == 0 {
            let (extra, _) = self.known.remove(at as usize);
            self.by_value.remove(&extra);
        }
    }
}

/// What a session is, where there is one: a queue can outlive it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) identity: Option<Identity>,
    pub(super) realm: Realm,
    pub(super) expiry_interval_secs: u32,
    pub(super) will: Option<Arc<StoredWill>>,
    pub(super) connected: bool,
    pub(super) since: Moment,
}

/// Entries that an empty queue keeps room for.
const ROOM_KEPT: usize = 32;

#[derive(Default, Debug)]
pub(super) struct Kept {
    pub(super) facts: Option<Facts>,
    pub(super) subscriptions: BTreeMap<Box<str>, (SubscriptionOptions, Option<u32>)>,
    pub(super) received: BTreeSet<PacketId>,
    pub(super) queue: VecDeque<Entry>,
    /// PUBREC came, in this order.
    pub(super) released: Vec<(PacketId, MessageId)>,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.facts.is_none() && self.queue.is_empty() && self.released.is_empty()
    }

    /// Queues are mostly in the order of their messages' identifiers; acknowledged is mostly the first. A
    /// message can be there twice, by two subscriptions of which one is shared.
    fn find(&self, id: MessageId, packet_id: Option<PacketId>) -> Option<usize> {
        let exact = |entry: &Entry| entry.id == id.0 && entry.packet_id() == packet_id;
        let likely = self.queue.partition_point(|entry| entry.id < id.0);
        if self.queue.get(likely).is_some_and(exact) {
            return Some(likely);
        }
        let found = self.queue.iter().position(exact);
        found.or_else(|| self.queue.iter().position(|entry| entry.id == id.0))
    }
}

/// What of a segment is still wanted.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Live {
    pub(super) bodies: u64,
    pub(super) bytes: u64,
}

#[derive(Default, Debug)]
pub(super) struct Image {
    pub(super) sessions: BTreeMap<ClientId, Kept>,
    /// By topic.
    pub(super) retained: BTreeMap<Box<str>, (Place, u32)>,
    extras: Extras,
    pub(super) live: BTreeMap<u32, Live>,
    pub(super) next_message: u64,
    pub(super) queued: u64,
    /// A segment may be of no use any more.
    pub(super) has_dead: bool,
}

/// Where a frame's payload lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) segment: u32,
    pub(super) payload: u64,
    pub(super) moment: Moment,
}

impl At {
    fn place(&self, body: &Body<'_>) -> Place {
        Place { segment: self.segment, offset: (self.payload + body.at as u64) as u32 }
    }
}

impl Image {
    pub(super) fn extra(&self, entry: &Entry) -> Option<&Extra> {
        self.extras.get(entry.extra)
    }

    /// As a change would say it.
    pub(super) fn queued_for(&self, client: &ClientId, entry: &Entry) -> QueuedFor {
        let extra = self.extra(entry);
        QueuedFor {
            client: client.clone(),
            qos: entry.qos(),
            packet_id: entry.packet_id(),
            retain: entry.flags & RETAIN != 0,
            subscription_identifiers: extra.map(|extra| extra.identifiers.clone()).unwrap_or_default(),
            shared: extra.and_then(|extra| extra.shared.clone()),
            at_hand: entry.is_at_hand(),
        }
    }

    /// The client's, made if it is not there.
    fn kept(&mut self, client: &str) -> &mut Kept {
        if !self.sessions.contains_key(client) {
            let client = ClientId::new(client).expect("a reader gives none that is empty");
            self.sessions.insert(client, Kept::default());
        }
        self.sessions.get_mut(client).expect("made above")
    }

    fn hold(&mut self, place: Place, size: u32) {
        let live = self.live.entry(place.segment).or_default();
        live.bodies += 1;
        live.bytes += u64::from(size);
    }

    fn let_go(&mut self, place: Place, size: u32) {
        if let Some(live) = self.live.get_mut(&place.segment) {
            live.bodies -= 1;
            live.bytes -= u64::from(size);
            if live.bodies == 0 {
                self.live.remove(&place.segment);
                self.has_dead = true;
            }
        }
    }

    fn enqueue(&mut self, id: MessageId, place: Place, size: u32, expires: Moment, published: QoS, to: To<'_>) {
        self.next_message = self.next_message.max(id.0 + 1);
        self.hold(place, size);
        self.queued += 1;
        let flags = to.qos.bits()
            | (published.bits() << 2)
            | if to.retain { RETAIN } else { 0 }
            | if to.at_hand { AT_HAND } else { 0 };
        let extra =
            self.extras.take(Extra { identifiers: to.subscription_identifiers, shared: to.shared.map(Arc::from) });
        let entry = Entry {
            id: id.0,
            place,
            size,
            expires_secs: u32::try_from(expires.div_ceil(1000)).unwrap_or(u32::MAX),
            extra,
            packet_id: to.packet_id.map_or(0, PacketId::value),
            flags,
        };
        self.kept(to.client).queue.push_back(entry);
    }

    fn forget(&mut self, entry: Entry) {
        self.let_go(entry.place, entry.size);
        self.extras.release(entry.extra);
        self.queued -= 1;
    }

    /// Takes one message out of a queue.
    fn take(&mut self, client: &str, id: MessageId, packet_id: Option<PacketId>) -> Option<Entry> {
        let kept = self.sessions.get_mut(client)?;
        let at = kept.find(id, packet_id)?;
        kept.queue.remove(at)
    }

    /// Of a session that has nothing any more nothing stays, and room of a queue that was long is given back.
    fn tidy(&mut self, client: &str) {
        let Some(kept) = self.sessions.get_mut(client) else { return };
        if kept.is_empty() {
            self.sessions.remove(client);
        } else if kept.queue.capacity() > ROOM_KEPT && kept.queue.len() < kept.queue.capacity() / 4 {
            kept.queue.shrink_to(kept.queue.len() * 2);
        }
    }

    /// Makes one record's change. `at` says where its frame's payload lies.
    pub(super) fn apply(&mut self, record: Record<'_>, at: At) {
        match record {
            Record::Session { client, identity, realm, expiry_interval_secs, will, connected, since } => {
                let since = since.unwrap_or(at.moment);
                let facts = Facts { identity, realm, expiry_interval_secs, will, connected, since };
                self.kept(client).facts = Some(facts);
            }
            Record::SessionEnded(client) => self.end(client),
            Record::Subscribed { client, filter, options, identifier } => {
                if let Some(kept) = self.sessions.get_mut(client) {
                    kept.subscriptions.insert(filter.into(), (options, identifier));
                }
            }
            Record::Unsubscribed(client, filter) => {
                if let Some(kept) = self.sessions.get_mut(client) {
                    kept.subscriptions.remove(filter);
                }
            }
            Record::Message { body, received, queued, retained } => {
                self.next_message = self.next_message.max(body.id.0 + 1);
                if let Some((client, packet_id)) = received
                    && let Some(kept) = self.sessions.get_mut(client)
                {
                    kept.received.insert(packet_id);
                }
                let place = at.place(&body);
                for to in queued {
                    self.enqueue(body.id, place, body.size, body.expires, body.published, to);
                }
                if retained {
                    self.retain(&body, place);
                }
            }
            Record::RetainedCleared(topic) => self.clear(topic),
            Record::Sent(client, id, packet_id) => {
                let Some(kept) = self.sessions.get_mut(client) else { return };
                if let Some(found) = kept.find(id, None) {
                    kept.queue[found].packet_id = packet_id.value();
                }
            }
            Record::Received(client, packet_id) => {
                let Some(kept) = self.sessions.get_mut(client) else { return };
                let found = kept.queue.iter().position(|entry| entry.packet_id == packet_id.value());
                if let Some(entry) = found.and_then(|found| kept.queue.remove(found)) {
                    kept.released.push((packet_id, MessageId(entry.id)));
                    self.forget(entry);
                }
            }
            Record::Done(client, id, packet_id) => {
                if !packet_id.is_some_and(|packet_id| self.complete(client, packet_id, id))
                    && let Some(entry) = self.take(client, id, packet_id)
                {
                    self.forget(entry);
                }
                self.tidy(client);
            }
            Record::Moved { message, body, from, to } => {
                let entry = self.take(from, message, None);
                match (&entry, body) {
                    (Some(entry), _) => {
                        self.enqueue(message, entry.place, entry.size, entry.expires(), entry.published(), to);
                    }
                    (None, Some(body)) => {
                        self.enqueue(message, at.place(&body), body.size, body.expires, body.published, to);
                    }
                    (None, None) => {}
                }
                if let Some(entry) = entry {
                    self.forget(entry);
                    self.tidy(from);
                }
            }
            Record::GivenUp { client, share, messages } => {
                let ids: BTreeSet<u64> = messages.iter().map(|id| id.0).collect();
                self.give_to_groups(client, |entry, shared| **shared == *share && ids.contains(&entry.id));
            }
            Record::Released(client, packet_id) => {
                if let Some(kept) = self.sessions.get_mut(client) {
                    kept.received.remove(&packet_id);
                }
            }
            Record::ReceivedIn(client, packet_id) => {
                self.kept(client).received.insert(packet_id);
            }
            Record::Queued { id, segment, offset, size, expires, published, to } => {
                self.enqueue(id, Place { segment, offset }, size, expires, published, to);
            }
            Record::ReleasedOut(client, packet_id, id) => {
                self.kept(client).released.push((packet_id, id));
            }
            Record::Retained { segment, offset, len, topic } => {
                let place = Place { segment, offset };
                self.hold(place, len);
                self.retained.insert(topic.into(), (place, len));
            }
            Record::NextMessage(next) => self.next_message = self.next_message.max(next),
            Record::QueuedRetained { topic, id, size, expires, published, to } => {
                if let Some((place, _)) = self.retained.get(topic).copied() {
                    self.enqueue(id, place, size, expires, published, to);
                }
            }
            Record::Copied | Record::CheckpointEnd => {}
        }
    }

    /// PUBCOMP came for what was released under this identifier; `false` if nothing was.
    fn complete(&mut self, client: &str, packet_id: PacketId, id: MessageId) -> bool {
        let Some(kept) = self.sessions.get_mut(client) else { return false };
        let found = kept.released.iter().position(|released| *released == (packet_id, id));
        found.map(|found| kept.released.remove(found)).is_some()
    }

    /// Forgets what waits and has had its time by `now`.
    pub(super) fn expire(&mut self, now: Moment) {
        let mut expired = Vec::new();
        for kept in self.sessions.values_mut() {
            kept.queue.retain(|entry| {
                let is_over = entry.packet_id == 0 && entry.expires_secs != 0 && entry.expires() <= now;
                if is_over {
                    expired.push(*entry);
                }
                !is_over
            });
        }
        expired.into_iter().for_each(|entry| self.forget(entry));
    }

    fn retain(&mut self, body: &Body<'_>, place: Place) {
        let Ok(topic) = str::from_utf8(body.topic) else { return };
        self.clear(topic);
        self.hold(place, body.size);
        self.retained.insert(topic.into(), (place, body.size));
    }

    fn clear(&mut self, topic: &str) {
        if let Some((place, size)) = self.retained.remove(topic) {
            self.let_go(place, size);
        }
    }

    /// Messages of shared subscriptions go from a client's queue to their groups' [MQTT-4.8.2-5].
    fn give_to_groups(&mut self, client: &str, wanted: impl Fn(&Entry, &Arc<str>) -> bool) {
        let Some(kept) = self.sessions.get_mut(client) else { return };
        let mut moved = Vec::new();
        let extras = &self.extras;
        kept.queue.retain(|entry| {
            let shared = extras.get(entry.extra).and_then(|extra| extra.shared.as_ref());
            let goes = shared.is_some_and(|shared| wanted(entry, shared));
            if goes {
                moved.push(*entry);
            }
            !goes
        });
        for mut entry in moved {
            let shared = self.extra(&entry).and_then(|extra| extra.shared.clone()).expect("looked at above");
            entry.packet_id = 0;
            entry.flags &= !AT_HAND;
            self.sessions.entry(crate::broker::group_as_client(&shared)).or_default().queue.push_back(entry);
        }
    }

    /// A session is gone: what others of its shared subscriptions can take is theirs.
    fn end(&mut self, client: &str) {
        // A QoS 2 message that was sent never goes to another.
        self.give_to_groups(client, |entry, _| entry.packet_id == 0 || entry.qos() != QoS::ExactlyOnce);
        let Some(kept) = self.sessions.remove(client) else { return };
        kept.queue.into_iter().for_each(|entry| self.forget(entry));
    }

    /// Nothing is at hand: whoever had it is gone.
    pub(super) fn rewind_all(&mut self) {
        for entry in self.sessions.values_mut().flat_map(|kept| &mut kept.queue) {
            entry.flags &= !AT_HAND;
        }
    }

    /// None of a client's queue is at hand any more but what is in flight.
    pub(super) fn rewind(&mut self, client: &ClientId, inflight: &[MessageId]) {
        let Some(kept) = self.sessions.get_mut(client) else { return };
        // A message can be there twice, in flight and behind that.
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        inflight.iter().for_each(|id| *left.entry(id.0).or_default() += 1);
        for is_sent in [true, false] {
            for entry in kept.queue.iter_mut().filter(|entry| entry.packet_id().is_some() == is_sent) {
                match left.get_mut(&entry.id).filter(|left| **left > 0) {
                    Some(left) => *left -= 1,
                    None => entry.flags &= !AT_HAND,
                }
            }
        }
    }

    /// The first `most` that are neither sent nor at hand, and one more than `bytes_most` at most; they are at
    /// hand from now on.
    pub(super) fn next(&mut self, client: &ClientId, most: usize, bytes_most: usize) -> Vec<Entry> {
        let Some(kept) = self.sessions.get_mut(client) else { return Vec::new() };
        let waiting = kept.queue.iter_mut().filter(|entry| !entry.is_at_hand() && entry.packet_id == 0);
        let mut bytes = 0;
        waiting
            .take(most)
            .take_while(|entry| {
                let is_within = bytes < bytes_most;
                bytes += entry.size as usize;
                is_within
            })
            .map(|entry| {
                entry.flags |= AT_HAND;
                *entry
            })
            .collect()
    }

    /// Bodies elsewhere than they were.
    pub(super) fn relocate(&mut self, moved: &BTreeMap<Place, Place>) {
        let live = &mut self.live;
        let mut relocate = |place: &mut Place, size: u32| {
            let Some(to) = moved.get(place) else { return };
            for (segment, gain) in [(place.segment, false), (to.segment, true)] {
                let live = live.entry(segment).or_default();
                match gain {
                    true => (live.bodies, live.bytes) = (live.bodies + 1, live.bytes + u64::from(size)),
                    false => (live.bodies, live.bytes) = (live.bodies - 1, live.bytes - u64::from(size)),
                }
            }
            *place = *to;
        };
        for kept in self.sessions.values_mut() {
            kept.queue.iter_mut().for_each(|entry| relocate(&mut entry.place, entry.size));
        }
        self.retained.values_mut().for_each(|(place, size)| relocate(place, *size));
        self.live.retain(|_, live| live.bodies > 0);
    }

    /// Every body in use, with what it counts, in the order of the files.
    pub(super) fn places(&self, wanted: impl Fn(u32) -> bool) -> BTreeSet<Place> {
        let queued = self.sessions.values().flat_map(|kept| kept.queue.iter().map(|entry| entry.place));
        let retained = self.retained.values().map(|(place, _)| *place);
        queued.chain(retained).filter(|place| wanted(place.segment)).collect()
    }

    /// Takes out whatever lies where `lost` says; how many messages of how many clients.
    pub(super) fn lose(&mut self, lost: impl Fn(Place) -> bool) -> (usize, usize) {
        let (mut messages, mut clients) = (Vec::new(), 0);
        for kept in self.sessions.values_mut() {
            let before = messages.len();
            kept.queue.retain(|entry| {
                let is_lost = lost(entry.place);
                if is_lost {
                    messages.push(*entry);
                }
                !is_lost
            });
            clients += usize::from(messages.len() > before);
        }
        let topics: Vec<Box<str>> =
            self.retained.iter().filter(|(_, (place, _))| lost(*place)).map(|(topic, _)| topic.clone()).collect();
        let count = messages.len() + topics.len();
        messages.into_iter().for_each(|entry| self.forget(entry));
        topics.iter().for_each(|topic| self.clear(topic));
        (count, clients)
    }
}
