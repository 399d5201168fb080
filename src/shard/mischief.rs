//! What a throw-away broker does wrong on purpose, on the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::broker::ConnectionId;
use crate::codec::{self, Packet};
use crate::config::Faults;

/// The exit code of a broker that dies on purpose.
pub const DIED: i32 = 86;

/// Applies faults, and counts what goes over each connection.
pub(super) struct Mischief {
    faults: Faults,
    /// Messages, by connection.
    counts: BTreeMap<ConnectionId, u32>,
    received: u32,
    /// To be cut, once what went before has left.
    pub(super) cut: Vec<ConnectionId>,
}

impl Mischief {
    pub(super) fn of(faults: &Faults) -> Option<Box<Mischief>> {
        let faults = faults.clone();
        (faults != Faults::default())
            .then(|| Box::new(Mischief { faults, counts: BTreeMap::new(), received: 0, cut: Vec::new() }))
    }

    /// Of whole packets, those that are to leave.
    pub(super) fn leaving(&self, bytes: &[u8]) -> Vec<u8> {
        let mut left = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Ok(Some(frame)) = codec::frame(rest, codec::PACKET_SIZE_MAX) {
            let (packet, after) = rest.split_at(frame.end);
            let is_ack = matches!(frame.first_byte >> 4, 4 | 5 | 7);
            if !(is_ack && self.faults.drop_puback) {
                left.extend_from_slice(packet);
            }
            rest = after;
        }
        left
    }

    /// A PUBLISH with this first byte leaves; whether it does so twice.
    pub(super) fn doubles(&mut self, to: ConnectionId, first_byte: u8) -> bool {
        let has_id = first_byte & 0b110 != 0;
        if !has_id {
            self.count(to);
        }
        self.faults.duplicate_publish && has_id
    }

    /// A packet came; whether it is taken. A broker that dies of it does so before anything is answered.
    pub(super) fn takes(&mut self, from: ConnectionId, packet: &Packet<'_>) -> bool {
        match packet {
            Packet::Publish(_) => {}
            // A message that it has taken; what it acknowledges is done with.
            Packet::PubAck(_) | Packet::PubComp(_) => {
                self.count(from);
                return true;
            }
            _ => return true,
        }
        self.received += 1;
        if self.faults.dies_after.is_some_and(|most| self.received >= most) {
            std::process::exit(DIED);
        }
        self.count(from);
        !self.cut.contains(&from)
    }

    /// A message goes over a connection.
    fn count(&mut self, id: ConnectionId) {
        let Some(most) = self.faults.disconnect_after else { return };
        let count = self.counts.entry(id).or_default();
        *count += 1;
        if *count >= most {
            self.counts.remove(&id);
            self.cut.push(id);
        }
    }

    /// Before what was written leaves.
    pub(super) fn delay(&self) {
        if self.faults.slow_ms > 0 {
            std::thread::sleep(Duration::from_millis(self.faults.slow_ms));
        }
    }
}
