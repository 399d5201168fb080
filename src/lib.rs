#![doc = include_str!("../ARCHITECTURE.md")]

#[expect(clippy::disallowed_methods, reason = "it reads whom to believe to be the directory")]
pub mod acme;
#[expect(clippy::disallowed_methods, reason = "it measures its own uptime and rates")]
pub mod admin;
pub mod auth;
pub mod broker;
#[expect(clippy::disallowed_methods, reason = "commands read files, clocks and randomness for all below them")]
pub mod cli;
#[expect(clippy::disallowed_methods, reason = "it waits for answers")]
pub mod client;
pub mod codec;
#[expect(clippy::disallowed_methods, reason = "it reads the configuration file")]
pub mod config;
#[expect(
    clippy::disallowed_methods,
    reason = "timeouts, throttles and client ids; it reads what the configuration names"
)]
pub mod gate;
pub mod handover;
pub mod load;
#[expect(clippy::disallowed_methods, reason = "serial numbers come from the kernel's generator")]
pub mod pki;
#[expect(clippy::disallowed_methods, reason = "the core's seed comes from the kernel's generator")]
pub mod shard;
pub mod store;
pub mod types;
pub mod websocket;
