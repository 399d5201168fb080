use crate::rig::{Rig, client};

#[test]
fn wildcards_match_at_any_level() {
    // [MQTT-4.7.1-1] to [MQTT-4.7.1-3]; 3.1.1 [MQTT-4.7.1-2], [MQTT-4.7.1-3]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    for filter in ["a/+/c", "+/x", "deep/#", "exact", "/+"] {
        rig.subscribe(subscriber, filter, 0);
    }
    let publisher = rig.join(client("p"));
    for topic in ["a/b/c", "a/b/d", "y/x", "deep", "deep/1/2/3", "exact", "exact/more", "/lead", "other"] {
        rig.publish(publisher, topic, "", 0, 0);
    }
    let topics: Vec<String> =
        rig.take(subscriber).iter().map(|text| text.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(topics, ["a/b/c", "y/x", "deep", "deep/1/2/3", "exact", "/lead"]);
}

#[test]
fn topics_that_begin_with_a_dollar_are_kept_out_of_wildcards() {
    // [MQTT-4.7.2-1]
    let mut rig = Rig::with_acl("pattern readwrite #\npattern readwrite $x/#\n");
    let all = rig.join(client("all"));
    rig.subscribe(all, "#", 0);
    rig.subscribe(all, "+/b", 0);
    let some = rig.join(client("some"));
    rig.subscribe(some, "$x/#", 0);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "$x/b", "1", 0, 0);
    assert!(rig.take(all).is_empty());
    assert_eq!(rig.take(some), ["PUBLISH $x/b 1"]);
}

#[test]
fn overlapping_subscriptions_bring_one_copy_at_the_highest_qos_with_all_identifiers() {
    // [MQTT-3.3.4-2], [MQTT-3.3.4-3], [MQTT-3.3.4-4], [MQTT-3.3.4-5]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    for (filter, qos, identifier) in [("a/#", 0, 1), ("a/+", 2, 300), ("a/b", 1, 3)] {
        let properties: &[u8] = if identifier < 128 { &[0x0B, identifier as u8] } else { &[0x0B, 0xAC, 0x02] };
        rig.subscribe_with(subscriber, &[(filter, qos)], properties);
    }
    rig.subscribe_with(subscriber, &[("#", 0)], &[]);
    rig.take(subscriber);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "a/b", "x", 2, 1);
    let got = rig.take(subscriber);
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got[0].starts_with("PUBLISH a/b x q2 #1"), "{got:?}");
    let mut identifiers: Vec<&str> = got[0].split(" sub=").skip(1).collect();
    identifiers.sort_unstable();
    assert_eq!(identifiers, ["1", "3", "300"]);
}

#[test]
fn subscribing_again_replaces_and_each_filter_has_its_answer_in_order() {
    // [MQTT-3.8.4-1] to [MQTT-3.8.4-6], [MQTT-3.9.3-1]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    rig.subscribe_with(subscriber, &[("t", 2), ("u", 0), ("bad/#/x", 1), ("v", 1)], &[]);
    assert_eq!(rig.take(subscriber), ["SUBACK #1 2,0,0x8f,1"]);
    rig.subscribe(subscriber, "t", 0);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "x", 2, 1);
    assert_eq!(rig.take(subscriber), ["PUBLISH t x"]);
    assert_eq!(rig.core.gauges().subscriptions, 3);
    let old = rig.join(client("o").v311());
    rig.subscribe_with(old, &[("t", 1), ("a#", 1)], &[]);
    assert_eq!(rig.take(old), ["SUBACK #1 1,0x80"]);
}

#[test]
fn a_subscribe_without_a_filter_or_with_reserved_bits_is_refused() {
    // [MQTT-3.8.3-2], [MQTT-3.8.3-5], [MQTT-3.8.3-4]
    let mut rig = Rig::new();
    for (bytes, reason) in [
        (&[0x82, 3, 0, 1, 0][..], "DISCONNECT 0x82"),
        (&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x40], "DISCONNECT 0x81"),
        (&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x03], "DISCONNECT 0x82"),
        (&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x30], "DISCONNECT 0x82"),
        (
            &[0x82, 16, 0, 1, 0, 0, 10, b'$', b's', b'h', b'a', b'r', b'e', b'/', b'g', b'/', b'a', 0x04],
            "DISCONNECT 0x82",
        ),
    ] {
        let id = rig.join(client("s"));
        rig.send_bytes(id, bytes);
        assert_eq!(rig.take(id), [reason], "{bytes:02x?}");
    }
}

#[test]
fn unsubscribing_stops_delivery_and_says_what_there_was() {
    // [MQTT-3.10.4-1], [MQTT-3.10.4-2], [MQTT-3.10.4-4], [MQTT-3.11.3-1]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "a/+", 0);
    rig.unsubscribe(subscriber, "a/b");
    assert_eq!(rig.take(subscriber), ["UNSUBACK #1 0x11"]);
    rig.unsubscribe(subscriber, "a/+");
    assert_eq!(rig.take(subscriber), ["UNSUBACK #1 0x00"]);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "a/b", "x", 0, 0);
    assert!(rig.take(subscriber).is_empty());
    let old = rig.join(client("o").v311());
    rig.unsubscribe(old, "never");
    assert_eq!(rig.take(old), ["UNSUBACK #1"]);
}

#[test]
fn messages_already_on_their_way_are_finished_after_unsubscribe() {
    // [MQTT-3.10.4-3]
    let mut rig = Rig::new();
    let subscriber = rig.join(client("s"));
    rig.subscribe(subscriber, "t", 2);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "x", 2, 1);
    rig.take(subscriber);
    rig.unsubscribe(subscriber, "t");
    rig.ack(subscriber, 0x50, 1);
    assert_eq!(rig.take(subscriber), ["UNSUBACK #1 0x00", "PUBREL #1"]);
}

#[test]
fn no_local_keeps_a_clients_own_messages_from_it() {
    // [MQTT-3.8.3-3]
    let mut rig = Rig::new();
    let both = rig.join(client("both"));
    rig.subscribe_with(both, &[("t", 0b100)], &[]);
    rig.take(both);
    rig.publish(both, "t", "mine", 0, 0);
    assert!(rig.take(both).is_empty());
    let other = rig.join(client("other"));
    rig.publish(other, "t", "yours", 0, 0);
    assert_eq!(rig.take(both), ["PUBLISH t yours"]);
}

#[test]
fn a_shared_subscription_gives_each_message_to_one_member_in_turn() {
    // [MQTT-4.8.2-4]
    let mut rig = Rig::new();
    let members: Vec<_> = ["m1", "m2", "m3"].map(|name| rig.join(client(name))).to_vec();
    for member in &members {
        rig.subscribe(*member, "$share/group/t/#", 1);
    }
    let alone = rig.join(client("alone"));
    rig.subscribe(alone, "t/#", 1);
    let publisher = rig.join(client("p"));
    for at in 1..=6 {
        rig.publish(publisher, "t/x", &at.to_string(), 1, at);
    }
    assert_eq!(members.iter().map(|member| rig.take(*member).len()).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(rig.take(alone).len(), 6);
    // What the one that goes had not acknowledged goes to the others.
    rig.lose(members[0]);
    let taken_over: usize = members[1..].iter().map(|member| rig.take(*member).len()).sum();
    assert_eq!(taken_over, 2);
    for at in 7..=10 {
        rig.publish(publisher, "t/x", &at.to_string(), 1, at);
    }
    assert_eq!(rig.take(members[1]).len() + rig.take(members[2]).len(), 4);
}

#[test]
fn a_shared_subscription_passes_over_who_may_not_read() {
    let mut rig = Rig::with_acl("user a\ntopic read t/a/#\nuser b\ntopic read t/#\nuser p\ntopic write #\n");
    let (a, b) = (rig.join(client("a")), rig.join(client("b")));
    rig.subscribe(a, "$share/g/t/#", 0);
    rig.subscribe(b, "$share/g/t/#", 0);
    let publisher = rig.join(client("p"));
    for _ in 0..4 {
        rig.publish(publisher, "t/b", "x", 0, 0);
    }
    assert_eq!((rig.take(a).len(), rig.take(b).len()), (0, 4));
}
