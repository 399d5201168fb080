use std::fmt;
use std::num::NonZeroU16;

/// A Packet Identifier (MQTT 5 section 2.2.1): never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    pub const FIRST: PacketId = PacketId(NonZeroU16::MIN);

    /// `None` for zero.
    pub fn new(value: u16) -> Option<PacketId> {
        NonZeroU16::new(value).map(PacketId)
    }

    pub fn value(self) -> u16 {
        self.0.get()
    }

    /// The identifier after this one; 65,535 is followed by 1.
    pub fn next(self) -> PacketId {
        PacketId(self.0.checked_add(1).unwrap_or(NonZeroU16::MIN))
    }

    /// How often [`PacketId::next`] leads from this one to `other`.
    pub fn distance_to(self, other: PacketId) -> u16 {
        let (from, to) = (self.value(), other.value());
        // There is no zero between 65,535 and 1.
        if to >= from { to - from } else { u16::MAX - from + to }
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
