use std::fmt;

/// Names a listener in what outlives the process: a checksum of its address as configured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ListenerId(u32);

impl ListenerId {
    /// That of no listener.
    pub const NONE: ListenerId = ListenerId(0);

    pub fn of(address: &impl fmt::Display) -> ListenerId {
        ListenerId(crc32fast::hash(address.to_string().as_bytes()).max(1))
    }

    pub fn value(self) -> u32 {
        self.0
    }

    pub fn from_value(value: u32) -> ListenerId {
        ListenerId(value)
    }
}
