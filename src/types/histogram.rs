use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Durations in buckets that a scrape reads without stopping anybody.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; Histogram::BOUNDS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Upper bounds, seconds.
    pub const BOUNDS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0, 10.0];

    pub fn observe(&self, duration: Duration) {
        self.observe_all(duration, 1);
    }

    /// So many of the same duration.
    pub fn observe_all(&self, duration: Duration, count: u64) {
        let secs = duration.as_secs_f64();
        if let Some(at) = Self::BOUNDS.iter().position(|bound| secs <= *bound) {
            self.buckets[at].fetch_add(count, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(duration.as_micros() as u64 * count, Ordering::Relaxed);
        self.count.fetch_add(count, Ordering::Relaxed);
    }

    /// Observations in each bucket (not summed up), their number and their sum in seconds.
    pub fn read(&self) -> ([u64; Histogram::BOUNDS.len()], u64, f64) {
        let buckets = std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed));
        (buckets, self.count.load(Ordering::Relaxed), self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6)
    }
}
