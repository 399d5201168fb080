//! What a broker goes on with that takes up where another ended (design section 5), and what the clocks
//! have to say in that. On one shard: more than one keep nothing on disk.

use std::time::Duration;

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{ConnectionId, Limits};
use lockgate::codec::{Will, WillProperties};
use lockgate::types::QoS;

use crate::rig::{Client, Rig, client};

/// Some time in 2026.
const WALL: u64 = 1_780_000_000;
const DAY: u64 = 86_400;

fn durable() -> Rig {
    let mut rig = Rig::on(1, Limits::default(), Acl::open(), true, Methods::default());
    rig.set_wall(WALL, None);
    rig
}

/// A session of "s" with a subscription to `t` at QoS 2, that nobody is connected to.
fn with_absent_subscriber(rig: &mut Rig) {
    let id = rig.join(client("s").kept());
    rig.subscribe(id, "t", 2);
    rig.lose(id);
}

fn publisher(rig: &mut Rig) -> ConnectionId {
    rig.join(client("p").kept())
}

fn with_expiry(secs: u32) -> Vec<u8> {
    [&[0x02][..], &secs.to_be_bytes()].concat()
}

#[test]
fn a_session_goes_on_with_its_subscriptions_and_what_waits_for_it() {
    // [MQTT-3.1.2-5], [MQTT-4.4.0-1]
    let mut rig = durable();
    with_absent_subscriber(&mut rig);
    let p = publisher(&mut rig);
    rig.publish(p, "t", "1", 1, 1);
    rig.publish(p, "t", "2", 2, 2);
    rig.restart();
    let s = rig.join_present("s", &["PUBLISH t 1 q1 #1", "PUBLISH t 2 q2 #2"]);
    let p = publisher(&mut rig);
    rig.publish(p, "t", "3", 1, 3);
    assert_eq!(rig.take(s), ["PUBLISH t 3 q1 #3"]);
}

#[test]
fn what_was_sent_comes_again_under_its_identifier_with_dup() {
    // [MQTT-4.4.0-1], [MQTT-3.3.1-1]
    let mut rig = durable();
    let s = rig.join(client("s").kept());
    rig.subscribe(s, "t", 2);
    let p = publisher(&mut rig);
    for (payload, qos, packet_id) in [("1", 1, 1), ("2", 2, 2), ("3", 2, 3)] {
        rig.publish(p, "t", payload, qos, packet_id);
    }
    // PUBREC for the second: only PUBREL is to come [MQTT-4.3.3-6].
    rig.ack(s, 0x50, 2);
    rig.take(s);
    rig.restart();
    rig.join_present("s", &["PUBREL #2", "PUBLISH t 1 q1 #1 dup", "PUBLISH t 3 q2 #3 dup"]);
}

#[test]
fn an_inbound_qos_2_identifier_is_known_until_it_is_released() {
    // [MQTT-4.3.3-10]
    let mut rig = durable();
    with_absent_subscriber(&mut rig);
    let p = publisher(&mut rig);
    rig.publish(p, "t", "once", 2, 7);
    assert_eq!(rig.take(p), ["PUBREC #7"]);
    rig.restart();
    let p = rig.connect(client("p").kept());
    rig.take(p);
    rig.publish_with(p, "t", "once", 0b1100, 7, &[]);
    assert_eq!(rig.take(p), ["PUBREC #7"]);
    rig.ack(p, 0x62, 7);
    assert_eq!(rig.take(p), ["PUBCOMP #7"]);
    rig.join_present("s", &["PUBLISH t once q2 #1"]);
}

#[test]
fn retained_messages_are_there_again_and_what_was_cleared_is_not() {
    // [MQTT-3.3.1-5]
    let mut rig = durable();
    let p = publisher(&mut rig);
    rig.publish_with(p, "r/1", "old", 0b11, 1, &[]);
    rig.publish_with(p, "r/1", "new", 0b11, 2, &[]);
    rig.publish_with(p, "r/2", "gone", 0b11, 3, &[]);
    rig.publish_with(p, "r/2", "", 0b11, 4, &[]);
    rig.publish_with(p, "r/3", "at QoS 0", 0b01, 0, &[]);
    rig.restart();
    let s = rig.join(client("s"));
    rig.subscribe_with(s, &[("r/#", 1)], &[]);
    rig.advance(Duration::ZERO);
    assert_eq!(rig.take(s), ["SUBACK #1 1", "PUBLISH r/1 new q1 #1 retain", "PUBLISH r/3 at QoS 0 retain"]);
}

#[test]
fn whoever_was_connected_is_gone_and_its_will_is_published() {
    // [MQTT-3.1.2-8]
    let mut rig = durable();
    let watcher = rig.join(client("s").kept());
    rig.subscribe(watcher, "will", 1);
    rig.join(with_will("a", 0));
    rig.restart();
    rig.join_present("s", &["PUBLISH will gone q1 #1"]);
}

fn with_will(id: &str, delay_secs: u32) -> Client<'_> {
    let mut properties = WillProperties::default();
    properties.delay_interval = delay_secs;
    let will = Will { qos: QoS::AtLeastOnce, retain: false, properties, topic: "will", payload: b"gone" };
    Client { will: Some(will), ..client(id).kept() }
}

#[test]
fn a_delayed_will_waits_for_the_rest_of_its_delay_and_for_its_client() {
    // [MQTT-3.1.3-9]
    for returns in [false, true] {
        let mut rig = durable();
        let watcher = rig.join(client("s").kept());
        rig.subscribe(watcher, "will", 1);
        let a = rig.join(with_will("a", 60));
        rig.lose(a);
        rig.advance(Duration::from_secs(40));
        rig.set_wall(WALL + 40, None);
        // Something is written, so that the store knows how late it is.
        publisher(&mut rig);
        rig.restart();
        let watcher = rig.join_present("s", &[]);
        rig.advance(Duration::from_secs(19));
        assert!(rig.take(watcher).is_empty());
        if returns {
            rig.join(client("a").kept());
        }
        rig.advance(Duration::from_secs(2));
        assert_eq!(rig.take(watcher).len(), usize::from(!returns));
    }
}

/// Publishes with 60 seconds to live, lets `ran` seconds pass, restarts when the wall says `wall`, and
/// gives what the subscriber gets.
fn after_restart(ran: u64, before: (u64, Option<bool>), after: (u64, Option<bool>)) -> Vec<String> {
    let mut rig = durable();
    with_absent_subscriber(&mut rig);
    let p = publisher(&mut rig);
    rig.publish_with(p, "t", "x", 0b10, 1, &with_expiry(60));
    rig.advance(Duration::from_secs(ran));
    rig.set_wall(before.0, before.1);
    rig.publish(p, "nobody", "", 1, 2);
    rig.disconnect(p);
    rig.set_wall(after.0, after.1);
    rig.restart();
    let id = rig.connect(client("s").kept());
    rig.take(id)
}

#[test]
fn downtime_counts_where_both_clocks_can_be_believed() {
    let there = |left: u32| vec!["CONNACK present".to_owned(), format!("PUBLISH t x q1 #1 expiry={left}")];
    let sane = |secs: u64| (WALL + secs, None);
    // Ten seconds of running, twenty of downtime.
    assert_eq!(after_restart(10, sane(10), sane(30)), there(30));
    // A long downtime: its time is up [MQTT-3.3.2-5].
    assert_eq!(after_restart(10, sane(10), sane(2_000)), ["CONNACK present"]);
}

#[test]
fn a_clock_that_jumps_while_the_broker_runs_changes_nothing() {
    let there = |left: u32| vec!["CONNACK present".to_owned(), format!("PUBLISH t x q1 #1 expiry={left}")];
    for jumped in [WALL + 300 * DAY, WALL - 300 * DAY] {
        let sane = (jumped, None);
        assert_eq!(after_restart(10, sane, sane), there(50), "{jumped}");
    }
}

#[test]
fn a_clock_that_jumped_back_or_was_never_set_lets_nothing_expire() {
    let there = |left: u32| vec!["CONNACK present".to_owned(), format!("PUBLISH t x q1 #1 expiry={left}")];
    let before = (WALL + 10, None);
    // Back by a day; a boot in 1970; a clock that the system says is not synchronised.
    for after in [(WALL - DAY, None), (5, None), (WALL + 2_000, Some(false))] {
        assert_eq!(after_restart(10, before, after), there(50), "{after:?}");
    }
    // The broker ran in 1970, and the clock was set before the restart: how long it was down nobody knows.
    assert_eq!(after_restart(10, (100, None), (WALL, None)), there(50));
    assert_eq!(after_restart(10, (WALL, Some(false)), (WALL + 2_000, Some(true))), there(50));
}

#[test]
fn a_session_whose_time_ran_out_meanwhile_is_gone_with_its_will_published() {
    // [MQTT-3.1.3-9]: the will at the latest when the session ends.
    let mut rig = durable();
    let watcher = rig.join(client("s").kept());
    rig.subscribe(watcher, "will", 1);
    rig.join(with_will("a", 100_000));
    rig.set_wall(WALL + 1_800, None);
    rig.restart();
    // Half of its hour is left.
    let watcher = rig.join_present("s", &[]);
    let a = rig.connect(client("a").kept());
    assert_eq!(rig.take(a), ["CONNACK present"]);
    rig.lose(a);
    rig.join(with_will("b", 100_000));
    rig.take(watcher);
    rig.set_wall(WALL + 1_800 + 2 * 3_600, None);
    rig.restart();
    let b = rig.connect(client("b").kept());
    assert_eq!(rig.take(b), ["CONNACK"]);
}

impl Rig {
    /// Takes up a session, and reads CONNACK and what comes with it.
    fn join_present(&mut self, id: &str, expected: &[&str]) -> ConnectionId {
        let connection = self.connect(client(id).kept());
        let got = self.take(connection);
        assert_eq!(got[0], "CONNACK present");
        assert_eq!(got[1..], *expected);
        connection
    }
}
