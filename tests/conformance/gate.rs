//! What the gate answers, over a socket.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use lockgate::auth::Methods;
use lockgate::codec::Version;
use lockgate::store::{NoStore, Store};
use time::OffsetDateTime;

use crate::authentication::Asking;
use crate::mqtt::{Raw, connect_bytes};
use crate::rig::framed;
use crate::site::Site;

/// A site where whoever has no name may come in.
fn open_site() -> Site {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "allow-anonymous: false", "allow-anonymous: true");
    site
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// All that comes until the broker closes, which it has to.
fn until_closed(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut raw = Raw::open(port, Version::V5);
    raw.send(bytes);
    let mut got = Vec::new();
    match raw.stream.read_to_end(&mut got) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    got
}

#[test]
fn every_refusal_of_the_gate_closes_the_connection() {
    // [MQTT-3.1.0-1], [MQTT-3.1.2-1], [MQTT-3.1.2-2], [MQTT-3.1.2-3], [MQTT-3.1.4-1], [MQTT-3.1.4-2],
    // [MQTT-3.2.2-7], [MQTT-3.2.2-8], [MQTT-4.12.0-1], [MQTT-4.13.1-1], [MQTT-4.13.2-1]
    // [MQTT-3.1.2-2] of 3.1.1
    let site = Site::new(&["--client", "device1"]);
    site.ok(&["client", "add", "device2", "--min-level", "tls"]);
    site.edit("config/lockgate.yaml", "connect-size-max: 256KiB", "connect-size-max: 1KiB");
    let broker = site.serve();
    let port = broker.plain_port;
    let v5 = |flags: u8, rest: &[u8]| framed(0x10, &[&field(b"MQTT")[..], &[5, flags, 0, 0], rest].concat());
    let properties = |properties: &[u8]| v5(2, &[&[properties.len() as u8][..], properties, &field(b"a")].concat());
    let login = |name: &str, password: &str| connect_bytes(Version::V5, "c", Some((name, password)));
    let second = site.variable("device2", "MQTT_PASSWORD");
    for (what, bytes, answer) in [
        ("no CONNECT", vec![0xC0, 0], &[][..]),
        ("another protocol", framed(0x10, &[&field(b"MQTX")[..], &[5, 2, 0, 0, 0, 0, 0]].concat()), &[]),
        ("level 3", framed(0x10, &[&field(b"MQTT")[..], &[3, 2, 0, 0, 0, 0]].concat()), &[0x20, 2, 0, 1]),
        ("level 6", framed(0x10, &[&field(b"MQTT")[..], &[6, 2, 0, 0, 0, 0, 0]].concat()), &[0x20, 2, 0, 1]),
        ("level 9", framed(0x10, &[&field(b"MQTT")[..], &[9, 2, 0, 0, 0, 0, 0]].concat()), &[0x20, 2, 0, 1]),
        ("the reserved flag", v5(3, &[0, 0, 1, b'a']), &[0x20, 3, 0, 0x81, 0]),
        ("a truncated payload", v5(2, &[0, 0, 9, b'a']), &[0x20, 3, 0, 0x81, 0]),
        ("a trailing byte", v5(2, &[0, 0, 1, b'a', 0]), &[0x20, 3, 0, 0x81, 0]),
        ("a property of PUBLISH", properties(&[1, 1]), &[0x20, 3, 0, 0x81, 0]),
        ("receive maximum 0", properties(&[0x21, 0, 0]), &[0x20, 3, 0, 0x82, 0]),
        ("a method that is not known", properties(&[0x15, 0, 3, b'a', b'b', b'c']), &[0x20, 3, 0, 0x8C, 0]),
        ("no credentials", properties(&[]), &[0x20, 3, 0, 0x87, 0]),
        ("a wrong password", login("device1", "wrong"), &[0x20, 3, 0, 0x86, 0]),
        ("too low a level", login("device2", &second), &[0x20, 3, 0, 0x87, 0]),
        ("too large a CONNECT", v5(2, &[&[0][..], &field(&[b'a'; 2_000])].concat()), &[0x20, 3, 0, 0x95, 0]),
    ] {
        assert_eq!(until_closed(port, &bytes), answer, "{what}");
    }
}

#[test]
fn a_connect_of_3_1_1_that_is_not_valid_is_closed_without_an_answer() {
    // [MQTT-3.1.4-1], [MQTT-3.1.2-3], [MQTT-4.8.0-1], [MQTT-3.2.2-5], [MQTT-3.2.2-6] of 3.1.1
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "connect-size-max: 256KiB", "connect-size-max: 1KiB");
    let broker = site.serve();
    let port = broker.plain_port;
    let connect = |flags: u8, rest: &[u8]| framed(0x10, &[&field(b"MQTT")[..], &[4, flags, 0, 60], rest].concat());
    for (what, bytes) in [
        ("the reserved flag", connect(3, &field(b"a"))),
        ("will QoS without a will", connect(0x0A, &field(b"a"))),
        ("will QoS 3", connect(0x1E, &[field(b"a"), field(b"w"), field(b"p")].concat())),
        ("a password without a user name", connect(0x42, &[field(b"a"), field(b"p")].concat())),
        ("a truncated payload", connect(2, &[0, 9, b'a'])),
        ("a trailing byte", connect(2, &[0, 1, b'a', 0])),
        ("no UTF-8", connect(2, &[0, 1, 0xFF])),
        ("a will topic with a wildcard", connect(6, &[field(b"a"), field(b"a/#"), field(b"p")].concat())),
        ("too large a CONNECT", connect(2, &field(&[b'a'; 2_000]))),
    ] {
        assert!(until_closed(port, &bytes).is_empty(), "{what}");
    }
    let login = connect_bytes(Version::V311, "c", Some(("device1", "wrong")));
    assert_eq!(until_closed(port, &login), [0x20, 2, 0, 4], "a return code that fits, then the end");
}

#[test]
fn what_follows_a_connect_that_is_refused_has_no_effect() {
    // [MQTT-3.1.4-6]; [MQTT-3.1.4-5] of 3.1.1
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let port = broker.plain_port;
    for version in [Version::V311, Version::V5] {
        let mut bytes = connect_bytes(version, "c", Some(("device1", "wrong")));
        let empty: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        bytes.extend(framed(0x33, &[&field(b"t")[..], &[0, 1], empty, b"x"].concat()));
        let wanted = if version == Version::V5 { 5 } else { 4 };
        assert_eq!(until_closed(port, &bytes).len(), wanted);
    }
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut raw, answer) = Raw::connect(port, Version::V311, "c", Some(("device1", &password)));
    assert_eq!(answer, "CONNACK");
    raw.send(b"\x82\x06\x00\x01\x00\x01#\x01\xc0\x00");
    assert_eq!([raw.packet(), raw.packet()], [Some("SUBACK #1 1".to_owned()), Some("PINGRESP".to_owned())]);
}

#[test]
fn an_empty_client_id_is_given_one_and_only_mqtt_5_is_told() {
    // [MQTT-3.1.3-6], [MQTT-3.1.3-7], [MQTT-3.1.3-8], [MQTT-3.2.2-16]
    // [MQTT-3.1.3-6], [MQTT-3.1.3-7], [MQTT-3.1.3-8], [MQTT-3.1.3-9] of 3.1.1
    let site = open_site();
    let broker = site.serve();
    let port = broker.plain_port;
    let mut kept = Vec::new();
    let mut assigned = Vec::new();
    for _ in 0..2 {
        let (raw, answer) = Raw::connect(port, Version::V5, "", None);
        assigned.push(answer.strip_prefix("CONNACK assigned=").unwrap().to_owned());
        kept.push(raw);
        let (raw, answer) = Raw::connect(port, Version::V311, "", None);
        assert_eq!(answer, "CONNACK");
        kept.push(raw);
    }
    assert!(assigned[0] != assigned[1] && !assigned[0].is_empty());
    let (_named, answer) = Raw::connect(port, Version::V5, "named", None);
    assert_eq!(answer, "CONNACK");
    for raw in &mut kept {
        raw.send(&[0xC0, 0]);
        assert_eq!(raw.packet().as_deref(), Some("PINGRESP"));
    }
    // With clean start 0 and an expiry the assigned name finds the session again.
    let connect = |client_id: &[u8]| {
        framed(0x10, &[&field(b"MQTT")[..], &[5, 0, 0, 0, 5, 0x11, 0, 0, 1, 0], &field(client_id)].concat())
    };
    let mut raw = Raw::open(port, Version::V5);
    raw.send(&connect(b""));
    let answer = raw.packet().unwrap();
    let name = answer.strip_prefix("CONNACK assigned=").unwrap().to_owned();
    drop(raw);
    let mut raw = Raw::open(port, Version::V5);
    raw.send(&connect(name.as_bytes()));
    assert_eq!(raw.packet().as_deref(), Some("CONNACK present"));
    // A session that is to be kept needs a name before MQTT 5.
    let nameless = framed(0x10, &[&field(b"MQTT")[..], &[4, 0, 0, 0, 0, 0]].concat());
    assert_eq!(until_closed(port, &nameless), [0x20, 2, 0, 2]);
}

#[test]
fn client_ids_of_all_letters_and_digits_are_allowed() {
    // [MQTT-3.1.3-5]; [MQTT-3.1.3-4], [MQTT-3.1.3-5] of 3.1.1
    let site = open_site();
    let broker = site.serve();
    let all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for version in [Version::V31, Version::V311, Version::V5] {
        for id in ["0", "z", "Z", &all[..23], &all[23..46], &all[39..], all] {
            assert_eq!(Raw::connect(broker.plain_port, version, id, None).1, "CONNACK", "{id} {version}");
        }
    }
}

#[test]
fn a_packet_may_be_as_large_as_connack_says_and_no_larger() {
    // [MQTT-3.2.2-15]
    let site = open_site();
    site.edit("config/lockgate.yaml", "packet-size-max: 16MiB", "packet-size-max: 1KiB");
    let broker = site.serve();
    let (mut raw, _) = Raw::connect(broker.plain_port, Version::V5, "c", None);
    // Three bytes of header, topic 3, identifier 2, properties 1, payload.
    let publish = |size: usize| framed(0x32, &[&field(b"t")[..], &[0, 1, 0], &vec![b'x'; size - 3 - 6]].concat());
    assert_eq!(publish(1_024).len(), 1_024);
    raw.send(&publish(1_024));
    assert_eq!(raw.packet().as_deref(), Some("PUBACK #1 0x10"));
    // Its header alone is enough to refuse the next.
    raw.send(&publish(1_025)[..5]);
    assert_eq!(raw.packet().as_deref(), Some("DISCONNECT 0x95"));
    assert_eq!(raw.packet(), None);
}

#[test]
fn a_65535_byte_client_id_is_a_client_id() {
    // [MQTT-3.1.3-4], [MQTT-4.7.3-3]
    let site = open_site();
    let broker = site.serve();
    let long = "x".repeat(65_535);
    let (mut raw, answer) = Raw::connect(broker.plain_port, Version::V5, &long, None);
    assert_eq!(answer, "CONNACK");
    raw.send(&[0xC0, 0]);
    assert_eq!(raw.packet().as_deref(), Some("PINGRESP"));
}

/// The gate and the engine in this process, with a method of the test's own, and where they listen.
struct Broker {
    port: u16,
    shard: lockgate::shard::Handle,
    _listening: lockgate::gate::Listening,
    _site: Site,
}

async fn with_method(change: impl FnOnce(&Site)) -> Broker {
    let site = open_site();
    change(&site);
    let settings = lockgate::config::load(&site.path("config/lockgate.yaml"), []).unwrap();
    let host = lockgate::pki::host_names();
    let material = lockgate::gate::Material::load(&settings, &host, OffsetDateTime::now_utc()).unwrap();
    let methods = Methods::new(vec![Arc::new(Asking)]);
    let start = lockgate::shard::Start {
        limits: settings.limits.clone(),
        acl: material.acl.clone(),
        durable: false,
        stores: vec![Box::new(NoStore::default()) as Box<dyn Store + Send>],
        restored: None,
        methods: methods.clone(),
        questions: None,
        faults: lockgate::config::Faults::default(),
    };
    let (shard, _threads) = lockgate::shard::spawn(start).unwrap();
    let deliver = {
        let shard = shard.clone();
        Arc::new(move |handover| shard.adopt(handover).unwrap())
    };
    let gate = lockgate::gate::Gate::new(&settings, &material, methods, Arc::default(), deliver);
    let plain = settings.listeners.iter().find(|listener| listener.transport_name() == "tcp").unwrap();
    let listening = lockgate::gate::bind(plain).unwrap().start(&gate).unwrap();
    let port = listening.addresses[0].rsplit_once(':').unwrap().1.parse().unwrap();
    Broker { port, shard, _listening: listening, _site: site }
}

/// CONNECT with the method, and data.
fn connect_asking() -> Vec<u8> {
    let properties = [&[0x15][..], &field(b"ASK")].concat();
    let body = [&field(b"MQTT")[..], &[5, 2, 0, 0, properties.len() as u8], &properties, &field(b"c")].concat();
    framed(0x10, &body)
}

fn auth(reason: u8, method: &str, data: &str) -> Vec<u8> {
    let properties = [&[0x15][..], &field(method.as_bytes()), &[0x16], &field(data.as_bytes())].concat();
    framed(0xF0, &[&[reason, properties.len() as u8][..], &properties].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_comes_before_connack() {
    // [MQTT-3.1.2-30], [MQTT-4.12.0-2], [MQTT-4.12.0-3], [MQTT-4.12.0-4], [MQTT-4.12.0-5], [MQTT-3.15.2-1]
    let broker = with_method(|_| {}).await;
    let port = broker.port;
    let dialogue = move || {
        let mut raw = Raw::open(port, Version::V5);
        raw.send(&connect_asking());
        assert_eq!(raw.packet().as_deref(), Some("AUTH 0x18 ASK \"who?\""));
        raw.send(&auth(0x18, "ASK", "c"));
        assert_eq!(raw.packet().as_deref(), Some("CONNACK method=ASK data=\"welcome\""));
        raw.send(&[0xC0, 0]);
        assert_eq!(raw.packet().as_deref(), Some("PINGRESP"));
        // And once more, while it is connected.
        raw.send(&auth(0x19, "ASK", ""));
        assert_eq!(raw.packet().as_deref(), Some("AUTH 0x18 ASK \"who?\""));
        raw.send(&auth(0x18, "ASK", "c"));
        assert_eq!(raw.packet().as_deref(), Some("AUTH 0x00 ASK \"welcome\""));
        for (what, bytes, wanted) in [
            ("a wrong answer", auth(0x18, "ASK", "nobody"), "CONNACK 0x8c"),
            ("another method", auth(0x18, "TELL", "c"), "CONNACK 0x82"),
            ("an end that is the server's", auth(0x00, "ASK", "c"), "CONNACK 0x82"),
            ("a beginning", auth(0x19, "ASK", "c"), "CONNACK 0x82"),
            ("a message", framed(0x31, &[&field(b"t")[..], &[0], b"x"].concat()), "CONNACK 0x82"),
            ("garbage", vec![0xF1, 0], "CONNACK 0x81"),
        ] {
            let mut raw = Raw::open(port, Version::V5);
            raw.send(&connect_asking());
            raw.packet();
            raw.send(&bytes);
            assert_eq!(raw.packet().as_deref(), Some(wanted), "{what}");
            assert_eq!(raw.packet(), None, "{what}");
        }
        let mut raw = Raw::open(port, Version::V5);
        raw.send(&connect_asking());
        raw.packet();
        raw.send(&[0xE0, 0]);
        assert_eq!(raw.packet(), None, "it may leave");
    };
    tokio::task::spawn_blocking(dialogue).await.unwrap();
    // The message that came instead of an answer was not taken.
    assert_eq!(broker.shard.report().await.unwrap().gauges.retained_messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_does_not_end_is_refused_in_the_clients_version() {
    // [MQTT-3.2.2-8]: 0x97 as MQTT 5 has it.
    let broker =
        with_method(|site| site.edit("config/lockgate.yaml", "connect-timeout: 10s", "connect-timeout: 1s")).await;
    let port = broker.port;
    let started = std::time::Instant::now();
    let got = tokio::task::spawn_blocking(move || until_closed(port, &connect_asking())).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(900));
    assert_eq!(got[got.len() - 5..], [0x20, 3, 0, 0x97, 0]);
}
