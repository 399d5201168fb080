//! What it costs to keep what was acknowledged: QoS 1 to persistent sessions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::broker::{connect_with, field, framed};
use crate::peer::{Kind, Peer, Wire};

const WINDOW: usize = 20;
const LASTS: Duration = Duration::from_secs(4);
const PAYLOAD: usize = 64;

/// An MQTT 3.1.1 client whose session stays, or does not.
pub(crate) struct Client {
    stream: TcpStream,
}

impl Client {
    pub(crate) fn connect(port: u16, client_id: &str, clean: bool) -> Client {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        stream.write_all(&connect_with(client_id, clean, None, None)).expect("sent");
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).expect("CONNACK");
        assert_eq!(connack[3], 0, "CONNACK");
        Client { stream }
    }

    pub(crate) fn subscribe(&mut self, filter: &str) {
        let body = [&[0, 1][..], &field(filter.as_bytes()), &[1]].concat();
        self.stream.write_all(&framed(0x82, &body)).expect("sent");
        let mut suback = [0; 5];
        self.stream.read_exact(&mut suback).expect("SUBACK");
    }
}

impl Client {
    /// QoS 0 filters in one packet; `None` if the broker does not agree in time.
    pub(crate) fn subscribe_all(&mut self, filters: impl Iterator<Item = String>) -> Option<()> {
        let fields: Vec<Vec<u8>> = filters.map(|filter| [field(filter.as_bytes()), vec![0]].concat()).collect();
        self.stream.write_all(&framed(0x82, &[&[0, 1][..], &fields.concat()].concat())).ok()?;
        let mut suback = vec![0; fields.len() + 4];
        self.stream.read_exact(&mut suback).ok()
    }

    pub(crate) fn publish_qos_0(&mut self, topic: &str, payload: &[u8]) -> Option<()> {
        self.stream.set_write_timeout(Some(Duration::from_secs(5))).ok()?;
        self.stream.write_all(&framed(0x30, &[&field(topic.as_bytes())[..], payload].concat())).ok()
    }

    /// A message at QoS 1, the next of many: one or two hundred under way at once, so that no broker waits for an
    /// acknowledgement of its acknowledgements.
    pub(crate) fn send_acknowledged(&mut self, packet: &mut [u8], at: usize, number: usize) -> Option<()> {
        packet[at..at + 2].copy_from_slice(&((number % 60_000) as u16 + 1).to_be_bytes());
        self.stream.write_all(packet).ok()?;
        if number > 100 && number % 100 == 99 { self.stream.read_exact(&mut [0; 400]).ok() } else { Some(()) }
    }

    /// The last hundred of those.
    pub(crate) fn read_last_acknowledged(&mut self) -> Option<()> {
        self.stream.read_exact(&mut [0; 400]).ok()
    }

    /// Whether the broker has come to the end of what was sent: it answers PINGREQ.
    pub(crate) fn is_answered(&mut self, patience: Duration) -> bool {
        drop(self.stream.set_read_timeout(Some(patience)));
        let asked = self.stream.write_all(&[0xC0, 0]);
        let mut answer = [0; 2];
        asked.and_then(|()| self.stream.read_exact(&mut answer)).is_ok() && answer == [0xD0, 0]
    }
}

/// PUBLISH at QoS 1; where its identifier stands.
pub(crate) fn publish(topic: &str, payload: &[u8]) -> (Vec<u8>, usize) {
    let body = [&field(topic.as_bytes())[..], &[0, 1], payload].concat();
    let bytes = framed(0x32, &body);
    let at = bytes.len() - payload.len() - 2;
    (bytes, at)
}

/// Keeps `window` messages under way until told to stop; counts what is acknowledged.
pub(crate) fn pump(port: u16, name: &str, topic: &str, window: usize, stop: &AtomicBool, count: &AtomicU64) {
    let mut client = Client::connect(port, name, true);
    let (packet, at) = publish(topic, &[b'x'; PAYLOAD]);
    let mut buffer = vec![0; 4 * 1024];
    let (mut next, mut left, mut due) = (1_u16, 0, window);
    while !stop.load(Ordering::Relaxed) {
        let mut out = Vec::with_capacity(due * packet.len());
        for _ in 0..due {
            let from = out.len();
            out.extend_from_slice(&packet);
            out[from + at..from + at + 2].copy_from_slice(&next.to_be_bytes());
            next = next.checked_add(1).unwrap_or(1);
        }
        client.stream.write_all(&out).expect("sent");
        // Acknowledgements are four bytes each; one may come in halves.
        let read = client.stream.read(&mut buffer).expect("PUBACK");
        assert!(read > 0, "the broker closed");
        due = (left + read) / 4;
        left = (left + read) % 4;
        count.fetch_add(due as u64, Ordering::Relaxed);
    }
}

/// Takes what comes and acknowledges it; calls `each` with every payload. Ends after `most` messages, or
/// when nothing comes for a second after `stop`.
pub(crate) fn consume(client: &mut Client, stop: &AtomicBool, most: u64, mut each: impl FnMut(&[u8])) -> u64 {
    client.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    let mut bytes: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 256 * 1024];
    let (mut count, mut quiet) = (0, 0);
    while count < most {
        let read = match client.stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => {
                quiet = 0;
                read
            }
            Err(_) if stop.load(Ordering::Relaxed) && (most == u64::MAX || quiet >= 20) => break,
            Err(_) => {
                quiet += 1;
                continue;
            }
        };
        bytes.extend_from_slice(&chunk[..read]);
        let (mut at, mut acks) = (0, Vec::new());
        while let Some((end, head)) = packet_end(&bytes[at..]) {
            let packet = &bytes[at..at + end];
            if packet[0] >> 4 == 3 {
                let topic = usize::from(u16::from_be_bytes([packet[head], packet[head + 1]]));
                let id = head + 2 + topic;
                acks.extend_from_slice(&[0x40, 2, packet[id], packet[id + 1]]);
                each(&packet[id + 2..]);
                count += 1;
            }
            at += end;
        }
        bytes.drain(..at);
        client.stream.write_all(&acks).expect("sent");
    }
    count
}

/// The length of the first packet, and of its fixed header.
fn packet_end(bytes: &[u8]) -> Option<(usize, usize)> {
    let (mut length, mut shift, mut at) = (0, 0, 1);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7F) << shift;
        at += 1;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (bytes.len() >= at + length).then_some((at + length, at))
}

/// Acknowledged messages a second, and CPU µs of the broker for each.
fn throughput(lockgate: &str, kind: Kind, publishers: usize) -> (f64, f64) {
    let peer = Peer::start(lockgate, kind, Wire::Plain);
    let mut subscriber = Client::connect(peer.port, "subscriber", false);
    subscriber.subscribe("bench/#");
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = {
        let stop = stop.clone();
        std::thread::spawn(move || consume(&mut subscriber, &stop, u64::MAX, |_| ()))
    };
    let writers: Vec<_> = (0..publishers)
        .map(|number| {
            let (stop, count, port) = (stop.clone(), count.clone(), peer.port);
            std::thread::spawn(move || {
                pump(port, &format!("p{number}"), &format!("bench/{number}"), WINDOW, &stop, &count);
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let (cpu, acknowledged, began) = (peer.cpu_secs(), count.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(LASTS);
    let acknowledged = (count.load(Ordering::Relaxed) - acknowledged) as f64;
    let (cpu, secs) = (peer.cpu_secs() - cpu, began.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("a publisher ends"));
    drop(peer);
    drop(reader.join());
    (acknowledged / secs, cpu * 1e6 / acknowledged)
}

/// p50 and p99 from publisher to subscriber at 500 messages a second, µs.
fn latency(lockgate: &str, kind: Kind) -> (f64, f64) {
    let peer = Peer::start(lockgate, kind, Wire::Plain);
    let mut subscriber = Client::connect(peer.port, "subscriber", false);
    subscriber.subscribe("bench/#");
    let stop = Arc::new(AtomicBool::new(false));
    let origin = Instant::now();
    let reader = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut times: Vec<u64> = Vec::new();
            consume(&mut subscriber, &stop, u64::MAX, |payload| {
                let sent = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
                times.push(origin.elapsed().as_nanos() as u64 - sent);
            });
            times
        })
    };
    let mut publisher = Client::connect(peer.port, "publisher", true);
    let mut acks = publisher.stream.try_clone().expect("a socket");
    let acknowledged = std::thread::spawn(move || {
        let mut buffer = vec![0; 4096];
        while matches!(acks.read(&mut buffer), Ok(count) if count > 0) {}
    });
    let began = Instant::now();
    for number in 0..2_000_u32 {
        let due = began + Duration::from_millis(2) * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut payload = [0; PAYLOAD];
        payload[..8].copy_from_slice(&(origin.elapsed().as_nanos() as u64).to_le_bytes());
        let (mut packet, at) = publish("bench/latency", &payload);
        packet[at..at + 2].copy_from_slice(&((number % 60_000) as u16 + 1).to_be_bytes());
        publisher.stream.write_all(&packet).expect("sent");
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    let mut times = reader.join().expect("the subscriber ends");
    drop(peer);
    drop(acknowledged.join());
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 1000] as f64 / 1000.0;
    (at(500), at(990))
}

const KINDS: [Kind; 5] = [
    Kind::Lockgate("fsync"),
    Kind::Lockgate("process"),
    Kind::Lockgate("off"),
    Kind::Mosquitto { every_change: false },
    Kind::Mosquitto { every_change: true },
];

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// Prints the tables of throughput and latency, peers in alternation.
pub(crate) fn run(lockgate: &str, rounds: usize) {
    println!(
        "| QoS 1 to a persistent session, window {WINDOW}, {PAYLOAD} bytes | publishers | msg/s: median (min to max) | of `off` | CPU µs a message |"
    );
    println!("|---|---|---|---|---|");
    for publishers in [1, 10, 100] {
        let mut measured: Vec<Vec<(f64, f64)>> = KINDS.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (at, kind) in KINDS.iter().enumerate() {
                measured[at].push(throughput(lockgate, *kind, publishers));
            }
        }
        let rates: Vec<_> = measured.iter().map(|of| median(of.iter().map(|one| one.0).collect())).collect();
        for (at, kind) in KINDS.iter().enumerate() {
            let (middle, least, most) = rates[at];
            let (cpu, _, _) = median(measured[at].iter().map(|one| one.1).collect());
            let share = middle / rates[2].0;
            println!(
                "| {} | {publishers} | {middle:.0} ({least:.0} to {most:.0}) | {share:.2} | {cpu:.1} |",
                kind.name()
            );
        }
    }
    println!("\n| 500 messages a second, publisher to subscriber | p50 µs: median (min to max) | p99 µs |");
    println!("|---|---|---|");
    let mut measured: Vec<Vec<(f64, f64)>> = KINDS.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (at, kind) in KINDS.iter().enumerate() {
            measured[at].push(latency(lockgate, *kind));
        }
    }
    for (at, kind) in KINDS.iter().enumerate() {
        let (p50, least, most) = median(measured[at].iter().map(|one| one.0).collect());
        let (p99, p99_least, p99_most) = median(measured[at].iter().map(|one| one.1).collect());
        println!(
            "| {} | {p50:.0} ({least:.0} to {most:.0}) | {p99:.0} ({p99_least:.0} to {p99_most:.0}) |",
            kind.name()
        );
    }
}
