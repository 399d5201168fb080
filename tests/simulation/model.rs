//! What the clients of a simulated broker must have seen in the end.

use std::collections::{BTreeMap, BTreeSet};

use lockgate::types::QoS;

/// What became of a published message.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fate {
    Accepted,
    Refused,
}

/// A message, by its topic and the number that its publisher gave it.
pub(crate) type Key = (String, u32);

/// One delivery, without the repetitions of QoS 2.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) key: Key,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
}

/// What one client did and saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) name: String,
    /// Keeps its session and its subscriptions throughout: it must get everything.
    pub(crate) steady: bool,
    /// The QoS of its subscription to `t/+`.
    pub(crate) asked: Option<QoS>,
    pub(crate) got: Vec<Got>,
}

/// The whole of a run.
pub(crate) struct Outcome<'a> {
    pub(crate) clients: Vec<&'a Seen>,
    pub(crate) fates: &'a BTreeMap<Key, (QoS, Fate)>,
    /// Shared messages that were sent to a member whose session ended.
    pub(crate) sent_to_the_gone: &'a BTreeSet<Key>,
    pub(crate) wills_due: &'a BTreeSet<u32>,
    /// Of connections that began or ended when the power went: they may come.
    pub(crate) wills_possible: &'a BTreeSet<u32>,
    pub(crate) retained: BTreeMap<String, u32>,
    pub(crate) shared_qos: QoS,
    /// With a failing store a publisher's own repetition may change the order.
    pub(crate) failing: bool,
    /// Queues are short: messages may be dropped.
    pub(crate) tight: bool,
    /// The power went and came back.
    pub(crate) crashing: bool,
}

impl Outcome<'_> {
    pub(crate) fn check(&self) {
        for client in &self.clients {
            if client.steady {
                self.check_deliveries(client);
            }
            self.check_order(client);
            // What could not be kept may have been seen live, and what it would have replaced is retained.
            if !self.failing && !self.crashing {
                check_retained_order(client);
            }
        }
        self.check_shared();
        self.check_wills();
        self.check_retained();
    }

    /// QoS 1 at least once, QoS 2 exactly once, QoS 0 at most once.
    fn check_deliveries(&self, client: &Seen) {
        let asked = client.asked.unwrap();
        for (key, (qos, fate)) in self.fates.iter().filter(|(key, _)| key.0.starts_with("t/")) {
            let effective = (*qos).min(asked);
            let count = client.got.iter().filter(|got| got.key == *key && got.qos == effective).count();
            let lost_is_fine = self.tight && count == 0;
            match (fate, effective) {
                _ if lost_is_fine => {}
                (Fate::Accepted, QoS::ExactlyOnce) => {
                    assert_eq!(count, 1, "{} got {key:?} at QoS 2 {count} times", client.name);
                }
                (Fate::Accepted, _) => {
                    assert!(count >= 1, "{} never got {key:?} (published at {qos:?})", client.name);
                }
                // Withdrawn before its 0x97 left: no copy of a QoS 2 message goes before its commit.
                (Fate::Refused, _) if *qos == QoS::ExactlyOnce => {
                    assert_eq!(count, 0, "{} got {key:?}, which was refused", client.name);
                }
                (Fate::Refused, _) => {}
            }
        }
        let mut seen = BTreeSet::new();
        for got in client.got.iter().filter(|got| got.qos == QoS::AtMostOnce && got.key.0.starts_with("t/")) {
            assert!(seen.insert(&got.key), "{} got {:?} at QoS 0 twice", client.name, got.key);
        }
    }

    /// First deliveries of one topic at one QoS come in the order of their publication
    /// [MQTT-4.6.0-6], where the publisher did not repeat them.
    fn check_order(&self, client: &Seen) {
        // A publisher repeats what was refused, and what was dropped at a limit comes with its repetition.
        if self.failing || self.tight {
            return;
        }
        let mut last: BTreeMap<(&str, QoS, Option<QoS>), u32> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for got in client.got.iter().filter(|got| got.key.0.starts_with("t/")) {
            if !seen.insert((&got.key, got.qos)) {
                continue;
            }
            let published = self.fates.get(&got.key).map(|(qos, _)| *qos);
            let lane = (got.key.0.as_str(), got.qos, published);
            if let Some(previous) = last.insert(lane, got.key.1)
                && client.steady
            {
                assert!(previous < got.key.1, "{}: {:?} after {previous}", client.name, got.key);
            }
        }
    }

    /// Some member of the group has each message; QoS 2 exactly one of them, once [MQTT-4.8.2-4],
    /// [MQTT-4.8.2-5].
    fn check_shared(&self) {
        for (key, (qos, fate)) in self.fates.iter().filter(|(key, _)| key.0.starts_with("s/")) {
            let count = self.clients.iter().flat_map(|client| &client.got).filter(|got| got.key == *key).count();
            let effective = (*qos).min(self.shared_qos);
            if effective == QoS::ExactlyOnce {
                assert!(count <= 1, "{key:?} came to the group at QoS 2 {count} times");
            }
            let lost_is_fine = self.tight
                // With an identifier it may have been sent before the power went: it goes to nobody else.
                || (effective == QoS::ExactlyOnce && (self.crashing || self.sent_to_the_gone.contains(key)))
                || *fate == Fate::Refused;
            assert!(count >= 1 || lost_is_fine, "{key:?} came to nobody of the group");
        }
    }

    /// A will comes for every connection that ended without DISCONNECT, and for no other.
    fn check_wills(&self) {
        let watcher = self.clients.iter().find(|client| client.name == "client2").unwrap();
        let got: BTreeSet<u32> =
            watcher.got.iter().filter(|got| got.key.0.starts_with("w/")).map(|got| got.key.1).collect();
        let unasked: Vec<_> =
            got.difference(self.wills_due).filter(|will| !self.wills_possible.contains(will)).collect();
        assert!(unasked.is_empty(), "wills that nobody was owed: {unasked:?}");
        if !self.failing && !self.tight {
            let missing: Vec<_> = self.wills_due.difference(&got).collect();
            assert!(missing.is_empty(), "wills that never came: {missing:?}");
        }
    }

    /// What is retained in the end is what was accepted last.
    fn check_retained(&self) {
        let mut wanted: BTreeMap<&str, u32> = BTreeMap::new();
        for ((topic, number), (_, fate)) in self.fates.iter().filter(|(key, _)| key.0.starts_with("r/")) {
            if *fate == Fate::Accepted {
                let last = wanted.entry(topic).or_default();
                *last = (*last).max(*number);
            }
        }
        let got: BTreeMap<&str, u32> = self.retained.iter().map(|(topic, number)| (topic.as_str(), *number)).collect();
        if self.failing {
            // A repetition of what failed may come after its successor, and what was kept be refused when it
            // was repeated.
            assert!(wanted.keys().all(|topic| got.contains_key(topic)), "retained: {got:?}, not {wanted:?}");
        } else {
            assert_eq!(got, wanted, "retained");
        }
    }
}

/// No retained copy comes after a newer live message of its topic.
fn check_retained_order(client: &Seen) {
    let mut newest: BTreeMap<&str, u32> = BTreeMap::new();
    for got in client.got.iter().filter(|got| got.key.0.starts_with("r/") && !got.dup) {
        let newest = newest.entry(&got.key.0).or_insert(got.key.1);
        if got.retain {
            assert!(got.key.1 >= *newest, "{}: retained {:?} after live {newest}", client.name, got.key);
        } else {
            *newest = got.key.1;
        }
    }
}
