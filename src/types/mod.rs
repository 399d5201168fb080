//! Parsed newtypes: past the codec nobody looks at raw strings again.
//!
//! Imports nothing from the rest of the crate.

mod certificate_id;
mod client_id;
mod entrance;
mod filter;
mod histogram;
mod identity;
mod packet_id;
mod qos;
mod realm;
mod reason;
mod topic;

pub use certificate_id::CertificateId;
pub use client_id::ClientId;
pub use entrance::Entrance;
pub use filter::{Filter, FilterError};
pub use histogram::Histogram;
pub use identity::{Identity, IdentityError, Level};
pub use packet_id::PacketId;
pub use qos::{QoS, RetainHandling};
pub use realm::Realm;
pub use reason::ReasonCode;
pub use topic::{Topic, TopicError};
