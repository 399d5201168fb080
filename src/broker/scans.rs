use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::change::Ticket;
use super::index::{Index, Matches, Subscriber};
use super::letter::ShardId;
use super::retained::Scan;
use super::session::Subscription;
use crate::types::{Filter, QoS, Topic};

/// A session's walks over the retained messages, one a filter. Most sessions have none.
#[derive(Debug, Default)]
pub(super) struct Scans {
    under_way: Option<Box<UnderWay>>,
    /// Another shard has been asked for a slice, for one that may not be wanted any more.
    pub(super) asked: bool,
    /// The core's list of those that wait for changes has the session.
    pub(super) waits: bool,
}

#[derive(Debug)]
struct UnderWay {
    /// By their serials: oldest first.
    scans: BTreeMap<u32, RetainedScan>,
    by_filter: HashMap<Box<str>, u32, ahash::RandomState>,
    /// Which of them find a topic.
    index: Index,
    live: Live,
}

impl Scans {
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_none()
    }

    /// In place of the filter's old one: it sees all that that had left.
    pub(super) fn insert(
        &mut self,
        serial: u32,
        filter: Filter<'_>,
        subscription: Subscription,
        hasher: &ahash::RandomState,
    ) {
        let under_way = self.under_way.get_or_insert_with(|| {
            Box::new(UnderWay {
                scans: BTreeMap::new(),
                by_filter: HashMap::with_hasher(hasher.clone()),
                index: Index::new(hasher.clone()),
                live: Live::default(),
            })
        });
        under_way.remove(filter.as_str());
        let plain = Subscriber {
            session: serial,
            identifier: 0,
            qos: QoS::AtMostOnce,
            no_local: false,
            retain_as_published: false,
        };
        under_way.index.insert(filter, false, plain);
        under_way.by_filter.insert(filter.as_str().into(), serial);
        let scan = RetainedScan {
            filter: filter.as_str().into(),
            subscription,
            since: under_way.live.now,
            after: None,
            shard: ShardId(0),
            scan: Some(Scan::new(filter)),
            upto: None,
        };
        under_way.scans.insert(serial, scan);
    }

    pub(super) fn remove(&mut self, filter: &str) {
        let Some(under_way) = &mut self.under_way else { return };
        under_way.remove(filter);
        // None is left that would ask which topics were live.
        if under_way.scans.is_empty() {
            self.under_way = None;
        }
    }

    pub(super) fn of_mut(&mut self, filter: &str) -> Option<&mut RetainedScan> {
        let under_way = self.under_way.as_mut()?;
        under_way.scans.get_mut(under_way.by_filter.get(filter)?)
    }

    pub(super) fn get_mut(&mut self, serial: u32) -> Option<&mut RetainedScan> {
        self.under_way.as_mut()?.scans.get_mut(&serial)
    }

    pub(super) fn oldest_mut(&mut self) -> Option<(u32, &mut RetainedScan)> {
        let (serial, scan) = self.under_way.as_mut()?.scans.iter_mut().next()?;
        Some((*serial, scan))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut RetainedScan> {
        self.under_way.iter_mut().flat_map(|under_way| under_way.scans.values_mut())
    }

    /// Those whose filters match `topic`, oldest first.
    pub(super) fn matching(&self, topic: Topic<'_>) -> Vec<&RetainedScan> {
        self.under_way.as_ref().map_or_else(Vec::new, |under_way| under_way.matching(topic))
    }

    /// No scan is to bring what is retained of `topic`, if one would. The topic is known by `hash`.
    pub(super) fn note_live(&mut self, topic: Topic<'_>, hash: u64, bytes_max: usize) {
        if let Some(under_way) = &mut self.under_way
            && !under_way.matching(topic).is_empty()
        {
            under_way.live.note(hash, bytes_max);
        }
    }

    /// Whether what is retained of the topic with this hash is not to be sent by a scan begun at `since`.
    pub(super) fn liveness(&self, topic: u64, since: u64) -> Liveness {
        match &self.under_way {
            Some(under_way) if under_way.live.is_full => Liveness::Unknown,
            Some(under_way) if under_way.live.is_after(topic, since) => Liveness::Void,
            _ => Liveness::Current,
        }
    }
}

/// How what is retained of a topic stands to a session's live messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Liveness {
    Current,
    /// A live message has gone.
    Void,
    /// More came than may be remembered: it can no longer be told from what is void.
    Unknown,
}

impl UnderWay {
    fn remove(&mut self, filter: &str) {
        let Some(serial) = self.by_filter.remove(filter) else { return };
        self.scans.remove(&serial);
        self.index.remove(Filter::from_parsed(filter), serial);
    }

    fn matching(&self, topic: Topic<'_>) -> Vec<&RetainedScan> {
        let mut matches = Matches::default();
        self.index.find(topic, &mut matches);
        let mut serials = Vec::new();
        self.index.subscribers(&matches, |list| serials.extend(list.iter().map(|scan| scan.session)));
        serials.sort_unstable();
        serials.iter().filter_map(|serial| self.scans.get(serial)).collect()
    }
}

#[derive(Debug)]
pub(super) struct RetainedScan {
    pub(super) filter: Box<str>,
    pub(super) subscription: Subscription,
    /// Live messages that came later void what is retained of their topics.
    pub(super) since: u64,
    /// Not before every shard forwards what the filter matches.
    pub(super) after: Option<Ticket>,
    /// The shard whose retained messages are looked at, and how far.
    pub(super) shard: ShardId,
    /// `None`: that shard has been asked for a slice.
    pub(super) scan: Option<Scan>,
    /// The newest of the changes here that were under way when it came to them.
    pub(super) upto: Option<u64>,
}

/// Topics whose retained message a session needs no more while it scans: a live message has gone,
/// and what was retained went before it, or was replaced by it. A topic is known by its keyed hash.
#[derive(Debug, Default)]
struct Live {
    topics: BTreeMap<u64, u64>,
    now: u64,
    /// More came than may be remembered.
    is_full: bool,
}

/// Bytes that a topic takes.
const LIVE_SIZE: usize = 24;

impl Live {
    fn note(&mut self, topic: u64, bytes_max: usize) {
        self.now += 1;
        if let Some(at) = self.topics.get_mut(&topic) {
            *at = self.now;
        } else if (self.topics.len() + 1) * LIVE_SIZE <= bytes_max {
            self.topics.insert(topic, self.now);
        } else {
            self.is_full = true;
        }
    }

    fn is_after(&self, topic: u64, since: u64) -> bool {
        self.topics.get(&topic).is_some_and(|at| *at > since)
    }
}
