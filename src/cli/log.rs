//! Where log lines go, and what keeps a flood of one kind from drowning the rest.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatEvent, MakeWriter};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

use crate::broker::Announcement;
use crate::config::{Log, LogDestination, LogFormat, LogStyle, SUBSCRIBE_LINES, UNSUBSCRIBE_LINES};

const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one kind in a window: what goes wrong floods sooner than what goes well.
const INFO_MAX: u32 = 500;
const WARN_MAX: u32 = 30;

/// Changes the level of a running broker.
pub(super) type SetLevel = Box<dyn Fn(&Log) + Send + Sync>;

/// Counts lines by the place in the code that writes them, and by their `kind` where they have one.
#[derive(Clone, Default)]
pub(super) struct Flood {
    /// Nobody sums up what it leaves out: a window that is over is over.
    is_silent: bool,
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
        if now.duration_since(kind.since) >= WINDOW && (self.is_silent || kind.suppressed == 0) {
            kind.since = now;
            kind.lines = 0;
            kind.suppressed = 0;
        }
        kind.lines += 1;
        let shown = kind.lines <= max;
        kind.suppressed += u32::from(!shown);
        shown
    }
}

/// What gives a file its lines anew, after somebody has moved it away.
#[derive(Clone, Default)]
pub(super) struct Files(Arc<Vec<OpenFile>>);

struct OpenFile {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Files {
    /// Opens each anew; one that cannot be is said on standard error, and its lines go nowhere.
    pub(super) fn reopen(&self) {
        for open in self.0.iter() {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(0o600);
            if rustix::process::geteuid().is_root() {
                // In a folder of somebody else's a link could lead root anywhere.
                options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
            }
            let opened = options.open(&open.path);
            if let Err(error) = &opened {
                eprintln!("Error: Unable to open log file {} for writing: {error}.", open.path.display());
            }
            *open.file.lock().unwrap_or_else(PoisonError::into_inner) = opened.ok();
        }
    }
}

impl Files {
    /// Gives those that are root's to the user who will open them anew.
    pub(super) fn give(&self, uid: u32, gid: u32) {
        for open in self.0.iter() {
            let file = open.file.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(file) = file.as_ref() else { continue };
            if file.metadata().is_ok_and(|metadata| metadata.uid() == 0 && metadata.is_file() && metadata.nlink() == 1)
            {
                drop(std::os::unix::fs::fchown(file, Some(uid), Some(gid)));
            }
        }
    }
}

/// Lines that are to be published.
pub(super) type Lines = tokio::sync::mpsc::Receiver<Announcement>;
/// Of those, so many may wait; more are left out.
const LINES_MAX: usize = 1_000;

/// Writes to all destinations.
#[derive(Clone)]
struct Destinations {
    stderr: bool,
    stdout: bool,
    syslog: Option<Arc<UnixDatagram>>,
    /// RFC 3164 section 4.1.1: facility and severity in one, of the line that comes.
    facility: u8,
    severity: u8,
    files: Files,
}

impl<'a> MakeWriter<'a> for Destinations {
    type Writer = Destinations;

    fn make_writer(&'a self) -> Destinations {
        self.clone()
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Destinations {
        let severity = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 5,
            _ => 7,
        };
        Destinations { severity, ..self.clone() }
    }
}

impl Destinations {
    fn of(log: &Log) -> Destinations {
        let paths = log.destinations.iter().filter_map(|destination| match destination {
            LogDestination::File(path) => Some(OpenFile { path: path.clone(), file: Mutex::default() }),
            _ => None,
        });
        let files = Files(Arc::new(paths.collect()));
        files.reopen();
        let syslog = log.destinations.contains(&LogDestination::Syslog).then(|| {
            let socket = UnixDatagram::unbound().and_then(|socket| socket.connect("/dev/log").map(|()| socket));
            if let Err(error) = &socket {
                eprintln!("Error: cannot reach syslog at /dev/log: {error}.");
            }
            socket.ok().map(Arc::new)
        });
        Destinations {
            stderr: log.destinations.contains(&LogDestination::Stderr),
            stdout: log.destinations.contains(&LogDestination::Stdout),
            syslog: syslog.flatten(),
            // local0 is 16, daemon 3.
            facility: log.facility.map_or(3, |local| 16 + local),
            severity: 5,
            files,
        }
    }
}

impl Write for Destinations {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // What cannot be written to one place is no reason to keep it from the others.
        if self.stderr {
            drop(io::stderr().write_all(line));
        }
        if self.stdout {
            drop(io::stdout().write_all(line));
        }
        if let Some(syslog) = &self.syslog {
            let priority = self.facility * 8 + self.severity;
            let text = [format!("<{priority}>lockgate[{}]: ", std::process::id()).as_bytes(), line].concat();
            drop(syslog.send(text.trim_ascii_end()));
        }
        for open in self.files.0.iter() {
            if let Some(file) = open.file.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                drop(file.write_all(line));
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A time and what happened, as Mosquitto writes them.
struct AsMosquitto {
    timestamp: bool,
    /// As strftime(3) has it.
    format: Option<String>,
}

impl AsMosquitto {
    fn new(timestamp: bool, format: Option<&str>) -> AsMosquitto {
        AsMosquitto { timestamp, format: format.map(str::to_owned) }
    }

    fn time(&self) -> String {
        if !self.timestamp {
            return String::new();
        }
        // Of this place, as Mosquitto's are.
        let now = jiff::ZonedDateTime::now();
        match self.format.as_ref().and_then(|format| jiff::fmt::strtime::format(format, &now).ok()) {
            Some(text) => format!("{text}: "),
            None => format!("{}: ", now.timestamp().as_second()),
        }
    }
}

impl<S, N> FormatEvent<S, N> for AsMosquitto
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> fmt::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &fmt::FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        write!(writer, "{}", self.time())?;
        let mut message = MessageOf(String::new());
        event.record(&mut message);
        let prefix = match *event.metadata().level() {
            Level::ERROR => "Error: ",
            Level::WARN => "Warning: ",
            _ => "",
        };
        writeln!(writer, "{prefix}{}", message.0)
    }
}

/// What an event says, without its fields.
struct MessageOf(String);

impl Visit for MessageOf {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Has each line published, below `$SYS/broker/log` as Mosquitto does it: its kind in a topic level.
struct ToTopic {
    sender: tokio::sync::mpsc::Sender<Announcement>,
    style: AsMosquitto,
}

impl<S: tracing::Subscriber> Layer<S> for ToTopic {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let kind = match (metadata.target(), *metadata.level()) {
            (SUBSCRIBE_LINES, _) => "M/subscribe",
            (UNSUBSCRIBE_LINES, _) => "M/unsubscribe",
            (_, Level::ERROR) => "E",
            (_, Level::WARN) => "W",
            (_, Level::INFO) => "N",
            // A line about each packet would be one more packet.
            _ => return,
        };
        let mut message = MessageOf(String::new());
        event.record(&mut message);
        let text = format!("{}{}", self.style.time(), message.0);
        drop(self.sender.try_send(Announcement {
            topic: format!("$SYS/broker/log/{kind}"),
            text,
            retained: false,
            to: None,
        }));
    }
}

/// A log that runs.
pub(super) struct Started {
    pub(super) set_level: SetLevel,
    pub(super) flood: Flood,
    pub(super) files: Files,
    /// Where lines are to be published.
    pub(super) lines: Option<Lines>,
}

/// Sets up logging.
pub(super) fn start(log: &Log) -> Started {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&log.level));
    let flood = Flood::default();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let destinations = Destinations::of(log);
    let files = destinations.files.clone();
    let ansi = log.destinations == [LogDestination::Stderr] && io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(destinations).with_ansi(ansi).with_target(false);
    let lines = match (&log.style, log.format, journal) {
        (LogStyle::Mosquitto { timestamp, format, .. }, _, _) => {
            lines.event_format(AsMosquitto::new(*timestamp, format.as_deref())).boxed()
        }
        (LogStyle::Own, LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
        // The journal has its own time.
        (LogStyle::Own, LogFormat::Human, true) => lines.without_time().boxed(),
        (LogStyle::Own, LogFormat::Human, false) => lines.boxed(),
    };
    // A second start in one process (tests) keeps the first.
    let (published, receiver) = log
        .destinations
        .contains(&LogDestination::Topic)
        .then(|| {
            let (sender, receiver) = tokio::sync::mpsc::channel(LINES_MAX);
            let style = match &log.style {
                LogStyle::Mosquitto { timestamp, format, .. } => AsMosquitto::new(*timestamp, format.as_deref()),
                LogStyle::Own => AsMosquitto::new(false, None),
            };
            (ToTopic { sender, style }.with_filter(Flood { is_silent: true, ..Flood::default() }), receiver)
        })
        .unzip();
    drop(tracing_subscriber::registry().with(filter).with(lines.with_filter(flood.clone())).with(published).try_init());
    let set_level = Box::new(move |log: &Log| drop(handle.reload(EnvFilter::new(&log.level))));
    Started { set_level, flood, files, lines: receiver }
}
