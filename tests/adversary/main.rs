//! The real binary under hostile clients. For each: memory stays within its stated limit, the broker goes
//! on serving, and the log says what was done without flooding. `tests/run --full` sets `LOCKGATE_FULL`
//! for the numbers in full.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/describe.rs"]
mod describe;
#[path = "../support/mqtt.rs"]
mod mqtt;
#[path = "../support/site.rs"]
mod site;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lockgate::codec::Version;

use mqtt::{Raw, connect_bytes};
use site::{Broker, PATIENCE, Site, eventually};

/// The short number, or the one in full.
fn number(short: usize, full: usize) -> usize {
    if std::env::var_os("LOCKGATE_FULL").is_some() { full } else { short }
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// A packet of this first byte and body.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        bytes.push((length & 0x7F) as u8 | if length > 0x7F { 0x80 } else { 0 });
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// A broker that lets anybody in, and somebody who is served all the while.
struct Siege {
    broker: Broker,
    witness: Raw,
    /// KiB of anonymous memory before it began.
    memory: usize,
    lines: usize,
    site: Site,
}

impl Siege {
    fn with(changes: &[(&str, &str)]) -> Siege {
        let site = Site::new(&["--client", "device1"]);
        site.edit("config/lockgate.yaml", "allow-anonymous: false", "allow-anonymous: true");
        for (from, to) in changes {
            site.edit("config/lockgate.yaml", from, to);
        }
        let broker = site.serve();
        let (witness, answer) = Raw::connect(broker.plain_port, Version::V5, "witness", None);
        assert_eq!(answer, "CONNACK");
        let memory = memory_kib(&broker);
        let lines = broker.log().lines().count();
        let mut siege = Siege { broker, witness, memory, lines, site };
        siege.serves();
        siege
    }

    fn open(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.broker.plain_port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn client(&self, name: &str) -> Raw {
        let (raw, answer) = Raw::connect(self.broker.plain_port, Version::V5, name, None);
        assert_eq!(answer, "CONNACK", "{name}");
        raw
    }

    /// The witness, and somebody new, are served.
    fn serves(&mut self) {
        self.witness.send(&[0xC0, 0]);
        assert_eq!(self.witness.packet().as_deref(), Some("PINGRESP"));
        let mut new = self.client("new");
        new.send(&framed(0x32, &[&field(b"t")[..], &[0, 1, 0, b'x']].concat()));
        assert!(new.packet().unwrap().starts_with("PUBACK #1"));
    }

    /// It serves, has taken no more memory than `mib` MiB on top, and has written no more than `lines` lines.
    fn holds(&mut self, mib: usize, lines: usize) {
        self.serves();
        let grown = memory_kib(&self.broker).saturating_sub(self.memory) / 1024;
        assert!(grown <= mib, "{grown} MiB more, {mib} are allowed");
        let written = self.broker.log().lines().count() - self.lines;
        assert!(written <= lines, "{written} lines in the log, {lines} are allowed:\n{}", self.broker.log());
    }
}

fn memory_kib(broker: &Broker) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until the broker has closed `stream`.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return true,
            Err(_) => return false,
        }
    }
}

#[test]
fn connections_that_are_opened_and_dropped() {
    let mut siege = Siege::with(&[
        ("pending-max: 2000", "pending-max: 20000"),
        ("pending-per-address-max: 500", "pending-per-address-max: 20000"),
        ("connections-per-address-max: 10000", "connections-per-address-max: 20000"),
    ]);
    // As many at once as this process may have files, in full.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(20_000) as usize;
    let at_once = number(250, files.min(20_000) - 200);
    let all = number(1_000, 20_000).max(at_once);
    let mut opened = 0;
    while opened < all {
        let mut held: Vec<TcpStream> = (0..at_once.min(all - opened)).map(|_| siege.open()).collect();
        for (at, stream) in held.iter_mut().enumerate() {
            match at % 4 {
                0 => {}
                1 => drop(stream.write_all(&[0x10])),
                2 => drop(stream.write_all(b"\x16\x03\x01\x02\x00\x01")),
                _ => drop(stream.write_all(&connect_bytes(Version::V5, &format!("c{opened}-{at}"), None))),
            }
        }
        opened += held.len();
        drop(held);
    }
    eventually("all are gone", || {
        let status: serde_json::Value = serde_json::from_str(&siege.site.ok(&["status", "--json"])).unwrap();
        status["connections"]["plain"].as_u64().unwrap() <= 2
    });
    // A line for each that was let in and for its end, and for what was no MQTT.
    // 8 KiB for each that was there at once: its task at the gate, or its place in the engine.
    siege.holds(64 + at_once * 8 / 1024, all);
}

#[test]
fn handshakes_and_connects_that_never_come() {
    let mut siege = Siege::with(&[("connect-timeout: 10s", "connect-timeout: 1s")]);
    let mut silent: Vec<TcpStream> = (0..number(100, 400)).map(|_| siege.open()).collect();
    for port in [siege.broker.tls_port; 50] {
        silent.push(TcpStream::connect(("127.0.0.1", port)).unwrap());
    }
    // One byte now and then does not help.
    for stream in silent.iter_mut().step_by(2) {
        drop(stream.write_all(&[0x10]));
    }
    siege.serves();
    let started = Instant::now();
    for stream in &mut silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_closed(stream));
    }
    assert!(started.elapsed() < Duration::from_secs(10), "they are let go when their time is over");
    siege.broker.wait_for("no CONNECT within 1 s (admission.connect-timeout)");
    siege.holds(32, 100);
}

#[test]
fn oversized_handshakes_and_packets() {
    let mut siege = Siege::with(&[]);
    let count = number(30, 300);
    for at in 0..count {
        let mut tls = TcpStream::connect(("127.0.0.1", siege.broker.tls_port)).unwrap();
        tls.set_read_timeout(Some(PATIENCE)).unwrap();
        drop(tls.write_all(&[0x16, 0x03, 0x01, 0xFF, 0xFF, 0x01, 0xFF, 0xFF, 0xFF]));
        drop(tls.write_all(&vec![at as u8; 70_000]));
        assert!(is_closed(&mut tls));
        // A CONNECT that says it has 256 MiB.
        let mut plain = siege.open();
        drop(plain.write_all(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4, b'M', b'Q', b'T', b'T', 5]));
        assert!(is_closed(&mut plain));
        // And a PUBLISH that does, from one that was let in.
        let mut client = siege.client("large");
        client.send(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]);
        assert_eq!(client.packet().as_deref(), Some("DISCONNECT 0x95"));
    }
    // Two lines for each that was let in, and what the gate does not sum up.
    siege.holds(32, 3 * count + 100);
}

#[test]
fn connects_of_the_maximum_size_that_never_end() {
    let count = number(100, 1_000);
    let mut siege = Siege::with(&[("pending-per-address-max: 500", "pending-per-address-max: 2000")]);
    // admission.connect-size-max less a byte, of as many sockets.
    let whole =
        framed(0x10, &[&field(b"MQTT")[..], &[5, 0xC2, 0, 0, 0], &field(b"c"), &field(&vec![b'u'; 65_000])].concat());
    let body = 256 * 1024 - 4;
    let mut bytes = vec![0x10, (body & 0x7F) as u8 | 0x80, (body >> 7 & 0x7F) as u8 | 0x80, (body >> 14) as u8];
    bytes.extend_from_slice(&whole[4..]);
    bytes.resize(256 * 1024 - 1, b'x');
    let mut held: Vec<TcpStream> = (0..count).map(|_| siege.open()).collect();
    for stream in &mut held {
        drop(stream.write_all(&bytes));
    }
    // Twice the packet for each: a buffer grows by doubling.
    siege.holds(64 + count / 2, 60);
    drop(held);
    siege.holds(64 + count / 2, count + 200);
}

#[test]
fn a_hundred_thousand_filters_from_one_client() {
    let count = number(20_000, 100_000);
    let mut siege = Siege::with(&[]);
    let mut client = siege.client("greedy");
    let (mut granted, mut refused) = (0, 0);
    for start in (0..count).step_by(500) {
        let filters: Vec<u8> =
            (start..start + 500).flat_map(|at| [field(format!("f/{at}/+/x").as_bytes()), vec![0]].concat()).collect();
        client.send(&framed(0x82, &[&[0, 1, 0][..], &filters].concat()));
        let answer = client.packet().unwrap();
        refused += answer.matches("0x97").count();
        granted += answer.trim_start_matches("SUBACK #1 ").split(',').filter(|code| *code == "0").count();
    }
    // limits.subscriptions-max
    assert_eq!((granted, refused), (10_000, count - 10_000));
    siege.holds(32, 60);
    drop(client);
    siege.holds(32, 80);
}

#[test]
fn a_storm_of_wills() {
    let count = number(200, 2_000);
    let mut siege = Siege::with(&[]);
    let mut watcher = siege.client("watcher");
    watcher.send(&framed(0x82, &[&[0, 1, 0][..], &field(b"will/#"), &[0]].concat()));
    assert_eq!(watcher.packet().as_deref(), Some("SUBACK #1 0"));
    let dying: Vec<Raw> = (0..count)
        .map(|at| {
            let mut body = [field(b"MQTT"), vec![5, 0x06, 0, 0, 0]].concat();
            body.extend(field(format!("dying{at}").as_bytes()));
            body.push(0);
            body.extend(field(format!("will/{at}").as_bytes()));
            body.extend(field(&[b'x'; 1_000]));
            let mut raw = Raw::open(siege.broker.plain_port, Version::V5);
            raw.send(&framed(0x10, &body));
            assert_eq!(raw.packet().as_deref(), Some("CONNACK"));
            raw
        })
        .collect();
    drop(dying);
    for _ in 0..count {
        assert!(watcher.packet().unwrap().starts_with("PUBLISH will/"));
    }
    siege.holds(64, 2 * count + 60);
}

#[test]
fn a_flood_of_retained_messages() {
    let mut siege = Siege::with(&[("retained-messages-max: 1000000", "retained-messages-max: 1000")]);
    let mut client = siege.client("hoarder");
    let count = number(3_000, 20_000);
    let mut refused = 0;
    for at in 0..count {
        let topic = field(format!("r/{at}").as_bytes());
        client.send(&framed(0x33, &[&topic[..], &[0, 1, 0], &[b'x'; 1_000]].concat()));
        refused += usize::from(client.packet().unwrap() == "PUBACK #1 0x97");
    }
    assert_eq!(refused, count - 1_000);
    siege.broker.wait_for("limits.retained-messages-max");
    siege.holds(16, 80);
}

#[test]
fn half_open_connections_end_with_their_keep_alive() {
    let mut siege = Siege::with(&[]);
    let mut silent: Vec<Raw> = (0..number(100, 1_000))
        .map(|at| {
            let mut raw = Raw::open(siege.broker.plain_port, Version::V5);
            let body = [field(b"MQTT"), vec![5, 2, 0, 1, 0], field(format!("half{at}").as_bytes())].concat();
            raw.send(&framed(0x10, &body));
            assert_eq!(raw.packet().as_deref(), Some("CONNACK"));
            raw
        })
        .collect();
    let started = Instant::now();
    for raw in &mut silent {
        assert_eq!(raw.packet().as_deref(), Some("DISCONNECT 0x8d"));
        assert_eq!(raw.packet(), None);
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    siege.holds(32, 2 * silent.len() + 60);
}

#[test]
fn a_reader_of_one_byte_at_a_time() {
    let mut siege = Siege::with(&[]);
    let mut slow = siege.client("slow");
    slow.send(&framed(0x82, &[&[0, 1, 0][..], &field(b"#"), &[1]].concat()));
    slow.packet();
    let mut publisher = siege.client("p");
    let payload = vec![b'x'; 10_000];
    let mut byte = [0; 1];
    for at in 0..number(3_000, 20_000) {
        publisher.send(&framed(0x30, &[&field(b"flood")[..], &[0], &payload].concat()));
        if at % 100 == 0 {
            slow.stream.read_exact(&mut byte).unwrap();
        }
    }
    publisher.send(&[0xC0, 0]);
    assert_eq!(publisher.packet().as_deref(), Some("PINGRESP"));
    // limits.backlog-bytes-max is 1 MiB; what was dropped is counted.
    siege.holds(32, 60);
    let status = siege.site.ok(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(status["dropped"].as_u64().is_some_and(|dropped| dropped > 0), "{status}");
}

#[test]
fn a_thousand_wrong_passwords() {
    let mut siege = Siege::with(&[]);
    let mut answers = std::collections::BTreeMap::new();
    for at in 0..number(300, 1_000) {
        let name = format!("guess{}", at % 50);
        let (_, answer) = Raw::connect(siege.broker.plain_port, Version::V5, "c", Some((&name, "wrong")));
        *answers.entry(answer).or_insert(0) += 1;
    }
    assert!(answers["CONNACK 0x97"] > 200, "{answers:?}");
    siege.broker.wait_for("too many wrong passwords from its address");
    siege.holds(64, 120);
}
