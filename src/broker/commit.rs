//! What waits for the store, and the order in which acknowledgements leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::change::{Change, Fetched, QueuedFor, Ticket};
use super::connection::{ConnectionId, Held, HeldKind};
use super::letter::{Content, Move, ShardId};
use super::message::{Body, Delivery, Message, MessageId, Origin};
use super::outbox::{Closing, Outbox};
use super::session::Outgoing;
use super::timers::Timer;
use super::violation::Violation;
use super::{Core, dialect};
use crate::codec::{self, Ack, ConnAck, Packet};
use crate::types::{ClientId, PacketId, QoS, ReasonCode, Topic};

/// How long after a failure the store is tried again, if nothing else moves the session.
const RETRY: Duration = Duration::from_secs(1);

/// Who waits for a ticket.
#[derive(Debug)]
pub(super) enum Waiting {
    /// An acknowledgement in this connection's queue.
    Acknowledgement(ConnectionId),
    /// A session with deliveries that must not leave before.
    Deliveries(ClientId),
    /// PUBREL for this identifier.
    Release(ClientId, PacketId),
    /// A queued QoS 2 message's outgoing identifier.
    Sent(ClientId, PacketId),
    /// An inbound QoS 2 identifier: free again if its message could not be kept.
    Inbound(ClientId, PacketId),
    /// A copy that waits in a queue without being held: gone if its message could not be kept.
    Queued(ClientId, MessageId),
    /// A message that the store alone has for this session: it can be fetched from now on.
    Stored(ClientId, MessageId),
    /// Copies of retained messages in a client's queue: if they could not be kept they stay in memory.
    Scanned(ClientId, Vec<MessageId>),
    /// Messages of these shared subscriptions lie in the store without a member.
    Drain(Vec<Arc<str>>),
    /// A copy for a session that the store learns of later than the session: if that is done with it by
    /// then, the store has to be told once more.
    Deferred { to: Box<QueuedFor>, session: u64, message: MessageId },
    /// A topic's retained message: kept (or cleared: `None`) once it is safe.
    Retain { topic: Box<str>, change: u64, message: Option<Arc<Message>> },
    /// It is one part of another ticket.
    Part(Ticket),
    /// Other shards whose copies wait for it.
    Settle(Vec<(ShardId, u64)>),
    /// A letter that is to be sent once it is done.
    Tell(ShardId, Box<Content>),
    /// A message that is to go to another member of its shared subscription.
    Move(Box<Move>),
}

impl Core {
    /// Sends `packet` now, or behind what is held; with a ticket not before its commit.
    pub(super) fn acknowledge(
        &mut self,
        id: ConnectionId,
        kind: HeldKind,
        packet: &Packet<'_>,
        ticket: Option<Ticket>,
        out: &mut impl Outbox,
    ) {
        let Some(connection) = self.connection_mut(id) else { return };
        let (version, packet_size_max) = (connection.version, connection.packet_size_max as usize);
        // [MQTT-3.1.2-29]: only CONNACK and DISCONNECT may explain themselves unasked.
        let explains = connection.wants_reasons || kind == HeldKind::ConnAck;
        let mut bytes = std::mem::take(&mut self.packet_room);
        bytes.clear();
        codec::encode_within(&mut bytes, packet, version, packet_size_max, explains);
        let connection = self.connection_mut(id).expect("found above");
        if bytes.len() > packet_size_max {
            let too_large = Violation::AnswerTooLarge { size: bytes.len(), max: connection.packet_size_max };
            // Heard from in this very turn: acknowledgements answer packets.
            let now = connection.heard;
            self.packet_room = bytes;
            return self.violate(now, id, too_large, out);
        }
        if ticket.is_none() && connection.held.is_empty() {
            if kind == HeldKind::ConnAck {
                connection.open = true;
                connection.before = None;
            }
            out.write(id, &bytes);
        } else {
            if let HeldKind::PubAck(_, QoS::AtLeastOnce) = kind {
                connection.unacknowledged += 1;
            }
            connection.held.push_back(Held { ticket, kind, bytes: SmallVec::from_slice(&bytes) });
            if let Some(ticket) = ticket {
                self.wait(ticket, Waiting::Acknowledgement(id));
            }
        }
        self.packet_room = bytes;
    }

    /// A message that nobody acknowledges waits for the store: so many may, as with those that are.
    pub(super) fn hold_for(&mut self, id: ConnectionId, ticket: Ticket) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.held.push_back(Held { ticket: Some(ticket), kind: HeldKind::Nothing, bytes: SmallVec::new() });
        self.wait(ticket, Waiting::Acknowledgement(id));
    }

    pub(super) fn wait(&mut self, ticket: Ticket, waiting: Waiting) {
        self.waiting.get_mut(&ticket).expect("persisted and not yet answered").push(waiting);
    }

    /// As [`Core::wait`], before all others.
    pub(super) fn wait_first(&mut self, ticket: Ticket, waiting: Waiting) {
        self.waiting.get_mut(&ticket).expect("persisted and not yet answered").insert(0, waiting);
    }

    /// A ticket that is done when `parts` parts of it are.
    pub(super) fn ticket_of(&mut self, parts: usize) -> Ticket {
        let ticket = self.ticket();
        self.parts.insert(ticket, parts);
        ticket
    }

    /// A ticket for all of `tickets`; `None` for none.
    pub(super) fn all_of(&mut self, tickets: &[Ticket]) -> Option<Ticket> {
        match tickets {
            [] => None,
            [one] => Some(*one),
            _ => {
                let all = self.ticket_of(tickets.len());
                for ticket in tickets {
                    self.wait(*ticket, Waiting::Part(all));
                }
                Some(all)
            }
        }
    }

    /// One part of a ticket is done.
    pub(super) fn part_done(&mut self, now: Instant, ticket: Ticket, out: &mut impl Outbox) {
        let Some(left) = self.parts.get_mut(&ticket) else { return };
        *left -= 1;
        if *left == 0 {
            self.parts.remove(&ticket);
            self.committed(now, ticket, out);
        }
    }

    pub(super) fn is_committed(&self, ticket: Option<Ticket>) -> bool {
        ticket.is_none_or(|ticket| !self.waiting.contains_key(&ticket))
    }

    pub(super) fn committed(&mut self, now: Instant, ticket: Ticket, out: &mut impl Outbox) {
        for waiting in self.waiting.remove(&ticket).unwrap_or_default() {
            match waiting {
                Waiting::Acknowledgement(id) => {
                    if let Some(connection) = self.connection_mut(id) {
                        // One of them for each of these: copies that joined have their own.
                        if let Some(held) = connection.held.iter_mut().find(|held| held.ticket == Some(ticket)) {
                            held.ticket = None;
                        }
                        self.release_held(now, id, out);
                    }
                }
                Waiting::Deliveries(client) | Waiting::Sent(client, _) => {
                    if let Some(&session) = self.by_client.get(&client) {
                        self.pump(now, session, out);
                    }
                }
                Waiting::Release(client, _) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        self.send_releases(at, out);
                    }
                }
                Waiting::Inbound(..) | Waiting::Queued(..) | Waiting::Scanned(..) => {}
                Waiting::Stored(client, _) => {
                    if let Some(&session) = self.by_client.get(&client) {
                        self.pump(now, session, out);
                    }
                }
                Waiting::Drain(shares) => shares.into_iter().for_each(|share| self.drain(now, share, out)),
                Waiting::Deferred { to, session, message } => self.deferred_committed(*to, session, message, out),
                Waiting::Retain { topic, change, message } => {
                    self.retain_committed(now, &topic, change, message, out);
                }
                Waiting::Part(of) => self.part_done(now, of, out),
                Waiting::Settle(holders) => self.settle(now, &holders, true, out),
                Waiting::Tell(to, content) => self.tell(now, to, *content, out),
                Waiting::Move(moved) => self.move_on(now, [moved].into(), out),
            }
        }
    }

    /// The store has learnt of a copy later than its session: that may be done with it, or gone.
    fn deferred_committed(&mut self, to: QueuedFor, session: u64, message: MessageId, out: &mut impl Outbox) {
        let at = self.by_client.get(&to.client).map(|at| &self.sessions[*at as usize]);
        let at = at.filter(|at| at.serial == session);
        let holds = |outgoing: &Outgoing| outgoing.holds(message) || outgoing.has_stored(message, to.shared.as_ref());
        if at.is_some_and(|at| holds(&at.outgoing)) {
            return;
        }
        let client = to.client;
        match to.shared.filter(|_| at.is_none() || !to.at_hand) {
            // Others can take it.
            Some(share) => {
                let change = Change::GivenUp { client, share: share.clone(), messages: vec![message] };
                let ticket = self.persist(&[change], out);
                self.wait(ticket, Waiting::Drain(vec![share]));
            }
            None => {
                out.persist(None, &[Change::Done { client, message, packet_id: None }]);
            }
        }
    }

    /// A newer change of the topic that committed before wins.
    fn retain_committed(
        &mut self,
        now: Instant,
        topic: &str,
        change: u64,
        message: Option<Arc<Message>>,
        out: &mut impl Outbox,
    ) {
        let Some(pending) = self.retained_pending.get_mut(topic) else { return };
        let newer_done = pending.done > change;
        pending.done = pending.done.max(change);
        match message {
            _ if newer_done => {}
            Some(message) => self.retained.set(message),
            None => drop(self.retained.clear(Topic::from_parsed(topic))),
        }
        self.retain_answered(now, topic, change, out);
    }

    /// One change of a topic's retained message less to wait for; scans that waited for it go on.
    fn retain_answered(&mut self, now: Instant, topic: &str, change: u64, out: &mut impl Outbox) {
        if let Some(pending) = self.retained_pending.get_mut(topic) {
            pending.changes -= 1;
            if pending.changes == 0 {
                self.retained_pending.remove(topic);
            }
        }
        self.retained_changes.remove(&change);
        self.resume_scans(now, out);
    }

    /// Lets go what is ready at the front of a connection's queue.
    fn release_held(&mut self, now: Instant, id: ConnectionId, out: &mut impl Outbox) {
        let mut opened = false;
        let Some(connection) = self.connection_mut(id) else { return };
        while let Some(held) = connection.held.pop_front_if(|held| held.ticket.is_none()) {
            match held.kind {
                HeldKind::ConnAck => {
                    connection.open = true;
                    connection.before = None;
                    opened = true;
                }
                HeldKind::PubAck(_, QoS::AtLeastOnce) => connection.unacknowledged -= 1,
                _ => {}
            }
            if held.kind != HeldKind::Nothing {
                out.write(id, &held.bytes);
            }
        }
        let session = connection.session;
        if opened {
            self.pump(now, session, out);
        }
    }

    pub(super) fn failed(&mut self, now: Instant, ticket: Ticket, out: &mut impl Outbox) {
        for waiting in self.waiting.remove(&ticket).unwrap_or_default() {
            match waiting {
                // The message is withdrawn before its 0x97 leaves: deliveries were registered first.
                Waiting::Deliveries(client) => {
                    if let Some(&session) = self.by_client.get(&client) {
                        let withdrawn = self.sessions[session as usize].outgoing.withdraw(ticket);
                        self.counters.dropped.store_failed += withdrawn as u64;
                        self.pump(now, session, out);
                    }
                }
                Waiting::Acknowledgement(id) => self.acknowledgement_failed(now, id, ticket, out),
                // Said too early, PUBREL would let a restart send the message again [MQTT-4.3.3-6].
                Waiting::Release(client, packet_id) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        let outgoing = &mut self.sessions[at as usize].outgoing;
                        // Another session may have the identifier by now.
                        if let Some(entry) = outgoing.held_mut(packet_id, ticket) {
                            entry.unkept = true;
                            self.retry_later(now, at);
                        }
                    }
                }
                // The message is safe, only its identifier is not: it goes back to where it was.
                Waiting::Sent(client, packet_id) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        let outgoing = &mut self.sessions[at as usize].outgoing;
                        if outgoing.held_mut(packet_id, ticket).is_some() {
                            let found = outgoing.find(packet_id).expect("found just now");
                            let mut entry = outgoing.remove(found);
                            entry.delivery.hold = None;
                            // Behind those of which it was so before.
                            outgoing.give_back(vec![entry.delivery]);
                            self.retry_later(now, at);
                        }
                    }
                }
                Waiting::Inbound(client, packet_id) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        let received = &mut self.sessions[at as usize].received;
                        if received.get(&packet_id) == Some(&Some(ticket)) {
                            received.remove(&packet_id);
                        }
                        if let Some(id) = self.sessions[at as usize].connection {
                            self.complete(id, packet_id);
                        }
                    }
                }
                Waiting::Queued(client, message) | Waiting::Stored(client, message) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        let withdrawn = self.sessions[at as usize].outgoing.withdraw_kept(message);
                        self.counters.dropped.store_failed += withdrawn as u64;
                    }
                }
                Waiting::Scanned(client, messages) => {
                    if let Some(&at) = self.by_client.get(&client) {
                        let outgoing = &mut self.sessions[at as usize].outgoing;
                        let lost: usize = messages.iter().map(|message| outgoing.not_kept(*message)).sum();
                        self.counters.dropped.store_failed += lost as u64;
                    }
                }
                Waiting::Deferred { .. } => {}
                Waiting::Retain { topic, change, .. } => self.retain_answered(now, &topic, change, out),
                Waiting::Part(of) => {
                    self.parts.remove(&of);
                    self.failed(now, of, out);
                }
                Waiting::Settle(holders) => self.settle(now, &holders, false, out),
                // What others could not note they will learn of again when it is used.
                Waiting::Tell(to, content) => self.tell(now, to, *content, out),
                Waiting::Move(moved) => {
                    self.counters.dropped.store_failed += 1;
                    drop(moved);
                }
                // What only notes that something is over does not fail.
                Waiting::Drain(_) => {}
            }
        }
    }

    /// The store failed: try again in a while, or when something else moves the session.
    fn retry_later(&mut self, now: Instant, at: u32) {
        let session = &mut self.sessions[at as usize];
        if session.retry.is_none() {
            let due = now + RETRY;
            session.retry = Some(due);
            self.timers.set(due, Timer::Retry(at));
        }
    }

    pub(super) fn retry(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let session = &mut self.sessions[at as usize];
        session.retry = None;
        let unkept: Vec<PacketId> =
            session.outgoing.inflight.iter().filter(|entry| entry.unkept).map(|entry| entry.packet_id).collect();
        for packet_id in unkept {
            self.persist_received(at, packet_id, out);
        }
        self.pump(now, at, out);
    }

    fn acknowledgement_failed(&mut self, now: Instant, id: ConnectionId, ticket: Ticket, out: &mut impl Outbox) {
        let Some(connection) = self.connection_mut(id) else { return };
        let (version, size_max) = (connection.version, connection.packet_size_max as usize);
        let explains = connection.wants_reasons;
        let mut close = dialect::closes_on_store_failure(version);
        if let Some(held) = connection.held.iter_mut().find(|held| held.ticket == Some(ticket)) {
            held.ticket = None;
            let mut bytes = Vec::new();
            match held.kind {
                HeldKind::PubAck(packet_id, qos) => {
                    let mut ack = Ack::new(packet_id, ReasonCode::QuotaExceeded);
                    ack.reason_string = Some(super::receive::explain(ack.reason));
                    let packet = if qos == QoS::ExactlyOnce { Packet::PubRec(ack) } else { Packet::PubAck(ack) };
                    codec::encode_within(&mut bytes, &packet, version, size_max, explains);
                }
                HeldKind::ConnAck => {
                    let mut connack = ConnAck::new(ReasonCode::QuotaExceeded);
                    connack.reason_string = Some("the broker has no room to keep the session");
                    codec::encode_within(&mut bytes, &Packet::ConnAck(Box::new(connack)), version, size_max, true);
                    out.write(id, &bytes);
                    close = true;
                }
                HeldKind::PubComp | HeldKind::Other => close = true,
                HeldKind::Nothing => close = false,
            }
            let is_lost = held.kind == HeldKind::Nothing;
            held.bytes = SmallVec::from_vec(bytes);
            self.counters.dropped.store_failed += u64::from(is_lost);
        }
        if close {
            self.finish(now, id, Closing::StoreFailed, out);
        } else {
            self.release_held(now, id, out);
        }
    }

    /// The store brought messages of a queue, or of a group.
    pub(super) fn fetched(
        &mut self,
        now: Instant,
        client: &ClientId,
        number: u64,
        messages: Vec<Fetched>,
        out: &mut impl Outbox,
    ) {
        if let Some(share) = super::shared::group_of(client) {
            return self.drained_from_store(now, share, client, messages, out);
        }
        let Some(&at) = self.by_client.get(client) else { return };
        // Asked on an earlier connection: the store was told to forget that.
        if self.sessions[at as usize].outgoing.fetching != number {
            return;
        }
        let outgoing = &mut self.sessions[at as usize].outgoing;
        outgoing.fetching = 0;
        if messages.is_empty() {
            // Something else has to move the session before it is asked again; but what is to be repeated may
            // have waited for this question.
            match (outgoing.waits_for_a_body(), outgoing.fetches_next) {
                (true, true) => self.fetch_bodies(at, out),
                // It has not been written down yet that it was kept, or was not.
                (true, false) => self.retry_later(now, at),
                (false, _) => {}
            }
            return;
        }
        for fetched in messages {
            self.fetched_one(at, fetched, out);
        }
        self.pump(now, at, out);
    }

    fn fetched_one(&mut self, at: u32, fetched: Fetched, out: &mut impl Outbox) {
        let Fetched { id, to, published, message } = fetched;
        let outgoing = &mut self.sessions[at as usize].outgoing;
        let sent = to.packet_id.and_then(|packet_id| outgoing.find(packet_id));
        // Given to others, or dropped, meanwhile.
        if sent.is_none() && !outgoing.remove_stored(id, to.shared.as_ref()) {
            return;
        }
        let Some(message) = message else {
            // It cannot be read any more.
            self.counters.dropped.store_failed += 1;
            sent.map(|sent| outgoing.remove(sent));
            let change = Change::Done { client: to.client, message: id, packet_id: to.packet_id };
            out.persist(None, &[change]);
            return;
        };
        match sent {
            Some(sent) => outgoing.inflight[sent].delivery.body = Body::Here(message),
            None => outgoing.push_queue(Delivery {
                size: message.size() as u32,
                body: Body::Here(message),
                qos: to.qos,
                retain: to.retain,
                kept: true,
                identifiers: to.subscription_identifiers.into(),
                hold: None,
                origin: to.shared.map_or(Origin::Live, Origin::Shared),
                published,
            }),
        }
    }
}
