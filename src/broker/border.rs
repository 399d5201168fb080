//! The border between the shards of a broker.
//!
//! Each shard matches its own sessions. Of each other it knows coarsely what it wants (the first
//! levels of its filters) and forwards what that may concern. A shared subscription's members are
//! known to one shard, a retained message lies in one: the one that a keyed hash of the text names.
//! What passes is plain data, a [`Letter`]; a shard's letters are read in the order in which they
//! were sent to it, whoever sent them. Every letter that asks has one answer, and no answer waits for
//! another letter than those of the one who asked: nothing can wait in a circle. Only a client's
//! publishes may wait: see [`Core::must_wait`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::change::{QueuedFor, Ticket};
use super::commit::Waiting;
use super::connection::ConnectionId;
use super::index::{ELSEWHERE, Member, Subscriber};
use super::letter::{Answer, Audience, Content, Handed, Letter, ShardId};
use super::message::{Message, Origin, remaining_secs};
use super::outbox::Outbox;
use super::route::{Incoming, Spread, Target};
use super::shared::Elsewhere;
use crate::types::{ClientId, Filter, PacketId, Topic};

/// Some of a broker's shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ShardSet(u64);

/// The most shards that a broker can have.
pub(super) const SHARDS_MAX: u16 = 64;

impl ShardSet {
    fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..SHARDS_MAX).filter(move |at| self.0 & (1 << at) != 0).map(ShardId)
    }
}

/// First levels that a shard names; those beyond are summed up as "any".
const LEVELS_MAX: usize = 4_096;
/// Publishes of one connection that other shards have not answered for: from here on it is not read.
const FORWARDED_MAX: u32 = 256;

/// What a shard knows of the others.
#[derive(Debug, Default)]
pub(super) struct Border {
    me: ShardId,
    shards: u16,
    /// First levels of the filters of this shard's sessions (`None`: a wildcard).
    mine: BTreeMap<Option<Box<str>>, Level>,
    /// How many of them the others know by name.
    named: usize,
    /// The others, which they know as "any", and when they all know it.
    unnamed: usize,
    any_known: Option<Ticket>,
    /// What the others want, by shard.
    theirs: Vec<BTreeSet<Option<Box<str>>>>,
    next_reference: u64,
    /// Letters that were not answered, and what they are part of.
    asked: BTreeMap<u64, Asked>,
    /// Messages that others have not answered for.
    pending: BTreeMap<u64, Pending>,
    /// Commits of others that copies here wait for.
    foreign: BTreeMap<(ShardId, u64), Ticket>,
}

/// A first level of this shard's filters.
#[derive(Debug)]
struct Level {
    filters: usize,
    is_named: bool,
    /// Done when all others know of it.
    known: Option<Ticket>,
}

#[derive(Debug)]
enum Asked {
    /// A message in `pending`.
    Message(u64),
    /// One part of a ticket.
    Part(Ticket),
}

/// A message that other shards are asked about.
#[derive(Debug)]
struct Pending {
    awaiting: usize,
    connection: Option<ConnectionId>,
    ticket: Option<Ticket>,
    message: Arc<Message>,
    retain: bool,
    /// Its QoS 2 identifier, of this session.
    received: Option<(u64, ClientId, PacketId)>,
    queued: Vec<QueuedFor>,
    retained: bool,
    holders: Vec<(ShardId, u64)>,
}

impl Border {
    pub(super) fn new(me: ShardId, shards: u16) -> Border {
        let shards = shards.clamp(1, SHARDS_MAX);
        Border { me, shards, theirs: vec![BTreeSet::new(); usize::from(shards)], ..Border::default() }
    }

    /// The shard that `text` belongs to.
    pub(super) fn home_of(seed: [u64; 4], shards: u16, text: &str) -> ShardId {
        let [a, b, c, d] = seed;
        let hash = ahash::RandomState::with_seeds(a, b, c, d).hash_one(text);
        ShardId((hash % u64::from(shards.clamp(1, SHARDS_MAX))) as u16)
    }

    pub(super) fn is_alone(&self) -> bool {
        self.shards == 1
    }

    fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let me = self.me;
        (0..self.shards).map(ShardId).filter(move |shard| *shard != me)
    }

    /// The other shards that a message is for: those that may want it, and the one that retains it.
    pub(super) fn recipients(&self, topic: Topic<'_>, retained_at: Option<ShardId>) -> ShardSet {
        let mut found = ShardSet::default();
        if self.is_alone() {
            return found;
        }
        let first = topic.levels().next().map(Box::from);
        for shard in self.others() {
            let wants = &self.theirs[usize::from(shard.0)];
            if retained_at == Some(shard) || wants.contains(&None) || wants.contains(&first) {
                found.insert(shard);
            }
        }
        found
    }

    fn reference(&mut self, asked: Asked) -> u64 {
        self.next_reference += 1;
        self.asked.insert(self.next_reference, asked);
        self.next_reference
    }
}

fn first_level(filter: Filter<'_>) -> Option<Box<str>> {
    filter.levels().next().filter(|level| !matches!(*level, "+" | "#")).map(Box::from)
}

impl Core {
    pub(super) fn shard(&self) -> ShardId {
        self.border.me
    }

    /// The shard that a text belongs to: a session by its client id, a retained message by its topic,
    /// a shared subscription by its filter.
    pub(super) fn home(&self, text: &str) -> ShardId {
        if self.border.is_alone() {
            return self.border.me;
        }
        Border::home_of(self.options.seed, self.border.shards, text)
    }

    pub(super) fn is_home(&self, text: &str) -> bool {
        self.home(text) == self.border.me
    }

    pub(super) fn tell(&mut self, now: Instant, to: ShardId, content: Content, out: &mut impl Outbox) {
        if to == self.border.me {
            self.heard(now, to, content, out);
        } else {
            out.tell(to, Letter(content));
        }
    }

    pub(super) fn heard(&mut self, now: Instant, from: ShardId, content: Content, out: &mut impl Outbox) {
        match content {
            Content::Publish { reference, message, retain, to, settles } => {
                let answer = self.route_forwarded(now, (from, reference), &message, retain, to, settles, out);
                self.tell(now, from, Content::Routed { reference, answer: Box::new(answer) }, out);
            }
            Content::Routed { reference, answer } => self.routed(now, from, reference, *answer, out),
            Content::Settled { reference, kept } => {
                if let Some(ticket) = self.border.foreign.remove(&(from, reference)) {
                    match kept {
                        true => self.committed(now, ticket, out),
                        false => self.failed(now, ticket, out),
                    }
                }
            }
            Content::Interest { reference, level, wanted } => {
                let theirs = &mut self.border.theirs[usize::from(from.0)];
                if wanted {
                    theirs.insert(level);
                    self.tell(now, from, Content::Ready { reference }, out);
                } else {
                    theirs.remove(&level);
                }
            }
            Content::Join { reference, share, subscriber, member } => {
                let filter = Filter::from_parsed(&share);
                let member = self.elsewheres.meet(*member);
                let is_new = self.index.join(filter, Member::Elsewhere(member), subscriber);
                let ready = Content::Ready { reference };
                let known = match is_new {
                    true => {
                        self.elsewheres.joined(member);
                        self.want(now, filter, out)
                    }
                    false => self.all_know(filter),
                };
                match known {
                    None => self.tell(now, from, ready, out),
                    Some(ticket) => self.wait(ticket, Waiting::Tell(from, Box::new(ready))),
                }
            }
            Content::Leave { share, client } => {
                let filter = Filter::from_parsed(&share);
                let Some(member) = self.elsewheres.find(&client) else { return };
                if self.index.leave(filter, Member::Elsewhere(member)) {
                    self.elsewheres.left(member);
                    self.unwant(now, filter, out);
                }
            }
            Content::Ready { reference } => {
                if let Some(Asked::Part(ticket)) = self.border.asked.remove(&reference) {
                    self.part_done(now, ticket, out);
                }
            }
            Content::Rank { client, rank } => self.elsewheres.set_rank(&client, rank),
            Content::Move(moved) => self.move_here(now, moved, out),
            Content::Moved(moved, handed) => match self.member_here(&handed) {
                Some(subscriber) => self.take_over_message(now, &subscriber, *moved, out),
                // It has left meanwhile: its owner knows of others by now.
                None => self.tell(now, self.home(&moved.share), Content::Move(moved), out),
            },
            Content::Returned(moved) => {
                self.give_back(now, [moved].into(), out);
            }
            Content::Drain { share } => self.drain(now, share, out),
            Content::Scan { client, serial, scan } => self.scan_for(now, from, client, serial, scan, out),
            Content::Scanned { client, serial, slice } => self.scanned(now, &client, serial, *slice, out),
        }
    }

    /// Whether a connection's packets should rest: its publishes wait for other shards.
    pub(super) fn waits_for_shards(&self, id: ConnectionId) -> bool {
        self.connection(id).is_some_and(|connection| connection.forwarded >= FORWARDED_MAX)
    }

    // Interests.

    /// A filter more: the others are told where its first level is new. The ticket is done when they
    /// know; `None` if they do already.
    pub(super) fn want(&mut self, now: Instant, filter: Filter<'_>, out: &mut impl Outbox) -> Option<Ticket> {
        if self.border.is_alone() {
            return None;
        }
        let level = first_level(filter);
        if let Some(known) = self.border.mine.get_mut(&level) {
            known.filters += 1;
            return self.all_know(filter);
        }
        let is_named = level.is_some() && self.border.named < LEVELS_MAX;
        let is_news = is_named || self.border.unnamed == 0;
        let known = is_news.then(|| self.announce(now, level.clone().filter(|_| is_named), out));
        match is_named {
            true => self.border.named += 1,
            false => self.border.unnamed += 1,
        }
        if !is_named && is_news {
            self.border.any_known = known;
        }
        self.border.mine.insert(level, Level { filters: 1, is_named, known: known.filter(|_| is_named) });
        self.all_know(filter)
    }

    /// The ticket that is done when all shards forward what `filter` matches; `None` if they do.
    pub(super) fn all_know(&self, filter: Filter<'_>) -> Option<Ticket> {
        let level = self.border.mine.get(&first_level(filter))?;
        let known = if level.is_named { level.known } else { self.border.any_known };
        known.filter(|ticket| self.waiting.contains_key(ticket))
    }

    fn announce(&mut self, now: Instant, level: Option<Box<str>>, out: &mut impl Outbox) -> Ticket {
        let ticket = self.ticket_of(usize::from(self.border.shards) - 1);
        for shard in self.border.others() {
            let reference = self.border.reference(Asked::Part(ticket));
            self.tell(now, shard, Content::Interest { reference, level: level.clone(), wanted: true }, out);
        }
        ticket
    }

    /// A filter less.
    pub(super) fn unwant(&mut self, now: Instant, filter: Filter<'_>, out: &mut impl Outbox) {
        let level = first_level(filter);
        let Some(known) = self.border.mine.get_mut(&level) else { return };
        known.filters -= 1;
        if known.filters > 0 {
            return;
        }
        let is_named = known.is_named;
        self.border.mine.remove(&level);
        match is_named {
            true => self.border.named -= 1,
            false => self.border.unnamed -= 1,
        }
        if is_named || self.border.unnamed == 0 {
            let level = level.filter(|_| is_named);
            for shard in self.border.others() {
                let content = Content::Interest { reference: 0, level: level.clone(), wanted: false };
                self.tell(now, shard, content, out);
            }
        }
    }

    /// A session here takes part in a shared subscription that another shard owns; the ticket is
    /// done when that shard knows.
    pub(super) fn join_elsewhere(
        &mut self,
        now: Instant,
        at: u32,
        share: Filter<'_>,
        known: bool,
        subscriber: Subscriber,
        out: &mut impl Outbox,
    ) -> Ticket {
        let to = self.home(share.as_str());
        let session = &mut self.sessions[at as usize];
        if !known {
            *session.shared_at.entry(to).or_insert(0) += 1;
        }
        let rank = super::shared::rank_here(session, &self.connections);
        session.rank_told = rank;
        let member = Box::new(Elsewhere {
            shard: self.border.me,
            client: session.client.clone(),
            identity: session.identity.clone(),
            realm: session.realm,
            rank,
            memberships: 0,
        });
        let subscriber = Subscriber { session: ELSEWHERE, ..subscriber };
        let ticket = self.ticket_of(1);
        let reference = self.border.reference(Asked::Part(ticket));
        let join = Content::Join { reference, share: share.as_str().into(), subscriber, member };
        self.tell(now, to, join, out);
        ticket
    }

    // Messages.

    /// Sends a message on to the shards that may want it. Its change is written down when all have
    /// said who it waits for there.
    #[expect(clippy::too_many_arguments, reason = "the second half of `route`, its one caller")]
    pub(super) fn forward(
        &mut self,
        now: Instant,
        incoming: &Incoming<'_>,
        spread: Spread,
        retained: bool,
        peers: ShardSet,
        elsewhere: Vec<Handed>,
        out: &mut impl Outbox,
    ) {
        let message = spread.message.unwrap_or_else(|| self.keep(now, incoming));
        self.border.next_reference += 1;
        let pending = self.border.next_reference;
        self.border.pending.insert(
            pending,
            Pending {
                awaiting: 0,
                connection: incoming.connection,
                ticket: spread.ticket,
                message,
                retain: incoming.retain,
                received: incoming.received.map(|packet_id| {
                    let session = &self.sessions[incoming.publisher as usize];
                    (session.serial, session.client.clone(), packet_id)
                }),
                queued: spread.queued,
                retained,
                holders: Vec::new(),
            },
        );
        let everyone = peers.iter().map(|shard| (shard, Audience::Everyone));
        let members = elsewhere.into_iter().map(|handed| (handed.shard, Audience::Member(handed)));
        let letters: Vec<(ShardId, Audience)> = everyone.chain(members).collect();
        self.ask(now, pending, letters, out);
    }

    fn ask(&mut self, now: Instant, pending_at: u64, letters: Vec<(ShardId, Audience)>, out: &mut impl Outbox) {
        let Some(pending) = self.border.pending.get_mut(&pending_at) else { return };
        pending.awaiting += letters.len();
        let (message, retain, settles) = (pending.message.clone(), pending.retain, pending.ticket.is_some());
        let connection = pending.connection;
        if let Some(connection) = connection.and_then(|id| self.connection_mut(id)) {
            connection.forwarded += letters.len() as u32;
        }
        for (shard, to) in letters {
            let reference = self.border.reference(Asked::Message(pending_at));
            let content = Content::Publish { reference, message: message.clone(), retain, to, settles };
            self.tell(now, shard, content, out);
        }
    }

    fn routed(&mut self, now: Instant, from: ShardId, reference: u64, answer: Answer, out: &mut impl Outbox) {
        let Some(Asked::Message(at)) = self.border.asked.remove(&reference) else { return };
        let Some(pending) = self.border.pending.get_mut(&at) else { return };
        pending.awaiting -= 1;
        pending.queued.extend(answer.queued);
        pending.retained |= answer.retained;
        if answer.holds {
            pending.holders.push((from, reference));
        }
        let connection = pending.connection;
        if let Some(connection) = connection.and_then(|id| self.connection_mut(id)) {
            connection.forwarded = connection.forwarded.saturating_sub(1);
        }
        let chosen = answer.chosen.into_iter().map(|handed| (handed.shard, Audience::Member(handed)));
        let again = answer.returned.map(|share| (self.home(&share), Audience::Group(share)));
        let letters: Vec<(ShardId, Audience)> = chosen.chain(again).collect();
        self.ask(now, at, letters, out);
        // Asking can answer at once, where it is this shard that is asked.
        if self.border.pending.get(&at).is_some_and(|pending| pending.awaiting == 0) {
            let pending = self.border.pending.remove(&at).expect("looked at above");
            self.all_answered(now, pending, out);
        }
    }

    /// Every shard has said who the message waits for: it is written down, if it waits for anybody.
    fn all_answered(&mut self, now: Instant, pending: Pending, out: &mut impl Outbox) {
        let Pending { ticket, message, retain, received, queued, retained, holders, .. } = pending;
        let Some(ticket) = ticket else { return };
        let clears = retain && message.payload.is_empty();
        // Where its session has ended meanwhile, the identifier is another's.
        let received = received.and_then(|(serial, client, packet_id)| {
            let at = self.by_client.get(&client)?;
            (self.sessions[*at as usize].serial == serial).then_some((client, packet_id))
        });
        if queued.is_empty() && !retained && !clears && received.is_none() {
            self.settle(now, &holders, true, out);
            return self.committed(now, ticket, out);
        }
        if !holders.is_empty() {
            self.wait_first(ticket, Waiting::Settle(holders));
        }
        let topic: Option<Box<str>> = clears.then(|| message.topic().as_str().into());
        let mut changes = vec![super::Change::Message { message, received, queued, retained }];
        changes.extend(topic.map(|topic| super::Change::RetainedCleared { topic }));
        out.persist(Some(ticket), &changes);
    }

    pub(super) fn settle(&mut self, now: Instant, holders: &[(ShardId, u64)], kept: bool, out: &mut impl Outbox) {
        for (shard, reference) in holders {
            self.tell(now, *shard, Content::Settled { reference: *reference, kept }, out);
        }
    }

    /// Gives a message from another shard to those who want it here.
    #[expect(clippy::too_many_arguments, reason = "a letter taken apart, by its one reader")]
    fn route_forwarded(
        &mut self,
        now: Instant,
        origin: (ShardId, u64),
        message: &Arc<Message>,
        retain: bool,
        to: Audience,
        settles: bool,
        out: &mut impl Outbox,
    ) -> Answer {
        let topic = message.topic();
        let incoming = Incoming {
            topic,
            payload: &message.payload,
            qos: message.qos,
            retain,
            message_expiry_interval_secs: message.expires.map(|at| remaining_secs(at, now)),
            forwarded: &message.forwarded,
            publisher: ELSEWHERE,
            connection: None,
            received: None,
            with: None,
        };
        let mut answer = Answer::default();
        let mut scratch = self.scratch.take().unwrap_or_default();
        let for_everyone = matches!(to, Audience::Everyone);
        match to {
            Audience::Everyone => self.find_targets(&incoming, &mut scratch),
            Audience::Group(share) => self.choose_in(&share, topic, &mut scratch),
            Audience::Member(handed) => match self.member_here(&handed) {
                Some(subscriber) => scratch.targets.push(Target::new(&subscriber, Origin::Shared(handed.share))),
                None => answer.returned = Some(handed.share),
            },
        }
        let ticket = settles.then(|| self.ticket());
        let mut spread = Spread { message: Some(message.clone()), ticket, deferred: settles, queued: Vec::new() };
        if for_everyone && retain && self.is_home(topic.as_str()) {
            answer.retained = self.retain(now, &incoming, &mut spread.message, ticket, out);
        }
        self.deliver_all(now, &incoming, &mut scratch, &mut spread, out);
        answer.chosen = std::mem::take(&mut scratch.elsewhere);
        self.scratch = Some(scratch);
        answer.queued = spread.queued;
        if let Some(ticket) = ticket {
            answer.holds = self.waiting.get(&ticket).is_some_and(|waiting| !waiting.is_empty());
            if answer.holds {
                self.border.foreign.insert(origin, ticket);
            } else {
                self.waiting.remove(&ticket);
            }
        }
        answer
    }

    /// The subscription of a member that was chosen by another shard, if it is still there.
    fn member_here(&self, handed: &Handed) -> Option<Subscriber> {
        let at = *self.by_client.get(&handed.client)?;
        let subscription = self.sessions[at as usize].subscriptions.get(&*handed.share)?;
        Some(Subscriber {
            session: at,
            identifier: subscription.identifier.unwrap_or(0),
            qos: subscription.options.qos,
            no_local: false,
            retain_as_published: subscription.options.retain_as_published,
        })
    }
}
