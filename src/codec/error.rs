use thiserror::Error;

use crate::types::{FilterError, ReasonCode, TopicError};
use crate::websocket::Breach;

/// Why bytes are no valid packet. One error, one wire answer: [`DecodeError::reason`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    #[error("remaining length is longer than four bytes")]
    RemainingLength,
    #[error("a packet of {size} bytes, {max} are allowed")]
    TooLarge { size: usize, max: usize },
    #[error("packet type {0} is reserved")]
    PacketType(u8),
    #[error("packet type {packet_type} with the flags {flags:#06b}")]
    Flags { packet_type: u8, flags: u8 },
    #[error("the packet ends inside a field")]
    Truncated,
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    #[error("a text is not valid UTF-8")]
    Utf8,
    #[error("a text contains the character U+0000")]
    Null,
    #[error("the protocol name is not MQTT")]
    ProtocolName,
    #[error("protocol level {0} is not supported")]
    ProtocolLevel(u8),
    #[error("the connect flags {0:#010b} contradict each other")]
    ConnectFlags(u8),
    #[error("QoS 3 does not exist")]
    QoS,
    #[error("DUP is set on a QoS 0 message")]
    DupAtQoS0,
    #[error("packet identifier 0")]
    PacketIdZero,
    #[error("property {0:#04x} does not exist")]
    PropertyUnknown(u32),
    #[error("property {0:#04x} does not belong in this packet")]
    PropertyMisplaced(u8),
    #[error("property {0:#04x} is there twice")]
    PropertyTwice(u8),
    #[error("property {0:#04x} has a value that is not allowed")]
    PropertyValue(u8),
    #[error("reason code {0:#04x} does not belong in this packet")]
    Reason(u8),
    #[error("topic alias 0")]
    TopicAliasZero,
    #[error("QoS or retain handling 3 in the subscription options {0:#010b}")]
    SubscriptionOptionsValue(u8),
    #[error("reserved bits are set in the subscription options {0:#010b}")]
    SubscriptionOptions(u8),
    #[error("no local on a shared subscription")]
    NoLocalOnShared,
    #[error("no topic filter in the packet")]
    NoFilter,
    #[error("{0}")]
    Topic(TopicError),
    #[error("{0}")]
    Filter(FilterError),
    #[error("authentication data without an authentication method")]
    AuthenticationData,
    /// Section 6: what carries the packets.
    #[error("its WebSocket is broken: {0}")]
    WebSocket(Breach),
}

impl DecodeError {
    /// The reason code for CONNACK or DISCONNECT (MQTT 5 section 4.13).
    pub fn reason(self) -> ReasonCode {
        use DecodeError as E;
        match self {
            E::TooLarge { .. } | E::WebSocket(Breach::TooLarge(_)) => ReasonCode::PacketTooLarge,
            E::ProtocolLevel(_) | E::ProtocolName => ReasonCode::UnsupportedProtocolVersion,
            E::PropertyTwice(_)
            | E::PropertyValue(_)
            | E::NoLocalOnShared
            | E::NoFilter
            | E::AuthenticationData
            | E::SubscriptionOptionsValue(_) => ReasonCode::ProtocolError,
            E::TopicAliasZero => ReasonCode::TopicAliasInvalid,
            // 0x90 and 0x8F are for those that are well-formed and not accepted.
            E::Topic(_)
            | E::Filter(_)
            | E::RemainingLength
            | E::PacketType(_)
            | E::Flags { .. }
            | E::Truncated
            | E::Trailing(_)
            | E::Utf8
            | E::Null
            | E::ConnectFlags(_)
            | E::QoS
            | E::DupAtQoS0
            | E::PacketIdZero
            | E::PropertyUnknown(_)
            | E::PropertyMisplaced(_)
            | E::Reason(_)
            | E::WebSocket(_)
            | E::SubscriptionOptions(_) => ReasonCode::MalformedPacket,
        }
    }
}

impl From<TopicError> for DecodeError {
    fn from(error: TopicError) -> DecodeError {
        DecodeError::Topic(error)
    }
}

impl From<FilterError> for DecodeError {
    fn from(error: FilterError) -> DecodeError {
        DecodeError::Filter(error)
    }
}
