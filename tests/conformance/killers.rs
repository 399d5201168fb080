//! What other brokers were brought down by.

use std::time::Duration;

use lockgate::broker::Closing;
use lockgate::codec::Version;

use crate::mqtt::Raw;
use crate::rig::{Client, Rig, client, framed};
use crate::site::Site;

#[test]
fn a_topic_that_begins_with_a_non_ascii_character() {
    let mut rig = Rig::new();
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    for filter in ["#", "ä/+", "+/x", "𝄞"] {
        rig.subscribe(subscriber, filter, 1);
    }
    for topic in ["ä/x", "é", "𝄞", "\u{FEFF}", "€/x"] {
        rig.publish(publisher, topic, "x", 1, 1);
        rig.retain(publisher, topic, "x");
    }
    assert_eq!(rig.take(subscriber).len(), 10);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("+/x", 0)], &[]);
    let mut got = rig.take(late)[1..].to_vec();
    got.sort();
    assert_eq!(got, ["PUBLISH ä/x x retain", "PUBLISH €/x x retain"]);
}

#[test]
fn client_ids_that_contain_slashes_and_wildcards() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "allow-anonymous: false", "allow-anonymous: true");
    let broker = site.serve();
    for id in ["a/b", "/", "../../etc/passwd", "#", "+/+", "$SYS/x", "a b\tc", "%c"] {
        let (mut raw, answer) = Raw::connect(broker.plain_port, Version::V5, id, None);
        assert_eq!(answer, "CONNACK", "{id}");
        raw.send(&framed(0x82, &[0, 1, 0, 0, 1, b't', 1]));
        assert_eq!(raw.packet().as_deref(), Some("SUBACK #1 1"));
        raw.send(&framed(0x32, &[0, 1, b't', 0, 1, 0, b'x']));
        let got = [raw.packet().unwrap(), raw.packet().unwrap()];
        assert!(got.contains(&"PUBACK #1".to_owned()) && got.contains(&"PUBLISH t x q1 #1".to_owned()), "{got:?}");
        raw.send(&[0xE0, 0]);
        assert_eq!(raw.packet(), None);
    }
}

#[test]
fn a_persistent_shared_subscriber_that_leaves_with_an_unacknowledged_message() {
    for store in [false, true] {
        let mut rig = if store { Rig::durable() } else { Rig::new() };
        let publisher = rig.join(client("p"));
        let first = rig.join(client("m1").kept());
        rig.subscribe(first, "$share/g/t", 1);
        rig.publish(publisher, "t", "1", 1, 1);
        assert_eq!(rig.take(first), ["PUBLISH t 1 q1 #1"]);
        rig.disconnect(first);
        rig.publish(publisher, "t", "2", 1, 2);
        let second = rig.join(client("m2"));
        rig.subscribe(second, "$share/g/t", 1);
        rig.publish(publisher, "t", "3", 1, 3);
        assert_eq!(rig.take(second), ["PUBLISH t 3 q1 #1"]);
        rig.advance(Duration::from_secs(3_601));
        let mut got = rig.take(second);
        got.sort();
        assert_eq!(got, ["PUBLISH t 1 q1 #2", "PUBLISH t 2 q1 #3"]);
        rig.publish(publisher, "t", "4", 1, 4);
        assert_eq!(rig.take(second), ["PUBLISH t 4 q1 #4"]);
    }
}

#[test]
fn a_slow_subscriber_that_is_taken_over_and_then_gone() {
    let mut rig = Rig::limited(|limits| limits.backlog_bytes_max = 4_096);
    let publisher = rig.join(client("p"));
    for round in 0..20 {
        let slow = rig.connect(client("slow").kept());
        rig.subscribe_with(slow, &[("#", 2)], &[]);
        rig.stall(slow);
        for at in 1..=20 {
            rig.publish(publisher, "t", &"x".repeat(1_000), at % 3, u16::from(at));
            rig.ack(publisher, 0x62, u16::from(at));
        }
        let next = rig.connect(client("slow").kept());
        assert_eq!(rig.closing(slow), Some(Closing::TakenOver));
        rig.stall(next);
        rig.publish(publisher, "t", "x", 1, 100 + round);
        rig.lose(next);
        if round % 2 == 0 {
            rig.advance(Duration::from_secs(3_601));
        }
    }
    rig.take(publisher);
    rig.publish(publisher, "t", "x", 1, 1);
    assert_eq!(rig.take(publisher).len(), 1);
    assert_eq!(rig.core.gauges().connections, 1);
}

#[test]
fn packets_that_only_a_server_may_send_ten_thousand_times() {
    let mut rig = Rig::new();
    let witness = rig.join(client("witness"));
    let packets: [&[u8]; 6] = [
        &[0x20, 3, 0, 0, 0],
        &[0x90, 4, 0, 1, 0, 0],
        &[0xB0, 4, 0, 1, 0, 0],
        &[0xD0, 0],
        &[0x40, 3, 0, 1, 0x10],
        &[0xE0, 2, 0x8B, 0],
    ];
    for at in 0..10_000 {
        let packet = packets[at % packets.len()];
        let id = rig.join(client("bad"));
        rig.send_bytes(id, packet);
        assert!(matches!(rig.closing(id), Some(Closing::Violation(_))), "{packet:02x?}");
        rig.take(id);
        rig.forget(id);
    }
    rig.send_bytes(witness, &[0xC0, 0]);
    assert_eq!(rig.take(witness), ["PINGRESP"]);
    assert_eq!(rig.core.counters().violations, 10_000);
    assert_eq!((rig.core.gauges().connections, rig.core.gauges().sessions), (1, 1));
}

#[test]
fn a_v5_publish_with_every_property_comes_to_a_3_1_1_subscriber_as_3_1_1() {
    let all = b"\x01\x01\x02\0\0\0\x09\x03\0\x04text\x08\0\x05reply\x09\0\x03abc\x23\0\x01\x26\0\x01a\0\x011\x26\0\x01a\0\x012";
    for version in [Version::V31, Version::V311] {
        let mut rig = Rig::new();
        let publisher = rig.join(client("p"));
        let subscriber = rig.join(Client { version, ..client("s") });
        rig.subscribe(subscriber, "t", 2);
        for (flags, bytes) in
            [(0, &b"\x30\x04\0\x01tx"[..]), (0b010, b"\x32\x06\0\x01t\0\x01x"), (0b100, b"\x34\x06\0\x01t\0\x02x")]
        {
            rig.publish_with(publisher, "t", "x", flags, 1, all);
            assert_eq!(rig.take_bytes(subscriber), bytes);
        }
    }
}
