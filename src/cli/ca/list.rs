//! The list of what was revoked, for servers that are not this broker.

use std::path::PathBuf;

use time::OffsetDateTime;

use super::super::site::{self, Editing, Files, edit};
use super::super::{Failure, SiteArguments, bundle};
use crate::config::Settings;
use crate::pki::{self, Authority, CRL_DAYS, Ledger, ListWanted, RevocationList, Transaction};

pub(super) fn crl(arguments: &SiteArguments, days: Option<u32>, out: Option<PathBuf>) -> Result<(), Failure> {
    let Editing { settings, files, .. } = edit(arguments)?;
    let mut change = Transaction::new(&files.anchor);
    let list =
        write_list(&mut change, &settings, &files, &files.ledger()?, days.map_or(ListDays::AsBefore, ListDays::So))?;
    change.commit()?;
    let path = settings.crl();
    let until = list.next_update.map(|next| next.date().to_string()).unwrap_or_default();
    say!("{}: {} revoked serial numbers, good until {until}", path.display(), list.serials.len());
    if let Some(out) = out {
        pki::replace(&out, site::read_or_empty(&path)?.as_bytes(), 0o644)?;
        say!("  and in {}", out.display());
    }
    Ok(())
}

/// How long a list is to hold.
#[derive(Clone, Copy)]
pub(in crate::cli) enum ListDays {
    AsBefore,
    So(u32),
}

/// The list that is there.
pub(super) fn read_list(settings: &Settings) -> Result<Option<RevocationList>, Failure> {
    Ok(read_lists(settings)?.into_iter().next())
}

/// That and, while the CA before this one is trusted, its own.
pub(super) fn read_lists(settings: &Settings) -> Result<Vec<RevocationList>, Failure> {
    let path = settings.crl();
    let text = site::read_or_empty(&path)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    RevocationList::parse_all(text.as_bytes()).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// Has `change` write a list of what `ledger` says was revoked; gives it as it will be.
pub(in crate::cli) fn write_list(
    change: &mut Transaction,
    settings: &Settings,
    files: &Files,
    ledger: &Ledger,
    days: ListDays,
) -> Result<RevocationList, Failure> {
    let authority = bundle::authority(settings)?;
    // A damaged one is made anew; numbers go on from the clock.
    let before = read_list(settings).unwrap_or_default();
    let days = match (days, &before) {
        (ListDays::So(days), _) => days,
        (ListDays::AsBefore, Some(RevocationList { this_update, next_update: Some(next), .. })) => {
            u32::try_from((*next - *this_update).whole_days()).unwrap_or(CRL_DAYS).max(1)
        }
        _ => CRL_DAYS,
    };
    let now = OffsetDateTime::now_utc();
    let revoked = ledger.revocations(now - time::Duration::days(i64::from(days)));
    let wanted = ListWanted { revoked: &revoked, before: before.as_ref(), days, now };
    let mut pem = authority.revocation_list(&wanted).map_err(Failure::new)?;
    // While the CA before it is trusted, so is its list.
    if let Some(old) = old_authority(settings)? {
        pem += &old.revocation_list(&wanted).map_err(Failure::new)?;
    }
    let list = RevocationList::parse_all(pem.as_bytes()).map_err(Failure::new)?.remove(0);
    change.write(&settings.crl(), pem, 0o644, files.owner());
    Ok(list)
}

/// Signs the list anew when two thirds of its time are over; says whether it did.
pub(in crate::cli) fn renew_list_if_due(settings: &Settings, now: OffsetDateTime) -> Result<bool, Failure> {
    let Some(RevocationList { this_update, next_update: Some(next), .. }) = read_list(settings)? else {
        return Ok(false);
    };
    if now < this_update + (next - this_update) * 2 / 3 {
        return Ok(false);
    }
    let files = Files::of(settings);
    let _lock = pki::Lock::acquire(&files.anchor)?;
    files.recover()?;
    let mut change = Transaction::new(&files.anchor);
    write_list(&mut change, settings, &files, &files.ledger()?, ListDays::AsBefore)?;
    change.commit()?;
    Ok(true)
}

/// The CA before this one, as long as its key is here.
fn old_authority(settings: &Settings) -> Result<Option<Authority>, Failure> {
    let key = settings.ca_old_key();
    if !key.exists() {
        return Ok(None);
    }
    let path = settings.ca_certificate();
    let pem = site::read_or_empty(&path)?;
    let ders = pki::load_certificates(pem.as_bytes()).map_err(Failure::new)?;
    let Some(old) = ders.get(1) else { return Ok(None) };
    let secret = bundle::ca_secret(&key)?;
    Authority::of(old, &pem, &secret.key_pem)
        .map(Some)
        .map_err(|error| Failure::new(format!("{}: {error}", key.display())))
}
