//! The client's side of MQTT: for `torture` one that blocks, for `pub`, `sub` and `doctor` one for any broker.

pub mod blocking;
mod connection;
mod trust;
mod way;
mod words;

pub use connection::{ConnectError, Connection, Incoming};
pub use trust::{Trust, TrustError, Versions, configuration};
pub use way::{Stream, Way, WayError};
pub use words::{describe, tls_error};
