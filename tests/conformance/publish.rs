//! Topics, properties and quality of service.

use std::time::Duration;

use lockgate::broker::{Closing, Violation};
use lockgate::codec::{DecodeError, Version};
use lockgate::types::TopicError;

use crate::rig::{Client, Rig, client, framed};

fn v311(id: &str) -> Client<'_> {
    client(id).v311()
}

#[test]
fn a_topic_name_with_a_wildcard_ends_the_connection() {
    // [MQTT-3.3.2-2], [MQTT-4.7.0-1]; [MQTT-3.3.2-2], [MQTT-4.7.1-1] of 3.1.1
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "#", 0);
    for topic in ["a/+", "a/#", "+", "a+b", "#", "a/#/b"] {
        let wildcard = Violation::Undecodable(DecodeError::Topic(TopicError::Wildcard));
        let old = rig.join(v311("old"));
        rig.publish(old, topic, "x", 0, 0);
        assert_eq!(rig.closing(old), Some(Closing::Violation(wildcard)), "{topic}");
        for properties in [&[][..], &[0x23, 0, 1]] {
            let new = rig.join(client("new"));
            rig.publish_with(new, topic, "x", 0, 0, properties);
            assert_eq!(rig.take(new), ["DISCONNECT 0x81"], "{topic}");
        }
    }
    assert!(rig.take(subscriber).is_empty());
}

#[test]
fn a_response_topic_has_no_wildcard() {
    // [MQTT-3.3.2-14]
    let mut rig = Rig::new();
    for topic in [&b"a/+"[..], b"#", b""] {
        let id = rig.join(client("c"));
        let property = [&[0x08, 0, topic.len() as u8][..], topic].concat();
        rig.publish_with(id, "t", "x", 0, 0, &property);
        assert_eq!(rig.take(id), ["DISCONNECT 0x81"], "{topic:?}");
    }
}

#[test]
fn nothing_is_made_of_a_topic_but_what_it_is() {
    // [MQTT-1.5.4-3], [MQTT-4.7.3-4]; [MQTT-1.5.3-3], [MQTT-4.7.3-4] of 3.1.1
    let names = [
        "A/\u{e9}//x",
        "a/\u{e9}//x",
        "A/e\u{301}//x",
        "A/\u{e9}/x",
        "/A/\u{e9}//x",
        "A/\u{e9}//x/",
        "A/./\u{e9}//x",
        "\u{FEFF}A/\u{e9}//x",
        "A",
        "a",
        "a/",
        "a//b",
    ];
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::new();
        let publisher = rig.join(client("p"));
        let mut subscribers = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let own = format!("s{at}");
            let id = rig.join(Client { version, ..client(&own) });
            rig.subscribe(id, name, 0);
            subscribers.push(id);
        }
        for name in names {
            rig.retain(publisher, name, "x");
        }
        for (name, id) in names.iter().zip(subscribers) {
            assert_eq!(rig.take(id), [format!("PUBLISH {name} x")]);
            let late = rig.join(Client { version, ..client("late") });
            rig.subscribe_with(late, &[(name, 0)], &[]);
            assert_eq!(rig.take(late)[1..], [format!("PUBLISH {name} x retain")]);
        }
    }
}

/// Payload format, content type, response topic, correlation data and three user properties.
const ALL: &[u8] = b"\x01\x01\x03\0\x04text\x08\0\x05reply\x09\0\x03\x00\xff\x80\x26\0\x01b\0\x011\x26\0\x01a\0\x012\x26\0\x01b\0\x013";
const SHOWN: &str = " format=1 type=text response=reply correlation=[00, ff, 80] b=1 a=2 b=3";

#[test]
fn properties_arrive_as_they_were_sent_by_every_way() {
    // [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-18], [MQTT-3.3.2-20],
    // [MQTT-3.1.3-10]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let absent = rig.join(client("absent").kept());
    rig.subscribe(absent, "t", 1);
    rig.lose(absent);
    let live = rig.join(client("live"));
    rig.subscribe(live, "#", 0);
    rig.publish_with(publisher, "t", "x", 0b011, 1, ALL);
    assert_eq!(rig.take(live), [format!("PUBLISH t x{SHOWN}")]);
    let absent = rig.connect(client("absent").kept());
    assert_eq!(rig.take(absent), ["CONNACK present".to_owned(), format!("PUBLISH t x q1 #1{SHOWN}")]);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("t", 0)], &[]);
    assert_eq!(rig.take(late)[1], format!("PUBLISH t x retain{SHOWN}"));
    // A will.
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, 0x06, 0, 0, 0, 0, 1, b'w', ALL.len() as u8];
    body.extend_from_slice(ALL);
    body.extend_from_slice(&[0, 4, b'w', b'i', b'l', b'l', 0, 1, b'x']);
    let dying = rig.connect_bytes(&framed(0x10, &body));
    rig.lose(dying);
    assert_eq!(rig.take(live), [format!("PUBLISH will x{SHOWN}")]);
    // A payload format of 0 is sent on as it is, and none as none.
    rig.publish_with(publisher, "t", "x", 0, 0, &[1, 0]);
    rig.publish(publisher, "t", "x", 0, 0);
    assert_eq!(rig.take(live), ["PUBLISH t x format=0", "PUBLISH t x"]);
}

#[test]
fn every_alias_up_to_the_maximum_is_accepted_and_none_above_it() {
    // [MQTT-3.3.2-9], [MQTT-3.3.2-10], [MQTT-3.3.2-12], [MQTT-3.2.2-17], [MQTT-3.2.2-18]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "#", 0);
    for round in 0..2 {
        for alias in 1..=32 {
            let topic = if round == 0 { format!("t/{alias}") } else { String::new() };
            rig.publish_with(publisher, &topic, "x", 0, 0, &[0x23, 0, alias]);
        }
    }
    let wanted: Vec<String> = (1..=32).chain(1..=32).map(|alias| format!("PUBLISH t/{alias} x")).collect();
    assert_eq!(rig.take(subscriber), wanted);
    let mut rig = Rig::limited(|limits| limits.topic_alias_max = 0);
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "#", 0);
    rig.publish_with(publisher, "t", "x", 0, 0, &[0x23, 0, 1]);
    assert_eq!(rig.take(publisher), ["DISCONNECT 0x94"]);
    assert!(rig.take(subscriber).is_empty());
}

/// What a receiver makes of aliases: every message with its topic.
fn resolve(texts: &[String], aliases: &mut std::collections::BTreeMap<u16, String>, max: u16) -> Vec<String> {
    texts
        .iter()
        .map(|text| {
            let (text, alias) = match text.split_once(" alias=") {
                Some((text, alias)) => (text, Some(alias.parse::<u16>().unwrap())),
                None => (text.as_str(), None),
            };
            let topic = text.split(' ').nth(1).unwrap();
            let Some(alias) = alias else { return text.to_owned() };
            assert!(alias >= 1 && alias <= max, "{text}: alias {alias}");
            if topic.is_empty() {
                text.replacen("PUBLISH ", &format!("PUBLISH {}", aliases[&alias]), 1)
            } else {
                aliases.insert(alias, topic.to_owned());
                text.to_owned()
            }
        })
        .collect()
}

#[test]
fn aliases_to_a_client_stay_within_its_maximum_and_stand_for_their_topics() {
    // [MQTT-3.1.2-26], [MQTT-3.1.2-27], [MQTT-3.3.2-7], [MQTT-3.3.2-8], [MQTT-3.3.2-11]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let mut receivers = Vec::new();
    for (name, max) in [("none", 0), ("one", 1), ("two", 2), ("ten", 10)] {
        let mut receiver = client(name);
        receiver.properties.topic_alias_maximum = max;
        let id = rig.join(receiver);
        rig.subscribe(id, "topic/#", 1);
        receivers.push((id, max));
    }
    let old = rig.join(v311("old"));
    rig.subscribe(old, "topic/#", 0);
    let mut wanted = Vec::new();
    for round in 0..4 {
        for topic in ["topic/a", "topic/b", "topic/c", "topic/d", "topic/e"] {
            rig.publish(publisher, topic, &round.to_string(), round % 2, 1);
            wanted.push(format!("PUBLISH {topic} {round}"));
        }
    }
    for (id, max) in receivers {
        let texts = rig.take(id);
        let with_alias = texts.iter().filter(|text| text.contains("alias=")).count();
        assert_eq!(with_alias, usize::from(max.min(5)) * 4);
        let short = texts.iter().filter(|text| text.starts_with("PUBLISH  ")).count();
        assert_eq!(short, usize::from(max.min(5)) * 3, "aliases save the topic from the second time on");
        let got: Vec<String> = resolve(&texts, &mut Default::default(), max)
            .iter()
            .map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(got, wanted, "with {max}");
    }
    assert!(rig.take(old).iter().all(|text| !text.contains("alias=")));
}

#[test]
fn aliases_to_a_client_end_with_its_connection() {
    // [MQTT-3.3.2-7], [MQTT-3.1.2-27]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let aliasing = |max| {
        let mut receiver = client("s").kept();
        receiver.properties.topic_alias_maximum = max;
        receiver
    };
    let id = rig.join(aliasing(5));
    rig.subscribe(id, "topic", 1);
    rig.publish(publisher, "topic", "1", 0, 0);
    rig.publish(publisher, "topic", "2", 0, 0);
    assert_eq!(rig.take(id), ["PUBLISH topic 1 alias=1", "PUBLISH  2 alias=1"]);
    rig.publish(publisher, "topic", "3", 1, 1);
    rig.lose(id);
    let id = rig.connect(aliasing(5));
    assert_eq!(rig.take(id), ["CONNACK present", "PUBLISH topic 3 q1 #1 dup alias=1"]);
    rig.lose(id);
    let id = rig.connect(aliasing(0));
    assert_eq!(rig.take(id), ["CONNACK present", "PUBLISH topic 3 q1 #1 dup"]);
}

#[test]
fn an_alias_is_not_what_makes_a_message_too_large() {
    // [MQTT-3.1.2-24], [MQTT-3.1.2-25]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let mut narrow = client("s");
    narrow.properties.topic_alias_maximum = 5;
    // PUBLISH of `topic` with 10 bytes: 2 + 7 + 1 + 10; an alias would be three more.
    narrow.properties.maximum_packet_size = Some(20);
    let id = rig.join(narrow);
    rig.subscribe(id, "topic", 0);
    rig.publish(publisher, "topic", "0123456789", 0, 0);
    rig.publish(publisher, "topic", "0123456789A", 0, 0);
    rig.publish(publisher, "topic", "short", 0, 0);
    assert_eq!(rig.take(id), ["PUBLISH topic 0123456789", "PUBLISH topic short alias=1"]);
    assert_eq!(rig.core.counters().dropped.too_large, 1);
}

#[test]
fn an_acknowledged_identifier_begins_a_new_message_whatever_dup_says() {
    // [MQTT-4.3.2-5]; [MQTT-4.3.2-2] of 3.1.1
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::new();
        let (publisher, subscriber) = (rig.join(Client { version, ..client("p") }), rig.join(client("s")));
        rig.subscribe(subscriber, "t", 1);
        rig.publish_with(publisher, "t", "x", 0b0010, 7, &[]);
        rig.publish_with(publisher, "t", "x", 0b1010, 7, &[]);
        assert_eq!(rig.take(publisher), ["PUBACK #7", "PUBACK #7"]);
        assert_eq!(rig.take(subscriber), ["PUBLISH t x q1 #1", "PUBLISH t x q1 #2"]);
    }
}

#[test]
fn a_message_that_was_sent_does_not_expire() {
    // [MQTT-4.3.3-7]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s").kept()));
    rig.subscribe(subscriber, "t", 2);
    rig.publish_with(publisher, "t", "x", 0b100, 1, &[2, 0, 0, 0, 5]);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x q2 #1 expiry=5"]);
    rig.lose(subscriber);
    rig.advance(Duration::from_secs(10));
    let subscriber = rig.connect(client("s").kept());
    assert_eq!(rig.take(subscriber), ["CONNACK present", "PUBLISH t x q2 #1 dup expiry=0"]);
    rig.ack(subscriber, 0x50, 1);
    rig.ack(subscriber, 0x70, 1);
    assert_eq!(rig.take(subscriber), ["PUBREL #1"]);
    assert_eq!(rig.core.counters().dropped.expired, 0);
}

#[test]
fn the_qos_2_exchange_goes_on_though_its_message_expired() {
    // [MQTT-4.3.3-13]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s").kept()));
    rig.subscribe(subscriber, "t", 2);
    rig.lose(subscriber);
    rig.publish_with(publisher, "t", "x", 0b0100, 1, &[2, 0, 0, 0, 1]);
    rig.advance(Duration::from_secs(5));
    rig.publish_with(publisher, "t", "x", 0b1100, 1, &[2, 0, 0, 0, 1]);
    rig.ack(publisher, 0x62, 1);
    assert_eq!(rig.take(publisher), ["PUBREC #1", "PUBREC #1", "PUBCOMP #1"]);
    let subscriber = rig.connect(client("s").kept());
    assert_eq!(rig.take(subscriber), ["CONNACK present"]);
}

#[test]
fn an_acknowledgement_with_an_error_ends_the_delivery() {
    // [MQTT-4.4.0-2]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s").kept()));
    rig.subscribe(subscriber, "t", 2);
    rig.publish(publisher, "t", "1", 1, 1);
    rig.publish(publisher, "t", "2", 2, 2);
    rig.take(subscriber);
    rig.send_bytes(subscriber, &[0x40, 3, 0, 1, 0x83]);
    rig.send_bytes(subscriber, &[0x50, 3, 0, 2, 0x83]);
    // For an exchange that is not there, too, an error is the end.
    rig.send_bytes(subscriber, &[0x50, 3, 0, 9, 0x83]);
    assert!(rig.take(subscriber).is_empty());
    rig.lose(subscriber);
    let subscriber = rig.connect(client("s").kept());
    assert_eq!(rig.take(subscriber), ["CONNACK present"]);
}

#[test]
fn a_full_window_holds_back_nothing_but_messages() {
    // [MQTT-3.3.4-9], [MQTT-3.3.4-10], [MQTT-4.9.0-2], [MQTT-4.9.0-3]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let mut narrow = client("s");
    narrow.properties.receive_maximum = 1;
    let id = rig.join(narrow);
    rig.subscribe(id, "t", 2);
    for at in 1..=3 {
        rig.publish(publisher, "t", &at.to_string(), 2, at);
    }
    assert_eq!(rig.take(id), ["PUBLISH t 1 q2 #1"]);
    rig.send_bytes(id, &[0xC0, 0]);
    rig.subscribe_with(id, &[("u", 0)], &[]);
    rig.unsubscribe(id, "u");
    rig.publish(id, "v", "x", 1, 1);
    rig.publish(id, "v", "x", 2, 2);
    rig.publish(publisher, "t", "zero", 0, 0);
    rig.ack(id, 0x50, 1);
    assert_eq!(
        rig.take(id),
        [
            "PINGRESP",
            "SUBACK #1 0",
            "UNSUBACK #1 0x00",
            "PUBACK #1 0x10",
            "PUBREC #2 0x10",
            "PUBLISH t zero",
            "PUBREL #1"
        ]
    );
    rig.ack(id, 0x70, 1);
    assert_eq!(rig.take(id), ["PUBLISH t 2 q2 #2"]);
}

#[test]
fn pubrel_is_sent_again_though_the_window_is_full() {
    // [MQTT-3.3.4-10], [MQTT-4.4.0-1], [MQTT-4.9.0-3]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s").kept()));
    rig.subscribe(subscriber, "t", 2);
    rig.publish(publisher, "t", "1", 1, 1);
    rig.publish(publisher, "t", "2", 1, 2);
    rig.publish(publisher, "t", "3", 2, 3);
    rig.ack(subscriber, 0x50, 3);
    rig.lose(subscriber);
    let mut narrow = client("s").kept();
    narrow.properties.receive_maximum = 1;
    let subscriber = rig.connect(narrow);
    assert_eq!(rig.take(subscriber), ["CONNACK present", "PUBREL #3"]);
    rig.ack(subscriber, 0x70, 3);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 1 q1 #1 dup"]);
}

#[test]
fn pubrel_leaves_in_the_order_of_pubrec_whatever_the_store_does() {
    // [MQTT-4.6.0-4]; [MQTT-4.6.0-4], [MQTT-4.6.0-6] of 3.1.1
    let mut rig = Rig::durable();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s").kept()));
    rig.subscribe(subscriber, "t", 2);
    for at in 1..=3 {
        rig.publish(publisher, "t", "x", 2, at);
    }
    rig.take(subscriber);
    rig.out.store.hold();
    for at in [2, 1, 3] {
        rig.ack(subscriber, 0x50, at);
    }
    // The last is safe first.
    rig.out.store.release(1, |count| count - 1);
    rig.settle();
    assert!(rig.take(subscriber).is_empty());
    rig.commit(10);
    assert_eq!(rig.take(subscriber), ["PUBREL #2", "PUBREL #1", "PUBREL #3"]);
}

#[test]
fn a_larger_retained_message_than_there_is_room_for_leaves_no_old_one() {
    // [MQTT-3.3.1-5]; [MQTT-3.3.1-7] of 3.1.1
    let mut rig = Rig::alone(|limits| limits.retained_bytes_max = 10);
    let (old, new) = (rig.join(v311("old")), rig.join(client("new")));
    let watcher = rig.join(client("w"));
    rig.subscribe(watcher, "#", 0);
    let retained = |rig: &mut Rig| {
        let late = rig.join(client("late"));
        rig.subscribe_with(late, &[("t", 1)], &[]);
        rig.take(late)[1..].to_vec()
    };
    rig.publish_with(old, "t", "old", 0b011, 1, &[]);
    rig.publish_with(old, "t", "new", 0b001, 0, &[]);
    assert_eq!(retained(&mut rig), ["PUBLISH t new retain"]);
    // Who can be told keeps its message: nothing has happened.
    rig.publish_with(new, "t", "0123456789", 0b011, 1, &[]);
    assert_eq!(rig.take(new), ["PUBACK #1 0x97"]);
    assert_eq!(retained(&mut rig), ["PUBLISH t new retain"]);
    // Who cannot has it passed on, and what it replaced is not current any more.
    rig.publish_with(old, "t", "0123456789", 0b011, 2, &[]);
    assert_eq!(rig.take(old), ["PUBACK #1", "PUBACK #2"]);
    assert!(retained(&mut rig).is_empty());
    assert_eq!(rig.take(watcher), ["PUBLISH t old", "PUBLISH t new", "PUBLISH t 0123456789"]);
}

#[test]
fn what_nobody_can_be_told_of_ends_the_connection() {
    // [MQTT-4.8.0-1], [MQTT-4.5.0-1] of 3.1.1: a topic too deep is not acknowledged and forgotten.
    let mut rig = Rig::limited(|limits| limits.topic_levels_max = 2);
    let old = rig.join(v311("old"));
    rig.publish(old, "a/b/c", "x", 1, 1);
    assert_eq!(rig.closing(old), Some(Closing::Violation(Violation::TopicTooLarge)));
    let new = rig.join(client("new"));
    rig.publish(new, "a/b/c", "x", 1, 1);
    rig.publish(new, "a/b/c", "x", 0, 0);
    assert_eq!(rig.take(new), ["PUBACK #1 0x90", "DISCONNECT 0x90"]);
    let new = rig.join(client("new"));
    rig.publish_with(new, "t", "x", 0, 0, &[1, 1]);
    assert!(rig.take(new).is_empty());
    rig.send_bytes(new, &framed(0x30, &[0, 1, b't', 2, 1, 1, 0xFF]));
    assert_eq!(rig.take(new), ["DISCONNECT 0x99"]);
}

#[test]
fn a_topic_may_be_so_long_and_no_longer() {
    // `topic-bytes-max`: PUBACK 0x90, SUBACK 0x8F; a refused will is CONNACK 0x90.
    let mut rig = Rig::limited(|limits| limits.topic_bytes_max = 4);
    let id = rig.join(client("c"));
    rig.subscribe_with(id, &[("abcd", 0), ("abcde", 0), ("$share/a long name/abcd", 0)], &[]);
    rig.publish(id, "abcde", "x", 1, 1);
    assert_eq!(rig.take(id), ["SUBACK #1 0,0x8f,0", "PUBACK #1 0x90"]);
}
