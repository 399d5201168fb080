use std::time::Duration;

use lockgate::broker::{Closing, Violation};
use lockgate::codec::Version;

use crate::rig::{Client, Rig, client};

#[test]
fn qos_0_1_and_2_are_delivered_at_the_lower_of_both() {
    // [MQTT-3.3.5-1], [MQTT-3.8.4-8], [MQTT-4.3.1-1], [MQTT-4.3.2-*], [MQTT-4.3.3-*]
    for published in 0..3u8 {
        for subscribed in 0..3u8 {
            let mut rig = Rig::new();
            let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
            rig.subscribe(subscriber, "t", subscribed);
            rig.publish(publisher, "t", "x", published, 5);
            let acks: &[&str] = match published {
                0 => &[],
                1 => &["PUBACK #5"],
                _ => &["PUBREC #5"],
            };
            assert_eq!(rig.take(publisher), acks);
            let wanted = match published.min(subscribed) {
                0 => "PUBLISH t x".to_owned(),
                qos => format!("PUBLISH t x q{qos} #1"),
            };
            assert_eq!(rig.take(subscriber), [wanted]);
        }
    }
}

#[test]
fn a_publish_nobody_wants_is_acknowledged_with_that_reason() {
    // [MQTT-3.4.2-1], section 3.4.2.1: 0x10
    let mut rig = Rig::new();
    let (new, old) = (rig.join(client("p")), rig.join(client("o").v311()));
    rig.publish(new, "t", "x", 1, 1);
    rig.publish(new, "t", "x", 2, 2);
    assert_eq!(rig.take(new), ["PUBACK #1 0x10", "PUBREC #2 0x10"]);
    rig.publish(old, "t", "x", 1, 1);
    assert_eq!(rig.take(old), ["PUBACK #1"]);
}

#[test]
fn a_qos_2_message_arrives_once_however_often_it_is_sent() {
    // [MQTT-4.3.3-8], [MQTT-4.3.3-9], [MQTT-4.3.3-10], [MQTT-4.3.3-11], [MQTT-4.3.3-12]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "t", 0);
    let publisher = rig.join(client("p").kept());
    rig.publish(publisher, "t", "x", 2, 7);
    rig.publish_with(publisher, "t", "x", 0b1100, 7, &[]);
    assert_eq!(rig.take(publisher), ["PUBREC #7", "PUBREC #7"]);
    // Across a reconnect too.
    rig.lose(publisher);
    let publisher = rig.join(client("p").kept());
    rig.publish_with(publisher, "t", "x", 0b1100, 7, &[]);
    rig.ack(publisher, 0x62, 7);
    assert_eq!(rig.take(publisher), ["PUBREC #7", "PUBCOMP #7"]);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x"]);
    // Released: the identifier names a new message.
    rig.publish(publisher, "t", "y", 2, 7);
    assert_eq!(rig.take(subscriber), ["PUBLISH t y"]);
    assert_eq!(rig.take(publisher), ["PUBREC #7"]);
}

#[test]
fn a_pubrel_for_an_unknown_identifier_is_completed_with_that_reason() {
    // Section 3.7.2.1: 0x92
    let mut rig = Rig::new();
    let (new, old) = (rig.join(client("p")), rig.join(client("o").v311()));
    rig.ack(new, 0x62, 9);
    rig.ack(old, 0x62, 9);
    assert_eq!(rig.take(new), ["PUBCOMP #9 0x92"]);
    assert_eq!(rig.take(old), ["PUBCOMP #9"]);
}

#[test]
fn an_outgoing_qos_2_message_goes_through_its_four_steps() {
    // [MQTT-4.3.3-1] to [MQTT-4.3.3-7]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "t", 2);
    rig.publish(publisher, "t", "x", 2, 1);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x q2 #1"]);
    rig.ack(subscriber, 0x50, 1);
    assert_eq!(rig.take(subscriber), ["PUBREL #1"]);
    // PUBREC again: PUBREL again.
    rig.ack(subscriber, 0x50, 1);
    assert_eq!(rig.take(subscriber), ["PUBREL #1"]);
    rig.ack(subscriber, 0x70, 1);
    rig.ack(subscriber, 0x50, 1);
    assert_eq!(rig.take(subscriber), ["PUBREL #1 0x92"]);
}

#[test]
fn a_pubrec_with_an_error_ends_the_exchange() {
    // [MQTT-4.3.3-4]: PUBREL only for a reason below 0x80.
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "t", 2);
    rig.publish(publisher, "t", "x", 2, 1);
    rig.take(subscriber);
    rig.send_bytes(subscriber, &[0x50, 3, 0, 1, 0x97]);
    assert!(rig.take(subscriber).is_empty());
    rig.ack(subscriber, 0x50, 1);
    assert_eq!(rig.take(subscriber), ["PUBREL #1 0x92"]);
}

#[test]
fn what_was_not_acknowledged_is_sent_again_in_order_and_with_dup() {
    // [MQTT-4.4.0-1], [MQTT-4.6.0-1], [MQTT-3.3.1-1]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "#", 2);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "a", "1", 1, 1);
    rig.publish(publisher, "b", "2", 2, 2);
    rig.publish(publisher, "c", "3", 1, 3);
    rig.publish(publisher, "d", "4", 2, 4);
    rig.take(subscriber);
    rig.puback(subscriber, 3);
    rig.ack(subscriber, 0x50, 2);
    assert_eq!(rig.take(subscriber), ["PUBREL #2"]);
    rig.lose(subscriber);
    rig.publish(publisher, "e", "5", 1, 5);
    let subscriber = rig.connect(client("s").kept());
    assert_eq!(
        rig.take(subscriber),
        ["CONNACK present", "PUBREL #2", "PUBLISH a 1 q1 #1 dup", "PUBLISH d 4 q2 #4 dup", "PUBLISH e 5 q1 #5"]
    );
}

#[test]
fn messages_in_flight_stay_within_the_receive_maximum_and_keep_their_order() {
    // [MQTT-3.3.4-7], [MQTT-4.9.0-2], [MQTT-4.9.0-3], [MQTT-4.6.0-6]
    let mut rig = Rig::new();
    let mut narrow = client("s");
    narrow.properties.receive_maximum = 2;
    let subscriber = rig.join(narrow);
    rig.subscribe(subscriber, "t", 1);
    let publisher = rig.join(client("p"));
    for at in 1..=5 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    assert_eq!(rig.take(subscriber), ["PUBLISH t 1 q1 #1", "PUBLISH t 2 q1 #2"]);
    // Out of order is allowed.
    rig.puback(subscriber, 2);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 3 q1 #3"]);
    // What acknowledges nothing changes nothing.
    rig.puback(subscriber, 2);
    rig.ack(subscriber, 0x70, 3);
    assert!(rig.take(subscriber).is_empty());
    rig.puback(subscriber, 1);
    rig.puback(subscriber, 3);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 4 q1 #4", "PUBLISH t 5 q1 #5"]);
}

#[test]
fn a_narrower_window_on_reconnect_holds_for_what_is_repeated_too() {
    // [MQTT-3.3.4-7]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 1);
    let publisher = rig.join(client("p"));
    for at in 1..=3 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    rig.lose(subscriber);
    let mut narrow = client("s").kept();
    narrow.properties.receive_maximum = 1;
    let subscriber = rig.connect(narrow);
    assert_eq!(rig.take(subscriber), ["CONNACK present", "PUBLISH t 1 q1 #1 dup"]);
    rig.puback(subscriber, 1);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 2 q1 #2 dup"]);
}

#[test]
fn packet_identifiers_are_not_reused_while_in_use() {
    // [MQTT-2.2.1-3]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "t", 1);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "kept", 1, 1);
    rig.take(subscriber);
    for _ in 0..65_534 {
        rig.publish(publisher, "t", "x", 1, 2);
        let got = rig.take(subscriber);
        let id: u16 = got[0].rsplit_once('#').unwrap().1.parse().unwrap();
        assert_ne!(id, 1);
        rig.puback(subscriber, id);
    }
    rig.take(publisher);
    rig.publish(publisher, "t", "x", 1, 2);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x q1 #2"]);
}

#[test]
fn more_in_flight_than_our_receive_maximum_ends_the_connection() {
    // [MQTT-3.3.4-9]
    let mut rig = Rig::limited(|limits| limits.receive_maximum = 2);
    let id = rig.join(client("p"));
    rig.publish(id, "t", "1", 2, 1);
    rig.publish(id, "t", "2", 2, 2);
    // A repeated one is not one more.
    rig.publish_with(id, "t", "2", 0b1100, 2, &[]);
    rig.take(id);
    rig.publish(id, "t", "3", 2, 3);
    assert_eq!(rig.take(id), ["DISCONNECT 0x93"]);
    assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::ReceiveMaximumExceeded)));
}

#[test]
fn a_message_too_large_for_its_receiver_is_dropped_as_if_delivered() {
    // [MQTT-3.1.2-24], [MQTT-3.1.2-25]
    let mut rig = Rig::new();
    let mut small = client("s");
    small.properties.maximum_packet_size = Some(20);
    let subscriber = rig.join(small);
    rig.subscribe(subscriber, "#", 2);
    let publisher = rig.join(client("p"));
    for qos in 0..3 {
        rig.publish(publisher, "t", "a payload that is too long", qos, 1 + u16::from(qos));
    }
    rig.publish(publisher, "t", "short", 1, 9);
    assert_eq!(
        rig.take(subscriber).iter().map(|text| text.split('#').next().unwrap()).collect::<Vec<_>>(),
        ["PUBLISH t short q1 "]
    );
    assert_eq!(rig.core.counters().dropped.too_large, 3);
}

#[test]
fn a_message_past_its_expiry_is_not_sent_and_the_rest_of_its_life_is_told() {
    // [MQTT-3.3.2-5], [MQTT-3.3.2-6]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 1);
    rig.lose(subscriber);
    let publisher = rig.join(client("p"));
    let expiry = |secs: u8| [0x02, 0, 0, 0, secs];
    rig.publish_with(publisher, "t", "short", 0b10, 1, &expiry(5));
    rig.publish_with(publisher, "t", "long", 0b10, 2, &expiry(60));
    rig.advance(Duration::from_millis(10_300));
    let subscriber = rig.connect(client("s").kept());
    assert_eq!(rig.take(subscriber), ["CONNACK present", "PUBLISH t long q1 #1 expiry=50"]);
    assert_eq!(rig.core.counters().dropped.expired, 1);
}

#[test]
fn properties_go_on_unaltered_and_in_order() {
    // [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-18], [MQTT-3.3.2-20]
    let mut rig = Rig::new();
    let (new, old) = (rig.join(client("s")), rig.join(client("o").v311()));
    rig.subscribe(new, "t", 0);
    rig.subscribe(old, "t", 0);
    let publisher = rig.join(client("p"));
    let user = |name: u8, value: u8| [0x26, 0, 1, name, 0, 1, value];
    let properties =
        [&[1u8, 1][..], &user(b'b', b'1'), &user(b'a', b'2'), &user(b'b', b'3'), &[0x08, 0, 1, b'r'], &[0x09, 0, 1, 9]]
            .concat();
    rig.publish_with(publisher, "t", "x", 0, 0, &properties);
    assert_eq!(rig.take(new), ["PUBLISH t x format=1 response=r correlation=[09] b=1 a=2 b=3"]);
    // A 3.1.1 subscriber gets the message without what its version cannot say.
    assert_eq!(rig.take(old), ["PUBLISH t x"]);
}

#[test]
fn a_payload_that_says_it_is_utf_8_has_to_be() {
    // Section 3.3.2.3.2: 0x99
    let mut rig = Rig::new();
    let id = rig.join(client("p"));
    rig.send_bytes(id, &[0x32, 9, 0, 1, b't', 0, 1, 2, 1, 1, 0xFF]);
    assert_eq!(rig.take(id), ["PUBACK #1 0x99"]);
}

#[test]
fn a_topic_alias_stands_for_the_topic_that_set_it() {
    // [MQTT-3.3.2-7], [MQTT-3.3.2-8], [MQTT-3.3.2-9]
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "#", 0);
    rig.publish_with(publisher, "first", "1", 0, 0, &[0x23, 0, 1]);
    rig.publish_with(publisher, "", "2", 0, 0, &[0x23, 0, 1]);
    rig.publish_with(publisher, "second", "3", 0, 0, &[0x23, 0, 1]);
    rig.publish_with(publisher, "", "4", 0, 0, &[0x23, 0, 1]);
    assert_eq!(rig.take(subscriber), ["PUBLISH first 1", "PUBLISH first 2", "PUBLISH second 3", "PUBLISH second 4"]);
    // Section 3.3.4: one that was not set; above the maximum, with a topic or without; zero.
    for (topic, properties, reason) in [
        ("", [0x23, 0, 2], "DISCONNECT 0x82"),
        ("", [0x23, 0xFF, 0xFF], "DISCONNECT 0x94"),
        ("t", [0x23, 0, 33], "DISCONNECT 0x94"),
        ("t", [0x23, 0, 0], "DISCONNECT 0x94"),
    ] {
        let id = rig.join(client("x"));
        rig.publish_with(id, topic, "x", 0, 0, &properties);
        assert_eq!(rig.take(id), [reason], "{topic:?} {properties:?}");
    }
    // Aliases end with the connection.
    rig.lose(publisher);
    let publisher = rig.join(client("p"));
    rig.publish_with(publisher, "", "5", 0, 0, &[0x23, 0, 1]);
    assert_eq!(rig.take(publisher), ["DISCONNECT 0x82"]);
}

#[test]
fn an_empty_topic_without_an_alias_is_a_protocol_error() {
    // Section 3.3.2.1; 3.1.1 [MQTT-4.7.3-1]
    let mut rig = Rig::new();
    let new = rig.join(client("p"));
    rig.publish(new, "", "x", 0, 0);
    assert_eq!(rig.take(new), ["DISCONNECT 0x82"]);
    let old = rig.join(client("o").v311());
    rig.publish(old, "", "x", 0, 0);
    assert!(rig.closing(old).is_some());
}

#[test]
fn a_publish_with_a_subscription_identifier_is_a_protocol_error() {
    // [MQTT-3.3.4-6]
    let mut rig = Rig::new();
    let id = rig.join(client("p"));
    rig.publish_with(id, "t", "x", 0, 0, &[0x0B, 1]);
    assert_eq!(rig.take(id), ["DISCONNECT 0x82"]);
}

#[test]
fn qos_0_waits_for_nobody_and_is_not_kept_for_the_absent() {
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 2);
    rig.lose(subscriber);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "x", 0, 0);
    let subscriber = rig.connect(client("s").kept());
    assert_eq!(rig.take(subscriber), ["CONNACK present"]);
}

#[test]
fn a_slow_client_loses_qos_0_and_gets_the_rest_when_it_reads_again() {
    // design, Bounds: QoS 0 to a slow consumer is dropped and counted, QoS 1 and 2 wait.
    let mut rig = Rig::limited(|limits| limits.backlog_bytes_max = 100);
    let (slow, quick) = (rig.join(client("slow")), rig.join(client("quick")));
    rig.subscribe(slow, "t", 1);
    rig.subscribe(quick, "t", 1);
    let publisher = rig.join(client("p"));
    rig.stall(slow);
    for at in 0..50 {
        rig.publish(publisher, "t", "0123456789", at as u8 % 2, at);
    }
    let at_once = rig.take(slow).len();
    assert!(at_once < 10, "{at_once}");
    assert_eq!(rig.take(quick).len(), 50);
    let dropped = rig.core.counters().dropped.slow_consumer as usize;
    rig.drain(slow);
    let later = rig.take(slow).len();
    assert_eq!(at_once + dropped + later, 50);
    assert!(dropped <= 25, "only QoS 0 is dropped: {dropped}");
}

#[test]
fn every_version_talks_to_every_other() {
    let versions = [Version::V31, Version::V311, Version::V5];
    for from in versions {
        for to in versions {
            let mut rig = Rig::new();
            let publisher = rig.join(Client { version: from, ..client("p") });
            let subscriber = rig.join(Client { version: to, ..client("s") });
            rig.subscribe(subscriber, "t/#", 2);
            rig.publish(publisher, "t/x", "hello", 2, 1);
            assert_eq!(rig.take(subscriber), ["PUBLISH t/x hello q2 #1"], "{from} to {to}");
        }
    }
}

#[test]
fn the_receive_maximum_does_not_count_earlier_connections() {
    // Section 4.9: neither send quota nor Receive Maximum is preserved across connections.
    let mut rig = Rig::limited(|limits| limits.receive_maximum = 2);
    let id = rig.join(client("p").kept());
    rig.publish(id, "t", "1", 2, 1);
    rig.publish(id, "t", "2", 2, 2);
    rig.lose(id);
    let id = rig.join(client("p").kept());
    rig.publish(id, "t", "3", 2, 3);
    rig.publish(id, "t", "4", 2, 4);
    assert_eq!(rig.take(id), ["PUBREC #3 0x10", "PUBREC #4 0x10"]);
    rig.ack(id, 0x62, 3);
    rig.publish(id, "t", "5", 2, 5);
    assert_eq!(rig.take(id), ["PUBCOMP #3", "PUBREC #5 0x10"]);
    rig.publish(id, "t", "6", 2, 6);
    assert_eq!(rig.take(id), ["DISCONNECT 0x93"]);
}

#[test]
fn an_answer_larger_than_the_client_takes_is_not_sent() {
    // [MQTT-3.1.2-24]
    let mut rig = Rig::new();
    let mut small = client("s");
    small.properties.maximum_packet_size = Some(40);
    let id = rig.join(small);
    let filters: Vec<(String, u8)> = (0..60).map(|at| (format!("t/{at}"), 0)).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|(filter, qos)| (filter.as_str(), *qos)).collect();
    rig.subscribe_with(id, &filters, &[]);
    assert_eq!(rig.take(id), ["DISCONNECT 0x95"]);
}

#[test]
fn what_expires_before_it_was_ever_sent_is_dropped() {
    // [MQTT-3.3.2-5]
    let mut rig = Rig::limited(|limits| limits.backlog_bytes_max = 10);
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "t", 1);
    let publisher = rig.join(client("p"));
    rig.stall(subscriber);
    rig.publish(publisher, "t", "fills the backlog", 1, 1);
    rig.publish_with(publisher, "t", "short-lived", 0b10, 2, &[0x02, 0, 0, 0, 1]);
    rig.advance(Duration::from_secs(5));
    rig.drain(subscriber);
    assert_eq!(rig.take(subscriber), ["PUBLISH t fills the backlog q1 #1"]);
    assert_eq!(rig.core.counters().dropped.expired, 1);
}
