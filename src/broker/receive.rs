//! What a client may send after CONNECT.

use std::time::Instant;

use smallvec::SmallVec;

use super::change::{Change, Ticket};
use super::commit::Waiting;
use super::connect::mounted;
use super::connection::{ConnectionId, HeldKind};
use super::index::ELSEWHERE;
use super::outbox::{Note, Outbox};
use super::route::Incoming;
use super::session::{Inflight, State};
use super::sparkplug::birth_certificate;
use super::violation::Violation;
use super::{Core, dialect};
use crate::auth::Operation;
use crate::codec::{self, Ack, Packet, Publish, is_utf8_payload};
use crate::types::{PacketId, QoS, ReasonCode, Topic};

impl Core {
    pub(super) fn receive(&mut self, now: Instant, id: ConnectionId, packet: Packet<'_>, out: &mut impl Outbox) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.heard = now;
        match packet {
            Packet::Publish(publish) => self.publish(now, id, &publish, out),
            // Table 3-4: only a server says 0x10.
            Packet::PubAck(ack) | Packet::PubRec(ack) if ack.reason == ReasonCode::NoMatchingSubscribers => {
                self.violate(now, id, Violation::ServerReason, out);
            }
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
            Packet::Auth(auth) => self.auth(now, id, &auth, out),
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
        let limits = &self.options.limits;
        let entrance = &self.connection(id).expect("checked by receive").entrance;
        if qos > limits.qos_max.min(entrance.qos_max) {
            return self.violate(now, id, Violation::QoSNotSupported(qos.bits()), out);
        }
        if publish.retain && !limits.retain_available {
            return self.violate(now, id, Violation::RetainNotSupported, out);
        }
        let entrance = (!entrance.mount_point.is_empty()).then(|| entrance.clone());
        let alias = match publish.properties.topic_alias {
            None => None,
            Some(number) => match self.resolve_alias(id, number, publish.topic) {
                Ok(text) => Some((number, text)),
                Err(violation) => return self.violate(now, id, violation, out),
            },
        };
        let text = alias.as_ref().map_or(publish.topic, |(_, text)| text);
        let mount_point = entrance.as_ref().map_or("", |entrance| &*entrance.mount_point);
        let mounted = mounted(mount_point, text);
        let topic = Topic::from_parsed(&mounted);
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
        if topic.is_empty() { known.ok_or(Violation::TopicAliasUnset(number)) } else { Ok(topic.into()) }
    }

    fn publish_qos_0(
        &mut self,
        now: Instant,
        id: ConnectionId,
        publish: &Publish<'_>,
        topic: Topic<'_>,
        out: &mut impl Outbox,
    ) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, session) = (connection.version, connection.session);
        match self.refusal(id, session, publish, topic, out) {
            None => {
                let (_, ticket) = self.route_publish(now, id, publish, topic, None, out);
                if let Some(ticket) = ticket {
                    self.hold_for(id, ticket);
                }
            }
            Some(reason) => self.close_if_untold(now, id, dialect::tells_nobody(version, QoS::AtMostOnce, reason), out),
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
        let repeated = qos == QoS::ExactlyOnce && connection.incomplete.contains(&packet_id);
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
            Some(reason) => {
                let untold = dialect::tells_nobody(version, qos, reason);
                if untold.is_some() {
                    return self.close_if_untold(now, id, untold, out);
                }
                (dialect::refused_publish(version, reason), None)
            }
            None => {
                let (matched, ticket) = self.route_publish(now, id, publish, topic, Some(packet_id), out);
                (dialect::publish_success(version, matched), ticket)
            }
        };
        let mut ack = Ack::new(packet_id, reason);
        ack.reason_string = reason.is_error().then(|| explain(reason));
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

    /// What no acknowledgement can say ends the connection.
    fn close_if_untold(&mut self, now: Instant, id: ConnectionId, untold: Option<Violation>, out: &mut impl Outbox) {
        if let Some(violation) = untold {
            self.violate(now, id, violation, out);
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
        if self.options.limits.is_topic_too_large(topic.as_str()) {
            return Some(ReasonCode::TopicNameInvalid);
        }
        if publish.payload.len() > self.options.limits.payload_size_max {
            return Some(ReasonCode::QuotaExceeded);
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
        if self.is_question(topic) {
            return (!out.ask(id, topic.as_str(), publish.payload)).then_some(ReasonCode::QuotaExceeded);
        }
        // Who cannot be told has its message passed on, and not retained.
        let version = self.connection(id).expect("checked by receive").version;
        if publish.retain
            && dialect::hears_of_quota(version, publish.qos)
            && !publish.payload.is_empty()
            && self.is_home(topic.as_str())
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
        id: ConnectionId,
        publish: &Publish<'_>,
        topic: Topic<'_>,
        packet_id: Option<PacketId>,
        out: &mut impl Outbox,
    ) -> (bool, Option<Ticket>) {
        let session = self.connection(id).expect("checked by receive").session;
        // Asked in `refusal`, and for nobody else.
        if self.is_question(topic) {
            return (true, None);
        }
        let mut forwarded = std::mem::take(&mut self.forwarded_room);
        forwarded.clear();
        if !publish.properties.is_empty() {
            publish.properties.forwarded().for_each(|raw| forwarded.extend_from_slice(raw));
        }
        let incoming = Incoming {
            topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            message_expiry_interval_secs: publish.properties.message_expiry_interval,
            forwarded: &forwarded,
            publisher: session,
            connection: Some(id),
            received: packet_id.filter(|_| publish.qos == QoS::ExactlyOnce),
            with: None,
        };
        // A birth is kept before it goes out: one that was acknowledged is never without its copy.
        let kept = self.keep_birth(now, &incoming, out);
        let (matched, ticket) = self.route(now, &incoming, out);
        self.forwarded_room = forwarded;
        let tickets: SmallVec<[Ticket; 2]> = kept.into_iter().chain(ticket).collect();
        (matched, self.all_of(&tickets))
    }

    /// Retains a birth certificate of Sparkplug's where host applications look for it, if that is asked for.
    fn keep_birth(&mut self, now: Instant, incoming: &Incoming<'_>, out: &mut impl Outbox) -> Option<Ticket> {
        let wanted = self.options.limits.sparkplug_aware;
        let kept = wanted.then(|| birth_certificate(incoming.topic.as_str())).flatten()?;
        let topic = Topic::parse(&kept).ok().filter(|topic| !self.options.limits.is_topic_too_large(topic.as_str()))?;
        // The broker says it, whoever may write what.
        let publisher = ELSEWHERE;
        let kept = Incoming { topic, retain: true, received: None, publisher, ..incoming.clone() };
        self.route(now, &kept, out).1
    }

    /// Whether a message asks the broker itself.
    fn is_question(&self, topic: Topic<'_>) -> bool {
        self.options.limits.as_mosquitto && topic.as_str().starts_with("$CONTROL/")
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
        if entry.delivery.kept {
            let change = Change::Done {
                client: session.client.clone(),
                message: entry.delivery.message_id(),
                packet_id: Some(packet_id),
            };
            out.persist(None, &[change]);
        }
    }

    /// PUBREC: the message arrived; PUBREL follows, once it is safe that it must not be sent again
    /// [MQTT-4.3.3-4], [MQTT-4.3.3-6].
    fn pubrec(&mut self, now: Instant, id: ConnectionId, ack: &Ack<'_>, out: &mut impl Outbox) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, at) = (connection.version, connection.session);
        let packet_id = ack.packet_id;
        let session = &mut self.sessions[at as usize];
        let outgoing = &mut session.outgoing;
        let found = outgoing
            .find(packet_id)
            .filter(|found| *found < outgoing.sent && outgoing.inflight[*found].delivery.qos == QoS::ExactlyOnce);
        let Some(found) = found else {
            // Section 3.5.2.1: 0x92; the client can finish its side.
            if ack.reason.is_error() {
                // It ends an exchange that is not there.
                return;
            }
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
        if outgoing.inflight[found].state == State::Published {
            let kept = outgoing.inflight[found].delivery.kept;
            outgoing.release(found);
            if kept {
                return self.persist_received(at, packet_id, out);
            }
        } else {
            outgoing.release_again(found);
        }
        self.send_releases(at, out);
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
        out.persist(Some(ticket), &[Change::Received { client: client.clone(), packet_id }]);
        self.wait(ticket, Waiting::Release(client, packet_id));
    }

    /// PUBREL for the exchanges that have come so far and whose PUBREC is safe, in the order in which
    /// those came [MQTT-4.6.0-4].
    pub(super) fn send_releases(&mut self, at: u32, out: &mut impl Outbox) {
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        let Some(connection) = super::send::open_connection(&mut self.connections, session.connection) else { return };
        let outgoing = &mut session.outgoing;
        outgoing.sent = outgoing.sent.max(outgoing.released);
        let is_safe = |entry: &Inflight| {
            !entry.unkept && entry.delivery.hold.is_none_or(|ticket| !self.waiting.contains_key(&ticket))
        };
        for packet_id in outgoing.take_releases(is_safe) {
            let mut bytes = Vec::with_capacity(4);
            codec::encode(&mut bytes, &Packet::PubRel(Ack::new(packet_id, ReasonCode::Success)), connection.version);
            out.write(connection.id, &bytes);
        }
    }

    /// PUBREL: the inbound identifier is free again [MQTT-4.3.3-11].
    fn pubrel(&mut self, id: ConnectionId, packet_id: PacketId, out: &mut impl Outbox) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, at) = (connection.version, connection.session);
        let session = &mut self.sessions[at as usize];
        let known = session.received.remove(&packet_id).is_some();
        let durable = (known && self.options.durable && session.is_durable()).then(|| session.client.clone());
        let ticket = durable.map(|client| self.persist(&[Change::Released { client, packet_id }], out));
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

/// What a reason string says of a message that was refused.
pub(super) fn explain(reason: ReasonCode) -> &'static str {
    match reason {
        ReasonCode::NotAuthorized => "the ACL does not let this client write to the topic",
        ReasonCode::TopicNameInvalid => "the topic has too many levels or bytes",
        ReasonCode::PayloadFormatInvalid => "the payload says that it is UTF-8 and is not",
        ReasonCode::QuotaExceeded => "the broker has no room to keep it",
        other => other.text(),
    }
}
