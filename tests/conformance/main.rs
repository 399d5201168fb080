//! Every numbered statement of MQTT 3.1.1 and 5.0, and what became of it: `manifest.toml` names the
//! tests that prove it, here and in the other test binaries; `manifest.rs` holds them to it. The
//! modules hold the tests that belong to a statement rather than to a feature. `disable` takes away
//! the code that obeys a statement and expects its test to fail.
//!
//! A statement is cited as `[MQTT-3.1.4-3]` for MQTT 5.0, and with "of 3.1.1" behind it for 3.1.1.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/describe.rs"]
mod describe;
#[path = "../support/mqtt.rs"]
mod mqtt;
#[path = "../support/recorder.rs"]
mod recorder;
#[path = "../support/rig.rs"]
mod rig;
#[path = "../support/site.rs"]
mod site;

mod authentication;
mod differences;
mod explanations;
mod gate;
mod killers;
mod manifest;
mod packets;
mod publish;
mod scale;
mod sessions;
mod shared;
mod subscriptions;
