//! The client's side of MQTT: for `torture` one that blocks, for `pub`, `sub` and `doctor` one for any broker.

pub mod blocking;
mod connection;
mod trust;
mod way;
mod words;

pub use connection::{ConnectError, Connection, Incoming};
pub use trust::{Trust, TrustError, Versions, configuration, observing, verify};
pub use way::{Stream, Way, WayError, resolve};
pub use words::{because, describe, harmless, is_about_client, is_about_versions, tls_error};
