//! Who may connect no more.

use time::OffsetDateTime;

use super::super::{Failure, SiteArguments, ca, enroll, site};
use super::{Editing, edit, learned, passwords};
use crate::pki::{Event, Ledger, Reason, Transaction};
use crate::types::Identity;

/// The name may begin anew; what it had is known to have been revoked, and its minimum level stays.
pub(super) fn revoke(arguments: &SiteArguments, name: &Identity, reason: Reason) -> Result<(), Failure> {
    let editing = edit(arguments)?;
    let mut change = Transaction::new(&editing.files.anchor);
    let ended = end(&mut change, &editing, name, reason)?;
    change.commit()?;
    say!("{name} is revoked ({}): its password and {} certificate(s) admit no more.", reason.as_str(), ended.count);
    ended.say();
    learned(editing)
}

/// Nothing is left but the ledger's lines.
pub(super) fn remove(arguments: &SiteArguments, name: &Identity) -> Result<(), Failure> {
    let editing = edit(arguments)?;
    let mut change = Transaction::new(&editing.files.anchor);
    let ended = end(&mut change, &editing, name, Reason::CessationOfOperation)?;
    let identities = &editing.files.identities;
    if identities.exists() {
        change.write(identities, site::edit_identities(identities, name, None)?, 0o600, editing.owner);
    }
    change.commit()?;
    say!("{name} is removed: its password and {} certificate(s) admit no more.", ended.count);
    ended.say();
    learned(editing)
}

/// What came of the end of an identity's ways in.
struct Ended {
    /// Certificates.
    count: usize,
    /// Tokens for enrolment that were withdrawn.
    tokens: usize,
    /// Why others cannot learn of it by the revocation list, if so.
    unlisted: Option<String>,
}

impl Ended {
    fn say(&self) {
        if self.tokens > 0 {
            say!("  {} token(s) for its enrolment are withdrawn", self.tokens);
        }
        if let Some(why) = &self.unlisted {
            say!("  the revocation list is as it was, which matters to other servers alone: {why}");
        }
    }
}

/// Ends password, certificates and bundle of an identity.
fn end(change: &mut Transaction, editing: &Editing, name: &Identity, reason: Reason) -> Result<Ended, Failure> {
    let Editing { settings, files, owner, .. } = editing;
    let (text, names) = passwords(files)?;
    let ledger = files.ledger()?;
    let certificates = ledger.current_of(name);
    let folder = files.bundles.join(name.as_str());
    let tokens = enroll::forget_tokens(change, settings, name, *owner)?;
    if !names.contains(name) && certificates.is_empty() && !folder.exists() && tokens == 0 {
        return Err(Failure::new(format!("there is no {name}: `lockgate client list` shows who there is")));
    }
    if names.contains(name) {
        change.write(&files.passwords, site::edit_passwords(&text, name, None), 0o600, *owner);
    }
    let mut ended = Ended { count: certificates.len(), tokens, unlisted: None };
    if !certificates.is_empty() {
        let now = OffsetDateTime::now_utc();
        let at = now.replace_nanosecond(0).unwrap_or(now);
        let serials = certificates.iter().map(|entry| entry.serial.clone());
        let revoked: Vec<Event> = serials.map(|serial| Event::Revoked { at, serial, reason }).collect();
        let lines = files.record(change, &revoked, *owner)?;
        // Nobody stays in because the list cannot be signed.
        let listed = Ledger::parse(&lines)
            .map_err(Failure::new)
            .and_then(|ledger| ca::write_list(change, settings, files, &ledger, ca::ListDays::AsBefore));
        ended.unlisted = listed.err().map(|failure| failure.message);
    }
    if folder.exists() {
        change.remove(&folder);
    }
    Ok(ended)
}
