//! SUBSCRIBE, UNSUBSCRIBE and the retained messages that a subscription brings.

use std::sync::Arc;
use std::time::Instant;

use super::change::{Change, QueuedFor};
use super::connection::{ConnectionId, HeldKind};
use super::index::Subscriber;
use super::message::Message;
use super::outbox::{Note, Outbox};
use super::retained::Scan;
use super::session::{RetainedScan, Subscription};
use super::violation::Violation;
use super::{Core, dialect, permitted};
use crate::auth::{Operation, Subject};
use crate::codec::{Packet, SubAck, Subscribe, SubscribeFilter, UnsubAck, Unsubscribe};
use crate::types::{Filter, QoS, ReasonCode, RetainHandling};

impl Core {
    pub(super) fn subscribe(&mut self, now: Instant, id: ConnectionId, packet: &Subscribe<'_>, out: &mut impl Outbox) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, at) = (connection.version, connection.session);
        let count = packet.filters.iter().count();
        if count > self.options.limits.filters_per_subscribe_max {
            return self.violate(now, id, Violation::TooManyFilters(count), out);
        }
        let mut changes = Vec::new();
        let mut reasons = Vec::with_capacity(count);
        for entry in packet.filters.iter() {
            reasons.push(match self.subscribe_one(at, &entry, packet.subscription_identifier, &mut changes) {
                Ok(reason) => reason,
                Err(reason) => {
                    if reason == ReasonCode::NotAuthorized {
                        self.counters.acl_denied_subscribe += 1;
                    }
                    out.note(Note::SubscribeDenied { connection: id, filter: entry.filter, reason });
                    dialect::refused_filter(version, entry.options.qos, reason)
                }
            });
        }
        let ticket = (!changes.is_empty()).then(|| self.persist(changes, out));
        // [MQTT-3.8.4-1], [MQTT-3.8.4-2], [MQTT-3.8.4-6]
        let suback = SubAck { packet_id: packet.packet_id, reasons, reason_string: None };
        self.acknowledge(id, HeldKind::Other, &Packet::SubAck(suback), ticket, out);
        self.scan_retained(now, at, out);
    }

    /// Grants one filter, or says why not.
    fn subscribe_one(
        &mut self,
        at: u32,
        entry: &SubscribeFilter<'_>,
        identifier: Option<u32>,
        changes: &mut Vec<Change>,
    ) -> Result<ReasonCode, ReasonCode> {
        let filter = Filter::parse(entry.filter).map_err(|_| ReasonCode::TopicFilterInvalid)?;
        let limits = &self.options.limits;
        if filter.levels().nth(limits.topic_levels_max).is_some() {
            return Err(ReasonCode::TopicFilterInvalid);
        }
        let session = &mut self.sessions[at as usize];
        let subject = Subject {
            identity: session.identity.as_ref().map(|name| name.as_str()),
            client_id: session.client.as_str(),
        };
        if !self.acl.may_subscribe(subject, filter) {
            return Err(ReasonCode::NotAuthorized);
        }
        let known = session.subscriptions.contains_key(filter.as_str());
        if !known && session.subscriptions.len() >= limits.subscriptions_max {
            return Err(ReasonCode::QuotaExceeded);
        }
        // [MQTT-3.8.4-3]: a subscription with the same filter is replaced.
        let subscription = Subscription { options: entry.options, identifier };
        session.subscriptions.insert(filter.as_str().into(), subscription);
        self.index.insert(
            filter,
            known,
            Subscriber {
                session: at,
                identifier: identifier.unwrap_or(0),
                qos: entry.options.qos,
                no_local: entry.options.no_local,
                retain_as_published: entry.options.retain_as_published,
            },
        );
        if self.options.durable && session.is_durable() {
            changes.push(Change::Subscribed {
                client: session.client.clone(),
                filter: filter.as_str().into(),
                options: entry.options,
                identifier,
            });
        }
        // [MQTT-3.3.1-9] to -11: retain handling; [MQTT-4.8.2-*]: a shared subscription gets none.
        let wanted = match entry.options.retain_handling {
            RetainHandling::SendAtSubscribe => true,
            RetainHandling::SendIfNew => !known,
            RetainHandling::DoNotSend => false,
        };
        if wanted && filter.share().is_none() && self.retained.len() > 0 {
            // One scan a filter: the new one sees all that the old one had left.
            session.scans.retain(|scan| &*scan.filter != filter.as_str());
            session.scans.push_back(RetainedScan {
                filter: filter.as_str().into(),
                scan: Scan::new(filter),
                subscription,
                since: session.live.now,
            });
        }
        Ok(match entry.options.qos {
            QoS::AtMostOnce => ReasonCode::Success,
            QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
            QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
        })
    }

    pub(super) fn unsubscribe(
        &mut self,
        now: Instant,
        id: ConnectionId,
        packet: &Unsubscribe<'_>,
        out: &mut impl Outbox,
    ) {
        let at = self.connection(id).expect("checked by receive").session;
        let count = packet.filters.iter().count();
        if count > self.options.limits.filters_per_subscribe_max {
            return self.violate(now, id, Violation::TooManyFilters(count), out);
        }
        let mut changes = Vec::new();
        let mut reasons = Vec::new();
        for text in packet.filters.iter() {
            let session = &mut self.sessions[at as usize];
            // [MQTT-3.10.4-1]: compared character by character.
            reasons.push(match Filter::parse(text) {
                Err(_) => ReasonCode::TopicFilterInvalid,
                Ok(filter) if session.subscriptions.swap_remove(text).is_some() => {
                    self.index.remove(filter, at);
                    session.scans.retain(|scan| &*scan.filter != text);
                    if self.options.durable && session.is_durable() {
                        changes.push(Change::Unsubscribed { client: session.client.clone(), filter: text.into() });
                    }
                    ReasonCode::Success
                }
                Ok(_) => ReasonCode::NoSubscriptionExisted,
            });
        }
        let ticket = (!changes.is_empty()).then(|| self.persist(changes, out));
        // [MQTT-3.10.4-4], [MQTT-3.10.4-5]
        let unsuback = UnsubAck { packet_id: packet.packet_id, reasons, reason_string: None };
        self.acknowledge(id, HeldKind::Other, &Packet::UnsubAck(unsuback), ticket, out);
    }

    /// One slice of a session's retained scans; what is left goes on when its turn comes and the
    /// client has taken what it got.
    pub(super) fn scan_retained(&mut self, now: Instant, at: u32, out: &mut impl Outbox) {
        let slice = self.options.limits.slice;
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        // Its turn comes again when the client is there and has taken what it got.
        if session.connection.is_none() || !session.outgoing.queue.is_empty() {
            return;
        }
        let Some(mut current) = session.scans.pop_front() else { return };
        let mut found = Vec::new();
        let over = self.retained.scan(&mut current.scan, slice, |message| {
            found.push(message.clone());
            found.len() < slice
        });
        let mut queued = Vec::new();
        for message in found {
            self.deliver_retained(now, at, &current, message, &mut queued);
        }
        if !queued.is_empty() {
            let changes = queued
                .into_iter()
                .map(|(message, queued)| Change::Message {
                    message,
                    received: None,
                    queued: vec![queued],
                    retained: false,
                })
                .collect();
            self.persist(changes, out);
        }
        let session = &mut self.sessions[at as usize];
        if !over {
            session.scans.push_front(current);
        } else if session.scans.is_empty() {
            session.live.clear();
        }
        self.pump(now, at, out);
    }

    fn deliver_retained(
        &mut self,
        now: Instant,
        at: u32,
        scan: &RetainedScan,
        message: Arc<Message>,
        queued: &mut Vec<(Arc<Message>, QueuedFor)>,
    ) {
        let session = &mut self.sessions[at as usize];
        // A live message of this topic went out since: what is retained is not newer.
        if session.live.is_after(&message.topic, scan.since) || message.is_expired(now) {
            return;
        }
        if !permitted(&self.acl, self.acl_generation, session, Operation::Read, message.topic()) {
            return;
        }
        let qos = message.qos.min(scan.subscription.options.qos);
        if qos != QoS::AtMostOnce && self.options.durable && session.is_durable() {
            queued.push((
                message.clone(),
                QueuedFor {
                    client: session.client.clone(),
                    qos,
                    packet_id: None,
                    retain: true,
                    subscription_identifiers: scan.subscription.identifier.into_iter().collect(),
                },
            ));
        }
        // [MQTT-3.3.1-8] of 3.1.1, section 3.3.1.3: RETAIN is set on what a new subscription brings.
        session.outgoing.push_queue(super::message::Delivery {
            size: message.size() as u32,
            body: super::message::Body::Here(message),
            qos,
            retain: true,
            identifiers: scan.subscription.identifier.into_iter().collect(),
            hold: None,
            scanned: true,
        });
    }
}
