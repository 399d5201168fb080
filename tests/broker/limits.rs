use lockgate::broker::{Announcement, Closing, Command, QueuePolicy, Violation};
use lockgate::codec::{Will, WillProperties};
use lockgate::types::QoS;

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

fn will(qos: QoS, retain: bool) -> Option<Will<'static>> {
    Some(Will { qos, retain, properties: WillProperties::default(), topic: "w", payload: b"gone" })
}

#[test]
fn what_is_above_the_maximum_qos_is_told_before_and_refused() {
    // [MQTT-3.2.2-9], [MQTT-3.2.2-10], [MQTT-3.2.2-11], [MQTT-3.2.2-12]
    let mut rig = Rig::limited(|limits| limits.qos_max = QoS::AtLeastOnce);
    let id = rig.connect(client("c"));
    // 0x24: Maximum QoS, 1.
    let connack = rig.take_bytes(id);
    assert!(connack.windows(2).any(|window| window == [0x24, 1]), "{connack:02x?}");
    rig.subscribe_with(id, &[("a", 0), ("b", 1), ("c", 2)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 0,1,1"]);
    rig.publish(id, "b", "x", 1, 1);
    assert_eq!(rig.take(id), ["PUBLISH b x q1 #1", "PUBACK #1"]);
    rig.publish(id, "b", "x", 2, 2);
    assert_eq!(rig.take(id), ["DISCONNECT 0x9b"]);
    assert!(matches!(rig.closing(id), Some(Closing::Violation(Violation::QoSNotSupported(2)))));
    let refused = rig.connect(crate::rig::Client { will: will(QoS::ExactlyOnce, false), ..client("d") });
    assert_eq!(rig.take(refused), ["CONNACK 0x9b"]);
    assert_eq!(rig.closing(refused), Some(Closing::WillInvalid));
    rig.join(crate::rig::Client { will: will(QoS::AtLeastOnce, true), ..client("e") });
}

#[test]
fn what_is_to_be_retained_is_refused_where_that_is_not_available() {
    // [MQTT-3.2.2-13], [MQTT-3.2.2-14]
    let mut rig = Rig::limited(|limits| limits.retain_available = false);
    let id = rig.connect(client("c"));
    // 0x25: Retain Available, 0.
    let connack = rig.take_bytes(id);
    assert!(connack.windows(2).any(|window| window == [0x25, 0]), "{connack:02x?}");
    rig.retain(id, "t", "x");
    assert_eq!(rig.take(id), ["DISCONNECT 0x9a"]);
    let refused = rig.connect(crate::rig::Client { will: will(QoS::AtMostOnce, true), ..client("d") });
    assert_eq!(rig.take(refused), ["CONNACK 0x9a"]);
    assert_eq!(rig.closing(refused), Some(Closing::WillInvalid));
}

#[test]
fn a_payload_that_is_too_large_is_refused_and_its_connection_stays() {
    let mut rig = Rig::limited(|limits| limits.payload_size_max = 3);
    let id = rig.join(client("c"));
    rig.subscribe(id, "t", 1);
    rig.take(id);
    rig.publish(id, "t", "1234", 1, 1);
    rig.publish(id, "t", "1234", 0, 0);
    rig.publish(id, "t", "123", 0, 0);
    assert_eq!(rig.take(id), ["PUBACK #1 0x97", "PUBLISH t 123"]);
}

#[test]
fn filters_that_are_granted_whatever_the_acl_says_bring_what_it_allows() {
    let acl = lockgate::auth::Acl::parse("pattern write #\npattern read open/#\n").unwrap();
    let limits = lockgate::broker::Limits { as_mosquitto: true, ..lockgate::broker::Limits::default() };
    let mut rig = Rig::with(limits, acl, false);
    let id = rig.join(client("c"));
    rig.subscribe_with(id, &[("secret/#", 1), ("#", 0)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 1,0"]);
    rig.publish(id, "secret/x", "hidden", 0, 0);
    rig.publish(id, "open/x", "shown", 0, 0);
    assert_eq!(rig.take(id), ["PUBLISH open/x shown"]);
}

#[test]
fn what_the_broker_says_of_itself_is_retained_and_not_written_down() {
    let mut rig = Rig::with(lockgate::broker::Limits::default(), lockgate::auth::Acl::open(), shards_keep());
    let live = rig.join(client("live"));
    rig.subscribe(live, "$SYS/#", 1);
    rig.take(live);
    let said = Announcement { topic: "$SYS/broker/x".to_owned(), text: "1".to_owned(), retained: true, to: None };
    rig.command(Command::Announce(vec![said.clone()]));
    rig.settle();
    assert_eq!(rig.take(live), ["PUBLISH $SYS/broker/x 1"]);
    // What happened once is not kept for who comes later.
    rig.command(Command::Announce(vec![Announcement {
        topic: "$SYS/broker/log/N".to_owned(),
        retained: false,
        ..said
    }]));
    rig.settle();
    assert_eq!(rig.take(live), ["PUBLISH $SYS/broker/log/N 1"]);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("$SYS/broker/#", 0)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 0", "PUBLISH $SYS/broker/x 1 retain"]);
    let all = rig.join(client("all"));
    rig.subscribe_with(all, &[("#", 0)], &[]);
    assert_eq!(rig.take(all), ["SUBACK #1 0"]);
    if shards_keep() {
        rig.restart();
        let later = rig.join(client("later"));
        rig.subscribe_with(later, &[("$SYS/#", 0)], &[]);
        assert_eq!(rig.take(later), ["SUBACK #1 0"]);
    }
}

/// One shard keeps what it has; several have no store yet.
fn shards_keep() -> bool {
    crate::rig::shards() == 1
}
