//! Reason strings, and the size of what is sent.

use lockgate::auth::Acl;
use lockgate::broker::{Closing, Command, Limits};

use crate::rig::{Client, Rig, client, framed};

fn rig() -> Rig {
    Rig::with(
        Limits { subscriptions_max: 1, ..Limits::default() },
        Acl::parse("user c\ntopic readwrite own/#\n").unwrap(),
        false,
    )
}

/// Provokes an answer that explains itself.
type Provoke = fn(&mut Rig, lockgate::broker::ConnectionId);

/// What is explained on an established connection: PUBACK, PUBREC, SUBACK, UNSUBACK.
const ACKNOWLEDGEMENTS: [(&str, Provoke); 4] = [
    ("PUBACK #1 0x87", |rig, id| rig.publish(id, "other", "x", 1, 1)),
    ("PUBREC #1 0x87", |rig, id| rig.publish(id, "other", "x", 2, 1)),
    ("SUBACK #1 0x87", |rig, id| rig.subscribe_with(id, &[("other", 0)], &[])),
    ("UNSUBACK #1 0x8f", |rig, id| rig.unsubscribe(id, "a#")),
];

/// And what ends it: DISCONNECT.
const ENDINGS: [(&str, Provoke); 2] = [
    ("DISCONNECT 0x98", |rig, id| rig.command(Command::Kick(id, Closing::Kicked))),
    ("DISCONNECT 0x82", |rig, id| rig.send_bytes(id, &framed(0x82, &[0, 1, 0]))),
];

fn sized(max: Option<u32>, wants_reasons: bool) -> Client<'static> {
    let mut sized = client("c");
    sized.properties.maximum_packet_size = max;
    sized.properties.request_problem_information = wants_reasons;
    sized
}

#[test]
fn a_refusal_explains_itself_unless_the_client_does_not_want_to_know() {
    // [MQTT-3.1.2-29]
    for (wanted, provoke) in ACKNOWLEDGEMENTS {
        let mut rig = rig();
        let id = rig.join(sized(None, true));
        provoke(&mut rig, id);
        let reasons = rig.take_reasons(id);
        assert!(matches!(&reasons[..], [Some(text)] if text.len() > 20), "{wanted}: {reasons:?}");
        let id = rig.connect(sized(None, false));
        rig.take(id);
        provoke(&mut rig, id);
        assert_eq!(rig.take_reasons(id), [None], "{wanted}");
    }
    // CONNACK and DISCONNECT may.
    for (wanted, provoke) in ENDINGS {
        let mut rig = rig();
        let id = rig.join(sized(None, false));
        provoke(&mut rig, id);
        let reasons = rig.take_reasons(id);
        assert!(matches!(&reasons[..], [Some(text)] if text.len() > 10), "{wanted}: {reasons:?}");
    }
}

#[test]
fn an_explanation_is_left_out_where_it_would_make_the_packet_too_large() {
    // [MQTT-3.1.2-24], [MQTT-3.4.2-2], [MQTT-3.5.2-2], [MQTT-3.9.2-1], [MQTT-3.11.2-1], [MQTT-3.14.2-3]
    for (wanted, provoke) in ACKNOWLEDGEMENTS.into_iter().chain(ENDINGS) {
        let mut rig = rig();
        let id = rig.join(sized(None, true));
        provoke(&mut rig, id);
        let size = rig.take_bytes(id).len() as u32;
        for (max, explained) in [(size, true), (size - 1, false)] {
            let id = rig.join(sized(Some(max), true));
            provoke(&mut rig, id);
            let bytes = rig.take_bytes(id);
            assert!(bytes.len() as u32 <= max);
            rig.out.written.insert(id, bytes.clone());
            assert_eq!(rig.take(id), [wanted]);
            rig.out.written.insert(id, bytes);
            assert_eq!(rig.take_reasons(id)[0].is_some(), explained, "{wanted} in {max}");
        }
    }
}

#[test]
fn a_refused_connect_explains_itself_as_far_as_there_is_room() {
    // [MQTT-3.2.2-19], [MQTT-3.1.2-24]
    let mut rig = Rig::new();
    rig.join(client("c"));
    let thief = |max| Client { identity: Some("thief"), ..sized(max, false) };
    let id = rig.connect(thief(None));
    let bytes = rig.take_bytes(id);
    let size = bytes.len() as u32;
    rig.out.written.insert(id, bytes);
    assert!(rig.take_reasons(id)[0].is_some());
    let id = rig.connect(thief(Some(size)));
    assert!(rig.take_reasons(id)[0].is_some());
    let id = rig.connect(thief(Some(size - 1)));
    assert_eq!(rig.take(id), ["CONNACK 0x87"]);
    // Five bytes is the least that says anything.
    let id = rig.connect(thief(Some(4)));
    assert!(rig.take_bytes(id).is_empty());
    assert_eq!(rig.closing(id), Some(Closing::NotOwner));
}

#[test]
fn before_mqtt_5_nothing_is_explained() {
    let mut rig = rig();
    let id = rig.join(client("c").v311());
    rig.publish(id, "other", "x", 1, 1);
    rig.subscribe_with(id, &[("other", 0)], &[]);
    rig.unsubscribe(id, "a#");
    assert_eq!(rig.take_bytes(id), [0x40, 2, 0, 1, 0x90, 3, 0, 1, 0x80, 0xB0, 2, 0, 1]);
}
