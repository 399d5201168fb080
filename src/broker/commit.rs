//! What waits for the store, and the order in which acknowledgements leave.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::change::Ticket;
use super::connection::{ConnectionId, Held, HeldKind};
use super::message::{Body, Message, MessageId};
use super::outbox::{Closing, Outbox};
use super::{Core, dialect};
use crate::codec::{self, Ack, ConnAck, Packet};
use crate::types::{ClientId, PacketId, QoS, ReasonCode};

/// Who waits for a ticket.
#[derive(Debug)]
pub(super) enum Waiting {
    /// An acknowledgement in this connection's queue.
    Acknowledgement(ConnectionId),
    /// A session with deliveries that must not leave before.
    Deliveries(ClientId),
    /// PUBREL for this identifier.
    Release(ClientId, PacketId),
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
        let version = connection.version;
        let mut bytes = std::mem::take(&mut self.scratch.packet);
        bytes.clear();
        codec::encode(&mut bytes, packet, version);
        let connection = self.connection_mut(id).expect("found above");
        if ticket.is_none() && connection.held.is_empty() {
            if kind == HeldKind::ConnAck {
                connection.open = true;
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
        self.scratch.packet = bytes;
    }

    pub(super) fn wait(&mut self, ticket: Ticket, waiting: Waiting) {
        self.waiting.get_mut(&ticket).expect("persisted and not yet answered").push(waiting);
    }

    pub(super) fn is_committed(&self, ticket: Option<Ticket>) -> bool {
        ticket.is_none_or(|ticket| !self.waiting.contains_key(&ticket))
    }

    pub(super) fn committed(&mut self, now: Instant, ticket: Ticket, out: &mut impl Outbox) {
        for waiting in self.waiting.remove(&ticket).unwrap_or_default() {
            match waiting {
                Waiting::Acknowledgement(id) => {
                    if let Some(connection) = self.connection_mut(id) {
                        for held in connection.held.iter_mut().filter(|held| held.ticket == Some(ticket)) {
                            held.ticket = None;
                        }
                        self.release_held(now, id, out);
                    }
                }
                Waiting::Deliveries(client) => {
                    if let Some(&session) = self.by_client.get(&client) {
                        self.pump(now, session, out);
                    }
                }
                Waiting::Release(client, packet_id) => self.send_release(&client, packet_id, out),
            }
        }
    }

    /// Lets go what is ready at the front of a connection's queue.
    fn release_held(&mut self, now: Instant, id: ConnectionId, out: &mut impl Outbox) {
        let mut opened = false;
        let Some(connection) = self.connection_mut(id) else { return };
        while let Some(held) = connection.held.pop_front_if(|held| held.ticket.is_none()) {
            match held.kind {
                HeldKind::ConnAck => {
                    connection.open = true;
                    opened = true;
                }
                HeldKind::PubAck(_, QoS::AtLeastOnce) => connection.unacknowledged -= 1,
                _ => {}
            }
            out.write(id, &held.bytes);
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
                // The session is not as it should be on disk, but PUBREL repeats what PUBREC said.
                Waiting::Release(client, packet_id) => self.send_release(&client, packet_id, out),
            }
        }
    }

    fn acknowledgement_failed(&mut self, now: Instant, id: ConnectionId, ticket: Ticket, out: &mut impl Outbox) {
        let Some(connection) = self.connection_mut(id) else { return };
        let version = connection.version;
        let session = connection.session;
        let mut close = dialect::closes_on_store_failure(version);
        let mut refused = Vec::new();
        for held in connection.held.iter_mut().filter(|held| held.ticket == Some(ticket)) {
            held.ticket = None;
            let mut bytes = Vec::new();
            match held.kind {
                HeldKind::PubAck(packet_id, qos) => {
                    let ack = Ack::new(packet_id, ReasonCode::QuotaExceeded);
                    let packet = if qos == QoS::ExactlyOnce { Packet::PubRec(ack) } else { Packet::PubAck(ack) };
                    codec::encode(&mut bytes, &packet, version);
                    refused.push((packet_id, qos));
                }
                HeldKind::ConnAck => {
                    let packet = Packet::ConnAck(Box::new(ConnAck::new(ReasonCode::QuotaExceeded)));
                    codec::encode(&mut bytes, &packet, version);
                    out.write(id, &bytes);
                    close = true;
                }
                HeldKind::PubComp | HeldKind::Other => close = true,
            }
            held.bytes = SmallVec::from_vec(bytes);
        }
        for (packet_id, qos) in refused {
            if qos == QoS::ExactlyOnce {
                self.sessions[session as usize].received.remove(&packet_id);
            }
        }
        if close {
            self.finish(now, id, Closing::StoreFailed, out);
        } else {
            self.release_held(now, id, out);
        }
    }

    pub(super) fn fetched(
        &mut self,
        now: Instant,
        client: &ClientId,
        messages: Vec<(MessageId, Option<Arc<Message>>)>,
        out: &mut impl Outbox,
    ) {
        let Some(&at) = self.by_client.get(client) else { return };
        let outgoing = &mut self.sessions[at as usize].outgoing;
        outgoing.fetching = false;
        for (id, message) in messages {
            let found = |delivery: &&mut super::message::Delivery| matches!(delivery.body, Body::Stored(stored) if stored == id);
            match message {
                Some(message) => {
                    // Fetched from the front: it is among the first.
                    if let Some(delivery) = outgoing.queue.iter_mut().find(found) {
                        delivery.body = Body::Here(message);
                    }
                }
                None => {
                    let size = &mut outgoing.queue_bytes;
                    outgoing.queue.retain(|delivery| {
                        let gone = matches!(delivery.body, Body::Stored(stored) if stored == id);
                        if gone {
                            *size -= delivery.size as usize;
                        }
                        !gone
                    });
                    self.counters.dropped.store_failed += 1;
                }
            }
        }
        self.pump(now, at, out);
    }
}
