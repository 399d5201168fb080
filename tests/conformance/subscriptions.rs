//! SUBSCRIBE and UNSUBSCRIBE.

use lockgate::broker::{Closing, Violation};
use lockgate::codec::{DecodeError, Version};

use crate::rig::{Client, Rig, client, framed};

#[test]
fn answers_have_the_identifier_of_their_question() {
    // [MQTT-2.2.1-6], [MQTT-3.8.4-2], [MQTT-3.10.4-4], [MQTT-3.10.4-5]
    // [MQTT-2.3.1-7], [MQTT-3.8.4-2], [MQTT-3.10.4-4], [MQTT-3.10.4-5] of 3.1.1
    let mut rig = Rig::new();
    let new = rig.join(client("new"));
    rig.send_bytes(new, &framed(0x82, &[0x12, 0x34, 0, 0, 1, b'a', 0]));
    rig.unsubscribe_from(new, &["a"], 0xABCD);
    rig.unsubscribe_from(new, &["never"], 0xFFFE);
    assert_eq!(rig.take(new), ["SUBACK #4660 0", "UNSUBACK #43981 0x00", "UNSUBACK #65534 0x11"]);
    let old = rig.join(client("old").v311());
    rig.send_bytes(old, &framed(0x82, &[0x12, 0x34, 0, 1, b'a', 0]));
    rig.unsubscribe_from(old, &["a"], 0xABCD);
    rig.unsubscribe_from(old, &["never"], 0xFFFE);
    assert_eq!(rig.take(old), ["SUBACK #4660 0", "UNSUBACK #43981", "UNSUBACK #65534"]);
}

#[test]
fn one_unsubscribe_of_several_filters_has_one_answer_in_their_order() {
    // [MQTT-3.10.4-1], [MQTT-3.10.4-2], [MQTT-3.10.4-5], [MQTT-3.10.4-6], [MQTT-3.11.3-1], [MQTT-3.11.3-2]
    // [MQTT-3.10.4-1], [MQTT-3.10.4-2], [MQTT-3.10.4-6] of 3.1.1
    for (version, answer) in [(Version::V5, "UNSUBACK #515 0x00,0x11,0x8f,0x00"), (Version::V311, "UNSUBACK #515")] {
        let mut rig = Rig::new();
        let publisher = rig.join(client("p"));
        let id = rig.join(Client { version, ..client("s") });
        for filter in ["a", "b", "c/+"] {
            rig.subscribe(id, filter, 0);
        }
        rig.unsubscribe_from(id, &["a", "x", "a#", "c/+"], 0x0203);
        assert_eq!(rig.take(id), [answer]);
        for topic in ["a", "b", "c/1"] {
            rig.publish(publisher, topic, "x", 0, 0);
        }
        assert_eq!(rig.take(id), ["PUBLISH b x"]);
    }
}

#[test]
fn a_packet_without_a_filter_ends_the_connection() {
    // [MQTT-3.8.3-2], [MQTT-3.10.3-2]; [MQTT-3.8.3-3], [MQTT-3.10.3-2] of 3.1.1
    let mut rig = Rig::new();
    for first in [0x82, 0xA2] {
        let new = rig.join(client("new"));
        rig.send_bytes(new, &framed(first, &[0, 1, 0]));
        assert_eq!(rig.take(new), ["DISCONNECT 0x82"]);
        let old = rig.join(client("old").v311());
        rig.send_bytes(old, &framed(first, &[0, 1]));
        assert_eq!(rig.closing(old), Some(Closing::Violation(Violation::Undecodable(DecodeError::NoFilter))));
        assert!(rig.take(old).is_empty());
    }
    // A filter that is cut off, and QoS 3.
    let old = rig.join(client("old").v311());
    rig.send_bytes(old, &framed(0xA2, &[0, 1, 0, 1, b'a', 0]));
    assert_eq!(rig.closing(old), Some(Closing::Violation(Violation::Undecodable(DecodeError::Truncated))));
    for options in [3, 4] {
        let old = rig.join(client("old").v311());
        rig.send_bytes(old, &framed(0x82, &[0, 1, 0, 1, b'a', options]));
        assert!(matches!(rig.closing(old), Some(Closing::Violation(_))), "{options}");
        assert!(rig.take(old).is_empty());
    }
}

#[test]
fn subscribing_again_interrupts_nothing() {
    // [MQTT-3.8.4-3], [MQTT-3.8.4-4]; [MQTT-3.8.4-3] of 3.1.1
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::limited(|limits| limits.inflight_max = 1);
        let publisher = rig.join(client("p"));
        let id = rig.join(Client { version, ..client("s") });
        rig.subscribe(id, "t", 1);
        for at in 1..=3 {
            rig.publish(publisher, "t", &at.to_string(), 1, at);
        }
        rig.subscribe_with(id, &[("t", 1)], &[]);
        rig.publish(publisher, "t", "4", 1, 4);
        let mut got = Vec::new();
        for packet_id in 1..=4 {
            got.extend(rig.take(id).into_iter().filter(|text| text.starts_with("PUBLISH")));
            rig.puback(id, packet_id);
        }
        let wanted: Vec<String> = (1..=4).map(|at| format!("PUBLISH t {at} q1 #{at}")).collect();
        assert_eq!(got, wanted);
        assert!(rig.take(id).is_empty(), "each once");
    }
}

#[test]
fn several_copies_have_each_its_own_identifier() {
    // [MQTT-3.3.4-5]
    let mut rig = Rig::new();
    let (publisher, id) = (rig.join(client("p")), rig.join(client("s")));
    for (filter, identifier) in [("t", 1), ("$share/g/t", 2), ("$share/h/+", 3)] {
        rig.subscribe_with(id, &[(filter, 0)], &[0x0B, identifier]);
    }
    rig.take(id);
    rig.publish(publisher, "t", "x", 0, 0);
    let mut got = rig.take(id);
    got.sort();
    assert_eq!(got, ["PUBLISH t x sub=1", "PUBLISH t x sub=2", "PUBLISH t x sub=3"]);
}

#[test]
fn no_local_is_for_retained_messages_too() {
    // [MQTT-3.8.3-3]
    let mut rig = Rig::new();
    let (both, other) = (rig.join(client("both")), rig.join(client("other")));
    rig.retain(both, "mine", "x");
    rig.retain(other, "yours", "x");
    rig.subscribe_with(both, &[("#", 0b100)], &[]);
    assert_eq!(rig.take(both), ["SUBACK #1 0", "PUBLISH yours x retain"]);
}

#[test]
fn a_subscription_that_is_replaced_while_it_is_served_has_its_new_options() {
    // [MQTT-3.8.4-3]
    let mut rig = Rig::alone(|limits| limits.slice = 1);
    let publisher = rig.join(client("p"));
    for at in 0..4 {
        rig.retain(publisher, &format!("t/{at}"), "x");
    }
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("t/#", 0)], &[0x0B, 1]);
    // Retain handling 2: no retained messages for this one, and what is left is the old one's.
    rig.subscribe_with(id, &[("t/#", 0x20)], &[0x0B, 2]);
    rig.advance(std::time::Duration::from_secs(1));
    let got: Vec<String> = rig.take(id).into_iter().filter(|text| text.starts_with("PUBLISH")).collect();
    assert_eq!(got.len(), 4);
    assert!(got[1..].iter().all(|text| text.ends_with("sub=2")), "{got:?}");
}
