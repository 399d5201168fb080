use lockgate::broker::{Closing, QueuePolicy, Violation};

use crate::rig::{Rig, client};

fn queue_of(rig: &mut Rig) -> Vec<String> {
    let subscriber = rig.join(client("s").kept());
    rig.subscribe(subscriber, "t", 1);
    rig.lose(subscriber);
    let publisher = rig.join(client("p"));
    for at in 1..=5 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    let subscriber = rig.connect(client("s").kept());
    rig.take(subscriber).iter().skip(1).map(|text| text.split(' ').nth(2).unwrap().to_owned()).collect()
}

#[test]
fn a_full_queue_drops_by_its_policy_and_counts() {
    let mut rig = Rig::limited(|limits| limits.queued_messages_max = 3);
    assert_eq!(queue_of(&mut rig), ["1", "2", "3"]);
    assert_eq!(rig.core.counters().dropped.queue_full, 2);
    let mut rig = Rig::limited(|limits| {
        limits.queued_messages_max = 3;
        limits.queue_policy = QueuePolicy::DropOldest;
    });
    assert_eq!(queue_of(&mut rig), ["3", "4", "5"]);
    assert_eq!(rig.core.counters().dropped.queue_full, 2);
    // The same in bytes: each message is topic and payload.
    let mut rig = Rig::limited(|limits| limits.queued_bytes_max = 4);
    assert_eq!(queue_of(&mut rig), ["1", "2"]);
}

#[test]
fn what_a_client_does_not_acknowledge_is_bounded_in_bytes_too() {
    let mut rig = Rig::limited(|limits| limits.queued_bytes_max = 4);
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "t", 1);
    rig.take(subscriber);
    let publisher = rig.join(client("p"));
    for at in 1..=5 {
        rig.publish(publisher, "t", &at.to_string(), 1, at);
    }
    // Two under way, two that wait, and one that finds no room.
    assert_eq!(rig.take(subscriber), ["PUBLISH t 1 q1 #1", "PUBLISH t 2 q1 #2"]);
    assert_eq!(rig.core.counters().dropped.queue_full, 1);
    rig.puback(subscriber, 1);
    assert_eq!(rig.take(subscriber), ["PUBLISH t 3 q1 #3"]);
    // One that is larger than all of it still goes, alone.
    let mut rig = Rig::limited(|limits| limits.queued_bytes_max = 1);
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "t", 1);
    rig.take(subscriber);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "large", 1, 1);
    assert_eq!(rig.take(subscriber), ["PUBLISH t large q1 #1"]);
}

#[test]
fn too_many_subscriptions_are_refused_one_by_one() {
    let mut rig = Rig::limited(|limits| limits.subscriptions_max = 2);
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("a", 0), ("b", 0), ("c", 0), ("a", 1)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 0,0,0x97,1"]);
}

#[test]
fn too_many_filters_in_one_subscribe_end_the_connection() {
    let mut rig = Rig::limited(|limits| limits.filters_per_subscribe_max = 2);
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("a", 0), ("b", 0), ("c", 0)], &[]);
    assert_eq!(rig.take(id), ["DISCONNECT 0x97"]);
    assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::TooManyFilters(3))));
}

#[test]
fn topics_and_filters_of_too_many_levels_are_refused() {
    let mut rig = Rig::limited(|limits| limits.topic_levels_max = 3);
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("a/b/c", 0), ("a/b/c/d", 0)], &[]);
    rig.publish(id, "a/b/c/d", "x", 1, 1);
    rig.publish(id, "a/b/c", "x", 1, 2);
    assert_eq!(rig.take(id), ["SUBACK #1 0,0x8f", "PUBACK #1 0x90", "PUBLISH a/b/c x", "PUBACK #2"]);
}

#[test]
fn retained_messages_stay_within_their_limits() {
    let mut rig = Rig::alone(|limits| limits.retained_messages_max = 2);
    let id = rig.join(client("p"));
    for (at, topic) in ["a", "b", "c", "a"].iter().enumerate() {
        rig.publish_with(id, topic, "x", 0b011, at as u16 + 1, &[]);
    }
    // One that is there can be replaced, and removing makes room.
    assert_eq!(rig.take(id), ["PUBACK #1 0x10", "PUBACK #2 0x10", "PUBACK #3 0x97", "PUBACK #4 0x10"]);
    rig.publish_with(id, "a", "", 0b011, 5, &[]);
    rig.publish_with(id, "c", "x", 0b011, 6, &[]);
    assert_eq!(rig.take(id), ["PUBACK #5 0x10", "PUBACK #6 0x10"]);
    let mut rig = Rig::alone(|limits| limits.retained_bytes_max = 10);
    let id = rig.join(client("p"));
    rig.publish_with(id, "a", "123456789", 0b011, 1, &[]);
    rig.publish_with(id, "b", "1", 0b011, 2, &[]);
    assert_eq!(rig.take(id), ["PUBACK #1 0x10", "PUBACK #2 0x97"]);
    assert_eq!(rig.core.counters().dropped.retained_full, 1);
}

#[test]
fn too_many_filters_in_one_unsubscribe_end_the_connection() {
    let mut rig = Rig::limited(|limits| limits.filters_per_subscribe_max = 2);
    let id = rig.join(client("s"));
    rig.send_bytes(id, b"\xA2\x0c\x00\x01\x00\x00\x01a\x00\x01b\x00\x01c");
    assert_eq!(rig.take(id), ["DISCONNECT 0x97"]);
}

#[test]
fn limits_hold_as_connack_told_them() {
    let mut rig = Rig::new();
    let id = rig.join(client("p"));
    let limits =
        lockgate::broker::Limits { topic_alias_max: 0, receive_maximum: 1, ..lockgate::broker::Limits::default() };
    rig.core.configure(&limits, &std::sync::Arc::new(lockgate::auth::Acl::open()));
    rig.publish_with(id, "t", "x", 0, 0, &[0x23, 0, 5]);
    rig.publish(id, "t", "1", 2, 1);
    rig.publish(id, "t", "2", 2, 2);
    assert_eq!(rig.take(id), ["PUBREC #1 0x10", "PUBREC #2 0x10"]);
}
