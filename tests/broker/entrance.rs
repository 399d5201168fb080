//! What the listener that a client came in by lays down for it, and what Mosquitto's options ask of the engine.

use std::sync::Arc;

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{Announcement, Closing, Command, Limits, Violation};
use lockgate::codec::{Version, Will, WillProperties};
use lockgate::types::{ClientId, Entrance, Identity, QoS, Realm};

use crate::rig::{Client, Rig, client};

fn mounted(at: &str) -> Arc<Entrance> {
    Arc::new(Entrance { mount_point: at.into(), ..Entrance::default() })
}

/// A listener that is a realm of its own.
fn listener(name: &str) -> Arc<Entrance> {
    Arc::new(Entrance { realm: Realm::of(&[name]), ..Entrance::default() })
}

#[test]
fn a_mount_point_is_before_all_topics_of_its_clients_and_they_do_not_see_it() {
    let mut rig = Rig::new();
    let far = rig.join(client("far"));
    rig.subscribe(far, "#", 1);
    rig.take(far);
    rig.entrance = mounted("site1/");
    let near = rig.join(client("near"));
    rig.subscribe_with(near, &[("t", 1), ("$share/g/s", 1), ("$SYS/#", 0)], &[]);
    assert_eq!(rig.take(near), ["SUBACK #1 1,1,0"]);
    for (topic, payload) in [("t", "1"), ("s", "2")] {
        rig.publish(near, topic, payload, 1, 7);
    }
    // The shared subscription may be another shard's, and its acknowledgement come first.
    let mut came = rig.take(near);
    came.sort();
    assert_eq!(came, ["PUBACK #7", "PUBACK #7", "PUBLISH s 2 q1 #2", "PUBLISH t 1 q1 #1"]);
    assert_eq!(rig.take(far), ["PUBLISH site1/t 1 q1 #1", "PUBLISH site1/s 2 q1 #2"]);
    // From outside, only below it.
    rig.publish(far, "t", "3", 0, 0);
    rig.publish(far, "site1/t", "4", 0, 0);
    assert_eq!(rig.take(near), ["PUBLISH t 4"]);
    rig.take(far);
    // What is retained, and a will.
    rig.retain(near, "kept", "5");
    let third = rig.join(client("third"));
    rig.subscribe_with(third, &[("+", 0)], &[]);
    assert_eq!(rig.take(third), ["SUBACK #1 0", "PUBLISH kept 5 retain"]);
    let will = Will {
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
        topic: "gone",
        payload: b"6",
    };
    let mortal = rig.join(Client { will: Some(will), ..client("mortal") });
    rig.lose(mortal);
    assert_eq!(rig.take(third), ["PUBLISH gone 6"]);
    assert_eq!(rig.take(far), ["PUBLISH site1/kept 5", "PUBLISH site1/gone 6"]);
    rig.unsubscribe(near, "t");
    assert_eq!(rig.take(near), ["UNSUBACK #1 0x00"]);
    rig.publish(near, "t", "7", 0, 0);
    assert!(rig.take(near).is_empty());
}

#[test]
fn a_mount_point_goes_with_topic_aliases_of_both_sides() {
    // [MQTT-3.3.2-9], [MQTT-3.3.2-11]
    let mut rig = Rig::new();
    rig.entrance = mounted("m/");
    let mut takes = client("takes");
    takes.properties.topic_alias_maximum = 5;
    let takes = rig.join(takes);
    rig.subscribe(takes, "long/topic", 0);
    rig.take(takes);
    let says = rig.join(client("says"));
    rig.publish_with(says, "long/topic", "1", 0, 0, &[0x23, 0, 1]);
    rig.publish_with(says, "", "2", 0, 0, &[0x23, 0, 1]);
    rig.entrance = mounted("");
    // The same message for one who sees all of its topic.
    let far = rig.join(client("far"));
    rig.subscribe(far, "m/#", 0);
    rig.take(far);
    rig.publish_with(says, "", "3", 0, 0, &[0x23, 0, 1]);
    assert_eq!(rig.take(takes), ["PUBLISH long/topic 1 alias=1", "PUBLISH  2 alias=1", "PUBLISH  3 alias=1"]);
    assert_eq!(rig.take(far), ["PUBLISH m/long/topic 3"]);
}

#[test]
fn listeners_may_differ_in_what_they_take() {
    // [MQTT-3.2.2-11], [MQTT-3.2.2-17], [MQTT-3.8.4-8]
    let mut rig = Rig::new();
    rig.entrance = Arc::new(Entrance { qos_max: QoS::AtMostOnce, topic_alias_max: 0, ..Entrance::default() });
    let id = rig.connect(client("low"));
    // Maximum QoS (0x24) and no Topic Alias Maximum (0x22).
    let connack = rig.take_bytes(id);
    assert!(connack.windows(2).any(|pair| pair == [0x24, 0]) && !connack.contains(&0x22), "{connack:02x?}");
    rig.subscribe_with(id, &[("t", 2)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 0"]);
    rig.entrance = Arc::default();
    let other = rig.join(client("other"));
    rig.publish(other, "t", "x", 2, 1);
    rig.ack(other, 0x62, 1);
    assert_eq!(rig.take(id), ["PUBLISH t x"]);
    rig.publish(id, "t", "x", 1, 1);
    assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::QoSNotSupported(1))));
}

#[test]
fn each_realm_has_its_acl_and_a_namesake_of_another_is_somebody_else() {
    let acls = |text: &str| Acl::parse(text).unwrap();
    let (inside, outside) = (Realm::of(&["inside"]), Realm::of(&["outside"]));
    let acl = Acl::of_realms(
        [(inside, acls("pattern readwrite #\n")), (outside, acls("pattern readwrite open/#\n"))].into_iter().collect(),
    );
    let limits = Limits { as_mosquitto: true, ..Limits::default() };
    let mut rig = Rig::on(1, limits.clone(), acl.clone(), true, Methods::default());
    rig.set_wall(1_780_000_000, None);
    rig.entrance = listener("outside");
    let guest = rig.join(client("guest").kept());
    rig.subscribe(guest, "#", 1);
    rig.take(guest);
    rig.publish(guest, "secret", "x", 1, 1);
    assert_eq!(rig.take(guest), ["PUBACK #1 0x87"]);
    rig.lose(guest);
    rig.restart();
    rig.core.configure(&limits, &Arc::new(acl));
    rig.entrance = listener("inside");
    let host = rig.join(client("host"));
    for topic in ["open/a", "secret"] {
        rig.publish(host, topic, "x", 1, 1);
    }
    // The same name in another realm takes nothing over and ends nothing, be its start clean or not.
    for client in [client("guest"), client("guest").kept()] {
        let thief = rig.connect(client);
        assert_eq!(rig.closing(thief), Some(Closing::NotOwner));
    }
    rig.entrance = listener("outside");
    let guest = rig.connect(client("guest").kept());
    assert_eq!(rig.take(guest)[1..], ["PUBLISH open/a x q1 #1"]);
    // What is left of a realm that is no more is nobody's: it ends with who comes, and brings nothing.
    let fewer = Acl::of_realms([(inside, acls("pattern readwrite #\n"))].into_iter().collect());
    rig.core.configure(&limits, &Arc::new(fewer));
    rig.lose(guest);
    rig.entrance = listener("inside");
    rig.publish(host, "secret", "y", 1, 2);
    let guest = rig.connect(client("guest").kept());
    assert_eq!(rig.take(guest), ["CONNACK"]);
    // Who came by a realm that is gone may do what all allow.
    rig.entrance = listener("gone");
    let stray = rig.join(client("stray"));
    rig.publish(stray, "open/a", "z", 1, 1);
    assert_eq!(rig.take(stray), ["PUBACK #1 0x10"]);
}

#[test]
fn what_is_not_below_the_mount_point_is_not_seen_and_no_bad_filter_becomes_a_good_one() {
    // [MQTT-4.7.3-1], [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    let mut rig = Rig::new();
    let far = rig.join(client("far"));
    rig.entrance = mounted("m/");
    let near = rig.join(client("near"));
    rig.subscribe_with(near, &[("#", 1), ("", 0), ("$share/g", 0), ("$share//x", 0), ("$share/+/x", 0)], &[]);
    assert_eq!(rig.take(near), ["SUBACK #1 1,0x8f,0x8f,0x8f,0x8f"]);
    for (qos, topic) in [(0, "m"), (1, "m"), (1, "m/"), (1, "m/x"), (0, "m/y")] {
        rig.publish(far, topic, "1", qos, 1);
    }
    assert_eq!(rig.take(near), ["PUBLISH x 1 q1 #1", "PUBLISH y 1"]);
}

#[test]
fn who_is_removed_from_one_listener_s_names_stays_where_another_has_them() {
    let mut rig = Rig::new();
    rig.entrance = listener("a");
    let gone = rig.join(Client { identity: Some("bob"), ..client("bob-a") });
    rig.entrance = listener("b");
    let stays = rig.join(Client { identity: Some("bob"), ..client("bob-b") });
    rig.command(Command::Forget(Identity::parse("bob").unwrap(), Some(Realm::of(&["a"]))));
    assert_eq!((rig.closing(gone), rig.closing(stays)), (Some(Closing::Revoked), None));
}

#[test]
fn qos_0_waits_for_a_kept_session_where_that_is_asked_for() {
    for durable in [false, true] {
        let limits = Limits { queues_qos_0: true, ..Limits::default() };
        let mut rig = Rig::on(1, limits, Acl::open(), durable, Methods::default());
        rig.set_wall(1_780_000_000, None);
        let away = rig.join(client("away").kept());
        rig.subscribe(away, "t", 1);
        rig.take(away);
        rig.lose(away);
        let fleeting = rig.join(client("fleeting"));
        rig.subscribe(fleeting, "t", 1);
        rig.lose(fleeting);
        let p = rig.join(client("p").kept());
        rig.publish(p, "t", "1", 0, 0);
        rig.publish(p, "t", "2", 1, 1);
        rig.publish(p, "t", "3", 0, 0);
        if durable {
            rig.restart();
        }
        let back = rig.connect(client("away").kept());
        assert_eq!(rig.take(back)[1..], ["PUBLISH t 1", "PUBLISH t 2 q1 #1", "PUBLISH t 3"]);
        rig.puback(back, 1);
        rig.lose(back);
        // Once is enough.
        if durable {
            rig.restart();
        }
        let back = rig.connect(client("away").kept());
        assert_eq!(rig.take(back).len(), 1);
    }
}

#[test]
fn a_message_may_come_at_its_subscription_s_qos() {
    let mut rig = Rig::limited(|limits| limits.upgrades_qos = true);
    let (p, s) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(s, "t", 1);
    rig.take(s);
    rig.publish(p, "t", "x", 0, 0);
    assert_eq!(rig.take(s), ["PUBLISH t x q1 #1"]);
    rig.puback(s, 1);
    rig.retain(p, "t", "kept");
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("t", 2)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 2", "PUBLISH t kept q2 #1 retain"]);
    // For a session that is kept it is written down.
    let mut rig = Rig::on(1, Limits { upgrades_qos: true, ..Limits::default() }, Acl::open(), true, Methods::default());
    rig.set_wall(1_780_000_000, None);
    let s = rig.join(client("s").kept());
    rig.subscribe(s, "t", 1);
    rig.lose(s);
    let p = rig.join(client("p"));
    rig.publish(p, "t", "x", 0, 0);
    rig.restart();
    let s = rig.connect(client("s").kept());
    assert_eq!(rig.take(s)[1..], ["PUBLISH t x q1 #1"]);
}

#[test]
fn what_is_retained_goes_with_its_publisher_s_right_to_write_it_where_that_is_asked_for() {
    let before = "user p\ntopic readwrite #\nuser s\ntopic readwrite #\n";
    let after = "user s\ntopic readwrite #\n";
    for (checks, shown) in [(false, 1), (true, 0)] {
        let limits = Limits { checks_retained_source: checks, ..Limits::default() };
        let mut rig = Rig::on(1, limits.clone(), Acl::parse(before).unwrap(), true, Methods::default());
        rig.set_wall(1_780_000_000, None);
        let p = rig.join(client("p"));
        rig.retain(p, "t", "x");
        // It is remembered with the message.
        rig.restart();
        let s = rig.join(client("s"));
        rig.subscribe_with(s, &[("t", 0)], &[]);
        assert_eq!(rig.take(s).len(), 2);
        rig.core.configure(&limits, &Arc::new(Acl::parse(after).unwrap()));
        rig.subscribe_with(s, &[("t", 0)], &[]);
        assert_eq!(rig.take(s).len(), 1 + shown);
    }
}

#[test]
fn what_is_in_flight_may_be_bounded_in_bytes() {
    let mut rig = Rig::limited(|limits| limits.inflight_bytes_max = 5);
    let (p, s) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(s, "t", 1);
    rig.take(s);
    for at in 1..=4 {
        rig.publish(p, "t", "x", 1, at);
    }
    assert_eq!(rig.take(s), ["PUBLISH t x q1 #1", "PUBLISH t x q1 #2", "PUBLISH t x q1 #3"]);
    rig.puback(s, 1);
    assert_eq!(rig.take(s), ["PUBLISH t x q1 #4"]);
}

#[test]
fn as_mosquitto_refusals_are_not_explained_and_mqtt_3_has_no_longer_keep_alive() {
    let keeps = |secs| Client { keep_alive: secs, ..client("a") };
    for (as_mosquitto, version, keep_alive, answer) in [
        (true, Version::V311, 61, "CONNACK 0x85"),
        (true, Version::V311, 0, "CONNACK 0x85"),
        (true, Version::V311, 60, "CONNACK"),
        (false, Version::V311, 61, "CONNACK"),
        (true, Version::V5, 0, "CONNACK keep-alive=60"),
    ] {
        let mut rig = Rig::limited(|limits| {
            limits.as_mosquitto = as_mosquitto;
            limits.keep_alive_secs_max = 60;
        });
        let id = rig.connect(Client { version, ..keeps(keep_alive) });
        let got = rig.take(id).remove(0);
        let refused = rig.closing(id) == Some(Closing::KeepAliveTooLong);
        assert_eq!(refused, answer.contains("0x85"), "{got}");
        assert!(answer != "CONNACK keep-alive=60" || got.contains("60"), "{got}");
    }
    for as_mosquitto in [false, true] {
        let mut rig = Rig::limited(|limits| limits.as_mosquitto = as_mosquitto);
        rig.join(client("a").kept());
        let id = rig.connect(Client { identity: Some("thief"), ..client("a") });
        assert_eq!(rig.take_reasons(id)[0].is_none(), as_mosquitto);
    }
}

#[test]
fn as_mosquitto_a_will_that_may_not_be_written_lets_its_client_in_and_is_not_published() {
    for as_mosquitto in [false, true] {
        let acl = Acl::parse("pattern readwrite open/#\npattern read #\n").unwrap();
        let limits = Limits { as_mosquitto, ..Limits::default() };
        let mut rig = Rig::on(1, limits, acl, false, Methods::default());
        let s = rig.join(client("s"));
        rig.subscribe_with(s, &[("#", 0)], &[]);
        rig.take(s);
        for topic in ["secret", "open/x"] {
            let will = Will {
                qos: QoS::AtMostOnce,
                retain: false,
                properties: WillProperties::default(),
                topic,
                payload: b"gone",
            };
            let id = rig.connect(Client { will: Some(will), ..client("mortal") });
            let refused = rig.closing(id) == Some(Closing::WillNotAllowed);
            assert_eq!(refused, topic == "secret" && !as_mosquitto);
            if !refused {
                rig.lose(id);
            }
        }
        assert_eq!(rig.take(s), ["PUBLISH open/x gone"]);
    }
}

#[test]
fn live_qos_0_does_not_overtake_what_waits_of_it() {
    // [MQTT-4.6.0-5]
    for durable in [false, true] {
        let limits = Limits { queues_qos_0: true, inflight_max: 1, ..Limits::default() };
        let mut rig = Rig::on(1, limits, Acl::open(), durable, Methods::default());
        rig.set_wall(1_780_000_000, None);
        let away = rig.join(client("away").kept());
        rig.subscribe(away, "t", 1);
        rig.lose(away);
        let p = rig.join(client("p"));
        rig.publish(p, "t", "1", 1, 1);
        rig.publish(p, "t", "2", 1, 2);
        rig.publish(p, "t", "3", 0, 0);
        let back = rig.connect(client("away").kept());
        rig.publish(p, "t", "4", 0, 0);
        assert_eq!(rig.take(back)[1..], ["PUBLISH t 1 q1 #1"]);
        rig.puback(back, 1);
        assert_eq!(rig.take(back), ["PUBLISH t 2 q1 #2", "PUBLISH t 3", "PUBLISH t 4"]);
        rig.puback(back, 2);
        rig.publish(p, "t", "5", 0, 0);
        assert_eq!(rig.take(back), ["PUBLISH t 5"]);
    }
}

#[test]
fn births_of_sparkplug_are_kept_where_that_is_asked_for() {
    // Sparkplug 3.0.0: tck-id-conformance-mqtt-aware-store, -nbirth-mqtt-topic, -nbirth-mqtt-retain and their pairs for DBIRTH.
    let limits = Limits { sparkplug_aware: true, ..Limits::default() };
    let mut rig = Rig::with(limits, Acl::open_with(true, false), false);
    let node = rig.join(client("node"));
    rig.publish(node, "spBv1.0/G/NBIRTH/E", "first", 0, 0);
    rig.publish(node, "spBv1.0/G/NBIRTH/E", "birth", 0, 0);
    rig.publish(node, "spBv1.0/G/DBIRTH/E/D", "device", 1, 7);
    for other in ["spBv1.0/G/NDEATH/E", "spBv1.0/G/NBIRTH/E/x", "spBv1.0/G/DBIRTH/E", "spAv1.0/G/NBIRTH/E"] {
        rig.publish(node, other, "x", 0, 0);
    }
    assert_eq!(rig.take(node), ["PUBACK #7 0x10"]);
    let host = rig.join(client("host"));
    rig.subscribe_with(host, &[("$sparkplug/certificates/#", 1)], &[]);
    let mut came = rig.take(host);
    came.sort();
    assert_eq!(
        came,
        [
            "PUBLISH $sparkplug/certificates/spBv1.0/G/DBIRTH/E/D device q1 #1 retain",
            "PUBLISH $sparkplug/certificates/spBv1.0/G/NBIRTH/E birth retain",
            "SUBACK #1 1"
        ]
    );
}

#[test]
fn a_birth_whose_copy_would_be_no_topic_is_a_message_like_others() {
    let limits = Limits { sparkplug_aware: true, checks_retained_source: true, ..Limits::default() };
    let mut rig = Rig::with(limits, Acl::open_with(true, false), false);
    let host = rig.join(client("host"));
    rig.subscribe_with(host, &[("$sparkplug/#", 1)], &[]);
    rig.take(host);
    let node = rig.join(client("node"));
    let long = format!("spBv1.0/{}/NBIRTH/E", "g".repeat(65_500));
    rig.publish(node, &long, "x", 1, 7);
    assert_eq!(rig.take(node), ["PUBACK #7 0x10"]);
    assert!(rig.take(host).is_empty());
    // The broker says it, whatever its publisher may write.
    rig.publish(node, "spBv1.0/G/NBIRTH/E", "birth", 1, 8);
    rig.take(node);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("$sparkplug/#", 0)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 0", "PUBLISH $sparkplug/certificates/spBv1.0/G/NBIRTH/E birth retain"]);
}

#[test]
fn what_is_asked_of_the_broker_itself_goes_to_nobody_else_and_is_acknowledged() {
    let limits = Limits { as_mosquitto: true, ..Limits::default() };
    let mut rig = Rig::with(limits, Acl::open_with(false, true), false);
    let asks = rig.join(client("asks"));
    let spy = rig.join(client("spy"));
    rig.subscribe_with(spy, &[("$CONTROL/#", 0)], &[]);
    rig.take(spy);
    rig.publish(asks, "$CONTROL/broker/v1", "one", 1, 7);
    rig.publish(asks, "$CONTROL/broker/v1", "two", 2, 8);
    // Too many wait: it is told, and may ask again.
    rig.publish(asks, "$CONTROL/broker/v1", "three", 1, 9);
    rig.publish(asks, "$CONTROL/broker/v1", "four", 0, 0);
    assert_eq!(rig.take(asks), ["PUBACK #7", "PUBREC #8", "PUBACK #9 0x97"]);
    assert!(rig.take(spy).is_empty());
    assert_eq!(rig.out.questions.len(), 2);
    // An answer may be for the one who asked, whatever it subscribes to.
    let answer = Announcement {
        topic: "$CONTROL/broker/v1/response".to_owned(),
        text: "no".to_owned(),
        retained: false,
        to: Some(ClientId::new("asks").unwrap()),
    };
    rig.command(Command::Announce(vec![answer]));
    assert_eq!(rig.take(asks), ["PUBLISH $CONTROL/broker/v1/response no"]);
    assert!(rig.take(spy).is_empty());
}
