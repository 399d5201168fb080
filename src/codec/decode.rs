use super::packet::{
    Ack, Auth, ConnAck, Connect, ConnectProperties, Disconnect, Packet, Publish, SubAck, Subscribe, SubscribeFilter,
    SubscribeFilters, SubscriptionOptions, UnsubAck, Unsubscribe, UnsubscribeFilters, Version, Will,
};
use super::properties::{PublishProperties, UserProperties, Value, WillProperties, id, maximum_qos, read_block};
use super::read::Reader;
use super::{DecodeError, v3, v5};
use crate::types::{Filter, QoS, ReasonCode, RetainHandling, Topic, TopicError};

/// Where a packet lies in a buffer: fixed header, then `body` of Remaining Length bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    pub first_byte: u8,
    pub body_start: usize,
    pub end: usize,
}

/// Finds the packet at the start of `bytes` (MQTT 5 section 2.1). `None` while its header or body is
/// not there whole; a packet of more than `size_max` bytes is refused as soon as its header says so.
pub fn frame(bytes: &[u8], size_max: usize) -> Result<Option<Frame>, DecodeError> {
    let Some((&first_byte, rest)) = bytes.split_first() else { return Ok(None) };
    let mut length = 0;
    for (at, &byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            if byte == 0 && at > 0 {
                return Err(DecodeError::RemainingLength);
            }
            let body_start = 2 + at;
            let end = body_start + length;
            if end > size_max {
                return Err(DecodeError::TooLarge { size: end, max: size_max });
            }
            return Ok((bytes.len() >= end).then_some(Frame { first_byte, body_start, end }));
        }
    }
    if rest.len() >= 4 { Err(DecodeError::RemainingLength) } else { Ok(None) }
}

/// The name and level that a CONNECT's body begins with, for a first look at what knocks.
pub fn connect_level(body: &[u8]) -> Result<(&str, u8), DecodeError> {
    let mut reader = Reader::new(body);
    let name = reader.text()?;
    // Bit 7 is how bridges mark themselves to other brokers.
    Ok((name, reader.u8()? & 0x7F))
}

/// Decodes the packet whose frame was found in `bytes`.
pub fn decode(bytes: &[u8], frame: Frame, version: Version) -> Result<Packet<'_>, DecodeError> {
    let body = Reader::new(&bytes[frame.body_start..frame.end]);
    let (packet_type, flags) = (frame.first_byte >> 4, frame.first_byte & 0x0F);
    // [MQTT-2.1.3-1]: PUBREL, SUBSCRIBE and UNSUBSCRIBE carry 0b0010, the others 0.
    let wanted = match packet_type {
        3 => flags,
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    if flags != wanted {
        return Err(DecodeError::Flags { packet_type, flags });
    }
    match packet_type {
        1 => connect(body).map(|packet| Packet::Connect(Box::new(packet))),
        2 => connack(body, version).map(|packet| Packet::ConnAck(Box::new(packet))),
        3 => publish(flags, body, version).map(Packet::Publish),
        4 => ack(body, version, v5::is_publish_reason).map(Packet::PubAck),
        5 => ack(body, version, v5::is_publish_reason).map(Packet::PubRec),
        6 => ack(body, version, v5::is_release_reason).map(Packet::PubRel),
        7 => ack(body, version, v5::is_release_reason).map(Packet::PubComp),
        8 => subscribe(body, version).map(Packet::Subscribe),
        9 => suback(body, version).map(Packet::SubAck),
        10 => unsubscribe(body, version).map(Packet::Unsubscribe),
        11 => unsuback(body, version).map(Packet::UnsubAck),
        12 => body.end().map(|()| Packet::PingReq),
        13 => body.end().map(|()| Packet::PingResp),
        14 => disconnect(body, version).map(Packet::Disconnect),
        15 if version == Version::V5 => auth(body).map(Packet::Auth),
        other => Err(DecodeError::PacketType(other)),
    }
}

fn connect(mut body: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    let name = body.text()?;
    let level = body.u8()? & 0x7F;
    let version = match (name, level) {
        ("MQIsdp", 3) => Version::V31,
        ("MQTT", 4) => Version::V311,
        ("MQTT", 5) => Version::V5,
        // [MQTT-3.1.2-1], [MQTT-3.1.2-2]
        ("MQTT" | "MQIsdp", level) => return Err(DecodeError::ProtocolLevel(level)),
        _ => return Err(DecodeError::ProtocolName),
    };
    let flags = body.u8()?;
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let will_qos = QoS::from_bits(flags >> 3 & 0b11).ok_or(DecodeError::ConnectFlags(flags))?;
    // [MQTT-3.1.2-3]: the reserved bit. [MQTT-3.1.2-11], [MQTT-3.1.2-13]: no will, no will QoS or retain.
    if flag(0) || (!flag(2) && (will_qos != QoS::AtMostOnce || flag(5))) {
        return Err(DecodeError::ConnectFlags(flags));
    }
    // [MQTT-3.1.2-22] of 3.1.1: no user name, no password. MQTT 5 allows a password alone.
    if flag(6) && !flag(7) && version != Version::V5 {
        return Err(DecodeError::ConnectFlags(flags));
    }
    let keep_alive = body.u16()?;
    let properties = if version == Version::V5 { connect_properties(&mut body)? } else { ConnectProperties::default() };
    let client_id = body.text()?;
    let will = if flag(2) {
        let properties =
            if version == Version::V5 { WillProperties::read(&mut body)? } else { WillProperties::default() };
        let topic = Topic::parse(body.text()?)?.as_str();
        let payload = body.binary()?;
        Some(Will { qos: will_qos, retain: flag(5), properties, topic, payload })
    } else {
        None
    };
    let user_name = if flag(7) { Some(body.text()?) } else { None };
    let password = if flag(6) { Some(body.binary()?) } else { None };
    body.end()?;
    Ok(Connect { version, clean_start: flag(1), keep_alive, properties, client_id, will, user_name, password })
}

fn connect_properties<'a>(body: &mut Reader<'a>) -> Result<ConnectProperties<'a>, DecodeError> {
    let mut properties = ConnectProperties::default();
    let block = read_block(body, v5::CONNECT, |id, value| {
        match (id, value) {
            (id::SESSION_EXPIRY_INTERVAL, Value::U32(secs)) => properties.session_expiry_interval = Some(secs),
            (id::RECEIVE_MAXIMUM, Value::U16(count)) => properties.receive_maximum = count,
            (id::MAXIMUM_PACKET_SIZE, Value::U32(size)) => properties.maximum_packet_size = Some(size),
            (id::TOPIC_ALIAS_MAXIMUM, Value::U16(count)) => properties.topic_alias_maximum = count,
            (id::REQUEST_RESPONSE_INFORMATION, Value::Bool(on)) => properties.request_response_information = on,
            (id::REQUEST_PROBLEM_INFORMATION, Value::Bool(on)) => properties.request_problem_information = on,
            (id::AUTHENTICATION_METHOD, Value::Text(method)) => properties.authentication_method = Some(method),
            (id::AUTHENTICATION_DATA, Value::Binary(data)) => properties.authentication_data = Some(data),
            _ => {}
        }
        Ok(())
    })?;
    if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
        return Err(DecodeError::AuthenticationData);
    }
    properties.user_properties = UserProperties { block };
    Ok(properties)
}

fn connack(mut body: Reader<'_>, version: Version) -> Result<ConnAck<'_>, DecodeError> {
    let flags = body.u8()?;
    if flags & !1 != 0 {
        return Err(DecodeError::Flags { packet_type: 2, flags });
    }
    let code = body.u8()?;
    let reason = match version {
        Version::V5 => ReasonCode::from_byte(code).filter(|reason| v5::is_connect_reason(*reason)),
        _ => v3::connect_reason(code),
    };
    let mut packet = ConnAck::new(reason.ok_or(DecodeError::Reason(code))?);
    packet.session_present = flags & 1 != 0;
    if version == Version::V5 {
        let block = read_block(&mut body, v5::CONNACK, |id, value| {
            match (id, value) {
                (id::SESSION_EXPIRY_INTERVAL, Value::U32(secs)) => packet.session_expiry_interval = Some(secs),
                (id::RECEIVE_MAXIMUM, Value::U16(count)) => packet.receive_maximum = Some(count),
                (id::MAXIMUM_QOS, value) => packet.maximum_qos = maximum_qos(value),
                (id::RETAIN_AVAILABLE, Value::Bool(on)) => packet.retain_available = on,
                (id::MAXIMUM_PACKET_SIZE, Value::U32(size)) => packet.maximum_packet_size = Some(size),
                (id::ASSIGNED_CLIENT_IDENTIFIER, Value::Text(text)) => packet.assigned_client_id = Some(text),
                (id::TOPIC_ALIAS_MAXIMUM, Value::U16(count)) => packet.topic_alias_maximum = count,
                (id::REASON_STRING, Value::Text(text)) => packet.reason_string = Some(text),
                (id::WILDCARD_SUBSCRIPTION_AVAILABLE, Value::Bool(on)) => packet.wildcard_subscription_available = on,
                (id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, Value::Bool(on)) => {
                    packet.subscription_identifiers_available = on
                }
                (id::SHARED_SUBSCRIPTION_AVAILABLE, Value::Bool(on)) => packet.shared_subscription_available = on,
                (id::SERVER_KEEP_ALIVE, Value::U16(secs)) => packet.server_keep_alive = Some(secs),
                (id::RESPONSE_INFORMATION, Value::Text(text)) => packet.response_information = Some(text),
                (id::AUTHENTICATION_METHOD, Value::Text(text)) => packet.authentication_method = Some(text),
                (id::AUTHENTICATION_DATA, Value::Binary(data)) => packet.authentication_data = Some(data),
                _ => {}
            }
            Ok(())
        })?;
        packet.user_properties = UserProperties { block };
    }
    body.end()?;
    Ok(packet)
}

fn publish(flags: u8, mut body: Reader<'_>, version: Version) -> Result<Publish<'_>, DecodeError> {
    // [MQTT-3.3.1-4]
    let qos = QoS::from_bits(flags >> 1 & 0b11).ok_or(DecodeError::QoS)?;
    let dup = flags & 0b1000 != 0;
    // [MQTT-3.3.1-2]
    if dup && qos == QoS::AtMostOnce {
        return Err(DecodeError::DupAtQoS0);
    }
    let topic = body.text()?;
    let packet_id = if qos == QoS::AtMostOnce { None } else { Some(body.packet_id()?) };
    let properties =
        if version == Version::V5 { PublishProperties::read(&mut body)? } else { PublishProperties::default() };
    // An empty topic needs an alias to stand for it (section 3.3.2.3.4).
    match Topic::parse(topic) {
        Ok(_) => {}
        Err(TopicError::Empty) if properties.topic_alias.is_some() => {}
        Err(TopicError::Empty) if version == Version::V5 => return Err(DecodeError::PropertyValue(id::TOPIC_ALIAS)),
        Err(error) => return Err(DecodeError::Topic(error)),
    }
    Ok(Publish { dup, qos, retain: flags & 1 != 0, topic, packet_id, properties, payload: body.rest() })
}

fn ack(mut body: Reader<'_>, version: Version, allowed: fn(ReasonCode) -> bool) -> Result<Ack<'_>, DecodeError> {
    let mut packet = Ack::new(body.packet_id()?, ReasonCode::Success);
    // Section 3.4.2.1: the reason code and the properties may be left out.
    if version == Version::V5 && !body.is_empty() {
        packet.reason = reason(&mut body, allowed)?;
        if !body.is_empty() {
            let block = read_block(&mut body, v5::ACK, |id, value| {
                if let (id::REASON_STRING, Value::Text(text)) = (id, value) {
                    packet.reason_string = Some(text);
                }
                Ok(())
            })?;
            packet.user_properties = UserProperties { block };
        }
    }
    body.end()?;
    Ok(packet)
}

fn reason(body: &mut Reader<'_>, allowed: fn(ReasonCode) -> bool) -> Result<ReasonCode, DecodeError> {
    let byte = body.u8()?;
    ReasonCode::from_byte(byte).filter(|reason| allowed(*reason)).ok_or(DecodeError::Reason(byte))
}

fn subscribe(mut body: Reader<'_>, version: Version) -> Result<Subscribe<'_>, DecodeError> {
    let packet_id = body.packet_id()?;
    let mut subscription_identifier = None;
    let mut user_properties = UserProperties::default();
    if version == Version::V5 {
        let block = read_block(&mut body, v5::SUBSCRIBE, |_, value| {
            if let Value::VarInt(identifier) = value {
                // Section 3.8.2.1.2: more than one is a protocol error.
                if subscription_identifier.replace(identifier).is_some() {
                    return Err(DecodeError::PropertyTwice(id::SUBSCRIPTION_IDENTIFIER));
                }
            }
            Ok(())
        })?;
        user_properties = UserProperties { block };
    }
    let filters = SubscribeFilters { version, bytes: body.rest() };
    // [MQTT-3.8.3-2]
    if body.is_empty() {
        return Err(DecodeError::NoFilter);
    }
    while !body.is_empty() {
        let entry = subscribe_filter(&mut body, version)?;
        // [MQTT-3.8.3-4]
        if entry.options.no_local && Filter::parse(entry.filter).is_ok_and(|filter| filter.share().is_some()) {
            return Err(DecodeError::NoLocalOnShared);
        }
    }
    Ok(Subscribe { packet_id, subscription_identifier, user_properties, filters })
}

pub(super) fn subscribe_filter<'a>(
    body: &mut Reader<'a>,
    version: Version,
) -> Result<SubscribeFilter<'a>, DecodeError> {
    let filter = body.text()?;
    let bits = body.u8()?;
    let invalid = DecodeError::SubscriptionOptions(bits);
    // [MQTT-3.8.3-5], and [MQTT-3.8.3-4] of 3.1.1: reserved bits are zero, QoS is not 3.
    let reserved = if version == Version::V5 { 0b1100_0000 } else { 0b1111_1100 };
    if bits & reserved != 0 {
        return Err(invalid);
    }
    // Section 3.8.3.1: 3 is a protocol error for both.
    let invalid = if version == Version::V5 { DecodeError::SubscriptionOptionsValue(bits) } else { invalid };
    let options = SubscriptionOptions {
        qos: QoS::from_bits(bits & 0b11).ok_or(invalid)?,
        no_local: bits & 0b100 != 0,
        retain_as_published: bits & 0b1000 != 0,
        retain_handling: RetainHandling::from_bits(bits >> 4 & 0b11).ok_or(invalid)?,
    };
    Ok(SubscribeFilter { filter, options })
}

fn suback(mut body: Reader<'_>, version: Version) -> Result<SubAck<'_>, DecodeError> {
    let packet_id = body.packet_id()?;
    let reason_string = if version == Version::V5 { reason_string(&mut body)? } else { None };
    let mut reasons = Vec::with_capacity(body.len());
    while !body.is_empty() {
        reasons.push(match (version, body.u8()?) {
            (Version::V31 | Version::V311, 0x80) => ReasonCode::UnspecifiedError,
            (Version::V31 | Version::V311, code @ 3..) => return Err(DecodeError::Reason(code)),
            (_, code) => {
                ReasonCode::from_byte(code).filter(|r| v5::is_subscribe_reason(*r)).ok_or(DecodeError::Reason(code))?
            }
        });
    }
    Ok(SubAck { packet_id, reasons, reason_string })
}

fn reason_string<'a>(body: &mut Reader<'a>) -> Result<Option<&'a str>, DecodeError> {
    let mut found = None;
    read_block(body, v5::ACK, |id, value| {
        if let (id::REASON_STRING, Value::Text(text)) = (id, value) {
            found = Some(text);
        }
        Ok(())
    })?;
    Ok(found)
}

fn unsubscribe(mut body: Reader<'_>, version: Version) -> Result<Unsubscribe<'_>, DecodeError> {
    let packet_id = body.packet_id()?;
    let mut user_properties = UserProperties::default();
    if version == Version::V5 {
        user_properties = UserProperties { block: read_block(&mut body, v5::UNSUBSCRIBE, |_, _| Ok(()))? };
    }
    let filters = UnsubscribeFilters { bytes: body.rest() };
    // [MQTT-3.10.3-2]
    if body.is_empty() {
        return Err(DecodeError::NoFilter);
    }
    while !body.is_empty() {
        body.text()?;
    }
    Ok(Unsubscribe { packet_id, user_properties, filters })
}

fn unsuback(mut body: Reader<'_>, version: Version) -> Result<UnsubAck<'_>, DecodeError> {
    let packet_id = body.packet_id()?;
    let mut packet = UnsubAck { packet_id, reasons: Vec::new(), reason_string: None };
    if version == Version::V5 {
        packet.reason_string = reason_string(&mut body)?;
        while !body.is_empty() {
            packet.reasons.push(reason(&mut body, v5::is_unsubscribe_reason)?);
        }
    }
    body.end()?;
    Ok(packet)
}

fn disconnect(mut body: Reader<'_>, version: Version) -> Result<Disconnect<'_>, DecodeError> {
    let mut packet = Disconnect::new(ReasonCode::Success);
    // Section 3.14.2.1: the reason code and the properties may be left out.
    if version == Version::V5 && !body.is_empty() {
        packet.reason = reason(&mut body, v5::is_disconnect_reason)?;
        if !body.is_empty() {
            let block = read_block(&mut body, v5::DISCONNECT, |id, value| {
                match (id, value) {
                    (id::SESSION_EXPIRY_INTERVAL, Value::U32(secs)) => packet.session_expiry_interval = Some(secs),
                    (id::REASON_STRING, Value::Text(text)) => packet.reason_string = Some(text),
                    (id::SERVER_REFERENCE, Value::Text(text)) => packet.server_reference = Some(text),
                    _ => {}
                }
                Ok(())
            })?;
            packet.user_properties = UserProperties { block };
        }
    }
    body.end()?;
    Ok(packet)
}

fn auth(mut body: Reader<'_>) -> Result<Auth<'_>, DecodeError> {
    let mut packet = Auth {
        reason: ReasonCode::Success,
        method: None,
        data: None,
        reason_string: None,
        user_properties: UserProperties::default(),
    };
    if !body.is_empty() {
        packet.reason = reason(&mut body, v5::is_auth_reason)?;
        if !body.is_empty() {
            let block = read_block(&mut body, v5::AUTH, |id, value| {
                match (id, value) {
                    (id::AUTHENTICATION_METHOD, Value::Text(text)) => packet.method = Some(text),
                    (id::AUTHENTICATION_DATA, Value::Binary(data)) => packet.data = Some(data),
                    (id::REASON_STRING, Value::Text(text)) => packet.reason_string = Some(text),
                    _ => {}
                }
                Ok(())
            })?;
            packet.user_properties = UserProperties { block };
        }
    }
    body.end()?;
    Ok(packet)
}
