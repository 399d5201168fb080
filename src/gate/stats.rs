use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use crate::types::Histogram;

/// What the gate counts.
#[derive(Debug, Default)]
pub struct Stats {
    pub accepted: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    pub handshakes: Histogram,
}

impl Stats {
    pub(super) fn refuse(&self, kind: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// Refusals by kind.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
