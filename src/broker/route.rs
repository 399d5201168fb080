//! The way of a message from its publisher to those who want it.

use std::sync::Arc;
use std::time::Instant;

use smallvec::{SmallVec, smallvec};

use bytes::Bytes;

use super::change::{Change, QueuedFor, Ticket};
use super::commit::Waiting;
use super::connection::ConnectionId;
use super::frames::{Alias, Frames, HIDDEN, Shape, View};
use super::index::{Matches, Subscriber};
use super::letter::Handed;
use super::limits::QueuePolicy;
use super::message::{Body, Delivery, Identifiers, Message, MessageId, Origin, Publisher, expires_at};
use super::outbox::{Note, Outbox, Payload};
use super::send::{self, open_connection};
use super::session::{Inflight, Outgoing, Session, State};
use super::{Core, RetainedPending, permitted};
use crate::auth::Operation;
use crate::codec;
use crate::types::{PacketId, QoS, Topic};

/// A message that comes in, borrowed from where it was read.
#[derive(Clone, Debug)]
pub(super) struct Incoming<'a> {
    pub(super) topic: Topic<'a>,
    pub(super) payload: &'a [u8],
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) message_expiry_interval_secs: Option<u32>,
    pub(super) forwarded: &'a [u8],
    /// The session that published it; [`super::index::ELSEWHERE`] where another shard has it.
    pub(super) publisher: u32,
    /// The connection that waits when other shards do not keep up.
    pub(super) connection: Option<ConnectionId>,
    /// Its QoS 2 identifier, to be written down with it.
    pub(super) received: Option<PacketId>,
    /// What is true from then on, of a will: written down with it, or not at all.
    pub(super) with: Option<Change>,
}

/// Room that is used again and again for what finds and reaches a message's receivers.
#[derive(Default, Debug)]
pub(super) struct Scratch {
    pub(super) matches: Matches,
    pub(super) targets: Vec<Target>,
    /// Members of shared subscriptions that other shards have.
    pub(super) elsewhere: Vec<Handed>,
    pub(super) frames: Frames,
}

/// What the broker says of itself is said anew after a restart: it is not written down.
fn is_own(topic: Topic<'_>) -> bool {
    topic.as_str().starts_with("$SYS/")
}

/// A session that a message goes to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) session: u32,
    pub(super) qos: QoS,
    pub(super) retain_as_published: bool,
    pub(super) identifiers: Identifiers,
    pub(super) origin: Origin,
}

impl Target {
    pub(super) fn new(subscriber: &Subscriber, origin: Origin) -> Target {
        Target {
            session: subscriber.session,
            qos: subscriber.qos,
            retain_as_published: subscriber.retain_as_published,
            identifiers: identifiers(subscriber.identifier),
            origin,
        }
    }
}

/// A subscription's identifier, if it has one.
fn identifiers(identifier: u32) -> Identifiers {
    if identifier == 0 { SmallVec::new() } else { smallvec![identifier] }
}

/// What all deliveries of one message have in common.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// The message, once somebody keeps it.
    pub(super) message: Option<Arc<Message>>,
    /// Its commit.
    pub(super) ticket: Option<Ticket>,
    /// The store gets it later than this: no copy at QoS 1 may leave before, or its acknowledgement
    /// could be written down first.
    pub(super) deferred: bool,
    /// The durable sessions that it waits for.
    pub(super) queued: Vec<QueuedFor>,
}

impl Core {
    /// Retains the message where it asks for it and gives it to all who want it. Says whether
    /// anybody may, and what its acknowledgement has to wait for.
    pub(super) fn route(
        &mut self,
        now: Instant,
        incoming: &Incoming<'_>,
        out: &mut impl Outbox,
    ) -> (bool, Option<Ticket>) {
        let mut scratch = self.scratch.take().unwrap_or_default();
        self.find_targets(incoming, &mut scratch);
        let peers = self.border.recipients(incoming.topic, incoming.retain.then(|| self.home(incoming.topic.as_str())));
        let forwards = !peers.is_empty() || !scratch.elsewhere.is_empty();
        let matched = forwards || !scratch.targets.is_empty();
        let deferred = forwards && self.options.durable && (incoming.qos != QoS::AtMostOnce || incoming.retain);
        let ticket = (deferred || self.needs_ticket(incoming, &scratch.targets)).then(|| self.ticket());
        let mut spread = Spread { ticket, deferred, ..Spread::default() };
        let retained = incoming.retain
            && self.is_home(incoming.topic.as_str())
            && self.retain(now, incoming, &mut spread.message, ticket, out);
        self.deliver_all(now, incoming, &mut scratch, &mut spread, out);
        let elsewhere = std::mem::take(&mut scratch.elsewhere);
        self.scratch = Some(scratch);
        if forwards {
            self.forward(now, incoming, spread, retained, peers, elsewhere, out);
        } else if let Some(ticket) = ticket {
            let message = spread.message.unwrap_or_else(|| self.keep(now, incoming));
            let changes = self.changes_of(incoming, message, spread.queued, retained);
            out.persist(Some(ticket), &changes);
        }
        (matched, ticket)
    }

    /// What is written down of a message.
    pub(super) fn changes_of(
        &self,
        incoming: &Incoming<'_>,
        message: Arc<Message>,
        queued: Vec<QueuedFor>,
        retained: bool,
    ) -> SmallVec<[Change; 1]> {
        let received =
            incoming.received.map(|packet_id| (self.sessions[incoming.publisher as usize].client.clone(), packet_id));
        let mut changes =
            smallvec![Change::Message { message, received, queued, retained: retained && !is_own(incoming.topic) }];
        changes.extend(incoming.with.clone());
        // Cleared, or no room for it: what was retained before is not current any more.
        if incoming.retain && !retained && !is_own(incoming.topic) && self.is_home(incoming.topic.as_str()) {
            changes.push(Change::RetainedCleared { topic: incoming.topic.as_str().into() });
        }
        changes
    }

    fn next_message_id(&mut self) -> MessageId {
        let id = MessageId(self.next_message);
        self.next_message += u64::from(self.options.shards.max(1));
        id
    }

    pub(super) fn find_targets(&mut self, incoming: &Incoming<'_>, scratch: &mut Scratch) {
        let topic = incoming.topic;
        self.index.find(topic, &mut scratch.matches);
        let targets = &mut scratch.targets;
        let mut lists = 0;
        self.index.subscribers(&scratch.matches, |list| {
            lists += usize::from(!list.is_empty());
            // [MQTT-3.8.3-3]: no local.
            let wanted =
                list.iter().filter(|subscriber| !(subscriber.no_local && subscriber.session == incoming.publisher));
            targets.extend(wanted.map(|subscriber| Target::new(subscriber, Origin::Live)));
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
        if self.index.has_groups(&scratch.matches) {
            self.choose_members(topic, scratch);
        }
    }

    /// Gives the message to all targets that were found.
    pub(super) fn deliver_all(
        &mut self,
        now: Instant,
        incoming: &Incoming<'_>,
        scratch: &mut Scratch,
        spread: &mut Spread,
        out: &mut impl Outbox,
    ) {
        scratch.frames.reset();
        let mut targets = std::mem::take(&mut scratch.targets);
        for target in targets.drain(..) {
            self.deliver(now, target, incoming, spread, &mut scratch.frames, out);
        }
        scratch.targets = targets;
        scratch.frames.reset();
    }

    /// Whether anything about the message has to survive.
    fn needs_ticket(&self, incoming: &Incoming<'_>, targets: &[Target]) -> bool {
        let durable = |session: u32| self.sessions[session as usize].is_durable();
        self.options.durable
            && ((incoming.retain && !is_own(incoming.topic))
                || (incoming.received.is_some() && durable(incoming.publisher))
                || (self.options.limits.may_keep(incoming.qos)
                    && targets.iter().any(|target| {
                        let session = &self.sessions[target.session as usize];
                        self.is_kept(session, self.options.limits.delivered(target.qos, incoming.qos))
                    })))
    }

    /// Whether a message for a session is written down.
    pub(super) fn is_kept(&self, session: &Session, qos: QoS) -> bool {
        self.options.durable && session.is_durable() && (qos != QoS::AtMostOnce || self.queues_qos_0(session))
    }

    /// Whether QoS 0 waits for a session where that is asked for: nobody is there to take it, or others wait before it
    /// [MQTT-4.6.0-5].
    fn queues_qos_0(&self, session: &Session) -> bool {
        let is_open =
            || session.connection.and_then(|id| self.connection(id)).is_some_and(|connection| connection.open);
        self.options.limits.queues_qos_0 && session.expiry_secs > 0 && (session.outgoing.waiting() > 0 || !is_open())
    }

    pub(super) fn has_room_to_retain(&self, topic: Topic<'_>, payload_len: usize) -> bool {
        let limits = &self.options.limits;
        let (old_count, old_size) = self.retained.get(topic).map_or((0, 0), |old| (1, old.size()));
        self.retained.len() - old_count < limits.retained_messages_max
            && self.retained.bytes() - old_size + topic.as_str().len() + payload_len <= limits.retained_bytes_max
    }

    /// Keeps or clears the topic's retained message [MQTT-3.3.1-5], [MQTT-3.3.1-6]; `true` if one is kept.
    pub(super) fn retain(
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
            // [MQTT-3.3.1-5], [MQTT-3.3.1-7] of 3.1.1: what was retained before is not current any more.
            self.retained.clear(incoming.topic);
            return false;
        }
        let message = match ticket.is_some() || !clears {
            true => Some(self.kept(now, incoming, message)),
            false => None,
        };
        match (ticket, message) {
            // Nobody who subscribes sees it before it is safe.
            (Some(ticket), Some(message)) => {
                let topic: Box<str> = incoming.topic.as_str().into();
                let change = self.next_retained_change;
                self.next_retained_change += 1;
                self.retained_changes.insert(change);
                let none = RetainedPending { changes: 0, done: 0 };
                self.retained_pending.entry(topic.clone()).or_insert(none).changes += 1;
                self.wait(ticket, Waiting::Retain { topic, change, message: (!clears).then_some(message) });
            }
            (None, Some(message)) => self.retained.set(message),
            (_, None) => drop(self.retained.clear(incoming.topic)),
        }
        !clears
    }

    /// A copy of what came in.
    pub(super) fn keep(&mut self, now: Instant, incoming: &Incoming<'_>) -> Arc<Message> {
        let publisher = self.sessions.get_mut(incoming.publisher as usize).filter(|_| incoming.retain);
        let publisher = publisher.map(Session::as_publisher);
        keep(now, incoming, self.next_message_id(), publisher)
    }

    /// The message as all that keep it share it.
    fn kept(&mut self, now: Instant, incoming: &Incoming<'_>, message: &mut Option<Arc<Message>>) -> Arc<Message> {
        if message.is_none() {
            *message = Some(self.keep(now, incoming));
        }
        message.clone().expect("put there above")
    }

    fn deliver(
        &mut self,
        now: Instant,
        target: Target,
        incoming: &Incoming<'_>,
        spread: &mut Spread,
        frames: &mut Frames,
        out: &mut impl Outbox,
    ) {
        // What another shard retains is void once this is on its way; what is here, if it replaces it.
        let voids = incoming.retain || !self.is_home(incoming.topic.as_str());
        let session = &mut self.sessions[target.session as usize];
        if !permitted(&self.acl, self.acl_generation, session, Operation::Read, incoming.topic) {
            return;
        }
        let ticket = spread.ticket;
        let qos = self.options.limits.delivered(target.qos, incoming.qos);
        // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
        let retain = incoming.retain && target.retain_as_published;
        // No copy of an inbound QoS 2 message leaves before its commit.
        let hold = ticket.filter(|_| incoming.qos == QoS::ExactlyOnce || (spread.deferred && qos != QoS::AtMostOnce));
        let session = &self.sessions[target.session as usize];
        let keeps = qos != QoS::AtMostOnce || self.queues_qos_0(session);
        if keeps || session.connection.is_some() {
            self.retained_goes_first(now, target.session, incoming.topic, incoming.retain, out);
        }
        let session = &mut self.sessions[target.session as usize];
        let waits_behind = !incoming.retain && session.outgoing.holds_retained(incoming.topic);
        let connection = open_connection(&mut self.connections, session.connection);
        if qos == QoS::AtMostOnce && hold.is_none() && !waits_behind && !keeps {
            if let Some(connection) = connection {
                let view = View {
                    id: MessageId(0),
                    topic: incoming.topic.as_str(),
                    forwarded: incoming.forwarded,
                    payload: Payload::Borrowed(incoming.payload),
                    remaining_secs: incoming.message_expiry_interval_secs,
                };
                let cut = connection.cut(view.topic);
                let mut shape = Shape {
                    version: connection.version,
                    qos,
                    retain,
                    dup: false,
                    alias: connection.sent_aliases.of(view.topic_from(cut)),
                    cut,
                    identifiers: target.identifiers,
                };
                let max = self.options.limits.backlog_bytes_max;
                if send::write_qos_0(connection, frames, &view, &mut shape, &mut self.counters, max, out) {
                    self.went_past(target.session, incoming.topic, out);
                    if voids {
                        self.needs_no_scan(target.session, incoming.topic);
                    }
                }
            }
            return;
        }
        if !keeps && connection.is_none() {
            return;
        }
        let kept = self.kept(now, incoming, &mut spread.message);
        let message = kept.id;
        let durable = self.is_kept(&self.sessions[target.session as usize], qos);
        let session = &mut self.sessions[target.session as usize];
        let mut queued = durable.then(|| QueuedFor {
            client: session.client.clone(),
            qos,
            packet_id: None,
            retain,
            subscription_identifiers: target.identifiers.to_vec(),
            shared: target.origin.share().cloned(),
            at_hand: true,
        });
        let mut delivery = Delivery {
            size: kept.size() as u32,
            body: Body::Here(kept),
            qos,
            retain,
            kept: durable,
            identifiers: target.identifiers,
            hold,
            origin: target.origin,
            published: incoming.qos,
        };
        let client = session.client.clone();
        let connection = open_connection(&mut self.connections, session.connection);
        let outgoing = &mut session.outgoing;
        let bytes_max = self.options.limits.queued_bytes_max.min(self.options.limits.inflight_bytes_max);
        let sends_now = connection.is_some_and(|connection| {
            qos != QoS::AtMostOnce
                && !connection.congested
                && outgoing.is_idle()
                && outgoing.has_window(usize::from(connection.receive_maximum), bytes_max)
        });
        if sends_now {
            let session = &self.sessions[target.session as usize];
            if self.is_too_large(now, session, &delivery) {
                // [MQTT-3.1.2-25]: as if it had been delivered.
                self.counters.dropped.too_large += 1;
                return;
            }
            // An outgoing QoS 2 PUBLISH waits for its identifier's commit, QoS 1 may leave early.
            if durable && qos == QoS::ExactlyOnce {
                delivery.hold = ticket;
            }
            let outgoing = &mut self.sessions[target.session as usize].outgoing;
            let id = outgoing.free_id();
            if let Some(queued) = &mut queued {
                queued.packet_id = Some(id);
            }
            let held = delivery.hold;
            outgoing.push_inflight(Inflight {
                packet_id: id,
                state: State::Published,
                delivery,
                tried: false,
                unkept: false,
                pubrel_sent: false,
            });
            if let Some(ticket) = held {
                self.wait(ticket, Waiting::Deliveries(client));
            } else {
                self.send_next(now, target.session, frames, out);
            }
        } else {
            // A line for each line of the log that is published would be one more.
            let is_loud = !incoming.topic.as_str().starts_with("$SYS/broker/log/");
            if !self.has_queue_room(target.session, delivery.size as usize, is_loud, out) {
                return;
            }
            let goes_to_store = durable && self.leaves_to_store(target.session);
            let session = &mut self.sessions[target.session as usize];
            if let Some(queued) = queued.as_mut().filter(|_| goes_to_store) {
                queued.at_hand = false;
                session.outgoing.push_stored(message, delivery.size, delivery.origin.share());
                if let Some(ticket) = ticket {
                    self.wait(ticket, Waiting::Stored(client, message));
                }
            } else {
                session.outgoing.push_queue(delivery);
                match (hold, ticket) {
                    (Some(ticket), _) => self.wait(ticket, Waiting::Deliveries(client)),
                    (None, Some(ticket)) => self.wait(ticket, Waiting::Queued(client, message)),
                    (None, None) => {}
                }
            }
            if waits_behind {
                // Nothing may hold back what it waits behind.
                self.pump(now, target.session, out);
            }
        }
        if voids {
            self.needs_no_scan(target.session, incoming.topic);
        }
        if let (true, Some(queued), Some(ticket)) = (spread.deferred, &queued, ticket) {
            let session = self.sessions[target.session as usize].serial;
            self.wait(ticket, Waiting::Deferred { to: Box::new(queued.clone()), session, message });
        }
        spread.queued.extend(queued);
        self.tell_rank(now, target.session, out);
    }

    /// Whether a message could not be sent to the session's client as it is.
    fn is_too_large(&self, now: Instant, session: &Session, delivery: &Delivery) -> bool {
        let Some(connection) = session.connection.and_then(|id| self.connection(id)) else { return false };
        if let Body::Here(message) = &delivery.body
            && connection.cut(&message.topic) == HIDDEN
        {
            return true;
        }
        // Most take everything: nothing is measured for them.
        if connection.packet_size_max == u32::MAX && delivery.size < (codec::PACKET_SIZE_MAX / 2) as u32 {
            return false;
        }
        let Body::Here(message) = &delivery.body else { return false };
        let view = View::of(message, now);
        let cut = connection.cut(view.topic);
        let shape = Shape {
            version: connection.version,
            qos: delivery.qos,
            retain: delivery.retain,
            dup: false,
            alias: match connection.sent_aliases.of(view.topic_from(cut)) {
                Alias::Set(_) => Alias::None,
                other => other,
            },
            cut,
            identifiers: delivery.identifiers.clone(),
        };
        let mut frames = Frames::default();
        let max = (connection.packet_size_max as usize).min(codec::PACKET_SIZE_MAX);
        frames.prepare(&view, &shape).packet_len() > max
    }

    /// A live QoS 0 message was written past what waits: what it replaced is not to come after it.
    fn went_past(&mut self, at: u32, topic: Topic<'_>, out: &mut impl Outbox) {
        let session = &mut self.sessions[at as usize];
        if session.outgoing.scanned == 0 {
            return;
        }
        let voided = session.outgoing.remove_queued(|delivery| {
            delivery.origin == Origin::Retained
                && matches!(&delivery.body, Body::Here(message) if *message.topic == *topic.as_str())
        });
        for delivery in voided {
            self.dropped(at, &delivery, None, out);
        }
    }

    /// Whether what comes now for a durable session is kept by the store alone: its client is not there,
    /// or has as much to take as is kept in memory.
    pub(super) fn leaves_to_store(&self, at: u32) -> bool {
        let session = &self.sessions[at as usize];
        let outgoing = &session.outgoing;
        session.connection.is_none() || !outgoing.stored.is_empty() || outgoing.queue.len() >= self.options.limits.slice
    }

    /// Applies the session's limits to one more message; `false` if it is to be dropped. `is_loud`: the log is to know.
    pub(super) fn has_queue_room(&mut self, at: u32, size: usize, is_loud: bool, out: &mut impl Outbox) -> bool {
        let limits = &self.options.limits;
        let session = &mut self.sessions[at as usize];
        let outgoing = &mut session.outgoing;
        let full = |outgoing: &Outgoing| {
            outgoing.waiting() >= limits.queued_messages_max || outgoing.queue_bytes + size > limits.queued_bytes_max
        };
        if !full(outgoing) {
            return true;
        }
        if is_loud {
            out.note(Note::QueueFull { client: &session.client });
        }
        if limits.queue_policy == QueuePolicy::DropOldest && size <= limits.queued_bytes_max {
            let mut changes = Vec::new();
            while full(outgoing) {
                let client = session.client.clone();
                let kept = match outgoing.pop_queue() {
                    Some(oldest) => oldest.kept.then(|| oldest.message_id()),
                    None => match outgoing.pop_stored() {
                        Some(oldest) => Some(oldest),
                        None => break,
                    },
                };
                changes.extend(kept.map(|message| Change::Done { client, message, packet_id: None }));
                self.counters.dropped.queue_full += 1;
            }
            if !changes.is_empty() {
                out.persist(None, &changes);
            }
            return true;
        }
        self.counters.dropped.queue_full += 1;
        false
    }
}

fn keep(now: Instant, incoming: &Incoming<'_>, id: MessageId, publisher: Option<Arc<Publisher>>) -> Arc<Message> {
    Arc::new(Message {
        id,
        topic: incoming.topic.as_str().into(),
        payload: Bytes::copy_from_slice(incoming.payload),
        forwarded: incoming.forwarded.into(),
        qos: incoming.qos,
        expires: expires_at(now, incoming.message_expiry_interval_secs),
        publisher,
    })
}
