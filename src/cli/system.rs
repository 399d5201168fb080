//! `$SYS/broker/...`: what a broker says of itself to its clients, with Mosquitto's topics and meanings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::admin::Site;
use crate::broker::{Announcement, Counters};
use crate::gate::Gate;
use crate::shard::{ClientRow, Handle, ShardReport, Stopped};

/// Minutes over which loads are averaged.
const WINDOWS: [(&str, f64); 3] = [("1min", 60.0), ("5min", 300.0), ("15min", 900.0)];

/// What loads are taken of: names and the counts that they are the increase of.
fn counted(report: &ShardReport, accepted: u64) -> [(&'static str, u64); 9] {
    let counters = &report.counters;
    [
        ("publish/received", counters.publishes_received.iter().sum()),
        ("publish/sent", counters.publishes_sent.iter().sum()),
        ("publish/dropped", dropped(counters)),
        ("bytes/received", report.bytes_received),
        ("bytes/sent", report.bytes_sent),
        ("messages/received", report.packets_received),
        ("messages/sent", report.packets_sent),
        ("connections", counters.connects),
        ("sockets", accepted),
    ]
}

fn dropped(counters: &Counters) -> u64 {
    let drops = &counters.dropped;
    drops.slow_consumer + drops.queue_full + drops.expired + drops.too_large + drops.store_failed + drops.nobody_left
}

/// Loads, by name: a minute's increase, averaged so that it fades over its window.
#[derive(Default)]
struct Loads {
    before: BTreeMap<&'static str, u64>,
    averages: BTreeMap<&'static str, [f64; 3]>,
}

impl Loads {
    /// `elapsed`: seconds since the last time.
    fn note(&mut self, name: &'static str, count: u64, elapsed: f64) -> [f64; 3] {
        let before = self.before.insert(name, count).unwrap_or(0);
        let rate = if elapsed > 0.0 { count.saturating_sub(before) as f64 * 60.0 / elapsed } else { 0.0 };
        let averages = self.averages.entry(name).or_default();
        for (average, (_, window)) in averages.iter_mut().zip(WINDOWS) {
            *average = rate + (-elapsed / window).exp() * (*average - rate);
        }
        *averages
    }
}

/// What is looked at for it.
pub(super) struct SysTree {
    shard: Handle,
    gate: Arc<Gate>,
    site: Arc<ArcSwap<Site>>,
    started: Instant,
    clients_max: AtomicUsize,
    /// What was told by HTTP last: whoever asks, it is looked at once a second.
    told: tokio::sync::Mutex<Option<(Instant, Value)>>,
}

impl SysTree {
    pub(super) fn new(shard: Handle, gate: Arc<Gate>, site: Arc<ArcSwap<Site>>) -> Arc<SysTree> {
        Arc::new(SysTree {
            shard,
            gate,
            site,
            started: Instant::now(),
            clients_max: AtomicUsize::new(0),
            told: Default::default(),
        })
    }

    /// What there is to say now, without loads: below `$SYS/broker/`.
    async fn look(&self) -> Result<(ShardReport, Vec<(String, String)>), Stopped> {
        let (report, queued) = (self.shard.report().await?, self.shard.queued().await?);
        let clients = report.gauges.connections;
        let clients_max = self.clients_max.fetch_max(clients, Ordering::Relaxed).max(clients);
        let mut all = topics(&report, queued, clients_max, self.started.elapsed());
        all.push(("connections/socket/count".to_owned(), self.gate.sockets().to_string()));
        Ok((report, all))
    }

    /// The counts among it, as Mosquitto's `/api/v1/systree` has them.
    pub(super) async fn counts(&self) -> Option<Value> {
        let mut told = self.told.lock().await;
        if let Some((_, counts)) = told.as_ref().filter(|(at, _)| at.elapsed() < Duration::from_secs(1)) {
            return Some(counts.clone());
        }
        let (_, all) = self.look().await.ok()?;
        let number = |text: String| text.strip_suffix(" seconds").unwrap_or(&text).parse::<u64>().ok();
        let counts =
            all.into_iter().filter_map(|(topic, text)| Some((format!("$SYS/broker/{topic}"), number(text)?.into())));
        let counts = Value::Object(counts.collect());
        *told = Some((Instant::now(), counts.clone()));
        Some(counts)
    }
}

/// Publishes as often as `interval` says; what has not changed is not said again.
pub(super) async fn keep_announcing(interval: Duration, tree: Arc<SysTree>) {
    let mut last = tree.started;
    let mut loads = Loads::default();
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let Ok((report, mut all)) = tree.look().await else { return };
        let accepted = tree.gate.stats.accepted.load(Ordering::Relaxed);
        let now = Instant::now();
        let elapsed = (now - last).as_secs_f64();
        last = now;
        for (name, count) in counted(&report, accepted) {
            for ((window, _), load) in WINDOWS.iter().zip(loads.note(name, count, elapsed)) {
                all.push((format!("load/{name}/{window}"), format!("{load:.2}")));
            }
        }
        let wall = OffsetDateTime::now_utc();
        for (of, info) in &tree.site.load().certificates {
            // A listener's name may have characters that a topic's level has not.
            let of = of.replace(['/', '+', '#'], "-");
            all.push((format!("certificates/{of}/days-left"), info.days_left(wall).to_string()));
        }
        let news: Vec<Announcement> = all
            .into_iter()
            .map(|(topic, text)| (format!("$SYS/broker/{topic}"), text))
            .filter(|(topic, text)| said.insert(topic.clone(), text.clone()).as_ref() != Some(text))
            .map(|(topic, text)| Announcement { topic, text, retained: true, to: None })
            .collect();
        if !news.is_empty() && tree.shard.announce(news).is_err() {
            return;
        }
        tokio::time::sleep(interval).await;
    }
}

/// `queued`: messages and bytes that wait for sessions.
fn topics(report: &ShardReport, queued: (usize, usize), clients_max: usize, uptime: Duration) -> Vec<(String, String)> {
    let ShardReport { counters, gauges, .. } = report;
    let away = gauges.sessions.saturating_sub(gauges.connections);
    let stored = gauges.retained_messages + queued.0;
    let sum = |counts: &[u64; 3]| counts.iter().sum::<u64>().to_string();
    [
        ("version", format!("lockgate version {}", env!("CARGO_PKG_VERSION"))),
        ("uptime", format!("{} seconds", uptime.as_secs())),
        ("clients/total", gauges.sessions.to_string()),
        ("clients/connected", gauges.connections.to_string()),
        ("clients/active", gauges.connections.to_string()),
        ("clients/disconnected", away.to_string()),
        ("clients/inactive", away.to_string()),
        ("clients/maximum", clients_max.to_string()),
        ("clients/expired", counters.sessions_expired.to_string()),
        ("subscriptions/count", gauges.subscriptions.to_string()),
        ("shared_subscriptions/count", gauges.shared_subscriptions.to_string()),
        ("messages/received", report.packets_received.to_string()),
        ("messages/sent", report.packets_sent.to_string()),
        ("messages/stored", stored.to_string()),
        ("store/messages/count", stored.to_string()),
        ("store/messages/bytes", (gauges.retained_bytes + queued.1).to_string()),
        ("retained messages/count", gauges.retained_messages.to_string()),
        ("publish/messages/received", sum(&counters.publishes_received)),
        ("publish/messages/sent", sum(&counters.publishes_sent)),
        ("publish/messages/dropped", dropped(counters).to_string()),
        ("publish/bytes/received", sum(&counters.publish_bytes_received)),
        ("publish/bytes/sent", sum(&counters.publish_bytes_sent)),
        ("bytes/received", report.bytes_received.to_string()),
        ("bytes/sent", report.bytes_sent.to_string()),
    ]
    .into_iter()
    .map(|(topic, text)| (topic.to_owned(), text))
    .collect()
}

/// Publishes log lines as they come; the last words of a broker may not find anybody.
pub(super) async fn keep_telling(mut lines: tokio::sync::mpsc::Receiver<Announcement>, shard: Handle) {
    while let Some(line) = lines.recv().await {
        let mut all = vec![line];
        while let Ok(more) = lines.try_recv() {
            all.push(more);
        }
        if shard.announce(all).is_err() {
            return;
        }
    }
}

/// Who subscribes to what, by topic level, indented as Mosquitto does it.
pub(super) fn subscription_tree(clients: &[ClientRow]) -> String {
    #[derive(Default)]
    struct Node {
        below: BTreeMap<String, Node>,
        here: Vec<String>,
    }
    let mut root = Node::default();
    for client in clients {
        for (filter, qos) in &client.filters {
            let mut node = &mut root;
            for level in filter.split('/') {
                node = node.below.entry(level.to_owned()).or_default();
            }
            node.here.push(format!(" ({}, {})", client.client.escape_debug(), qos.bits()));
        }
    }
    fn write(node: &Node, depth: usize, text: &mut String) {
        for (level, below) in &node.below {
            text.push_str(&format!("\n{}{}{}", " ".repeat(2 * depth + 2), level.escape_debug(), below.here.concat()));
            write(below, depth + 1, text);
        }
    }
    let mut text = String::new();
    write(&root, 0, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_a_minute_s_increase_that_fades_over_its_window() {
        let mut loads = Loads::default();
        loads.note("x", 0, 0.0);
        // As Mosquitto has it: five in eleven seconds.
        let after = loads.note("x", 5, 11.0).map(|load| format!("{load:.2}"));
        assert_eq!(after, ["4.57", "0.98", "0.33"]);
        let [one, five, fifteen] = loads.note("x", 5, 60.0);
        assert!(one < 4.57 * 0.4 && five < 0.98 && fifteen < 0.33);
    }
}
