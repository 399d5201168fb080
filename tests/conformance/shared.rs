//! Shared subscriptions (MQTT 5 section 4.8.2).

use std::time::Duration;

use lockgate::auth::Acl;
use lockgate::broker::{ConnectionId, Limits};

use crate::rig::{Client, Rig, client};

fn member<'a>(rig: &mut Rig, client: Client<'a>, qos: u8) -> ConnectionId {
    let id = rig.join(client);
    rig.subscribe(id, "$share/g/t", qos);
    id
}

/// A group of one kept member and its publisher; `store`: whether what is kept is written down.
fn group(store: bool) -> (Rig, ConnectionId, ConnectionId) {
    let mut rig = Rig::with(Limits::default(), Acl::open(), store);
    let publisher = rig.join(client("p"));
    let first = member(&mut rig, client("m1").kept(), 2);
    (rig, publisher, first)
}

#[test]
fn each_member_has_its_own_qos() {
    // [MQTT-4.8.2-3]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let (zero, two) = (member(&mut rig, client("zero"), 0), member(&mut rig, client("two"), 2));
    for at in 1..=4 {
        rig.publish(publisher, "t", "x", 2, at);
    }
    assert_eq!(rig.take(zero), ["PUBLISH t x", "PUBLISH t x"]);
    assert_eq!(rig.take(two), ["PUBLISH t x q2 #1", "PUBLISH t x q2 #2"]);
    rig.subscribe_with(zero, &[("$share/g/t", 1)], &[]);
    rig.take(zero);
    for at in 5..=6 {
        rig.publish(publisher, "t", "x", 2, at);
    }
    assert_eq!(rig.take(zero), ["PUBLISH t x q1 #1"]);
}

#[test]
fn a_qos_2_message_that_was_sent_waits_for_its_member() {
    // [MQTT-4.8.2-4]
    for store in [false, true] {
        for received in [false, true] {
            let (mut rig, publisher, first) = group(store);
            rig.publish(publisher, "t", "x", 2, 1);
            assert_eq!(rig.take(first), ["PUBLISH t x q2 #1"]);
            let second = member(&mut rig, client("m2").kept(), 2);
            if received {
                rig.ack(first, 0x50, 1);
                assert_eq!(rig.take(first), ["PUBREL #1"]);
            }
            rig.lose(first);
            rig.advance(Duration::from_secs(60));
            assert!(rig.take(second).is_empty());
            let first = rig.connect(client("m1").kept());
            let again = if received { "PUBREL #1" } else { "PUBLISH t x q2 #1 dup" };
            assert_eq!(rig.take(first), ["CONNACK present", again]);
        }
    }
}

#[test]
fn when_a_session_ends_its_unfinished_messages_go_to_others_but_for_sent_qos_2() {
    // [MQTT-4.8.2-5]
    for store in [false, true] {
        for cleanly in [false, true] {
            let mut rig = Rig::with(Limits { inflight_max: 2, ..Limits::default() }, Acl::open(), store);
            let publisher = rig.join(client("p"));
            let first = member(&mut rig, client("m1").kept(), 2);
            for (at, qos) in [(1, 1), (2, 2), (3, 2), (4, 1)] {
                rig.publish(publisher, "t", &at.to_string(), qos, at);
            }
            assert_eq!(rig.take(first), ["PUBLISH t 1 q1 #1", "PUBLISH t 2 q2 #2"]);
            let mut second = rig.join(client("m2").kept());
            rig.lose(first);
            rig.subscribe(second, "$share/g/t", 2);
            assert!(rig.take(second).is_empty());
            if cleanly {
                let first = rig.join(client("m1"));
                rig.disconnect(first);
            } else {
                rig.advance(Duration::from_secs(3_601));
            }
            let mut got: Vec<String> = rig.take(second);
            // What is in flight is within its window; the rest comes as it is acknowledged.
            for packet_id in 1..=2 {
                rig.send_bytes(
                    second,
                    &[if got[packet_id - 1].contains("q2") { 0x50 } else { 0x40 }, 2, 0, packet_id as u8],
                );
                rig.ack(second, 0x70, packet_id as u16);
            }
            got.extend(rig.take(second).into_iter().filter(|text| text.starts_with("PUBLISH")));
            let mut payloads: Vec<&str> = got.iter().map(|text| text.split(' ').nth(2).unwrap()).collect();
            payloads.sort_unstable();
            assert_eq!(payloads, ["1", "3", "4"], "store {store}, cleanly {cleanly}");
            assert!(got.iter().all(|text| !text.contains("dup")));
            second = rig.connect(client("m2").kept());
            drop(rig.take(second));
        }
    }
}

#[test]
fn a_message_that_a_member_refused_goes_to_nobody() {
    // [MQTT-4.8.2-6]
    let (mut rig, publisher, first) = group(false);
    rig.publish(publisher, "t", "1", 1, 1);
    rig.publish(publisher, "t", "2", 2, 2);
    rig.take(first);
    let second = member(&mut rig, client("m2"), 2);
    rig.send_bytes(first, &[0x40, 3, 0, 1, 0x97]);
    rig.send_bytes(first, &[0x50, 3, 0, 2, 0x97]);
    rig.lose(first);
    let first = rig.connect(client("m1").kept());
    assert_eq!(rig.take(first), ["CONNACK present"]);
    rig.lose(first);
    rig.advance(Duration::from_secs(3_601));
    assert!(rig.take(second).is_empty());
}

#[test]
fn what_was_not_sent_goes_to_those_who_are_there_when_a_member_leaves() {
    // Section 4.8.2: whoever can take it.
    for store in [false, true] {
        let mut rig = Rig::with(Limits { inflight_max: 1, ..Limits::default() }, Acl::open(), store);
        let publisher = rig.join(client("p"));
        let first = member(&mut rig, client("m1").kept(), 1);
        for at in 1..=3 {
            rig.publish(publisher, "t", &at.to_string(), 1, at);
        }
        assert_eq!(rig.take(first), ["PUBLISH t 1 q1 #1"]);
        let second = member(&mut rig, client("m2"), 1);
        rig.lose(first);
        assert_eq!(rig.take(second), ["PUBLISH t 2 q1 #1"]);
        rig.puback(second, 1);
        assert_eq!(rig.take(second), ["PUBLISH t 3 q1 #2"]);
        // What it had sent comes again to the one that left, and nothing else.
        let first = rig.connect(client("m1").kept());
        assert_eq!(rig.take(first), ["CONNACK present", "PUBLISH t 1 q1 #1 dup"]);
    }
}

#[test]
fn where_nobody_else_is_there_messages_wait_for_their_member() {
    let mut rig = Rig::limited(|limits| limits.inflight_max = 1);
    let publisher = rig.join(client("p"));
    let first = member(&mut rig, client("m1").kept(), 1);
    for at in 1..=2 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    rig.take(first);
    rig.lose(first);
    let first = rig.connect(client("m1").kept());
    assert_eq!(rig.take(first), ["CONNACK present", "PUBLISH t 1 q1 #1 dup"]);
    rig.puback(first, 1);
    assert_eq!(rig.take(first), ["PUBLISH t 2 q1 #2"]);
    // After it has unsubscribed too: delivery of what is there may be finished.
    rig.publish(publisher, "t", "3", 1, 3);
    rig.unsubscribe(first, "$share/g/t");
    rig.puback(first, 2);
    assert_eq!(rig.take(first), ["UNSUBACK #1 0x00", "PUBLISH t 3 q1 #3"]);
}

#[test]
fn a_busy_member_is_passed_over() {
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let mut narrow = client("narrow");
    narrow.properties.receive_maximum = 1;
    let (narrow, wide) = (member(&mut rig, narrow, 1), member(&mut rig, client("wide"), 1));
    for at in 1..=5 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    assert_eq!((rig.take(narrow).len(), rig.take(wide).len()), (1, 4));
    // One that does not read what was written for it.
    let stalled = member(&mut rig, client("stalled"), 1);
    rig.stall(stalled);
    *rig.out.stalled.get_mut(&stalled).unwrap() = 2 * 1024 * 1024;
    for at in 6..=12 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    assert!(rig.take(stalled).len() <= 1);
}

#[test]
fn what_lies_in_the_store_goes_only_to_a_member_that_may_read_it() {
    let limits = Limits { slice: 2, ..Limits::default() };
    let mut rig = Rig::with(limits.clone(), Acl::open(), true);
    let publisher = rig.join(client("p"));
    let first = member(&mut rig, client("m1").kept(), 1);
    rig.lose(first);
    for at in 1..=5 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    let blind = rig.join(Client { identity: Some("blind"), ..client("blind") });
    rig.subscribe(blind, "$share/g/t", 1);
    let second = rig.join(Client { identity: Some("sees"), ..client("m2").kept() });
    rig.subscribe(second, "$share/g/t", 1);
    rig.core.configure(&limits, &Acl::parse("user sees\ntopic readwrite #\n").unwrap().into());
    rig.advance(Duration::from_secs(3_601));
    let got: Vec<String> = rig.take(second);
    let payloads: Vec<&str> = got.iter().map(|text| text.split(' ').nth(2).unwrap()).collect();
    assert_eq!(payloads, ["1", "2", "3", "4", "5"], "in their order, with more than one fetch");
    assert!(!rig.take(blind).iter().any(|text| text.starts_with("PUBLISH")));
    for packet_id in 1..=5 {
        rig.puback(second, packet_id);
    }
    assert_eq!(rig.out.store.len(), 0);
}

#[test]
fn a_message_that_goes_on_to_a_qos_0_member_leaves_nothing_in_the_store() {
    let mut rig = Rig::durable();
    let publisher = rig.join(client("p"));
    let first = member(&mut rig, client("m1").kept(), 1);
    rig.lose(first);
    rig.publish(publisher, "t", "x", 1, 1);
    assert_eq!(rig.out.store.len(), 1);
    let second = member(&mut rig, client("m2"), 0);
    rig.advance(Duration::from_secs(3_601));
    assert_eq!(rig.take(second), ["PUBLISH t x"]);
    assert_eq!(rig.out.store.len(), 0);
}

#[test]
fn a_message_that_goes_on_to_a_session_that_is_kept_is_written_down() {
    let mut rig = Rig::durable();
    let publisher = rig.join(client("p"));
    let first = member(&mut rig, client("m1"), 1);
    rig.publish(publisher, "t", "x", 1, 1);
    assert_eq!(rig.take(first), ["PUBLISH t x q1 #1"]);
    assert_eq!(rig.out.store.len(), 0);
    let second = member(&mut rig, client("m2").kept(), 1);
    rig.lose(first);
    assert_eq!(rig.out.store.len(), 1);
    assert_eq!(rig.take(second), ["PUBLISH t x q1 #1"]);
    rig.puback(second, 1);
    assert_eq!(rig.out.store.len(), 0);
}
