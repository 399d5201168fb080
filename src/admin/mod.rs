//! The one local door for everything that the command line asks of a running broker: HTTP with
//! JSON on a Unix socket in the data folder, nothing on the network unless `metrics.address` says
//! so. It sees snapshots and sends commands; the message path never waits for it.

pub mod api;
mod client;
mod enrol;
mod metrics;
mod server;
mod socket;

pub use client::{CallError, call};
pub use enrol::{Certified, Denied, Desk, Enrolment};
pub use server::{Admin, Anew, Reload, Site, expiry_warning, serve_local, serve_public};
pub use socket::{DataLock, DataLockError, is_data_taken, lock_data};
