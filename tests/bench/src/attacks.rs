//! What hostile clients do; each is called again and again until its time is over.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::broker::{Client, Ports, connect, field, framed};

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) threads: usize,
    pub(crate) run: fn(Ports, usize, usize),
}

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "connections opened and dropped", threads: 1, run: open_and_drop },
    Attack { name: "TLS handshakes that are garbage", threads: 1, run: garbage_handshakes },
    Attack { name: "CONNECTs of the maximum size that do not end", threads: 1, run: large_connects },
    Attack { name: "wrong passwords", threads: 1, run: wrong_passwords },
    Attack { name: "10,000 filters, again and again", threads: 1, run: filters },
    Attack { name: "wills, 100 at a time", threads: 1, run: wills },
    Attack { name: "retained messages", threads: 1, run: retained },
    Attack { name: "`#` over many retained messages", threads: 1, run: wide_subscriptions },
    Attack { name: "a reader of one byte at a time, flooded", threads: 1, run: slow_reader },
];

fn open(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    Some(stream)
}

fn open_and_drop(ports: Ports, _: usize, turn: usize) {
    let mut held: Vec<TcpStream> = (0..50).filter_map(|_| open(ports.plain)).collect();
    for (at, stream) in held.iter_mut().enumerate() {
        let bytes = if at % 2 == 0 { vec![0x10] } else { connect(&format!("o{turn}-{at}"), None, None) };
        drop(stream.write_all(&bytes));
    }
}

fn garbage_handshakes(ports: Ports, _: usize, _: usize) {
    if let Some(mut stream) = open(ports.tls) {
        drop(stream.write_all(&[0x16, 0x03, 0x01, 0xFF, 0xFF, 0x01, 0xFF, 0xFF, 0xFF]));
        drop(stream.write_all(&[0; 70_000]));
        drop(stream.read(&mut [0; 64]));
    }
}

fn large_connects(ports: Ports, _: usize, _: usize) {
    let mut bytes = connect(&"x".repeat(65_000), None, None);
    bytes[1..4].copy_from_slice(&[0xFC, 0xFF, 0x0F]);
    bytes.resize(250_000, b'x');
    let mut held: Vec<TcpStream> = (0..20).filter_map(|_| open(ports.plain)).collect();
    for stream in &mut held {
        drop(stream.write_all(&bytes));
    }
}

fn wrong_passwords(ports: Ports, _: usize, turn: usize) {
    if let Some(mut stream) = open(ports.plain) {
        drop(stream.write_all(&connect("c", Some((&format!("guess{}", turn % 100), "wrong")), None)));
        drop(stream.read(&mut [0; 64]));
    }
}

fn filters(ports: Ports, _: usize, _: usize) {
    let mut client = Client::connect(ports.plain, "greedy", None);
    for start in (0..10_000).step_by(500) {
        let filters: Vec<u8> =
            (start..start + 500).flat_map(|at| [field(format!("f/{at}/+/x").as_bytes()), vec![0]].concat()).collect();
        drop(client.stream.write_all(&framed(0x82, &[&[0, 1][..], &filters].concat())));
        drop(client.stream.read(&mut [0; 2_048]));
    }
}

fn wills(ports: Ports, _: usize, turn: usize) {
    let dying: Vec<Client> = (0..100)
        .map(|at| Client::connect(ports.plain, &format!("d{turn}-{at}"), Some(&format!("will/{at}"))))
        .collect();
    drop(dying);
}

fn retained(ports: Ports, _: usize, turn: usize) {
    let mut client = Client::connect(ports.plain, "hoarder", None);
    for at in 0..500 {
        let topic = field(format!("r/{turn}/{at}").as_bytes());
        drop(client.stream.write_all(&framed(0x31, &[&topic[..], &[b'x'; 200]].concat())));
    }
    drop(client.stream.write_all(&[0xC0, 0]));
    drop(client.stream.read(&mut [0; 64]));
}

fn wide_subscriptions(ports: Ports, number: usize, turn: usize) {
    if turn == 0 {
        (0..40).for_each(|turn| retained(ports, number, turn));
    }
    let mut client = Client::connect(ports.plain, "wide", None);
    drop(client.stream.set_read_timeout(Some(Duration::from_millis(20))));
    drop(client.stream.write_all(&framed(0x82, &[&[0, 1][..], &field(b"r/#"), &[0]].concat())));
    let mut buffer = vec![0; 256 * 1024];
    while matches!(client.stream.read(&mut buffer), Ok(1..)) {}
}

fn slow_reader(ports: Ports, _: usize, _: usize) {
    let mut slow = Client::connect(ports.plain, "slow", None);
    slow.subscribe("flood");
    let mut publisher = Client::connect(ports.plain, "flooder", None);
    for at in 0..1_000 {
        publisher.publish("flood", &[b'x'; 10_000]);
        if at % 100 == 0 {
            drop(slow.stream.read(&mut [0; 1]));
        }
    }
    drop(publisher.stream.write_all(&[0xC0, 0]));
    drop(publisher.stream.read(&mut [0; 64]));
}
