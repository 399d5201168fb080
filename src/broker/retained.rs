//! Retained messages (MQTT 5 section 3.3.1.3), in the order of their topics' levels.
//!
//! A key is the topic with `/` as U+0000, which no topic contains: byte order is then level order,
//! a filter's matches are found by seeking from one to the next, and a scan can stop and go on
//! from where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use super::message::Message;
use crate::types::{Filter, Topic};

#[derive(Default, Debug)]
pub(super) struct Retained {
    messages: BTreeMap<Box<str>, Arc<Message>>,
    expiring: BTreeSet<(Instant, Box<str>)>,
    bytes: usize,
}

fn key(topic: &str) -> Box<str> {
    topic.replace('/', "\0").into()
}

impl Retained {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, topic: Topic<'_>) -> Option<&Arc<Message>> {
        self.messages.get(&key(topic.as_str()))
    }

    /// Replaces what the topic held [MQTT-3.3.1-5].
    pub(super) fn set(&mut self, message: Arc<Message>) {
        let key = key(&message.topic);
        self.bytes += message.size();
        if let Some(at) = message.expires {
            self.expiring.insert((at, key.clone()));
        }
        if let Some(old) = self.messages.insert(key.clone(), message) {
            self.forget(&key, &old);
        }
    }

    /// An empty payload removes [MQTT-3.3.1-6]; `true` if there was one.
    pub(super) fn clear(&mut self, topic: Topic<'_>) -> bool {
        let key = key(topic.as_str());
        match self.messages.remove(&key) {
            Some(old) => {
                self.forget(&key, &old);
                true
            }
            None => false,
        }
    }

    fn forget(&mut self, key: &str, old: &Message) {
        self.bytes -= old.size();
        if let Some(at) = old.expires {
            let replaced = self.messages.get(key).is_some_and(|new| new.expires == Some(at));
            if !replaced {
                self.expiring.remove(&(at, Box::from(key)));
            }
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiring.first().map(|(at, _)| *at)
    }

    /// Removes one message whose time is over; `None` when there is no more.
    pub(super) fn expire_one(&mut self, now: Instant) -> Option<Arc<Message>> {
        if self.next_expiry()? > now {
            return None;
        }
        let (_, key) = self.expiring.pop_first()?;
        let old = self.messages.remove(&key)?;
        self.bytes -= old.size();
        Some(old)
    }

    /// Looks at up to `budget` places for matches of `scan` and offers each to `take`, which says
    /// whether it had room for it. `true` when the scan is over.
    pub(super) fn scan(&self, scan: &mut Scan, budget: usize, mut take: impl FnMut(&Arc<Message>) -> bool) -> bool {
        scan.begun = true;
        for _ in 0..budget {
            let Some((key, message)) =
                self.messages.range::<str, _>((scan.from.as_ref().map(|k| &**k), Bound::Unbounded)).next()
            else {
                return true;
            };
            match scan.step(key) {
                Step::Match => {
                    if !take(message) {
                        return false;
                    }
                    scan.from = Bound::Excluded(key.clone());
                }
                Step::Seek(from) => scan.from = from,
                Step::Over => return true,
            }
        }
        false
    }
}

/// A filter's walk over the retained messages, which can be put down and taken up again.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    levels: Box<[Box<str>]>,
    from: Bound<Box<str>>,
    begun: bool,
}

enum Step {
    Match,
    Seek(Bound<Box<str>>),
    Over,
}

impl Scan {
    pub(super) fn new(filter: Filter<'_>) -> Scan {
        let levels: Box<[Box<str>]> = filter.levels().map(Box::from).collect();
        let literal: Vec<&str> = levels.iter().map(|level| &**level).take_while(|level| !is_wildcard(level)).collect();
        Scan { from: Bound::Included(literal.join("\0").into()), levels, begun: false }
    }

    /// Something was looked at already.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the walk is past `topic`.
    pub(super) fn has_passed(&self, topic: Topic<'_>) -> bool {
        let key = key(topic.as_str());
        match &self.from {
            Bound::Included(from) => key < *from,
            Bound::Excluded(from) => key <= *from,
            Bound::Unbounded => false,
        }
    }

    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// What to do at `key`, the first place at or after the cursor: it matches, or the nearest
    /// place behind it that could match is named.
    fn step(&self, key: &str) -> Step {
        // [MQTT-4.7.2-1]: topics that begin with $ are skipped by a leading wildcard. They lie
        // together, between "$" and "%".
        if is_wildcard(&self.levels[0]) && key.starts_with('$') {
            return Step::Seek(Bound::Included("%".into()));
        }
        let mut start = 0;
        let mut rest = Some(key);
        for (depth, wanted) in self.levels.iter().enumerate() {
            if &**wanted == "#" {
                return Step::Match;
            }
            let Some(text) = rest else {
                // The topic ends above: what could match lies below it.
                return Step::Seek(Bound::Included(format!("{key}\0{}", self.literal_tail(depth)).into()));
            };
            let (level, below) = match text.split_once('\0') {
                Some((level, below)) => (level, Some(below)),
                None => (text, None),
            };
            let end = start + level.len();
            if &**wanted != "+" && level != &**wanted {
                let prefix = &key[..start];
                if level < &**wanted {
                    return Step::Seek(Bound::Included(format!("{prefix}{}", self.literal_tail(depth)).into()));
                }
                // Past the only value that this level may have: the next value of a level above.
                return match self.levels[..depth].iter().any(|above| &**above == "+") {
                    true => Step::Seek(Bound::Included(
                        format!("{}\u{1}", prefix.strip_suffix('\0').unwrap_or(prefix)).into(),
                    )),
                    false => Step::Over,
                };
            }
            start = end + 1;
            rest = below;
        }
        match rest {
            None => Step::Match,
            // The topic goes on below the filter's end: skip all of it.
            Some(_) => Step::Seek(Bound::Included(format!("{}\u{1}", &key[..start - 1]).into())),
        }
    }

    /// The filter's levels from `depth` on, as far as they are literal.
    fn literal_tail(&self, depth: usize) -> String {
        let tail: Vec<&str> =
            self.levels[depth..].iter().map(|level| &**level).take_while(|level| !is_wildcard(level)).collect();
        tail.join("\0")
    }
}

fn is_wildcard(level: &str) -> bool {
    level == "+" || level == "#"
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::message::MessageId;
    use super::*;
    use crate::types::QoS;

    fn message(topic: &str) -> Arc<Message> {
        Arc::new(Message {
            id: MessageId(0),
            topic: topic.into(),
            payload: Bytes::from_static(b"x"),
            forwarded: Box::default(),
            qos: QoS::AtMostOnce,
            expires: None,
            publisher: None,
        })
    }

    fn text(alphabet: &'static str) -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(alphabet.split(' ').collect::<Vec<_>>()), 1..5)
            .prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn a_scan_in_slices_finds_exactly_what_the_filter_says(
            topics in proptest::collection::btree_set(text("a b ab $s \u{1} ä _"), 1..60),
            filter in text("a b ab + # $s \u{1} ä"),
            budget in 1usize..5,
        ) {
            let Ok(filter) = Filter::parse(&filter) else { return Ok(()) };
            let mut retained = Retained::default();
            for topic in &topics {
                retained.set(message(topic));
            }
            let mut scan = Scan::new(filter);
            let mut found = Vec::new();
            let mut slices = 0;
            while !retained.scan(&mut scan, budget, |message| { found.push(message.topic.to_string()); true }) {
                slices += 1;
                prop_assert!(slices < 5000, "the scan does not end");
            }
            found.sort();
            let mut wanted: Vec<String> =
                topics.iter().filter(|topic| filter.matches(Topic::parse(topic).unwrap())).cloned().collect();
            wanted.sort();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn an_empty_topic_set_counts_nothing() {
        let mut retained = Retained::default();
        retained.set(message("a"));
        retained.set(message("a"));
        assert_eq!((retained.len(), retained.bytes()), (1, 2));
        assert!(retained.clear(Topic::parse("a").unwrap()));
        assert_eq!((retained.len(), retained.bytes()), (0, 0));
    }
}
