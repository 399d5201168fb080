use super::packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, SubAck, Subscribe, UnsubAck, Unsubscribe, Version,
};
use super::properties::{UserProperties, id};
use super::v3;
use crate::types::{PacketId, QoS, ReasonCode};

/// Appends `packet` as `version` writes it. A packet that the version does not have (AUTH, a
/// server's DISCONNECT or a refusal without return code before MQTT 5) appends nothing.
///
/// Texts and binary fields are cut off by no one here: they have at most 65,535 bytes, which
/// whoever made the packet has seen to.
pub fn encode(out: &mut Vec<u8>, packet: &Packet<'_>, version: Version) {
    match packet {
        Packet::Connect(connect) => framed(out, 0x10, |out| encode_connect(out, connect)),
        Packet::ConnAck(connack) => encode_connack(out, connack, version),
        Packet::Publish(publish) => encode_publish(out, publish, version),
        Packet::PubAck(ack) => encode_ack(out, 0x40, ack, version),
        Packet::PubRec(ack) => encode_ack(out, 0x50, ack, version),
        Packet::PubRel(ack) => encode_ack(out, 0x62, ack, version),
        Packet::PubComp(ack) => encode_ack(out, 0x70, ack, version),
        Packet::Subscribe(subscribe) => framed(out, 0x82, |out| encode_subscribe(out, subscribe, version)),
        Packet::SubAck(suback) => framed(out, 0x90, |out| encode_suback(out, suback, version)),
        Packet::Unsubscribe(unsubscribe) => framed(out, 0xA2, |out| encode_unsubscribe(out, unsubscribe, version)),
        Packet::UnsubAck(unsuback) => framed(out, 0xB0, |out| encode_unsuback(out, unsuback, version)),
        Packet::PingReq => out.extend_from_slice(&[0xC0, 0]),
        Packet::PingResp => out.extend_from_slice(&[0xD0, 0]),
        Packet::Disconnect(disconnect) => encode_disconnect(out, disconnect, version),
        Packet::Auth(auth) => encode_auth(out, auth, version),
    }
}

/// Appends `packet` in at most `size_max` bytes if it can: without its Reason String and User
/// Properties where they would make it larger [MQTT-3.2.2-19], [MQTT-3.4.2-2], [MQTT-3.14.2-3], or where
/// it is not to explain itself [MQTT-3.1.2-29].
pub fn encode_within(out: &mut Vec<u8>, packet: &Packet<'_>, version: Version, size_max: usize, explains: bool) {
    let start = out.len();
    if explains {
        encode(out, packet, version);
        if out.len() - start <= size_max {
            return;
        }
        out.truncate(start);
    }
    match bare(packet) {
        Some(packet) => encode(out, &packet, version),
        None => encode(out, packet, version),
    }
}

/// The packet without what only explains it; `None` where there is nothing of the kind.
fn bare<'a>(packet: &Packet<'a>) -> Option<Packet<'a>> {
    let ack = |ack: &Ack<'a>| Ack::new(ack.packet_id, ack.reason);
    Some(match packet {
        Packet::PubAck(packet) => Packet::PubAck(ack(packet)),
        Packet::PubRec(packet) => Packet::PubRec(ack(packet)),
        Packet::PubRel(packet) => Packet::PubRel(ack(packet)),
        Packet::PubComp(packet) => Packet::PubComp(ack(packet)),
        Packet::SubAck(packet) => Packet::SubAck(SubAck { reason_string: None, ..packet.clone() }),
        Packet::UnsubAck(packet) => Packet::UnsubAck(UnsubAck { reason_string: None, ..packet.clone() }),
        Packet::ConnAck(packet) => {
            let user_properties = UserProperties::default();
            Packet::ConnAck(Box::new(ConnAck { reason_string: None, user_properties, ..(**packet).clone() }))
        }
        Packet::Disconnect(packet) => {
            let user_properties = UserProperties::default();
            Packet::Disconnect(Disconnect { reason_string: None, user_properties, ..*packet })
        }
        Packet::Auth(packet) => {
            let user_properties = UserProperties::default();
            Packet::Auth(Auth { reason_string: None, user_properties, ..*packet })
        }
        _ => return None,
    })
}

/// Everything of an outgoing PUBLISH but its payload and packet identifier.
#[derive(Clone, Copy, Debug)]
pub struct PublishHead<'a> {
    pub version: Version,
    pub qos: QoS,
    pub retain: bool,
    pub dup: bool,
    /// Empty where `topic_alias` stands for it.
    pub topic: &'a str,
    pub topic_alias: Option<u16>,
    /// Seconds that remain.
    pub message_expiry_interval: Option<u32>,
    pub subscription_identifiers: &'a [u32],
    /// Properties that were encoded when the message came in.
    pub forwarded: &'a [u8],
    pub payload_len: usize,
}

/// The bytes of an outgoing PUBLISH before its payload, encoded once for all receivers whose
/// bytes agree; only the packet identifier is patched from one to the next.
#[derive(Debug, Default)]
pub struct PublishFrame {
    bytes: Vec<u8>,
    packet_id_at: usize,
    payload_len: usize,
}

impl PublishFrame {
    /// Encodes `head` in place of what was there.
    pub fn encode(&mut self, head: &PublishHead<'_>) {
        self.bytes.clear();
        let with_id = head.qos != QoS::AtMostOnce;
        let mut properties = 0;
        let mut length = 2 + head.topic.len() + if with_id { 2 } else { 0 } + head.payload_len;
        if head.version == Version::V5 {
            properties = head.forwarded.len()
                + if head.topic_alias.is_some() { 3 } else { 0 }
                + if head.message_expiry_interval.is_some() { 5 } else { 0 }
                + head.subscription_identifiers.iter().map(|id| 1 + varint_len(*id as usize)).sum::<usize>();
            length += varint_len(properties) + properties;
        }
        if length > REMAINING_LENGTH_MAX {
            // [MQTT-1.5.5-1]: no packet can have it; whoever asks is told of one that fits nobody.
            self.payload_len = usize::MAX / 2;
            return;
        }
        let out = &mut self.bytes;
        out.push(0x30 | u8::from(head.dup) << 3 | head.qos.bits() << 1 | u8::from(head.retain));
        varint(out, length);
        text(out, head.topic);
        self.packet_id_at = out.len();
        if with_id {
            out.extend_from_slice(&[0, 0]);
        }
        if head.version == Version::V5 {
            varint(out, properties);
            if let Some(secs) = head.message_expiry_interval {
                u32_property(out, id::MESSAGE_EXPIRY_INTERVAL, secs);
            }
            if let Some(alias) = head.topic_alias {
                u16_property(out, id::TOPIC_ALIAS, alias);
            }
            for identifier in head.subscription_identifiers {
                out.push(id::SUBSCRIPTION_IDENTIFIER);
                varint(out, *identifier as usize);
            }
            out.extend_from_slice(head.forwarded);
        }
        self.payload_len = head.payload_len;
    }

    pub fn set_packet_id(&mut self, packet_id: PacketId) {
        self.bytes[self.packet_id_at..self.packet_id_at + 2].copy_from_slice(&packet_id.value().to_be_bytes());
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole packet with its payload, bytes.
    pub fn packet_len(&self) -> usize {
        self.bytes.len() + self.payload_len
    }
}

/// The largest Remaining Length (section 2.1.4).
const REMAINING_LENGTH_MAX: usize = 268_435_455;

fn varint_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

pub(super) fn varint(out: &mut Vec<u8>, mut value: usize) {
    debug_assert!(value <= REMAINING_LENGTH_MAX);
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn text(out: &mut Vec<u8>, value: &str) {
    binary(out, value.as_bytes());
}

fn u16_property(out: &mut Vec<u8>, id: u8, value: u16) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn u32_property(out: &mut Vec<u8>, id: u8, value: u32) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn text_property(out: &mut Vec<u8>, id: u8, value: Option<&str>) {
    if let Some(value) = value {
        out.push(id);
        text(out, value);
    }
}

pub(super) fn binary_property(out: &mut Vec<u8>, id: u8, value: Option<&[u8]>) {
    if let Some(value) = value {
        out.push(id);
        binary(out, value);
    }
}

fn user_properties(out: &mut Vec<u8>, properties: UserProperties<'_>) {
    for (name, value) in properties.iter() {
        user_property(out, name, value);
    }
}

pub(super) fn user_property(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(id::USER_PROPERTY);
    text(out, name);
    text(out, value);
}

/// Writes a length that is known only when what it counts has been written.
fn prefixed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(4);
        varint(&mut prefix, length);
        out.splice(at..=at, prefix);
    }
}

fn framed(out: &mut Vec<u8>, first_byte: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(first_byte);
    prefixed(out, write);
}

fn encode_connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    let (name, level) = match connect.version {
        Version::V31 => ("MQIsdp", 3),
        Version::V311 => ("MQTT", 4),
        Version::V5 => ("MQTT", 5),
    };
    text(out, name);
    out.push(level);
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 1 << 2 | will.qos.bits() << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.user_name.is_some()) << 7;
    out.push(flags);
    out.extend_from_slice(&connect.keep_alive.to_be_bytes());
    if connect.version == Version::V5 {
        let properties = &connect.properties;
        prefixed(out, |out| {
            if let Some(secs) = properties.session_expiry_interval {
                u32_property(out, id::SESSION_EXPIRY_INTERVAL, secs);
            }
            if properties.receive_maximum != u16::MAX {
                u16_property(out, id::RECEIVE_MAXIMUM, properties.receive_maximum);
            }
            if let Some(size) = properties.maximum_packet_size {
                u32_property(out, id::MAXIMUM_PACKET_SIZE, size);
            }
            if properties.topic_alias_maximum > 0 {
                u16_property(out, id::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
            }
            if properties.request_response_information {
                out.extend_from_slice(&[id::REQUEST_RESPONSE_INFORMATION, 1]);
            }
            if !properties.request_problem_information {
                out.extend_from_slice(&[id::REQUEST_PROBLEM_INFORMATION, 0]);
            }
            text_property(out, id::AUTHENTICATION_METHOD, properties.authentication_method);
            binary_property(out, id::AUTHENTICATION_DATA, properties.authentication_data);
            user_properties(out, properties.user_properties);
        });
    }
    text(out, connect.client_id);
    if let Some(will) = &connect.will {
        if connect.version == Version::V5 {
            // The block was encoded by whoever made it: a client that forwards what it read.
            prefixed(out, |out| out.extend_from_slice(will.properties.block));
        }
        text(out, will.topic);
        binary(out, will.payload);
    }
    if let Some(user_name) = connect.user_name {
        text(out, user_name);
    }
    if let Some(password) = connect.password {
        binary(out, password);
    }
}

fn encode_connack(out: &mut Vec<u8>, connack: &ConnAck<'_>, version: Version) {
    let code = match version {
        Version::V5 => connack.reason.byte(),
        _ => match v3::connect_return_code(connack.reason) {
            Some(code) => code,
            None => return,
        },
    };
    framed(out, 0x20, |out| {
        // MQTT 3.1 has no session present flag: the byte is reserved there.
        out.push(u8::from(connack.session_present && version != Version::V31));
        out.push(code);
        if version == Version::V5 {
            prefixed(out, |out| connack_properties(out, connack));
        }
    });
}

/// In the order in which Mosquitto has them, for those who read on after what they know.
fn connack_properties(out: &mut Vec<u8>, connack: &ConnAck<'_>) {
    if let Some(secs) = connack.session_expiry_interval {
        u32_property(out, id::SESSION_EXPIRY_INTERVAL, secs);
    }
    if let Some(secs) = connack.server_keep_alive {
        u16_property(out, id::SERVER_KEEP_ALIVE, secs);
    }
    if connack.topic_alias_maximum > 0 {
        u16_property(out, id::TOPIC_ALIAS_MAXIMUM, connack.topic_alias_maximum);
    }
    text_property(out, id::ASSIGNED_CLIENT_IDENTIFIER, connack.assigned_client_id);
    text_property(out, id::AUTHENTICATION_METHOD, connack.authentication_method);
    binary_property(out, id::AUTHENTICATION_DATA, connack.authentication_data);
    text_property(out, id::RESPONSE_INFORMATION, connack.response_information);
    text_property(out, id::REASON_STRING, connack.reason_string);
    for (id, available) in [
        (id::RETAIN_AVAILABLE, connack.retain_available),
        (id::WILDCARD_SUBSCRIPTION_AVAILABLE, connack.wildcard_subscription_available),
        (id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, connack.subscription_identifiers_available),
        (id::SHARED_SUBSCRIPTION_AVAILABLE, connack.shared_subscription_available),
    ] {
        if !available {
            out.extend_from_slice(&[id, 0]);
        }
    }
    if let Some(size) = connack.maximum_packet_size {
        u32_property(out, id::MAXIMUM_PACKET_SIZE, size);
    }
    if let Some(count) = connack.receive_maximum {
        u16_property(out, id::RECEIVE_MAXIMUM, count);
    }
    if connack.maximum_qos != QoS::ExactlyOnce {
        out.extend_from_slice(&[id::MAXIMUM_QOS, connack.maximum_qos.bits()]);
    }
    user_properties(out, connack.user_properties);
}

fn encode_publish(out: &mut Vec<u8>, publish: &Publish<'_>, version: Version) {
    let identifiers: Vec<u32> = publish.properties.subscription_identifiers().collect();
    let forwarded: Vec<u8> = publish.properties.forwarded().flatten().copied().collect();
    let mut frame = PublishFrame::default();
    frame.encode(&PublishHead {
        version,
        qos: publish.qos,
        retain: publish.retain,
        dup: publish.dup,
        topic: publish.topic,
        topic_alias: publish.properties.topic_alias,
        message_expiry_interval: publish.properties.message_expiry_interval,
        subscription_identifiers: &identifiers,
        forwarded: &forwarded,
        payload_len: publish.payload.len(),
    });
    if let Some(packet_id) = publish.packet_id {
        frame.set_packet_id(packet_id);
    }
    out.extend_from_slice(frame.bytes());
    out.extend_from_slice(publish.payload);
}

fn encode_ack(out: &mut Vec<u8>, first_byte: u8, ack: &Ack<'_>, version: Version) {
    let [high, low] = ack.packet_id.value().to_be_bytes();
    let bare = ack.reason_string.is_none() && ack.user_properties.iter().next().is_none();
    if version != Version::V5 || (bare && ack.reason == ReasonCode::Success) {
        out.extend_from_slice(&[first_byte, 2, high, low]);
    } else if bare {
        out.extend_from_slice(&[first_byte, 3, high, low, ack.reason.byte()]);
    } else {
        framed(out, first_byte, |out| {
            out.extend_from_slice(&[high, low, ack.reason.byte()]);
            prefixed(out, |out| {
                text_property(out, id::REASON_STRING, ack.reason_string);
                user_properties(out, ack.user_properties);
            });
        });
    }
}

fn encode_subscribe(out: &mut Vec<u8>, subscribe: &Subscribe<'_>, version: Version) {
    out.extend_from_slice(&subscribe.packet_id.value().to_be_bytes());
    if version == Version::V5 {
        prefixed(out, |out| {
            if let Some(identifier) = subscribe.subscription_identifier {
                out.push(id::SUBSCRIPTION_IDENTIFIER);
                varint(out, identifier as usize);
            }
            user_properties(out, subscribe.user_properties);
        });
    }
    for entry in subscribe.filters.iter() {
        text(out, entry.filter);
        out.push(entry.options.bits(version));
    }
}

fn encode_suback(out: &mut Vec<u8>, suback: &SubAck<'_>, version: Version) {
    out.extend_from_slice(&suback.packet_id.value().to_be_bytes());
    if version == Version::V5 {
        prefixed(out, |out| text_property(out, id::REASON_STRING, suback.reason_string));
        out.extend(suback.reasons.iter().map(|reason| reason.byte()));
    } else {
        out.extend(suback.reasons.iter().map(|reason| v3::subscribe_code(*reason)));
    }
}

fn encode_unsubscribe(out: &mut Vec<u8>, unsubscribe: &Unsubscribe<'_>, version: Version) {
    out.extend_from_slice(&unsubscribe.packet_id.value().to_be_bytes());
    if version == Version::V5 {
        prefixed(out, |out| user_properties(out, unsubscribe.user_properties));
    }
    for filter in unsubscribe.filters.iter() {
        text(out, filter);
    }
}

fn encode_unsuback(out: &mut Vec<u8>, unsuback: &UnsubAck<'_>, version: Version) {
    out.extend_from_slice(&unsuback.packet_id.value().to_be_bytes());
    if version == Version::V5 {
        prefixed(out, |out| text_property(out, id::REASON_STRING, unsuback.reason_string));
        out.extend(unsuback.reasons.iter().map(|reason| reason.byte()));
    }
}

fn encode_disconnect(out: &mut Vec<u8>, disconnect: &Disconnect<'_>, version: Version) {
    if version != Version::V5 {
        // From a client there is a bare DISCONNECT; a server has none before MQTT 5 and closes.
        if disconnect.reason == ReasonCode::Success {
            out.extend_from_slice(&[0xE0, 0]);
        }
        return;
    }
    framed(out, 0xE0, |out| {
        out.push(disconnect.reason.byte());
        prefixed(out, |out| {
            if let Some(secs) = disconnect.session_expiry_interval {
                u32_property(out, id::SESSION_EXPIRY_INTERVAL, secs);
            }
            text_property(out, id::REASON_STRING, disconnect.reason_string);
            text_property(out, id::SERVER_REFERENCE, disconnect.server_reference);
            user_properties(out, disconnect.user_properties);
        });
    });
}

fn encode_auth(out: &mut Vec<u8>, auth: &Auth<'_>, version: Version) {
    if version != Version::V5 {
        return;
    }
    framed(out, 0xF0, |out| {
        out.push(auth.reason.byte());
        prefixed(out, |out| {
            text_property(out, id::AUTHENTICATION_METHOD, auth.method);
            binary_property(out, id::AUTHENTICATION_DATA, auth.data);
            text_property(out, id::REASON_STRING, auth.reason_string);
            user_properties(out, auth.user_properties);
        });
    });
}
