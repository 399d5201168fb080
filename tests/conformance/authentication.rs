//! Extended authentication (MQTT 5 section 4.12), with a method made for the test: it asks one question.

use std::sync::Arc;

use lockgate::auth::{Acl, Exchange, Method, Methods, Step};
use lockgate::broker::{Closing, ConnectionId, Limits};
use lockgate::types::{Identity, ReasonCode};

use crate::rig::{Client, Rig, client, framed};

/// Asks for a name; `c` is let in, `other` is somebody else, and the rest is refused.
pub(crate) struct Asking;

struct Asked {
    questions: u8,
}

impl Method for Asking {
    fn name(&self) -> &str {
        "ASK"
    }

    fn begin(&self) -> Box<dyn Exchange> {
        Box::new(Asked { questions: 0 })
    }
}

impl Exchange for Asked {
    fn step(&mut self, data: &[u8]) -> Step {
        self.questions += 1;
        match (self.questions, data) {
            (1, _) => Step::Continue(b"who?".to_vec()),
            (_, name @ (b"c" | b"other")) => Step::Admit {
                identity: Identity::parse(str::from_utf8(name).unwrap()).unwrap(),
                data: Some(b"welcome".to_vec()),
            },
            _ => Step::Refuse(ReasonCode::BadAuthenticationMethod),
        }
    }
}

fn methods() -> Methods {
    Methods::new(vec![Arc::new(Asking)])
}

fn rig() -> Rig {
    Rig::on(crate::rig::shards(), Limits::default(), Acl::open(), false, methods())
}

fn asked<'a>() -> Client<'a> {
    let mut client = client("c");
    client.properties.authentication_method = Some("ASK");
    client.authentication_data = Some(b"welcome");
    client
}

fn auth(rig: &mut Rig, id: ConnectionId, reason: u8, method: &str, data: &str) {
    let field = |id: u8, text: &str| [&[id, 0, text.len() as u8][..], text.as_bytes()].concat();
    let mut properties = field(0x15, method);
    if !data.is_empty() {
        properties.extend(field(0x16, data));
    }
    let body = [&[reason, properties.len() as u8][..], &properties].concat();
    rig.send_bytes(id, &framed(0xF0, &body));
}

#[test]
fn connack_names_the_method_of_connect_and_only_then() {
    // [MQTT-4.12.0-5], [MQTT-4.12.0-6], [MQTT-4.12.0-7]
    let mut rig = rig();
    let id = rig.connect(asked());
    assert_eq!(rig.take(id), ["CONNACK method=ASK data=\"welcome\""]);
    let id = rig.connect(client("plain"));
    assert_eq!(rig.take(id), ["CONNACK"]);
    auth(&mut rig, id, 0x19, "ASK", "");
    assert_eq!(rig.take(id), ["DISCONNECT 0x82"]);
}

#[test]
fn a_client_can_authenticate_again_while_messages_go_on() {
    // [MQTT-4.12.1-1], [MQTT-4.12.0-2], [MQTT-4.12.0-3], [MQTT-4.12.0-5]
    let mut rig = rig();
    let publisher = rig.join(client("p"));
    let id = rig.connect(asked());
    rig.take(id);
    rig.subscribe(id, "t", 0);
    for _ in 0..2 {
        auth(&mut rig, id, 0x19, "ASK", "");
        assert_eq!(rig.take(id), ["AUTH 0x18 ASK \"who?\""]);
        rig.publish(publisher, "t", "x", 0, 0);
        assert_eq!(rig.take(id), ["PUBLISH t x"]);
        auth(&mut rig, id, 0x18, "ASK", "c");
        assert_eq!(rig.take(id), ["AUTH 0x00 ASK \"welcome\""]);
    }
}

#[test]
fn an_exchange_that_fails_ends_the_connection() {
    // [MQTT-4.12.1-2]
    for answer in ["other", "nobody"] {
        let mut rig = rig();
        let id = rig.connect(asked());
        rig.take(id);
        auth(&mut rig, id, 0x19, "ASK", "");
        rig.take(id);
        auth(&mut rig, id, 0x18, "ASK", answer);
        // Whatever the method says, a code that DISCONNECT may have.
        assert_eq!(rig.take(id), ["DISCONNECT 0x87"], "{answer}");
        assert_eq!(rig.closing(id), Some(Closing::NotAuthenticated));
    }
}

#[test]
fn another_method_or_an_answer_out_of_turn_is_a_protocol_error() {
    // [MQTT-4.12.0-5], [MQTT-4.12.1-1]
    for (reason, method) in [(0x19, "TELL"), (0x18, "ASK"), (0x00, "ASK"), (0x19, "")] {
        let mut rig = rig();
        let id = rig.connect(asked());
        rig.take(id);
        auth(&mut rig, id, reason, method, "");
        assert_eq!(rig.take(id), ["DISCONNECT 0x82"], "{reason:#04x} {method}");
    }
}

#[test]
fn an_auth_larger_than_the_client_takes_is_not_sent() {
    // [MQTT-3.1.2-24], [MQTT-3.15.2-2]
    let mut rig = rig();
    let mut narrow = asked();
    narrow.authentication_data = None;
    narrow.properties.maximum_packet_size = Some(26);
    let id = rig.connect(narrow);
    assert_eq!(rig.take(id), ["CONNACK method=ASK"]);
    auth(&mut rig, id, 0x19, "ASK", "");
    assert_eq!(rig.take(id), ["AUTH 0x18 ASK \"who?\""]);
    auth(&mut rig, id, 0x18, "ASK", "c");
    assert_eq!(rig.take(id), ["AUTH 0x00 ASK \"welcome\""]);
}
