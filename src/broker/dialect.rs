//! All behaviour in which MQTT 3.1, 3.1.1 and 5.0 differ. The rest of the core does not look at
//! the version.

use super::violation::Violation;
use crate::codec::{Connect, Version};
use crate::types::{QoS, ReasonCode};

/// Seconds that the session outlives its connection; `u32::MAX` means for ever. Before MQTT 5,
/// Clean Session says both how it starts and whether it stays (3.1.1 section 3.1.2.4).
pub(super) fn session_expiry_secs(connect: &Connect<'_>) -> u32 {
    match connect.version {
        Version::V5 => connect.properties.session_expiry_interval.unwrap_or(0),
        Version::V31 | Version::V311 if connect.clean_start => 0,
        Version::V31 | Version::V311 => u32::MAX,
    }
}

/// Only an MQTT 5 server sends DISCONNECT, server keep alive and its limits.
pub(super) fn explains_itself(version: Version) -> bool {
    version == Version::V5
}

/// What SUBACK says of a filter that was not granted. MQTT 3.1 has no code for it: the QoS asked
/// for is confirmed and nothing is delivered.
pub(super) fn refused_filter(version: Version, asked: QoS, reason: ReasonCode) -> ReasonCode {
    match (version, asked) {
        (Version::V5 | Version::V311, _) => reason,
        (Version::V31, QoS::AtMostOnce) => ReasonCode::Success,
        (Version::V31, QoS::AtLeastOnce) => ReasonCode::GrantedQoS1,
        (Version::V31, QoS::ExactlyOnce) => ReasonCode::GrantedQoS2,
    }
}

/// How a refused QoS 1 or 2 PUBLISH is acknowledged. Before MQTT 5 the only other answer is to
/// close [MQTT-3.3.5-2]; a client would send it again for ever, so it is acknowledged.
pub(super) fn refused_publish(version: Version, reason: ReasonCode) -> ReasonCode {
    if version == Version::V5 { reason } else { ReasonCode::Success }
}

/// What to do where no acknowledgement can tell the client that its message was refused: at QoS 0, and
/// before MQTT 5. What the ACL refuses is passed over (above); the rest is a breach of what every
/// client can know, and ends the connection ([MQTT-4.8.0-1] of 3.1.1).
pub(super) fn tells_nobody(version: Version, qos: QoS, reason: ReasonCode) -> Option<Violation> {
    if version == Version::V5 && qos != QoS::AtMostOnce {
        return None;
    }
    match reason {
        ReasonCode::TopicNameInvalid => Some(Violation::TopicTooLarge),
        ReasonCode::PayloadFormatInvalid => Some(Violation::PayloadFormat),
        _ => None,
    }
}

/// Whether a client can be told that there is no room to retain its message.
pub(super) fn hears_of_quota(version: Version, qos: QoS) -> bool {
    version == Version::V5 && qos != QoS::AtMostOnce
}

/// "No matching subscribers" and the like are for those who can read them.
pub(super) fn publish_success(version: Version, matched: bool) -> ReasonCode {
    if version == Version::V5 && !matched { ReasonCode::NoMatchingSubscribers } else { ReasonCode::Success }
}

/// Whether the connection must end because an acknowledgement cannot say that a message could not
/// be kept.
pub(super) fn closes_on_store_failure(version: Version) -> bool {
    version != Version::V5
}
