//! The core's side of the durability contract (design section 5), with a store that completes
//! late, out of order, and fails.

use lockgate::broker::Closing;

use crate::rig::{Rig, client};

/// A durable subscriber to `t` and a publisher, with the store's answers held from then on.
fn held() -> (Rig, lockgate::broker::ConnectionId, lockgate::broker::ConnectionId) {
    let mut rig = Rig::durable();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 2);
    let publisher = rig.join(client("p").kept());
    rig.out.store.hold();
    (rig, publisher, subscriber)
}

#[test]
fn connack_suback_and_unsuback_wait_for_the_commit() {
    let mut rig = Rig::durable();
    rig.out.store.hold();
    let id = rig.connect(client("a").kept());
    rig.send_bytes(id, &[0xC0, 0]);
    rig.subscribe_with(id, &[("t", 1)], &[]);
    rig.unsubscribe(id, "t");
    assert!(rig.take(id).is_empty());
    // Committed out of order, they leave in the order in which their packets came.
    rig.out.store.release(1, |count| count - 1);
    rig.settle();
    assert!(rig.take(id).is_empty());
    rig.commit(10);
    assert_eq!(rig.take(id), ["CONNACK", "PINGRESP", "SUBACK #1 1", "UNSUBACK #1 0x00"]);
}

#[test]
fn nothing_is_sent_before_connack() {
    // [MQTT-3.2.0-1]
    let (mut rig, publisher, subscriber) = held();
    rig.lose(subscriber);
    rig.commit(10);
    let subscriber = rig.connect(client("s").kept());
    rig.publish(publisher, "t", "x", 1, 1);
    assert!(rig.take(subscriber).is_empty());
    rig.commit(10);
    assert_eq!(rig.take(subscriber), ["CONNACK present", "PUBLISH t x q1 #1"]);
}

#[test]
fn puback_waits_and_acknowledgements_leave_in_order() {
    let (mut rig, publisher, subscriber) = held();
    rig.publish(publisher, "t", "1", 1, 1);
    // Nobody wants this one: it needs no commit, but it has its turn.
    rig.publish(publisher, "nobody", "2", 1, 2);
    // An outgoing QoS 1 PUBLISH may leave early.
    assert_eq!(rig.take(subscriber), ["PUBLISH t 1 q1 #1"]);
    assert!(rig.take(publisher).is_empty());
    rig.commit(1);
    assert_eq!(rig.take(publisher), ["PUBACK #1", "PUBACK #2 0x10"]);
}

#[test]
fn no_copy_of_an_inbound_qos_2_message_leaves_before_its_commit() {
    let (mut rig, publisher, subscriber) = held();
    let casual = rig.join(client("casual"));
    rig.subscribe(casual, "t", 0);
    rig.publish(publisher, "t", "x", 2, 1);
    assert!(rig.take(subscriber).is_empty() && rig.take(casual).is_empty() && rig.take(publisher).is_empty());
    // A copy that comes meanwhile joins the first.
    rig.publish_with(publisher, "t", "x", 0b1100, 1, &[]);
    rig.commit(10);
    rig.commit(10);
    assert_eq!(rig.take(publisher), ["PUBREC #1", "PUBREC #1"]);
    assert_eq!(rig.take(casual), ["PUBLISH t x"]);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x q2 #1"]);
}

#[test]
fn pubrel_and_pubcomp_wait_for_what_they_say() {
    // [MQTT-4.3.3-6]
    let (mut rig, publisher, subscriber) = held();
    rig.publish(publisher, "t", "x", 2, 1);
    rig.commit(10);
    rig.commit(10);
    rig.take(publisher);
    rig.take(subscriber);
    rig.ack(subscriber, 0x50, 1);
    rig.ack(publisher, 0x62, 1);
    assert!(rig.take(subscriber).is_empty() && rig.take(publisher).is_empty());
    rig.commit(10);
    assert_eq!(rig.take(subscriber), ["PUBREL #1"]);
    assert_eq!(rig.take(publisher), ["PUBCOMP #1"]);
}

#[test]
fn clean_sessions_at_qos_0_and_1_cost_no_write() {
    let mut rig = Rig::durable();
    rig.out.store.set_failing(true);
    let (publisher, subscriber) = (rig.join(client("p")), rig.join(client("s")));
    rig.subscribe(subscriber, "t", 1);
    rig.publish(publisher, "t", "0", 0, 0);
    rig.publish(publisher, "t", "1", 1, 1);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 0", "PUBLISH t 1 q1 #1"]);
    assert_eq!(rig.take(publisher), ["PUBACK #1"]);
}

#[test]
fn a_message_that_could_not_be_kept_is_withdrawn_and_says_so() {
    let (mut rig, publisher, subscriber) = held();
    rig.out.store.set_failing(true);
    rig.publish(publisher, "t", "x", 2, 1);
    rig.commit(10);
    assert_eq!(rig.take(publisher), ["PUBREC #1 0x97"]);
    assert!(rig.take(subscriber).is_empty());
    assert!(rig.core.counters().dropped.store_failed > 0);
    // It recovers by itself, and the identifier is free.
    rig.out.store.set_failing(false);
    rig.publish(publisher, "t", "y", 2, 1);
    rig.commit(10);
    rig.commit(10);
    assert_eq!(rig.take(publisher), ["PUBREC #1"]);
    assert_eq!(rig.take(subscriber).len(), 1);
}

#[test]
fn before_mqtt_5_a_failure_to_keep_closes_the_connection() {
    let (mut rig, _, _) = held();
    let old = rig.join(client("old").v311());
    rig.out.store.set_failing(true);
    rig.publish(old, "t", "x", 1, 1);
    rig.commit(10);
    assert!(rig.take(old).is_empty());
    assert_eq!(rig.closing(old), Some(Closing::StoreFailed));
}

#[test]
fn a_durable_connect_that_could_not_be_kept_is_refused() {
    let mut rig = Rig::durable();
    rig.out.store.set_failing(true);
    let id = rig.connect(client("a").kept());
    assert_eq!(rig.take(id), ["CONNACK 0x97"]);
    assert_eq!(rig.closing(id), Some(Closing::StoreFailed));
    let old = rig.connect(crate::rig::Client { clean_start: false, ..client("b").v311() });
    assert_eq!(rig.take(old), ["CONNACK 0x88"]);
    let clean = rig.connect(client("c"));
    assert_eq!(rig.take(clean), ["CONNACK"]);
}

#[test]
fn queues_of_the_absent_lie_in_the_store_and_come_back_in_order() {
    let mut rig = Rig::durable();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 1);
    rig.lose(subscriber);
    let publisher = rig.join(client("p"));
    for at in 1..=300 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    assert_eq!(rig.out.store.len(), 300);
    let subscriber = rig.connect(client("s").kept());
    let mut seen = Vec::new();
    loop {
        let got: Vec<String> = rig.take(subscriber).into_iter().filter(|text| text.starts_with("PUBLISH")).collect();
        if got.is_empty() {
            break;
        }
        for text in got {
            seen.push(text.split(' ').nth(2).unwrap().parse::<u32>().unwrap());
            rig.puback(subscriber, text.rsplit_once('#').unwrap().1.parse().unwrap());
        }
    }
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
    assert!(rig.out.store.is_empty());
}

#[test]
fn a_message_for_many_is_stored_once_and_goes_with_the_last() {
    let mut rig = Rig::durable();
    for name in ["a", "b"] {
        let id = rig.join(client(name).kept());
        rig.subscribe(id, "t", 1);
        rig.lose(id);
    }
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "x", 1, 1);
    assert_eq!(rig.out.store.len(), 1);
    for name in ["a", "b"] {
        assert_eq!(rig.out.store.len(), 1);
        let id = rig.connect(client(name).kept());
        assert_eq!(rig.take(id)[1], "PUBLISH t x q1 #1");
        rig.puback(id, 1);
    }
    assert!(rig.out.store.is_empty());
}

#[test]
fn an_inbound_identifier_is_free_again_though_its_connection_is_gone() {
    // [MQTT-4.3.3-8]: what is acknowledged later was kept.
    let (mut rig, publisher, subscriber) = held();
    rig.out.store.set_failing(true);
    rig.publish(publisher, "t", "x", 2, 1);
    rig.lose(publisher);
    rig.commit(10);
    rig.out.store.set_failing(false);
    let publisher = rig.connect(client("p").kept());
    rig.commit(10);
    rig.publish_with(publisher, "t", "x", 0b1100, 1, &[]);
    rig.commit(10);
    rig.commit(10);
    assert_eq!(rig.take(publisher), ["CONNACK present", "PUBREC #1"]);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x q2 #2"]);
}

#[test]
fn an_outgoing_identifier_that_could_not_be_kept_does_not_lose_its_message() {
    let mut rig = Rig::durable();
    let mut narrow = client("s").kept();
    narrow.properties.receive_maximum = 1;
    let subscriber = rig.join(narrow);
    rig.subscribe(subscriber, "t", 2);
    let publisher = rig.join(client("p").kept());
    rig.publish(publisher, "t", "1", 1, 1);
    rig.publish(publisher, "t", "2", 2, 2);
    rig.publish(publisher, "t", "3", 2, 3);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 1 q1 #1"]);
    // Making room asks the store for an identifier: it fails, and goes on failing for a while.
    rig.out.store.set_failing(true);
    rig.puback(subscriber, 1);
    rig.advance(std::time::Duration::from_secs(5));
    assert!(rig.take(subscriber).is_empty());
    rig.out.store.set_failing(false);
    rig.advance(std::time::Duration::from_secs(2));
    let got = rig.take(subscriber);
    assert!(got.len() == 1 && got[0].starts_with("PUBLISH t 2 q2 #"), "{got:?}");
    let id = got[0].rsplit_once('#').unwrap().1.parse().unwrap();
    rig.ack(subscriber, 0x50, id);
    rig.ack(subscriber, 0x70, id);
    let got = rig.take(subscriber);
    assert!(got.iter().any(|text| text.starts_with("PUBLISH t 3 q2")), "{got:?}");
}

#[test]
fn a_failure_that_comes_late_does_not_touch_a_new_session() {
    let (mut rig, publisher, subscriber) = held();
    rig.publish(publisher, "t", "x", 2, 1);
    rig.commit(10);
    rig.commit(10);
    rig.take(subscriber);
    rig.out.store.set_failing(true);
    rig.ack(subscriber, 0x50, 1);
    rig.out.store.set_failing(false);
    // The same client starts anew while its PUBREC is still to be written down.
    let subscriber = rig.connect(crate::rig::Client { clean_start: true, ..client("s") });
    rig.take(subscriber);
    rig.subscribe(subscriber, "t", 1);
    rig.publish(publisher, "t", "y", 1, 2);
    assert_eq!(rig.take(subscriber), ["PUBLISH t y q1 #1"]);
    rig.commit(20);
    rig.puback(subscriber, 1);
    rig.publish(publisher, "t", "z", 1, 3);
    assert_eq!(rig.take(subscriber), ["PUBLISH t z q1 #2"]);
}

#[test]
fn pubrel_waits_until_pubrec_is_written_down_whatever_it_takes() {
    // [MQTT-4.3.3-6]
    let (mut rig, publisher, subscriber) = held();
    rig.publish(publisher, "t", "x", 2, 1);
    rig.commit(10);
    rig.commit(10);
    rig.take(subscriber);
    rig.out.store.set_failing(true);
    rig.ack(subscriber, 0x50, 1);
    rig.commit(10);
    assert!(rig.take(subscriber).is_empty());
    rig.out.store.set_failing(false);
    rig.advance(std::time::Duration::from_secs(2));
    rig.commit(10);
    assert_eq!(rig.take(subscriber), ["PUBREL #1"]);
}

#[test]
fn a_retained_message_is_seen_only_once_it_is_safe() {
    let (mut rig, publisher, _) = held();
    rig.publish_with(publisher, "state", "x", 0b011, 1, &[]);
    let early = rig.join(client("early"));
    rig.subscribe_with(early, &[("state", 0)], &[]);
    assert_eq!(rig.take(early), ["SUBACK #1 0"]);
    rig.commit(10);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("state", 0)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 0", "PUBLISH state x retain"]);
    // One that could not be kept never is.
    rig.out.store.set_failing(true);
    rig.publish_with(publisher, "state", "lost", 0b011, 2, &[]);
    rig.commit(10);
    let later = rig.join(client("later"));
    rig.subscribe_with(later, &[("state", 0)], &[]);
    assert_eq!(rig.take(later), ["SUBACK #1 0", "PUBLISH state x retain"]);
}

#[test]
fn a_copy_that_waits_is_withdrawn_with_its_message() {
    let mut rig = Rig::durable();
    let mut narrow = client("s").kept();
    narrow.properties.receive_maximum = 1;
    let subscriber = rig.join(narrow);
    rig.subscribe(subscriber, "t", 1);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "1", 1, 1);
    rig.take(subscriber);
    rig.out.store.set_failing(true);
    rig.publish(publisher, "t", "2", 1, 2);
    assert_eq!(rig.take(publisher), ["PUBACK #1", "PUBACK #2 0x97"]);
    rig.out.store.set_failing(false);
    rig.puback(subscriber, 1);
    assert!(rig.take(subscriber).is_empty());
}

#[test]
fn a_session_that_gives_up_its_expiry_leaves_nothing_in_the_store() {
    let mut rig = Rig::durable();
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 1);
    rig.lose(subscriber);
    let publisher = rig.join(client("p"));
    for at in 1..=5 {
        rig.publish(publisher, "t", "x", 1, at);
    }
    assert_eq!(rig.out.store.len(), 5);
    let mut short = client("s").kept();
    short.properties.session_expiry_interval = None;
    let subscriber = rig.join(short);
    rig.puback(subscriber, 1);
    assert_eq!(rig.out.store.len(), 4);
    rig.lose(subscriber);
    assert!(rig.out.store.is_empty());
}

#[test]
fn a_will_of_a_connect_that_was_refused_is_not_published() {
    let mut rig = Rig::durable();
    let watcher = rig.join(client("watcher"));
    rig.subscribe(watcher, "will", 0);
    rig.out.store.set_failing(true);
    let will = lockgate::codec::Will {
        qos: lockgate::types::QoS::AtMostOnce,
        retain: false,
        properties: lockgate::codec::WillProperties::default(),
        topic: "will",
        payload: b"",
    };
    let id = rig.connect(crate::rig::Client { will: Some(will), ..client("a").kept() });
    assert_eq!(rig.take(id), ["CONNACK 0x97"]);
    assert!(rig.take(watcher).is_empty());
}

#[test]
fn retained_qos_0_that_waits_for_the_store_stops_its_publisher_in_the_end() {
    let (mut rig, publisher, _) = held();
    for at in 0..999 {
        rig.retain(publisher, "other", &at.to_string());
    }
    assert!(!rig.core.must_wait(publisher));
    rig.retain(publisher, "other", "999");
    assert!(rig.core.must_wait(publisher));
    rig.out.store.set_failing(true);
    rig.retain(publisher, "other", "lost");
    rig.commit(2_000);
    assert!(!rig.core.must_wait(publisher));
    assert_eq!(rig.closing(publisher), None, "nobody is told of QoS 0");
    assert_eq!(rig.core.counters().dropped.store_failed, 1);
    assert!(rig.take(publisher).is_empty());
}
