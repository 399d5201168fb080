//! Changes on their way to the store.

use std::time::Instant;

use super::frame::Counts;
use super::record;
use super::time::Timeline;
use crate::broker::{Change, Ticket};

/// Changes that commit together, or fail together.
#[derive(Debug)]
pub(super) struct Unit {
    /// Who is told; `None`: nobody.
    pub(super) ticket: Option<Ticket>,
    /// Bytes of its records.
    pub(super) len: usize,
    pub(super) counts: Counts,
    /// It has to be written down sooner or later.
    pub(super) must: bool,
}

/// About what a unit takes in memory beside its records, bytes.
pub(super) const UNIT_SIZE: usize = 64;
/// Room for records that the next batch begins with, bytes.
const ROOM_MAX: usize = 128 * 1024;

/// Changes as the records that they will be, made by whoever has them.
#[derive(Debug)]
pub(super) struct Batch {
    timeline: Timeline,
    /// When its first change came.
    pub(super) since: Option<Instant>,
    pub(super) units: Vec<Unit>,
    /// The units' records, one behind the other.
    pub(super) records: Vec<u8>,
}

impl Batch {
    pub(super) fn new(timeline: Timeline) -> Batch {
        Batch { timeline, since: None, units: Vec::new(), records: Vec::new() }
    }

    pub(super) fn append(&mut self, now: Instant, ticket: Option<Ticket>, changes: &[Change]) {
        let start = self.records.len();
        let mut counts = Counts::default();
        changes.iter().for_each(|change| record::encode(change, &self.timeline, &mut self.records, &mut counts));
        let must = changes.iter().any(Change::must_be_kept);
        self.since.get_or_insert(now);
        self.units.push(Unit { ticket, len: self.records.len() - start, counts, must });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// About what it takes in memory, bytes.
    pub(super) fn size(&self) -> usize {
        self.records.len() + UNIT_SIZE * self.units.len()
    }

    /// What was appended; nothing of it stays.
    pub(super) fn take(&mut self) -> Batch {
        let room = Batch {
            timeline: self.timeline,
            since: None,
            units: Vec::with_capacity(self.units.len()),
            records: Vec::with_capacity(self.records.len().min(ROOM_MAX)),
        };
        std::mem::replace(self, room)
    }
}
