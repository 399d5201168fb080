//! What a client may send after CONNECT.

use std::time::Instant;

use super::change::{Change, Ticket};
use super::commit::Waiting;
use super::connection::{ConnectionId, HeldKind};
use super::outbox::{Note, Outbox};
use super::route::Incoming;
use super::session::State;
use super::violation::Violation;
use super::{Core, dialect};
use crate::auth::Operation;
use crate::codec::{self, Ack, Packet, Publish, is_utf8_payload};
use crate::types::{ClientId, PacketId, QoS, ReasonCode, Topic};

impl Core {
    pub(super) fn receive(&mut self, now: Instant, id: ConnectionId, packet: Packet<'_>, out: &mut impl Outbox) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.heard = now;
        match packet {
            Packet::Publish(publish) => self.publish(now, id, &publish, out),
            Packet::PubAck(ack) => self.puback(now, id, ack.packet_id, out),
            Packet::PubRec(ack) => self.pubrec(now, id, &ack, out),
            Packet::PubRel(ack) => self.pubrel(id, ack.packet_id, out),
            Packet::PubComp(ack) => self.pubcomp(now, id, ack.packet_id, out),
            // [MQTT-3.12.4-1]
            Packet::PingReq if connection.open => out.write(id, &[0xD0, 0]),
            Packet::PingReq => self.acknowledge(id, HeldKind::Other, &Packet::PingResp, None, out),
            Packet::Subscribe(subscribe) => self.subscribe(now, id, &subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(now, id, &unsubscribe, out),
            Packet::Disconnect(disconnect) => self.disconnect(now, id, &disconnect, out),
            Packet::Connect(_) => self.violate(now, id, Violation::SecondConnect, out),
            Packet::Auth(_) => self.violate(now, id, Violation::UnexpectedAuth, out),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                self.violate(now, id, Violation::ServerPacket, out);
            }
        }
    }

    fn publish(&mut self, now: Instant, id: ConnectionId, publish: &Publish<'_>, out: &mut impl Outbox) {
        let qos = publish.qos;
        self.counters.publishes_received[usize::from(qos.bits())] += 1;
        self.counters.publish_bytes_received[usize::from(qos.bits())] += publish.payload.len() as u64;
        // [MQTT-3.3.4-6]: an identifier is the server's to add.
        if publish.properties.subscription_identifiers().next().is_some() {
            return self.violate(now, id, Violation::SubscriptionIdentifier, out);
        }
        let alias = match publish.properties.topic_alias {
            None => None,
            Some(number) => match self.resolve_alias(id, number, publish.topic) {
                Ok(text) => Some((number, text)),
                Err(violation) => return self.violate(now, id, violation, out),
            },
        };
        let topic = Topic::from_parsed(alias.as_ref().map_or(publish.topic, |(_, text)| text));
        match publish.packet_id {
            None => self.publish_qos_0(now, id, publish, topic, out),
            Some(packet_id) => self.publish_with_id(now, id, publish, topic, packet_id, out),
        }
        if let (Some((number, text)), Some(connection)) = (alias, self.connection_mut(id)) {
            connection.aliases[usize::from(number) - 1] = Some(text);
        }
    }

    /// The topic that an alias stands for, taken out of its place while it is used; a topic beside
    /// the alias sets it (section 3.3.2.3.4).
    fn resolve_alias(&mut self, id: ConnectionId, number: u16, topic: &str) -> Result<Box<str>, Violation> {
        // [MQTT-3.3.2-9]
        let connection = self.connection_mut(id).expect("checked by receive");
        if number > connection.our_topic_alias_max {
            return Err(Violation::TopicAlias(number));
        }
        let at = usize::from(number) - 1;
        if connection.aliases.len() <= at {
            connection.aliases.resize(at + 1, None);
        }
        let known = connection.aliases[at].take();
        if topic.is_empty() { known.ok_or(Violation::TopicAlias(number)) } else { Ok(topic.into()) }
    }

    fn publish_qos_0(
        &mut self,
        now: Instant,
        id: ConnectionId,
        publish: &Publish<'_>,
        topic: Topic<'_>,
        out: &mut impl Outbox,
    ) {
        let session = self.connection(id).expect("checked by receive").session;
        if self.refusal(id, session, publish, topic, out).is_none() {
            self.route_publish(now, session, publish, topic, None, out);
        }
    }

    fn publish_with_id(
        &mut self,
        now: Instant,
        id: ConnectionId,
        publish: &Publish<'_>,
        topic: Topic<'_>,
        packet_id: PacketId,
        out: &mut impl Outbox,
    ) {
        let qos = publish.qos;
        let connection = self.connection(id).expect("checked by receive");
        let (version, at) = (connection.version, connection.session);
        let explains = dialect::explains_itself(version);
        // [MQTT-3.3.4-7]; before MQTT 5 nobody tells the client of a limit. One sent again on this
        // connection is not one more.
        let connection = self.connection_mut(id).expect("checked by receive");
        let repeated = connection.incomplete.contains(&packet_id);
        let inbound = connection.incomplete.len() + connection.unacknowledged as usize;
        if explains && !repeated && inbound >= usize::from(connection.our_receive_maximum) {
            return self.violate(now, id, Violation::ReceiveMaximumExceeded, out);
        }
        if qos == QoS::ExactlyOnce {
            connection.incomplete.insert(packet_id);
        }
        let received = &self.sessions[at as usize].received;
        // [MQTT-4.3.3-10]: until PUBREL the same identifier is the same message, DUP or not; it is
        // acknowledged again, together with its first copy where that still commits.
        if qos == QoS::ExactlyOnce && received.contains_key(&packet_id) {
            let ticket = received[&packet_id].filter(|ticket| !self.is_committed(Some(*ticket)));
            let ack = Packet::PubRec(Ack::new(packet_id, ReasonCode::Success));
            return self.acknowledge(id, HeldKind::PubAck(packet_id, qos), &ack, ticket, out);
        }
        let (reason, ticket) = match self.refusal(id, at, publish, topic, out) {
            Some(reason) => (dialect::refused_publish(version, reason), None),
            None => {
                let (matched, ticket) = self.route_publish(now, at, publish, topic, Some(packet_id), out);
                (dialect::publish_success(version, matched), ticket)
            }
        };
        let ack = Ack::new(packet_id, reason);
        if qos == QoS::ExactlyOnce {
            if reason.is_error() {
                self.complete(id, packet_id);
            } else {
                self.sessions[at as usize].received.insert(packet_id, ticket);
                if let Some(ticket) = ticket {
                    let client = self.sessions[at as usize].client.clone();
                    self.wait(ticket, Waiting::Inbound(client, packet_id));
                }
            }
            self.acknowledge(id, HeldKind::PubAck(packet_id, qos), &Packet::PubRec(ack), ticket, out);
        } else {
            self.acknowledge(id, HeldKind::PubAck(packet_id, qos), &Packet::PubAck(ack), ticket, out);
        }
    }

    /// An inbound QoS 2 identifier no longer counts against our receive maximum.
    pub(super) fn complete(&mut self, id: ConnectionId, packet_id: PacketId) {
        if let Some(connection) = self.connection_mut(id) {
            connection.incomplete.remove(&packet_id);
        }
    }

    /// Why a message may not be published, if so.
    fn refusal(
        &mut self,
        id: ConnectionId,
        session: u32,
        publish: &Publish<'_>,
        topic: Topic<'_>,
        out: &mut impl Outbox,
    ) -> Option<ReasonCode> {
        let levels_max = self.options.limits.topic_levels_max;
        if topic.as_str().len() >= levels_max && topic.levels().nth(levels_max).is_some() {
            return Some(ReasonCode::TopicNameInvalid);
        }
        // [MQTT-3.3.2-4] allows the check; a receiver could only do it after the fact.
        if publish.properties.payload_is_utf8 && !is_utf8_payload(publish.payload) {
            return Some(ReasonCode::PayloadFormatInvalid);
        }
        if !self.allows(session, Operation::Write, topic) {
            self.counters.acl_denied_publish += 1;
            out.note(Note::PublishDenied { connection: id, topic: topic.as_str() });
            return Some(ReasonCode::NotAuthorized);
        }
        if publish.retain
            && !publish.payload.is_empty()
            && !self.has_room_to_retain(
                topic,
                publish.payload.len() + publish.properties.forwarded().map(<[u8]>::len).sum::<usize>(),
            )
        {
            self.counters.dropped.retained_full += 1;
            out.note(Note::RetainedFull { topic: topic.as_str() });
            return Some(ReasonCode::QuotaExceeded);
        }
        None
    }

    fn route_publish(
        &mut self,
        now: Instant,
        session: u32,
        publish: &Publish<'_>,
        topic: Topic<'_>,
        packet_id: Option<PacketId>,
        out: &mut impl Outbox,
    ) -> (bool, Option<Ticket>) {
        let mut forwarded = std::mem::take(&mut self.scratch.forwarded);
        forwarded.clear();
        if !publish.properties.is_empty() {
            publish.properties.forwarded().for_each(|raw| forwarded.extend_from_slice(raw));
        }
        let routed = self.route(
            now,
            &Incoming {
                topic,
                payload: publish.payload,
                qos: publish.qos,
                retain: publish.retain,
                message_expiry_interval_secs: publish.properties.message_expiry_interval,
                forwarded: &forwarded,
                publisher: session,
                received: packet_id.filter(|_| publish.qos == QoS::ExactlyOnce),
            },
            out,
        );
        self.scratch.forwarded = forwarded;
        routed
    }

    /// PUBACK: a QoS 1 message is done (section 4.3.2).
    fn puback(&mut self, now: Instant, id: ConnectionId, packet_id: PacketId, out: &mut impl Outbox) {
        let at = self.connection(id).expect("checked by receive").session;
        self.done(at, packet_id, |qos, state| qos == QoS::AtLeastOnce && state == State::Published, out);
        self.pump(now, at, out);
    }

    /// PUBCOMP: a QoS 2 message is done (section 4.3.3).
    fn pubcomp(&mut self, now: Instant, id: ConnectionId, packet_id: PacketId, out: &mut impl Outbox) {
        let at = self.connection(id).expect("checked by receive").session;
        self.done(at, packet_id, |_, state| state == State::Released, out);
        self.pump(now, at, out);
    }

    /// Takes a message out of flight; an acknowledgement that fits nothing sent is ignored.
    fn done(&mut self, at: u32, packet_id: PacketId, fits: fn(QoS, State) -> bool, out: &mut impl Outbox) {
        let session = &mut self.sessions[at as usize];
        let outgoing = &mut session.outgoing;
        let Some(found) = outgoing.find(packet_id) else { return };
        let entry = &outgoing.inflight[found];
        if found >= outgoing.sent || !fits(entry.delivery.qos, entry.state) {
            return;
        }
        let entry = outgoing.remove(found);
        if self.options.durable && session.is_durable() {
            let change = Change::Done {
                client: session.client.clone(),
                message: entry.delivery.message_id(),
                packet_id: Some(packet_id),
            };
            self.persist(vec![change], out);
        }
    }

    /// PUBREC: the message arrived; PUBREL follows, once it is safe that it must not be sent again
    /// [MQTT-4.3.3-4], [MQTT-4.3.3-6].
    fn pubrec(&mut self, now: Instant, id: ConnectionId, ack: &Ack<'_>, out: &mut impl Outbox) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, at) = (connection.version, connection.session);
        let packet_id = ack.packet_id;
        let session = &mut self.sessions[at as usize];
        let (client, durable) = (session.client.clone(), self.options.durable && session.is_durable());
        let outgoing = &mut session.outgoing;
        let found = outgoing
            .find(packet_id)
            .filter(|found| *found < outgoing.sent && outgoing.inflight[*found].delivery.qos == QoS::ExactlyOnce);
        let Some(found) = found else {
            // Section 3.5.2.1: 0x92; the client can finish its side.
            let reason = match dialect::explains_itself(version) {
                true => ReasonCode::PacketIdentifierNotFound,
                false => ReasonCode::Success,
            };
            return self.acknowledge(id, HeldKind::Other, &Packet::PubRel(Ack::new(packet_id, reason)), None, out);
        };
        if ack.reason.is_error() {
            self.done(at, packet_id, |_, state| state == State::Published, out);
            return self.pump(now, at, out);
        }
        let entry = &mut outgoing.inflight[found];
        let first = entry.state == State::Published;
        entry.state = State::Released;
        if first {
            // Only the identifier is needed from here on.
            entry.delivery.body = super::message::Body::Stored(entry.delivery.message_id());
        }
        if durable && first {
            self.persist_received(at, packet_id, out);
        } else {
            self.send_release(&client, packet_id, out);
        }
    }

    /// Writes down that PUBREC came; PUBREL waits for it.
    pub(super) fn persist_received(&mut self, at: u32, packet_id: PacketId, out: &mut impl Outbox) {
        let client = self.sessions[at as usize].client.clone();
        let ticket = self.ticket();
        let outgoing = &mut self.sessions[at as usize].outgoing;
        if let Some(found) = outgoing.find(packet_id) {
            let entry = &mut outgoing.inflight[found];
            entry.delivery.hold = Some(ticket);
            entry.unkept = false;
        }
        out.persist(ticket, vec![Change::Received { client: client.clone(), packet_id }]);
        self.wait(ticket, Waiting::Release(client, packet_id));
    }

    /// PUBREL, if its exchange is still there and safe.
    pub(super) fn send_release(&mut self, client: &ClientId, packet_id: PacketId, out: &mut impl Outbox) {
        let Some(&at) = self.by_client.get(client) else { return };
        let session = &self.sessions[at as usize];
        let outgoing = &session.outgoing;
        let ready = outgoing.find(packet_id).is_some_and(|found| {
            let entry = &outgoing.inflight[found];
            found < outgoing.sent
                && entry.state == State::Released
                && !entry.unkept
                && self.is_committed(entry.delivery.hold)
        });
        let Some(connection) = session.connection.and_then(|id| self.connection(id)).filter(|_| ready) else { return };
        if !connection.open {
            return;
        }
        let mut bytes = Vec::with_capacity(4);
        codec::encode(&mut bytes, &Packet::PubRel(Ack::new(packet_id, ReasonCode::Success)), connection.version);
        out.write(connection.id, &bytes);
    }

    /// PUBREL: the inbound identifier is free again [MQTT-4.3.3-11].
    fn pubrel(&mut self, id: ConnectionId, packet_id: PacketId, out: &mut impl Outbox) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, at) = (connection.version, connection.session);
        let session = &mut self.sessions[at as usize];
        let known = session.received.remove(&packet_id).is_some();
        let durable = (known && self.options.durable && session.is_durable()).then(|| session.client.clone());
        let ticket = durable.map(|client| self.persist(vec![Change::Released { client, packet_id }], out));
        let reason = if known || !dialect::explains_itself(version) {
            ReasonCode::Success
        } else {
            ReasonCode::PacketIdentifierNotFound
        };
        self.complete(id, packet_id);
        self.acknowledge(id, HeldKind::PubComp, &Packet::PubComp(Ack::new(packet_id, reason)), ticket, out);
    }

    pub(super) fn drained(&mut self, now: Instant, id: ConnectionId, out: &mut impl Outbox) {
        if let Some(connection) = self.connection(id) {
            let session = connection.session;
            self.pump(now, session, out);
        }
    }
}
