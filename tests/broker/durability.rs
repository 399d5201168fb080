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
