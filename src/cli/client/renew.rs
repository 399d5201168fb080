//! New certificates in place of old ones.

use time::{Duration, OffsetDateTime};

use super::super::{Failure, bundle};
use super::{Editing, Renew, edit, learned, nobody};
use crate::pki::{self, Authority, Entry, Event, Issued, KeyType, Kind, LEAF_DAYS_MAX, Ledger, Transaction};
use crate::types::Identity;

pub(super) fn renew(arguments: &Renew) -> Result<(), Failure> {
    let editing = edit(&arguments.site)?;
    let Editing { settings, files, owner, .. } = &editing;
    let now = OffsetDateTime::now_utc();
    let ledger = files.ledger()?;
    let wanted: Vec<Identity> = match (&arguments.name, arguments.all_expiring) {
        (Some(name), _) => vec![name.clone()],
        (None, days) => expiring(&ledger, now + Duration::days(i64::from(days.unwrap_or_default()))),
    };
    if wanted.is_empty() {
        say!("No certificate expires within {} days.", arguments.all_expiring.unwrap_or_default());
        return Ok(());
    }
    let authority = bundle::authority(settings)?;
    let trusted = bundle::trusted_pem(settings)?;
    let mut change = Transaction::new(&files.anchor);
    let (mut events, mut said) = (Vec::new(), Vec::new());
    for name in &wanted {
        let Some(old) = newest(&ledger, name) else {
            return Err(match name_is_known(files, name)? {
                true => Failure::new(format!(
                    "{name} has no certificate, only a password: `lockgate client remove {name}` and `lockgate client add {name}` make both"
                )),
                false => nobody(name),
            });
        };
        let folder = files.bundles.join(name.as_str());
        if arguments.all_expiring.is_some() && !arguments.new_key && !folder.join("client.key").exists() {
            said.push(format!(
                "{name} is left out: its key is not here; it renews itself, or `lockgate client sign {name} CSR` takes its request"
            ));
            continue;
        }
        let issued = issue(arguments, &authority, &settings.name, name, old, &folder.join("client.key"), now)?;
        change.folder(&folder, 0o700, *owner);
        change.write(&folder.join("client.crt"), issued.certificate_pem.as_str(), 0o644, *owner);
        change.write(&folder.join("ca.crt"), trusted.as_str(), 0o644, *owner);
        if arguments.new_key {
            change.write(&folder.join("client.key"), issued.key_pem.as_str(), 0o600, *owner);
        }
        let entry = Entry::of(&issued.info, &issued.certificate_pem, Kind::Client, Some(name), now);
        events.push(Event::Issued(Entry { renews: Some(old.serial.clone()), ..entry }));
        said.push(format!(
            "{name} has a new certificate{}: it expires {}, SHA-256 {}\n  bundle: {}/; the old certificate is good until {}",
            if arguments.new_key { " and a new key" } else { "" },
            issued.info.not_after_date(),
            issued.info.fingerprint,
            folder.display(),
            old.expires.date(),
        ));
    }
    if events.is_empty() {
        said.iter().for_each(|line| say!("{line}"));
        return Ok(());
    }
    files.record(&mut change, &events, *owner)?;
    change.commit()?;
    said.iter().for_each(|line| say!("{line}"));
    learned(editing)
}

fn issue(
    arguments: &Renew,
    authority: &Authority,
    site: &str,
    name: &Identity,
    old: &Entry,
    key: &std::path::Path,
    now: OffsetDateTime,
) -> Result<Issued, Failure> {
    // Issued five minutes back, and never longer than allowed.
    let life = (old.expires - old.at + Duration::minutes(6)).whole_days().clamp(1, i64::from(LEAF_DAYS_MAX));
    let days = arguments.days.unwrap_or(life as u32);
    if arguments.new_key {
        let key_type = KeyType::parse(&old.key).unwrap_or_default();
        return authority.issue_client(site, name, key_type, days, now).map_err(Failure::new);
    }
    if !key.exists() {
        return Err(Failure::new(format!(
            "{} is not here: sign the device's request with `lockgate client sign {name} CSR`, or make it another key with \
             `lockgate client renew {name} --new-key`",
            key.display()
        )));
    }
    let secret = pki::read_secret(key)?;
    let pem = str::from_utf8(&secret).map_err(|_| Failure::new(format!("{}: it is no PEM text", key.display())))?;
    authority
        .renew_client(site, name, pem, days, now)
        .map_err(|error| Failure::new(format!("{}: {error}", key.display())))
}

/// Those whose newest certificate expires before `by`.
fn expiring(ledger: &Ledger, by: OffsetDateTime) -> Vec<Identity> {
    let owners = ledger.current_by_owner().into_iter();
    let newest = |entries: &[&Entry]| entries.iter().map(|entry| entry.expires).max();
    owners.filter(|(_, entries)| newest(entries).is_some_and(|expires| expires <= by)).map(|(name, _)| name).collect()
}

/// The current certificate that lives longest.
fn newest<'l>(ledger: &'l Ledger, name: &Identity) -> Option<&'l Entry> {
    ledger.current_of(name).into_iter().max_by_key(|entry| entry.expires)
}

fn name_is_known(files: &super::Files, name: &Identity) -> Result<bool, Failure> {
    super::passwords(files).map(|(_, names)| names.contains(name))
}
