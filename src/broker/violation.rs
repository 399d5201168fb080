//! What a client may not do, and the one wire answer to each.

use thiserror::Error;

use crate::codec::DecodeError;
use crate::types::ReasonCode;

/// A breach of the protocol that ends the connection (MQTT 5 section 4.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Violation {
    #[error("{0}")]
    Undecodable(DecodeError),
    /// [MQTT-3.1.0-2]
    #[error("a second CONNECT")]
    SecondConnect,
    #[error("a packet that only a server may send")]
    ServerPacket,
    /// [MQTT-4.12.0-1]: no exchange was agreed on in CONNECT.
    #[error("AUTH without an authentication method in CONNECT")]
    UnexpectedAuth,
    /// [MQTT-3.3.4-7]
    #[error("more QoS 1 and 2 messages in flight than the receive maximum")]
    ReceiveMaximumExceeded,
    /// [MQTT-3.3.2-8], [MQTT-3.3.2-9]
    #[error("topic alias {0} is not one that it may use")]
    TopicAlias(u16),
    /// Section 3.3.4: an empty topic with an alias that was not set on this connection.
    #[error("topic alias {0} was not set before it is used")]
    TopicAliasUnset(u16),
    /// [MQTT-3.3.2-4] lets the receiver check; at QoS 0 nothing else can say it.
    #[error("a payload that says it is UTF-8 and is not")]
    PayloadFormat,
    /// `topic-levels-max`, `topic-bytes-max`, where no acknowledgement can say it.
    #[error("a topic with too many levels or bytes")]
    TopicTooLarge,
    /// [MQTT-3.2.2-11]
    #[error("a message of QoS {0}, which is not taken here (limits.qos-max)")]
    QoSNotSupported(u8),
    /// [MQTT-3.2.2-14]
    #[error("a message to retain, which is not done here (limits.retain-available)")]
    RetainNotSupported,
    #[error("a reason code that only a server may give")]
    ServerReason,
    #[error("a publish with a subscription identifier")]
    SubscriptionIdentifier,
    /// [MQTT-3.1.2-22]
    #[error("nothing came for one and a half times the keep alive")]
    KeepAlive,
    /// [MQTT-3.14.2-2]
    #[error("a session expiry interval in DISCONNECT where CONNECT set none")]
    SessionExpiryRaised,
    #[error("a disconnect reason that only a server may give")]
    DisconnectReason,
    #[error("{0} filters in one packet")]
    TooManyFilters(usize),
    /// [MQTT-3.1.2-24]
    #[error("an answer of {size} bytes, the client takes {max}")]
    AnswerTooLarge { size: usize, max: u32 },
}

impl Violation {
    pub fn reason(self) -> ReasonCode {
        match self {
            // A second CONNECT of another version: 0x84 is for CONNACK alone.
            Violation::Undecodable(DecodeError::ProtocolLevel(_) | DecodeError::ProtocolName) => {
                ReasonCode::ProtocolError
            }
            Violation::Undecodable(error) => error.reason(),
            Violation::SecondConnect
            | Violation::ServerPacket
            | Violation::UnexpectedAuth
            | Violation::SubscriptionIdentifier
            | Violation::SessionExpiryRaised
            | Violation::TopicAliasUnset(_)
            | Violation::ServerReason
            | Violation::DisconnectReason => ReasonCode::ProtocolError,
            Violation::ReceiveMaximumExceeded => ReasonCode::ReceiveMaximumExceeded,
            Violation::TopicAlias(_) => ReasonCode::TopicAliasInvalid,
            Violation::PayloadFormat => ReasonCode::PayloadFormatInvalid,
            Violation::QoSNotSupported(_) => ReasonCode::QoSNotSupported,
            Violation::RetainNotSupported => ReasonCode::RetainNotSupported,
            Violation::TopicTooLarge => ReasonCode::TopicNameInvalid,
            Violation::KeepAlive => ReasonCode::KeepAliveTimeout,
            Violation::TooManyFilters(_) => ReasonCode::QuotaExceeded,
            Violation::AnswerTooLarge { .. } => ReasonCode::PacketTooLarge,
        }
    }
}
