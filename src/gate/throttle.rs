//! Wrong passwords are slowed down before any hashing: by address and by name. An address that
//! lately succeeded with a name is judged by its own attempts at that name alone, so that a
//! stranger cannot lock a device out, nor a neighbour behind the same address.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::slots::network_of;
use crate::auth::ThrottledBy;
use crate::config::Admission;

/// How long a failure or a success is remembered.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// Entries of each kind; the oldest make room.
const ENTRIES_MAX: usize = 50_000;

#[derive(Debug)]
pub(super) struct Throttle {
    free: u32,
    max: Duration,
    addresses: Table<IpAddr>,
    names: Table<String>,
    pairs: Table<(IpAddr, String)>,
    /// Pairs of address and name that succeeded, and when.
    known: HashMap<(IpAddr, String), Instant>,
}

#[derive(Debug)]
struct Table<K>(HashMap<K, Failures>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Throttle {
    pub(super) fn new(admission: &Admission) -> Throttle {
        Throttle {
            free: admission.wrong_passwords_max,
            max: admission.throttle_max,
            addresses: Table(HashMap::new()),
            names: Table(HashMap::new()),
            pairs: Table(HashMap::new()),
            known: HashMap::new(),
        }
    }

    pub(super) fn configure(&mut self, admission: &Admission) {
        self.free = admission.wrong_passwords_max;
        self.max = admission.throttle_max;
    }

    /// Whether an attempt may be made now; otherwise how long to wait, and what for.
    pub(super) fn check(
        &self,
        now: Instant,
        address: Option<IpAddr>,
        name: &str,
    ) -> Result<(), (Duration, ThrottledBy)> {
        let wait = |failures: Option<&Failures>, by| match self.wait(now, failures) {
            Some(left) => Err((left, by)),
            None => Ok(()),
        };
        let Some(address) = address.map(network_of) else {
            return wait(self.names.0.get(name), ThrottledBy::Name);
        };
        let pair = (address, name.to_owned());
        if self.known.get(&pair).is_some_and(|since| now.duration_since(*since) < MEMORY) {
            return wait(self.pairs.0.get(&pair), ThrottledBy::Address);
        }
        wait(self.addresses.0.get(&address), ThrottledBy::Address)?;
        wait(self.names.0.get(name), ThrottledBy::Name)
    }

    pub(super) fn failed(&mut self, now: Instant, address: Option<IpAddr>, name: &str) {
        let Some(address) = address.map(network_of) else {
            return self.names.count(now, name.to_owned());
        };
        let pair = (address, name.to_owned());
        if self.known.contains_key(&pair) {
            return self.pairs.count(now, pair);
        }
        self.addresses.count(now, address);
        self.names.count(now, name.to_owned());
    }

    pub(super) fn succeeded(&mut self, now: Instant, address: Option<IpAddr>, name: &str) {
        let Some(address) = address.map(network_of) else {
            self.names.0.remove(name);
            return;
        };
        let pair = (address, name.to_owned());
        self.pairs.0.remove(&pair);
        self.addresses.0.remove(&address);
        make_room(&mut self.known, now, |since| *since);
        self.known.insert(pair, now);
    }

    /// After the free attempts, a second, then twice as long each time.
    fn wait(&self, now: Instant, failures: Option<&Failures>) -> Option<Duration> {
        let failures = failures?;
        let over = failures.count.checked_sub(self.free)?;
        let delay = Duration::from_secs(1 << over.min(20)).min(self.max);
        delay.checked_sub(now.duration_since(failures.last)).filter(|left| !left.is_zero())
    }
}

impl<K: Eq + Hash + Clone> Table<K> {
    fn count(&mut self, now: Instant, key: K) {
        make_room(&mut self.0, now, |failures| failures.last);
        let failures = self.0.entry(key).or_insert(Failures { count: 0, last: now });
        if now.duration_since(failures.last) > MEMORY {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
    }
}

fn make_room<K: Eq + Hash, V>(table: &mut HashMap<K, V>, now: Instant, last: impl Fn(&V) -> Instant) {
    if table.len() < ENTRIES_MAX {
        return;
    }
    table.retain(|_, value| now.duration_since(last(value)) < MEMORY);
    // Still full: the older half goes, so that this is rare.
    if table.len() >= ENTRIES_MAX {
        let mut ages: Vec<Instant> = table.values().map(&last).collect();
        let middle = ages.len() / 2;
        let (_, cut, _) = ages.select_nth_unstable(middle);
        let cut = *cut;
        table.retain(|_, value| last(value) > cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle() -> Throttle {
        Throttle::new(&Admission {
            wrong_passwords_max: 3,
            throttle_max: Duration::from_secs(60),
            ..Admission::default()
        })
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn attempts_slow_down_by_address_and_by_name() {
        let now = Instant::now();
        let mut throttle = throttle();
        for _ in 0..3 {
            assert_eq!(throttle.check(now, address(1), "a"), Ok(()));
            throttle.failed(now, address(1), "a");
        }
        assert_eq!(throttle.check(now, address(1), "b"), Err((Duration::from_secs(1), ThrottledBy::Address)));
        assert_eq!(throttle.check(now, address(2), "a"), Err((Duration::from_secs(1), ThrottledBy::Name)));
        assert_eq!(throttle.check(now, address(2), "b"), Ok(()));
        let later = now + Duration::from_secs(2);
        assert_eq!(throttle.check(later, address(1), "a"), Ok(()));
        throttle.failed(later, address(1), "a");
        assert_eq!(throttle.check(later, address(1), "a"), Err((Duration::from_secs(2), ThrottledBy::Address)));
        for _ in 0..40 {
            throttle.failed(later, address(1), "a");
        }
        assert_eq!(throttle.check(later, address(1), "a"), Err((Duration::from_secs(60), ThrottledBy::Address)));
    }

    #[test]
    fn a_stranger_cannot_lock_out_an_address_that_lately_succeeded() {
        let now = Instant::now();
        let mut throttle = throttle();
        throttle.succeeded(now, address(1), "device1");
        for _ in 0..100 {
            throttle.failed(now, address(9), "device1");
            // A neighbour behind the same address, with another name.
            throttle.failed(now, address(1), "broken");
        }
        assert_eq!(throttle.check(now, address(1), "device1"), Ok(()));
        assert!(throttle.check(now, address(2), "device1").is_err());
        // But it does not buy endless attempts.
        for _ in 0..4 {
            throttle.failed(now, address(1), "device1");
        }
        assert!(throttle.check(now, address(1), "device1").is_err());
    }

    #[test]
    fn the_tables_stay_within_their_limit() {
        let now = Instant::now();
        let mut throttle = throttle();
        for at in 0..ENTRIES_MAX as u32 + 10 {
            throttle.failed(now + Duration::from_millis(u64::from(at)), Some(IpAddr::from(at.to_be_bytes())), "x");
        }
        assert!(throttle.addresses.0.len() <= ENTRIES_MAX);
    }
}
