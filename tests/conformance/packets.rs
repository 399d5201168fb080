//! What a packet has to look like, in bytes.

use lockgate::codec::{self, DecodeError, Packet, Version};
use lockgate::types::{Filter, FilterError, PacketId, QoS, ReasonCode, Topic, TopicError};

use crate::rig::{Rig, client, framed};

fn decode(bytes: &[u8], version: Version) -> Result<Packet<'_>, DecodeError> {
    let frame = codec::frame(bytes, codec::PACKET_SIZE_MAX)?.expect("a whole packet");
    codec::decode(bytes, frame, version)
}

/// A length and the bytes themselves.
fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// A CONNECT of a version with these flags and what follows the keep alive (in MQTT 5: and the empty
/// properties).
fn connect(version: Version, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (name, level): (&[u8], u8) = match version {
        Version::V31 => (b"MQIsdp", 3),
        Version::V311 => (b"MQTT", 4),
        Version::V5 => (b"MQTT", 5),
    };
    let mut body = field(name);
    body.extend_from_slice(&[level, flags, 0, 60]);
    if version == Version::V5 {
        body.push(0);
    }
    body.extend_from_slice(payload);
    framed(0x10, &body)
}

/// A will's fields.
fn will(version: Version) -> Vec<u8> {
    let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    [properties, &field(b"will"), &field(b"gone")].concat()
}

#[test]
fn the_flags_of_connect_are_checked() {
    // [MQTT-3.1.2-3], [MQTT-3.1.2-11], [MQTT-3.1.2-12], [MQTT-3.1.2-13]
    // [MQTT-3.1.2-3], [MQTT-3.1.2-11], [MQTT-3.1.2-13], [MQTT-3.1.2-14], [MQTT-3.1.2-15] of 3.1.1
    for version in [Version::V31, Version::V311, Version::V5] {
        // The reserved bit; will QoS 1 and 2, and will retain, without a will.
        for flags in [0x03, 0x0A, 0x12, 0x22] {
            let error = decode(&connect(version, flags, &field(b"a")), version).unwrap_err();
            assert_eq!(error, DecodeError::ConnectFlags(flags), "{version} {flags:#04x}");
            assert_eq!(error.reason(), ReasonCode::MalformedPacket);
        }
        // A will of QoS 3, whole.
        let payload = [field(b"a"), will(version)].concat();
        assert_eq!(decode(&connect(version, 0x1E, &payload), version), Err(DecodeError::ConnectFlags(0x1E)));
        for (flags, qos) in [(0x06, QoS::AtMostOnce), (0x0E, QoS::AtLeastOnce), (0x16, QoS::ExactlyOnce)] {
            let bytes = connect(version, flags, &payload);
            let Ok(Packet::Connect(packet)) = decode(&bytes, version) else { panic!("{flags:#04x}") };
            let will = packet.will.unwrap();
            assert_eq!((will.qos, will.topic, will.payload, will.retain), (qos, "will", &b"gone"[..], false));
        }
    }
}

#[test]
fn what_the_flags_of_connect_announce_is_there_and_nothing_else() {
    // [MQTT-3.1.2-9], [MQTT-3.1.2-16], [MQTT-3.1.2-17], [MQTT-3.1.2-18], [MQTT-3.1.2-19], [MQTT-3.1.3-1],
    // [MQTT-3.1.3-3]
    // [MQTT-3.1.2-9], [MQTT-3.1.2-11], [MQTT-3.1.2-18], [MQTT-3.1.2-19], [MQTT-3.1.2-20],
    // [MQTT-3.1.2-21], [MQTT-3.1.3-1], [MQTT-3.1.3-3] of 3.1.1
    for version in [Version::V31, Version::V311, Version::V5] {
        let id = field(b"a");
        let (name, password) = (field(b"user"), field(b"pass"));
        // No client id at all.
        assert_eq!(decode(&connect(version, 0x02, b""), version), Err(DecodeError::Truncated));
        // A will that ends early.
        let fields = will(version);
        for end in [0, fields.len() - field(b"gone").len(), fields.len() - 1] {
            let payload = [&id[..], &fields[..end]].concat();
            assert_eq!(decode(&connect(version, 0x06, &payload), version), Err(DecodeError::Truncated), "{end}");
        }
        // Flagged and absent.
        for (flags, payload) in [(0x82, id.clone()), (0xC2, id.clone()), (0xC2, [&id[..], &name[..]].concat())] {
            assert_eq!(decode(&connect(version, flags, &payload), version), Err(DecodeError::Truncated));
        }
        // There and not flagged.
        let behind = |flags, rest: &[u8]| {
            let payload = [&id[..], rest].concat();
            decode(&connect(version, flags, &payload), version).map(|_| ()).unwrap_err()
        };
        assert_eq!(behind(0x02, &name), DecodeError::Trailing(name.len()));
        assert_eq!(behind(0x02, &fields), DecodeError::Trailing(fields.len()));
        assert_eq!(behind(0x82, &[&name[..], &password[..]].concat()), DecodeError::Trailing(password.len()));
        // In their order: client id, will, user name, password.
        let payload = [&id[..], &fields[..], &name[..], &password[..]].concat();
        let bytes = connect(version, 0xC6, &payload);
        let Ok(Packet::Connect(packet)) = decode(&bytes, version) else { panic!("{version}") };
        assert_eq!((packet.client_id, packet.user_name, packet.password), ("a", Some("user"), Some(&b"pass"[..])));
        assert_eq!(packet.will.map(|will| (will.topic, will.payload)), Some(("will", &b"gone"[..])));
    }
}

#[test]
fn a_password_without_a_user_name_is_for_mqtt_5_alone() {
    // [MQTT-3.1.2-22] of 3.1.1; [MQTT-3.1.2-19]
    let payload = [field(b"a"), field(b"pass")].concat();
    for version in [Version::V31, Version::V311] {
        assert_eq!(decode(&connect(version, 0x42, &payload), version), Err(DecodeError::ConnectFlags(0x42)));
    }
    let bytes = connect(Version::V5, 0x42, &payload);
    let Ok(Packet::Connect(packet)) = decode(&bytes, Version::V5) else { panic!("allowed in MQTT 5") };
    assert_eq!((packet.user_name, packet.password), (None, Some(&b"pass"[..])));
}

/// Packets with `text` in each place where a text can be, by the place's name.
fn with_text(text: &[u8]) -> Vec<(&'static str, Version, Vec<u8>)> {
    let text = field(text);
    let mut packets = Vec::new();
    for version in [Version::V311, Version::V5] {
        let (id, payload, empty) = (field(b"a"), field(b"p"), if version == Version::V5 { vec![0] } else { vec![] });
        let all = |parts: &[&[u8]]| parts.concat();
        packets.push(("client id", version, connect(version, 0x02, &text)));
        packets.push(("will topic", version, connect(version, 0x06, &all(&[&id, &empty, &text, &payload]))));
        packets.push(("user name", version, connect(version, 0x82, &all(&[&id, &text]))));
        packets.push(("topic", version, framed(0x30, &all(&[&text, &empty]))));
        packets.push(("filter", version, framed(0x82, &all(&[&[0, 1], &empty, &text, &[0]]))));
        packets.push(("filter to leave", version, framed(0xA2, &all(&[&[0, 1], &empty, &text]))));
    }
    let property = |id: u8, value: &[u8]| [&[(1 + value.len()) as u8, id][..], value].concat();
    let publish = |properties: &[u8]| framed(0x30, &[&field(b"t"), properties].concat());
    let will = |properties: &[u8]| {
        connect(Version::V5, 0x06, &[&field(b"a"), properties, &field(b"w"), &field(b"p")].concat())
    };
    for (name, id) in [("content type", 0x03), ("response topic", 0x08)] {
        packets.push((name, Version::V5, publish(&property(id, &text))));
        packets.push((name, Version::V5, will(&property(id, &text))));
    }
    let pair = |one: &[u8], other: &[u8]| property(0x26, &[one, other].concat());
    packets.push(("user property name", Version::V5, publish(&pair(&text, &field(b"v")))));
    packets.push(("user property value", Version::V5, publish(&pair(&field(b"n"), &text))));
    packets.push(("reason string", Version::V5, framed(0xE0, &[&[0][..], &property(0x1F, &text)].concat())));
    packets.push(("authentication method", Version::V5, framed(0xF0, &[&[0x18][..], &property(0x15, &text)].concat())));
    packets
}

#[test]
fn every_text_has_to_be_utf_8_without_nulls() {
    // [MQTT-1.5.4-1], [MQTT-1.5.4-2], [MQTT-1.5.7-1], [MQTT-3.1.3-4], [MQTT-3.1.3-11], [MQTT-3.1.3-12],
    // [MQTT-3.3.2-1], [MQTT-3.3.2-13], [MQTT-3.3.2-19], [MQTT-3.8.3-1], [MQTT-3.10.3-1], [MQTT-4.7.3-2]
    // [MQTT-1.5.3-1], [MQTT-1.5.3-2], [MQTT-3.1.3-4], [MQTT-3.1.3-10], [MQTT-3.1.3-11], [MQTT-3.3.2-1],
    // [MQTT-3.8.3-1], [MQTT-3.10.3-1], [MQTT-4.7.3-2] of 3.1.1
    for (text, wanted) in [
        (&[b'x', 0xFF][..], DecodeError::Utf8),
        // U+D800, a surrogate.
        (&[0xED, 0xA0, 0x80], DecodeError::Utf8),
        // Cut off.
        (&[0xC3], DecodeError::Utf8),
        (&[b'x', 0, b'y'], DecodeError::Null),
    ] {
        for (place, version, bytes) in with_text(text) {
            let error = decode(&bytes, version).map(|_| ()).unwrap_err();
            assert_eq!(error, wanted, "{place} of {version}: {bytes:02x?}");
            assert_eq!(error.reason(), ReasonCode::MalformedPacket);
        }
    }
    for (place, version, bytes) in with_text("aß€𝄞".as_bytes()) {
        assert!(decode(&bytes, version).is_ok(), "{place} of {version}");
    }
}

#[test]
fn packet_identifier_zero_is_refused() {
    // [MQTT-2.2.1-3]; [MQTT-2.3.1-1] of 3.1.1
    for version in [Version::V311, Version::V5] {
        let empty: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let topic = field(b"a");
        for (first, body) in [
            (0x32, [&topic[..], &[0, 0], empty].concat()),
            (0x34, [&topic[..], &[0, 0], empty].concat()),
            (0x62, vec![0, 0]),
            (0x82, [&[0, 0], empty, &topic[..], &[0]].concat()),
            (0xA2, [&[0, 0], empty, &topic[..]].concat()),
        ] {
            let bytes = framed(first, &body);
            assert_eq!(decode(&bytes, version).map(|_| ()), Err(DecodeError::PacketIdZero), "{bytes:02x?}");
        }
    }
    assert_eq!(PacketId::new(0), None);
}

#[test]
fn reserved_bits_of_the_fixed_header_are_refused() {
    // [MQTT-2.1.3-1], [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1], [MQTT-3.14.1-1], [MQTT-3.15.1-1]
    // [MQTT-2.2.2-1], [MQTT-2.2.2-2], [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1], [MQTT-3.14.1-1] of 3.1.1
    let sound: [(u8, &[u8]); 9] = [
        (0x40, &[0, 1]),
        (0x50, &[0, 1]),
        (0x62, &[0, 1]),
        (0x70, &[0, 1]),
        (0x82, &[0, 1, 0, 0, 1, b'a', 0]),
        (0xA2, &[0, 1, 0, 0, 1, b'a']),
        (0xC0, &[]),
        (0xE0, &[]),
        (0xF0, &[]),
    ];
    let mut rig = Rig::new();
    for (first, body) in sound {
        assert!(decode(&framed(first, body), Version::V5).is_ok(), "{first:#04x}");
        for flags in (0..16).filter(|flags| *flags != first & 0x0F) {
            let bytes = framed(first & 0xF0 | flags, body);
            let error = decode(&bytes, Version::V5).map(|_| ()).unwrap_err();
            assert!(matches!(error, DecodeError::Flags { .. }), "{bytes:02x?}: {error}");
            assert_eq!(error.reason(), ReasonCode::MalformedPacket);
        }
        let id = rig.join(client("c"));
        rig.send_bytes(id, &framed(first ^ 1, body));
        assert_eq!(rig.take(id), ["DISCONNECT 0x81"], "{first:#04x}");
        assert!(rig.closing(id).is_some());
    }
}

#[test]
fn a_disconnect_with_reserved_bits_leaves_the_will_behind() {
    // [MQTT-3.14.1-1]; [MQTT-3.14.1-1] of 3.1.1
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::new();
        let watcher = rig.join(client("watcher"));
        rig.subscribe(watcher, "will", 0);
        let payload = [field(b"a"), will(version)].concat();
        let id = rig.connect_bytes(&connect(version, 0x06, &payload));
        rig.send_bytes(id, &[0xE1, 0]);
        assert!(rig.closing(id).is_some());
        assert_eq!(rig.take(watcher), ["PUBLISH will gone"]);
    }
}

#[test]
fn topics_and_filters_are_up_to_65535_bytes_long_and_not_empty() {
    // [MQTT-4.7.3-1], [MQTT-4.7.3-3]; [MQTT-4.7.3-1], [MQTT-4.7.3-3] of 3.1.1
    let long = "x".repeat(65_536);
    assert!(Topic::parse(&long[1..]).is_ok() && Filter::parse(&long[1..]).is_ok());
    assert_eq!(Topic::parse(&long), Err(TopicError::TooLong));
    assert_eq!(Filter::parse(&long), Err(FilterError::TooLong));
    assert_eq!(Topic::parse(""), Err(TopicError::Empty));
    assert_eq!(Filter::parse(""), Err(FilterError::Empty));
    // The longest passes whole, as a topic and as a client id.
    let mut rig = Rig::new();
    let longest = &long[1..];
    let subscriber = rig.join(client(longest_identity()));
    rig.subscribe(subscriber, longest, 0);
    let publisher = rig.join(crate::rig::Client { identity: Some("p"), ..client(longest) });
    rig.publish(publisher, longest, "x", 0, 0);
    assert_eq!(rig.take(subscriber), [format!("PUBLISH {longest} x")]);
    // An empty filter is refused, and the others of the packet are not.
    for (version, wanted) in [(Version::V5, "SUBACK #1 0x8f,0"), (Version::V311, "SUBACK #1 0x80,0")] {
        let id = rig.join(crate::rig::Client { version, ..client("e") });
        rig.subscribe_with(id, &[("", 0), ("t", 0)], &[]);
        assert_eq!(rig.take(id), [wanted]);
    }
    let id = rig.join(client("e"));
    rig.unsubscribe(id, "");
    assert_eq!(rig.take(id), ["UNSUBACK #1 0x8f"]);
}

fn longest_identity() -> &'static str {
    "subscriber"
}

#[test]
fn every_reason_for_an_end_may_stand_in_a_disconnect() {
    // [MQTT-3.14.2-1]: a second CONNECT of another level or name included.
    let mut rig = Rig::new();
    for bytes in [
        connect(Version::V5, 0x02, &field(b"a")),
        framed(0x10, &[&field(b"MQTT")[..], &[6, 2, 0, 0, 0, 0, 0]].concat()),
        framed(0x10, &[&field(b"MQTX")[..], &[5, 2, 0, 0, 0, 0, 0]].concat()),
    ] {
        let id = rig.join(client("c"));
        rig.send_bytes(id, &bytes);
        assert_eq!(rig.take(id), ["DISCONNECT 0x82"], "{bytes:02x?}");
    }
}

#[test]
fn only_reason_codes_of_the_packet_are_accepted() {
    // [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.14.2-1], [MQTT-3.15.2-1]
    let packets: [(u8, &[u8], &[u8]); 6] = [
        (0x40, &[0, 1], &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
        (0x50, &[0, 1], &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
        (0x62, &[0, 1], &[0x00, 0x92]),
        (0x70, &[0, 1], &[0x00, 0x92]),
        (
            0xE0,
            &[],
            &[
                0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96,
                0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
            ],
        ),
        (0xF0, &[], &[0x00, 0x18, 0x19]),
    ];
    for (first, start, allowed) in packets {
        for code in 0..=255 {
            let bytes = framed(first, &[start, &[code]].concat());
            let decoded = decode(&bytes, Version::V5);
            assert_eq!(decoded.is_ok(), allowed.contains(&code), "{first:#04x} {code:#04x}: {decoded:?}");
            if let Err(error) = decoded {
                assert_eq!((error, error.reason()), (DecodeError::Reason(code), ReasonCode::MalformedPacket));
            }
        }
    }
}
