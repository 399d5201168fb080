use std::time::Duration;

use lockgate::broker::{Closing, Command, Violation};
use lockgate::codec::Version;
use lockgate::types::{Identity, ReasonCode};

use crate::rig::{Client, Rig, client};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_session_is_taken_up_and_said_to_be_there() {
    // [MQTT-3.1.2-4], [MQTT-3.1.2-5], [MQTT-3.1.2-6], [MQTT-3.2.2-2], [MQTT-3.2.2-3]
    let mut rig = Rig::new();
    let first = rig.connect(client("a").kept());
    assert_eq!(rig.take(first), ["CONNACK"]);
    rig.subscribe(first, "t", 1);
    rig.lose(first);
    let publisher = rig.join(client("p"));
    rig.publish(publisher, "t", "x", 1, 1);
    let second = rig.connect(client("a").kept());
    assert_eq!(rig.take(second), ["CONNACK present", "PUBLISH t x q1 #1"]);
    rig.disconnect(second);
    let clean = rig.connect(Client { clean_start: true, ..client("a").kept() });
    assert_eq!(rig.take(clean), ["CONNACK"]);
    rig.publish(publisher, "t", "y", 1, 2);
    assert!(rig.take(clean).is_empty());
}

#[test]
fn before_mqtt_5_clean_session_says_how_it_starts_and_ends() {
    // 3.1.1: [MQTT-3.1.2-4], [MQTT-3.1.2-6], [MQTT-3.2.2-1], [MQTT-3.2.2-2]
    let mut rig = Rig::new();
    for version in [Version::V31, Version::V311] {
        let kept = |clean_start| Client { clean_start, version, ..client("old") };
        let first = rig.join(kept(false));
        rig.disconnect(first);
        let second = rig.connect(kept(false));
        // MQTT 3.1 has no flag for it.
        let present = if version == Version::V31 { "CONNACK" } else { "CONNACK present" };
        assert_eq!(rig.take(second), [present]);
        rig.disconnect(second);
        let third = rig.join(kept(true));
        rig.disconnect(third);
        let fourth = rig.connect(kept(false));
        assert_eq!(rig.take(fourth), ["CONNACK"]);
        rig.disconnect(fourth);
        let last = rig.join(kept(true));
        rig.disconnect(last);
    }
}

#[test]
fn takeover_disconnects_the_old_client() {
    // [MQTT-3.1.4-3]; before MQTT 5 it is closed: 3.1.1 [MQTT-3.1.4-2]
    let mut rig = Rig::new();
    let old = rig.join(client("a").kept());
    let new = rig.connect(client("a").kept());
    assert_eq!(rig.take(old), ["DISCONNECT 0x8e"]);
    assert_eq!(rig.closing(old), Some(Closing::TakenOver));
    assert_eq!(rig.take(new), ["CONNACK present"]);
    let old = rig.join(client("b").v311());
    rig.connect(client("b").v311());
    assert!(rig.take(old).is_empty());
    assert_eq!(rig.closing(old), Some(Closing::TakenOver));
    assert_eq!(rig.core.counters().takeovers, 2);
}

#[test]
fn a_session_belongs_to_the_identity_that_made_it() {
    // design: another identity with the same client id gets 0x87 / 5, never the session.
    let mut rig = Rig::new();
    let owner = rig.join(client("a").kept());
    let thief = rig.connect(Client { identity: Some("thief"), ..client("a").kept() });
    assert_eq!(rig.take(thief), ["CONNACK 0x87"]);
    assert_eq!(rig.closing(thief), Some(Closing::NotOwner));
    let clean_thief = rig.connect(Client { identity: Some("thief"), ..client("a").v311() });
    assert_eq!(rig.take(clean_thief), ["CONNACK 0x87"]);
    let nobody = rig.connect(Client { identity: None, ..client("a") });
    assert_eq!(rig.take(nobody), ["CONNACK 0x87"]);
    // The owner noticed nothing, and its session is there when it was away.
    assert!(rig.take(owner).is_empty() && rig.closing(owner).is_none());
    rig.lose(owner);
    let thief = rig.connect(Client { identity: Some("thief"), ..client("a") });
    assert_eq!(rig.take(thief), ["CONNACK 0x87"]);
    let owner = rig.connect(client("a").kept());
    assert_eq!(rig.take(owner), ["CONNACK present"]);
}

#[test]
fn a_session_ends_when_its_time_is_over() {
    // [MQTT-3.1.2-23], [MQTT-4.1.0-2]
    let mut rig = Rig::new();
    let with = |secs| {
        let mut with = client("a").kept();
        with.properties.session_expiry_interval = Some(secs);
        with
    };
    let first = rig.join(with(10));
    rig.lose(first);
    rig.advance(9 * SECOND);
    let second = rig.connect(with(10));
    assert_eq!(rig.take(second), ["CONNACK present"]);
    rig.lose(second);
    rig.advance(11 * SECOND);
    assert_eq!(rig.core.gauges().sessions, 0);
    let third = rig.connect(with(u32::MAX));
    assert_eq!(rig.take(third), ["CONNACK"]);
    rig.lose(third);
    rig.advance(Duration::from_secs(100 * 365 * 86_400));
    assert_eq!(rig.core.gauges().sessions, 1);
}

#[test]
fn disconnect_can_change_the_session_expiry_but_not_raise_it_from_zero() {
    // Section 3.14.2.2.2, [MQTT-3.14.2-2]
    let mut rig = Rig::new();
    let kept = rig.join(client("a").kept());
    rig.send_bytes(kept, &[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 5]);
    assert_eq!(rig.closing(kept), Some(Closing::ByClient(ReasonCode::Success)));
    rig.advance(6 * SECOND);
    assert_eq!(rig.core.gauges().sessions, 0);
    let clean = rig.join(client("b"));
    rig.send_bytes(clean, &[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 5]);
    assert_eq!(rig.take(clean), ["DISCONNECT 0x82"]);
    assert_eq!(rig.closing(clean), Some(Closing::Violation(Violation::SessionExpiryRaised)));
}

#[test]
fn a_longer_session_expiry_than_allowed_is_cut_and_told() {
    // Section 3.2.2.3.2
    let mut rig = Rig::limited(|limits| limits.session_expiry_secs_max = 60);
    let id = rig.connect(client("a").kept());
    assert_eq!(rig.take(id), ["CONNACK expiry=60"]);
}

#[test]
fn silence_for_one_and_a_half_times_the_keep_alive_ends_the_connection() {
    // [MQTT-3.1.2-22]
    let mut rig = Rig::new();
    let id = rig.join(Client { keep_alive: 10, ..client("a") });
    rig.advance(14 * SECOND);
    rig.send_bytes(id, &[0xC0, 0]);
    assert_eq!(rig.take(id), ["PINGRESP"]);
    rig.advance(14 * SECOND);
    assert_eq!(rig.closing(id), None);
    rig.advance(2 * SECOND);
    assert_eq!(rig.take(id), ["DISCONNECT 0x8d"]);
    assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::KeepAlive)));
    let patient = rig.join(client("b"));
    rig.advance(Duration::from_secs(1_000_000));
    assert_eq!(rig.closing(patient), None);
}

#[test]
fn the_server_can_shorten_the_keep_alive() {
    // [MQTT-3.2.2-21], [MQTT-3.2.2-22]
    let mut rig = Rig::limited(|limits| limits.keep_alive_secs_max = 30);
    let id = rig.connect(Client { keep_alive: 600, ..client("a") });
    assert_eq!(rig.take(id), ["CONNACK keep-alive=30"]);
    rig.advance(46 * SECOND);
    assert_eq!(rig.take(id), ["DISCONNECT 0x8d"]);
    // None asked for is more than allowed; a shorter one is the client's.
    let none = rig.connect(client("b"));
    assert_eq!(rig.take(none), ["CONNACK keep-alive=30"]);
    let short = rig.connect(Client { keep_alive: 5, ..client("c") });
    assert_eq!(rig.take(short), ["CONNACK"]);
}

#[test]
fn an_assigned_client_id_is_told() {
    // [MQTT-3.2.2-16]
    let mut rig = Rig::new();
    let id = rig.connect(Client { assigned: true, ..client("auto-1") });
    assert_eq!(rig.take(id), ["CONNACK assigned=auto-1"]);
}

#[test]
fn a_second_connect_is_a_protocol_error() {
    // [MQTT-3.1.0-2]
    let mut rig = Rig::new();
    let id = rig.join(client("a"));
    rig.send_bytes(id, &[0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 1, b'a']);
    assert_eq!(rig.take(id), ["DISCONNECT 0x82"]);
    assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::SecondConnect)));
}

#[test]
fn packets_that_only_a_server_may_send_end_the_connection() {
    // Table 2-1
    for bytes in [&[0x20, 3, 0, 0, 0][..], &[0x90, 4, 0, 1, 0, 0], &[0xB0, 4, 0, 1, 0, 0], &[0xD0, 0]] {
        let mut rig = Rig::new();
        let id = rig.join(client("a"));
        rig.send_bytes(id, bytes);
        assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::ServerPacket)), "{bytes:02x?}");
        assert_eq!(rig.take(id), ["DISCONNECT 0x82"]);
    }
}

#[test]
fn auth_without_a_method_in_connect_is_a_protocol_error() {
    // [MQTT-4.12.0-6]
    let mut rig = Rig::new();
    let id = rig.join(client("a"));
    rig.send_bytes(id, &[0xF0, 0]);
    assert_eq!(rig.take(id), ["DISCONNECT 0x82"]);
}

#[test]
fn a_disconnect_reason_that_is_the_servers_is_a_protocol_error() {
    // Table 3-13
    let mut rig = Rig::new();
    let id = rig.join(client("a"));
    rig.send_bytes(id, &[0xE0, 1, 0x8B]);
    assert_eq!(rig.closing(id), Some(Closing::Violation(Violation::DisconnectReason)));
}

#[test]
fn malformed_bytes_get_their_reason_and_end_the_connection() {
    // [MQTT-4.13.1-1]; before MQTT 5 the connection is closed: 3.1.1 [MQTT-4.8.0-1]
    let mut rig = Rig::new();
    let id = rig.join(client("a"));
    rig.send_bytes(id, &[0x36, 5, 0, 1, b'a', 0, 1]);
    assert_eq!(rig.take(id), ["DISCONNECT 0x81"]);
    let old = rig.join(client("b").v311());
    rig.send_bytes(old, &[0x36, 5, 0, 1, b'a', 0, 1]);
    assert!(rig.take(old).is_empty());
    assert!(matches!(rig.closing(old), Some(Closing::Violation(Violation::Undecodable(_)))));
}

#[test]
fn a_kicked_client_is_told_and_may_come_back() {
    let mut rig = Rig::new();
    let id = rig.join(client("a").kept());
    rig.command(Command::Kick(id, Closing::Kicked));
    assert_eq!(rig.take(id), ["DISCONNECT 0x98"]);
    let again = rig.connect(client("a").kept());
    assert_eq!(rig.take(again), ["CONNACK present"]);
}

#[test]
fn an_identity_that_is_forgotten_loses_its_connections_and_sessions() {
    let mut rig = Rig::new();
    let here = rig.join(Client { identity: Some("gone"), ..client("here").kept() });
    let away = rig.join(Client { identity: Some("gone"), ..client("away").kept() });
    rig.subscribe(away, "t", 1);
    rig.lose(away);
    let other = rig.join(client("other").kept());
    rig.command(Command::Forget(Identity::parse("gone").unwrap(), None));
    assert_eq!(rig.take(here), ["DISCONNECT 0x98"]);
    assert_eq!(rig.closing(other), None);
    assert_eq!((rig.core.gauges().sessions, rig.core.gauges().subscriptions), (1, 0));
}

#[test]
fn a_shutdown_says_goodbye_to_all_and_lets_nobody_in() {
    // 0x8B, section 3.14.2.1
    let mut rig = Rig::new();
    let new = rig.join(client("new"));
    let old = rig.join(client("old").v311());
    rig.command(Command::ShutDown);
    assert_eq!(rig.take(new), ["DISCONNECT 0x8b"]);
    assert!(rig.take(old).is_empty() && rig.closing(old) == Some(Closing::ShuttingDown));
    let late = rig.connect(client("late"));
    assert_eq!(rig.take(late), ["CONNACK 0x88"]);
}

#[test]
fn more_sessions_than_allowed_are_refused() {
    let mut rig = Rig::alone(|limits| limits.sessions_max = 1);
    rig.join(client("a"));
    let second = rig.connect(client("b"));
    assert_eq!(rig.take(second), ["CONNACK 0x97"]);
    let third = rig.connect(client("c").v311());
    // Server unavailable is the nearest that 3.1.1 has.
    assert_eq!(rig.take(third), ["CONNACK 0x88"]);
    // Who has a session already is let in.
    let again = rig.connect(client("a"));
    assert_eq!(rig.take(again), ["CONNACK"]);
}

#[test]
fn late_input_of_a_connection_that_is_gone_is_ignored() {
    let mut rig = Rig::new();
    let old = rig.join(client("a"));
    rig.subscribe(old, "t", 0);
    rig.lose(old);
    rig.publish(old, "t", "x", 1, 1);
    assert!(rig.take(old).is_empty());
    assert_eq!(rig.core.counters().publishes_received, [0; 3]);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    // design section 2: no order depends on hashing.
    let run = || {
        let mut rig = Rig::new();
        let publisher = rig.join(client("p"));
        let subscribers: Vec<_> = (0..20).map(|at| rig.join(client(&format!("s{at}")))).collect();
        for (at, id) in subscribers.iter().enumerate() {
            rig.subscribe(*id, if at % 2 == 0 { "a/+" } else { "#" }, (at % 3) as u8);
        }
        for at in 0..10 {
            rig.publish(publisher, &format!("a/{at}"), "x", (at % 3) as u8, at + 1);
        }
        let mut all = vec![rig.take(publisher)];
        all.extend(subscribers.iter().map(|id| rig.take(*id)));
        all
    };
    assert_eq!(run(), run());
}
