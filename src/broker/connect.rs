//! A session's beginning, take-over and end.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use super::change::{Change, StoredWill};
use super::commit::Waiting;
use super::connection::{Authentication, Before, Connection, ConnectionId, HeldKind, SentAliases};
use super::limits::keep_alive_deadline;
use super::outbox::{Admission, Closing, Note, Outbox};
use super::session::Session;
use super::shared::Departure;
use super::timers::Timer;
use super::violation::Violation;
use super::{Core, dialect};
use crate::auth::Operation;
use crate::codec::{self, ConnAck, Connect, Disconnect, Packet};
use crate::types::{Filter, ReasonCode, Topic};

/// What a client is told when this side ends the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Farewell {
    Violation(Violation),
    TakenOver,
    Administrator,
    CertificateExpired,
    ShuttingDown,
    NotAuthenticated,
}

impl Farewell {
    fn reason(self) -> ReasonCode {
        match self {
            Farewell::Violation(violation) => violation.reason(),
            Farewell::TakenOver => ReasonCode::SessionTakenOver,
            Farewell::Administrator | Farewell::CertificateExpired => ReasonCode::AdministrativeAction,
            Farewell::ShuttingDown => ReasonCode::ServerShuttingDown,
            // What a method says is for CONNACK.
            Farewell::NotAuthenticated => ReasonCode::NotAuthorized,
        }
    }

    fn text(self) -> Cow<'static, str> {
        match self {
            Farewell::Violation(violation) => violation.to_string().into(),
            Farewell::TakenOver => "another connection came with this client id".into(),
            Farewell::Administrator => "ended by an administrator".into(),
            Farewell::CertificateExpired => "the client's certificate has expired".into(),
            Farewell::ShuttingDown => "the broker stops".into(),
            Farewell::NotAuthenticated => "the new authentication failed".into(),
        }
    }
}

impl Core {
    pub(super) fn connect(&mut self, now: Instant, id: ConnectionId, admission: &Admission<'_>, out: &mut impl Outbox) {
        if self.shutting_down {
            return self.refuse(id, admission, ReasonCode::ServerUnavailable, Closing::ShuttingDown, out);
        }
        let known = self.by_client.get(&admission.client).copied();
        if let Some(known) = known {
            // A session belongs to the identity that made it: nobody else is given it, or ends it, and who bears the
            // same name in another realm is somebody else. What is of a realm that is no more is nobody's.
            let session = &self.sessions[known as usize];
            let is_owner = session.identity == admission.identity && session.realm == admission.entrance.realm;
            if !is_owner && self.acl.knows(session.realm) {
                return self.refuse(id, admission, ReasonCode::NotAuthorized, Closing::NotOwner, out);
            }
        } else if self.sessions.len() >= self.options.limits.sessions_max {
            return self.refuse(id, admission, ReasonCode::QuotaExceeded, Closing::TooManySessions, out);
        }
        let limits = &self.options.limits;
        if limits.as_mosquitto
            && !dialect::explains_itself(admission.connect.version)
            && self.keep_alive_secs(admission.connect) != admission.connect.keep_alive
        {
            return self.refuse(id, admission, ReasonCode::ClientIdentifierNotValid, Closing::KeepAliveTooLong, out);
        }
        if let Some(will) = &admission.connect.will {
            let subject = crate::auth::Subject {
                identity: admission.identity.as_ref().map(|name| name.as_str()),
                client_id: admission.client.as_str(),
                realm: admission.entrance.realm,
            };
            let mounted = mounted(&admission.entrance.mount_point, will.topic);
            let topic = Topic::from_parsed(&mounted);
            // [MQTT-3.2.2-12], [MQTT-3.2.2-13]
            if will.qos > limits.qos_max.min(admission.entrance.qos_max) {
                return self.refuse(id, admission, ReasonCode::QoSNotSupported, Closing::WillInvalid, out);
            }
            if will.payload.len() > limits.payload_size_max {
                return self.refuse(id, admission, ReasonCode::QuotaExceeded, Closing::WillInvalid, out);
            }
            if will.retain && !limits.retain_available {
                return self.refuse(id, admission, ReasonCode::RetainNotSupported, Closing::WillInvalid, out);
            }
            if self.options.limits.is_topic_too_large(topic.as_str()) {
                return self.refuse(id, admission, ReasonCode::TopicNameInvalid, Closing::WillInvalid, out);
            }
            // Mosquitto lets it in; what it may not write is not published when the time comes, here and there.
            if !limits.as_mosquitto && !self.acl.check(subject, Operation::Write, topic).allowed {
                return self.refuse(id, admission, ReasonCode::NotAuthorized, Closing::WillNotAllowed, out);
            }
            if will.properties.payload_is_utf8 && !codec::is_utf8_payload(will.payload) {
                return self.refuse(id, admission, ReasonCode::PayloadFormatInvalid, Closing::WillInvalid, out);
            }
        }
        self.counters.connects += 1;
        let (session, before) = self.open_session(now, known, admission, out);
        let session_present = matches!(before, Before::Known { .. });
        self.open_connection(now, id, session, before, admission);
        self.confirm(now, id, session, session_present, admission, out);
    }

    fn refuse(
        &mut self,
        id: ConnectionId,
        admission: &Admission<'_>,
        reason: ReasonCode,
        why: Closing,
        out: &mut impl Outbox,
    ) {
        let refused = &mut self.counters.refused;
        match why {
            Closing::NotOwner => refused.not_owner += 1,
            Closing::TooManySessions => refused.sessions_full += 1,
            Closing::ShuttingDown => refused.shutting_down += 1,
            Closing::KeepAliveTooLong => refused.keep_alive += 1,
            _ => refused.will += 1,
        }
        // [MQTT-3.2.2-6]: session present is 0 on a refusal.
        let mut connack = ConnAck::new(reason);
        connack.reason_string = match why {
            _ if self.options.limits.as_mosquitto => None,
            Closing::NotOwner => Some("this client id's session belongs to another identity"),
            Closing::TooManySessions => Some("the broker has as many sessions as it may have"),
            Closing::ShuttingDown => Some("the broker stops"),
            Closing::WillNotAllowed => Some("the ACL does not let this client write to its will's topic"),
            Closing::WillInvalid => Some(match reason {
                ReasonCode::QoSNotSupported => "the will's QoS is higher than is taken here",
                ReasonCode::RetainNotSupported => "the will is to be retained, which is not done here",
                _ => "the will's topic is too deep or too long, or its payload is not UTF-8",
            }),
            _ => None,
        };
        let mut bytes = Vec::new();
        let (version, size_max) = (admission.connect.version, packet_size_max(admission.connect));
        codec::encode_within(&mut bytes, &Packet::ConnAck(Box::new(connack)), version, size_max as usize, true);
        // [MQTT-3.1.2-24]
        if bytes.len() <= size_max as usize {
            out.write(id, &bytes);
        }
        out.close(id, why);
    }

    /// Takes up, replaces or makes the client's session; says what there was
    /// [MQTT-3.1.2-4], [MQTT-3.1.2-5], [MQTT-3.1.2-6].
    fn open_session(
        &mut self,
        now: Instant,
        known: Option<u32>,
        admission: &Admission<'_>,
        out: &mut impl Outbox,
    ) -> (u32, Before) {
        let mut known = known;
        if let Some(at) = known {
            if let Some(old) = self.sessions[at as usize].connection {
                // [MQTT-3.1.4-3]: the old connection gets 0x8E before it is closed.
                self.counters.takeovers += 1;
                self.say_goodbye(old, Farewell::TakenOver, out);
                self.finish(now, old, Closing::TakenOver, out);
            }
            let session = self.sessions.get(at as usize);
            if session.is_some_and(|session| admission.connect.clean_start || session.realm != admission.entrance.realm)
            {
                self.end_session(now, at, out);
            }
            // A session without expiry ended with its connection.
            known = self.by_client.get(&admission.client).copied();
        }
        let expiry_secs =
            dialect::session_expiry_secs(admission.connect).min(self.options.limits.session_expiry_secs_max);
        if let Some(at) = known {
            let session = &mut self.sessions[at as usize];
            let before = Before::Known {
                will: session.will.take(),
                will_due: session.will_due,
                expires: session.expires,
                expiry_secs: std::mem::replace(&mut session.expiry_secs, expiry_secs),
            };
            session.outgoing.rewind();
            self.cancel_session_timers(at);
            return (at, before);
        }
        self.next_session += 1;
        let (client, identity) = (admission.client.clone(), admission.identity.clone());
        let realm = admission.entrance.realm;
        let mut session = Session::new(client, self.next_session, identity, realm, self.keys.clone());
        session.expiry_secs = expiry_secs;
        let at = self.sessions.insert(session) as u32;
        self.by_client.insert(admission.client.clone(), at);
        (at, Before::New)
    }

    fn open_connection(
        &mut self,
        now: Instant,
        id: ConnectionId,
        session: u32,
        before: Before,
        admission: &Admission<'_>,
    ) {
        let connect = admission.connect;
        let limits = &self.options.limits;
        let entrance = &admission.entrance;
        let keep_alive_secs = match dialect::explains_itself(connect.version) {
            true => self.keep_alive_secs(connect),
            false => connect.keep_alive,
        };
        let keep_alive_set = (keep_alive_secs > 0).then(|| now + keep_alive_deadline(keep_alive_secs));
        if let Some(at) = keep_alive_set {
            self.timers.set(at, Timer::KeepAlive(id.index));
        }
        let at = id.index as usize;
        if self.connections.len() <= at {
            self.connections.resize_with(at + 1, || None);
        }
        self.connections[at] = Some(Connection {
            id,
            session,
            version: connect.version,
            open: false,
            congested: false,
            may_set_expiry: connect.properties.session_expiry_interval.unwrap_or(0) > 0,
            keep_alive_secs,
            heard: now,
            keep_alive_set,
            receive_maximum: connect.properties.receive_maximum.min(limits.inflight_max),
            packet_size_max: packet_size_max(connect),
            wants_reasons: connect.properties.request_problem_information,
            aliases: Vec::new(),
            sent_aliases: SentAliases::new(
                connect
                    .properties
                    .topic_alias_maximum
                    .min(limits.client_topic_alias_max)
                    .min(entrance.client_topic_alias_max),
            ),
            authentication: connect
                .properties
                .authentication_method
                .map(|method| Box::new(Authentication { method: method.into(), exchange: None })),
            before: Some(Box::new(before)),
            forwarded: 0,
            held: VecDeque::new(),
            unacknowledged: 0,
            incomplete: BTreeSet::new(),
            our_receive_maximum: limits.receive_maximum,
            our_topic_alias_max: limits.topic_alias_max.min(entrance.topic_alias_max),
            entrance: entrance.clone(),
        });
        self.connected += 1;
        let session = &mut self.sessions[session as usize];
        session.connection = Some(id);
        session.will = connect.will.as_ref().map(|will| {
            Arc::new(StoredWill {
                topic: mounted(&entrance.mount_point, will.topic).into(),
                payload: bytes::Bytes::copy_from_slice(will.payload),
                qos: will.qos,
                retain: will.retain,
                delay_interval_secs: will.properties.delay_interval,
                message_expiry_interval_secs: will.properties.message_expiry_interval,
                forwarded: will.properties.forwarded().flatten().copied().collect(),
            })
        });
    }

    /// A client's keep alive within the limit, seconds.
    fn keep_alive_secs(&self, connect: &Connect<'_>) -> u16 {
        match (connect.keep_alive, self.options.limits.keep_alive_secs_max) {
            (asked, 0) => asked,
            (0, max) => max,
            (asked, max) => asked.min(max),
        }
    }

    /// CONNACK, when the session is safe; then what waits for the client.
    fn confirm(
        &mut self,
        now: Instant,
        id: ConnectionId,
        session_at: u32,
        session_present: bool,
        admission: &Admission<'_>,
        out: &mut impl Outbox,
    ) {
        let session = &self.sessions[session_at as usize];
        let (expiry_secs, will) = (session.expiry_secs, session.will.clone());
        let ticket = (self.options.durable && session.is_durable()).then(|| {
            let change = Change::Session {
                client: admission.client.clone(),
                identity: admission.identity.clone(),
                realm: admission.entrance.realm,
                expiry_interval_secs: expiry_secs,
                will,
                connected: true,
                is_new: !session_present,
            };
            let ticket = self.persist(&[change], out);
            self.sessions[session_at as usize].stored = true;
            ticket
        });
        let limits = &self.options.limits;
        let mut connack = ConnAck::new(ReasonCode::Success);
        connack.session_present = session_present;
        connack.receive_maximum = Some(limits.receive_maximum);
        connack.maximum_packet_size = Some(limits.packet_size_max);
        connack.maximum_qos = limits.qos_max.min(admission.entrance.qos_max);
        connack.retain_available = limits.retain_available;
        connack.topic_alias_maximum = limits.topic_alias_max.min(admission.entrance.topic_alias_max);
        // [MQTT-3.2.2-16], [MQTT-3.2.2-21], section 3.2.2.3.2: what we do otherwise than asked.
        connack.assigned_client_id = admission.assigned.then_some(admission.client.as_str());
        let asked = dialect::session_expiry_secs(admission.connect);
        connack.session_expiry_interval = (expiry_secs != asked).then_some(expiry_secs);
        // [MQTT-4.12.0-5], [MQTT-4.12.0-6], [MQTT-4.12.0-7]
        connack.authentication_method = admission.connect.properties.authentication_method;
        connack.authentication_data = admission.authentication_data;
        connack.reason_string = admission.notice;
        // [MQTT-3.1.2-28]
        let information = self.options.limits.response_information.clone();
        let information = information.filter(|_| admission.connect.properties.request_response_information);
        let information = information.map(|text| text.replace("%c", admission.client.as_str()));
        connack.response_information = information.as_deref();
        let keep_alive_secs = self.connection(id).expect("opened above").keep_alive_secs;
        connack.server_keep_alive = (keep_alive_secs != admission.connect.keep_alive).then_some(keep_alive_secs);
        self.acknowledge(id, HeldKind::ConnAck, &Packet::ConnAck(Box::new(connack)), ticket, out);
        if self.connection(id).is_none() {
            return;
        }
        out.note(Note::Connected { connection: id, session_present });
        self.pump(now, session_at, out);
    }

    /// DISCONNECT with a reason, where the version has it [MQTT-3.14.0-1]: not before CONNACK.
    pub(super) fn say_goodbye(&mut self, id: ConnectionId, farewell: Farewell, out: &mut impl Outbox) {
        let Some(connection) = self.connection(id) else { return };
        if connection.open && dialect::explains_itself(connection.version) {
            let text = farewell.text();
            // [MQTT-3.14.2-2]: no session expiry interval from a server.
            let packet = Disconnect { reason_string: Some(&text), ..Disconnect::new(farewell.reason()) };
            let mut bytes = Vec::new();
            let size_max = connection.packet_size_max as usize;
            codec::encode_within(&mut bytes, &Packet::Disconnect(packet), connection.version, size_max, true);
            // [MQTT-3.1.2-24]
            if bytes.len() <= size_max {
                out.write(id, &bytes);
            }
        }
    }

    pub(super) fn violate(&mut self, now: Instant, id: ConnectionId, violation: Violation, out: &mut impl Outbox) {
        if self.connection(id).is_none() {
            return;
        }
        self.counters.violations += 1;
        // [MQTT-4.13.1-1], [MQTT-4.13.2-1], [MQTT-4.8.0-1] of 3.1.1
        self.say_goodbye(id, Farewell::Violation(violation), out);
        self.finish(now, id, Closing::Violation(violation), out);
    }

    /// Closes a connection from this side.
    pub(super) fn finish(&mut self, now: Instant, id: ConnectionId, why: Closing, out: &mut impl Outbox) {
        out.close(id, why);
        self.disconnected(now, id, why, out);
    }

    /// A connection is gone, whoever ended it.
    pub(super) fn disconnected(&mut self, now: Instant, id: ConnectionId, why: Closing, out: &mut impl Outbox) {
        if self.connection(id).is_none() {
            return;
        }
        let connection = self.connections[id.index as usize].take().expect("found above");
        self.connected -= 1;
        if let Some(at) = connection.keep_alive_set {
            self.timers.cancel(at, Timer::KeepAlive(id.index));
        }
        let at = connection.session;
        let session = &mut self.sessions[at as usize];
        session.connection = None;
        session.outgoing.rewind();
        // [MQTT-3.14.4-3], [MQTT-3.1.2-10]: a normal disconnect discards the will.
        if why == Closing::ByClient(ReasonCode::Success) {
            session.will = None;
        }
        if !connection.open && self.take_back(now, at, connection.before, out) {
            return;
        }
        let session = &self.sessions[at as usize];
        let (expiry_secs, delay_secs) =
            (session.expiry_secs, session.will.as_ref().map(|will| will.delay_interval_secs));
        if expiry_secs == 0 {
            // Section 3.1.2.11.2: the session ends with its connection, and the will with it.
            return self.end_session(now, at, out);
        }
        self.leave_to_store(at, out);
        self.rehome(now, at, None, Departure::Disconnected, out);
        self.tell_rank(now, at, out);
        let session = &mut self.sessions[at as usize];
        if expiry_secs != u32::MAX {
            let expires = now + Duration::from_secs(u64::from(expiry_secs));
            session.expires = Some(expires);
            self.timers.set(expires, Timer::SessionExpiry(at));
        }
        match delay_secs {
            None => {}
            Some(0) => return self.publish_will(now, at, out),
            Some(secs) => {
                let due = now + Duration::from_secs(u64::from(secs));
                self.sessions[at as usize].will_due = Some(due);
                self.timers.set(due, Timer::WillDelay(at));
            }
        }
        self.persist_session(at, false, out);
    }

    /// Nobody is there to take what waits: what the store has is left to it.
    fn leave_to_store(&mut self, at: u32, out: &mut impl Outbox) {
        let session = &mut self.sessions[at as usize];
        if !self.options.limits.queues_qos_0 {
            session.outgoing.drop_qos_0();
        }
        if self.options.durable && session.is_durable() {
            let waiting = &self.waiting;
            session.outgoing.unload(|ticket| !waiting.contains_key(&ticket));
            out.rewind(&session.client, session.outgoing.at_hand());
        }
    }

    /// A client that never had its CONNACK has changed nothing [MQTT-3.2.2-3]: its session is as it was,
    /// and waits on; `true` if that is all there is to do.
    fn take_back(&mut self, now: Instant, at: u32, before: Option<Box<Before>>, out: &mut impl Outbox) -> bool {
        let session = &mut self.sessions[at as usize];
        session.will = None;
        let Some(before) = before else { return false };
        match *before {
            Before::New => {
                // It ends with its connection, without a will.
                session.expiry_secs = 0;
                false
            }
            Before::Known { will, will_due, expires, expiry_secs } => {
                session.will = will;
                session.will_due = will_due;
                session.expires = expires;
                session.expiry_secs = expiry_secs;
                if let Some(due) = will_due {
                    self.timers.set(due, Timer::WillDelay(at));
                }
                if let Some(expires) = expires {
                    self.timers.set(expires, Timer::SessionExpiry(at));
                }
                self.leave_to_store(at, out);
                self.persist_session(at, false, out);
                self.tell_rank(now, at, out);
                // Taken over, it had neither: it waits from now on.
                expires.is_some() || expiry_secs == u32::MAX
            }
        }
    }

    fn cancel_session_timers(&mut self, at: u32) {
        let session = &mut self.sessions[at as usize];
        let (expires, will_due) = (session.expires.take(), session.will_due.take());
        if let Some(expires) = expires {
            self.timers.cancel(expires, Timer::SessionExpiry(at));
        }
        if let Some(due) = will_due {
            self.timers.cancel(due, Timer::WillDelay(at));
        }
    }

    /// Ends a session that no connection holds: its will is published [MQTT-3.1.2-8], the rest is
    /// dropped.
    pub(super) fn end_session(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        self.cancel_session_timers(at);
        // Its subscriptions first: a will is not for the session that dies.
        let none = IndexMap::with_hasher(self.keys.clone());
        let filters = std::mem::replace(&mut self.sessions[at as usize].subscriptions, none);
        for filter in filters.keys() {
            self.forget_filter(now, at, Filter::from_parsed(filter), out);
        }
        let left = self.rehome(now, at, None, Departure::Ended, out);
        self.publish_will(now, at, out);
        let session = self.sessions.remove(at as usize);
        if let Some(due) = session.retry {
            self.timers.cancel(due, Timer::Retry(at));
        }
        self.by_client.remove(&session.client);
        if self.options.durable && session.is_durable() {
            let ticket = self.persist(&[Change::SessionEnded { client: session.client.clone() }], out);
            if !left.is_empty() {
                self.wait(ticket, Waiting::Drain(left));
            }
        }
    }

    /// Publishes a session's will, if it has one, and writes down that nobody is connected and that there is
    /// no will any more: with the message, so that it comes once, and comes.
    fn publish_will(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let will = self.sessions[at as usize].will.take();
        let Some(will) = will else { return self.persist_session(at, false, out) };
        let topic = Topic::from_parsed(&will.topic);
        // The ACL may have changed since CONNECT.
        if !self.allows(at, Operation::Write, topic) {
            self.counters.acl_denied_publish += 1;
            return self.persist_session(at, false, out);
        }
        self.counters.wills_published += 1;
        let (_, ticket) = self.route(
            now,
            &super::route::Incoming {
                topic,
                payload: &will.payload,
                qos: will.qos,
                retain: will.retain,
                message_expiry_interval_secs: will.message_expiry_interval_secs,
                forwarded: &will.forwarded,
                publisher: at,
                connection: None,
                received: None,
                with: self.session_change(at, false),
            },
            out,
        );
        if ticket.is_none() {
            self.persist_session(at, false, out);
        }
    }

    pub(super) fn will_due(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        self.sessions[at as usize].will_due = None;
        self.publish_will(now, at, out);
    }

    /// Writes down how a session stands, where it is written down at all.
    pub(super) fn persist_session(&mut self, at: u32, connected: bool, out: &mut impl Outbox) {
        if let Some(change) = self.session_change(at, connected) {
            out.persist(None, &[change]);
        }
    }

    fn session_change(&self, at: u32, connected: bool) -> Option<Change> {
        let session = &self.sessions[at as usize];
        (self.options.durable && session.is_durable()).then(|| Change::Session {
            client: session.client.clone(),
            identity: session.identity.clone(),
            realm: session.realm,
            expiry_interval_secs: session.expiry_secs,
            will: session.will.clone(),
            connected,
            is_new: false,
        })
    }

    pub(super) fn session_expired(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        self.sessions[at as usize].expires = None;
        self.counters.sessions_expired += 1;
        out.note(Note::SessionExpired { client: &self.sessions[at as usize].client });
        self.end_session(now, at, out);
    }

    /// The timer of a keep alive: heard of since, it is set anew [MQTT-3.1.2-22].
    pub(super) fn keep_alive_due(&mut self, now: Instant, index: u32, out: &mut impl Outbox) {
        let Some(connection) = self.connections[index as usize].as_mut() else { return };
        if !out.is_read(connection.id) {
            // We do not listen to it: it cannot be late.
            connection.heard = now;
        }
        let deadline = connection.heard + keep_alive_deadline(connection.keep_alive_secs);
        if deadline > now {
            connection.keep_alive_set = Some(deadline);
            self.timers.set(deadline, Timer::KeepAlive(index));
        } else {
            connection.keep_alive_set = None;
            let id = connection.id;
            self.violate(now, id, Violation::KeepAlive, out);
        }
    }

    /// DISCONNECT from the client.
    pub(super) fn disconnect(
        &mut self,
        now: Instant,
        id: ConnectionId,
        packet: &Disconnect<'_>,
        out: &mut impl Outbox,
    ) {
        let Some(connection) = self.connection(id) else { return };
        let reason = packet.reason;
        use ReasonCode as R;
        // Table 3-13: what only a server may say.
        if matches!(
            reason,
            R::NotAuthorized
                | R::ServerBusy
                | R::ServerShuttingDown
                | R::KeepAliveTimeout
                | R::SessionTakenOver
                | R::TopicFilterInvalid
                | R::RetainNotSupported
                | R::QoSNotSupported
                | R::UseAnotherServer
                | R::ServerMoved
                | R::SharedSubscriptionsNotSupported
                | R::ConnectionRateExceeded
                | R::MaximumConnectTime
                | R::SubscriptionIdentifiersNotSupported
                | R::WildcardSubscriptionsNotSupported
        ) {
            return self.violate(now, id, Violation::DisconnectReason, out);
        }
        let at = connection.session;
        if let Some(secs) = packet.session_expiry_interval {
            // Section 3.14.2.2.2: zero in CONNECT cannot be raised here.
            if secs > 0 && !connection.may_set_expiry {
                return self.violate(now, id, Violation::SessionExpiryRaised, out);
            }
            self.sessions[at as usize].expiry_secs = secs.min(self.options.limits.session_expiry_secs_max);
        }
        self.finish(now, id, Closing::ByClient(reason), out);
    }
}

/// Bytes that the client takes in one packet [MQTT-3.1.2-24].
fn packet_size_max(connect: &Connect<'_>) -> u32 {
    connect.properties.maximum_packet_size.unwrap_or(u32::MAX)
}

/// A topic as it is with what the client's listener puts before it.
pub(super) fn mounted<'a>(mount_point: &str, topic: &'a str) -> Cow<'a, str> {
    if mount_point.is_empty() { Cow::Borrowed(topic) } else { Cow::Owned(format!("{mount_point}{topic}")) }
}
