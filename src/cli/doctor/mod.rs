//! `lockgate doctor`: what is wrong between a client and a broker, and what mends it.

mod files;
mod mqtt;
mod offline;
mod wire;

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{ArgAction, Args};
use serde::Serialize;
use time::OffsetDateTime;

use super::dial::{Dial, Target};
use super::{Failure, finish, site};
use crate::client::harmless;
use crate::types::Topic;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate doctor --as pump7                        # as a client of this site\n  lockgate doctor broker.example:8883 --ca ca.crt --cert client.crt --key client.key\n  lockgate doctor test.example:1883 -u alice -P secret --topic alice/test\n  lockgate doctor --offline                         # a site, from the server's side\n\nExit codes: 0 nothing to mend; 1 warnings; 2 the command line; 3 something is broken. It dials several times: a broker's\nlog has lines of connections that were closed at once."
)]
pub(super) struct Arguments {
    /// The broker: HOST, HOST:PORT or [IPv6]:PORT [default: where the bundle, or the environment, says]
    address: Option<String>,
    /// Examine a site's files, without a client: certificates, keys, permissions, who may come in
    #[arg(long, conflicts_with = "address")]
    offline: bool,
    /// The topic of the messages that it sends to itself [default: lockgate-doctor/…, or NAME/lockgate-doctor where only that is allowed]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dial: Dial,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Severity {
    Good,
    Note,
    Warning,
    Problem,
}

impl Severity {
    fn word(self) -> (&'static str, Style) {
        match self {
            Severity::Good => ("good", AnsiColor::Green.on_default()),
            Severity::Note => ("note", AnsiColor::Cyan.on_default()),
            Severity::Warning => ("warning", AnsiColor::Yellow.on_default().bold()),
            Severity::Problem => ("problem", AnsiColor::Red.on_default().bold()),
        }
    }
}

/// One thing that was found out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    severity: Severity,
    what: String,
    /// What mends it: a command, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// What was found out so far; told as it comes.
pub(super) struct Examination {
    findings: Vec<Finding>,
    tells: bool,
    pub(super) now: OffsetDateTime,
}

impl Examination {
    fn add(&mut self, severity: Severity, what: String, mend: Option<String>) {
        // What a peer says may hold anything.
        let (what, mend) = (harmless(&what), mend.map(|mend| harmless(&mend)));
        // The same of two certificates of a chain, or of two attempts.
        if self.findings.iter().any(|finding| finding.what == what) {
            return;
        }
        let finding = Finding { severity, what, mend };
        if self.tells {
            let (word, style) = finding.severity.word();
            anstream::println!("{style}{word:>7}{style:#}  {}", finding.what);
            if let Some(mend) = &finding.mend {
                anstream::println!("         {mend}");
            }
        }
        self.findings.push(finding);
    }

    pub(super) fn good(&mut self, what: impl Into<String>) {
        self.add(Severity::Good, what.into(), None);
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        self.add(Severity::Note, what.into(), None);
    }

    pub(super) fn warn(&mut self, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Warning, what.into(), Some(mend.into()));
    }

    pub(super) fn problem(&mut self, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Problem, what.into(), Some(mend.into()));
    }

    fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.worst() == Severity::Problem
    }
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match examine(arguments) {
        Ok(Severity::Good | Severity::Note) => ExitCode::SUCCESS,
        Ok(Severity::Warning) => ExitCode::from(1),
        Ok(Severity::Problem) => ExitCode::from(3),
        // 1 is for warnings.
        Err(failure) => finish(Err(failure.with_code(2))),
    }
}

fn examine(arguments: &Arguments) -> Result<Severity, Failure> {
    let mut examination = Examination { findings: Vec::new(), tells: !arguments.json, now: OffsetDateTime::now_utc() };
    clock(&mut examination);
    let subject = if arguments.offline {
        let settings = site::load(&arguments.dial.site)?;
        let subject = settings.file.display().to_string();
        offline::examine(&settings, &mut examination);
        subject
    } else {
        let target = target(arguments)?;
        if let Some(topic) = &arguments.topic {
            Topic::parse(topic)
                .map_err(|error| Failure::configuration(format!("--topic {topic:?} is no topic: {error}")))?;
        }
        let subject = match &target.unix {
            Some(path) => path.display().to_string(),
            None => format!("{}:{}", target.host, target.port),
        };
        files::examine(&target, &mut examination);
        site::runtime().block_on(wire::examine(&target, arguments.topic.as_deref(), &mut examination));
        subject
    };
    let worst = examination.worst();
    if arguments.json {
        let report = serde_json::json!({ "subject": subject, "worst": worst, "findings": examination.findings });
        say!("{}", serde_json::to_string_pretty(&report).map_err(Failure::new)?);
        return Ok(worst);
    }
    let count = |severity| examination.findings.iter().filter(|finding| finding.severity == severity).count();
    match (count(Severity::Problem), count(Severity::Warning)) {
        (0, 0) => say!("{subject}: nothing to mend"),
        (problems, warnings) => say!("{subject}: {problems} problem(s), {warnings} warning(s)"),
    }
    Ok(worst)
}

/// The command line's, with what HOST:PORT says above it.
fn target(arguments: &Arguments) -> Result<Target, Failure> {
    let mut dial = arguments.dial.clone();
    if let Some(address) = &arguments.address {
        let bad = || Failure::configuration(format!("{address:?} is no HOST:PORT"));
        if let Some((_, rest)) = address.split_once("://") {
            let what = format!(
                "{address:?} is a URL: say {} (with TLS on port 8883, or by --ca FILE, --as NAME)",
                rest.trim_end_matches('/')
            );
            return Err(Failure::configuration(what));
        }
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.starts_with('[') => {
                (host, Some(port.parse().map_err(|_| bad())?))
            }
            _ => (address.as_str(), None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(bad());
        }
        dial.host = Some(host.to_owned());
        dial.port = port.or(dial.port);
    }
    dial.target()
}

/// A device that was never told the time has certificates that are not valid yet.
fn clock(examination: &mut Examination) {
    if examination.now.year() < 2025 {
        let what =
            format!("this machine's clock says {}: no certificate is valid at that time", examination.now.date());
        examination.problem(what, "set the clock first: `timedatectl set-ntp true`, or SNTP on a device, before TLS");
    }
}
