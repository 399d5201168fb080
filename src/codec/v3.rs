//! What MQTT 3.1 and 3.1.1 write otherwise than 5.0.

use crate::types::ReasonCode;

/// The CONNACK return code (3.1.1 section 3.2.2.3) for a reason; `None` where there is none, and
/// the connection is closed without a CONNACK.
pub(super) fn connect_return_code(reason: ReasonCode) -> Option<u8> {
    use ReasonCode as R;
    match reason {
        R::Success => Some(0),
        R::UnsupportedProtocolVersion => Some(1),
        R::ClientIdentifierNotValid => Some(2),
        R::ServerUnavailable | R::ServerBusy | R::QuotaExceeded | R::ConnectionRateExceeded | R::ServerShuttingDown => {
            Some(3)
        }
        R::BadUserNameOrPassword => Some(4),
        R::NotAuthorized | R::Banned | R::BadAuthenticationMethod => Some(5),
        _ => None,
    }
}

/// The reason for a CONNACK return code.
pub(super) fn connect_reason(code: u8) -> Option<ReasonCode> {
    match code {
        0 => Some(ReasonCode::Success),
        1 => Some(ReasonCode::UnsupportedProtocolVersion),
        2 => Some(ReasonCode::ClientIdentifierNotValid),
        3 => Some(ReasonCode::ServerUnavailable),
        4 => Some(ReasonCode::BadUserNameOrPassword),
        5 => Some(ReasonCode::NotAuthorized),
        _ => None,
    }
}

/// The SUBACK code (3.1.1 section 3.9.3): the granted QoS or 0x80.
pub(super) fn subscribe_code(reason: ReasonCode) -> u8 {
    if reason.is_error() { 0x80 } else { reason.byte() }
}
