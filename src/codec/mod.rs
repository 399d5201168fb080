//! Bytes to [`Packet`] and back; pure.
//!
//! There is one packet for all versions, the MQTT 5 superset. `v3` and `v5` hold what differs on
//! the wire and nothing else. Decoding borrows from the read buffer and never allocates for a
//! PUBLISH or an acknowledgement.

mod decode;
mod encode;
mod error;
mod made;
mod packet;
mod properties;
mod read;
mod v3;
mod v5;

pub use decode::{Frame, connect_level, decode, frame};
pub use encode::{PublishFrame, PublishHead, encode, encode_within};
pub use error::DecodeError;
pub use made::{PropertyBlock, PublishPropertiesOf, WillPropertiesOf, encode_subscription};
pub use packet::{
    Ack, Auth, ConnAck, Connect, ConnectProperties, Disconnect, Packet, Publish, SubAck, Subscribe, SubscribeFilter,
    SubscribeFilters, SubscriptionOptions, UnsubAck, Unsubscribe, UnsubscribeFilters, Version, Will,
};
pub(crate) use properties::is_utf8_payload;
pub use properties::{PublishProperties, UserProperties, WillProperties};

/// The largest packet that the protocol can express: a Remaining Length of 268,435,455 and its
/// five bytes of fixed header (MQTT 5 section 2.1.4).
pub const PACKET_SIZE_MAX: usize = 268_435_455 + 5;

#[cfg(test)]
mod tests;
