//! Shared subscriptions (MQTT 5 section 4.8.2): who gets a message, and who gets it when its member
//! goes.

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::change::{Change, QueuedFor};
use super::commit::Waiting;
use super::index::{Elsewhere, Group, Member, Subscriber};
use super::letter::{Content, Handed, Move};
use super::message::{Body, Delivery, Identifiers, Origin};
use super::outbox::Outbox;
use super::route::{Scratch, Target};
use super::session::Session;
use crate::auth::{Acl, Operation, Subject};
use crate::types::{ClientId, Filter, QoS, Topic};

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
        let (sessions, connections, acl) = (&self.sessions, &self.connections, &self.acl);
        let Scratch { matches, targets, elsewhere, .. } = scratch;
        self.index.groups(topic, matches, |group| {
            let rank = |member: &Member| rank_for(member, topic, acl, sessions, connections);
            let chosen = choose(group, |member| Some(rank(member))).expect("a group has members");
            let member = &group.members[chosen];
            match &member.elsewhere {
                None => targets.push(Target::new(&member.subscriber, Origin::Shared(group.filter.clone()))),
                Some(there) => elsewhere.push(Handed::new(there, &group.filter)),
            }
        });
    }

    /// Chooses a member of one shared subscription of this shard for a message that has none.
    pub(super) fn choose_in(&mut self, filter: &str, topic: Topic<'_>, scratch: &mut Scratch) {
        let (sessions, connections, acl) = (&self.sessions, &self.connections, &self.acl);
        let Some(group) = self.index.group_mut(Filter::from_parsed(filter)) else { return };
        let rank = |member: &Member| rank_for(member, topic, acl, sessions, connections);
        let Some(chosen) = choose(group, |member| Some(rank(member))) else { return };
        let member = &group.members[chosen];
        match &member.elsewhere {
            None => scratch.targets.push(Target::new(&member.subscriber, Origin::Shared(group.filter.clone()))),
            Some(there) => scratch.elsewhere.push(Handed::new(there, &group.filter)),
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
        let moves: Vec<Move> = leaving
            .into_iter()
            .map(|(delivery, packet_id)| Move::new(session, delivery, packet_id, durable, departure))
            .collect();
        let mut stay = Vec::new();
        for mut moved in moves {
            let hold = moved.hold.take();
            let held = hold.filter(|ticket| self.waiting.get(ticket).is_some_and(|waiting| !waiting.iter().any(is_id)));
            let is_home = self.is_home(&moved.share);
            if departure == Departure::Ended && (held.is_some() || !is_home) {
                self.keep_for_group(&mut moved, out);
            }
            if let Some(ticket) = held {
                self.wait(ticket, Waiting::Move(Box::new(moved)));
            } else if is_home {
                stay.extend(self.find_new_member(now, moved, out));
            } else {
                self.tell(now, self.home(&moved.share), Content::Move(Box::new(moved)), out);
            }
        }
        for moved in stay.into_iter().rev() {
            self.give_back(now, moved, out);
        }
    }

    /// The session ends before its message has another: meanwhile it lies in the store for the group.
    fn keep_for_group(&mut self, moved: &mut Move, out: &mut impl Outbox) {
        let Some(from) = moved.kept_for.take() else { return };
        let group = group_as_client(&moved.share);
        let to = QueuedFor {
            client: group.clone(),
            qos: moved.published,
            packet_id: None,
            retain: false,
            subscription_identifiers: Vec::new(),
            shared: Some(moved.share.clone()),
        };
        moved.kept_for = Some(group);
        let (message, body, packet_id) = (moved.message, moved.body.clone(), moved.packet_id.take());
        self.persist(vec![Change::Moved { message, body, from, packet_id, to }], out);
    }

    /// Finds another member for a message whose member goes, here or where its group is known.
    pub(super) fn move_on(&mut self, now: Instant, moved: Box<Move>, out: &mut impl Outbox) {
        let home = self.home(&moved.share);
        if home != self.shard() {
            return self.tell(now, home, Content::Move(moved), out);
        }
        if let Some(moved) = self.find_new_member(now, *moved, out) {
            let home = self.home(moved.client.as_str());
            self.tell(now, home, Content::Returned(moved), out);
        }
    }

    /// Nobody else takes it: back to the session that it waited for, if that is still there.
    pub(super) fn give_back(&mut self, now: Instant, mut moved: Box<Move>, out: &mut impl Outbox) {
        let known = self.by_client.get(&moved.client).copied();
        let same = known.filter(|at| self.sessions[*at as usize].serial == moved.session);
        let Some(at) = same.filter(|_| moved.departure != Departure::Ended) else {
            if moved.departure != Departure::Ended {
                // It ended while its message was under way.
                moved.departure = Departure::Ended;
                return self.move_on(now, moved, out);
            }
            self.counters.dropped.nobody_left += 1;
            if let Some(client) = moved.kept_for {
                self.persist(vec![Change::Done { client, message: moved.message, packet_id: moved.packet_id }], out);
            }
            return;
        };
        self.sessions[at as usize].outgoing.push_front(Delivery {
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

    /// Gives a message to another member of a shared subscription that this shard owns; gives it
    /// back if there is none.
    fn find_new_member(&mut self, now: Instant, moved: Move, out: &mut impl Outbox) -> Option<Box<Move>> {
        let (sessions, connections, acl) = (&self.sessions, &self.connections, &self.acl);
        let limits = &self.options.limits;
        let Some(group) = self.index.group_mut(Filter::from_parsed(&moved.share)) else { return Some(Box::new(moved)) };
        let topic = moved.body.as_ref().map(|message| message.topic());
        let chosen = choose(group, |member| {
            let client = match &member.elsewhere {
                None => &sessions[member.subscriber.session as usize].client,
                Some(there) => &there.client,
            };
            let rank = match topic {
                Some(topic) => rank_for(member, topic, acl, sessions, connections),
                None => rank_of(member, sessions, connections),
            };
            let wanted = match moved.departure {
                Departure::Disconnected => rank <= Rank::Busy,
                Departure::Unsubscribed | Departure::Ended => rank < Rank::Denied,
            };
            // One whose session ended is out of the group; if it is in it, it has come again.
            let is_itself = *client == moved.client && moved.departure != Departure::Ended;
            // One that has no room is no better than none.
            let has_room = member.elsewhere.is_some() || {
                let outgoing = &sessions[member.subscriber.session as usize].outgoing;
                outgoing.queue.len() < limits.queued_messages_max
                    && outgoing.queue_bytes + moved.size as usize <= limits.queued_bytes_max
            };
            (!is_itself && wanted && has_room).then_some(rank)
        });
        let Some(chosen) = chosen else { return Some(Box::new(moved)) };
        let member = &group.members[chosen];
        let subscriber = member.subscriber;
        match &member.elsewhere {
            None => self.take_over_message(now, &subscriber, moved, out),
            Some(there) => {
                let (shard, handed) = (there.shard, Handed::new(there, &group.filter));
                let mut moved = moved;
                if moved.departure == Departure::Ended && moved.kept_for.as_ref() == Some(&moved.client) {
                    self.keep_for_group(&mut moved, out);
                }
                self.tell(now, shard, Content::Moved(Box::new(moved), Box::new(handed)), out);
            }
        }
        None
    }

    /// Puts a message that another member did not finish into a session's queue.
    pub(super) fn take_over_message(
        &mut self,
        now: Instant,
        subscriber: &Subscriber,
        moved: Move,
        out: &mut impl Outbox,
    ) {
        let at = subscriber.session;
        let qos = subscriber.qos.min(moved.published);
        let identifiers: Identifiers =
            (subscriber.identifier != 0).then_some(subscriber.identifier).into_iter().collect();
        let done = |client: ClientId| Change::Done { client, message: moved.message, packet_id: moved.packet_id };
        if !self.has_queue_room(at, moved.size as usize, out) {
            if let Some(from) = moved.kept_for {
                self.persist(vec![done(from)], out);
            }
            return;
        }
        let session = &mut self.sessions[at as usize];
        match moved.kept_for {
            None => {}
            Some(from) if qos == QoS::AtMostOnce && moved.body.is_some() => {
                self.persist(vec![done(from)], out);
            }
            Some(from) => {
                // It lies in the store for this session from now on, whether that is one to keep or not.
                session.stored = true;
                let to = QueuedFor {
                    client: session.client.clone(),
                    qos,
                    packet_id: None,
                    retain: false,
                    subscription_identifiers: identifiers.to_vec(),
                    shared: Some(moved.share.clone()),
                };
                let (message, body) = (moved.message, moved.body.clone());
                self.persist(vec![Change::Moved { message, body, from, packet_id: moved.packet_id, to }], out);
            }
        }
        self.sessions[at as usize].outgoing.push_queue(Delivery {
            body: moved.body.map_or(Body::Stored(moved.message), Body::Here),
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
        let session = &self.sessions[at as usize];
        if session.shared_elsewhere.is_empty() {
            return;
        }
        let rank = rank_here(session, &self.connections);
        if rank == session.rank_told {
            return;
        }
        let (client, shares) = (session.client.clone(), session.shared_elsewhere.clone());
        self.sessions[at as usize].rank_told = rank;
        for share in shares {
            let to = self.home(&share);
            self.tell(now, to, Content::Rank { share, client: client.clone(), rank }, out);
        }
    }
}

/// The first of the best, from the one on whose turn it is; `None` is not to be chosen.
fn choose(group: &mut Group, rank: impl Fn(&Member) -> Option<Rank>) -> Option<usize> {
    let count = group.members.len();
    let mut best: Option<(Rank, usize)> = None;
    for at in (0..count).map(|step| (group.turn + step) % count) {
        let Some(rank) = rank(&group.members[at]) else { continue };
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
    Some(chosen)
}

type Connections = [Option<super::connection::Connection>];

fn rank_of(member: &Member, sessions: &slab::Slab<Session>, connections: &Connections) -> Rank {
    match &member.elsewhere {
        Some(there) => there.rank,
        None => rank_here(&sessions[member.subscriber.session as usize], connections),
    }
}

fn rank_for(
    member: &Member,
    topic: Topic<'_>,
    acl: &Acl,
    sessions: &slab::Slab<Session>,
    connections: &Connections,
) -> Rank {
    let subject = match &member.elsewhere {
        Some(there) => {
            Subject { identity: there.identity.as_ref().map(|name| name.as_str()), client_id: there.client.as_str() }
        }
        None => {
            let session = &sessions[member.subscriber.session as usize];
            Subject {
                identity: session.identity.as_ref().map(|name| name.as_str()),
                client_id: session.client.as_str(),
            }
        }
    };
    match acl.check(subject, Operation::Read, topic).allowed {
        true => rank_of(member, sessions, connections),
        false => Rank::Denied,
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

impl Handed {
    fn new(there: &Elsewhere, share: &Arc<str>) -> Handed {
        Handed { shard: there.shard, client: there.client.clone(), share: share.clone() }
    }
}

/// A group as the store knows it while a message of it has no member: no client has such an identifier.
fn group_as_client(share: &str) -> ClientId {
    ClientId::new(&format!("\0{share}")).expect("not empty")
}
