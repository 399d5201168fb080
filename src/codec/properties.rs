//! MQTT 5 properties (section 2.2.2). Blocks are checked once, when the packet is decoded; what
//! is not needed to route a message stays in the block and is read or forwarded from there.

use super::DecodeError;
use super::read::Reader;
use crate::types::{QoS, Topic};

pub(super) mod id {
    pub(in crate::codec) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub(in crate::codec) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(in crate::codec) const CONTENT_TYPE: u8 = 0x03;
    pub(in crate::codec) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in crate::codec) const CORRELATION_DATA: u8 = 0x09;
    pub(in crate::codec) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub(in crate::codec) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(in crate::codec) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(in crate::codec) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(in crate::codec) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in crate::codec) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in crate::codec) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in crate::codec) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(in crate::codec) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in crate::codec) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(in crate::codec) const SERVER_REFERENCE: u8 = 0x1C;
    pub(in crate::codec) const REASON_STRING: u8 = 0x1F;
    pub(in crate::codec) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in crate::codec) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in crate::codec) const TOPIC_ALIAS: u8 = 0x23;
    pub(in crate::codec) const MAXIMUM_QOS: u8 = 0x24;
    pub(in crate::codec) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(in crate::codec) const USER_PROPERTY: u8 = 0x26;
    pub(in crate::codec) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in crate::codec) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(in crate::codec) const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub(in crate::codec) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// A property's value; which variant belongs to an identifier is fixed by the standard's table
/// 2-4 (`Bool` is a byte that may be 0 or 1 only).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value<'a> {
    Bool(bool),
    U16(u16),
    U32(u32),
    VarInt(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair(&'a str, &'a str),
}

/// Which property may stand where: a bit for each identifier.
#[derive(Clone, Copy)]
pub(super) struct Allowed(u64);

impl Allowed {
    pub(super) const fn of(ids: &[u8]) -> Allowed {
        let mut bits = 0;
        let mut at = 0;
        while at < ids.len() {
            bits |= 1 << ids[at];
            at += 1;
        }
        Allowed(bits)
    }
}

/// Takes a property block off `reader`, checks it (known, allowed here, not twice, values in
/// range) and calls `found` for every property in order.
pub(super) fn read_block<'a>(
    reader: &mut Reader<'a>,
    allowed: Allowed,
    mut found: impl FnMut(u8, Value<'a>) -> Result<(), DecodeError>,
) -> Result<&'a [u8], DecodeError> {
    let length = reader.varint()?;
    let block = reader.take(length as usize)?;
    let mut seen = 0u64;
    let mut properties = Reader::new(block);
    while !properties.is_empty() {
        let (id, value) = next(&mut properties)?;
        let bit = 1u64 << id;
        if allowed.0 & bit == 0 {
            return Err(DecodeError::PropertyMisplaced(id));
        }
        if seen & bit != 0 && id != id::USER_PROPERTY && id != id::SUBSCRIPTION_IDENTIFIER {
            return Err(DecodeError::PropertyTwice(id));
        }
        seen |= bit;
        found(id, value)?;
    }
    Ok(block)
}

fn next<'a>(reader: &mut Reader<'a>) -> Result<(u8, Value<'a>), DecodeError> {
    let id = reader.varint()?;
    let known = u8::try_from(id).map_err(|_| DecodeError::PropertyUnknown(id))?;
    let value = match known {
        id::PAYLOAD_FORMAT_INDICATOR
        | id::REQUEST_PROBLEM_INFORMATION
        | id::REQUEST_RESPONSE_INFORMATION
        | id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_SUBSCRIPTION_AVAILABLE
        | id::SUBSCRIPTION_IDENTIFIER_AVAILABLE
        | id::SHARED_SUBSCRIPTION_AVAILABLE => match reader.u8()? {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            _ => return Err(DecodeError::PropertyValue(known)),
        },
        // Section 3.1.2.11.3
        id::RECEIVE_MAXIMUM => match reader.u16()? {
            0 => return Err(DecodeError::PropertyValue(known)),
            value => Value::U16(value),
        },
        // [MQTT-3.3.2-8]
        id::TOPIC_ALIAS => match reader.u16()? {
            0 => return Err(DecodeError::TopicAliasZero),
            value => Value::U16(value),
        },
        id::SERVER_KEEP_ALIVE | id::TOPIC_ALIAS_MAXIMUM => Value::U16(reader.u16()?),
        id::MAXIMUM_PACKET_SIZE => match reader.u32()? {
            0 => return Err(DecodeError::PropertyValue(known)),
            value => Value::U32(value),
        },
        id::MESSAGE_EXPIRY_INTERVAL | id::SESSION_EXPIRY_INTERVAL | id::WILL_DELAY_INTERVAL => {
            Value::U32(reader.u32()?)
        }
        id::SUBSCRIPTION_IDENTIFIER => match reader.varint()? {
            0 => return Err(DecodeError::PropertyValue(known)),
            value => Value::VarInt(value),
        },
        id::CONTENT_TYPE
        | id::RESPONSE_TOPIC
        | id::ASSIGNED_CLIENT_IDENTIFIER
        | id::AUTHENTICATION_METHOD
        | id::RESPONSE_INFORMATION
        | id::SERVER_REFERENCE
        | id::REASON_STRING => Value::Text(reader.text()?),
        id::CORRELATION_DATA | id::AUTHENTICATION_DATA => Value::Binary(reader.binary()?),
        id::USER_PROPERTY => Value::Pair(reader.text()?, reader.text()?),
        _ => return Err(DecodeError::PropertyUnknown(id)),
    };
    Ok((known, value))
}

/// Walks a block that was checked before.
fn walk(block: &[u8]) -> impl Iterator<Item = (u8, Value<'_>, &[u8])> {
    let mut reader = Reader::new(block);
    std::iter::from_fn(move || {
        let before = reader.rest();
        if before.is_empty() {
            return None;
        }
        let (id, value) = next(&mut reader).ok()?;
        Some((id, value, &before[..before.len() - reader.len()]))
    })
}

/// The User Properties of a packet, in their order [MQTT-3.3.2-18].
#[derive(Clone, Copy, Default)]
pub struct UserProperties<'a> {
    pub(super) block: &'a [u8],
}

impl<'a> UserProperties<'a> {
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        walk(self.block).filter_map(|(_, value, _)| match value {
            Value::Pair(name, value) => Some((name, value)),
            _ => None,
        })
    }
}

impl std::fmt::Debug for UserProperties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for UserProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// The properties that a PUBLISH and a Will have in common with the message that is delivered:
/// payload format, content type, response topic, correlation data and user properties are
/// forwarded unaltered [MQTT-3.3.2-4, -15, -16, -17, -20].
const FORWARDED: Allowed = Allowed::of(&[
    id::PAYLOAD_FORMAT_INDICATOR,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
]);

fn forwarded(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    walk(block).filter(|(id, _, _)| FORWARDED.0 & (1 << id) != 0).map(|(_, _, raw)| raw)
}

/// Properties of a PUBLISH (section 3.3.2.3).
#[derive(Clone, Copy, Default)]
pub struct PublishProperties<'a> {
    pub payload_is_utf8: bool,
    /// Seconds.
    pub message_expiry_interval: Option<u32>,
    pub topic_alias: Option<u16>,
    block: &'a [u8],
}

const PUBLISH: Allowed = Allowed::of(&[
    id::PAYLOAD_FORMAT_INDICATOR,
    id::MESSAGE_EXPIRY_INTERVAL,
    id::TOPIC_ALIAS,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
    id::SUBSCRIPTION_IDENTIFIER,
    id::CONTENT_TYPE,
]);

impl<'a> PublishProperties<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<PublishProperties<'a>, DecodeError> {
        let mut properties = PublishProperties::default();
        properties.block = read_block(reader, PUBLISH, |id, value| {
            match (id, value) {
                (id::PAYLOAD_FORMAT_INDICATOR, Value::Bool(utf8)) => properties.payload_is_utf8 = utf8,
                (id::MESSAGE_EXPIRY_INTERVAL, Value::U32(secs)) => properties.message_expiry_interval = Some(secs),
                (id::TOPIC_ALIAS, Value::U16(alias)) => properties.topic_alias = Some(alias),
                // [MQTT-3.3.2-14]: no wildcards in a response topic.
                (id::RESPONSE_TOPIC, Value::Text(topic)) => {
                    Topic::parse(topic)?;
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(properties)
    }

    pub fn content_type(&self) -> Option<&'a str> {
        self.text(id::CONTENT_TYPE)
    }

    pub fn response_topic(&self) -> Option<&'a str> {
        self.text(id::RESPONSE_TOPIC)
    }

    pub fn correlation_data(&self) -> Option<&'a [u8]> {
        walk(self.block).find_map(|(_, value, _)| match value {
            Value::Binary(data) => Some(data),
            _ => None,
        })
    }

    /// Only in a packet from a server.
    pub fn subscription_identifiers(&self) -> impl Iterator<Item = u32> + use<'a> {
        walk(self.block).filter_map(|(_, value, _)| match value {
            Value::VarInt(identifier) => Some(identifier),
            _ => None,
        })
    }

    pub fn user_properties(&self) -> UserProperties<'a> {
        UserProperties { block: self.block }
    }

    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// The encoded properties that go on to subscribers as they came, in their order.
    pub fn forwarded(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        forwarded(self.block)
    }

    fn text(&self, wanted: u8) -> Option<&'a str> {
        walk(self.block).find_map(|(id, value, _)| match value {
            Value::Text(text) if id == wanted => Some(text),
            _ => None,
        })
    }
}

impl std::fmt::Debug for PublishProperties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(walk(self.block).map(|(id, value, _)| (id, value))).finish()
    }
}

impl PartialEq for PublishProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

/// Properties of a Will (section 3.1.3.2).
#[derive(Clone, Copy, Default)]
pub struct WillProperties<'a> {
    /// Seconds.
    pub delay_interval: u32,
    pub payload_is_utf8: bool,
    /// Seconds.
    pub message_expiry_interval: Option<u32>,
    pub(super) block: &'a [u8],
}

const WILL: Allowed = Allowed::of(&[
    id::WILL_DELAY_INTERVAL,
    id::PAYLOAD_FORMAT_INDICATOR,
    id::MESSAGE_EXPIRY_INTERVAL,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
]);

impl<'a> WillProperties<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<WillProperties<'a>, DecodeError> {
        let mut properties = WillProperties::default();
        properties.block = read_block(reader, WILL, |id, value| {
            match (id, value) {
                (id::WILL_DELAY_INTERVAL, Value::U32(secs)) => properties.delay_interval = secs,
                (id::PAYLOAD_FORMAT_INDICATOR, Value::Bool(utf8)) => properties.payload_is_utf8 = utf8,
                (id::MESSAGE_EXPIRY_INTERVAL, Value::U32(secs)) => properties.message_expiry_interval = Some(secs),
                (id::RESPONSE_TOPIC, Value::Text(topic)) => {
                    Topic::parse(topic)?;
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(properties)
    }

    /// The encoded properties that go on to subscribers as they came, in their order.
    pub fn forwarded(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        forwarded(self.block)
    }
}

impl std::fmt::Debug for WillProperties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(walk(self.block).map(|(id, value, _)| (id, value))).finish()
    }
}

impl PartialEq for WillProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

/// `bytes` as a QoS, for the Maximum QoS property (absent: 2).
pub(super) fn maximum_qos(value: Value<'_>) -> QoS {
    match value {
        Value::Bool(false) => QoS::AtMostOnce,
        Value::Bool(true) => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

/// Whether a payload that says it is UTF-8 is (section 3.3.2.3.2).
pub(crate) fn is_utf8_payload(payload: &[u8]) -> bool {
    str::from_utf8(payload).is_ok()
}
