//! `/metrics`: OpenMetrics text, which Prometheus reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

use super::api;
use super::server::Site;
use crate::gate::Stats;
use crate::shard::{ClientRow, ShardReport};
use crate::types::Histogram;

/// Everything that is known at one time.
pub(super) fn render(
    report: &ShardReport,
    rows: &[ClientRow],
    stats: &Stats,
    site: &Site,
    store: Option<&api::Store>,
    now: OffsetDateTime,
) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot::new(report, rows, stats, site, store, now)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a text");
    text
}

type Series = Vec<(Vec<(&'static str, String)>, f64)>;

/// A histogram's buckets, its count and its sum.
type Distribution = ([u64; Histogram::BOUNDS.len()], u64, f64);

#[derive(Debug)]
struct Snapshot {
    counters: Vec<(&'static str, &'static str, Series)>,
    gauges: Vec<(&'static str, &'static str, Series)>,
    histograms: Vec<(&'static str, &'static str, Distribution)>,
}

impl Snapshot {
    fn new(
        report: &ShardReport,
        rows: &[ClientRow],
        stats: &Stats,
        site: &Site,
        store: Option<&api::Store>,
        now: OffsetDateTime,
    ) -> Snapshot {
        let counters = &report.counters;
        let dropped = counters.dropped;
        let mut refused: BTreeMap<&'static str, u64> = stats.refused();
        refused.extend([
            ("another-identitys-session", counters.refused.not_owner),
            ("keep-alive", counters.refused.keep_alive),
            ("will", counters.refused.will),
            ("sessions-max", counters.refused.sessions_full),
            ("shutting-down", counters.refused.shutting_down),
        ]);
        let directions = [("received", counters.publishes_received), ("sent", counters.publishes_sent)];
        let by_qos = |directions: &[(&str, [u64; 3])]| -> Series {
            let pairs = directions.iter().flat_map(|(direction, counts)| {
                counts.iter().enumerate().map(|(qos, count)| (*direction, qos.to_string(), *count as f64))
            });
            pairs
                .map(|(direction, qos, count)| (vec![("direction", direction.to_owned()), ("qos", qos)], count))
                .collect()
        };
        let bytes = [("received", counters.publish_bytes_received), ("sent", counters.publish_bytes_sent)];
        let labelled = |label: &'static str, values: &[(&str, u64)]| -> Series {
            values.iter().map(|(name, value)| (vec![(label, (*name).to_owned())], *value as f64)).collect()
        };
        let one = |value: u64| -> Series { vec![(Vec::new(), value as f64)] };
        let [plain, tls, mtls] = report.levels;
        let queued: usize = rows.iter().map(|row| row.queued_messages).sum();
        let queued_bytes: usize = rows.iter().map(|row| row.queued_bytes).sum();
        let inflight: usize = rows.iter().map(|row| row.inflight_messages).sum();
        let mut snapshot = Snapshot {
            counters: vec![
                (
                    "lockgate_connections_accepted",
                    "Connections that came, let in or not",
                    one(stats.accepted.load(Ordering::Relaxed)),
                ),
                ("lockgate_connects", "Clients let in", one(counters.connects)),
                ("lockgate_takeovers", "Connections ended because the client connected again", one(counters.takeovers)),
                (
                    "lockgate_refusals",
                    "Connections refused, by reason",
                    refused.iter().map(|(kind, count)| (vec![("reason", (*kind).to_owned())], *count as f64)).collect(),
                ),
                ("lockgate_messages", "PUBLISH packets by direction and QoS", by_qos(&directions)),
                ("lockgate_payload_bytes", "Payload bytes by direction and QoS", by_qos(&bytes)),
                (
                    "lockgate_network_bytes",
                    "MQTT bytes by direction, without TLS",
                    labelled("direction", &[("received", report.bytes_received), ("sent", report.bytes_sent)]),
                ),
                (
                    "lockgate_dropped_messages",
                    "Messages dropped, by cause",
                    labelled(
                        "cause",
                        &[
                            ("slow-consumer", dropped.slow_consumer),
                            ("queue-full", dropped.queue_full),
                            ("expired", dropped.expired),
                            ("too-large", dropped.too_large),
                            ("retained-full", dropped.retained_full),
                            ("store-failed", dropped.store_failed),
                            ("nobody-left", dropped.nobody_left),
                        ],
                    ),
                ),
                (
                    "lockgate_acl_denials",
                    "Publishes and subscriptions refused by the ACL",
                    labelled(
                        "operation",
                        &[("publish", counters.acl_denied_publish), ("subscribe", counters.acl_denied_subscribe)],
                    ),
                ),
                ("lockgate_violations", "Connections ended for a breach of the protocol", one(counters.violations)),
                ("lockgate_wills", "Will messages published", one(counters.wills_published)),
            ],
            gauges: vec![
                (
                    "lockgate_connections",
                    "Connected clients by level",
                    labelled("level", &[("plain", plain as u64), ("tls", tls as u64), ("mtls", mtls as u64)]),
                ),
                ("lockgate_sessions", "Sessions, connected or not", one(report.gauges.sessions as u64)),
                ("lockgate_subscriptions", "Subscriptions of all sessions", one(report.gauges.subscriptions as u64)),
                ("lockgate_retained_messages", "Retained messages", one(report.gauges.retained_messages as u64)),
                ("lockgate_retained_bytes", "Bytes of retained messages", one(report.gauges.retained_bytes as u64)),
                ("lockgate_queued_messages", "Messages waiting for their clients", one(queued as u64)),
                ("lockgate_queued_bytes", "Bytes of messages waiting for their clients", one(queued_bytes as u64)),
                ("lockgate_inflight_messages", "Messages sent and not acknowledged", one(inflight as u64)),
                (
                    "lockgate_certificate_days",
                    "Whole days until a certificate expires",
                    site.certificates
                        .iter()
                        .map(|(of, info)| (vec![("certificate", of.clone())], info.days_left(now) as f64))
                        .collect(),
                ),
            ],
            histograms: vec![
                ("lockgate_handshake_seconds", "Duration of TLS handshakes", stats.handshakes.read()),
                ("lockgate_commit_seconds", "Time until the store had committed", report.commits.read()),
            ],
        };
        if let Some(store) = store {
            snapshot.counters.extend([
                ("lockgate_store_written_bytes", "Bytes written to the store", one(store.bytes_written)),
                ("lockgate_store_commits", "Commits of the store", one(store.commits)),
                ("lockgate_store_messages", "Messages written to the store", one(store.messages)),
                ("lockgate_store_checkpoints", "Checkpoints of the store", one(store.checkpoints)),
                ("lockgate_store_failures", "Writes and syncs of the store that failed", one(store.failures)),
            ]);
            snapshot.gauges.extend([
                (
                    "lockgate_store_bytes_per_message",
                    "Bytes written to the store for each message since the start",
                    vec![(Vec::new(), store.bytes_per_message())],
                ),
                ("lockgate_store_disk_bytes", "Bytes of the store's files", one(store.disk_bytes)),
                ("lockgate_store_live_bytes", "Bytes of stored messages that are still wanted", one(store.live_bytes)),
                ("lockgate_store_failing", "1 while the store cannot be written", one(u64::from(store.failing))),
            ]);
        }
        snapshot
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (kind, families) in [(MetricType::Counter, &self.counters), (MetricType::Gauge, &self.gauges)] {
            for (name, help, series) in families {
                let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
                for (labels, value) in series {
                    encode_value(kind, *value, metric.encode_family(labels)?)?;
                }
            }
        }
        for (name, help, (counts, count, sum)) in &self.histograms {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            let within: u64 = counts.iter().sum();
            let mut buckets: Vec<(f64, u64)> = Histogram::BOUNDS.iter().copied().zip(counts.iter().copied()).collect();
            buckets.push((f64::MAX, count.saturating_sub(within)));
            metric.encode_histogram(*sum, *count, &buckets, None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>)?;
        }
        Ok(())
    }
}

fn encode_value(kind: MetricType, value: f64, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(value).encode(encoder),
    }
}
