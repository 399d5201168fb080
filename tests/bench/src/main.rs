//! Measures a broker from outside, beside its peers in one run. The machine is shared: ratios are the
//! figures. What is printed are Markdown tables.
//!
//! `cargo run --release --manifest-path tests/bench/Cargo.toml -- speed|flat|durable|queue|attacks target/release/lockgate [ROUNDS]`
//!
//! `speed [LOCKGATE [ROUNDS [NAME]]]`: CPU of each message and memory of each client, beside the peers, which `peers`
//! builds; `floor`: the same bytes through a bare relay; `flat`: how little it depends on what else is there;
//! `pki`: what a long ledger costs; `durable`: what keeping costs; `queue`: a million messages for those who are not there; `attacks`: what
//! hostile clients do to the latency of another client.
//!
//! A witness sends itself a message and waits for it, over and over: idle, then under each attack, in
//! alternation. What is printed is a Markdown table: the p99 of each, the median of the rounds, and its
//! ratio to the idle p99 of the same round. The machine is shared: the ratio is the figure.

#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the world")]

mod attacks;
mod broker;
mod durable;
mod flat;
mod floor;
mod peer;
mod pki;
mod queue;
mod speed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attacks::{ATTACKS, Attack};
use broker::{Broker, Client};
use peer::Kind;

/// How long each measurement lasts.
const WINDOW: Duration = Duration::from_secs(2);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let binary = arguments.next().unwrap_or_else(|| "target/release/lockgate".to_owned());
    let rounds: usize = arguments.next().map_or(3, |text| text.parse().expect("ROUNDS is a number"));
    match what.as_str() {
        "peers" => build_peers(),
        "speed" => speed::run(&binary, rounds, &arguments.next().unwrap_or_default()),
        "floor" => floor::run(rounds),
        "flat" => flat::run(&binary, rounds),
        "pki" => pki::run(&binary, rounds),
        "attacks" => attacks(&binary, rounds),
        "durable" => durable::run(&binary, rounds),
        "queue" => queue::run(&binary, &[Kind::Lockgate("fsync")]),
        "queue-peer" => queue::run(&binary, &[Kind::Mosquitto { every_change: false }]),
        _ => {
            eprintln!(
                "usage: lockgate-bench peers|speed|floor|flat|pki|attacks|durable|queue|queue-peer [LOCKGATE] [ROUNDS]"
            );
            std::process::exit(2);
        }
    }
}

/// Installs rumqttd beside this package; Debian's mosquitto has to be there.
fn build_peers() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/.peers");
    let status = std::process::Command::new("cargo")
        .args(["install", "rumqttd", "--version", "0.20.0", "--root", root])
        .status();
    assert!(status.expect("cargo runs").success(), "rumqttd is not built");
}

fn attacks(binary: &str, rounds: usize) {
    println!("| Attack | idle p99 (µs) | p99 under it (µs) | ratio: median (min to max) |");
    println!("|---|---|---|---|");
    for attack in ATTACKS {
        let mut measured: Vec<(f64, f64)> = (0..rounds).map(|_| measure(binary, attack)).collect();
        measured.sort_by(|one, other| (one.1 / one.0).total_cmp(&(other.1 / other.0)));
        let (idle, under) = measured[rounds / 2];
        let ratio = |at: usize| measured[at].1 / measured[at].0;
        println!(
            "| {} | {idle:.0} | {under:.0} | {:.1} ({:.1} to {:.1}) |",
            attack.name,
            ratio(rounds / 2),
            ratio(0),
            ratio(rounds - 1)
        );
    }
}

/// The witness's p99 idle and under an attack, in one broker's life, µs.
fn measure(binary: &str, attack: &Attack) -> (f64, f64) {
    let broker = Broker::start(binary);
    let mut witness = Client::connect(broker.plain_port, "witness", None);
    witness.subscribe("witness");
    round_trips(&mut witness, Duration::from_millis(300));
    let idle = p99(round_trips(&mut witness, WINDOW));
    let stop = Arc::new(AtomicBool::new(false));
    let attackers: Vec<_> = (0..attack.threads)
        .map(|number| {
            let (stop, ports, run) = (stop.clone(), broker.ports(), attack.run);
            std::thread::spawn(move || {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    run(ports, number, turn);
                    turn += 1;
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let under = p99(round_trips(&mut witness, WINDOW));
    stop.store(true, Ordering::Relaxed);
    for attacker in attackers {
        attacker.join().expect("an attacker ends");
    }
    (idle, under)
}

fn round_trips(witness: &mut Client, window: Duration) -> Vec<Duration> {
    let until = Instant::now() + window;
    let mut times = Vec::new();
    while Instant::now() < until {
        let started = Instant::now();
        witness.publish("witness", b"x");
        witness.wait_for_a_message();
        times.push(started.elapsed());
        // A sensor, not a flood.
        std::thread::sleep(Duration::from_micros(500));
    }
    times
}

fn p99(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() * 99 / 100].as_secs_f64() * 1e6
}
