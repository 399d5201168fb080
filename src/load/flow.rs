//! Messages from publishers to subscribers.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Poll, Registry};

use super::endpoint::{Endpoint, VERSION};
use super::link::Link;
use super::process::{Process, Usage, clock};
use super::publisher::Publisher;
use super::subscriber::{Subscriber, Tally};
use crate::codec::{self, SubscriptionOptions, UserProperties};
use crate::types::{PacketId, QoS};

/// Who sends what to whom.
#[derive(Clone, Debug)]
pub struct Flow {
    /// What topics begin with.
    pub topic: String,
    /// What client ids begin with.
    pub client: String,
    /// Each has a topic of its own.
    pub publishers: usize,
    /// Each gets everything.
    pub subscribers: usize,
    pub qos: QoS,
    /// Bytes.
    pub payload: usize,
    /// Messages of one publisher under way at QoS 1 and 2.
    pub window: usize,
    /// Messages a second of all publishers, and then how long each takes is measured; `None`: as fast as it goes.
    pub rate: Option<u32>,
    pub warm_up: Duration,
    pub lasts: Duration,
}

/// What was measured, from the end of warming up until nothing was under way any more.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From its begin to the last delivery.
    pub secs: f64,
    pub sent: u64,
    /// While it lasted.
    pub sent_per_sec: f64,
    /// At QoS 1 and 2.
    pub acknowledged: u64,
    pub delivered: u64,
    /// Sent, warming up included, and not delivered when nothing came any more, or after 20 seconds.
    pub lost: u64,
    /// Nanoseconds from publisher to subscriber, with a rate.
    pub latency: Option<Histogram<u64>>,
    /// The broker's, before and after.
    pub broker: Option<(Usage, Usage)>,
    /// Most of its memory meanwhile, as seen.
    pub broker_rss_max_bytes: u64,
    /// CPU seconds of this process.
    pub own_cpu_secs: f64,
    /// The share of a core that the busier of its two threads used.
    pub busiest_thread: f64,
}

/// 0: warming up.
const MEASURING: u8 = 1;
const DRAINING: u8 = 2;
/// How long nothing has to come until nothing will.
const QUIET: Duration = Duration::from_millis(500);
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// What the threads tell each other.
#[derive(Debug, Default)]
struct Shared {
    phase: AtomicU8,
    is_over: AtomicBool,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    delivered: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl Shared {
    fn fail(&self, error: io::Error) {
        self.failure.lock().expect("nobody panics with it").get_or_insert(error);
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Runs a flow against a broker; `progress` is told how much of it is over, from 0 to 1, and how many messages
/// were delivered.
pub fn run(
    endpoint: &Endpoint,
    flow: &Flow,
    broker: Option<&Process>,
    mut progress: impl FnMut(f64, u64),
) -> io::Result<Outcome> {
    let shared = Shared::default();
    // Both threads are connected.
    let ready = Barrier::new(3);
    let origin = clock();
    std::thread::scope(|scope| {
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let reader =
            thread("subscribers").spawn_scoped(scope, || subscribe(endpoint, flow, &shared, &ready, origin))?;
        let writer = thread("publishers").spawn_scoped(scope, || publish(endpoint, flow, &shared, &ready, origin))?;
        ready.wait();
        let outcome = watch(flow, broker, &shared, &mut progress);
        shared.is_over.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| io::Error::other("the publishers' thread broke down"))?;
        let latency = reader.join().map_err(|_| io::Error::other("the subscribers' thread broke down"))?;
        if let Some(error) = shared.failure.lock().expect("nobody panics with it").take() {
            return Err(error);
        }
        Ok(Outcome { latency, ..outcome? })
    })
}

/// What is counted at one moment.
struct Sample {
    at: Instant,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    broker: Option<Usage>,
    own: Usage,
    threads: Vec<(String, f64)>,
}

impl Sample {
    fn take(shared: &Shared, broker: Option<&Process>) -> io::Result<Sample> {
        Ok(Sample {
            at: clock(),
            sent: shared.sent.load(Ordering::Relaxed),
            acknowledged: shared.acknowledged.load(Ordering::Relaxed),
            delivered: shared.delivered.load(Ordering::Relaxed),
            broker: broker.map(Process::usage).transpose()?,
            own: Process::own().usage()?,
            threads: Process::own().threads()?,
        })
    }
}

fn watch(
    flow: &Flow,
    broker: Option<&Process>,
    shared: &Shared,
    progress: &mut impl FnMut(f64, u64),
) -> io::Result<Outcome> {
    let whole = flow.warm_up + flow.lasts;
    let began = clock();
    let mut rss_max = 0;
    let mut wait_until = |until: Duration| {
        while began.elapsed() < until && !shared.is_over() {
            std::thread::sleep((until - began.elapsed().min(until)).min(Duration::from_millis(100)));
            let part = began.elapsed().as_secs_f64() / whole.as_secs_f64();
            progress(part.min(1.0), shared.delivered.load(Ordering::Relaxed));
            if let Some(usage) = broker.and_then(|broker| broker.usage().ok()) {
                rss_max = rss_max.max(usage.rss_bytes);
            }
        }
    };
    wait_until(flow.warm_up);
    shared.phase.store(MEASURING, Ordering::Relaxed);
    let before = Sample::take(shared, broker)?;
    wait_until(whole);
    let sent = shared.sent.load(Ordering::Relaxed) - before.sent;
    let lasted = before.at.elapsed();
    shared.phase.store(DRAINING, Ordering::Relaxed);
    // What waits in the broker is part of what it costs.
    let (mut last, mut after) = (u64::MAX, Sample::take(shared, broker)?);
    let draining = clock();
    while !shared.is_over() && after.at.elapsed() < QUIET && draining.elapsed() < DRAIN_MAX {
        std::thread::sleep(Duration::from_millis(5));
        let delivered = shared.delivered.load(Ordering::Relaxed);
        if delivered != last {
            last = delivered;
            after = Sample::take(shared, broker)?;
            rss_max = rss_max.max(after.broker.map_or(0, |usage| usage.rss_bytes));
        }
    }
    let wanted = shared.sent.load(Ordering::Relaxed) * flow.subscribers as u64;
    let secs = (after.at - before.at).as_secs_f64();
    let cpu_of = |name: &String| before.threads.iter().find(|(known, _)| known == name).map_or(0.0, |(_, cpu)| *cpu);
    let busiest = after.threads.iter().map(|(name, cpu)| cpu - cpu_of(name)).fold(0.0, f64::max);
    Ok(Outcome {
        secs,
        sent,
        sent_per_sec: sent as f64 / lasted.as_secs_f64(),
        acknowledged: after.acknowledged - before.acknowledged,
        delivered: after.delivered - before.delivered,
        lost: wanted.saturating_sub(shared.delivered.load(Ordering::Relaxed)),
        latency: None,
        broker: before.broker.zip(after.broker),
        broker_rss_max_bytes: rss_max,
        own_cpu_secs: after.own.cpu_secs - before.own.cpu_secs,
        busiest_thread: busiest / secs,
    })
}

/// Nanoseconds since `origin`.
fn nanos(origin: Instant) -> u64 {
    (clock() - origin).as_nanos() as u64
}

fn topic(flow: &Flow, publisher: usize) -> String {
    format!("{}/{publisher}", flow.topic)
}

fn subscription(flow: &Flow) -> Vec<u8> {
    let filter = if flow.publishers == 1 { topic(flow, 0) } else { format!("{}/#", flow.topic) };
    let mut packet = Vec::new();
    let filters = [(filter.as_str(), SubscriptionOptions::at(flow.qos))];
    codec::encode_subscription(&mut packet, PacketId::FIRST, &filters, UserProperties::default(), VERSION);
    packet
}

/// Lets a thread's clients in, each with a number, and waits for the other thread's; what goes wrong ends
/// everything.
fn enter<T>(
    shared: &Shared,
    ready: &Barrier,
    count: usize,
    mut enter: impl FnMut(&Registry, usize) -> io::Result<T>,
) -> Option<(Vec<T>, Turns)> {
    let entered = Poll::new().and_then(|poll| {
        let clients = (0..count).map(|number| enter(poll.registry(), number)).collect::<io::Result<Vec<T>>>()?;
        Ok((clients, Turns::new(poll, count)))
    });
    ready.wait();
    entered.map_err(|error| shared.fail(error)).ok()
}

fn subscribe(
    endpoint: &Endpoint,
    flow: &Flow,
    shared: &Shared,
    ready: &Barrier,
    origin: Instant,
) -> Option<Histogram<u64>> {
    let latency = flow.rate.and_then(|_| Histogram::new_with_bounds(1, 60_000_000_000, 3).ok());
    let mut tally = Tally::new(latency);
    let packet = subscription(flow);
    let (mut subscribers, mut turns) = enter(shared, ready, flow.subscribers, |registry, number| {
        let mut connected = endpoint.enter(&format!("{}-s{number}", flow.client))?;
        connected.ask(&packet, &mut [0; 5], |suback| suback[4] < 0x80)?;
        Ok(Subscriber::new(Link::new(connected, registry, number)?))
    })?;
    let mut is_measuring = false;
    while !shared.is_over() {
        let now_measuring = shared.phase.load(Ordering::Relaxed) == MEASURING;
        if now_measuring != is_measuring {
            is_measuring = now_measuring;
            // What comes late is measured too.
            if let Some(latency) = tally.latency.as_mut().filter(|_| is_measuring) {
                latency.reset();
            }
        }
        turns.run(shared, IDLE, |at| subscribers[at].turn(&mut tally, || nanos(origin)));
        shared.delivered.store(tally.delivered, Ordering::Relaxed);
    }
    tally.latency
}

fn publish(endpoint: &Endpoint, flow: &Flow, shared: &Shared, ready: &Barrier, origin: Instant) {
    let entered = enter(shared, ready, flow.publishers, |registry, number| {
        let connected = endpoint.enter(&format!("{}-p{number}", flow.client))?;
        let link = Link::new(connected, registry, number)?;
        Ok(Publisher::new(link, &topic(flow, number), flow.qos, flow.payload, flow.window))
    });
    let Some((mut publishers, mut turns)) = entered else { return };
    let mut buffer = vec![0; 64 * 1024];
    let began = clock();
    let mut due = 0_u32;
    while !shared.is_over() {
        let is_draining = shared.phase.load(Ordering::Relaxed) == DRAINING;
        match flow.rate {
            Some(rate) if !is_draining => {
                let at = began + Duration::from_secs(1) * due / rate.max(1);
                std::thread::sleep(at.saturating_duration_since(clock()));
                let publisher = &mut publishers[due as usize % flow.publishers];
                publisher.send_one(nanos(origin)).unwrap_or_else(|error| shared.fail(error));
                due += 1;
                turns.run(shared, Duration::ZERO, |at| publishers[at].turn(&mut buffer, true));
            }
            _ => turns.run(shared, IDLE, |at| publishers[at].turn(&mut buffer, is_draining)),
        }
        shared.sent.store(publishers.iter().map(|publisher| publisher.sent).sum(), Ordering::Relaxed);
        let acknowledged = publishers.iter().map(|publisher| publisher.acknowledged).sum();
        shared.acknowledged.store(acknowledged, Ordering::Relaxed);
    }
}

/// How long a thread waits for anything before it looks whether all is over.
const IDLE: Duration = Duration::from_millis(50);

/// An event loop: whoever may have something to do has a turn after the other.
struct Turns {
    poll: Poll,
    events: Events,
    ready: VecDeque<usize>,
    is_ready: Vec<bool>,
}

impl Turns {
    fn new(poll: Poll, count: usize) -> Turns {
        Turns { poll, events: Events::with_capacity(1024), ready: (0..count).collect(), is_ready: vec![true; count] }
    }

    /// Waits at most `patience` unless somebody is ready; then everybody who is has one turn, which says whether
    /// it wants another.
    fn run(&mut self, shared: &Shared, patience: Duration, mut turn: impl FnMut(usize) -> io::Result<bool>) {
        let patience = if self.ready.is_empty() { patience } else { Duration::ZERO };
        if let Err(error) = self.poll.poll(&mut self.events, Some(patience))
            && error.kind() != io::ErrorKind::Interrupted
        {
            return shared.fail(error);
        }
        for event in &self.events {
            let at = event.token().0;
            if !std::mem::replace(&mut self.is_ready[at], true) {
                self.ready.push_back(at);
            }
        }
        for _ in 0..self.ready.len() {
            let Some(at) = self.ready.pop_front() else { return };
            match turn(at) {
                Ok(true) => self.ready.push_back(at),
                Ok(false) => self.is_ready[at] = false,
                Err(error) => return shared.fail(error),
            }
        }
    }
}
