//! What the store had at start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::change::{Change, Restored, RestoredInflight, RestoredSession};
use super::commit::Waiting;
use super::index::Subscriber;
use super::message::{Body, Delivery, Origin};
use super::outbox::Outbox;
use super::session::{Inflight, Session, State, Subscription};
use super::shared::group_of;
use super::timers::Timer;
use crate::types::{Filter, QoS};

impl Core {
    /// Goes on where the store says that everything ended: before anybody connects.
    pub(super) fn restore(&mut self, now: Instant, restored: Restored, out: &mut impl Outbox) {
        self.next_message = self.next_message.max(restored.next_message);
        for message in restored.retained {
            self.retained.set(message);
        }
        for topic in restored.unreadable {
            out.persist(None, &[Change::RetainedCleared { topic }]);
        }
        let mut orphans = Vec::new();
        for session in restored.sessions {
            if session.is_session {
                self.restore_session(now, session, out);
            } else {
                orphans.push(session);
            }
        }
        // Only now is everybody there who may take what others left.
        for orphan in orphans {
            let sent = orphan.inflight.into_iter().filter_map(|entry| entry.sent?.to.shared);
            let shares: BTreeSet<Arc<str>> = orphan.shares.into_iter().chain(sent).collect();
            let ticket = self.persist(&[Change::SessionEnded { client: orphan.client }], out);
            self.wait(ticket, Waiting::Drain(shares.into_iter().collect()));
        }
        for group in restored.groups {
            if let Some(share) = group_of(&group) {
                self.drain(now, share.into(), out);
            }
        }
    }

    fn restore_session(&mut self, now: Instant, restored: RestoredSession, out: &mut impl Outbox) {
        self.next_session += 1;
        let (client, keys) = (restored.client.clone(), self.keys.clone());
        let mut session = Session::new(client, self.next_session, restored.identity, restored.realm, keys);
        session.outgoing.restore_inflight(restored.inflight.into_iter().map(inflight).collect());
        session.outgoing.restore_waiting(restored.waiting, restored.shares);
        session.expiry_secs = restored.expiry_interval_secs;
        session.received = restored.received.into_iter().map(|packet_id| (packet_id, None)).collect();
        session.stored = true;
        let expires = (restored.expiry_interval_secs != u32::MAX).then(|| now + restored.expires_in);
        let will_due = restored.will.as_ref().map(|_| now + restored.will_in);
        (session.expires, session.will, session.will_due) = (expires, restored.will, will_due);
        let at = self.sessions.insert(session) as u32;
        self.by_client.insert(restored.client, at);
        if let Some(expires) = expires {
            self.timers.set(expires, Timer::SessionExpiry(at));
        }
        if let Some(due) = will_due {
            self.timers.set(due, Timer::WillDelay(at));
        }
        for subscription in restored.subscriptions {
            let filter = Filter::from_parsed(&subscription.filter);
            let (options, identifier) = (subscription.options, subscription.identifier);
            let subscriber = Subscriber {
                session: at,
                identifier: identifier.unwrap_or(0),
                qos: options.qos,
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
            };
            if filter.share().is_some() && !self.is_home(filter.as_str()) {
                self.join_elsewhere(now, at, filter, false, subscriber, out);
            } else {
                self.index.insert(filter, false, subscriber);
                self.want(now, filter, out);
            }
            let subscriptions = &mut self.sessions[at as usize].subscriptions;
            subscriptions.insert(subscription.filter, Subscription { options, identifier });
        }
        if restored.connected {
            // It is not connected any more.
            self.persist_session(at, false, out);
        }
    }
}

fn inflight(restored: RestoredInflight) -> Inflight {
    let body = Body::Stored(restored.message);
    let (state, delivery) = match restored.sent {
        None => {
            let delivery = Delivery {
                body,
                qos: QoS::ExactlyOnce,
                retain: false,
                kept: true,
                identifiers: smallvec::SmallVec::new(),
                hold: None,
                origin: Origin::Live,
                published: QoS::ExactlyOnce,
                size: 0,
            };
            (State::Released, delivery)
        }
        Some(sent) => {
            let delivery = Delivery {
                body,
                qos: sent.to.qos,
                retain: sent.to.retain,
                kept: true,
                identifiers: sent.to.subscription_identifiers.into(),
                hold: None,
                origin: sent.to.shared.map_or(Origin::Live, Origin::Shared),
                published: sent.published,
                size: sent.size,
            };
            (State::Published, delivery)
        }
    };
    Inflight { packet_id: restored.packet_id, state, delivery, tried: true, unkept: false, pubrel_sent: false }
}
