use std::collections::BTreeSet;
use std::time::Instant;

/// Everything that the core waits for, in one order: the same inputs fire in the same sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A connection's keep alive; checked lazily against when it was last heard.
    KeepAlive(u32),
    WillDelay(u32),
    SessionExpiry(u32),
    /// What a session could not have written down is tried again.
    Retry(u32),
}

#[derive(Default, Debug)]
pub(super) struct Timers {
    due: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Instant, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(super) fn cancel(&mut self, at: Instant, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.due.pop_first().map(|(_, timer)| timer)
    }
}
