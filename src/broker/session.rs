use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use smallvec::SmallVec;

use super::ConnectionId;
use super::change::{StoredPosition, StoredWill, Ticket};
use super::keys::Keys;
use super::letter::ShardId;
use super::message::{Body, Delivery, MessageId, Origin, Publisher};
use super::scans::Scans;
use super::shared::Rank;
use crate::auth::Subject;
use crate::codec::SubscriptionOptions;
use crate::types::{ClientId, Identity, PacketId, QoS, Realm, Topic};

/// What outlives a connection (MQTT 5 section 4.1).
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: ClientId,
    /// Tells it from another session of the same client.
    pub(super) serial: u64,
    /// Who made it and alone may take it up; `None`: anonymous.
    pub(super) identity: Option<Identity>,
    /// Where its client is, or was when it was here last.
    pub(super) realm: Realm,
    pub(super) connection: Option<ConnectionId>,
    /// Seconds that it outlives its connection.
    pub(super) expiry_secs: u32,
    /// While disconnected: when it ends.
    pub(super) expires: Option<Instant>,
    pub(super) subscriptions: IndexMap<Box<str>, Subscription, Keys>,
    pub(super) outgoing: Outgoing,
    /// QoS 2 identifiers received and not yet released, each with the commit it belongs to.
    pub(super) received: BTreeMap<PacketId, Option<Ticket>>,
    pub(super) will: Option<Arc<StoredWill>>,
    /// While disconnected: when the delayed will is published.
    pub(super) will_due: Option<Instant>,
    /// Retained messages still to be looked at for new subscriptions.
    pub(super) scans: Scans,
    pub(super) permissions: Permissions,
    /// In the core's list of those to scan for.
    pub(super) in_scanning: bool,
    /// The store knows it: it is told of its end, whatever its expiry has become.
    pub(super) stored: bool,
    /// When what could not be written down is tried again.
    pub(super) retry: Option<Instant>,
    /// Which other shards own shared subscriptions of it, and how many each.
    pub(super) shared_at: BTreeMap<ShardId, u32>,
    /// What those shards were told last.
    pub(super) rank_told: Rank,
    /// Once it has had a message retained.
    publisher: Option<Arc<Publisher>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) options: SubscriptionOptions,
    pub(super) identifier: Option<u32>,
}

/// Shortcuts through the ACL, valid for one version of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Permissions {
    pub(super) generation: u64,
    /// Every topic but those that begin with `$`.
    pub(super) reads_all: bool,
    pub(super) writes_all: bool,
}

impl Session {
    /// Without a connection, a subscription or a message.
    pub(super) fn new(client: ClientId, serial: u64, identity: Option<Identity>, realm: Realm, keys: Keys) -> Session {
        Session {
            client,
            serial,
            identity,
            realm,
            connection: None,
            expiry_secs: 0,
            expires: None,
            subscriptions: IndexMap::with_hasher(keys),
            outgoing: Outgoing::new(),
            received: BTreeMap::new(),
            will: None,
            will_due: None,
            scans: Scans::default(),
            permissions: Permissions::default(),
            in_scanning: false,
            stored: false,
            retry: None,
            shared_at: BTreeMap::new(),
            rank_told: Rank::default(),
            publisher: None,
        }
    }

    /// As the messages that it has retained name it.
    pub(super) fn as_publisher(&mut self) -> Arc<Publisher> {
        let (client, came_as) = (&self.client, Some((self.identity.clone(), self.realm)));
        let known = self.publisher.as_ref().filter(|known| known.came_as == came_as).cloned();
        known.unwrap_or_else(|| self.publisher.insert(Arc::new(Publisher { client: client.clone(), came_as })).clone())
    }

    /// Who asks the ACL.
    pub(super) fn subject(&self) -> Subject<'_> {
        let identity = self.identity.as_ref().map(|name| name.as_str());
        Subject { identity, client_id: self.client.as_str(), realm: self.realm }
    }

    /// Whether it is written down: it is to outlive its connection, or was to.
    pub(super) fn is_durable(&self) -> bool {
        self.expiry_secs > 0 || self.stored
    }
}

/// Messages that an empty queue keeps room for.
const ROOM_KEPT: usize = 64;

/// Messages on their way to a client: in flight, then waiting.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// First those that are released, in the order of their PUBREC [MQTT-4.6.0-4]; then the others in the
    /// order in which they were first sent, which is that of their redelivery [MQTT-4.6.0-1].
    pub(super) inflight: VecDeque<Inflight>,
    /// How many of `inflight` were sent on this connection; those behind wait for their turn.
    pub(super) sent: usize,
    /// How many of `inflight` are released.
    pub(super) released: usize,
    /// How many of those have had their PUBREL on this connection, and all before them.
    releases_sent: usize,
    pub(super) queue: VecDeque<Delivery>,
    /// Behind those: what only the store has.
    pub(super) stored: Stored,
    /// Of both.
    pub(super) queue_bytes: usize,
    /// Of what is in flight and in memory.
    pub(super) inflight_bytes: usize,
    next_id: PacketId,
    /// How many identifiers from `next_id` on are not in use.
    free_ids: u16,
    /// The store has been asked under this number; 0: it has not.
    pub(super) fetching: u64,
    /// That was for what comes next, not for what was sent before.
    pub(super) fetches_next: bool,
    /// Deliveries in the queue that a retained scan put there.
    pub(super) scanned: usize,
    /// How many at the queue's front came back from others.
    returned: usize,
}

#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) packet_id: PacketId,
    pub(super) state: State,
    pub(super) delivery: Delivery,
    /// Sent once, on whatever connection: DUP is set from then on [MQTT-3.3.1-1].
    pub(super) tried: bool,
    /// PUBREC came and could not be written down: PUBREL waits.
    pub(super) unkept: bool,
    /// PUBREL has left on this connection.
    pub(super) pubrel_sent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// PUBLISH is not acknowledged.
    Published,
    /// PUBREC came: PUBREL is sent until PUBCOMP comes.
    Released,
}

impl Outgoing {
    pub(super) fn new() -> Outgoing {
        Outgoing {
            inflight: VecDeque::new(),
            sent: 0,
            released: 0,
            releases_sent: 0,
            queue: VecDeque::new(),
            stored: Stored::default(),
            queue_bytes: 0,
            inflight_bytes: 0,
            next_id: PacketId::FIRST,
            free_ids: 0,
            fetching: 0,
            fetches_next: false,
            scanned: 0,
            returned: 0,
        }
    }

    /// Nothing waits before a message that comes now.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.stored.is_empty() && self.sent == self.inflight.len()
    }

    /// Messages that wait, wherever they lie.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.stored.len()
    }

    /// One more that only the store has.
    pub(super) fn push_stored(&mut self, message: MessageId, size: u32, share: Option<&Arc<str>>) {
        self.queue_bytes += size as usize;
        let position = self.stored.position(message, size, share);
        self.stored.positions.push_back(position);
    }

    /// As a store has it.
    pub(super) fn restore_waiting(&mut self, waiting: Vec<StoredPosition>, shares: Vec<Arc<str>>) {
        self.queue_bytes += waiting.iter().map(|position| position.size as usize).sum::<usize>();
        self.stored = Stored { positions: waiting.into(), shares };
    }

    /// Leaves to the store what it has too: memory is for those who are there. Where something that waits has
    /// to stay, all of that does, and in its order.
    pub(super) fn unload(&mut self, is_answered: impl Fn(Ticket) -> bool) {
        let is_safe = |delivery: &Delivery| delivery.kept && delivery.hold.is_none_or(&is_answered);
        for entry in &mut self.inflight {
            if entry.state == State::Published && is_safe(&entry.delivery) {
                entry.delivery.body = Body::Stored(entry.delivery.message_id());
            }
        }
        if !self.queue.iter().all(is_safe) {
            return;
        }
        while let Some(delivery) = self.queue.pop_back() {
            let position = self.stored.position(delivery.message_id(), delivery.size, delivery.origin.share());
            self.stored.positions.push_front(position);
        }
        (self.scanned, self.returned) = (0, 0);
        self.queue = VecDeque::new();
        self.inflight.shrink_to_fit();
    }

    /// The next that is to be repeated is not in memory.
    pub(super) fn waits_for_a_body(&self) -> bool {
        let next = self.inflight.get(self.sent);
        next.is_some_and(|next| next.state == State::Published && matches!(next.delivery.body, Body::Stored(_)))
    }

    /// What is in memory of what the store has.
    pub(super) fn at_hand(&self) -> Vec<MessageId> {
        let inflight = self.inflight.iter().map(|entry| &entry.delivery);
        inflight.chain(&self.queue).map(Delivery::message_id).collect()
    }

    /// An identifier that is not in use [MQTT-2.2.1-3]. There are fewer in flight than there are
    /// identifiers; those in use are looked through only where a run of free ones ends.
    pub(super) fn free_id(&mut self) -> PacketId {
        while self.free_ids == 0 {
            let ahead = |entry: &Inflight| self.next_id.distance_to(entry.packet_id);
            self.free_ids = self.inflight.iter().map(ahead).min().unwrap_or(u16::MAX);
            if self.free_ids == 0 {
                self.next_id = self.next_id.next();
            }
        }
        let id = self.next_id;
        self.next_id = id.next();
        self.free_ids -= 1;
        id
    }

    /// As a store has it.
    pub(super) fn restore_inflight(&mut self, inflight: VecDeque<Inflight>) {
        self.released = inflight.iter().take_while(|entry| entry.state == State::Released).count();
        self.inflight_bytes = inflight.iter().map(|entry| entry.delivery.size as usize).sum();
        self.inflight = inflight;
    }

    /// Acknowledgements mostly come in order: the first of each kind is looked at first.
    pub(super) fn find(&self, packet_id: PacketId) -> Option<usize> {
        let is_it = |at: &usize| self.inflight.get(*at).is_some_and(|entry| entry.packet_id == packet_id);
        let likely = [0, self.released].into_iter().find(is_it);
        likely.or_else(|| self.inflight.iter().position(|entry| entry.packet_id == packet_id))
    }

    /// The message with this identifier, if it waits for this ticket.
    pub(super) fn held_mut(&mut self, packet_id: PacketId, ticket: Ticket) -> Option<&mut Inflight> {
        self.inflight.iter_mut().find(|entry| entry.packet_id == packet_id && entry.delivery.hold == Some(ticket))
    }

    pub(super) fn remove(&mut self, at: usize) -> Inflight {
        for border in [&mut self.sent, &mut self.released, &mut self.releases_sent] {
            *border -= usize::from(at < *border);
        }
        let entry = self.inflight.remove(at).expect("found in this queue before");
        self.inflight_bytes -= entry.delivery.size as usize;
        entry
    }

    pub(super) fn push_inflight(&mut self, entry: Inflight) {
        self.inflight_bytes += entry.delivery.size as usize;
        self.inflight.push_back(entry);
    }

    /// Whether one more may be under way to a client that takes so many at once. What it does not acknowledge is
    /// kept, in so many bytes at most, but for the last.
    pub(super) fn has_window(&self, window: usize, bytes_max: usize) -> bool {
        self.inflight.len() < window && (self.inflight_bytes == 0 || self.inflight_bytes < bytes_max)
    }

    pub(super) fn push_queue(&mut self, delivery: Delivery) {
        self.queue_bytes += delivery.size as usize;
        self.scanned += usize::from(delivery.origin == Origin::Retained);
        self.queue.push_back(delivery);
    }

    /// Back to where they came from, behind those that came back before.
    pub(super) fn give_back(&mut self, deliveries: Vec<Delivery>) {
        let rest = self.queue.split_off(self.returned.min(self.queue.len()));
        self.returned = self.queue.len() + deliveries.len();
        for delivery in deliveries {
            self.push_queue(delivery);
        }
        self.queue.extend(rest);
    }

    pub(super) fn pop_queue(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.returned = self.returned.saturating_sub(1);
        self.queue_bytes -= delivery.size as usize;
        self.scanned -= usize::from(delivery.origin == Origin::Retained);
        // Many sessions that were once behind are not to keep their room.
        if self.queue.is_empty() && self.queue.capacity() > ROOM_KEPT {
            self.queue = VecDeque::new();
        }
        Some(delivery)
    }

    /// Whether this message waits or is in flight; mostly it came lately.
    pub(super) fn holds(&self, message: MessageId) -> bool {
        let inflight = self.inflight.iter().map(|entry| &entry.delivery);
        self.queue.iter().rev().chain(inflight.rev()).any(|delivery| delivery.message_id() == message)
    }

    /// Whether a retained copy of `topic` waits.
    pub(super) fn holds_retained(&self, topic: Topic<'_>) -> bool {
        let is_it = |delivery: &Delivery| {
            delivery.origin == Origin::Retained
                && matches!(&delivery.body, Body::Here(message) if *message.topic == *topic.as_str())
        };
        self.scanned > 0 && self.queue.iter().any(is_it)
    }

    /// On a new connection everything unacknowledged is sent again [MQTT-4.4.0-1].
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        self.releases_sent = 0;
        self.fetching = 0;
        for entry in &mut self.inflight {
            entry.pubrel_sent = false;
        }
    }

    /// PUBREC came for the message at `found`: only its identifier is needed from here on.
    pub(super) fn release(&mut self, found: usize) {
        let entry = &mut self.inflight[found];
        entry.state = State::Released;
        entry.delivery.body = Body::Stored(entry.delivery.message_id());
        entry.delivery.hold = None;
        self.inflight_bytes -= std::mem::take(&mut entry.delivery.size) as usize;
        if found != self.released {
            let entry = self.inflight.remove(found).expect("looked at above");
            self.inflight.insert(self.released, entry);
        }
        self.released += 1;
    }

    /// PUBREC came again: PUBREL goes again.
    pub(super) fn release_again(&mut self, found: usize) {
        self.inflight[found].pubrel_sent = false;
        self.releases_sent = self.releases_sent.min(found);
    }

    /// The released ones whose PUBREL is still to be sent on this connection, in the order of their PUBREC, as far
    /// as `is_safe` says that they may be; each is taken to be sent.
    pub(super) fn take_releases(&mut self, is_safe: impl Fn(&Inflight) -> bool) -> SmallVec<[PacketId; 8]> {
        let mut taken = SmallVec::new();
        while self.releases_sent < self.released {
            let entry = &mut self.inflight[self.releases_sent];
            if !is_safe(entry) {
                break;
            }
            if !std::mem::replace(&mut entry.pubrel_sent, true) {
                taken.push(entry.packet_id);
            }
            self.releases_sent += 1;
        }
        taken
    }

    /// QoS 0 that waits is for the connection that it was published to, not for the next.
    pub(super) fn drop_qos_0(&mut self) {
        self.remove_queued(|delivery| delivery.qos == QoS::AtMostOnce && !delivery.kept);
    }

    /// Takes out of the queue what waited for a commit that failed.
    pub(super) fn withdraw(&mut self, ticket: Ticket) -> usize {
        let before = self.inflight.len();
        // A publish that is held has not been sent: it lies behind `sent`.
        let bytes = &mut self.inflight_bytes;
        self.inflight.retain(|entry| {
            let stays = entry.state != State::Published || entry.delivery.hold != Some(ticket);
            *bytes -= if stays { 0 } else { entry.delivery.size as usize };
            stays
        });
        before - self.inflight.len() + self.remove_queued(|delivery| delivery.hold == Some(ticket)).len()
    }

    /// Takes what `unwanted` says out of the queue.
    pub(super) fn remove_queued(&mut self, unwanted: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let mut removed = Vec::new();
        let mut returned = self.returned;
        // The order of the rest stays.
        for at in 0..self.queue.len() {
            let delivery = self.queue.pop_front().expect("counted above");
            if unwanted(&delivery) {
                self.queue_bytes -= delivery.size as usize;
                self.scanned -= usize::from(delivery.origin == Origin::Retained);
                returned -= usize::from(at < self.returned);
                removed.push(delivery);
            } else {
                self.queue.push_back(delivery);
            }
        }
        self.returned = returned;
        removed
    }

    /// Takes out what may go to others, in its order: what was not sent, and, if `ends`, QoS 1 that was not
    /// acknowledged. A QoS 2 message that was sent never goes [MQTT-4.8.2-5].
    pub(super) fn take_leaving(&mut self, ends: bool, may_go: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let mut leaving = Vec::new();
        let mut at = 0;
        while let Some(entry) = self.inflight.get(at) {
            let open = !entry.tried || (ends && entry.delivery.qos == QoS::AtLeastOnce);
            if entry.state == State::Published && open && may_go(&entry.delivery) {
                leaving.push(self.remove(at).delivery);
            } else {
                at += 1;
            }
        }
        leaving.extend(self.remove_queued(may_go));
        leaving
    }
}

/// Messages of a queue that only the store has, in its order.
#[derive(Debug, Default)]
pub(super) struct Stored {
    positions: VecDeque<StoredPosition>,
    /// The shared subscriptions that brought some.
    shares: Vec<Arc<str>>,
}

impl StoredPosition {
    fn share<'s>(&self, shares: &'s [Arc<str>]) -> Option<&'s Arc<str>> {
        self.share.checked_sub(1).map(|at| &shares[at as usize])
    }
}

impl Stored {
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    pub(super) fn shares(&self) -> &[Arc<str>] {
        &self.shares
    }

    fn position(&mut self, message: MessageId, size: u32, share: Option<&Arc<str>>) -> StoredPosition {
        let Some(share) = share else { return StoredPosition { message, size, share: 0 } };
        let at = self.shares.iter().position(|known| known == share).unwrap_or_else(|| {
            self.shares.push(share.clone());
            self.shares.len() - 1
        });
        StoredPosition { message, size, share: at as u32 + 1 }
    }

    fn is_of(&self, position: &StoredPosition, share: Option<&Arc<str>>) -> bool {
        position.share(&self.shares) == share
    }

    fn left(&mut self) {
        if self.positions.is_empty() {
            *self = Stored::default();
        }
    }
}

impl Outgoing {
    /// Takes out what was found at a place, if anything was.
    fn take_position(&mut self, found: Option<usize>) -> Option<MessageId> {
        let position = self.stored.positions.remove(found?)?;
        self.queue_bytes -= position.size as usize;
        self.stored.left();
        Some(position.message)
    }

    /// The first that only the store has is to be dropped.
    pub(super) fn pop_stored(&mut self) -> Option<MessageId> {
        self.take_position(Some(0))
    }

    /// Not the store alone has this any more: it is at hand. Mostly it is the first.
    pub(super) fn remove_stored(&mut self, message: MessageId, share: Option<&Arc<str>>) -> bool {
        let is_it = |position: &StoredPosition| position.message == message && self.stored.is_of(position, share);
        let found = self.stored.positions.iter().position(is_it);
        self.take_position(found).is_some()
    }

    /// The store has this not, and nobody else has it: the latest copy, for an older one is safe.
    fn withdraw_stored(&mut self, message: MessageId) -> bool {
        let found = self.stored.positions.iter().rposition(|position| position.message == message);
        self.take_position(found).is_some()
    }

    /// These copies are in memory alone; how many of them are not even there.
    pub(super) fn not_kept(&mut self, message: MessageId) -> usize {
        let inflight = self.inflight.iter_mut().map(|entry| &mut entry.delivery);
        let copies = inflight.chain(&mut self.queue).filter(|delivery| delivery.message_id() == message);
        copies.for_each(|delivery| delivery.kept &= delivery.origin != Origin::Retained);
        usize::from(self.withdraw_stored(message))
    }

    /// This could not be kept; how many copies of it are gone. Mostly it came lately.
    pub(super) fn withdraw_kept(&mut self, message: MessageId) -> usize {
        let is_it = |delivery: &Delivery| delivery.message_id() == message;
        if self.withdraw_stored(message) {
            return 1;
        }
        let waits = self.queue.iter().rev().any(is_it);
        if waits { self.remove_queued(is_it).len() } else { 0 }
    }

    /// Whether this waits where only the store has it; mostly it came lately.
    pub(super) fn has_stored(&self, message: MessageId, share: Option<&Arc<str>>) -> bool {
        let mut latest_first = self.stored.positions.iter().rev();
        latest_first.any(|position| position.message == message && self.stored.is_of(position, share))
    }

    /// Takes out all that a shared subscription brought.
    pub(super) fn drop_stored_of(&mut self, share: &Arc<str>) -> Vec<MessageId> {
        let Stored { positions, shares } = &mut self.stored;
        let (mut dropped, mut bytes) = (Vec::new(), 0);
        positions.retain(|position| {
            let goes = position.share(shares) == Some(share);
            if goes {
                dropped.push(position.message);
                bytes += position.size as usize;
            }
            !goes
        });
        self.queue_bytes -= bytes;
        self.stored.left();
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;

    fn inflight(packet_id: u16) -> Inflight {
        let topic = Topic::from_parsed("t");
        let body =
            Message::new(MessageId(1), topic, Default::default(), Default::default(), QoS::AtLeastOnce, None, None);
        Inflight {
            packet_id: PacketId::new(packet_id).unwrap(),
            state: State::Published,
            delivery: Delivery {
                body: Body::Here(Arc::new(body)),
                qos: QoS::AtLeastOnce,
                retain: false,
                kept: false,
                identifiers: Default::default(),
                hold: None,
                origin: Origin::Live,
                published: QoS::AtLeastOnce,
                size: 1,
            },
            tried: true,
            unkept: false,
            pubrel_sent: false,
        }
    }

    /// [MQTT-2.2.1-3]
    #[test]
    fn an_identifier_in_use_is_passed_over_round_after_round() {
        let mut outgoing = Outgoing::new();
        outgoing.inflight.extend([1, 2, 700, 65_535].map(inflight));
        for _ in 0..3 {
            let mut given: Vec<u16> = (0..65_531).map(|_| outgoing.free_id().value()).collect();
            given.sort_unstable();
            let free: Vec<u16> = (1..=u16::MAX).filter(|id| ![1, 2, 700, 65_535].contains(id)).collect();
            assert!(given == free);
        }
        outgoing.inflight.clear();
        let given: std::collections::BTreeSet<u16> = (0..65_535).map(|_| outgoing.free_id().value()).collect();
        assert_eq!(given.len(), 65_535);
    }
}
