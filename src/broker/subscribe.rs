//! SUBSCRIBE and UNSUBSCRIBE.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::time::Instant;

use super::change::{Change, Ticket};
use super::commit::Waiting;
use super::connection::{ConnectionId, HeldKind};
use super::index::Subscriber;
use super::letter::Content;
use super::outbox::{Note, Outbox};
use super::session::Subscription;
use super::shared::Departure;
use super::violation::Violation;
use super::{Core, dialect};
use crate::codec::{Packet, SubAck, Subscribe, UnsubAck, Unsubscribe};
use crate::types::{Filter, QoS, ReasonCode, RetainHandling};

impl Core {
    pub(super) fn subscribe(&mut self, now: Instant, id: ConnectionId, packet: &Subscribe<'_>, out: &mut impl Outbox) {
        let connection = self.connection(id).expect("checked by receive");
        let (version, at, entrance) = (connection.version, connection.session, connection.entrance.clone());
        let count = packet.filters.iter().count();
        if count > self.options.limits.filters_per_subscribe_max {
            return self.violate(now, id, Violation::TooManyFilters(count), out);
        }
        let mut changes = Vec::new();
        let mut known_by = Vec::new();
        let mut reasons = Vec::with_capacity(count);
        let mut refused = None;
        for entry in packet.filters.iter() {
            let identifier = packet.subscription_identifier;
            let wanted = mounted(&entrance.mount_point, entry.filter);
            let mut options = entry.options;
            // [MQTT-3.8.4-8]: nothing above what is granted.
            options.qos = options.qos.min(self.options.limits.qos_max).min(entrance.qos_max);
            let subscription = Subscription { options, identifier };
            reasons.push(match self.subscribe_one(now, at, &wanted, subscription, &mut changes, &mut known_by, out) {
                Ok(reason) => {
                    out.note(Note::Subscribed { connection: id, filter: &wanted, qos: options.qos });
                    reason
                }
                Err(reason) => {
                    refused = refused.or(Some(reason));
                    if reason == ReasonCode::NotAuthorized {
                        self.counters.acl_denied_subscribe += 1;
                    }
                    out.note(Note::SubscribeDenied { connection: id, filter: entry.filter, reason });
                    dialect::refused_filter(version, entry.options.qos, reason)
                }
            });
        }
        // Retained messages are looked at once every shard forwards what comes after them.
        let known = self.all_of(&known_by);
        if let Some(known) = known {
            self.scans_wait(at, known);
            self.wait(known, Waiting::Deliveries(self.sessions[at as usize].client.clone()));
        }
        let written = (!changes.is_empty()).then(|| self.persist(&changes, out));
        let ticket = self.all_of(&Vec::from_iter(known.into_iter().chain(written)));
        // [MQTT-3.8.4-1], [MQTT-3.8.4-2], [MQTT-3.8.4-6]
        let reason_string = refused.map(explain);
        let suback = SubAck { packet_id: packet.packet_id, reasons, reason_string };
        self.acknowledge(id, HeldKind::Other, &Packet::SubAck(suback), ticket, out);
        self.scan_retained(now, at, out);
    }

    /// Grants one filter, or says why not. What other shards have to know of it goes to `known_by`.
    #[expect(clippy::too_many_arguments, reason = "one filter of the packet, by its one reader")]
    fn subscribe_one(
        &mut self,
        now: Instant,
        at: u32,
        wanted: &str,
        subscription: Subscription,
        changes: &mut Vec<Change>,
        known_by: &mut Vec<Ticket>,
        out: &mut impl Outbox,
    ) -> Result<ReasonCode, ReasonCode> {
        let Subscription { options, identifier } = subscription;
        let filter = Filter::parse(wanted).map_err(|_| ReasonCode::TopicFilterInvalid)?;
        let limits = &self.options.limits;
        if limits.is_topic_too_large(filter.path()) {
            return Err(ReasonCode::TopicFilterInvalid);
        }
        let session = &mut self.sessions[at as usize];
        if !limits.as_mosquitto && !self.acl.may_subscribe(session.subject(), filter) {
            return Err(ReasonCode::NotAuthorized);
        }
        let known = session.subscriptions.contains_key(filter.as_str());
        if !known && session.subscriptions.len() >= limits.subscriptions_max {
            return Err(ReasonCode::QuotaExceeded);
        }
        // [MQTT-3.8.4-3]: a subscription with the same filter is replaced.
        session.subscriptions.insert(filter.as_str().into(), subscription);
        let subscriber = Subscriber {
            session: at,
            identifier: identifier.unwrap_or(0),
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
        };
        if self.options.durable && session.is_durable() {
            changes.push(Change::Subscribed {
                client: session.client.clone(),
                filter: filter.as_str().into(),
                options,
                identifier,
            });
        }
        if filter.share().is_some() && !self.is_home(filter.as_str()) {
            known_by.push(self.join_elsewhere(now, at, filter, known, subscriber, out));
        } else {
            self.index.insert(filter, known, subscriber);
            known_by.extend(if known { self.all_know(filter) } else { self.want(now, filter, out) });
        }
        // [MQTT-3.3.1-9], [MQTT-3.3.1-10], [MQTT-3.3.1-11]: retain handling. Section 4.8.2: a shared
        // subscription gets none.
        let wanted = match options.retain_handling {
            RetainHandling::SendAtSubscribe => true,
            RetainHandling::SendIfNew => !known,
            RetainHandling::DoNotSend => false,
        };
        if wanted && filter.share().is_none() && (self.retains_anything() || !self.border.is_alone()) {
            self.begin_scan(at, filter, subscription);
        } else {
            let under_way = self.sessions[at as usize].scans.of_mut(filter.as_str());
            under_way.into_iter().for_each(|scan| scan.subscription = subscription);
        }
        // Section 3.2.2.3.4: any QoS may be asked for, and no higher one is granted.
        Ok(match options.qos {
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
        let connection = self.connection(id).expect("checked by receive");
        let (at, entrance) = (connection.session, connection.entrance.clone());
        let count = packet.filters.iter().count();
        if count > self.options.limits.filters_per_subscribe_max {
            return self.violate(now, id, Violation::TooManyFilters(count), out);
        }
        let mut changes = Vec::new();
        let mut reasons = Vec::new();
        let mut refused = None;
        for text in packet.filters.iter() {
            let text = &*mounted(&entrance.mount_point, text);
            let session = &mut self.sessions[at as usize];
            out.note(Note::Unsubscribed { connection: id, filter: text });
            // [MQTT-3.10.4-1]: compared character by character.
            reasons.push(match Filter::parse(text) {
                Err(_) => {
                    refused = Some(ReasonCode::TopicFilterInvalid);
                    ReasonCode::TopicFilterInvalid
                }
                Ok(filter) if session.subscriptions.swap_remove(text).is_some() => {
                    session.scans.remove(text);
                    if self.options.durable && session.is_durable() {
                        changes.push(Change::Unsubscribed { client: session.client.clone(), filter: text.into() });
                    }
                    self.forget_filter(now, at, filter, out);
                    if filter.share().is_some() {
                        self.rehome(now, at, Some(text), Departure::Unsubscribed, out);
                    }
                    ReasonCode::Success
                }
                Ok(_) => ReasonCode::NoSubscriptionExisted,
            });
        }
        let ticket = (!changes.is_empty()).then(|| self.persist(&changes, out));
        // [MQTT-3.10.4-4], [MQTT-3.10.4-5]
        let unsuback = UnsubAck { packet_id: packet.packet_id, reasons, reason_string: refused.map(explain) };
        self.acknowledge(id, HeldKind::Other, &Packet::UnsubAck(unsuback), ticket, out);
    }

    /// Takes a session's filter out of the index, or of the shared subscription that another shard has.
    pub(super) fn forget_filter(&mut self, now: Instant, at: u32, filter: Filter<'_>, out: &mut impl Outbox) {
        if filter.share().is_some() && !self.is_home(filter.as_str()) {
            let owner = self.home(filter.as_str());
            let session = &mut self.sessions[at as usize];
            if let Entry::Occupied(mut count) = session.shared_at.entry(owner) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
            let leave = Content::Leave { share: filter.as_str().into(), client: session.client.clone() };
            self.tell(now, owner, leave, out);
        } else if self.index.remove(filter, at) {
            self.unwant(now, filter, out);
        }
    }

    fn retains_anything(&self) -> bool {
        self.retained.len() > 0 || !self.retained_changes.is_empty()
    }
}

/// A filter as it is with what the client's listener puts before it: behind the name of a share.
fn mounted<'a>(mount_point: &str, filter: &'a str) -> Cow<'a, str> {
    if mount_point.is_empty() {
        return Cow::Borrowed(filter);
    }
    // What is none as the client says it does not become one.
    let Ok(parsed) = Filter::parse(filter) else { return Cow::Borrowed(filter) };
    let path = if parsed.share().is_some() { filter.len() - parsed.path().len() } else { 0 };
    Cow::Owned(format!("{}{mount_point}{}", &filter[..path], &filter[path..]))
}

/// What a reason string says of a filter that was refused.
fn explain(reason: ReasonCode) -> &'static str {
    match reason {
        ReasonCode::NotAuthorized => "the ACL does not let this client read what the filter matches",
        ReasonCode::TopicFilterInvalid => "it is no topic filter, or has too many levels or bytes",
        ReasonCode::QuotaExceeded => "this session has as many subscriptions as it may have",
        other => other.text(),
    }
}
