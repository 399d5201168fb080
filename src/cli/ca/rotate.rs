//! A new CA in the place of an old one, with a time in which both are trusted.

use std::path::PathBuf;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::super::server::Renewal;
use super::super::site::{self, Editing, Files, edit};
use super::super::{Failure, SiteArguments, ask, bundle, server};
use super::{ListDays, Rotate, write_list};
use crate::config::Settings;
use crate::pki::{
    Authority, CA_DAYS, CertificateInfo, Entry, Event, ISSUING_CA_DAYS, Issued, Kind, Ledger, Reason, Transaction,
};
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
    let now = OffsetDateTime::now_utc();
    let successor = match settings.ca_root().exists() {
        true => Successor::below_root(&settings, arguments, now)?,
        false => Successor::of_root(&settings, arguments, now)?,
    };
    let Successor { authority: new, issued, word, key } = successor;
    let old_key = site::read_or_empty(&settings.ca_key())?;
    let both = issued.certificate_pem.clone() + &site::read_or_empty(&path)?;
    let mut change = Transaction::new(&files.anchor);
    let mut events = vec![Event::Issued(Entry::of(&issued.info, &issued.certificate_pem, Kind::Ca, None, now))];
    change.write(&path, both.as_str(), 0o644, owner);
    let key_owner = site::ca_key_owner(&settings, owner);
    change.write(&settings.ca_key(), key.as_str(), 0o600, key_owner);
    if !old_key.is_empty() {
        change.write(&settings.ca_old_key(), old_key, 0o600, key_owner);
    }
    // Clients that know the old CA alone verify it by the old one's word; those that know the root, by the new CA.
    let link = word.as_ref().unwrap_or(&issued.certificate_pem);
    if server::own_tls_files(&settings).is_some() {
        let renewal = Renewal::of(&settings)?;
        events.push(renewal.issue(&mut change, &settings, &new, link, owner, now)?.1);
    }
    if let Some(word) = &word {
        change.write(&settings.ca_link(), word.as_str(), 0o644, owner);
        for bundled in bundled_cas(&files) {
            change.write(&bundled, both.as_str(), 0o644, owner);
        }
    }
    files.record(&mut change, &events, owner)?;
    change.commit()?;
    let waiting = still_on_old(&files.ledger()?, &new.info).len();
    drop(lock);
    say!("{}: a new CA, SHA-256 {}", path.display(), issued.info.fingerprint);
    say!("  both CAs are trusted, and the server shows a certificate that clients of either verify");
    let theirs = if word.is_some() { ", and give them their new ca.crt too" } else { "" };
    say!("  {waiting} client(s) have certificates of the old one: renew them, in any order{theirs}");
    say!("  `lockgate ca show` says who is left; `lockgate ca retire` ends the old one");
    told(&settings)
}

/// A CA that takes another's place.
struct Successor {
    authority: Authority,
    issued: Issued,
    /// What the old one says of it, where clients trust that one and not a root above both.
    word: Option<String>,
    /// As the old one is kept.
    key: Zeroizing<String>,
}

impl Successor {
    fn of_root(settings: &Settings, arguments: &Rotate, now: OffsetDateTime) -> Result<Successor, Failure> {
        if let Some(key) = &arguments.root_key {
            return Err(Failure::configuration(format!(
                "--root-key {}: this site's CA is its own root; leave that out",
                key.display()
            )));
        }
        let secret = bundle::ca_secret(&settings.ca_key())?;
        let old = bundle::authority_of(&settings.ca_certificate(), &secret)?;
        let key_type = arguments.key_type().or(old.info.key_type).unwrap_or_default();
        let days = arguments.days.unwrap_or(CA_DAYS);
        let (authority, issued, word) = old.succeed(&settings.name, key_type, days, now).map_err(Failure::new)?;
        let key = secret.keep_alike(&issued.key_pem)?;
        Ok(Successor { authority, issued, word: Some(word), key })
    }

    fn below_root(settings: &Settings, arguments: &Rotate, now: OffsetDateTime) -> Result<Successor, Failure> {
        let key = arguments.root_key.as_deref().ok_or_else(|| {
            Failure::configuration(format!(
                "the root {} signs the next CA: name the file with its key, from where it is kept, with --root-key FILE",
                settings.ca_root().display()
            ))
        })?;
        if bundle::is_protected(key) && arguments.root_passphrase_file.is_none() && !ask::is_interactive() {
            return Err(Failure::configuration(format!(
                "{} is under a passphrase, and there is no terminal to ask for it: use --root-passphrase-file FILE",
                key.display()
            )));
        }
        let root = bundle::authority_of(
            &settings.ca_root(),
            &bundle::ca_secret_with(key, arguments.root_passphrase_file.as_deref())?,
        )?;
        let old = CertificateInfo::read(&settings.ca_certificate())?;
        let key_type = arguments.key_type().or(old.key_type).unwrap_or_default();
        let days = arguments.days.unwrap_or(ISSUING_CA_DAYS);
        let (authority, issued) = root.issue_ca(&settings.name, key_type, days, now).map_err(Failure::new)?;
        let key = match settings.ca_key().exists() {
            true => bundle::ca_secret(&settings.ca_key())?.keep_alike(&issued.key_pem)?,
            false => issued.key_pem.clone(),
        };
        Ok(Successor { authority, issued, word: None, key })
    }
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
    let pem = bundle::first_certificate(&site::read_or_empty(&path)?)?;
    let has_root = settings.ca_root().exists();
    let now = OffsetDateTime::now_utc();
    let at = now.replace_nanosecond(0).unwrap_or(now);
    let ended = |serial: String| Event::Revoked { at, serial, reason: Reason::Superseded };
    let mut events: Vec<Event> = Vec::new();
    for entries in ledger.current_by_owner().into_values() {
        events.extend(entries.into_iter().filter(|entry| !entry.is_of(new)).map(|entry| ended(entry.serial.clone())));
    }
    let count = events.len();
    events.push(ended(old.serial_text()));
    let mut change = Transaction::new(&files.anchor);
    let lines = files.record(&mut change, &events, owner)?;
    change.write(&path, pem.as_str(), 0o644, owner);
    if !has_root {
        for bundled in bundled_cas(&files) {
            change.write(&bundled, pem.as_str(), 0o644, owner);
        }
        if let Some(tls) = server::own_tls_files(&settings) {
            let alone = bundle::first_certificate(&site::read_or_empty(&tls.certificate)?)?;
            change.write(&tls.certificate, alone, 0o644, owner);
        }
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

fn told(settings: &Settings) -> Result<(), Failure> {
    say!("  {}", site::tell_broker_all(settings)?);
    Ok(())
}
