//! A million messages of 1 KiB for a thousand sessions that are not there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::durable::{Client, consume, publish};
use crate::peer::{Kind, Peer, Wire};

const SESSIONS: usize = 1_000;
const EACH: usize = 1_000;

/// Prints a line for each broker.
pub(crate) fn run(lockgate: &str, kinds: &[Kind]) {
    println!(
        "| {} messages of 1 KiB for {SESSIONS} absent sessions | queued in s | memory MiB (RssAnon) | disk MiB | restart after kill -9, s | after a stop, s | memory then | served in s | most memory meanwhile | then disk MiB |",
        SESSIONS * EACH
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for kind in kinds {
        one(lockgate, *kind);
    }
}

fn one(lockgate: &str, kind: Kind) {
    let mut peer = Peer::start(lockgate, kind, Wire::Plain);
    for session in 0..SESSIONS {
        Client::connect(peer.port, &format!("s{session}"), false).subscribe(&format!("q/{session}"));
    }
    let began = Instant::now();
    fill(peer.port);
    let queued = began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(3));
    let (memory, disk) = (peer.memory_mib("RssAnon"), peer.disk_mib());
    let killed = match kind {
        Kind::Lockgate(_) => format!("{:.2}", peer.restart("KILL").as_secs_f64()),
        // All of it would be lost.
        Kind::Mosquitto { .. } | Kind::Rumqttd => "(loses them)".to_owned(),
    };
    let stopped = peer.restart("TERM").as_secs_f64();
    let then = peer.memory_mib("RssAnon");
    let began = Instant::now();
    let (mut most, mut got) = (0.0_f64, 0);
    let never = AtomicBool::new(true);
    for session in 0..SESSIONS {
        let mut client = Client::connect(peer.port, &format!("s{session}"), false);
        got += consume(&mut client, &never, EACH as u64, |payload| assert_eq!(payload.len(), 1024));
        most = most.max(peer.memory_mib("RssAnon"));
    }
    let served = began.elapsed().as_secs_f64();
    assert_eq!(got as usize, SESSIONS * EACH, "{}", kind.name());
    std::thread::sleep(Duration::from_secs(5));
    println!(
        "| {} | {queued:.1} | {memory:.1} | {disk:.0} | {killed} | {stopped:.2} | {then:.1} | {served:.1} | {most:.1} | {:.0} |",
        kind.name(),
        peer.disk_mib()
    );
}

/// Publishes everything, a hundred messages under way at once.
fn fill(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker listens");
    stream.write_all(&crate::broker::connect("filler", None, None)).expect("sent");
    stream.read_exact(&mut [0; 4]).expect("CONNACK");
    let mut acks = [0; 400];
    let mut number = 0_usize;
    while number < SESSIONS * EACH {
        let mut out = Vec::new();
        for _ in 0..100 {
            let (mut packet, at) = publish(&format!("q/{}", number % SESSIONS), &[b'x'; 1024]);
            packet[at..at + 2].copy_from_slice(&((number % 60_000) as u16 + 1).to_be_bytes());
            out.extend_from_slice(&packet);
            number += 1;
        }
        stream.write_all(&out).expect("sent");
        stream.read_exact(&mut acks).expect("PUBACK");
    }
}
