//! The store's files: damaged, cut short, full, failing, and given back (design section 5).

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

mod damage;
mod room;
