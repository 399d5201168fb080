//! The command line with the real binary: what it makes, what it refuses, and what it leaves behind.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/describe.rs"]
mod describe;
#[path = "../support/mqtt.rs"]
mod mqtt;
#[path = "../support/site.rs"]
mod site;

mod authority;
mod bench;
mod client;
mod docs;
mod files;
mod hierarchy;
mod import;
mod init;
mod killed;
mod serve;
mod sign;
mod steering;
mod tidy;
mod watch;
