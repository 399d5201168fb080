//! A load generator: publishers and subscribers that cost far less than any broker, and what came of them.
//!
//! Publishers run on one thread, subscribers on another, each an event loop of its own. Packets are
//! encoded once and patched; what a subscriber reads is counted, not decoded. MQTT 3.1.1.

mod connections;
mod endpoint;
mod flow;
mod link;
mod process;
mod publisher;
mod subscriber;

pub use connections::{Connections, Cost, hold, open};
pub use endpoint::{Endpoint, EndpointError, Trust};
pub use flow::{Flow, Outcome, run};
pub use process::{Process, Usage};
