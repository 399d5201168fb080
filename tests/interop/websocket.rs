//! MQTT over WebSocket (section 6 of both standards), plain and by TLS.

use std::io::{Read, Write};
use std::net::TcpStream;

use lockgate::codec::{self, Packet, Publish, PublishProperties, Version};
use lockgate::types::QoS;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::clients::{bundle, node, python};
use crate::mqtt::connect_bytes;
use crate::site::{Broker, PATIENCE, Site, run_with};

/// A site with a listener of each kind beside the usual two; the ports of `ws` and `wss`.
fn served(more: &str) -> (Site, Broker, u16, u16) {
    let site = Site::new(&["--client", "device1"]);
    let listeners = format!(
        "listeners:\n  - transport: ws\n    address: 127.0.0.1\n    port: 0\n  - transport: wss\n    address: 0.0.0.0\n    port: 0\n{more}"
    );
    site.edit("config/lockgate.yaml", "listeners:\n", &listeners);
    let broker = site.serve();
    let status: serde_json::Value = serde_json::from_str(&site.ok(&["status", "--json"])).unwrap();
    let port = |kind: &str| {
        let listeners = status["listeners"].as_array().unwrap();
        let listener = listeners.iter().find(|listener| listener["transport"] == kind).unwrap();
        listener["addresses"][0].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
    };
    let (ws, wss) = (port("ws"), port("wss"));
    (site, broker, ws, wss)
}

type Web = WebSocket<TcpStream>;

fn open(port: u16, protocol: &str) -> Result<(Web, String), tungstenite::Error> {
    let mut request = format!("ws://127.0.0.1:{port}/mqtt").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match tungstenite::client(request, stream) {
        Ok((web, response)) => {
            let chosen = response.headers()["Sec-WebSocket-Protocol"].to_str().unwrap().to_owned();
            Ok((web, chosen))
        }
        Err(tungstenite::HandshakeError::Failure(error)) => Err(error),
        Err(tungstenite::HandshakeError::Interrupted(_)) => panic!("the socket blocks"),
    }
}

fn connect(site: &Site, client: &str) -> Vec<u8> {
    let secret = site.variable("device1", "MQTT_PASSWORD");
    connect_bytes(Version::V5, client, Some(("device1", &secret)))
}

fn publish(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "t",
        packet_id: None,
        payload,
        properties: PublishProperties::default(),
    };
    codec::encode(&mut bytes, &Packet::Publish(packet), Version::V5);
    bytes
}

/// SUBSCRIBE to `t` at QoS 0, by hand.
const SUBSCRIBE: [u8; 9] = [0x82, 7, 0, 1, 0, 0, 1, b't', 0];

/// Reads MQTT bytes, whatever frames they come in, until so many are there.
fn bytes(web: &mut Web, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        match web.read().unwrap() {
            Message::Binary(more) => bytes.extend_from_slice(&more),
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    bytes
}

/// The close frame's code.
fn closed(web: &mut Web) -> CloseCode {
    loop {
        match web.read() {
            Ok(Message::Close(Some(close))) => return close.code,
            Ok(_) => {}
            Err(error) => panic!("no close frame: {error}"),
        }
    }
}

fn scenarios(client: fn() -> std::process::Command, script: &str) {
    let (site, broker, ws, wss) = served("");
    for (level, port) in [("plain", ws), ("tls", wss), ("mtls", wss)] {
        let environment = bundle(&site, "device1", level).join("mqtt.env");
        for version in ["3.1.1", "5"] {
            let mut command = client();
            command.arg(format!("{}/tests/interop/{script}", env!("CARGO_MANIFEST_DIR")));
            command.arg(&environment).arg(version).arg(port.to_string()).args([level, "ws"]);
            let (code, text) = run_with(&mut command, b"");
            assert!(code == Some(0) && text.ends_with("ok\n"), "{level} {version}: {text}\n{}", broker.log());
        }
    }
}

#[test]
fn paho_speaks_over_ws_and_wss() {
    scenarios(python, "scenario.py");
}

#[test]
fn mqtt_js_speaks_over_ws_and_wss() {
    scenarios(node, "scenario.js");
}

/// [MQTT-6.0.0-2]: several packets in a frame, one over several frames, and control frames between.
#[test]
fn packets_and_frames_need_not_begin_together() {
    let (site, _broker, port, _) = served("");
    let everything = [connect(&site, "batch"), SUBSCRIBE.to_vec(), publish(b"one"), publish(&[7; 70_000])].concat();
    let connack = |bytes: &[u8]| usize::from(bytes[1]) + 2;
    for size in [everything.len(), 1000, 7, 1] {
        let (mut web, _) = open(port, "mqtt").unwrap();
        let cut = if size == 1 {
            &everything[..connect(&site, "batch").len() + SUBSCRIBE.len() + 9]
        } else {
            &everything[..]
        };
        for (at, chunk) in cut.chunks(size).enumerate() {
            web.write(Message::binary(chunk.to_vec())).unwrap();
            if at % 100 == 50 {
                web.write(Message::Ping(vec![at as u8].into())).unwrap();
            }
        }
        web.flush().unwrap();
        // CONNACK, SUBACK and the messages themselves.
        let expected = cut.len() - connect(&site, "batch").len() - SUBSCRIBE.len();
        let head = bytes(&mut web, 2);
        let first = connack(&head);
        let mut all = head;
        let wanted = first + 6 + expected;
        if all.len() < wanted {
            all.extend(bytes(&mut web, wanted - all.len()));
        }
        assert_eq!((all[0], all[first]), (0x20, 0x90), "{size}");
        assert!(all[first + 6..].ends_with(&cut[cut.len() - 5..]), "{size}");
        web.close(None).unwrap();
        assert_eq!(closed(&mut web), CloseCode::Normal);
    }
}

/// One message in three frames, with a ping between, by hand (RFC 6455 section 5.4).
#[test]
fn a_fragmented_message_is_one() {
    let (site, _broker, port, _) = served("");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
    let connect = connect(&site, "fragments");
    let frame = |first: u8, payload: &[u8]| {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first, 0x80 | payload.len() as u8];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    };
    let (a, rest) = connect.split_at(10);
    let (b, c) = rest.split_at(1);
    let all = [frame(0x02, a), frame(0x89, b"hi"), frame(0x00, b), frame(0x80, c)].concat();
    // The request and the first frames come together.
    stream.write_all(&[request.as_bytes(), &all].concat()).unwrap();
    let mut read: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    let pong = [0x8A, 2, b'h', b'i'];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&buffer[..count]);
        let at = read.windows(4).position(|window| window == pong);
        if let Some(at) = at.filter(|at| read.len() > at + 6) {
            // Behind the pong: one binary frame with CONNACK.
            assert_eq!((read[at + 4], read[at + 6]), (0x82, 0x20), "{read:?}");
            return;
        }
    }
}

/// [MQTT-6.0.0-1]
#[test]
fn a_frame_that_is_not_binary_ends_the_connection() {
    let (site, broker, port, _) = served("");
    for inside in [false, true] {
        let (mut web, _) = open(port, "mqtt").unwrap();
        if inside {
            web.send(Message::binary(connect(&site, "texts"))).unwrap();
            bytes(&mut web, 2);
        }
        web.send(Message::text("\u{10}\u{10}")).unwrap();
        if inside {
            // What an MQTT 5 client is told, then what a WebSocket is.
            assert_eq!(bytes(&mut web, 2)[0], 0xE0);
        }
        assert_eq!(closed(&mut web), CloseCode::Unsupported);
    }
    broker.wait_for("its WebSocket is broken: a text frame: MQTT is binary");
}

/// [MQTT-6.0.0-3]
#[test]
fn a_client_that_does_not_offer_mqtt_is_refused() {
    let (_site, broker, port, _) = served("");
    for offered in ["chat", "MQTT, wamp"] {
        match open(port, offered) {
            Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 400),
            other => panic!("{:?}", other.map(|(_, chosen)| chosen)),
        }
    }
    broker.wait_for("refused with HTTP 400: Sec-WebSocket-Protocol has to offer mqtt");
}

/// [MQTT-6.0.0-4]
#[test]
fn the_answer_names_the_protocol_that_was_chosen() {
    let (_site, _broker, port, _) = served("");
    assert_eq!(open(port, "chat, mqttv3.1").unwrap().1, "mqttv3.1");
    assert_eq!(open(port, "mqttv3.1, mqtt").unwrap().1, "mqtt");
}

#[test]
fn scripts_of_other_pages_are_kept_out_where_certificates_count() {
    let (site, broker, ws, wss) = served("    origins: https://panel.example\n");
    let curl = |scheme: &str, port: u16, origin: &str| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "--http1.1", "--cacert"]);
        curl.arg(site.path("pki/ca.crt")).args(["-H", "Connection: Upgrade", "-H", "Upgrade: websocket"]);
        curl.args(["-H", "Sec-WebSocket-Version: 13", "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]);
        curl.args(["-H", "Sec-WebSocket-Protocol: mqtt", "-H", &format!("Origin: {origin}")]);
        let (_, said) = run_with(curl.arg(format!("{scheme}://localhost:{port}/")), b"");
        said.trim().to_owned()
    };
    assert_eq!(curl("https", wss, "https://evil.example"), "403");
    broker.wait_for("scripts of this Origin may not connect here (`origins:` of this listener)");
    assert_eq!(curl("https", wss, "https://panel.example"), "101");
    // A password is nothing that a browser says by itself.
    assert_eq!(curl("http", ws, "https://evil.example"), "101");
    site.edit("config/lockgate.yaml", "origins: https://panel.example", "origins: panel.example/");
    assert!(site.fails(2, &["serve", "--check"]).contains("is no origin"));
}

#[test]
fn what_knocks_at_the_wrong_port_is_told() {
    let (site, broker, port, _) = served("");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&connect(&site, "bare")).unwrap();
    broker.wait_for("bare MQTT on the WebSocket port");
    let (code, said) = run_with(
        std::process::Command::new("curl").args(["-si", "-m", "5", &format!("http://127.0.0.1:{port}/")]),
        b"",
    );
    assert!(code == Some(0) && said.contains("426") && said.contains("MQTT over WebSocket is served here"), "{said}");
    // A wrong password: CONNACK, then the close that says why.
    let (mut web, _) = open(port, "mqtt").unwrap();
    web.send(Message::binary(connect_bytes(Version::V5, "x", Some(("device1", "wrong"))))).unwrap();
    assert_eq!(bytes(&mut web, 2)[0], 0x20);
    assert_eq!(closed(&mut web), CloseCode::Policy);
}

#[test]
fn those_who_came_by_websocket_are_disconnected_with_their_identity_and_with_the_broker() {
    let (site, mut broker, port, _) = served("");
    let (mut web, _) = open(port, "mqtt").unwrap();
    web.send(Message::binary(connect(&site, "thief"))).unwrap();
    bytes(&mut web, 2);
    let (mut other, _) = open(port, "mqtt").unwrap();
    site.ok(&["client", "add", "other"]);
    let secret = site.variable("other", "MQTT_PASSWORD");
    other.send(Message::binary(connect_bytes(Version::V5, "other", Some(("other", &secret))))).unwrap();
    bytes(&mut other, 2);
    site.ok(&["client", "revoke", "device1"]);
    assert_eq!(bytes(&mut web, 3)[0], 0xE0);
    assert_eq!(closed(&mut web), CloseCode::Policy);
    broker.signal("TERM");
    assert_eq!(bytes(&mut other, 3)[0], 0xE0);
    assert_eq!(closed(&mut other), CloseCode::Away);
    broker.wait();
}
