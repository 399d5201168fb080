//! The ledger: every certificate ever made, and what became of it.

use std::collections::BTreeMap;
use std::path::Path;

use time::OffsetDateTime;

use super::super::report::new_table;
use super::super::site::{self, Editing, edit};
use super::super::{Failure, SiteArguments};
use super::list::read_lists;
use crate::admin::{CallError, api};
use crate::gate::{Seen, SeenEntry};
use crate::pki::{self, Entry, Kind, Remains, Transaction};

/// A certificate and its fate, for programs.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row<'l> {
    #[serde(flatten)]
    entry: &'l Entry,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    revoked: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// The serial number of the one in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    renewed_by: Option<&'l str>,
    /// When and how its identity last came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<&'l SeenEntry>,
}

pub(super) fn list(arguments: &SiteArguments, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let ledger = site::Files::of(&settings).ledger()?;
    let seen = match site::ask::<api::Clients>(&settings, "/clients", None::<&()>) {
        Ok(clients) => clients.seen,
        Err(CallError::NotRunning(_)) => Seen::load(&settings.data.join("seen.json")).entries(),
        Err(error) => return Err(Failure::new(error)),
    };
    let renewals: BTreeMap<&str, &str> =
        ledger.all().filter_map(|(entry, _)| Some((entry.renews.as_deref()?, entry.serial.as_str()))).collect();
    let rows: Vec<Row<'_>> = ledger
        .all()
        .map(|(entry, revoked)| Row {
            entry,
            revoked: revoked.map(|(at, _)| at),
            reason: revoked.map(|(_, reason)| reason.as_str()),
            renewed_by: renewals.get(entry.serial.as_str()).copied(),
            last_seen: entry.identity.as_ref().and_then(|name| seen.get(name)),
        })
        .collect();
    if json {
        say!("{}", serde_json::to_string_pretty(&rows).map_err(Failure::new)?);
        return Ok(());
    }
    if rows.is_empty() {
        say!("No certificate was issued here yet.");
        return Ok(());
    }
    let now = OffsetDateTime::now_utc();
    let mut table = new_table(&["Serial", "For", "Issued", "Expires", "State", "Key", "Last seen"]);
    for row in &rows {
        table.add_row([
            row.entry.serial.clone(),
            row.whose(),
            row.entry.at.date().to_string(),
            row.entry.expires.date().to_string(),
            row.state(now),
            format!("{}, {}", row.entry.key, row.entry.key_origin),
            row.last_seen.map(|seen| format!("{} {}", seen.at.date(), seen.level)).unwrap_or_default(),
        ]);
    }
    say!("{table}");
    Ok(())
}

impl Row<'_> {
    fn whose(&self) -> String {
        match (self.entry.kind, &self.entry.identity) {
            (Kind::Client, Some(name)) => name.clone(),
            (Kind::Client, None) => self.entry.subject.clone(),
            (Kind::Server, _) => format!("server: {}", self.entry.names.join(", ")),
            (Kind::Ca, _) => format!("CA: {}", self.entry.subject),
        }
    }

    fn state(&self, now: OffsetDateTime) -> String {
        match (self.revoked, self.reason, self.renewed_by) {
            (Some(at), Some(reason), _) => format!("revoked {}: {reason}", at.date()),
            _ if self.entry.expires <= now => "expired".to_owned(),
            (_, _, Some(serial)) => format!("good; renewed by {serial}"),
            _ => "good".to_owned(),
        }
    }
}

pub(super) fn rebuild(arguments: &SiteArguments) -> Result<(), Failure> {
    let Editing { settings, files, owner, lock } = edit(arguments)?;
    let cas = site::read_or_empty(&settings.ca_certificate())?;
    let mut certificates = Vec::new();
    let mut take = |path: &Path| -> Result<(), Failure> {
        let text = site::read_or_empty(path)?;
        if !text.is_empty() {
            certificates.push((path.display().to_string(), text));
        }
        Ok(())
    };
    for path in entries(&files.issued)? {
        take(&path)?;
    }
    take(&settings.ca_certificate())?;
    for tls in settings.tls_files() {
        take(&tls.certificate)?;
    }
    for folder in entries(&files.bundles)? {
        take(&folder.join("client.crt"))?;
    }
    let ders = pki::load_certificates(cas.as_bytes())
        .map_err(|error| Failure::new(format!("{}: {error}", settings.ca_certificate().display())))?;
    let lists = read_lists(&settings)?.into_iter().filter(|list| ders.iter().any(|ca| list.is_signed_by(ca))).collect();
    let ledger = match std::fs::read(&files.ledger) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Failure::new(format!("cannot read {}: {error}", files.ledger.display()))),
    };
    let remains = Remains { ledger, cas, certificates, lists };
    let rebuilt = pki::rebuild(&remains);
    let mut change = Transaction::new(&files.anchor);
    let damaged = files.ledger.with_extension("damaged");
    if !rebuilt.damaged.is_empty() {
        change.write(&damaged, remains.ledger, 0o600, owner);
    }
    change.write(&files.ledger, rebuilt.text, 0o600, owner);
    change.commit()?;
    drop(lock);
    say!("{}: {} certificate(s) and {} revocation(s) added", files.ledger.display(), rebuilt.issued, rebuilt.revoked);
    if !rebuilt.damaged.is_empty() {
        let lines: Vec<String> = rebuilt.damaged.iter().map(usize::to_string).collect();
        say!("  line(s) {} could not be read; the old ledger is in {}", lines.join(", "), damaged.display());
    }
    rebuilt.left_out.iter().for_each(|what| say!("  left out: {what}"));
    say!("  look through it with `lockgate ca ledger`: what was revoked without a trace admits again");
    say!("  {}", site::tell_broker_all(&settings)?);
    Ok(())
}

/// What is in a folder, in the order of its names; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    let failed = |error| Failure::new(format!("cannot read {}: {error}", folder.display()));
    let mut paths = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error),
    }
    .map_err(failed)?;
    paths.sort();
    Ok(paths)
}
