//! The gate and the shard over real sockets: TLS as clients may speak it, and clients that do not
//! read.

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

mod backpressure;
mod certificates;
mod handshake;
