//! Where log lines go, and what keeps a flood of one kind from drowning the rest.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

use crate::config::{Log, LogFormat};

const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one kind in a window: what goes wrong floods sooner than what goes well.
const INFO_MAX: u32 = 500;
const WARN_MAX: u32 = 30;

/// Changes the level of a running broker.
pub(super) type SetLevel = Box<dyn Fn(&Log) + Send + Sync>;

/// Counts lines by the place in the code that writes them, and by their `kind` where they have one.
#[derive(Clone, Default)]
pub(super) struct Flood {
    kinds: Arc<Mutex<HashMap<(Identifier, String), Kind>>>,
}

/// Takes the `kind` out of a line.
#[derive(Default)]
struct KindOf(String);

impl Visit for KindOf {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "kind" {
            self.0 = value.to_owned();
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

struct Kind {
    since: Instant,
    lines: u32,
    suppressed: u32,
    metadata: &'static Metadata<'static>,
}

impl Flood {
    /// Says how much was left out in windows that are over. To be called now and then.
    pub(super) fn sum_up(&self, all: bool) {
        let now = Instant::now();
        let mut over = Vec::new();
        {
            let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            kinds.retain(|(_, name), kind| {
                let keep = !all && now.duration_since(kind.since) < WINDOW;
                if !keep && kind.suppressed > 0 {
                    over.push((kind.suppressed, name.clone(), kind.metadata));
                }
                keep
            });
        }
        for (count, name, metadata) in over {
            let place = match name.is_empty() {
                true => format!("{}:{}", metadata.target(), metadata.line().unwrap_or(0)),
                false => name,
            };
            tracing::warn!(target: "lockgate::flood", "{count} more lines of this kind in {} s ({place})", WINDOW.as_secs());
        }
    }
}

impl<S> Filter<S> for Flood {
    fn enabled(&self, _metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &tracing::Event<'_>, _context: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let max = if *metadata.level() <= Level::WARN { WARN_MAX } else { INFO_MAX };
        if *metadata.level() > Level::INFO || metadata.target() == "lockgate::flood" {
            return true;
        }
        let now = Instant::now();
        let mut name = KindOf::default();
        event.record(&mut name);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry((metadata.callsite(), name.0)).or_insert(Kind {
            since: now,
            lines: 0,
            suppressed: 0,
            metadata,
        });
        if now.duration_since(kind.since) >= WINDOW && kind.suppressed == 0 {
            kind.since = now;
            kind.lines = 0;
        }
        kind.lines += 1;
        let shown = kind.lines <= max;
        kind.suppressed += u32::from(!shown);
        shown
    }
}

/// Sets up logging to standard error.
pub(super) fn start(log: &Log) -> (SetLevel, Flood) {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&log.level));
    let flood = Flood::default();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false);
    let lines = match (log.format, journal) {
        (LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
        // The journal has its own time.
        (LogFormat::Human, true) => lines.without_time().boxed(),
        (LogFormat::Human, false) => lines.boxed(),
    };
    // A second start in one process (tests) keeps the first.
    drop(tracing_subscriber::registry().with(filter).with(lines.with_filter(flood.clone())).try_init());
    let set = move |log: &Log| drop(handle.reload(EnvFilter::new(&log.level)));
    (Box::new(set), flood)
}
