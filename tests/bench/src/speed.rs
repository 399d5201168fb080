//! What a message, a connection, a subscription and a retained message cost, beside the peers.
//!
//! The generator is `lockgate bench`, a process of its own: it reads the broker's CPU and memory from /proc over
//! the same time in which it counts, and says how busy it was itself.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::durable::{Client, publish};
use crate::peer::{Kind, Peer, Wire};

/// Seconds of one measurement.
const SECONDS: &str = "2";
/// A row in which the generator was busier than this, of a core, is void.
const BUSY_MAX: f64 = 0.9;
const BUSY: &str = "/generator-busiest-thread";

/// A figure of a generator's report, with its unit, and what it is to be at most.
struct Figure {
    unit: &'static str,
    of: fn(&Value) -> Option<f64>,
    aim: Option<f64>,
}

/// Some rows.
struct Workload {
    name: &'static str,
    wire: Wire,
    arguments: &'static [&'static str],
    figures: &'static [Figure],
}

pub(crate) fn number(report: &Value, place: &str) -> Option<f64> {
    report.pointer(place).and_then(Value::as_f64)
}

const fn cpu(unit: &'static str, aim: f64) -> Figure {
    Figure { unit, of: |report| number(report, "/broker-cpu-micros-each"), aim: Some(aim) }
}

const RATE: Figure = Figure {
    unit: "deliveries a second",
    of: |report| Some(number(report, "/delivered")? / number(report, "/seconds")?),
    aim: None,
};

const fn memory_each(aim: f64) -> Figure {
    Figure {
        unit: "bytes of memory each",
        of: |report| {
            let (before, after) =
                (number(report, "/broker-rss-bytes-before")?, number(report, "/broker-rss-bytes-after")?);
            Some((after - before) / number(report, "/connections")?)
        },
        aim: Some(aim),
    }
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "QoS 0, 1 to 1",
        wire: Wire::Plain,
        arguments: &["throughput"],
        figures: &[cpu("CPU µs a delivery", 0.40), RATE],
    },
    Workload {
        name: "QoS 0, 1 to 100",
        wire: Wire::Plain,
        arguments: &["fan-out"],
        figures: &[cpu("CPU µs a delivery", 0.15), RATE],
    },
    Workload {
        name: "QoS 1, 100 to 1, window 20",
        wire: Wire::Plain,
        arguments: &["fan-in"],
        figures: &[cpu("CPU µs a delivery", 0.9)],
    },
    Workload {
        name: "QoS 1, 1 to 1, window 100",
        wire: Wire::Plain,
        arguments: &["throughput", "--qos", "1", "--window", "100"],
        figures: &[cpu("CPU µs a delivery", 1.2)],
    },
    Workload {
        name: "QoS 2, 1 to 1, window 100",
        wire: Wire::Plain,
        arguments: &["throughput", "--qos", "2", "--window", "100"],
        figures: &[cpu("CPU µs a delivery", 2.4)],
    },
    Workload {
        name: "QoS 1 at 1,000 a second",
        wire: Wire::Plain,
        arguments: &["latency"],
        figures: &[
            Figure { unit: "p50 µs", of: |report| number(report, "/latency-micros/p50"), aim: Some(43.0) },
            Figure { unit: "p99 µs", of: |report| number(report, "/latency-micros/p99"), aim: Some(126.0) },
            cpu("CPU µs a message", 35.0),
        ],
    },
    Workload {
        name: "QoS 0, 1 to 1, 16 KiB",
        wire: Wire::Plain,
        arguments: &["throughput", "--payload", "16384"],
        figures: &[cpu("CPU µs a delivery", 15.5)],
    },
    Workload {
        name: "QoS 0, 1 to 1, TLS 1.3",
        wire: Wire::Tls,
        arguments: &["throughput"],
        figures: &[cpu("CPU µs a delivery", 0.65)],
    },
    Workload {
        name: "QoS 0, 1 to 1, TLS 1.3, 16 KiB",
        wire: Wire::Tls,
        arguments: &["throughput", "--payload", "16384"],
        figures: &[cpu("CPU µs a delivery", 28.0)],
    },
    Workload {
        name: "plain connect, CONNACK, close",
        wire: Wire::Plain,
        arguments: &["connections", "--count", "4000"],
        figures: &[cpu("CPU µs each", 45.0)],
    },
    Workload {
        name: "the same with a TLS 1.3 full handshake",
        wire: Wire::Tls,
        arguments: &["connections", "--count", "2000"],
        figures: &[cpu("CPU µs each", 420.0)],
    },
    Workload {
        name: "the same with a mutual TLS handshake of a device that was here before",
        wire: Wire::MutualTls,
        arguments: &["connections", "--count", "1000"],
        figures: &[cpu("CPU µs each", 600.0)],
    },
    Workload {
        name: "idle plain connection",
        wire: Wire::Plain,
        arguments: &["connections", "--count", "5000", "--hold", "2"],
        figures: &[memory_each(600.0)],
    },
    Workload {
        name: "idle TLS 1.3 connection",
        wire: Wire::Tls,
        arguments: &["connections", "--count", "2000", "--hold", "2"],
        figures: &[memory_each(12_000.0)],
    },
];

const PEERS: [Kind; 3] = [Kind::Lockgate("off"), Kind::Mosquitto { every_change: false }, Kind::Rumqttd];

/// What the generator says of one run; `None`: it could not, or the peer could not.
fn generate(lockgate: &str, peer: &Peer, workload: &Workload) -> Option<Value> {
    let mut command = generator(lockgate, peer, workload.wire, workload.arguments);
    report_of(command.args(["--seconds", SECONDS]), &format!("{}, {}", peer.name(), workload.name))
}

/// The generator against a peer.
pub(crate) fn generator(lockgate: &str, peer: &Peer, wire: Wire, arguments: &[&str]) -> Command {
    let scheme = if wire == Wire::Plain { "mqtt" } else { "mqtts" };
    let mut command = Command::new(lockgate);
    command.arg("bench").args(arguments).arg("--json");
    command.args(["--pid", &peer.pid().to_string(), "--url", &format!("{scheme}://localhost:{}", peer.port)]);
    if wire != Wire::Plain {
        command.arg("--ca").arg(peer.file("pki/ca.crt"));
    }
    if wire == Wire::MutualTls {
        command.arg("--cert").arg(peer.file("pki/clients/c1/client.crt"));
        command.arg("--key").arg(peer.file("pki/clients/c1/client.key"));
    }
    command
}

/// Runs the generator; `what` is measured.
pub(crate) fn report_of(command: &mut Command, what: &str) -> Option<Value> {
    let output = command.output().expect("lockgate bench runs");
    if !output.status.success() {
        eprintln!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    serde_json::from_slice(&output.stdout).ok()
}

/// Whether it is the broker that was measured.
pub(crate) fn is_valid(report: &Value) -> bool {
    let is_idle = number(report, BUSY).is_none_or(|busy| busy <= BUSY_MAX);
    is_idle && number(report, "/generator-cpu-seconds").is_some()
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    Some((*values.get(values.len() / 2)?, *values.first()?, *values.last()?))
}

pub(crate) fn shown(value: f64) -> String {
    match value {
        value if value.abs() < 10.0 => format!("{value:.2}"),
        value if value.abs() < 1_000.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// One row of the table: medians with minimum and maximum, and the ratio to each peer.
fn row(name: &str, unit: &str, aim: Option<f64>, measured: &[Vec<f64>]) {
    let medians: Vec<_> = measured.iter().map(|values| median(values.clone())).collect();
    let ours = medians[0].map(|(middle, ..)| middle);
    let cells = medians.iter().enumerate().map(|(at, of)| match of {
        None => "void".to_owned(),
        Some((middle, least, most)) => {
            let ratio = ours.filter(|_| at > 0).map(|ours| format!("; ratio {:.2}", ours / middle));
            format!("{} ({} to {}){}", shown(*middle), shown(*least), shown(*most), ratio.unwrap_or_default())
        }
    });
    let aim = aim.map_or_else(String::new, shown);
    println!("| {name} | {unit} | {} | {aim} |", cells.collect::<Vec<_>>().join(" | "));
}

/// Prints the table; `only`: the rows whose names contain it.
pub(crate) fn run(lockgate: &str, rounds: usize, only: &str) {
    println!("| Workload, 64-byte payload unless said | figure | Lockgate | mosquitto | rumqttd | aim |");
    println!("|---|---|---|---|---|---|");
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(only)) {
        let mut reports: Vec<Vec<Value>> = PEERS.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (at, kind) in PEERS.iter().enumerate() {
                let peer = Peer::start(lockgate, *kind, workload.wire);
                let report = generate(lockgate, &peer, workload);
                if let Some(busy) = report.as_ref().and_then(|report| number(report, BUSY)) {
                    eprintln!("{}, {}: generator {busy:.2} of a core", kind.name(), workload.name);
                }
                reports[at].extend(report.filter(is_valid));
            }
        }
        for Figure { unit, of, aim } in workload.figures {
            let measured: Vec<Vec<f64>> = reports.iter().map(|peer| peer.iter().filter_map(of).collect()).collect();
            row(workload.name, unit, *aim, &measured);
        }
    }
    for state in STATES.iter().filter(|state| state.name.contains(only)) {
        let mut measured: Vec<Vec<Vec<f64>>> = state.figures.iter().map(|_| vec![Vec::new(); PEERS.len()]).collect();
        for _ in 0..rounds {
            for (at, kind) in PEERS.iter().enumerate() {
                let figures = (state.measure)(lockgate, *kind);
                figures.into_iter().enumerate().for_each(|(figure, value)| measured[figure][at].extend(value));
            }
        }
        for ((unit, aim), measured) in state.figures.iter().zip(&measured) {
            row(state.name, unit, Some(*aim), measured);
        }
    }
}

/// What a broker in some state costs.
struct State {
    name: &'static str,
    figures: &'static [(&'static str, f64)],
    /// A figure each; `None`: the broker does not come through.
    measure: fn(&str, Kind) -> Vec<Option<f64>>,
}

const STATES: &[State] = &[
    State {
        name: "100,000 subscriptions of 1,000 clients, 10,000 with `+`",
        figures: &[("bytes of memory each", 450.0), ("CPU µs of a publish under them", 3.0)],
        measure: subscriptions,
    },
    State {
        name: "1,000,000 retained messages",
        figures: &[("bytes each beyond topic and payload", 400.0)],
        measure: |lockgate, kind| vec![retained(lockgate, kind)],
    },
    State {
        name: "start",
        figures: &[("ms to the first CONNACK", 4.0), ("MB of memory", 6.0)],
        measure: |lockgate, kind| {
            let peer = Peer::start(lockgate, kind, Wire::Plain);
            std::thread::sleep(Duration::from_millis(300));
            vec![Some(peer.took.as_secs_f64() * 1_000.0), Some(peer.memory_mib("VmRSS") * 1.048_576)]
        },
    },
];

const CLIENTS: usize = 1_000;
const FILTERS: usize = 100;

/// Bytes of a subscription, and CPU µs of a publish under all of them that one client gets.
fn subscriptions(lockgate: &str, kind: Kind) -> Vec<Option<f64>> {
    let peer = Peer::start(lockgate, kind, Wire::Plain);
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::connect(peer.port, &format!("c{number}"), true)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let before = peer.memory_mib("VmRSS");
    for (number, client) in clients.iter_mut().enumerate() {
        let filters = (0..FILTERS).map(|at| match at % 10 {
            0 => format!("site/{number}/+/sensor{at}"),
            _ => format!("site/{number}/room{at}/sensor{at}"),
        });
        if client.subscribe_all(filters).is_none() {
            return vec![None, None];
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let each = (peer.memory_mib("VmRSS") - before) * 1_048_576.0 / (CLIENTS * FILTERS) as f64;
    let mut publisher = Client::connect(peer.port, "publisher", true);
    let count = 200 * CLIENTS;
    let cpu = peer.cpu_secs();
    for number in 0..count {
        let (client, at) = (number % CLIENTS, number / CLIENTS % FILTERS);
        if publisher.publish_qos_0(&format!("site/{client}/room{at}/sensor{at}"), &[b'x'; 64]).is_none() {
            return vec![Some(each), None];
        }
    }
    let came = publisher.is_answered(Duration::from_secs(5));
    let cpu = (peer.cpu_secs() - cpu) * 1e6 / count as f64;
    vec![Some(each), came.then_some(cpu)]
}

/// Bytes of a retained message beside its topic and payload.
fn retained(lockgate: &str, kind: Kind) -> Option<f64> {
    const COUNT: usize = 1_000_000;
    let peer = Peer::start(lockgate, kind, Wire::Plain);
    let mut publisher = Client::connect(peer.port, "publisher", true);
    let before = peer.memory_mib("VmRSS");
    let mut content = 0;
    for number in 0..COUNT {
        let topic = format!("site/{}/room{}/sensor", number / 1_000, number % 1_000);
        content += topic.len() + 64;
        let (mut packet, at) = publish(&topic, &[b'x'; 64]);
        packet[0] |= 1;
        // At QoS 1, so that nobody drops any; answers are read in passing.
        publisher.send_acknowledged(&mut packet, at, number)?;
    }
    publisher.read_last_acknowledged()?;
    publisher.is_answered(Duration::from_secs(60)).then_some(())?;
    std::thread::sleep(Duration::from_secs(1));
    Some(((peer.memory_mib("VmRSS") - before) * 1_048_576.0 - content as f64) / COUNT as f64)
}
