use std::time::Duration;

use lockgate::broker::{ConnectionId, Limits};

use crate::rig::{Rig, client};

#[test]
fn a_retained_message_is_for_those_who_subscribe_later() {
    // [MQTT-3.3.1-5], [MQTT-3.3.1-9], [MQTT-3.3.1-12]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let live = rig.join(client("live"));
    rig.subscribe(live, "t", 1);
    rig.publish_with(publisher, "t", "old", 0b011, 1, &[]);
    rig.publish_with(publisher, "t", "new", 0b011, 2, &[]);
    // A subscription that was there sees RETAIN 0.
    assert_eq!(rig.take(live), ["PUBLISH t old q1 #1", "PUBLISH t new q1 #2"]);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("+", 2)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 2", "PUBLISH t new q1 #1 retain"]);
}

#[test]
fn an_empty_payload_removes_and_is_itself_not_kept() {
    // [MQTT-3.3.1-6], [MQTT-3.3.1-7]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    let live = rig.join(client("live"));
    rig.subscribe(live, "t", 0);
    rig.retain(publisher, "t", "x");
    rig.retain(publisher, "t", "");
    assert_eq!(rig.take(live), ["PUBLISH t x", "PUBLISH t "]);
    let late = rig.join(client("late"));
    rig.subscribe(late, "t", 0);
    assert_eq!(rig.core.gauges().retained_messages, 0);
}

#[test]
fn a_message_without_retain_leaves_the_retained_one_as_it_is() {
    // [MQTT-3.3.1-8]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.retain(publisher, "t", "kept");
    rig.publish(publisher, "t", "passing", 0, 0);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("t", 0)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 0", "PUBLISH t kept retain"]);
}

#[test]
fn retain_handling_says_when_retained_messages_come() {
    // [MQTT-3.3.1-9], [MQTT-3.3.1-10], [MQTT-3.3.1-11]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.retain(publisher, "t", "x");
    let id = rig.join(client("s"));
    let counts: Vec<usize> = [0x00, 0x00, 0x10, 0x20]
        .iter()
        .map(|options| {
            rig.subscribe_with(id, &[("t", *options)], &[]);
            rig.take(id).len() - 1
        })
        .collect();
    assert_eq!(counts, [1, 1, 0, 0]);
    rig.unsubscribe(id, "t");
    rig.take(id);
    rig.subscribe_with(id, &[("t", 0x10)], &[]);
    assert_eq!(rig.take(id).len(), 2);
}

#[test]
fn retain_as_published_keeps_the_flag() {
    // [MQTT-3.3.1-13]
    let mut rig = Rig::new();
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("t", 0b1000)], &[]);
    rig.take(id);
    let publisher = rig.join(client("p"));
    rig.retain(publisher, "t", "r");
    rig.publish(publisher, "t", "n", 0, 0);
    assert_eq!(rig.take(id), ["PUBLISH t r retain", "PUBLISH t n"]);
}

#[test]
fn a_retained_message_expires_and_its_rest_is_told() {
    // [MQTT-3.3.2-5], [MQTT-3.3.2-6]
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.publish_with(publisher, "t", "x", 1, 0, &[0x02, 0, 0, 0, 60]);
    rig.advance(Duration::from_secs(20));
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("t", 0)], &[]);
    assert_eq!(rig.take(id), ["SUBACK #1 0", "PUBLISH t x retain expiry=40"]);
    rig.advance(Duration::from_secs(41));
    assert_eq!((rig.core.gauges().retained_messages, rig.core.gauges().retained_bytes), (0, 0));
}

#[test]
fn a_shared_subscription_gets_no_retained_messages() {
    // Section 4.8.2
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    rig.retain(publisher, "t", "x");
    let id = rig.join(client("s"));
    rig.subscribe(id, "$share/g/t", 0);
}

#[test]
fn a_wide_filter_over_many_comes_in_slices_within_the_clients_window() {
    let mut rig = Rig::limited(|limits| {
        limits.slice = 16;
        limits.queued_messages_max = 20;
    });
    let publisher = rig.join(client("p"));
    for at in 0..500 {
        rig.publish_with(publisher, &format!("t/{at}"), "x", 0b011, 1, &[]);
    }
    let mut narrow = client("s");
    narrow.properties.receive_maximum = 5;
    let id = rig.join(narrow);
    rig.subscribe_with(id, &[("#", 1)], &[]);
    let mut seen = 0;
    for _ in 0..10_000 {
        rig.advance(Duration::from_millis(1));
        let got = rig.take(id);
        for text in got.iter().filter(|text| text.starts_with("PUBLISH")) {
            seen += 1;
            assert!(text.ends_with(" retain"), "{text}");
            rig.puback(id, text.split('#').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap());
        }
    }
    assert_eq!(seen, 500);
    assert_eq!(rig.core.counters().dropped.queue_full, 0);
}

#[test]
fn no_retained_copy_comes_after_a_newer_live_message() {
    // design section 2: register first, scan second; [MQTT-3.3.1-9]: the retained one comes all the same.
    let mut rig = Rig::alone(|limits| limits.slice = 4);
    let publisher = rig.join(client("p"));
    for at in 0..100 {
        rig.retain(publisher, &format!("t/{at:03}"), "old");
    }
    let id = rig.join(client("s"));
    rig.subscribe_with(id, &[("#", 0)], &[]);
    rig.publish(publisher, "t/099", "live", 0, 0);
    rig.advance(Duration::from_secs(1));
    let of_99: Vec<String> = rig.take(id).into_iter().filter(|text| text.contains("t/099")).collect();
    assert_eq!(of_99, ["PUBLISH t/099 old retain", "PUBLISH t/099 live"]);
    // One that replaces what is retained comes alone.
    let id = rig.join(client("s2"));
    rig.subscribe_with(id, &[("#", 0)], &[]);
    rig.retain(publisher, "t/098", "new");
    rig.advance(Duration::from_secs(1));
    let of_98: Vec<String> = rig.take(id).into_iter().filter(|text| text.contains("t/098")).collect();
    assert_eq!(of_98, ["PUBLISH t/098 new"]);
}

/// A publisher, and a subscriber with a receive maximum of 1 that is owed the retained `a` and `b`.
fn one_of_two_retained_waits() -> (Rig, ConnectionId, ConnectionId) {
    let mut rig = Rig::alone(|_| {});
    let publisher = rig.join(client("p"));
    for topic in ["a", "b"] {
        rig.publish_with(publisher, topic, "old", 0b011, 1, &[]);
    }
    let mut narrow = client("s");
    narrow.properties.receive_maximum = 1;
    let id = rig.join(narrow);
    rig.subscribe_with(id, &[("#", 1)], &[]);
    (rig, publisher, id)
}

#[test]
fn no_retained_copy_comes_after_a_newer_live_one_however_narrow_the_window() {
    // design section 2, [MQTT-3.3.1-8]: a live QoS 0 message waits behind the retained copy.
    let (mut rig, publisher, id) = one_of_two_retained_waits();
    assert_eq!(rig.take(id), ["SUBACK #1 1", "PUBLISH a old q1 #1 retain"]);
    rig.publish(publisher, "b", "live", 0, 0);
    assert!(rig.take(id).is_empty());
    rig.puback(id, 1);
    assert_eq!(rig.take(id), ["PUBLISH b old q1 #2 retain", "PUBLISH b live"]);
    // One that replaces what is retained makes the copy that waits void.
    let (mut rig, publisher, id) = one_of_two_retained_waits();
    rig.take(id);
    rig.retain(publisher, "b", "new");
    rig.puback(id, 1);
    assert_eq!(rig.take(id), ["PUBLISH b new"]);
}

#[test]
fn a_scan_that_a_disconnect_cut_off_goes_on_with_the_session() {
    let mut rig = Rig::limited(|limits| limits.slice = 2);
    let publisher = rig.join(client("p"));
    for at in 0..6 {
        rig.publish_with(publisher, &format!("t/{at}"), "x", 0b011, 1, &[]);
    }
    let narrow = || {
        let mut narrow = client("s").kept();
        narrow.properties.receive_maximum = 1;
        narrow
    };
    let mut id = rig.join(narrow());
    rig.subscribe_with(id, &[("#", 1)], &[]);
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..20 {
        rig.advance(Duration::from_millis(1));
        for text in rig.take(id).iter().filter(|text| text.starts_with("PUBLISH")) {
            seen.insert(text.split(' ').nth(1).unwrap().to_owned());
            rig.puback(id, text.split('#').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap());
        }
        if round == 2 {
            rig.lose(id);
            id = rig.connect(narrow());
        }
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn subscribing_again_and_again_keeps_one_scan() {
    let mut rig = Rig::new();
    let publisher = rig.join(client("p"));
    for at in 0..50 {
        rig.publish_with(publisher, &format!("t/{at}"), "x", 0b011, 1, &[]);
    }
    let mut narrow = client("s");
    narrow.properties.receive_maximum = 1;
    let id = rig.join(narrow);
    for _ in 0..500 {
        rig.subscribe_with(id, &[("#", 1), ("#", 1)], &[]);
    }
    // What waits is one copy of each at the most, not five hundred.
    let page = rig.core.sessions();
    assert!(page.iter().all(|session| session.queued_messages <= 60), "{page:?}");
}

#[test]
fn a_live_message_that_waits_its_turn_voids_nothing() {
    // [MQTT-3.3.1-9]: behind the retained copy in the queue, order is right already.
    let (mut rig, publisher, id) = one_of_two_retained_waits();
    rig.publish(publisher, "b", "live", 1, 2);
    rig.take(id);
    rig.puback(id, 1);
    assert_eq!(rig.take(id), ["PUBLISH b old q1 #2 retain"]);
    rig.puback(id, 2);
    assert_eq!(rig.take(id), ["PUBLISH b live q1 #3"]);
}

#[test]
fn a_scan_brings_no_more_at_once_than_a_queue_may_hold() {
    for (messages, bytes) in [(3, 1_000_000), (1_000, 20)] {
        let limits = |limits: &mut Limits| {
            (limits.queued_messages_max, limits.queued_bytes_max, limits.inflight_max) = (messages, bytes, 1)
        };
        let mut rig = Rig::limited(limits);
        let publisher = rig.join(client("p"));
        for at in 0..30 {
            rig.publish_with(publisher, &format!("t/{at:02}"), "12", 0b011, 1, &[]);
        }
        // Longer than the whole queue may be: a client that is there can take it all the same.
        rig.publish_with(publisher, "t/99", &"long".repeat(10), 0b011, 1, &[]);
        let id = rig.join(client("s"));
        rig.subscribe_with(id, &[("t/#", 1)], &[]);
        let mut count = 0;
        for _ in 0..200 {
            let session = rig.core.sessions().into_iter().find(|session| session.client.as_str() == "s").unwrap();
            assert!(session.queued_messages <= messages, "{session:?}");
            assert!(session.queued_bytes <= bytes.max(50), "{session:?}");
            for text in rig.take(id).iter().filter(|text| text.starts_with("PUBLISH")) {
                count += 1;
                if let Some(packet_id) = text.split(' ').find_map(|part| part.strip_prefix('#')) {
                    rig.puback(id, packet_id.parse().unwrap());
                }
            }
            rig.handle_timer();
        }
        assert_eq!((count, rig.core.counters().dropped.queue_full), (31, 0));
    }
}
