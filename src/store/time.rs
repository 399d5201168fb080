//! The store's own time: it goes on while the broker runs, whatever the wall clock does, and over a
//! restart only as far as the wall clock can be believed.

use std::time::{Duration, Instant, SystemTime};

/// One look at the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub now: Instant,
    /// Seconds since 1970.
    pub wall_secs: u64,
    /// Whether the wall clock can be believed.
    pub is_sane: bool,
}

/// No broker ran before this: 2026-01-01. A clock that says so was not set.
const RELEASED_SECS: u64 = 1_767_225_600;

impl Clocks {
    /// As the system has them.
    #[expect(clippy::disallowed_methods, reason = "the store's thread has its own door to the clocks")]
    pub fn look() -> Clocks {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clocks::new(Instant::now(), wall.as_secs(), is_synchronised())
    }

    /// The monotonic clock alone.
    #[expect(clippy::disallowed_methods, reason = "the store's thread has its own door to the clocks")]
    pub(super) fn monotonic() -> Instant {
        Instant::now()
    }

    /// `synchronised`: what the system says of it, if it says anything.
    pub fn new(now: Instant, wall_secs: u64, synchronised: Option<bool>) -> Clocks {
        Clocks { now, wall_secs, is_sane: wall_secs >= RELEASED_SECS && synchronised != Some(false) }
    }
}

/// Whether the kernel knows its clock to be synchronised.
fn is_synchronised() -> Option<bool> {
    // systemd-timesyncd says so where it runs; elsewhere nobody does.
    let folder = std::path::Path::new("/run/systemd/timesync");
    folder.exists().then(|| folder.join("synchronized").exists())
}

/// A moment in the store's time, milliseconds; 0 is before all of them.
pub(super) type Moment = u64;

/// How the store's time follows the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline {
    origin: Instant,
    base: Moment,
}

/// What the newest frame said of the time.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LastTime {
    pub(super) moment: Moment,
    pub(super) wall_secs: u64,
    pub(super) is_sane: bool,
}

impl Timeline {
    /// Goes on from `last`. The time between counts only if both wall clocks can be believed and agree.
    pub(super) fn resume(last: LastTime, clocks: Clocks) -> Timeline {
        let counts = last.is_sane && clocks.is_sane && clocks.wall_secs >= last.wall_secs;
        let downtime_ms = if counts { (clocks.wall_secs - last.wall_secs).saturating_mul(1000) } else { 0 };
        Timeline { origin: clocks.now, base: last.moment.max(1).saturating_add(downtime_ms) }
    }

    pub(super) fn moment(&self, at: Instant) -> Moment {
        match at.checked_duration_since(self.origin) {
            Some(after) => self.base.saturating_add(after.as_millis() as u64),
            None => self.base.saturating_sub((self.origin - at).as_millis() as u64),
        }
    }

    /// When a moment is or was; one too long ago is the origin, one too far away is never.
    pub(super) fn instant(&self, moment: Moment) -> Option<Instant> {
        match moment.checked_sub(self.base) {
            Some(after) => self.origin.checked_add(Duration::from_millis(after)),
            None => Some(self.origin.checked_sub(Duration::from_millis(self.base - moment)).unwrap_or(self.origin)),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn passed(last_wall: u64, last_sane: Option<bool>, wall: u64, sane: Option<bool>) -> u64 {
        let now = Instant::now();
        let before = Clocks::new(now, last_wall, last_sane);
        let last = LastTime { moment: 5_000, wall_secs: before.wall_secs, is_sane: before.is_sane };
        let line = Timeline::resume(last, Clocks::new(now, wall, sane));
        (line.moment(now) - 5_000) / 1000
    }

    #[test]
    fn a_long_downtime_counts_where_the_wall_clock_is_sane() {
        let then = RELEASED_SECS + DAY;
        assert_eq!(passed(then, None, then + 30 * DAY, None), 30 * DAY);
        assert_eq!(passed(then, Some(true), then + 30 * DAY, Some(true)), 30 * DAY);
    }

    #[test]
    fn a_clock_that_is_not_synchronised_or_jumped_back_expires_nothing() {
        let then = RELEASED_SECS + DAY;
        assert_eq!(passed(then, None, then + 30 * DAY, Some(false)), 0);
        assert_eq!(passed(then, Some(false), then + 30 * DAY, None), 0);
        assert_eq!(passed(then, None, then - 5, None), 0, "jumped back");
    }

    #[test]
    fn a_device_that_boots_in_1970_expires_nothing() {
        let then = RELEASED_SECS + DAY;
        assert_eq!(passed(then, None, 10, None), 0);
        // It wrote in 1970 what it reads when its clock is right again.
        assert_eq!(passed(10, None, then, None), 0);
    }

    #[test]
    fn while_running_only_monotonic_time_counts() {
        let now = Instant::now();
        let line = Timeline::resume(LastTime::default(), Clocks::new(now, RELEASED_SECS, None));
        let later = now + Duration::from_secs(10);
        assert_eq!(line.moment(later) - line.moment(now), 10_000);
        assert_eq!(line.instant(line.moment(later)), Some(later));
    }
}
