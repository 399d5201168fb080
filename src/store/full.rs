//! A disk that is full, on purpose: nothing new can be kept.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Answer, Store};
use crate::broker::{Change, Fetched, MessageId, Restored, RestoredSession, RestoredSubscription, Ticket, Wanted};
use crate::codec::SubscriptionOptions;
use crate::types::{ClientId, QoS, Realm};

/// Fails whatever may fail.
#[derive(Debug, Default)]
pub struct FullStore {
    answers: VecDeque<Answer>,
}

impl FullStore {
    /// With a session that is away and wants everything: each message at QoS 1 and 2 would have to be kept for it.
    pub fn new() -> (FullStore, Restored) {
        let witness = RestoredSession {
            client: ClientId::new("wants-everything").expect("not empty"),
            is_session: true,
            identity: None,
            realm: Realm::SITE,
            connected: false,
            expiry_interval_secs: u32::MAX,
            expires_in: Duration::MAX,
            will: None,
            will_in: Duration::ZERO,
            subscriptions: vec![RestoredSubscription {
                filter: "#".into(),
                options: SubscriptionOptions::at(QoS::ExactlyOnce),
                identifier: None,
            }],
            received: Vec::new(),
            inflight: Vec::new(),
            waiting: Vec::new(),
            shares: Vec::new(),
        };
        (FullStore::default(), Restored { sessions: vec![witness], ..Restored::default() })
    }
}

impl Store for FullStore {
    fn append(&mut self, ticket: Option<Ticket>, changes: &[Change]) {
        let Some(ticket) = ticket else { return };
        self.answers.push_back(match changes.iter().any(Change::must_be_kept) {
            true => Answer::Committed(ticket),
            false => Answer::Failed(ticket),
        });
    }

    fn fetch(&mut self, client: &ClientId, number: u64, _: Wanted) {
        self.answers.push_back(Answer::Fetched(client.clone(), number, Vec::<Fetched>::new()));
    }

    fn rewind(&mut self, _: &ClientId, _: Vec<MessageId>) {}

    fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}
