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

/// How long failures are remembered.
const FAILURES: Duration = Duration::from_secs(15 * 60);
/// How long an address stays known for a name: devices connect rarely and stay.
const KNOWN: Duration = Duration::from_secs(30 * 86_400);
/// Entries of each kind; the oldest make room.
const ENTRIES_MAX: usize = 50_000;

#[derive(Debug)]
pub(super) struct Throttle {
    free: u32,
    max: Duration,
    addresses: Table<IpAddr>,
    names: Table<NameHash>,
    pairs: Table<Pair>,
    /// Pairs of address and name that succeeded, and when.
    known: HashMap<Pair, Instant>,
    /// Names are up to 65,535 bytes of a stranger's choice: only their keyed hashes are kept.
    hasher: ahash::RandomState,
}

type NameHash = u64;
type Pair = (IpAddr, NameHash);

#[derive(Debug)]
struct Table<K>(HashMap<K, Failures>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Throttle {
    pub(super) fn new(admission: &Admission, hasher: ahash::RandomState) -> Throttle {
        Throttle {
            free: admission.wrong_passwords_max,
            max: admission.throttle_max,
            addresses: Table(HashMap::new()),
            names: Table(HashMap::new()),
            pairs: Table(HashMap::new()),
            known: HashMap::new(),
            hasher,
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
        let name = self.hasher.hash_one(name);
        let Some(address) = address.map(network_of) else {
            return wait(self.names.0.get(&name), ThrottledBy::Name);
        };
        if self.is_known(now, &(address, name)) {
            return wait(self.pairs.0.get(&(address, name)), ThrottledBy::Address);
        }
        wait(self.addresses.0.get(&address), ThrottledBy::Address)?;
        wait(self.names.0.get(&name), ThrottledBy::Name)
    }

    pub(super) fn failed(&mut self, now: Instant, address: Option<IpAddr>, name: &str) {
        let name = self.hasher.hash_one(name);
        let Some(address) = address.map(network_of) else {
            return self.names.count(now, name);
        };
        if self.is_known(now, &(address, name)) {
            return self.pairs.count(now, (address, name));
        }
        self.addresses.count(now, address);
        self.names.count(now, name);
    }

    /// The address is known for the name from here on. What failed there with other names still
    /// counts: one good account does not pay for guesses at the others.
    pub(super) fn succeeded(&mut self, now: Instant, address: Option<IpAddr>, name: &str) {
        let name = self.hasher.hash_one(name);
        let Some(address) = address.map(network_of) else {
            self.names.0.remove(&name);
            return;
        };
        self.pairs.0.remove(&(address, name));
        make_room(&mut self.known, now, KNOWN, |since| *since);
        self.known.insert((address, name), now);
    }

    fn is_known(&self, now: Instant, pair: &Pair) -> bool {
        self.known.get(pair).is_some_and(|since| now.duration_since(*since) < KNOWN)
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
        make_room(&mut self.0, now, FAILURES, |failures| failures.last);
        let failures = self.0.entry(key).or_insert(Failures { count: 0, last: now });
        if now.duration_since(failures.last) > FAILURES {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
    }
}

fn make_room<K: Eq + Hash, V>(table: &mut HashMap<K, V>, now: Instant, memory: Duration, last: impl Fn(&V) -> Instant) {
    if table.len() < ENTRIES_MAX {
        return;
    }
    table.retain(|_, value| now.duration_since(last(value)) < memory);
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
        Throttle::new(
            &Admission { wrong_passwords_max: 3, throttle_max: Duration::from_secs(60), ..Admission::default() },
            ahash::RandomState::with_seeds(1, 2, 3, 4),
        )
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
    fn an_address_that_was_known_long_ago_is_judged_like_any_other() {
        let now = Instant::now();
        let mut throttle = throttle();
        throttle.succeeded(now, address(1), "device1");
        // A device that has been connected for days is still known.
        let days_later = now + Duration::from_secs(7 * 86_400);
        throttle.failed(days_later, address(9), "device1");
        assert_eq!(throttle.check(days_later, address(1), "device1"), Ok(()));
        let later = now + KNOWN + Duration::from_secs(1);
        for _ in 0..4 {
            throttle.failed(later, address(1), "device1");
        }
        assert!(throttle.check(later, address(1), "device1").is_err());
    }

    #[test]
    fn one_good_account_does_not_pay_for_guesses_at_others() {
        let now = Instant::now();
        let mut throttle = throttle();
        for at in 0..4 {
            throttle.failed(now, address(1), &format!("name{at}"));
            throttle.succeeded(now, address(1), "mine");
        }
        assert!(throttle.check(now, address(1), "another").is_err());
        assert_eq!(throttle.check(now, address(1), "mine"), Ok(()));
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
