//! The way of a message from its publisher to those who want it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::change::{Change, QueuedFor, Ticket};
use super::commit::Waiting;
use super::connection::{Connection, ConnectionId};
use super::frames::{Frames, View};
use super::index::{Matches, Subscriber};
use super::limits::QueuePolicy;
use super::message::{Body, Delivery, Identifiers, Message, MessageId, expires_at};
use super::outbox::{Note, Outbox, Payload};
use super::session::{Inflight, State};
use super::{Core, Counters, RetainedPending, permitted};
use crate::auth::{Operation, Subject};
use crate::codec::{self, Ack, Packet, PublishFrame};
use crate::types::{PacketId, QoS, ReasonCode, Topic};

/// A message that comes in, borrowed from where it was read.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    pub(super) topic: Topic<'a>,
    pub(super) payload: &'a [u8],
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) message_expiry_interval_secs: Option<u32>,
    pub(super) forwarded: &'a [u8],
    /// The session that published it.
    pub(super) publisher: u32,
    /// Its QoS 2 identifier, to be written down with it.
    pub(super) received: Option<PacketId>,
}

/// Room that is used again and again.
#[derive(Default, Debug)]
pub(super) struct Scratch {
    pub(super) packet: Vec<u8>,
    pub(super) forwarded: Vec<u8>,
    matches: Matches,
    targets: Vec<Target>,
    frames: Frames,
}

/// A session that a message goes to.
#[derive(Debug)]
struct Target {
    session: u32,
    qos: QoS,
    retain_as_published: bool,
    identifiers: Identifiers,
}

impl Target {
    fn new(subscriber: &Subscriber) -> Target {
        Target {
            session: subscriber.session,
            qos: subscriber.qos,
            retain_as_published: subscriber.retain_as_published,
            identifiers: (subscriber.identifier != 0).then_some(subscriber.identifier).into_iter().collect(),
        }
    }
}

impl Core {
    /// Retains the message where it asks for it and gives it to all who want it. Says whether
    /// anybody did, and what its acknowledgement has to wait for.
    pub(super) fn route(
        &mut self,
        now: Instant,
        incoming: &Incoming<'_>,
        out: &mut impl Outbox,
    ) -> (bool, Option<Ticket>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.find_targets(incoming, &mut scratch);
        let matched = !scratch.targets.is_empty();
        let mut message = None;
        let ticket = self.needs_ticket(incoming, &scratch.targets).then(|| self.ticket());
        let retained = incoming.retain && self.retain(now, incoming, &mut message, ticket, out);
        let mut queued = Vec::new();
        scratch.frames.reset();
        let mut targets = std::mem::take(&mut scratch.targets);
        for target in targets.drain(..) {
            self.deliver(now, target, incoming, &mut message, ticket, &mut queued, &mut scratch.frames, out);
        }
        scratch.targets = targets;
        scratch.frames.reset();
        if let Some(ticket) = ticket {
            let received = incoming
                .received
                .map(|packet_id| (self.sessions[incoming.publisher as usize].client.clone(), packet_id));
            let message = message.unwrap_or_else(|| keep(now, incoming, &mut self.next_message));
            let mut changes = vec![Change::Message { message, received, queued, retained }];
            if incoming.retain && incoming.payload.is_empty() {
                changes.push(Change::RetainedCleared { topic: incoming.topic.as_str().into() });
            }
            out.persist(ticket, changes);
        }
        self.scratch = Scratch {
            packet: std::mem::take(&mut self.scratch.packet),
            forwarded: std::mem::take(&mut self.scratch.forwarded),
            ..scratch
        };
        (matched, ticket)
    }

    fn find_targets(&mut self, incoming: &Incoming<'_>, scratch: &mut Scratch) {
        let topic = incoming.topic;
        self.index.find(topic, &mut scratch.matches);
        let targets = &mut scratch.targets;
        let mut lists = 0;
        self.index.subscribers(topic, &scratch.matches, |list| {
            lists += usize::from(!list.is_empty());
            // [MQTT-3.8.3-3]: no local.
            let wanted =
                list.iter().filter(|subscriber| !(subscriber.no_local && subscriber.session == incoming.publisher));
            targets.extend(wanted.map(Target::new));
        });
        if lists > 1 {
            // [MQTT-3.3.4-2]: one copy at the highest QoS, [MQTT-3.3.4-3]: with all identifiers.
            targets.sort_by_key(|target| target.session);
            targets.dedup_by(|later, first| {
                let same = later.session == first.session;
                if same {
                    first.qos = first.qos.max(later.qos);
                    first.retain_as_published |= later.retain_as_published;
                    first.identifiers.append(&mut later.identifiers);
                }
                same
            });
        }
        if self.index.has_groups(topic, &scratch.matches) {
            let (sessions, connections, acl) = (&self.sessions, &self.connections, &self.acl);
            self.index.groups(topic, &scratch.matches, |group| {
                // The first from whose turn it is that can take more; else one that is there; else
                // one whose session waits (section 4.8.2); one that may not read it at the very last.
                let count = group.members.len();
                let rank = |member: &Subscriber| {
                    let session = &sessions[member.session as usize];
                    let subject = Subject {
                        identity: session.identity.as_ref().map(|name| name.as_str()),
                        client_id: session.client.as_str(),
                    };
                    if !acl.check(subject, Operation::Read, topic).allowed {
                        return 4;
                    }
                    let connection = session.connection.and_then(|id| connections[id.index as usize].as_ref());
                    match connection {
                        Some(connection) if connection.open && !connection.congested && session.outgoing.is_idle() => {
                            // Nothing waits; but a full window cannot take another QoS 1 or 2.
                            u8::from(session.outgoing.inflight.len() >= usize::from(connection.receive_maximum))
                        }
                        Some(_) => 1,
                        None if session.is_durable() => 2,
                        None => 3,
                    }
                };
                let chosen = (0..count)
                    .map(|step| (group.turn + step) % count)
                    .min_by_key(|at| rank(&group.members[*at]))
                    .expect("a group has members");
                group.turn = (chosen + 1) % count;
                targets.push(Target::new(&group.members[chosen]));
            });
        }
    }

    /// Whether anything about the message has to survive.
    fn needs_ticket(&self, incoming: &Incoming<'_>, targets: &[Target]) -> bool {
        let durable = |session: u32| self.sessions[session as usize].is_durable();
        self.options.durable
            && (incoming.retain
                || (incoming.received.is_some() && durable(incoming.publisher))
                || (incoming.qos != QoS::AtMostOnce
                    && targets.iter().any(|target| target.qos != QoS::AtMostOnce && durable(target.session))))
    }

    pub(super) fn has_room_to_retain(&self, topic: Topic<'_>, payload_len: usize) -> bool {
        let limits = &self.options.limits;
        let (old_count, old_size) = self.retained.get(topic).map_or((0, 0), |old| (1, old.size()));
        self.retained.len() - old_count < limits.retained_messages_max
            && self.retained.bytes() - old_size + topic.as_str().len() + payload_len <= limits.retained_bytes_max
    }

    /// Keeps or clears the topic's retained message [MQTT-3.3.1-5], [MQTT-3.3.1-6]; `true` if one is kept.
    fn retain(
        &mut self,
        now: Instant,
        incoming: &Incoming<'_>,
        message: &mut Option<Arc<Message>>,
        ticket: Option<Ticket>,
        out: &mut impl Outbox,
    ) -> bool {
        let clears = incoming.payload.is_empty();
        // A will was not checked when it came: what is retained by then decides.
        if !clears && !self.has_room_to_retain(incoming.topic, incoming.payload.len() + incoming.forwarded.len()) {
            self.counters.dropped.retained_full += 1;
            out.note(Note::RetainedFull { topic: incoming.topic.as_str() });
            return false;
        }
        let message = match ticket.is_some() || !clears {
            true => Some(message.get_or_insert_with(|| keep(now, incoming, &mut self.next_message)).clone()),
            false => None,
        };
        match (ticket, message) {
            // Nobody who subscribes sees it before it is safe.
            (Some(ticket), Some(message)) => {
                let topic: Box<str> = incoming.topic.as_str().into();
                let change = message.id;
                let none = RetainedPending { changes: 0, done: MessageId(0) };
                self.retained_pending.entry(topic.clone()).or_insert(none).changes += 1;
                self.wait(ticket, Waiting::Retain { topic, change, message: (!clears).then_some(message) });
            }
            (None, Some(message)) => self.retained.set(message),
            (_, None) => drop(self.retained.clear(incoming.topic)),
        }
        !clears
    }

    #[expect(clippy::too_many_arguments, reason = "the inner loop of a fan-out: one call site, no state of its own")]
    fn deliver(
        &mut self,
        now: Instant,
        target: Target,
        incoming: &Incoming<'_>,
        message: &mut Option<Arc<Message>>,
        ticket: Option<Ticket>,
        queued: &mut Vec<QueuedFor>,
        frames: &mut Frames,
        out: &mut impl Outbox,
    ) {
        let session = &mut self.sessions[target.session as usize];
        if !permitted(&self.acl, self.acl_generation, session, Operation::Read, incoming.topic) {
            return;
        }
        let qos = target.qos.min(incoming.qos);
        // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
        let retain = incoming.retain && target.retain_as_published;
        let connection = open_connection(&mut self.connections, session.connection);
        // No copy of an inbound QoS 2 message leaves before its commit.
        let hold = ticket.filter(|_| incoming.qos == QoS::ExactlyOnce);
        if qos == QoS::AtMostOnce && hold.is_none() {
            if let Some(connection) = connection {
                let view = View {
                    id: MessageId(0),
                    topic: incoming.topic.as_str(),
                    forwarded: incoming.forwarded,
                    payload: Payload::Borrowed(incoming.payload),
                    remaining_secs: incoming.message_expiry_interval_secs,
                };
                let frame = frames.prepare(&view, connection.version, qos, retain, false, &target.identifiers);
                let max = self.options.limits.backlog_bytes_max;
                if write_qos_0(connection, frame, view.payload, &mut self.counters, max, out) {
                    self.went_past(target.session, incoming.topic, out);
                }
            }
            return;
        }
        if qos == QoS::AtMostOnce && connection.is_none() {
            return;
        }
        let next_message = &mut self.next_message;
        let kept = message.get_or_insert_with(|| keep(now, incoming, next_message)).clone();
        let durable = self.options.durable && session.is_durable() && qos != QoS::AtMostOnce;
        let subscription_identifiers = if durable { target.identifiers.to_vec() } else { Vec::new() };
        let mut delivery = Delivery {
            size: kept.size() as u32,
            body: Body::Here(kept),
            qos,
            retain,
            identifiers: target.identifiers,
            hold,
            scanned: false,
        };
        let client = session.client.clone();
        let mut packet_id = None;
        let outgoing = &mut session.outgoing;
        let sends_now = connection.as_ref().is_some_and(|connection| {
            qos != QoS::AtMostOnce
                && !connection.congested
                && outgoing.is_idle()
                && outgoing.inflight.len() < usize::from(connection.receive_maximum)
        });
        if sends_now {
            let connection = connection.expect("sends_now says so");
            let Body::Here(kept) = &delivery.body else { unreachable!("made above") };
            let frame =
                frames.prepare(&View::of(kept, now), connection.version, qos, retain, false, &delivery.identifiers);
            if frame.packet_len() > connection.packet_size_max as usize {
                // [MQTT-3.1.2-25]: as if it had been delivered.
                self.counters.dropped.too_large += 1;
                return;
            }
            // An outgoing QoS 2 PUBLISH waits for its identifier's commit, QoS 1 may leave early.
            if durable && qos == QoS::ExactlyOnce {
                delivery.hold = ticket;
            }
            if !session.scans.is_empty() {
                session.live.note(incoming.topic.as_str());
            }
            let id = outgoing.free_id();
            packet_id = Some(id);
            let held = delivery.hold;
            outgoing.inflight.push_back(Inflight {
                packet_id: id,
                state: State::Published,
                delivery,
                tried: false,
                unkept: false,
            });
            if let Some(ticket) = held {
                self.wait(ticket, Waiting::Deliveries(client.clone()));
            } else {
                self.send_next(now, target.session, frames, out);
            }
        } else {
            if !self.has_queue_room(target.session, delivery.size as usize, out) {
                return;
            }
            let session = &mut self.sessions[target.session as usize];
            if durable && session.connection.is_none() {
                delivery.body = Body::Stored(delivery.message_id());
            }
            if !session.scans.is_empty() {
                session.live.note(incoming.topic.as_str());
            }
            let message = delivery.message_id();
            session.outgoing.push_queue(delivery);
            match (hold, ticket) {
                (Some(ticket), _) => self.wait(ticket, Waiting::Deliveries(client.clone())),
                (None, Some(ticket)) => self.wait(ticket, Waiting::Queued(client.clone(), message)),
                (None, None) => {}
            }
        }
        if durable {
            queued.push(QueuedFor { client, qos, packet_id, retain, subscription_identifiers });
        }
    }

    /// A live QoS 0 message was written past what waits: what is retained of its topic is older, and
    /// is not to come after it.
    fn went_past(&mut self, at: u32, topic: Topic<'_>, out: &mut impl Outbox) {
        let session = &mut self.sessions[at as usize];
        if !session.scans.is_empty() {
            session.live.note(topic.as_str());
        }
        if session.outgoing.scanned == 0 {
            return;
        }
        let voided = session.outgoing.remove_queued(|delivery| {
            delivery.scanned && matches!(&delivery.body, Body::Here(message) if *message.topic == *topic.as_str())
        });
        for delivery in voided {
            self.dropped(at, &delivery, None, out);
        }
    }

    /// Applies the session's limits to one more message; `false` if it is to be dropped.
    fn has_queue_room(&mut self, at: u32, size: usize, out: &mut impl Outbox) -> bool {
        let limits = &self.options.limits;
        let session = &mut self.sessions[at as usize];
        let outgoing = &mut session.outgoing;
        let full = |outgoing: &super::session::Outgoing| {
            outgoing.queue.len() >= limits.queued_messages_max || outgoing.queue_bytes + size > limits.queued_bytes_max
        };
        if !full(outgoing) {
            return true;
        }
        out.note(Note::QueueFull { client: &session.client });
        if limits.queue_policy == QueuePolicy::DropOldest && size <= limits.queued_bytes_max {
            let mut changes = Vec::new();
            while full(outgoing) {
                let Some(oldest) = outgoing.pop_queue() else { break };
                self.counters.dropped.queue_full += 1;
                if oldest.qos != QoS::AtMostOnce {
                    changes.push(Change::Done {
                        client: session.client.clone(),
                        message: oldest.message_id(),
                        packet_id: None,
                    });
                }
            }
            if self.options.durable && session.is_durable() && !changes.is_empty() {
                self.persist(changes, out);
            }
            return true;
        }
        self.counters.dropped.queue_full += 1;
        false
    }

    /// Sends what waits for a session as far as its client can take it: first what is to be
    /// repeated, in its order, then the queue.
    pub(super) fn pump(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let mut frames = std::mem::take(&mut self.scratch.frames);
        frames.reset();
        while self.send_next(now, at, &mut frames, out) {}
        frames.reset();
        self.scratch.frames = frames;
        if let Some(session) = self.sessions.get_mut(at as usize)
            && !session.scans.is_empty()
            && session.connection.is_some()
            && session.outgoing.queue.is_empty()
            && !session.in_scanning
        {
            session.in_scanning = true;
            self.scanning.push_back(at);
        }
    }

    /// One step of [`Core::pump`]; `false` when there is nothing more to do now.
    fn send_next(&mut self, now: Instant, at: u32, frames: &mut Frames, out: &mut impl Outbox) -> bool {
        let Some(session) = self.sessions.get_mut(at as usize) else { return false };
        let Some(connection) = open_connection(&mut self.connections, session.connection) else { return false };
        connection.congested = out.backlog(connection.id) >= self.options.limits.backlog_bytes_max;
        if connection.congested {
            return false;
        }
        let window = usize::from(connection.receive_maximum);
        let outgoing = &mut session.outgoing;
        if let Some(entry) = outgoing.inflight.get_mut(outgoing.sent) {
            let committed = entry.delivery.hold.is_none_or(|ticket| !self.waiting.contains_key(&ticket));
            match (entry.state, &entry.delivery.body) {
                (State::Released, _) if !committed || entry.unkept => {
                    // PUBREL comes when PUBREC is written down; the others need not wait for it.
                }
                (State::Published, Body::Here(message)) if !entry.tried && message.is_expired(now) => {
                    // [MQTT-3.3.2-5]
                    self.counters.dropped.expired += 1;
                    let entry = outgoing.remove(outgoing.sent);
                    self.dropped(at, &entry.delivery, Some(entry.packet_id), out);
                    return true;
                }
                (State::Released, _) => {
                    let mut bytes = Vec::with_capacity(4);
                    let release = Packet::PubRel(Ack::new(entry.packet_id, ReasonCode::Success));
                    codec::encode(&mut bytes, &release, connection.version);
                    out.write(connection.id, &bytes);
                }
                _ if outgoing.sent >= window || !committed => return false,
                (State::Published, Body::Stored(id)) => {
                    if !outgoing.fetching {
                        outgoing.fetching = true;
                        out.fetch(&session.client, &[*id]);
                    }
                    return false;
                }
                (State::Published, Body::Here(message)) => {
                    let view = View::of(message, now);
                    let delivery = &entry.delivery;
                    // [MQTT-3.3.1-1]: DUP on what may have been sent before.
                    let frame = frames.prepare(
                        &view,
                        connection.version,
                        delivery.qos,
                        delivery.retain,
                        entry.tried,
                        &delivery.identifiers,
                    );
                    if frame.packet_len() > connection.packet_size_max as usize {
                        // [MQTT-3.1.2-25]: as if it had been delivered.
                        self.counters.dropped.too_large += 1;
                        let entry = outgoing.remove(outgoing.sent);
                        self.dropped(at, &entry.delivery, Some(entry.packet_id), out);
                        frames.reset();
                        return true;
                    }
                    frame.set_packet_id(entry.packet_id);
                    count_sent(&mut self.counters, delivery.qos, message.payload.len());
                    out.publish(connection.id, frame.bytes(), view.payload);
                    entry.tried = true;
                }
            }
            outgoing.sent += 1;
            return true;
        }
        let Some(front) = outgoing.queue.front() else { return false };
        if front.hold.is_some_and(|ticket| self.waiting.contains_key(&ticket)) {
            return false;
        }
        if front.qos != QoS::AtMostOnce && outgoing.inflight.len() >= window {
            return false;
        }
        let Body::Here(message) = &front.body else {
            if !outgoing.fetching {
                outgoing.fetching = true;
                let wanted = outgoing.stored_front(self.options.limits.slice);
                out.fetch(&session.client, &wanted);
            }
            return false;
        };
        frames.reset();
        if message.is_expired(now) {
            // [MQTT-3.3.2-5]
            self.counters.dropped.expired += 1;
            let delivery = outgoing.pop_queue().expect("looked at above");
            self.dropped(at, &delivery, None, out);
            return true;
        }
        if front.qos == QoS::AtMostOnce {
            let view = View::of(message, now);
            let frame = frames.prepare(&view, connection.version, front.qos, front.retain, false, &front.identifiers);
            write_qos_0(connection, frame, view.payload, &mut self.counters, usize::MAX, out);
            outgoing.pop_queue();
            return true;
        }
        let mut delivery = outgoing.pop_queue().expect("looked at above");
        let packet_id = outgoing.free_id();
        delivery.hold = None;
        let durable = self.options.durable && session.is_durable();
        let outgoing = &mut session.outgoing;
        let (qos, message, client) = (delivery.qos, delivery.message_id(), session.client.clone());
        outgoing.inflight.push_back(Inflight {
            packet_id,
            state: State::Published,
            delivery,
            tried: false,
            unkept: false,
        });
        if durable {
            let ticket = self.persist(vec![Change::Sent { client: client.clone(), message, packet_id }], out);
            if qos == QoS::ExactlyOnce {
                let outgoing = &mut self.sessions[at as usize].outgoing;
                outgoing.inflight.back_mut().expect("pushed above").delivery.hold = Some(ticket);
                self.wait(ticket, Waiting::Sent(client, packet_id));
            }
        }
        true
    }

    /// Tells the store that a session will not send a message.
    fn dropped(&mut self, at: u32, delivery: &Delivery, packet_id: Option<PacketId>, out: &mut impl Outbox) {
        let session = &self.sessions[at as usize];
        if self.options.durable && session.is_durable() && delivery.qos != QoS::AtMostOnce {
            let change = Change::Done { client: session.client.clone(), message: delivery.message_id(), packet_id };
            self.persist(vec![change], out);
        }
    }
}

/// A copy of what came in, for all that keep it.
fn keep(now: Instant, incoming: &Incoming<'_>, next_message: &mut u64) -> Arc<Message> {
    let id = MessageId(*next_message);
    *next_message += 1;
    Arc::new(Message {
        id,
        topic: incoming.topic.as_str().into(),
        payload: Bytes::copy_from_slice(incoming.payload),
        forwarded: incoming.forwarded.into(),
        qos: incoming.qos,
        expires: expires_at(now, incoming.message_expiry_interval_secs),
    })
}

/// The connection, if CONNACK has left on it.
fn open_connection(connections: &mut [Option<Connection>], id: Option<ConnectionId>) -> Option<&mut Connection> {
    connections[id?.index as usize].as_mut().filter(|connection| connection.open)
}

/// Says whether it was written.
fn write_qos_0(
    connection: &Connection,
    frame: &PublishFrame,
    payload: Payload<'_>,
    counters: &mut Counters,
    backlog_bytes_max: usize,
    out: &mut impl Outbox,
) -> bool {
    let size = frame.packet_len();
    if size > connection.packet_size_max as usize {
        counters.dropped.too_large += 1;
        return false;
    }
    let backlog = out.backlog(connection.id);
    if backlog > 0 && backlog.saturating_add(size) > backlog_bytes_max {
        counters.dropped.slow_consumer += 1;
        return false;
    }
    count_sent(counters, QoS::AtMostOnce, payload.as_slice().len());
    out.publish(connection.id, frame.bytes(), payload);
    true
}

fn count_sent(counters: &mut Counters, qos: QoS, payload_len: usize) {
    counters.publishes_sent[usize::from(qos.bits())] += 1;
    counters.publish_bytes_sent[usize::from(qos.bits())] += payload_len as u64;
}
