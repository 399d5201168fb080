//! A new CA in the place of an old one, with a time in which both are trusted.

use std::path::PathBuf;

use time::OffsetDateTime;

use super::super::server::Renewal;
use super::super::site::{self, Editing, Files, edit};
use super::super::{Failure, SiteArguments, bundle, server};
use super::{ListDays, Rotate, write_list};
use crate::config::Settings;
use crate::pki::{CertificateInfo, Entry, Event, KeyType, Kind, Ledger, Reason, Transaction};
use crate::types::Identity;

pub(super) fn rotate(arguments: &Rotate) -> Result<(), Failure> {
    let Editing { settings, files, owner, lock } = edit(&arguments.site)?;
    let path = settings.ca_certificate();
    if CertificateInfo::read_all(&path)?.len() > 1 {
        return Err(Failure::new(format!(
            "{} has two CAs already: `lockgate ca show` says who still uses the old one, `lockgate ca retire` ends it",
            path.display()
        )));
    }
    let secret = bundle::ca_secret(&settings.ca_key())?;
    let old = bundle::authority_of(&path, &secret)?;
    let now = OffsetDateTime::now_utc();
    let key_type = arguments.key_type.as_deref().and_then(KeyType::parse);
    let key_type = key_type.or(old.info.key_type).unwrap_or_default();
    let (new, issued, word) = old.succeed(&settings.name, key_type, arguments.days, now).map_err(Failure::new)?;
    let old_key = site::read_or_empty(&settings.ca_key())?;
    let both = issued.certificate_pem.clone() + &old.certificate_pem;
    let mut change = Transaction::new(&files.anchor);
    let mut events = vec![Event::Issued(Entry::of(&issued.info, Kind::Ca, None, key_type, now))];
    change.write(&path, both.as_str(), 0o644, owner);
    change.write(&settings.ca_key(), secret.keep_alike(&issued.key_pem)?.as_str(), 0o600, None);
    change.write(&settings.ca_old_key(), old_key, 0o600, owner);
    change.write(&settings.ca_link(), word.as_str(), 0o644, owner);
    // Clients that know the old CA alone verify it by the old one's word.
    if server::own_tls_files(&settings).is_some() {
        let renewal = Renewal::of(&settings)?;
        events.push(renewal.issue(&mut change, &settings, &new, &word, owner, now)?.1);
    }
    for bundled in bundled_cas(&files) {
        change.write(&bundled, both.as_str(), 0o644, owner);
    }
    change.write(&files.ledger, files.ledger_text()? + &Ledger::lines(&events), 0o600, owner);
    change.commit()?;
    let waiting = still_on_old(&files.ledger()?, &new.info).len();
    drop(lock);
    say!("{}: a new CA, SHA-256 {}", path.display(), issued.info.fingerprint);
    say!("  both CAs are trusted, and the server shows a certificate that clients of either verify");
    say!(
        "  {waiting} client(s) have certificates of the old one: renew them, in any order, and give them their new ca.crt too"
    );
    say!("  `lockgate ca show` says who is left; `lockgate ca retire` ends the old one");
    told(&settings)
}

pub(super) fn retire(arguments: &SiteArguments, force: bool) -> Result<(), Failure> {
    let Editing { settings, files, owner, lock } = edit(arguments)?;
    let path = settings.ca_certificate();
    let infos = CertificateInfo::read_all(&path)?;
    let [new, old, ..] = infos.as_slice() else {
        return Err(Failure::new(format!(
            "{} has one CA: there is none to retire; `lockgate ca rotate` makes another",
            path.display()
        )));
    };
    let ledger = files.ledger()?;
    let left = still_on_old(&ledger, new);
    if !left.is_empty() && !force {
        let names: Vec<&str> = left.iter().take(10).map(Identity::as_str).collect();
        return Err(Failure::new(format!(
            "{} client(s) have no certificate of the new CA yet ({}{}): `lockgate client renew NAME`, or --force shuts them out",
            left.len(),
            names.join(", "),
            if left.len() > names.len() { ", ..." } else { "" }
        )));
    }
    let pem = first_certificate(&site::read_or_empty(&path)?)?;
    let now = OffsetDateTime::now_utc();
    let at = now.replace_nanosecond(0).unwrap_or(now);
    let ended = |serial: String| Event::Revoked { at, serial, reason: Reason::Superseded };
    let mut events: Vec<Event> = Vec::new();
    for entries in ledger.current_by_owner().into_values() {
        events.extend(entries.into_iter().filter(|entry| !entry.is_of(new)).map(|entry| ended(entry.serial.clone())));
    }
    let count = events.len();
    events.push(ended(old.serial_text()));
    let lines = files.ledger_text()? + &Ledger::lines(&events);
    let mut change = Transaction::new(&files.anchor);
    change.write(&path, pem.as_str(), 0o644, owner);
    for bundled in bundled_cas(&files) {
        change.write(&bundled, pem.as_str(), 0o644, owner);
    }
    if let Some(tls) = server::own_tls_files(&settings) {
        change.write(&tls.certificate, first_certificate(&site::read_or_empty(&tls.certificate)?)?, 0o644, owner);
    }
    for gone in [settings.ca_old_key(), settings.ca_link()] {
        if gone.exists() {
            change.remove(&gone);
        }
    }
    let parsed = Ledger::parse(&lines).map_err(Failure::new)?;
    // Without the key the list stays as it is: this broker goes by the ledger.
    if let Err(failure) = write_list(&mut change, &settings, &files, &parsed, ListDays::AsBefore) {
        say!("  the revocation list is as it was, which matters to other servers alone: {}", failure.message);
    }
    change.write(&files.ledger, lines, 0o600, owner);
    change.commit()?;
    drop(lock);
    say!("{} is retired: {count} certificate(s) of it admit no more", old.subject);
    told(&settings)
}

/// Those who have certificates, and none of this CA.
pub(super) fn still_on_old(ledger: &Ledger, ca: &CertificateInfo) -> Vec<Identity> {
    let owners = ledger.current_by_owner().into_iter();
    owners.filter(|(_, entries)| !entries.iter().any(|entry| entry.is_of(ca))).map(|(name, _)| name).collect()
}

/// The CA's copies in clients' bundles.
fn bundled_cas(files: &Files) -> Vec<PathBuf> {
    let Ok(folders) = std::fs::read_dir(&files.bundles) else { return Vec::new() };
    let copies = folders.flatten().map(|folder| folder.path().join("ca.crt"));
    copies.filter(|copy| copy.exists()).collect()
}

fn first_certificate(pem: &str) -> Result<String, Failure> {
    const END: &str = "-----END CERTIFICATE-----";
    let end = pem.find(END).ok_or_else(|| Failure::new("there is no certificate"))? + END.len();
    Ok(pem[..end].to_owned() + "\n")
}

fn told(settings: &Settings) -> Result<(), Failure> {
    say!("  {}", site::tell_broker_all(settings)?);
    Ok(())
}
