use std::io::{Read, Write};
use std::sync::Arc;

use lockgate::codec::Version;

use crate::handshake::{config, open};
use crate::mqtt::{Raw, connect_bytes};
use crate::site::{Broker, Site, eventually};

fn publish(topic: &str, payload: usize, qos: u8, packet_id: u16) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    body.resize(body.len() + payload, 7);
    let mut bytes = vec![0x30 | qos << 1];
    let mut length = body.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(&body);
    bytes
}

/// Resident memory, KiB.
fn memory(broker: &Broker) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_full_backlog_that_leaves_at_once_does_not_stop_what_comes_after() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let login = Some(("device1", &*password));
    let (mut subscriber, _) = Raw::connect(broker.plain_port, Version::V311, "s", login);
    subscriber.send(b"\x82\x06\x00\x01\x00\x01t\x01");
    assert_eq!(subscriber.packet().as_deref(), Some("SUBACK #1 1"));
    let (mut publisher, _) = Raw::connect(broker.plain_port, Version::V311, "p", login);
    for round in 1..=20 {
        publisher.send(&[publish("t", 1_500_000, 0, 0), publish("t", 5, 1, round)].concat());
        let mut seen = 0;
        while seen < 2 {
            let text = subscriber.packet().unwrap();
            assert!(text.starts_with("PUBLISH t"), "{text:.40}");
            if let Some((_, id)) = text.rsplit_once('#') {
                let [high, low] = id.parse::<u16>().unwrap().to_be_bytes();
                subscriber.send(&[0x40, 2, high, low]);
            }
            seen += 1;
        }
        assert_eq!(publisher.packet(), Some(format!("PUBACK #{round}")));
    }
}

#[test]
fn over_tls_a_slow_reader_gets_every_byte_to_the_last() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let client = Arc::new(config(&site.path("pki/ca.crt"), None, &[&rustls::version::TLS13]));
    // Sizes around those at which the socket's buffers are full.
    for size in (0..12).map(|step| 3_600_000 + step * 60_000) {
        let mut subscriber = open(broker.tls_port, &client);
        subscriber.write_all(&connect_bytes(Version::V311, "s", Some(("device1", &password)))).unwrap();
        subscriber.write_all(b"\x82\x06\x00\x01\x00\x01t\x00").unwrap();
        let mut answers = [0; 9];
        subscriber.read_exact(&mut answers).unwrap();
        let (mut publisher, _) = Raw::connect(broker.plain_port, Version::V311, "p", Some(("device1", &password)));
        let packet = publish("t", size, 0, 0);
        publisher.send(&packet);
        publisher.send(&[0xC0, 0]);
        assert_eq!(publisher.packet().as_deref(), Some("PINGRESP"));
        let mut received = vec![0; packet.len()];
        subscriber.read_exact(&mut received).unwrap_or_else(|error| panic!("{size}: {error}"));
        assert!(received == packet, "{size}");
    }
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read_from() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut flood, _) = Raw::connect(broker.plain_port, Version::V5, "flood", Some(("device1", &password)));
    flood.stream.set_nonblocking(true).unwrap();
    let before = memory(&broker);
    // PINGREQ without end: sixty megabytes, or until the broker has had enough.
    let pings = [0xC0, 0].repeat(32 * 1024);
    let mut sent = 0usize;
    let mut blocked = 0;
    while sent < 60_000_000 && blocked < 50 {
        match flood.stream.write(&pings[sent % 2..]) {
            Ok(count) => {
                sent += count;
                blocked = 0;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                blocked += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
    let grown = memory(&broker).saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB after {sent} bytes");
    // Others are served meanwhile, and it is too once it reads.
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "other", Some(("device1", &password)));
    assert_eq!(answer, "CONNACK");
    flood.stream.set_nonblocking(false).unwrap();
    let mut reader = flood.stream.try_clone().unwrap();
    let mut answers = 0;
    let mut buffer = vec![0; 64 * 1024];
    eventually("all answers", || {
        answers += reader.read(&mut buffer).unwrap();
        answers >= sent / 2 * 2
    });
}

#[test]
fn a_slow_consumer_costs_what_its_limit_says() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let login = Some(("device1", &*password));
    let (mut stalled, _) = Raw::connect(broker.plain_port, Version::V311, "stalled", login);
    stalled.send(b"\x82\x06\x00\x01\x00\x01t\x00");
    assert_eq!(stalled.packet().as_deref(), Some("SUBACK #1 0"));
    let (mut publisher, _) = Raw::connect(broker.plain_port, Version::V311, "p", login);
    let before = memory(&broker);
    let batch = publish("t", 10_000, 0, 0).repeat(100);
    for _ in 0..100 {
        publisher.send(&batch);
    }
    publisher.send(&[0xC0, 0]);
    assert_eq!(publisher.packet().as_deref(), Some("PINGRESP"));
    let grown = memory(&broker).saturating_sub(before);
    assert!(grown < 24 * 1024, "{grown} KiB");
    let status: serde_json::Value = serde_json::from_str(&site.ok(&["status", "--json"])).unwrap();
    assert!(status["dropped"].as_u64().unwrap() > 5_000, "{status}");
}

#[test]
fn a_parked_client_does_not_die_of_its_keep_alive() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let mut slow = Raw::open(broker.plain_port, Version::V311);
    let mut connect = connect_bytes(Version::V311, "slow", Some(("device1", &password)));
    // Keep alive: one second. It lies before the client id.
    connect[10..12].copy_from_slice(&[0, 1]);
    slow.send(&connect);
    assert_eq!(slow.packet().as_deref(), Some("CONNACK"));
    slow.send(b"\x82\x06\x00\x01\x00\x01t\x00");
    assert_eq!(slow.packet().as_deref(), Some("SUBACK #1 0"));
    let (mut publisher, _) = Raw::connect(broker.plain_port, Version::V311, "p", Some(("device1", &password)));
    publisher.send(&publish("t", 15_000_000, 0, 0));
    // For four seconds it sends pings and does not read.
    for _ in 0..40 {
        slow.send(&[0xC0, 0]);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // Some pings may have been answered before the message came; the others are after it.
    let mut answers = (0..41).map(|_| slow.packet().unwrap_or_else(|| panic!("closed: {}", broker.log())));
    assert_eq!(answers.by_ref().filter(|text| text == "PINGRESP").count(), 40);
}

#[test]
fn a_client_that_stops_sending_still_gets_its_answer() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut raw, _) = Raw::connect(broker.plain_port, Version::V311, "c", Some(("device1", &password)));
    raw.send(&publish("t", 5, 1, 7));
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(raw.packet().as_deref(), Some("PUBACK #7"));
    assert_eq!(raw.packet(), None);
}

#[test]
fn over_tls_an_end_that_comes_with_the_last_bytes_ends_the_connection() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let login = Some(("device1", &*password));
    let (mut watcher, _) = Raw::connect(broker.plain_port, Version::V311, "w", login);
    watcher.send(b"\x82\x06\x00\x01\x00\x01t\x00");
    assert_eq!(watcher.packet().as_deref(), Some("SUBACK #1 0"));
    let client = Arc::new(config(&site.path("pki/ca.crt"), None, &[&rustls::version::TLS13]));
    let mut ending = open(broker.tls_port, &client);
    ending.write_all(&connect_bytes(Version::V311, "ending", login)).unwrap();
    ending.read_exact(&mut [0; 4]).unwrap();
    // PUBLISH and close_notify in one segment; the socket stays open until the broker closes, as with `SSL_shutdown`.
    ending.conn.writer().write_all(&publish("t", 5, 0, 0)).unwrap();
    ending.conn.send_close_notify();
    let mut sealed = Vec::new();
    while ending.conn.wants_write() {
        ending.conn.write_tls(&mut sealed).unwrap();
    }
    ending.sock.write_all(&sealed).unwrap();
    assert!(watcher.packet().unwrap().starts_with("PUBLISH t"));
    ending.sock.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut rest = Vec::new();
    ending.sock.read_to_end(&mut rest).expect("the broker closes too");
}
