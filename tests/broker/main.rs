//! The engine's behaviour, in virtual time and without a socket. Each test names the statement of
//! MQTT 5.0 (or of 3.1.1, where it says so) that it proves.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/describe.rs"]
mod describe;
#[path = "../support/recorder.rs"]
mod recorder;
#[path = "../support/rig.rs"]
mod rig;

mod access;
mod border;
mod delivery;
mod durability;
mod entrance;
mod limits;
mod restart;
mod retained;
mod sessions;
mod subscriptions;
mod wills;
