//! `lockgate bench`: loads a broker, ours or any, and says what it did.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use crate::load::{self, Connections, Endpoint, Flow, Process, Trust, Usage};
use crate::types::QoS;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Workload {
    /// One publisher and one subscriber, as fast as it goes
    Throughput,
    /// One publisher, 100 subscribers
    FanOut,
    /// 100 publishers at QoS 1, one subscriber
    FanIn,
    /// 1,000 messages a second at QoS 1: how long each takes
    Latency,
    /// Connections: each opened and closed, or held
    Connections,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate bench throughput --url mqtt://localhost:1883\n  lockgate bench latency --rate 500 --qos 2 --user device1 --password-file password --topic device1/bench\n  lockgate bench connections --url mqtts://broker.lan --ca ca.pem --count 1000\n\nNothing is retained, and no session stays. Generator and broker share the machine\nwhen both run on it: compare brokers on one machine, in one go."
)]
pub(super) struct Arguments {
    #[arg(value_enum)]
    workload: Workload,
    /// The broker: mqtt://HOST[:PORT], or mqtts:// for TLS
    #[arg(long, value_name = "URL", default_value = "mqtt://localhost:1883")]
    url: String,
    /// The CA that the broker's certificate is of
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client's certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The client's key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The user name
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// The password, on its first line
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// What topics begin with: the client has to be allowed to read and write below it
    #[arg(long, value_name = "PREFIX", default_value = "lockgate-bench")]
    topic: String,
    /// QoS of publishers and subscribers [default: 0; 1 for fan-in and latency]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: Option<u8>,
    /// Bytes of each payload
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    payload: u32,
    /// How many publish, each to a topic of its own [default: 1; 100 for fan-in]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    publishers: Option<u32>,
    /// How many subscribe, each to all of it [default: 1; 100 for fan-out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    subscribers: Option<u32>,
    /// Messages that a publisher has under way at QoS 1 and 2
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=60_000))]
    window: u16,
    /// Messages a second of all publishers together [default: as many as it takes; 1000 for latency]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// How long it is measured, after half a second to warm up
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How many connections
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    count: u32,
    /// Hold all connections open for so many seconds, in place of closing each
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    hold: Option<u64>,
    /// The broker's process on this machine: its CPU and memory are measured too
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was measured; `None` where it does not apply.
#[derive(Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    workload: Option<Workload>,
    url: String,
    /// From the end of warming up to the last delivery, or connection.
    seconds: f64,
    published: Option<u64>,
    published_per_second: Option<f64>,
    acknowledged: Option<u64>,
    delivered: Option<u64>,
    lost: Option<u64>,
    connections: Option<usize>,
    latency_micros: Option<Latency>,
    broker_cpu_seconds: Option<f64>,
    /// CPU µs of the broker for each delivered message, or each connection.
    broker_cpu_micros_each: Option<f64>,
    broker_rss_bytes_before: Option<u64>,
    broker_rss_bytes_after: Option<u64>,
    broker_rss_bytes_max: Option<u64>,
    generator_cpu_seconds: Option<f64>,
    /// Of a core, by the busier of the generator's two threads: near 1 it is the generator that is measured.
    generator_busiest_thread: Option<f64>,
}

#[derive(Clone, Copy, serde::Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// A broker that is not there, or does not let us in.
fn refused(url: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("{url}: {error}"))
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let login = match (&arguments.user, &arguments.password_file) {
        (Some(user), Some(file)) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
            Some((user.clone(), text.lines().next().unwrap_or_default().to_owned()))
        }
        _ => None,
    };
    let identity = arguments.cert.as_deref().zip(arguments.key.as_deref());
    let trust = Trust { ca: arguments.ca.as_deref(), identity };
    let endpoint = Endpoint::new(&arguments.url, trust, login).map_err(Failure::configuration)?;
    let broker = arguments.pid.map(Process::new);
    let report = match arguments.workload {
        Workload::Connections => connections(&arguments, &endpoint, broker.as_ref())?,
        _ => messages(&arguments, &endpoint, broker.as_ref())?,
    };
    match arguments.json {
        true => say!("{}", serde_json::to_string_pretty(&report).map_err(Failure::new)?),
        false => report.print(),
    }
    Ok(())
}

/// What client ids of this run begin with; not every broker takes a slash in them.
fn client_prefix() -> String {
    format!("lockgate-bench-{}", std::process::id())
}

fn progress_bar(len: u64, template: &str) -> Result<ProgressBar, Failure> {
    let bar = ProgressBar::new(len);
    bar.set_style(ProgressStyle::with_template(template).map_err(Failure::new)?);
    Ok(bar)
}

fn messages(arguments: &Arguments, endpoint: &Endpoint, broker: Option<&Process>) -> Result<Report, Failure> {
    use Workload::{FanIn, FanOut, Latency as LatencyOf};
    let workload = arguments.workload;
    let qos = arguments.qos.unwrap_or(u8::from(matches!(workload, FanIn | LatencyOf)));
    let many = |wanted: Option<u32>, by_default: bool| wanted.unwrap_or(if by_default { 100 } else { 1 }) as usize;
    let flow = Flow {
        topic: format!("{}/{}", arguments.topic.trim_end_matches('/'), std::process::id()),
        client: client_prefix(),
        publishers: many(arguments.publishers, workload == FanIn),
        subscribers: many(arguments.subscribers, workload == FanOut),
        qos: QoS::from_bits(qos).expect("0 to 2 by the parser"),
        payload: arguments.payload as usize,
        window: usize::from(arguments.window),
        rate: arguments.rate.or((workload == LatencyOf).then_some(1_000)),
        warm_up: Duration::from_millis(500),
        lasts: Duration::from_secs(arguments.seconds),
    };
    raise_open_files((flow.publishers + flow.subscribers) as u64 + 100)?;
    let bar = progress_bar(1_000, "{bar:40} {msg}")?;
    let told = |part: f64, delivered: u64| {
        bar.set_position((part * 1_000.0) as u64);
        bar.set_message(format!("{delivered} messages"));
    };
    let outcome = load::run(endpoint, &flow, broker, told);
    bar.finish_and_clear();
    let outcome = outcome.map_err(|error| refused(&arguments.url, &error))?;
    if outcome.delivered == 0 {
        let topic = &arguments.topic;
        return Err(Failure::new(format!(
            "{}: of {} messages none came back: may the client write and read below {topic}/ (--topic)?",
            arguments.url, outcome.sent
        )));
    }
    let micros = |latency: &hdrhistogram::Histogram<u64>| {
        let at = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1_000.0;
        Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latency.max() as f64 / 1_000.0 }
    };
    Ok(Report {
        workload: Some(workload),
        url: arguments.url.clone(),
        seconds: outcome.secs,
        published: Some(outcome.sent),
        published_per_second: Some(outcome.sent_per_sec),
        acknowledged: (flow.qos != QoS::AtMostOnce).then_some(outcome.acknowledged),
        delivered: Some(outcome.delivered),
        lost: Some(outcome.lost),
        latency_micros: outcome.latency.as_ref().map(micros),
        broker_rss_bytes_max: outcome.broker.map(|_| outcome.broker_rss_max_bytes),
        generator_cpu_seconds: Some(outcome.own_cpu_secs),
        generator_busiest_thread: Some(outcome.busiest_thread),
        ..Report::default()
    }
    .with_broker(outcome.broker, outcome.delivered as f64))
}

fn connections(arguments: &Arguments, endpoint: &Endpoint, broker: Option<&Process>) -> Result<Report, Failure> {
    let count = arguments.count as usize;
    let plan = Connections { prefix: client_prefix(), count, threads: 2 };
    let bar = progress_bar(count as u64, "{bar:40} {pos} of {len} connections")?;
    let told = |done: usize| bar.set_position(done as u64);
    let outcome = match arguments.hold {
        None => load::open(endpoint, &plan, broker, told)
            .map(|cost| (cost, Some(cost.own_cpu_secs / cost.secs / plan.threads as f64))),
        Some(secs) => {
            // A file for each.
            raise_open_files(u64::from(arguments.count) + 100)?;
            let lasts = Duration::from_secs(secs);
            load::hold(endpoint, &plan, lasts, broker, told).map(|cost| (cost, None))
        }
    };
    bar.finish_and_clear();
    let (cost, generator_busiest_thread) = outcome.map_err(|error| refused(&arguments.url, &error))?;
    Ok(Report {
        workload: Some(arguments.workload),
        url: arguments.url.clone(),
        seconds: cost.secs,
        connections: Some(count),
        generator_cpu_seconds: Some(cost.own_cpu_secs),
        generator_busiest_thread,
        ..Report::default()
    }
    .with_broker(cost.broker, count as f64))
}

fn raise_open_files(wanted: u64) -> Result<(), Failure> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map_or(wanted, |maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: Some(maximum) })
        .map_err(|error| Failure::new(format!("{wanted} open files are needed (ulimit -n): {error}")))
}

impl Report {
    fn with_broker(self, usage: Option<(Usage, Usage)>, each: f64) -> Report {
        let Some((before, after)) = usage else { return self };
        let cpu = after.cpu_secs - before.cpu_secs;
        Report {
            broker_cpu_seconds: Some(cpu),
            broker_cpu_micros_each: (each > 0.0).then_some(cpu * 1e6 / each),
            broker_rss_bytes_before: Some(before.rss_bytes),
            broker_rss_bytes_after: Some(after.rss_bytes),
            ..self
        }
    }

    fn print(&self) {
        let rate = |count: u64| format!("{count} ({:.0} a second)", count as f64 / self.seconds);
        let lines = [
            (
                "published",
                self.published
                    .zip(self.published_per_second)
                    .map(|(count, rate)| format!("{count} ({rate:.0} a second)")),
            ),
            ("acknowledged", self.acknowledged.map(rate)),
            ("delivered", self.delivered.map(rate)),
            ("lost", self.lost.map(|lost| lost.to_string())),
            ("connections", self.connections.map(|count| rate(count as u64))),
            (
                "latency",
                self.latency_micros.map(|Latency { p50, p99, p999, max }| {
                    format!("p50 {p50:.0} µs, p99 {p99:.0} µs, p99.9 {p999:.0} µs, most {max:.0} µs")
                }),
            ),
            (
                "broker CPU",
                self.broker_cpu_micros_each.map(|each| {
                    let what = if self.connections.is_some() { "connection" } else { "delivered message" };
                    format!("{each:.2} µs a {what}")
                }),
            ),
            ("broker memory", self.broker_rss_bytes_after.map(|bytes| format!("{} KiB", bytes / 1024))),
        ];
        for (name, value) in lines.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            say!("{:<15}{value}", format!("{name}:"));
        }
        if self.generator_busiest_thread.is_some_and(|share| share > 0.9) {
            say!("The generator used all of a core: the broker may be faster than this says.");
        }
    }
}
