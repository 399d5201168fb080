//! Shared subscriptions (MQTT 5 section 4.8.2): who gets a message, and who gets it when its member
//! goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;

use super::Core;
use super::change::Change;
use super::commit::Waiting;
use super::index::{Group, Member, Subscriber};
use super::letter::{Content, Handed, Move, ShardId};
use super::message::{Body, Delivery, Identifiers, Message, MessageId, Origin};
use super::outbox::Outbox;
use super::route::{Scratch, Target};
use super::session::Session;
use crate::auth::{Acl, Operation, Subject};
use crate::types::{ClientId, Filter, Identity, QoS, Topic};

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
        self.index.groups(topic, matches, |group| {
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
    /// one, or of all).
    pub(super) fn rehome(
        &mut self,
        now: Instant,
        at: u32,
        only: Option<&str>,
        departure: Departure,
        out: &mut impl Outbox,
    ) {
        let session = &self.sessions[at as usize];
        let concerns =
            |delivery: &Delivery| delivery.origin.share().is_some_and(|share| only.is_none_or(|only| **share == *only));
        let any = session.outgoing.queue.iter().any(concerns)
            || session.outgoing.inflight.iter().any(|entry| concerns(&entry.delivery));
        if !any {
            return;
        }
        let shares: BTreeSet<Arc<str>> = {
            let outgoing = &session.outgoing;
            let all = outgoing.inflight.iter().map(|entry| &entry.delivery).chain(&outgoing.queue);
            all.filter(|delivery| concerns(delivery)).filter_map(|delivery| delivery.origin.share().cloned()).collect()
        };
        // Where nobody takes it, it stays where it is.
        let shares: BTreeSet<Arc<str>> = shares
            .into_iter()
            .filter(|share| departure == Departure::Ended || self.has_taker(at, share, departure))
            .collect();
        let concerns = |delivery: &Delivery| delivery.origin.share().is_some_and(|share| shares.contains(share));
        // Its own commit, that is: an identifier that is not written down yet holds nothing back.
        let is_id = |waiting: &Waiting| matches!(waiting, Waiting::Sent(..));
        let waiting = &self.waiting;
        let is_held = |delivery: &Delivery| {
            let waits = delivery.hold.and_then(|ticket| waiting.get(&ticket));
            waits.is_some_and(|waiting| !waiting.iter().any(is_id))
        };
        // What is not safe yet stays, unless there is nobody to stay with.
        let may_go = |delivery: &Delivery| concerns(delivery) && (departure == Departure::Ended || !is_held(delivery));
        let durable = self.options.durable;
        let session = &mut self.sessions[at as usize];
        let leaving = session.outgoing.take_leaving(departure == Departure::Ended, may_go);
        let moves: VecDeque<Box<Move>> = leaving
            .into_iter()
            .map(|(delivery, packet_id)| Box::new(Move::new(session, delivery, packet_id, durable, departure)))
            .collect();
        let mut ready = VecDeque::new();
        for mut moved in moves {
            let hold = moved.hold.take();
            let held = hold.filter(|ticket| self.waiting.get(ticket).is_some_and(|waiting| !waiting.iter().any(is_id)));
            if held.is_some() || moved.body.is_none() || !self.is_home(&moved.share) {
                self.keep_for_group(&mut moved, out);
            }
            match held {
                Some(ticket) => self.wait(ticket, Waiting::Move(moved)),
                None => ready.push_back(moved),
            }
        }
        self.move_all(now, ready, out);
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

    /// Its message is on its way: until it is with another member it lies in the store for the group.
    fn keep_for_group(&mut self, moved: &mut Move, out: &mut impl Outbox) {
        let Some(from) = moved.kept_for.take() else { return };
        let group = group_as_client(&moved.share);
        let to = moved.queued_for(group.clone(), moved.published, Vec::new());
        moved.kept_for = Some(group);
        let (message, body, packet_id) = (moved.message, moved.body.clone(), moved.packet_id.take());
        self.persist(vec![Change::Moved { message, body, from, packet_id, to }], out);
    }

    /// Finds others for messages whose member goes, in their order; what lies only in the store is
    /// brought from there first, in slices.
    pub(super) fn move_all(&mut self, now: Instant, mut moves: VecDeque<Box<Move>>, out: &mut impl Outbox) {
        let mut stay = VecDeque::new();
        while let Some(moved) = moves.pop_front() {
            if moved.body.is_none() {
                moves.push_front(moved);
                let bodiless = moves.iter().filter(|moved| moved.body.is_none()).map(|moved| moved.message);
                let wanted: Vec<MessageId> = bodiless.take(self.options.limits.slice).collect();
                self.next_moving += 1;
                self.moving.insert(self.next_moving, moves);
                out.fetch(&moving_as_client(self.next_moving), &wanted);
                break;
            }
            let home = self.home(&moved.share);
            if home == self.shard() {
                stay.extend(self.find_new_member(now, moved, out));
            } else {
                self.tell(now, home, Content::Move(moved), out);
            }
        }
        self.give_back(now, stay, out);
    }

    /// The store brought what messages on their way say.
    pub(super) fn moving_fetched(
        &mut self,
        now: Instant,
        number: u64,
        messages: Vec<(MessageId, Option<Arc<Message>>)>,
        out: &mut impl Outbox,
    ) {
        let Some(mut moves) = self.moving.remove(&number) else { return };
        let messages: BTreeMap<MessageId, Option<Arc<Message>>> = messages.into_iter().collect();
        let mut lost = 0;
        moves.retain_mut(|moved| match messages.get(&moved.message) {
            Some(Some(message)) => {
                moved.body = Some(message.clone());
                true
            }
            Some(None) => {
                lost += 1;
                false
            }
            None => true,
        });
        self.counters.dropped.store_failed += lost;
        self.move_all(now, moves, out);
    }

    /// Finds another member for a message whose member goes, where its group is known.
    pub(super) fn move_here(&mut self, now: Instant, moved: Box<Move>, out: &mut impl Outbox) {
        if let Some(moved) = self.find_new_member(now, moved, out) {
            let home = self.home(moved.client.as_str());
            self.tell(now, home, Content::Returned(moved), out);
        }
    }

    /// Nobody else takes these: back to the session that they waited for, if that is still there.
    pub(super) fn give_back(&mut self, now: Instant, moves: VecDeque<Box<Move>>, out: &mut impl Outbox) {
        let mut again = VecDeque::new();
        let mut returned: BTreeMap<u32, Vec<Delivery>> = BTreeMap::new();
        for mut moved in moves {
            let known = self.by_client.get(&moved.client).copied();
            let same = known.filter(|at| self.sessions[*at as usize].serial == moved.session);
            let Some(at) = same.filter(|_| moved.departure != Departure::Ended) else {
                if moved.departure == Departure::Ended {
                    self.counters.dropped.nobody_left += 1;
                    self.move_failed(*moved, out);
                } else {
                    // It ended while its message was under way.
                    moved.departure = Departure::Ended;
                    again.push_back(moved);
                }
                continue;
            };
            // Others may have come meanwhile.
            if !self.has_queue_room(at, moved.size as usize, out) {
                self.move_failed(*moved, out);
                continue;
            }
            let client = self.sessions[at as usize].client.clone();
            let from = moved.kept_for.take_if(|kept| *kept != client);
            if let Some(from) = from {
                let to = moved.queued_for(client, moved.qos, moved.identifiers.to_vec());
                let (message, body) = (moved.message, moved.body.clone());
                self.persist(vec![Change::Moved { message, body, from, packet_id: None, to }], out);
            }
            returned.entry(at).or_default().push(Delivery {
                body: moved.body.map_or(Body::Stored(moved.message), Body::Here),
                qos: moved.qos,
                retain: false,
                identifiers: moved.identifiers,
                hold: None,
                origin: Origin::Shared(moved.share),
                published: moved.published,
                size: moved.size,
            });
        }
        for (at, deliveries) in returned {
            self.sessions[at as usize].outgoing.give_back(deliveries);
        }
        if !again.is_empty() {
            self.move_all(now, again, out);
        }
    }

    /// A message on its way ends here: nothing of it stays in the store.
    pub(super) fn move_failed(&mut self, moved: Move, out: &mut impl Outbox) {
        if let Some(client) = moved.kept_for {
            self.persist(vec![Change::Done { client, message: moved.message, packet_id: moved.packet_id }], out);
        }
    }

    /// Gives a message to another member of a shared subscription that this shard owns; gives it
    /// back if there is none.
    fn find_new_member(&mut self, now: Instant, mut moved: Box<Move>, out: &mut impl Outbox) -> Option<Box<Move>> {
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
                    outgoing.queue.len() < limits.queued_messages_max
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
                if moved.kept_for.as_ref() == Some(&moved.client) {
                    self.keep_for_group(&mut moved, out);
                }
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
        let qos = subscriber.qos.min(moved.published);
        let identifiers: Identifiers =
            (subscriber.identifier != 0).then_some(subscriber.identifier).into_iter().collect();
        let has_room = self.has_queue_room(at, moved.size as usize, out);
        if let Some(client) = moved.kept_for.take_if(|_| qos == QoS::AtMostOnce || !has_room) {
            // Sent once, or dropped by a limit: the store is done with it.
            let (message, packet_id) = (moved.message, moved.packet_id);
            self.persist(vec![Change::Done { client, message, packet_id }], out);
        }
        if !has_room {
            return;
        }
        let session = &mut self.sessions[at as usize];
        let durable = self.options.durable && session.is_durable() && qos != QoS::AtMostOnce;
        let to = moved.queued_for(session.client.clone(), qos, identifiers.to_vec());
        let (message, body) = (moved.message, moved.body.clone());
        // What was written down stays so until this session is done with it, whether that is kept or not.
        session.stored |= moved.kept_for.is_some();
        let from = moved.kept_for.or_else(|| durable.then_some(moved.client));
        let change =
            from.map(|from| Change::Moved { message, body: body.clone(), from, packet_id: moved.packet_id, to });
        // One that is not there has it fetched when it comes.
        let lies_there = change.is_some() && session.connection.is_none();
        if let Some(change) = change {
            self.persist(vec![change], out);
        }
        self.sessions[at as usize].outgoing.push_queue(Delivery {
            body: body.filter(|_| !lies_there).map_or(Body::Stored(message), Body::Here),
            qos,
            retain: false,
            identifiers,
            hold: None,
            origin: Origin::Shared(moved.share),
            published: moved.published,
            size: moved.size,
        });
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
        let (identity, rank) = match member {
            Member::Here(at) => {
                let session = &self.sessions[at as usize];
                (&session.identity, rank_here(session, self.connections))
            }
            Member::Elsewhere(at) => {
                let there = &self.elsewheres.known[at as usize];
                (&there.identity, there.rank)
            }
        };
        let identity = identity.as_ref().map(|name| name.as_str());
        let subject = Subject { identity, client_id: self.client(member).as_str() };
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

/// Whom the store answers about messages on their way.
fn moving_as_client(number: u64) -> ClientId {
    ClientId::new(&format!("\0{number}")).expect("not empty")
}

/// The number in [`moving_as_client`], if it is one.
pub(super) fn moving_number(client: &ClientId) -> Option<u64> {
    client.as_str().strip_prefix('\0')?.parse().ok()
}

/// A group as the store knows it while a message of it has no member: no client has such an identifier.
fn group_as_client(share: &str) -> ClientId {
    ClientId::new(&format!("\0{share}")).expect("not empty")
}
