//! Shared subscriptions (MQTT 5 section 4.8.2): who gets a message, and who gets it when its member
//! goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;

use super::Core;
use super::change::{Change, Fetched, QueuedFor, Wanted};
use super::commit::Waiting;
use super::index::{Group, Member, Subscriber};
use super::letter::{Content, Handed, Move, ShardId};
use super::message::{Body, Delivery, Identifiers, MessageId, Origin};
use super::outbox::Outbox;
use super::route::{Scratch, Target};
use super::session::{Session, State};
use crate::auth::{Acl, Operation, Subject};
use crate::types::{ClientId, Filter, Identity, QoS, Realm, Topic};

/// How well a member can take a message, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) enum Rank {
    /// Nothing waits for it, and its window is open.
    #[default]
    Free,
    /// It is there.
    Busy,
    /// Its session waits for it and is kept.
    Away,
    /// Its session is about to end.
    Leaving,
    /// It may not read the topic: only where there is nobody else.
    Denied,
}

/// A client of another shard that takes part in shared subscriptions of this one.
#[derive(Debug)]
pub(super) struct Elsewhere {
    pub(super) shard: ShardId,
    pub(super) client: ClientId,
    pub(super) identity: Option<Identity>,
    pub(super) realm: Realm,
    /// As its shard said last.
    pub(super) rank: Rank,
    /// In how many of them.
    pub(super) memberships: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Elsewheres {
    known: slab::Slab<Elsewhere>,
    by_client: HashMap<ClientId, u32, ahash::RandomState>,
}

impl Elsewheres {
    pub(super) fn new(hasher: ahash::RandomState) -> Elsewheres {
        Elsewheres { known: slab::Slab::new(), by_client: HashMap::with_hasher(hasher) }
    }

    /// Where `client` is known, newly or not; what is known of it is replaced.
    pub(super) fn meet(&mut self, mut member: Elsewhere) -> u32 {
        match self.by_client.get(&member.client) {
            Some(at) => {
                let known = &mut self.known[*at as usize];
                member.memberships = known.memberships;
                *known = member;
                *at
            }
            None => {
                let client = member.client.clone();
                let at = self.known.insert(member) as u32;
                self.by_client.insert(client, at);
                at
            }
        }
    }

    pub(super) fn find(&self, client: &ClientId) -> Option<u32> {
        self.by_client.get(client).copied()
    }

    pub(super) fn joined(&mut self, at: u32) {
        self.known[at as usize].memberships += 1;
    }

    pub(super) fn left(&mut self, at: u32) {
        let known = &mut self.known[at as usize];
        known.memberships -= 1;
        if known.memberships == 0 {
            let gone = self.known.remove(at as usize);
            self.by_client.remove(&gone.client);
        }
    }

    pub(super) fn set_rank(&mut self, client: &ClientId, rank: Rank) {
        if let Some(at) = self.by_client.get(client) {
            self.known[*at as usize].rank = rank;
        }
    }
}

impl Origin {
    pub(super) fn share(&self) -> Option<&Arc<str>> {
        match self {
            Origin::Shared(filter) => Some(filter),
            Origin::Live | Origin::Retained => None,
        }
    }
}

/// When a member's messages go to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Departure {
    /// It unsubscribed: what was not sent goes to whoever is left, or else to it after all.
    Unsubscribed,
    /// Its connection is gone and its session stays: what was not sent goes to those who are there.
    Disconnected,
    /// Its session ends: what was not sent, and QoS 1 that was not acknowledged.
    Ended,
}

impl Core {
    /// Chooses a member of every shared subscription that was found.
    pub(super) fn choose_members(&mut self, topic: Topic<'_>, scratch: &mut Scratch) {
        let people = People::of(&self.sessions, &self.connections, &self.elsewheres, &self.acl);
        let Scratch { matches, targets, elsewhere, .. } = scratch;
        self.index.groups(matches, |group| {
            let chosen = choose(group, |member| Some(people.rank_for(member, topic))).expect("a group has members");
            match chosen {
                (Member::Here(_), subscriber) => {
                    targets.push(Target::new(&subscriber, Origin::Shared(group.filter.clone())));
                }
                (Member::Elsewhere(there), _) => elsewhere.push(people.hand(there, &group.filter)),
            }
        });
    }

    /// Chooses a member of one shared subscription of this shard for a message that has none.
    pub(super) fn choose_in(&mut self, filter: &str, topic: Topic<'_>, scratch: &mut Scratch) {
        let people = People::of(&self.sessions, &self.connections, &self.elsewheres, &self.acl);
        let Some(group) = self.index.group_mut(Filter::from_parsed(filter)) else { return };
        match choose(group, |member| Some(people.rank_for(member, topic))) {
            Some((Member::Here(_), subscriber)) => {
                scratch.targets.push(Target::new(&subscriber, Origin::Shared(group.filter.clone())));
            }
            Some((Member::Elsewhere(there), _)) => scratch.elsewhere.push(people.hand(there, &group.filter)),
            None => {}
        }
    }

    /// Gives what waits for a member that goes to the others of its shared subscriptions (of `only`
    /// one, or of all). What the store has goes by way of the store: what is left to do when a session ends
    /// is to drain the groups that are returned, once it is written down that it has ended.
    pub(super) fn rehome(
        &mut self,
        now: Instant,
        at: u32,
        only: Option<&str>,
        departure: Departure,
        out: &mut impl Outbox,
    ) -> Vec<Arc<str>> {
        let outgoing = &self.sessions[at as usize].outgoing;
        let all = outgoing.inflight.iter().map(|entry| &entry.delivery).chain(&outgoing.queue);
        let brought_by = all.filter_map(|delivery| delivery.origin.share()).chain(outgoing.stored.shares());
        let shares: BTreeSet<Arc<str>> =
            brought_by.filter(|share| only.is_none_or(|only| ***share == *only)).cloned().collect();
        // Where nobody takes it, it stays where it is.
        let shares: BTreeSet<Arc<str>> = shares
            .into_iter()
            .filter(|share| departure == Departure::Ended || self.has_taker(at, share, departure))
            .collect();
        if shares.is_empty() {
            return Vec::new();
        }
        let concerns = |delivery: &Delivery| delivery.origin.share().is_some_and(|share| shares.contains(share));
        // Its own commit, that is: an identifier that is not written down yet holds nothing back.
        let is_id = |waiting: &Waiting| matches!(waiting, Waiting::Sent(..));
        let waiting = &self.waiting;
        let is_held = |delivery: &Delivery| {
            let waits = delivery.hold.and_then(|ticket| waiting.get(&ticket));
            waits.is_some_and(|waiting| !waiting.iter().any(is_id))
        };
        // What is not safe yet stays, unless there is nobody to stay with.
        let may_go = |delivery: &Delivery| {
            !delivery.kept && concerns(delivery) && (departure == Departure::Ended || !is_held(delivery))
        };
        let session = &mut self.sessions[at as usize];
        let leaving = session.outgoing.take_leaving(departure == Departure::Ended, may_go);
        let moves: VecDeque<Box<Move>> =
            leaving.into_iter().map(|delivery| Box::new(Move::new(session, delivery, departure))).collect();
        let given_up = match departure {
            // Of a QoS 2 message with an identifier the store cannot know that it was never sent.
            Departure::Ended => {
                let entries = session.outgoing.inflight.iter();
                let unsent = entries.filter(|entry| entry.state == State::Published && !entry.tried);
                unsent
                    .map(|entry| &entry.delivery)
                    .filter(|delivery| delivery.kept && concerns(delivery))
                    .cloned()
                    .collect()
            }
            Departure::Unsubscribed | Departure::Disconnected => {
                let may_go = |delivery: &Delivery| delivery.kept && concerns(delivery) && !is_held(delivery);
                session.outgoing.remove_queued(may_go)
            }
        };
        let mut ready = VecDeque::new();
        for mut moved in moves {
            let hold = moved.hold.take();
            match hold.filter(|ticket| self.waiting.get(ticket).is_some_and(|waiting| !waiting.iter().any(is_id))) {
                Some(ticket) => self.wait(ticket, Waiting::Move(moved)),
                None => ready.push_back(moved),
            }
        }
        for share in &shares {
            self.give_up(at, share, departure, &given_up, out);
        }
        self.move_on(now, ready, out);
        shares.into_iter().collect()
    }

    /// What the store has for a session and others shall have goes to their group.
    fn give_up(
        &mut self,
        at: u32,
        share: &Arc<str>,
        departure: Departure,
        given_up: &[Delivery],
        out: &mut impl Outbox,
    ) {
        let of_this = given_up.iter().filter(|delivery| delivery.origin.share() == Some(share));
        let mut messages: Vec<MessageId> = of_this.map(Delivery::message_id).collect();
        let session = &mut self.sessions[at as usize];
        if departure != Departure::Ended {
            messages.extend(session.outgoing.drop_stored_of(share));
        }
        if messages.is_empty() {
            return;
        }
        let client = session.client.clone();
        let change = Change::GivenUp { client, share: share.clone(), messages };
        let ticket = self.persist(&[change], out);
        self.wait(ticket, Waiting::Drain(vec![share.clone()]));
    }

    /// Whether anybody would take a message from this session over, as far as this shard knows.
    fn has_taker(&mut self, at: u32, share: &str, departure: Departure) -> bool {
        if !self.is_home(share) {
            return true;
        }
        let people = People::of(&self.sessions, &self.connections, &self.elsewheres, &self.acl);
        let Some(group) = self.index.group_mut(Filter::from_parsed(share)) else { return false };
        group.members.keys().any(|member| {
            let rank = match member {
                Member::Here(there) => rank_here(&people.sessions[*there as usize], people.connections),
                Member::Elsewhere(there) => people.elsewheres.known[*there as usize].rank,
            };
            *member != Member::Here(at) && departure.suits(rank)
        })
    }

    /// Finds members for what the store has of a shared subscription without one, in slices.
    pub(super) fn drain(&mut self, now: Instant, share: Arc<str>, out: &mut impl Outbox) {
        let home = self.home(&share);
        if home != self.shard() {
            return self.tell(now, home, Content::Drain { share }, out);
        }
        if let Some(again) = self.draining.get_mut(&share) {
            *again = true;
            return;
        }
        let group = group_as_client(&share);
        self.draining.insert(share, false);
        out.fetch(&group, 0, Wanted::Next(self.options.limits.slice));
    }

    /// The store brought messages of a group.
    pub(super) fn drained_from_store(
        &mut self,
        now: Instant,
        share: &str,
        group: &ClientId,
        messages: Vec<Fetched>,
        out: &mut impl Outbox,
    ) {
        let Some((share, again)) = self.draining.remove_entry(share) else { return };
        let again = again || !messages.is_empty();
        for Fetched { id, published, message, .. } in messages {
            let done = Change::Done { client: group.clone(), message: id, packet_id: None };
            let Some(message) = message else {
                self.counters.dropped.store_failed += 1;
                out.persist(None, &[done]);
                continue;
            };
            let moved = Box::new(Move {
                share: share.clone(),
                client: group.clone(),
                session: 0,
                kept_for: Some(group.clone()),
                message: id,
                published,
                size: message.size() as u32,
                body: Some(message),
                departure: Departure::Ended,
                qos: published,
                identifiers: Identifiers::new(),
                hold: None,
            });
            if self.find_new_member(now, moved, out).is_some() {
                self.counters.dropped.nobody_left += 1;
                out.persist(None, &[done]);
            }
        }
        if again {
            self.drain(now, share, out);
        }
    }

    /// Finds others for messages whose member goes, in their order.
    pub(super) fn move_on(&mut self, now: Instant, moves: VecDeque<Box<Move>>, out: &mut impl Outbox) {
        let mut stay = VecDeque::new();
        for moved in moves {
            let home = self.home(&moved.share);
            if home == self.shard() {
                stay.extend(self.find_new_member(now, moved, out));
            } else {
                self.tell(now, home, Content::Move(moved), out);
            }
        }
        self.give_back(now, stay, out);
    }

    /// Finds another member for a message whose member goes, where its group is known.
    pub(super) fn move_here(&mut self, now: Instant, moved: Box<Move>, out: &mut impl Outbox) {
        let Some(moved) = self.find_new_member(now, moved, out) else { return };
        if let Some(group) = moved.kept_for {
            // It came from the store, and nobody is left.
            self.counters.dropped.nobody_left += 1;
            out.persist(None, &[Change::Done { client: group, message: moved.message, packet_id: None }]);
            return;
        }
        let home = self.home(moved.client.as_str());
        self.tell(now, home, Content::Returned(moved), out);
    }

    /// Nobody else takes these: back to the session that they waited for, if that is still there.
    pub(super) fn give_back(&mut self, now: Instant, moves: VecDeque<Box<Move>>, out: &mut impl Outbox) {
        let mut again = VecDeque::new();
        let mut returned: BTreeMap<u32, (Vec<Delivery>, usize)> = BTreeMap::new();
        for mut moved in moves {
            let known = self.by_client.get(&moved.client).copied();
            let same = known.filter(|at| self.sessions[*at as usize].serial == moved.session);
            let Some(at) = same.filter(|_| moved.departure != Departure::Ended) else {
                if moved.departure == Departure::Ended {
                    self.counters.dropped.nobody_left += 1;
                } else {
                    // It ended while its message was under way.
                    moved.departure = Departure::Ended;
                    again.push_back(moved);
                }
                continue;
            };
            // Others may have come meanwhile.
            let (deliveries, bytes) = returned.entry(at).or_default();
            let limits = &self.options.limits;
            let outgoing = &self.sessions[at as usize].outgoing;
            if outgoing.waiting() + deliveries.len() >= limits.queued_messages_max
                || outgoing.queue_bytes + *bytes + moved.size as usize > limits.queued_bytes_max
            {
                self.counters.dropped.queue_full += 1;
                continue;
            }
            *bytes += moved.size as usize;
            deliveries.push(Delivery {
                body: moved.body.map_or(Body::Stored(moved.message), Body::Here),
                qos: moved.qos,
                retain: false,
                kept: false,
                identifiers: moved.identifiers,
                hold: None,
                origin: Origin::Shared(moved.share),
                published: moved.published,
                size: moved.size,
            });
        }
        for (at, (deliveries, _)) in returned {
            self.sessions[at as usize].outgoing.give_back(deliveries);
            self.pump(now, at, out);
        }
        if !again.is_empty() {
            self.move_on(now, again, out);
        }
    }

    /// Gives a message to another member of a shared subscription that this shard owns; gives it
    /// back if there is none.
    fn find_new_member(&mut self, now: Instant, moved: Box<Move>, out: &mut impl Outbox) -> Option<Box<Move>> {
        let people = People::of(&self.sessions, &self.connections, &self.elsewheres, &self.acl);
        let limits = &self.options.limits;
        let Some(group) = self.index.group_mut(Filter::from_parsed(&moved.share)) else { return Some(moved) };
        let Some(message) = &moved.body else { return Some(moved) };
        let chosen = choose(group, |member| {
            let rank = people.rank_for(member, message.topic());
            // One whose session ended is out of the group; if it is in it, it has come again.
            let is_itself = *people.client(member) == moved.client && moved.departure != Departure::Ended;
            // One that has no room is no better than none.
            let has_room = match member {
                Member::Elsewhere(_) => true,
                Member::Here(at) => {
                    let outgoing = &people.sessions[at as usize].outgoing;
                    outgoing.waiting() < limits.queued_messages_max
                        && outgoing.queue_bytes + moved.size as usize <= limits.queued_bytes_max
                }
            };
            (!is_itself && moved.departure.suits(rank) && has_room).then_some(rank)
        });
        match chosen {
            None => return Some(moved),
            Some((Member::Here(_), subscriber)) => self.take_over_message(now, &subscriber, *moved, out),
            Some((Member::Elsewhere(there), _)) => {
                let handed = people.hand(there, &group.filter);
                self.tell(now, handed.shard, Content::Moved(moved, Box::new(handed)), out);
            }
        }
        None
    }

    /// Puts a message that another member did not finish into a session's queue.
    pub(super) fn take_over_message(
        &mut self,
        now: Instant,
        subscriber: &Subscriber,
        mut moved: Move,
        out: &mut impl Outbox,
    ) {
        let at = subscriber.session;
        let qos = self.options.limits.delivered(subscriber.qos, moved.published);
        let identifiers: Identifiers =
            (subscriber.identifier != 0).then_some(subscriber.identifier).into_iter().collect();
        let has_room = self.has_queue_room(at, moved.size as usize, true, out);
        if let Some(client) = moved.kept_for.take_if(|_| qos == QoS::AtMostOnce || !has_room) {
            // Sent once, or dropped by a limit: the store is done with it.
            out.persist(None, &[Change::Done { client, message: moved.message, packet_id: None }]);
        }
        if !has_room {
            return;
        }
        // What was written down stays so until this session is done with it, whether that is kept or not.
        self.sessions[at as usize].stored |= moved.kept_for.is_some();
        let kept = moved.kept_for.is_some() || self.is_kept(&self.sessions[at as usize], qos);
        let at_hand = !kept || !self.leaves_to_store(at);
        let session = &mut self.sessions[at as usize];
        if kept {
            let to = QueuedFor { at_hand, ..moved.queued_for(session.client.clone(), qos, identifiers.to_vec()) };
            let body = if moved.kept_for.is_none() { moved.body.clone() } else { None };
            let from = moved.kept_for.unwrap_or_else(|| group_as_client(&moved.share));
            out.persist(None, &[Change::Moved { message: moved.message, body, from, packet_id: None, to }]);
        }
        let outgoing = &mut self.sessions[at as usize].outgoing;
        if at_hand {
            outgoing.push_queue(Delivery {
                body: moved.body.map_or(Body::Stored(moved.message), Body::Here),
                qos,
                retain: false,
                kept,
                identifiers,
                hold: None,
                origin: Origin::Shared(moved.share),
                published: moved.published,
                size: moved.size,
            });
        } else {
            outgoing.push_stored(moved.message, moved.size, Some(&moved.share));
        }
        self.pump(now, at, out);
    }

    /// Tells the shards that own a session's shared subscriptions how well it can take a message,
    /// when that has changed.
    pub(super) fn tell_rank(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let session = &mut self.sessions[at as usize];
        if session.shared_at.is_empty() {
            return;
        }
        let rank = rank_here(session, &self.connections);
        if std::mem::replace(&mut session.rank_told, rank) == rank {
            return;
        }
        let client = session.client.clone();
        let owners: Vec<ShardId> = session.shared_at.keys().copied().collect();
        for owner in owners {
            self.tell(now, owner, Content::Rank { client: client.clone(), rank }, out);
        }
    }
}

/// The first of the best, from the one on whose turn it is; `None` is not to be chosen.
fn choose(group: &mut Group, rank: impl Fn(Member) -> Option<Rank>) -> Option<(Member, Subscriber)> {
    let count = group.members.len();
    let mut best: Option<(Rank, usize)> = None;
    for at in (0..count).map(|step| (group.turn + step) % count) {
        let Some(rank) = group.members.get_index(at).and_then(|(member, _)| rank(*member)) else { continue };
        if best.is_none_or(|(known, _)| rank < known) {
            best = Some((rank, at));
        }
        if rank == Rank::Free {
            // Nobody is better.
            break;
        }
    }
    let (_, chosen) = best?;
    group.turn = (chosen + 1) % count;
    group.members.get_index(chosen).map(|(member, subscriber)| (*member, *subscriber))
}

type Connections = [Option<super::connection::Connection>];

/// Who members are.
#[derive(Clone, Copy)]
struct People<'a> {
    sessions: &'a slab::Slab<Session>,
    connections: &'a Connections,
    elsewheres: &'a Elsewheres,
    acl: &'a Acl,
}

impl<'a> People<'a> {
    fn of(
        sessions: &'a slab::Slab<Session>,
        connections: &'a Connections,
        elsewheres: &'a Elsewheres,
        acl: &'a Acl,
    ) -> People<'a> {
        People { sessions, connections, elsewheres, acl }
    }

    fn hand(&self, there: u32, share: &Arc<str>) -> Handed {
        let there = &self.elsewheres.known[there as usize];
        Handed { shard: there.shard, client: there.client.clone(), share: share.clone() }
    }

    fn client(&self, member: Member) -> &'a ClientId {
        match member {
            Member::Here(at) => &self.sessions[at as usize].client,
            Member::Elsewhere(at) => &self.elsewheres.known[at as usize].client,
        }
    }

    fn rank_for(&self, member: Member, topic: Topic<'_>) -> Rank {
        let (identity, realm, rank) = match member {
            Member::Here(at) => {
                let session = &self.sessions[at as usize];
                (&session.identity, session.realm, rank_here(session, self.connections))
            }
            Member::Elsewhere(at) => {
                let there = &self.elsewheres.known[at as usize];
                (&there.identity, there.realm, there.rank)
            }
        };
        let identity = identity.as_ref().map(|name| name.as_str());
        let subject = Subject { identity, client_id: self.client(member).as_str(), realm };
        match self.acl.check(subject, Operation::Read, topic).allowed {
            true => rank,
            false => Rank::Denied,
        }
    }
}

pub(super) fn rank_here(session: &Session, connections: &Connections) -> Rank {
    let connection = session.connection.and_then(|id| connections[id.index as usize].as_ref());
    match connection {
        Some(connection) if connection.open && !connection.congested && session.outgoing.is_idle() => {
            // Nothing waits; but a full window cannot take another QoS 1 or 2.
            match session.outgoing.inflight.len() >= usize::from(connection.receive_maximum) {
                true => Rank::Busy,
                false => Rank::Free,
            }
        }
        Some(_) => Rank::Busy,
        None if session.is_durable() => Rank::Away,
        None => Rank::Leaving,
    }
}

impl Departure {
    /// Whether a member that can take a message so well is one for it.
    fn suits(self, rank: Rank) -> bool {
        match self {
            Departure::Disconnected => rank <= Rank::Busy,
            Departure::Unsubscribed | Departure::Ended => rank < Rank::Denied,
        }
    }
}

/// A group as the store knows it while a message of it has no member: no client has such an identifier.
pub(crate) fn group_as_client(share: &str) -> ClientId {
    ClientId::new(&format!("\0{share}")).expect("not empty")
}

/// The shared subscription in [`group_as_client`], if it is one.
pub(super) fn group_of(client: &ClientId) -> Option<&str> {
    client.as_str().strip_prefix('\0')
}
