//! Packets as short texts, so that a test reads as what went over the wire.

use lockgate::codec::{self, Packet, Version};
use lockgate::types::{QoS, ReasonCode};

/// Every packet in `bytes`, which must hold whole packets only.
pub(crate) fn describe_all(bytes: &[u8], version: Version) -> Vec<String> {
    let mut texts = Vec::new();
    let mut rest = bytes;
    while let Some(frame) = codec::frame(rest, codec::PACKET_SIZE_MAX).expect("a sound header") {
        texts.push(describe(&codec::decode(rest, frame, version).expect("a sound packet"), version));
        rest = &rest[frame.end..];
    }
    assert!(rest.is_empty(), "bytes are left over: {rest:02x?}");
    texts
}

fn describe(packet: &Packet<'_>, version: Version) -> String {
    let code = |reason: ReasonCode| {
        if reason == ReasonCode::Success { String::new() } else { format!(" {:#04x}", reason.byte()) }
    };
    match packet {
        Packet::ConnAck(connack) => {
            let mut text = format!("CONNACK{}", code(connack.reason));
            if connack.session_present {
                text.push_str(" present");
            }
            if let Some(id) = connack.assigned_client_id {
                text.push_str(&format!(" assigned={id}"));
            }
            if let Some(secs) = connack.server_keep_alive {
                text.push_str(&format!(" keep-alive={secs}"));
            }
            if let Some(secs) = connack.session_expiry_interval {
                text.push_str(&format!(" expiry={secs}"));
            }
            if let Some(information) = connack.response_information {
                text.push_str(&format!(" response-information={information}"));
            }
            if let Some(method) = connack.authentication_method {
                text.push_str(&format!(" method={method}"));
            }
            if let Some(data) = connack.authentication_data {
                text.push_str(&format!(" data={:?}", String::from_utf8_lossy(data)));
            }
            text
        }
        Packet::Publish(publish) => {
            let mut text = format!("PUBLISH {} {}", publish.topic, String::from_utf8_lossy(publish.payload));
            if publish.qos != QoS::AtMostOnce {
                text.push_str(&format!(" q{} #{}", publish.qos.bits(), publish.packet_id.expect("QoS 1 or 2")));
            }
            if publish.retain {
                text.push_str(" retain");
            }
            if publish.dup {
                text.push_str(" dup");
            }
            if let Some(secs) = publish.properties.message_expiry_interval {
                text.push_str(&format!(" expiry={secs}"));
            }
            if let Some(alias) = publish.properties.topic_alias {
                text.push_str(&format!(" alias={alias}"));
            }
            if let Some(raw) = publish.properties.forwarded().find(|raw| raw[0] == 1) {
                text.push_str(&format!(" format={}", raw[1]));
            }
            if let Some(content_type) = publish.properties.content_type() {
                text.push_str(&format!(" type={content_type}"));
            }
            if let Some(topic) = publish.properties.response_topic() {
                text.push_str(&format!(" response={topic}"));
            }
            if let Some(data) = publish.properties.correlation_data() {
                text.push_str(&format!(" correlation={data:02x?}"));
            }
            for identifier in publish.properties.subscription_identifiers() {
                text.push_str(&format!(" sub={identifier}"));
            }
            for (name, value) in publish.properties.user_properties().iter() {
                text.push_str(&format!(" {name}={value}"));
            }
            text
        }
        Packet::PubAck(ack) => format!("PUBACK #{}{}", ack.packet_id, code(ack.reason)),
        Packet::PubRec(ack) => format!("PUBREC #{}{}", ack.packet_id, code(ack.reason)),
        Packet::PubRel(ack) => format!("PUBREL #{}{}", ack.packet_id, code(ack.reason)),
        Packet::PubComp(ack) => format!("PUBCOMP #{}{}", ack.packet_id, code(ack.reason)),
        Packet::SubAck(suback) => {
            let codes: Vec<String> = suback
                .reasons
                .iter()
                .map(|reason| match (reason.is_error(), version) {
                    (true, Version::V5) => format!("{:#04x}", reason.byte()),
                    (true, _) => "0x80".to_owned(),
                    (false, _) => reason.byte().to_string(),
                })
                .collect();
            format!("SUBACK #{} {}", suback.packet_id, codes.join(","))
        }
        Packet::UnsubAck(unsuback) => {
            let codes: Vec<String> = unsuback.reasons.iter().map(|reason| format!("{:#04x}", reason.byte())).collect();
            format!("UNSUBACK #{} {}", unsuback.packet_id, codes.join(",")).trim_end().to_owned()
        }
        Packet::PingResp => "PINGRESP".to_owned(),
        Packet::Disconnect(disconnect) => {
            let expiry = disconnect.session_expiry_interval.map(|secs| format!(" expiry={secs}"));
            format!("DISCONNECT {:#04x}{}", disconnect.reason.byte(), expiry.unwrap_or_default())
        }
        Packet::Auth(auth) => format!(
            "AUTH {:#04x} {} {:?}",
            auth.reason.byte(),
            auth.method.unwrap_or_default(),
            auth.data.map(String::from_utf8_lossy).unwrap_or_default()
        ),
        other => format!("{other:?}"),
    }
}
