//! What does not depend on how much else there is: the cost of a delivery beside many connections and
//! subscriptions that have nothing to do with it, and others' latency beside a subscriber that reads nothing.

use std::process::Stdio;
use std::time::Duration;

use crate::durable::Client;
use crate::peer::{Kind, Peer, Wire};
use crate::speed::{generator, is_valid, median, number, report_of, shown};

const PEERS: [Kind; 2] = [Kind::Lockgate("off"), Kind::Mosquitto { every_change: false }];

/// A figure of one run; `None`: the peer did not come through.
type Measure = fn(&str, &Peer, usize) -> Option<f64>;

/// CPU µs of a delivery, QoS 0, from one to one.
fn delivery(lockgate: &str, peer: &Peer) -> Option<f64> {
    let mut command = generator(lockgate, peer, Wire::Plain, &["throughput", "--seconds", "2"]);
    let report = report_of(&mut command, &peer.name()).filter(is_valid)?;
    number(&report, "/broker-cpu-micros-each")
}

fn beside_connections(lockgate: &str, peer: &Peer, count: usize) -> Option<f64> {
    let count = count.to_string();
    let mut command = generator(lockgate, peer, Wire::Plain, &["connections", "--count", &count, "--hold", "60"]);
    let mut held = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    std::thread::sleep(Duration::from_secs(4));
    let each = delivery(lockgate, peer);
    // Still there: they were all held.
    let is_held = held.try_wait().ok()?.is_none();
    drop(held.kill());
    drop(held.wait());
    each.filter(|_| is_held)
}

/// A thousandth of them for each client, one in ten with a wildcard.
fn beside_subscriptions(lockgate: &str, peer: &Peer, count: usize) -> Option<f64> {
    let clients = count.min(1_000);
    let mut held: Vec<Client> =
        (0..clients).map(|number| Client::connect(peer.port, &format!("c{number}"), true)).collect();
    for (number, client) in held.iter_mut().enumerate() {
        let filters: Vec<String> = (0..count / clients)
            .map(|at| match at % 10 {
                0 => format!("site/{number}/+/sensor{at}"),
                _ => format!("site/{number}/room{at}/sensor{at}"),
            })
            .collect();
        // What a SUBSCRIBE may hold differs from broker to broker.
        for some in filters.chunks(100) {
            client.subscribe_all(some.iter().cloned())?;
        }
    }
    delivery(lockgate, peer)
}

/// p99 of 500 messages a second, µs, beside 50,000 QoS 0 messages of 1 KiB a second to one subscriber that reads
/// them and to `stalled` that subscribed and read nothing.
fn beside_stalled(lockgate: &str, peer: &Peer, stalled: usize) -> Option<f64> {
    let mut deaf: Vec<Client> =
        (0..stalled).map(|number| Client::connect(peer.port, &format!("deaf{number}"), true)).collect();
    for client in &mut deaf {
        client.subscribe("flood/#");
    }
    let flood = ["throughput", "--topic", "flood", "--rate", "50000", "--payload", "1024", "--seconds", "7"];
    let mut command = generator(lockgate, peer, Wire::Plain, &flood);
    let mut flood = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    std::thread::sleep(Duration::from_secs(2));
    let mut command = generator(lockgate, peer, Wire::Plain, &["latency", "--rate", "500", "--seconds", "4"]);
    let report = report_of(&mut command, &peer.name()).filter(is_valid);
    let is_flooded = flood.wait().ok()?.success();
    eprintln!("{}, {stalled} stalled: {:.0} MiB at most", peer.name(), peer.memory_mib("VmHWM"));
    number(&report?, "/latency-micros/p99").filter(|_| is_flooded)
}

/// Each count in turn, brokers in alternation, a fresh one for each figure.
pub(crate) fn run(lockgate: &str, rounds: usize) {
    let rows: [(&str, Measure, &[usize]); 3] = [
        ("CPU µs a delivery beside idle connections", beside_connections, &[10, 1_000, 10_000]),
        ("CPU µs a delivery beside subscriptions", beside_subscriptions, &[1, 1_000, 100_000, 1_000_000]),
        ("p99 µs beside a flood and readers that stall", beside_stalled, &[0, 1, 10]),
    ];
    println!("| What | how many | Lockgate: median (min to max) | mosquitto | ratio |");
    println!("|---|---|---|---|---|");
    for (name, measure, counts) in rows {
        for count in counts {
            let mut measured = vec![Vec::new(); PEERS.len()];
            for _ in 0..rounds {
                for (at, kind) in PEERS.iter().enumerate() {
                    let peer = Peer::start(lockgate, *kind, Wire::Plain);
                    measured[at].extend(measure(lockgate, &peer, *count));
                }
            }
            let medians: Vec<_> = measured.into_iter().map(median).collect();
            let cells: Vec<String> = medians
                .iter()
                .map(|of| match of {
                    None => "void".to_owned(),
                    Some((middle, least, most)) => {
                        format!("{} ({} to {})", shown(*middle), shown(*least), shown(*most))
                    }
                })
                .collect();
            let ratio = medians[0].zip(medians[1]).map(|((ours, ..), (theirs, ..))| shown(ours / theirs));
            println!("| {name} | {count} | {} | {} |", cells.join(" | "), ratio.unwrap_or_default());
        }
    }
}
