use std::sync::Arc;

use lockgate::auth::Acl;
use lockgate::broker::{Closing, Limits};
use lockgate::codec::{Version, Will, WillProperties};
use lockgate::types::QoS;

use crate::rig::{Client, Rig, client};

const OWN: &str = "pattern readwrite %u/#\n";

#[test]
fn a_publish_outside_the_acl_is_refused_and_reaches_nobody() {
    // Section 3.4.2.1: 0x87; before MQTT 5 it is acknowledged: 3.1.1 [MQTT-3.3.5-2]
    let mut rig = Rig::with_acl("pattern readwrite %u/#\nuser boss\ntopic #\n");
    let boss = rig.join(client("boss"));
    rig.subscribe(boss, "#", 0);
    let new = rig.join(client("new"));
    for (qos, topic) in [(0, "boss/x"), (1, "boss/x"), (2, "boss/x"), (1, "new/x")] {
        rig.publish(new, topic, "x", qos, 1 + u16::from(qos));
    }
    assert_eq!(rig.take(new), ["PUBACK #2 0x87", "PUBREC #3 0x87", "PUBACK #2"]);
    let old = rig.join(client("old").v311());
    rig.publish(old, "boss/x", "x", 1, 1);
    rig.publish(old, "boss/x", "x", 2, 2);
    rig.ack(old, 0x62, 2);
    assert_eq!(rig.take(old), ["PUBACK #1", "PUBREC #2", "PUBCOMP #2"]);
    assert_eq!(rig.take(boss), ["PUBLISH new/x x"]);
    assert_eq!(rig.core.counters().acl_denied_publish, 5);
}

#[test]
fn a_refused_qos_2_publish_leaves_its_identifier_free() {
    let mut rig = Rig::with_acl(OWN);
    let id = rig.join(client("a"));
    rig.publish(id, "b", "x", 2, 1);
    rig.ack(id, 0x62, 1);
    assert_eq!(rig.take(id), ["PUBREC #1 0x87", "PUBCOMP #1 0x92"]);
}

#[test]
fn a_subscription_that_could_match_nothing_is_refused() {
    // [MQTT-3.9.3-*]: 0x87, before MQTT 5 0x80 and in 3.1 a confirmation that brings nothing
    for (version, answer) in [(Version::V5, "0x87"), (Version::V311, "0x80"), (Version::V31, "1")] {
        let mut rig = Rig::with_acl("pattern readwrite %u/#\nuser boss\ntopic #\n");
        let id = rig.join(Client { version, ..client("a") });
        rig.subscribe_with(id, &[("boss/#", 1), ("a/#", 1), ("#", 1)], &[]);
        assert_eq!(rig.take(id), [format!("SUBACK #1 {answer},1,1")]);
        let boss = rig.join(client("boss"));
        rig.publish(boss, "boss/x", "secret", 0, 0);
        rig.publish(boss, "a/x", "yours", 0, 0);
        // What is granted is filtered at delivery.
        assert_eq!(rig.take(id), ["PUBLISH a/x yours"], "{version}");
    }
}

#[test]
fn retained_messages_are_filtered_at_delivery() {
    let mut rig = Rig::with_acl("pattern readwrite %u/#\nuser boss\ntopic #\n");
    let boss = rig.join(client("boss"));
    rig.retain(boss, "a/x", "yours");
    rig.retain(boss, "b/x", "secret");
    let id = rig.join(client("a"));
    rig.subscribe_with(id, &[("#", 0)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 0", "PUBLISH a/x yours retain"]);
}

#[test]
fn a_will_outside_the_acl_is_refused_with_its_connect() {
    let mut rig = Rig::with_acl(OWN);
    let will = |topic| Will {
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
        topic,
        payload: b"",
    };
    let id = rig.connect(Client { will: Some(will("b/x")), ..client("a") });
    assert_eq!(rig.take(id), ["CONNACK 0x87"]);
    assert_eq!(rig.closing(id), Some(Closing::WillNotAllowed));
    let id = rig.connect(Client { will: Some(will("a/x")), ..client("a") });
    assert_eq!(rig.take(id), ["CONNACK"]);
}

#[test]
fn a_new_acl_holds_for_established_sessions() {
    let mut rig = Rig::with_acl("pattern readwrite #\n");
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "#", 0);
    rig.publish(publisher, "t", "1", 0, 0);
    rig.core
        .configure(&Limits::default(), &Arc::new(Acl::parse("user p\ntopic write #\nuser s\ntopic read u\n").unwrap()));
    rig.publish(publisher, "t", "2", 0, 0);
    rig.publish(publisher, "u", "3", 0, 0);
    rig.publish(subscriber, "u", "4", 0, 0);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 1", "PUBLISH u 3"]);
}
