//! Who there is, from the files and from the running broker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use time::OffsetDateTime;

use super::super::report::new_table;
use super::super::site::{self, Files};
use super::super::{Failure, SiteArguments};
use super::countdown::Countdown;
use super::passwords;
use crate::admin::{CallError, api};
use crate::config::Settings;
use crate::gate::{Seen, SeenEntry};
use crate::pki::CertificateInfo;
use crate::types::Identity;

/// One identity, from the files and from the running broker.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    name: String,
    password: bool,
    certificates: Vec<CertificateRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_level: Option<String>,
    connections: Vec<api::Connection>,
    sessions: Vec<api::Client>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<SeenEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CertificateRow {
    serial: String,
    expires: String,
    days_left: i64,
    fingerprint: String,
    /// Of the CA before this one, which is to be retired.
    of_old_ca: bool,
}

/// Who came over TLS last, and who did not: from the running broker, or from what it left.
pub(super) fn countdown(settings: &Settings) -> Result<Countdown, Failure> {
    match site::ask::<api::Clients>(settings, "/clients", None::<&()>) {
        Ok(clients) => Ok(Countdown::of_clients(&clients)),
        Err(CallError::NotRunning(_)) => {
            let seen = Seen::load(&settings.data.join("seen.json")).entries();
            Ok(Countdown::of(std::iter::empty(), &seen))
        }
        Err(error) => Err(Failure::new(error)),
    }
}

/// Everybody, and whether a broker runs.
fn rows(settings: &Settings) -> Result<(Vec<Row>, bool), Failure> {
    let files = Files::of(settings);
    let (_, names) = passwords(&files)?;
    let ledger = files.ledger()?;
    let now = OffsetDateTime::now_utc();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for name in &names {
        entry(&mut rows, name.as_str()).password = true;
    }
    let ca = CertificateInfo::read(&settings.ca_certificate()).ok().filter(|_| ledger.has_two_cas());
    for (owner, certificates) in ledger.current_by_owner() {
        for certificate in certificates {
            entry(&mut rows, owner.as_str()).certificates.push(CertificateRow {
                of_old_ca: ca.as_ref().is_some_and(|ca| !certificate.is_of(ca)),
                serial: certificate.serial.clone(),
                expires: certificate.expires.date().to_string(),
                days_left: (certificate.expires - now).whole_days(),
                fingerprint: certificate.fingerprint.clone(),
            });
        }
    }
    let asked = site::ask::<api::Clients>(settings, "/clients", None::<&()>);
    let seen;
    let running = match asked {
        Ok(clients) => {
            seen = clients.seen;
            for client in clients.clients {
                let name = client.identity.clone().unwrap_or_else(|| "(anonymous)".to_owned());
                let row = entry(&mut rows, &name);
                row.connections.extend(client.connection.clone());
                row.sessions.push(client);
            }
            true
        }
        Err(CallError::NotRunning(_)) => {
            seen = Seen::load(&settings.data.join("seen.json")).entries();
            false
        }
        Err(error) => return Err(Failure::new(error)),
    };
    let levels = crate::gate::read_min_levels(settings).map_err(Failure::configuration)?;
    for (name, seen) in seen {
        if let Some(row) = rows.get_mut(&name) {
            row.last_seen = Some(seen);
        }
    }
    for (name, row) in &mut rows {
        row.min_level = levels.get(name.as_str()).map(ToString::to_string);
        let folder = files.bundles.join(name);
        row.bundle = folder.exists().then_some(folder);
    }
    Ok((rows.into_values().collect(), running))
}

fn entry<'a>(rows: &'a mut BTreeMap<String, Row>, name: &str) -> &'a mut Row {
    rows.entry(name.to_owned()).or_insert_with(|| Row { name: name.to_owned(), ..Row::default() })
}

pub(super) fn list(arguments: &SiteArguments, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let (rows, running) = rows(&settings)?;
    if json {
        say!("{}", serde_json::to_string_pretty(&rows).map_err(Failure::new)?);
        return Ok(());
    }
    if rows.is_empty() {
        say!("There is nobody yet. Add a client: lockgate client add device1");
        return Ok(());
    }
    let mut table = new_table(&["Name", "Has", "Expires", "Min", "Connected", "Since", "Last seen"]);
    for row in &rows {
        let expires = row
            .certificates
            .last()
            .map(|certificate| {
                format!(
                    "{} ({} d{})",
                    certificate.expires,
                    certificate.days_left,
                    if certificate.of_old_ca { ", old CA" } else { "" }
                )
            })
            .unwrap_or_default();
        let connected: Vec<String> =
            row.connections.iter().map(|c| format!("{} from {}", c.level, c.address)).collect();
        let since: Vec<&str> = row.connections.iter().map(|c| c.since.as_str()).collect();
        let seen =
            row.last_seen.as_ref().map(|seen| format!("{} {}", short_time(seen.at), seen.level)).unwrap_or_default();
        table.add_row([
            row.name.clone(),
            row.has(),
            expires,
            row.min_level.clone().unwrap_or_default(),
            connected.join("\n"),
            since.join("\n"),
            seen,
        ]);
    }
    say!("{table}");
    for line in countdown(&settings)?.lines(&settings) {
        say!("{line}");
    }
    if !running {
        say!("No broker is running: who is connected is not known.");
    }
    Ok(())
}

fn short_time(at: OffsetDateTime) -> String {
    format!("{} {:02}:{:02}Z", at.date(), at.hour(), at.minute())
}

impl Row {
    fn has(&self) -> String {
        let has: Vec<&str> = [(!self.certificates.is_empty(), "certificate"), (self.password, "password")]
            .into_iter()
            .filter_map(|(has, what)| has.then_some(what))
            .collect();
        has.join(", ")
    }
}

pub(super) fn show(arguments: &SiteArguments, name: &Identity, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let (rows, running) = rows(&settings)?;
    let row = rows
        .into_iter()
        .find(|row| row.name == name.as_str())
        .ok_or_else(|| Failure::new(format!("there is no {name}: `lockgate client list` shows who there is")))?;
    if json {
        say!("{}", serde_json::to_string_pretty(&row).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{name}");
    say!("  has:         {}", row.has());
    for certificate in &row.certificates {
        say!(
            "  certificate: expires {} (in {} days), serial {}",
            certificate.expires,
            certificate.days_left,
            certificate.serial
        );
        say!("               SHA-256 {}", certificate.fingerprint);
    }
    say!("  min level:   {}", row.min_level.as_deref().unwrap_or("plain"));
    if let Some(bundle) = &row.bundle {
        say!("  bundle:      {}/", bundle.display());
    }
    match (running, row.sessions.is_empty()) {
        (false, _) => say!("  sessions:    not known: no broker is running"),
        (true, true) => say!("  sessions:    none"),
        (true, false) => {}
    }
    for session in &row.sessions {
        let state = match &session.connection {
            Some(c) => {
                format!("connected at level {} from {} since {}, MQTT {}", c.level, c.address, c.since, c.version)
            }
            None => "not connected".to_owned(),
        };
        say!("  session:     {:?} {state}", session.client_id);
        say!(
            "               {} subscriptions, {} messages queued ({} bytes), {} in flight",
            session.subscriptions,
            session.queued_messages,
            session.queued_bytes,
            session.inflight_messages
        );
    }
    if let Some(seen) = &row.last_seen {
        say!("  last seen:   {} at level {} from {}", short_time(seen.at), seen.level, seen.from);
    }
    Ok(())
}
