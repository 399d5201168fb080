//! What waits for a client leaves as far as the client can take it.

use std::time::Instant;

use super::change::{Change, Wanted};
use super::commit::Waiting;
use super::connection::{Connection, ConnectionId};
use super::frames::{Alias, Frames, HIDDEN, Shape, View};
use super::message::{Body, Delivery};
use super::outbox::Outbox;
use super::session::{Inflight, State};
use super::{Core, Counters};
use crate::codec::{self, Packet, Publish, PublishFrame, PublishProperties};
use crate::types::{ClientId, PacketId, QoS, Topic};

impl Core {
    /// Sends what waits for a session as far as its client can take it: first what is to be
    /// repeated, in its order, then the queue.
    pub(super) fn pump(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        self.send_releases(at, out);
        let mut frames = std::mem::take(&mut self.frames);
        frames.reset();
        while self.send_next(now, at, &mut frames, out) {}
        frames.reset();
        self.frames = frames;
        if let Some(session) = self.sessions.get_mut(at as usize) {
            let outgoing = &session.outgoing;
            let is_there = session.connection.is_some();
            let slice = self.options.limits.slice;
            let scans = !session.scans.is_empty() && is_there && outgoing.waiting() == 0;
            // The next are brought before the last has gone.
            let fetches = is_there && outgoing.fetching == 0 && outgoing.queue.len() <= slice / 2;
            if fetches && !outgoing.stored.is_empty() {
                self.fetch(at, Wanted::Next(slice), out);
            }
            let session = &mut self.sessions[at as usize];
            if scans && !session.in_scanning {
                session.in_scanning = true;
                self.scanning.push_back(at);
            }
            self.tell_rank(now, at, out);
        }
    }

    /// Something of the broker's own for one client, at QoS 0: if it is there, and takes it now.
    pub(super) fn tell_client(&mut self, client: &ClientId, topic: Topic<'_>, text: &str, out: &mut impl Outbox) {
        let session = self.by_client.get(client).and_then(|at| self.sessions.get(*at as usize));
        let id = session.and_then(|session| session.connection);
        let Some(connection) = open_connection(&mut self.connections, id) else { return };
        let backlog_max = self.options.limits.backlog_bytes_max;
        if connection.cut(topic.as_str()) == HIDDEN || out.backlog(connection.id) >= backlog_max {
            return;
        }
        let packet = Packet::Publish(Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: topic.as_str(),
            packet_id: None,
            properties: PublishProperties::default(),
            payload: text.as_bytes(),
        });
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, &packet, connection.version);
        // [MQTT-3.1.2-24]
        if bytes.len() <= connection.packet_size_max as usize {
            out.write(connection.id, &bytes);
        }
    }

    /// Asks the store for messages of a session's queue.
    fn fetch(&mut self, at: u32, wanted: Wanted, out: &mut impl Outbox) {
        self.next_fetch += 1;
        let session = &mut self.sessions[at as usize];
        session.outgoing.fetching = self.next_fetch;
        session.outgoing.fetches_next = matches!(wanted, Wanted::Next(_));
        out.fetch(&session.client, self.next_fetch, wanted);
    }

    /// Asks the store for the bodies of what is to be repeated.
    pub(super) fn fetch_bodies(&mut self, at: u32, out: &mut impl Outbox) {
        let outgoing = &self.sessions[at as usize].outgoing;
        let unsent = outgoing.inflight.iter().skip(outgoing.sent);
        let bodiless = unsent.filter_map(|entry| match entry.delivery.body {
            Body::Stored(id) if entry.state == State::Published => Some((entry.packet_id, id)),
            _ => None,
        });
        let wanted = bodiless.take(self.options.limits.slice).collect();
        self.fetch(at, Wanted::Sent(wanted), out);
    }

    /// One step of [`Core::pump`]; `false` when there is nothing more to do now.
    pub(super) fn send_next(&mut self, now: Instant, at: u32, frames: &mut Frames, out: &mut impl Outbox) -> bool {
        let Some(session) = self.sessions.get_mut(at as usize) else { return false };
        let Some(connection) = open_connection(&mut self.connections, session.connection) else { return false };
        connection.congested = out.backlog(connection.id) >= self.options.limits.backlog_bytes_max;
        if connection.congested {
            return false;
        }
        let window = usize::from(connection.receive_maximum);
        let bytes_max = self.options.limits.queued_bytes_max.min(self.options.limits.inflight_bytes_max);
        let outgoing = &mut session.outgoing;
        if let Some(entry) = outgoing.inflight.get_mut(outgoing.sent) {
            let committed = entry.delivery.hold.is_none_or(|ticket| !self.waiting.contains_key(&ticket));
            match (entry.state, &entry.delivery.body) {
                // Those come first, and `send_releases` has passed them.
                (State::Released, _) => {}
                (State::Published, Body::Here(message)) if !entry.tried && message.is_expired(now) => {
                    // [MQTT-3.3.2-5]
                    self.counters.dropped.expired += 1;
                    let entry = outgoing.remove(outgoing.sent);
                    self.dropped(at, &entry.delivery, Some(entry.packet_id), out);
                    return true;
                }
                // [MQTT-3.3.4-9], [MQTT-4.9.0-2]
                _ if outgoing.sent >= window || !committed => return false,
                (State::Published, Body::Stored(_)) => {
                    if outgoing.fetching == 0 {
                        self.fetch_bodies(at, out);
                    }
                    return false;
                }
                (State::Published, Body::Here(message)) => {
                    let view = View::of(message, now);
                    // [MQTT-3.3.1-1]: DUP on what may have been sent before.
                    let mut shape = shape_of(connection, &entry.delivery, &view, entry.tried);
                    let Some(frame) = fitting(frames, &view, &mut shape, connection.packet_size_max) else {
                        // [MQTT-3.1.2-25]: as if it had been delivered.
                        self.counters.dropped.too_large += 1;
                        let entry = outgoing.remove(outgoing.sent);
                        self.dropped(at, &entry.delivery, Some(entry.packet_id), out);
                        frames.reset();
                        return true;
                    };
                    frame.set_packet_id(entry.packet_id);
                    count_sent(&mut self.counters, shape.qos, message.payload.len());
                    out.publish(connection.id, frame.bytes(), view.payload);
                    connection.sent_aliases.note(shape.alias, view.topic_from(shape.cut));
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
        if front.qos != QoS::AtMostOnce && !outgoing.has_window(window, bytes_max) {
            return false;
        }
        let Body::Here(message) = &front.body else { return false };
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
            let mut shape = shape_of(connection, front, &view, false);
            write_qos_0(connection, frames, &view, &mut shape, &mut self.counters, usize::MAX, out);
            let delivery = outgoing.pop_queue().expect("looked at above");
            // One that was kept for a client that was away.
            self.dropped(at, &delivery, None, out);
            return true;
        }
        let mut delivery = outgoing.pop_queue().expect("looked at above");
        let packet_id = outgoing.free_id();
        delivery.hold = None;
        let kept = delivery.kept;
        let (qos, message, client) = (delivery.qos, delivery.message_id(), session.client.clone());
        outgoing.push_inflight(Inflight {
            packet_id,
            state: State::Published,
            delivery,
            tried: false,
            unkept: false,
            pubrel_sent: false,
        });
        if kept {
            let change = [Change::Sent { client: client.clone(), message, packet_id }];
            if qos == QoS::ExactlyOnce {
                let ticket = self.persist(&change, out);
                let outgoing = &mut self.sessions[at as usize].outgoing;
                outgoing.inflight.back_mut().expect("pushed above").delivery.hold = Some(ticket);
                self.wait(ticket, Waiting::Sent(client, packet_id));
            } else {
                out.persist(None, &change);
            }
        }
        true
    }

    /// Tells the store that a session is done with a message, sent or not.
    pub(super) fn dropped(&mut self, at: u32, delivery: &Delivery, packet_id: Option<PacketId>, out: &mut impl Outbox) {
        if delivery.kept {
            let client = self.sessions[at as usize].client.clone();
            let change = Change::Done { client, message: delivery.message_id(), packet_id };
            out.persist(None, &[change]);
        }
    }
}

/// The connection, if CONNACK has left on it.
pub(super) fn open_connection(
    connections: &mut [Option<Connection>],
    id: Option<ConnectionId>,
) -> Option<&mut Connection> {
    connections[id?.index as usize].as_mut().filter(|connection| connection.open)
}

fn shape_of(connection: &Connection, delivery: &Delivery, view: &View<'_>, dup: bool) -> Shape {
    let cut = connection.cut(view.topic);
    Shape {
        version: connection.version,
        qos: delivery.qos,
        retain: delivery.retain,
        dup,
        alias: connection.sent_aliases.of(view.topic_from(cut)),
        cut,
        identifiers: delivery.identifiers.clone(),
    }
}

/// The message as bytes that the client takes [MQTT-3.1.2-24]; `None` if it takes none, or may not see it. An alias is
/// not set where it would be what makes the packet too large.
fn fitting<'f>(
    frames: &'f mut Frames,
    view: &View<'_>,
    shape: &mut Shape,
    packet_size_max: u32,
) -> Option<&'f mut PublishFrame> {
    if shape.cut == HIDDEN {
        return None;
    }
    let max = (packet_size_max as usize).min(codec::PACKET_SIZE_MAX);
    if frames.prepare(view, shape).packet_len() > max && matches!(shape.alias, Alias::Set(_)) {
        shape.alias = Alias::None;
    }
    let frame = frames.prepare(view, shape);
    (frame.packet_len() <= max).then_some(frame)
}

/// Says whether it was written.
pub(super) fn write_qos_0(
    connection: &mut Connection,
    frames: &mut Frames,
    view: &View<'_>,
    shape: &mut Shape,
    counters: &mut Counters,
    backlog_bytes_max: usize,
    out: &mut impl Outbox,
) -> bool {
    let Some(frame) = fitting(frames, view, shape, connection.packet_size_max) else {
        counters.dropped.too_large += 1;
        return false;
    };
    let backlog = out.backlog(connection.id);
    if backlog > 0 && backlog.saturating_add(frame.packet_len()) > backlog_bytes_max {
        counters.dropped.slow_consumer += 1;
        return false;
    }
    count_sent(counters, QoS::AtMostOnce, view.payload.as_slice().len());
    out.publish(connection.id, frame.bytes(), view.payload);
    connection.sent_aliases.note(shape.alias, view.topic_from(shape.cut));
    true
}

fn count_sent(counters: &mut Counters, qos: QoS, payload_len: usize) {
    counters.publishes_sent[usize::from(qos.bits())] += 1;
    counters.publish_bytes_sent[usize::from(qos.bits())] += payload_len as u64;
}
