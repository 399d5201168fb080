use proptest::prelude::*;

use super::*;
use crate::types::{PacketId, QoS, ReasonCode};

fn decoded(bytes: &[u8], version: Version) -> Result<Packet<'_>, DecodeError> {
    let found = frame(bytes, PACKET_SIZE_MAX)?.expect("a whole packet");
    assert_eq!(found.end, bytes.len());
    decode(bytes, found, version)
}

fn round_trip(packet: &Packet<'_>, version: Version) {
    let mut bytes = Vec::new();
    encode(&mut bytes, packet, version);
    assert_eq!(&decoded(&bytes, version).unwrap(), packet, "{bytes:02x?}");
}

#[test]
fn a_connect_with_every_field_comes_back() {
    let connect = Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive: 30,
        properties: ConnectProperties {
            session_expiry_interval: Some(60),
            receive_maximum: 10,
            maximum_packet_size: Some(1000),
            topic_alias_maximum: 3,
            request_response_information: true,
            request_problem_information: false,
            authentication_method: Some("m"),
            authentication_data: Some(b"d"),
            user_properties: UserProperties::default(),
        },
        client_id: "c",
        will: Some(Will {
            qos: QoS::ExactlyOnce,
            retain: true,
            properties: WillProperties::default(),
            topic: "w",
            payload: b"gone",
        }),
        user_name: Some("u"),
        password: Some(b"p"),
    };
    round_trip(&Packet::Connect(Box::new(connect.clone())), Version::V5);
    for version in [Version::V31, Version::V311] {
        let connect = Connect { version, properties: ConnectProperties::default(), ..connect.clone() };
        round_trip(&Packet::Connect(Box::new(connect)), version);
    }
}

#[test]
fn remaining_length_is_found_byte_by_byte() {
    // MQTT 5 section 2.1.4
    let mut bytes = vec![0x30, 0x80, 0x01];
    assert_eq!(frame(&bytes[..1], 1000), Ok(None));
    assert_eq!(frame(&bytes[..2], 1000), Ok(None));
    bytes.extend_from_slice(&[0; 128]);
    assert_eq!(frame(&bytes, 1000), Ok(Some(Frame { first_byte: 0x30, body_start: 3, end: 131 })));
    assert_eq!(frame(&bytes[..3], 130), Err(DecodeError::TooLarge { size: 131, max: 130 }));
    assert_eq!(frame(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF], 1000), Err(DecodeError::RemainingLength));
    // [MQTT-1.5.5-1]: the shortest form only.
    assert_eq!(frame(&[0x30, 0x80, 0x00], 1000), Err(DecodeError::RemainingLength));
}

#[test]
fn reserved_header_bits_are_refused() {
    // [MQTT-2.1.3-1], [MQTT-2.2.2-2] of 3.1.1
    for bytes in [&[0x60, 2, 0, 1][..], &[0x81, 2, 0, 1], &[0xC1, 0], &[0x42, 2, 0, 1]] {
        assert!(matches!(decoded(bytes, Version::V311), Err(DecodeError::Flags { .. })), "{bytes:02x?}");
    }
}

#[test]
fn a_publish_with_qos_3_or_dup_at_qos_0_is_refused() {
    // [MQTT-3.3.1-4], [MQTT-3.3.1-2]
    assert_eq!(decoded(&[0x36, 5, 0, 1, b'a', 0, 1], Version::V311), Err(DecodeError::QoS));
    assert_eq!(decoded(&[0x38, 3, 0, 1, b'a'], Version::V311), Err(DecodeError::DupAtQoS0));
}

#[test]
fn texts_that_are_no_utf8_are_refused() {
    // [MQTT-1.5.4-1], [MQTT-1.5.4-2]
    assert_eq!(decoded(&[0x30, 3, 0, 1, 0xFF], Version::V311), Err(DecodeError::Utf8));
    assert_eq!(decoded(&[0x30, 5, 0, 3, 0xED, 0xA0, 0x80], Version::V311), Err(DecodeError::Utf8));
    assert_eq!(decoded(&[0x30, 3, 0, 1, 0], Version::V311).unwrap_err(), DecodeError::Null);
}

#[test]
fn properties_are_checked_for_place_number_and_value() {
    // MQTT 5 section 2.2.2.2: misplaced is malformed, twice is a protocol error.
    let publish = |properties: &[u8]| {
        let mut bytes = vec![0x30, 4 + properties.len() as u8, 0, 1, b'a', properties.len() as u8];
        bytes.extend_from_slice(properties);
        decoded(&bytes, Version::V5).map(|_| ()).map_err(|error| (error, error.reason()))
    };
    assert_eq!(publish(&[0x01, 1, 0x02, 0, 0, 0, 9]), Ok(()));
    let malformed = ReasonCode::MalformedPacket;
    let protocol = ReasonCode::ProtocolError;
    assert_eq!(publish(&[0x11, 0, 0, 0, 1]), Err((DecodeError::PropertyMisplaced(0x11), malformed)));
    assert_eq!(publish(&[0x01, 1, 0x01, 1]), Err((DecodeError::PropertyTwice(0x01), protocol)));
    assert_eq!(publish(&[0x01, 2]), Err((DecodeError::PropertyValue(0x01), protocol)));
    // [MQTT-3.3.2-8]
    assert_eq!(publish(&[0x23, 0, 0]), Err((DecodeError::TopicAliasZero, ReasonCode::TopicAliasInvalid)));
    assert_eq!(publish(&[0x7F]), Err((DecodeError::PropertyUnknown(0x7F), malformed)));
}

#[test]
fn an_unknown_protocol_is_told_from_a_broken_packet() {
    // [MQTT-3.1.2-1], [MQTT-3.1.2-2]
    let level = |name: &[u8], level| {
        let mut bytes = vec![0x10, 6 + name.len() as u8, 0, name.len() as u8];
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&[level, 2, 0, 0]);
        decoded(&bytes, Version::V5).unwrap_err()
    };
    assert_eq!(level(b"MQTT", 6), DecodeError::ProtocolLevel(6));
    assert_eq!(level(b"MQTX", 4), DecodeError::ProtocolName);
}

#[test]
fn acknowledgements_shorten_to_what_is_needed() {
    // MQTT 5 section 3.4.2.1
    let id = PacketId::new(7).unwrap();
    let mut bytes = Vec::new();
    encode(&mut bytes, &Packet::PubAck(Ack::new(id, ReasonCode::Success)), Version::V5);
    assert_eq!(bytes, [0x40, 2, 0, 7]);
    bytes.clear();
    encode(&mut bytes, &Packet::PubAck(Ack::new(id, ReasonCode::NotAuthorized)), Version::V5);
    assert_eq!(bytes, [0x40, 3, 0, 7, 0x87]);
    bytes.clear();
    encode(&mut bytes, &Packet::PubAck(Ack::new(id, ReasonCode::NotAuthorized)), Version::V311);
    assert_eq!(bytes, [0x40, 2, 0, 7]);
    let long = "x".repeat(300);
    round_trip(
        &Packet::PubRec(Ack { reason_string: Some(&long), ..Ack::new(id, ReasonCode::QuotaExceeded) }),
        Version::V5,
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for version in [Version::V31, Version::V311, Version::V5] {
            if let Ok(Some(found)) = frame(&bytes, 1 << 20) {
                let _ = decode(&bytes, found, version);
            }
        }
    }

    #[test]
    fn a_packet_with_a_sound_header_and_any_body_never_panics(
        first_byte in any::<u8>(),
        body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut bytes = vec![first_byte, body.len() as u8];
        bytes.extend_from_slice(&body);
        for version in [Version::V311, Version::V5] {
            if let Ok(packet) = decoded(&bytes, version) {
                // What decodes, encodes to something that decodes to the same.
                let mut again = Vec::new();
                encode(&mut again, &packet, version);
                if !again.is_empty() && !matches!(packet, Packet::Connect(_) | Packet::Publish(_)) {
                    prop_assert_eq!(decoded(&again, version).unwrap(), packet);
                }
            }
        }
    }

    #[test]
    fn a_publish_comes_back(
        topic in "[a-zäß/]{1,20}",
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        qos in 0u8..3,
        retain in any::<bool>(),
        id in 1u16..,
        v5 in any::<bool>(),
    ) {
        let qos = QoS::from_bits(qos).unwrap();
        let publish = Publish {
            dup: false,
            qos,
            retain,
            topic: &topic,
            packet_id: if qos == QoS::AtMostOnce { None } else { PacketId::new(id) },
            properties: PublishProperties::default(),
            payload: &payload,
        };
        round_trip(&Packet::Publish(publish), if v5 { Version::V5 } else { Version::V311 });
    }
}
