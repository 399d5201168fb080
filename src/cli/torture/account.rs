use std::collections::BTreeMap;

use super::publisher::Published;
use crate::types::QoS;

/// What one subscriber got.
#[derive(Clone, Default, Debug)]
pub(super) struct Received {
    /// By topic: how often each number came.
    counts: BTreeMap<String, BTreeMap<u64, u64>>,
    newest: BTreeMap<String, u64>,
    out_of_order: u64,
    /// QoS 1 that came again.
    repeated: u64,
    /// What is none of the messages that were published.
    strange: u64,
}

impl Received {
    pub(super) fn note(&mut self, topic: &str, payload: &[u8], qos: QoS) {
        let Some(number) = str::from_utf8(payload).ok().and_then(|text| text.parse::<u64>().ok()) else {
            self.strange += 1;
            return;
        };
        let count = self.counts.entry(topic.to_owned()).or_default().entry(number).or_default();
        *count += 1;
        if *count > 1 {
            self.repeated += u64::from(qos == QoS::AtLeastOnce);
            return;
        }
        // First deliveries come in the order of their publication [MQTT-4.6.0-6].
        match self.newest.get_mut(topic) {
            Some(newest) if *newest > number => self.out_of_order += 1,
            Some(newest) => *newest = number,
            None => drop(self.newest.insert(topic.to_owned(), number)),
        }
    }
}

/// Acknowledged against received.
#[derive(Clone, Default, Debug)]
pub(super) struct Account {
    pub(super) acknowledged: u64,
    /// Acknowledged, and not received by everybody.
    pub(super) lost: u64,
    pub(super) twice: u64,
    pub(super) out_of_order: u64,
    pub(super) repeated: u64,
    pub(super) retained_lost: bool,
    /// The first few of what went wrong.
    pub(super) examples: Vec<String>,
}

const EXAMPLES: usize = 10;

impl Account {
    pub(super) fn of(published: &[Published], received: &[Received], retained: Option<u64>) -> Account {
        let mut account = Account::default();
        for (number, published) in published.iter().enumerate() {
            account.acknowledged += published.acknowledged.len() as u64;
            if published.unanswered > 0 {
                account.example(format!(
                    "{} messages of publisher {number} were never acknowledged",
                    published.unanswered
                ));
            }
            let topic = if published.retains { super::STATE.to_owned() } else { format!("torture/{number}") };
            account.one(&topic, published, received);
        }
        for received in received {
            account.out_of_order += received.out_of_order;
            account.repeated += received.repeated;
            if received.strange > 0 {
                account.example(format!("{} messages that nobody published", received.strange));
            }
        }
        let newest =
            published.iter().filter(|published| published.retains).flat_map(|published| &published.acknowledged);
        if let Some(newest) = newest.max().filter(|newest| retained.is_none_or(|retained| retained < **newest)) {
            account.retained_lost = true;
            account.example(format!("{newest} was acknowledged as the state; {retained:?} is retained"));
        }
        account
    }

    fn one(&mut self, topic: &str, published: &Published, received: &[Received]) {
        let none = BTreeMap::new();
        for (at, received) in received.iter().enumerate() {
            let counts = received.counts.get(topic).unwrap_or(&none);
            if published.qos == QoS::ExactlyOnce {
                for (number, count) in counts.iter().filter(|(_, count)| **count > 1) {
                    self.twice += 1;
                    self.example(format!("subscriber {at} got {topic} {number} at QoS 2 {count} times"));
                }
            }
        }
        for number in &published.acknowledged {
            let misses =
                |received: &Received| received.counts.get(topic).is_none_or(|counts| !counts.contains_key(number));
            let missing: Vec<usize> = (0..received.len()).filter(|at| misses(&received[*at])).collect();
            if !missing.is_empty() {
                self.lost += 1;
                self.example(format!("{topic} {number} was acknowledged and never came to subscribers {missing:?}"));
            }
        }
    }

    fn example(&mut self, what: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(what);
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        let bad = self.lost + self.twice + self.out_of_order;
        bad == 0 && !self.retained_lost && self.examples.is_empty() && self.acknowledged > 0
    }
}
