use std::time::Duration;

use lockgate::broker::ConnectionId;
use lockgate::codec::{Version, Will, WillProperties};
use lockgate::types::QoS;

use crate::rig::{Client, Rig, client};

fn with_will(id: &str, delay_secs: u32) -> Client<'_> {
    let mut properties = WillProperties::default();
    properties.delay_interval = delay_secs;
    let will = Will { qos: QoS::AtLeastOnce, retain: false, properties, topic: "will", payload: b"gone" };
    Client { will: Some(will), ..client(id) }
}

fn watcher(rig: &mut Rig) -> ConnectionId {
    let id = rig.join(client("watcher"));
    rig.subscribe(id, "will", 1);
    id
}

#[test]
fn a_will_is_published_when_the_connection_is_lost() {
    // [MQTT-3.1.2-8]
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    for version in [Version::V31, Version::V311, Version::V5] {
        let id = rig.join(Client { version, ..with_will("a", 0) });
        rig.lose(id);
        let got = rig.take(watcher);
        assert!(got.len() == 1 && got[0].starts_with("PUBLISH will gone q1"), "{version}: {got:?}");
    }
}

#[test]
fn a_normal_disconnect_withdraws_the_will() {
    // [MQTT-3.1.2-10], [MQTT-3.14.4-3]
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let id = rig.join(with_will("a", 0));
    rig.disconnect(id);
    assert!(rig.take(watcher).is_empty());
}

#[test]
fn a_disconnect_can_ask_for_the_will() {
    // Section 3.14.2.1: 0x04
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let id = rig.join(with_will("a", 0));
    rig.send_bytes(id, &[0xE0, 1, 0x04]);
    assert_eq!(rig.take(watcher).len(), 1);
}

#[test]
fn keep_alive_violation_and_takeover_publish_the_will() {
    // [MQTT-3.1.2-8]
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    rig.join(Client { keep_alive: 1, ..with_will("a", 0) });
    rig.advance(Duration::from_secs(2));
    assert_eq!(rig.take(watcher).len(), 1);
    let bad = rig.join(with_will("b", 0));
    rig.send_bytes(bad, &[0xD0, 0]);
    assert_eq!(rig.take(watcher).len(), 1);
    rig.join(with_will("c", 0).kept());
    rig.join(client("c").kept());
    assert_eq!(rig.take(watcher).len(), 1);
}

#[test]
fn a_delayed_will_waits_and_a_return_withdraws_it() {
    // [MQTT-3.1.3-9]
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let id = rig.join(with_will("a", 10).kept());
    rig.lose(id);
    rig.advance(Duration::from_secs(9));
    assert!(rig.take(watcher).is_empty());
    let id = rig.join(with_will("a", 10).kept());
    rig.advance(Duration::from_secs(20));
    assert!(rig.take(watcher).is_empty());
    rig.lose(id);
    rig.advance(Duration::from_secs(11));
    assert_eq!(rig.take(watcher).len(), 1);
    rig.advance(Duration::from_secs(100));
    assert!(rig.take(watcher).is_empty());
}

#[test]
fn a_delayed_will_comes_at_the_sessions_end_at_the_latest() {
    // Section 3.1.3.2.2: the earlier of both.
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let mut short = with_will("a", 60).kept();
    short.properties.session_expiry_interval = Some(5);
    let id = rig.join(short);
    rig.lose(id);
    rig.advance(Duration::from_secs(4));
    assert!(rig.take(watcher).is_empty());
    rig.advance(Duration::from_secs(2));
    assert_eq!(rig.take(watcher).len(), 1);
    // A session without expiry ends with its connection; a clean start ends one too.
    let id = rig.join(with_will("b", 60));
    rig.lose(id);
    assert_eq!(rig.take(watcher).len(), 1);
    let id = rig.join(with_will("c", 60).kept());
    rig.lose(id);
    rig.join(Client { clean_start: true, ..client("c") });
    assert_eq!(rig.take(watcher).len(), 1);
}

#[test]
fn a_will_can_be_retained() {
    // [MQTT-3.1.2-14], [MQTT-3.1.2-15]
    let mut rig = Rig::new();
    let mut retained = with_will("a", 0);
    retained.will.as_mut().unwrap().retain = true;
    let id = rig.join(retained);
    rig.lose(id);
    let late = rig.join(client("late"));
    rig.subscribe_with(late, &[("will", 0)], &[]);
    assert_eq!(rig.take(late), ["SUBACK #1 0", "PUBLISH will gone retain"]);
}

#[test]
fn a_will_that_says_it_is_utf_8_has_to_be() {
    // Section 3.1.3.2.3: 0x99
    let mut rig = Rig::new();
    let mut bad = with_will("a", 0);
    let will = bad.will.as_mut().unwrap();
    will.properties.payload_is_utf8 = true;
    will.payload = &[0xFF];
    let id = rig.connect(bad);
    assert_eq!(rig.take(id), ["CONNACK 0x99"]);
}
