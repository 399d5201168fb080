use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Admission;

/// Counts connections: all, by listener, by address, and those that are not in yet.
#[derive(Debug)]
pub(super) struct Slots {
    max: AtomicUsize,
    per_address_max: AtomicUsize,
    pending_max: AtomicUsize,
    pending_per_address_max: AtomicUsize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    listeners: HashMap<Arc<str>, usize>,
    addresses: HashMap<IpAddr, usize>,
    pending: usize,
    pending_addresses: HashMap<IpAddr, usize>,
}

/// Why there is no place for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Full {
    Connections,
    Listener,
    Address,
    Pending,
    PendingAddress,
}

impl Full {
    pub(super) fn key(self) -> &'static str {
        match self {
            Full::Connections => "admission.connections-max",
            Full::Listener => "the listener's connections-max",
            Full::Address => "admission.connections-per-address-max",
            Full::Pending => "admission.pending-max",
            Full::PendingAddress => "admission.pending-per-address-max",
        }
    }
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    listener: Arc<str>,
    address: Option<IpAddr>,
}

/// A place among those that are not in yet.
#[derive(Debug)]
pub(super) struct Pending {
    slots: Arc<Slots>,
    address: Option<IpAddr>,
}

impl Slots {
    pub(super) fn new(admission: &Admission) -> Arc<Slots> {
        let slots = Slots {
            max: AtomicUsize::new(0),
            per_address_max: AtomicUsize::new(0),
            pending_max: AtomicUsize::new(0),
            pending_per_address_max: AtomicUsize::new(0),
            counts: Mutex::default(),
        };
        slots.configure(admission);
        Arc::new(slots)
    }

    pub(super) fn configure(&self, admission: &Admission) {
        self.max.store(admission.connections_max, Ordering::Relaxed);
        self.per_address_max.store(admission.connections_per_address_max, Ordering::Relaxed);
        self.pending_max.store(admission.pending_max, Ordering::Relaxed);
        self.pending_per_address_max.store(admission.pending_per_address_max, Ordering::Relaxed);
    }

    /// Connections of all kinds.
    pub(super) fn taken(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    pub(super) fn take(
        self: &Arc<Self>,
        listener: &Arc<str>,
        listener_max: usize,
        address: Option<IpAddr>,
    ) -> Result<(Slot, Pending), Full> {
        let address = address.map(network_of);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.pending >= self.pending_max.load(Ordering::Relaxed) {
            return Err(Full::Pending);
        }
        if counts.all >= self.max.load(Ordering::Relaxed) {
            return Err(Full::Connections);
        }
        if counts.listeners.get(&**listener).is_some_and(|count| *count >= listener_max) {
            return Err(Full::Listener);
        }
        if let Some(address) = address {
            let has = |table: &HashMap<IpAddr, usize>| table.get(&address).copied().unwrap_or(0);
            if has(&counts.addresses) >= self.per_address_max.load(Ordering::Relaxed) {
                return Err(Full::Address);
            }
            // One address alone cannot keep the others out.
            if has(&counts.pending_addresses) >= self.pending_per_address_max.load(Ordering::Relaxed) {
                return Err(Full::PendingAddress);
            }
            *counts.addresses.entry(address).or_default() += 1;
            *counts.pending_addresses.entry(address).or_default() += 1;
        }
        counts.all += 1;
        counts.pending += 1;
        *counts.listeners.entry(listener.clone()).or_default() += 1;
        let slot = Slot { slots: self.clone(), listener: listener.clone(), address };
        Ok((slot, Pending { slots: self.clone(), address }))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(count) = counts.listeners.get_mut(&self.listener) {
            *count -= 1;
        }
        give_back(&mut counts.addresses, self.address);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.pending -= 1;
        give_back(&mut counts.pending_addresses, self.address);
    }
}

fn give_back(table: &mut HashMap<IpAddr, usize>, address: Option<IpAddr>) {
    if let Some(address) = address
        && let Some(count) = table.get_mut(&address)
    {
        *count -= 1;
        if *count == 0 {
            table.remove(&address);
        }
    }
}

/// An IPv4 address, or the /64 that an IPv6 host can pick addresses from as it likes.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_holds_and_places_are_given_back() {
        let mut admission =
            Admission { connections_max: 3, connections_per_address_max: 2, pending_max: 3, ..Admission::default() };
        let slots = Slots::new(&admission);
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let address = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let (first, pending) = slots.take(&a, 10, address(1)).unwrap();
        let second = slots.take(&a, 10, address(1)).unwrap();
        assert_eq!(slots.take(&a, 10, address(1)).unwrap_err(), Full::Address);
        assert_eq!(slots.take(&a, 2, address(2)).unwrap_err(), Full::Listener);
        let third = slots.take(&a, 10, address(2)).unwrap();
        assert_eq!(slots.take(&a, 10, address(3)).unwrap_err(), Full::Pending);
        drop(pending);
        admission.pending_per_address_max = 1;
        slots.configure(&admission);
        assert_eq!(slots.take(&a, 10, address(2)).unwrap_err(), Full::Connections);
        assert_eq!(slots.take(&b, 10, address(3)).unwrap_err(), Full::Connections);
        drop(first);
        assert_eq!(slots.take(&b, 10, address(1)).unwrap_err(), Full::PendingAddress);
        assert!(slots.take(&b, 10, address(4)).is_ok());
        drop((second, third));
        let counts = slots.counts.lock().unwrap();
        assert_eq!((counts.all, counts.pending, counts.addresses.len(), counts.pending_addresses.len()), (0, 0, 0, 0));
    }
}
