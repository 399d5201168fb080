//! Which reason code may stand in which MQTT 5 packet (section 2.4, table 2-6), and which
//! properties (section 2.2.2.2, table 2-4) where they are not read on a PUBLISH or a Will.

use super::properties::{Allowed, id};
use crate::types::ReasonCode as R;

pub(super) const CONNECT: Allowed = Allowed::of(&[
    id::SESSION_EXPIRY_INTERVAL,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
    id::REQUEST_PROBLEM_INFORMATION,
    id::REQUEST_RESPONSE_INFORMATION,
    id::RECEIVE_MAXIMUM,
    id::TOPIC_ALIAS_MAXIMUM,
    id::USER_PROPERTY,
    id::MAXIMUM_PACKET_SIZE,
]);

pub(super) const CONNACK: Allowed = Allowed::of(&[
    id::SESSION_EXPIRY_INTERVAL,
    id::ASSIGNED_CLIENT_IDENTIFIER,
    id::SERVER_KEEP_ALIVE,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
    id::RESPONSE_INFORMATION,
    id::SERVER_REFERENCE,
    id::REASON_STRING,
    id::RECEIVE_MAXIMUM,
    id::TOPIC_ALIAS_MAXIMUM,
    id::MAXIMUM_QOS,
    id::RETAIN_AVAILABLE,
    id::USER_PROPERTY,
    id::MAXIMUM_PACKET_SIZE,
    id::WILDCARD_SUBSCRIPTION_AVAILABLE,
    id::SUBSCRIPTION_IDENTIFIER_AVAILABLE,
    id::SHARED_SUBSCRIPTION_AVAILABLE,
]);

/// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
pub(super) const ACK: Allowed = Allowed::of(&[id::REASON_STRING, id::USER_PROPERTY]);

pub(super) const SUBSCRIBE: Allowed = Allowed::of(&[id::SUBSCRIPTION_IDENTIFIER, id::USER_PROPERTY]);

pub(super) const UNSUBSCRIBE: Allowed = Allowed::of(&[id::USER_PROPERTY]);

pub(super) const DISCONNECT: Allowed =
    Allowed::of(&[id::SESSION_EXPIRY_INTERVAL, id::SERVER_REFERENCE, id::REASON_STRING, id::USER_PROPERTY]);

pub(super) const AUTH: Allowed =
    Allowed::of(&[id::AUTHENTICATION_METHOD, id::AUTHENTICATION_DATA, id::REASON_STRING, id::USER_PROPERTY]);

/// PUBACK and PUBREC.
pub(super) fn is_publish_reason(reason: R) -> bool {
    matches!(
        reason,
        R::Success
            | R::NoMatchingSubscribers
            | R::UnspecifiedError
            | R::ImplementationSpecificError
            | R::NotAuthorized
            | R::TopicNameInvalid
            | R::PacketIdentifierInUse
            | R::QuotaExceeded
            | R::PayloadFormatInvalid
    )
}

/// PUBREL and PUBCOMP.
pub(super) fn is_release_reason(reason: R) -> bool {
    matches!(reason, R::Success | R::PacketIdentifierNotFound)
}

pub(super) fn is_subscribe_reason(reason: R) -> bool {
    matches!(
        reason,
        R::Success
            | R::GrantedQoS1
            | R::GrantedQoS2
            | R::UnspecifiedError
            | R::ImplementationSpecificError
            | R::NotAuthorized
            | R::TopicFilterInvalid
            | R::PacketIdentifierInUse
            | R::QuotaExceeded
            | R::SharedSubscriptionsNotSupported
            | R::SubscriptionIdentifiersNotSupported
            | R::WildcardSubscriptionsNotSupported
    )
}

pub(super) fn is_unsubscribe_reason(reason: R) -> bool {
    matches!(
        reason,
        R::Success
            | R::NoSubscriptionExisted
            | R::UnspecifiedError
            | R::ImplementationSpecificError
            | R::NotAuthorized
            | R::TopicFilterInvalid
            | R::PacketIdentifierInUse
    )
}

/// CONNACK.
pub(super) fn is_connect_reason(reason: R) -> bool {
    reason == R::Success
        || matches!(reason.byte(), 0x80..=0x8A)
        || matches!(
            reason,
            R::BadAuthenticationMethod
                | R::TopicNameInvalid
                | R::PacketTooLarge
                | R::QuotaExceeded
                | R::PayloadFormatInvalid
                | R::RetainNotSupported
                | R::QoSNotSupported
                | R::UseAnotherServer
                | R::ServerMoved
                | R::ConnectionRateExceeded
        )
}

/// DISCONNECT, from either side; the core refuses from a client what only a server may say.
pub(super) fn is_disconnect_reason(reason: R) -> bool {
    matches!(reason, R::Success | R::DisconnectWithWill)
        || (reason.is_error()
            && !matches!(
                reason,
                R::UnsupportedProtocolVersion
                    | R::ClientIdentifierNotValid
                    | R::BadUserNameOrPassword
                    | R::ServerUnavailable
                    | R::Banned
                    | R::BadAuthenticationMethod
                    | R::PacketIdentifierInUse
                    | R::PacketIdentifierNotFound
            ))
}

pub(super) fn is_auth_reason(reason: R) -> bool {
    matches!(reason, R::Success | R::ContinueAuthentication | R::ReAuthenticate)
}
