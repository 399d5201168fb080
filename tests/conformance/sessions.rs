//! Connections, sessions and wills.

use std::time::Duration;

use lockgate::broker::{Closing, Command};
use lockgate::codec::{Version, Will, WillProperties};
use lockgate::types::QoS;

use crate::rig::{Client, Rig, client, framed};

fn with_will(id: &str, retain: bool) -> Client<'_> {
    let properties = WillProperties::default();
    Client {
        will: Some(Will { qos: QoS::AtMostOnce, retain, properties, topic: "will", payload: b"gone" }),
        ..client(id)
    }
}

#[test]
fn a_will_is_retained_only_if_it_says_so() {
    // [MQTT-3.1.2-14], [MQTT-3.1.2-15]; [MQTT-3.1.2-16], [MQTT-3.1.2-17] of 3.1.1
    for version in [Version::V311, Version::V5] {
        for retain in [false, true] {
            let mut rig = Rig::new();
            let id = rig.join(Client { version, ..with_will("a", retain) });
            rig.lose(id);
            assert_eq!(rig.core.gauges().retained_messages, usize::from(retain));
            let late = rig.join(client("late"));
            rig.subscribe_with(late, &[("will", 0)], &[]);
            assert_eq!(rig.take(late).len(), 1 + usize::from(retain));
        }
    }
}

#[test]
fn without_a_will_flag_no_will_is_published() {
    // [MQTT-3.1.2-12] of 3.1.1; [MQTT-3.1.2-10]
    let mut rig = Rig::new();
    let watcher = rig.join(client("watcher"));
    rig.subscribe(watcher, "#", 0);
    let kept = |will: bool| {
        let base = if will { with_will("a", false) } else { client("a") };
        Client { version: Version::V311, clean_start: false, ..base }
    };
    let id = rig.connect(kept(true));
    rig.lose(id);
    assert_eq!(rig.take(watcher), ["PUBLISH will gone"]);
    let id = rig.connect(kept(false));
    rig.lose(id);
    let id = rig.connect(kept(false));
    rig.disconnect(id);
    assert!(rig.take(watcher).is_empty());
}

#[test]
fn a_session_lasts_as_long_as_its_connection_however_long_that_is() {
    // [MQTT-4.1.0-1]; [MQTT-4.1.0-1], [MQTT-4.1.0-2] of 3.1.1
    let mut rig = Rig::limited(|limits| limits.session_expiry_secs_max = 60);
    let publisher = rig.join(client("p"));
    let mut ids = Vec::new();
    for (name, clean_start) in [("clean", true), ("kept", false), ("returned", false)] {
        let id = rig.join(Client { clean_start, ..client(name).v311() });
        rig.subscribe(id, "t", 0);
        ids.push(id);
    }
    rig.lose(ids[2]);
    rig.advance(Duration::from_secs(50));
    ids[2] = rig.connect(Client { clean_start: false, ..client("returned").v311() });
    assert_eq!(rig.take(ids[2]), ["CONNACK present"]);
    rig.advance(Duration::from_secs(3_600));
    rig.publish(publisher, "t", "x", 0, 0);
    for id in ids {
        assert_eq!(rig.take(id), ["PUBLISH t x"]);
    }
}

#[test]
fn what_follows_a_refused_connect_is_not_processed() {
    // [MQTT-3.1.4-6]; [MQTT-3.1.4-5] of 3.1.1
    let mut rig = Rig::new();
    rig.join(client("mine"));
    let watcher = rig.join(client("watcher"));
    rig.subscribe(watcher, "#", 0);
    let thief = rig.connect(Client { identity: Some("thief"), ..client("mine") });
    assert_eq!(rig.take(thief), ["CONNACK 0x87"]);
    rig.publish(thief, "t", "x", 0, 0);
    assert!(rig.take(watcher).is_empty());
    assert_eq!(rig.core.counters().publishes_received, [0; 3]);
    // While CONNACK waits for the store, packets have to rest.
    let mut rig = Rig::durable();
    rig.out.store.hold();
    let id = rig.connect(client("c").kept());
    assert!(rig.core.must_wait(id));
    rig.commit(1);
    assert!(!rig.core.must_wait(id));
    assert_eq!(rig.take(id), ["CONNACK"]);
}

#[test]
fn no_disconnect_comes_before_connack() {
    // [MQTT-3.14.0-1], [MQTT-3.2.0-1]
    type Ending = fn(&mut Rig, lockgate::broker::ConnectionId);
    let endings: [Ending; 5] = [
        |rig, id| rig.send_bytes(id, &framed(0x10, &[0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 1, b'x'])),
        |rig, id| rig.send_bytes(id, &[0xC1, 0]),
        |rig, id| rig.command(Command::Kick(id, Closing::Kicked)),
        |rig, _| rig.command(Command::ShutDown),
        |rig, _| {
            rig.connect(client("c").kept());
        },
    ];
    for ending in endings {
        let mut rig = Rig::durable();
        rig.out.store.hold();
        let id = rig.connect(client("c").kept());
        ending(&mut rig, id);
        assert!(rig.take(id).is_empty() && rig.closing(id).is_some());
    }
}

#[test]
fn a_connect_that_could_not_be_kept_changes_nothing() {
    // [MQTT-3.2.2-3]; [MQTT-3.2.2-3] of 3.1.1: the session that was never granted is not said to be there.
    let mut rig = Rig::durable();
    rig.out.store.set_failing(true);
    let id = rig.connect(client("new").kept());
    assert_eq!(rig.take(id), ["CONNACK 0x97"]);
    rig.out.store.set_failing(false);
    let id = rig.connect(client("new").kept());
    assert_eq!(rig.take(id), ["CONNACK"]);
    rig.disconnect(id);
    // A delayed will waits on.
    let watcher = rig.join(client("watcher"));
    rig.subscribe(watcher, "will", 0);
    let mut dying = with_will("dying", false).kept();
    dying.will.as_mut().unwrap().properties.delay_interval = 100;
    let id = rig.join(dying);
    rig.lose(id);
    rig.out.store.hold();
    let id = rig.connect(client("dying").kept());
    rig.lose(id);
    assert!(rig.take(id).is_empty());
    rig.commit(10);
    rig.advance(Duration::from_secs(99));
    assert!(rig.take(watcher).is_empty());
    rig.advance(Duration::from_secs(2));
    assert_eq!(rig.take(watcher), ["PUBLISH will gone"]);
}

#[test]
fn a_servers_disconnect_has_no_session_expiry() {
    // [MQTT-3.14.2-2]
    let mut rig = Rig::new();
    let id = rig.join(client("a").kept());
    rig.command(Command::Kick(id, Closing::Kicked));
    assert_eq!(rig.take(id), ["DISCONNECT 0x98"]);
    let id = rig.connect(client("a").kept());
    rig.take(id);
    let other = rig.connect(client("a").kept());
    assert_eq!(rig.take(id), ["DISCONNECT 0x8e"]);
    rig.take(other);
    rig.command(Command::ShutDown);
    assert_eq!(rig.take(other), ["DISCONNECT 0x8b"]);
}

#[test]
fn response_information_comes_to_those_who_ask() {
    // [MQTT-3.1.2-28]
    let mut rig = Rig::limited(|limits| limits.response_information = Some("replies/%c".into()));
    let silent = rig.connect(client("a"));
    assert_eq!(rig.take(silent), ["CONNACK"]);
    let mut asking = client("b");
    asking.properties.request_response_information = true;
    let asking = rig.connect(asking);
    assert_eq!(rig.take(asking), ["CONNACK response-information=replies/b"]);
    let mut rig = Rig::new();
    let mut asking = client("b");
    asking.properties.request_response_information = true;
    let asking = rig.connect(asking);
    assert_eq!(rig.take(asking), ["CONNACK"]);
}

#[test]
fn a_will_that_cannot_be_is_refused() {
    // [MQTT-3.2.2-6] of 3.1.1: no return code fits, so none is sent.
    let mut rig = Rig::limited(|limits| limits.topic_levels_max = 3);
    let will = Will {
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
        topic: "a/b/c/d",
        payload: b"",
    };
    let id = rig.connect(Client { will: Some(will), ..client("c").v311() });
    assert!(rig.take(id).is_empty());
    assert_eq!(rig.closing(id), Some(Closing::WillInvalid));
    let id = rig.connect(Client { will: Some(will), ..client("c") });
    assert_eq!(rig.take(id), ["CONNACK 0x90"]);
}
