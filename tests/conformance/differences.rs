//! Where brokers are known to differ: what the standards' words say.

use std::time::Duration;

use lockgate::broker::Closing;
use lockgate::codec::{Version, Will, WillProperties};
use lockgate::types::{QoS, ReasonCode};

use crate::rig::{Client, Rig, client, framed};

fn watched(rig: &mut Rig) -> lockgate::broker::ConnectionId {
    let id = rig.join(client("watcher"));
    rig.subscribe(id, "#", 2);
    id
}

#[test]
fn a_repeated_qos_2_publish_is_one_message_before_and_after_pubrec_and_across_a_reconnect() {
    // [MQTT-4.3.3-10], [MQTT-4.3.3-12]; [MQTT-4.3.3-2] of 3.1.1
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::new();
        let watcher = watched(&mut rig);
        let kept = || Client { version, clean_start: false, ..client("p").kept() };
        let publisher = rig.connect(kept());
        rig.take(publisher);
        // With DUP and without, before PUBREC was seen and after.
        for flags in [0b0100, 0b1100, 0b0100] {
            rig.publish_with(publisher, "t", "x", flags, 7, &[]);
        }
        rig.lose(publisher);
        let publisher = rig.connect(kept());
        rig.publish_with(publisher, "t", "x", 0b1100, 7, &[]);
        assert_eq!(rig.take(publisher), ["CONNACK present", "PUBREC #7"]);
        assert_eq!(rig.take(watcher), ["PUBLISH t x q2 #1"]);
        // From PUBCOMP on it is another message.
        rig.ack(publisher, 0x62, 7);
        rig.publish_with(publisher, "t", "y", 0b0100, 7, &[]);
        assert_eq!(rig.take(publisher), ["PUBCOMP #7", "PUBREC #7"]);
        assert_eq!(rig.take(watcher), ["PUBLISH t y q2 #2"]);
    }
}

#[test]
fn pubrel_out_of_order_and_for_unknown_identifiers_is_answered() {
    // [MQTT-4.3.3-11], section 3.7.2.1: 0x92
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "1", 2, 1);
    rig.publish(publisher, "t", "2", 2, 2);
    for id in [2, 1, 1, 9] {
        rig.ack(publisher, 0x62, id);
    }
    assert_eq!(
        rig.take(publisher),
        ["PUBREC #1 0x10", "PUBREC #2 0x10", "PUBCOMP #2", "PUBCOMP #1", "PUBCOMP #1 0x92", "PUBCOMP #9 0x92"]
    );
    let old = rig.join(client("o").v311());
    rig.ack(old, 0x62, 9);
    assert_eq!(rig.take(old), ["PUBCOMP #9"]);
}

#[test]
fn more_messages_than_the_receive_maximum_end_the_connection() {
    // [MQTT-3.3.4-7], [MQTT-3.3.4-9]: 0x93; what is repeated is not one more.
    let mut rig = Rig::limited(|limits| limits.receive_maximum = 2);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "1", 2, 1);
    rig.publish(publisher, "t", "2", 2, 2);
    rig.publish_with(publisher, "t", "2", 0b1100, 2, &[]);
    rig.take(publisher);
    rig.publish(publisher, "t", "3", 2, 3);
    assert_eq!(rig.take(publisher), ["DISCONNECT 0x93"]);
    // A QoS 1 message counts though it has an identifier of those.
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "1", 2, 1);
    rig.publish(publisher, "t", "2", 2, 2);
    rig.take(publisher);
    rig.publish(publisher, "t", "3", 1, 1);
    assert_eq!(rig.take(publisher), ["DISCONNECT 0x93"]);
    // PUBCOMP makes room.
    let publisher = rig.join(client("p"));
    for id in 1..=5 {
        rig.publish(publisher, "t", "x", 2, id);
        rig.ack(publisher, 0x62, id);
    }
    assert_eq!(rig.take(publisher).len(), 10);
}

#[test]
fn a_message_larger_than_the_receiver_takes_is_dropped_in_a_shared_group_too() {
    // [MQTT-3.1.2-24], [MQTT-3.1.2-25]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let mut narrow = client("narrow").kept();
    narrow.properties.maximum_packet_size = Some(30);
    let narrow = rig.join(narrow);
    rig.subscribe_with(narrow, &[("own", 1), ("$share/g/shared", 1)], &[]);
    rig.take(narrow);
    for (at, topic) in ["own", "shared"].iter().enumerate() {
        rig.publish(publisher, topic, &"x".repeat(100), 1, 2 * at as u16 + 1);
        rig.publish(publisher, topic, "y", 1, 2 * at as u16 + 2);
        // As if it had been delivered: the next one comes, and the publisher is told nothing else.
        let got = rig.take(narrow);
        assert!(got.len() == 1 && got[0].starts_with(&format!("PUBLISH {topic} y q1")), "{got:?}");
    }
    assert_eq!(rig.take(publisher).len(), 4);
    assert_eq!(rig.core.counters().dropped.too_large, 2);
}

#[test]
fn a_message_goes_on_at_the_lower_of_its_own_and_the_subscriptions_qos() {
    // [MQTT-3.8.4-8]; [MQTT-3.8.4-5], [MQTT-3.8.4-6] of 3.1.1
    for version in [Version::V311, Version::V5] {
        for asked in 0..3 {
            for published in 0..3 {
                let mut rig = Rig::new();
                let (publisher, id) = (rig.join(client("p")), rig.join(Client { version, ..client("s") }));
                rig.subscribe(id, "t", asked);
                rig.publish(publisher, "t", "x", published, 1);
                let wanted = match asked.min(published) {
                    0 => "PUBLISH t x".to_owned(),
                    qos => format!("PUBLISH t x q{qos} #1"),
                };
                assert_eq!(rig.take(id), [wanted]);
            }
        }
    }
}

#[test]
fn a_will_comes_on_takeover_and_silence_and_disconnect_0x04_and_not_on_0x00() {
    // [MQTT-3.1.2-8], [MQTT-3.1.2-10], [MQTT-3.1.2-22], [MQTT-3.1.4-3], [MQTT-3.14.4-3]
    let will = |keep_alive| Client {
        keep_alive,
        will: Some(Will {
            qos: QoS::AtMostOnce,
            retain: false,
            properties: WillProperties::default(),
            topic: "will",
            payload: b"gone",
        }),
        ..client("a")
    };
    let mut rig = Rig::new();
    let watcher = watched(&mut rig);
    let gone = ["PUBLISH will gone"];
    let first = rig.join(will(0));
    let second = rig.join(will(0));
    assert_eq!(rig.take(first), ["DISCONNECT 0x8e"]);
    assert_eq!(rig.take(watcher), gone);
    rig.send_bytes(second, &[0xE0, 1, 4]);
    assert_eq!(rig.closing(second), Some(Closing::ByClient(ReasonCode::DisconnectWithWill)));
    assert_eq!(rig.take(watcher), gone);
    let third = rig.join(will(10));
    rig.advance(Duration::from_millis(14_900));
    assert!(rig.take(watcher).is_empty() && rig.closing(third).is_none());
    rig.advance(Duration::from_millis(200));
    assert_eq!(rig.take(third), ["DISCONNECT 0x8d"]);
    assert_eq!(rig.take(watcher), gone);
    let fourth = rig.join(will(0));
    rig.send_bytes(fourth, &[0xE0, 1, 0]);
    assert!(rig.take(watcher).is_empty());
}

#[test]
fn retained_messages_come_on_a_new_subscribe_as_retain_handling_says() {
    // [MQTT-3.3.1-9], [MQTT-3.3.1-10], [MQTT-3.3.1-11]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.retain(publisher, "t", "x");
    for (handling, on_first, on_second) in [(0x00, 1, 1), (0x10, 1, 0), (0x20, 0, 0)] {
        let id = rig.join(client("s"));
        for wanted in [on_first, on_second] {
            rig.subscribe_with(id, &[("t", handling)], &[]);
            assert_eq!(rig.take(id).len(), 1 + wanted, "{handling:#04x}");
        }
    }
}

#[test]
fn a_shared_subscription_with_no_local_is_an_error_and_has_no_retained_messages() {
    // [MQTT-3.8.3-4], section 4.8.2
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.retain(publisher, "t", "x");
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("$share/g/t", 0b100)], &[]);
    assert_eq!(rig.take(id), ["DISCONNECT 0x82"]);
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("$share/g/t", 0)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 0"]);
}

#[test]
fn a_shared_and_an_ordinary_subscription_bring_one_copy_each() {
    // Section 4.8.2
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let id = rig.join(client("s"));
    for filter in ["t", "#", "$share/g/t", "$share/h/t"] {
        rig.subscribe(id, filter, 0);
    }
    rig.publish(publisher, "t", "x", 0, 0);
    // One for what is not shared, one for each group.
    assert_eq!(rig.take(id).len(), 3);
}

#[test]
fn a_second_connect_ends_the_connection() {
    // [MQTT-3.1.0-2]; [MQTT-3.1.0-2] of 3.1.1
    let mut rig = Rig::new();
    let connect = |level: u8, rest: &[u8]| {
        framed(0x10, &[&[0, 4, b'M', b'Q', b'T', b'T', level, 2, 0, 0][..], rest, &[0, 1, b'c']].concat())
    };
    let new = rig.join(client("new"));
    rig.send_bytes(new, &connect(5, &[0]));
    assert_eq!(rig.take(new), ["DISCONNECT 0x82"]);
    let old = rig.join(client("old").v311());
    rig.send_bytes(old, &connect(4, &[]));
    assert!(rig.take(old).is_empty() && matches!(rig.closing(old), Some(Closing::Violation(_))));
}
