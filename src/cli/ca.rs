//! `lockgate ca`: the site's certificate authority.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::site::{self, Editing, Files, edit};
use super::{Failure, SiteArguments, bundle};
use crate::config::Settings;
use crate::pki::{self, CRL_DAYS, CertificateInfo, Ledger, ListWanted, RevocationList, Transaction};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the CA: its certificate, whether its key is here, what it issued and revoked
    #[command(after_help = "Example:\n  lockgate ca show")]
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Sign the list of revoked certificates anew, for servers that are not this broker
    #[command(
        after_help = "Example:\n  lockgate ca crl --out ca.crl\n\nThis broker goes by its ledger and needs no list. The list is in pki/ca.crl, is signed anew with\neach revocation, and is served as /ca.crl where `metrics.address` is set."
    )]
    Crl {
        /// How long the list holds, days [default: as long as the one before, or 30]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3_653))]
        days: Option<u32>,
        /// Where to write it too, beside pki/ca.crl
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        site: SiteArguments,
    },
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Show { json, site } => show(&site, json),
        Command::Crl { days, out, site } => crl(&site, days, out),
    }
}

/// What `show` says, for programs.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    file: String,
    subject: String,
    key_type: Option<&'static str>,
    #[serde(with = "time::serde::rfc3339")]
    not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    days_left: i64,
    fingerprint: String,
    key_is_here: bool,
    issued: usize,
    /// Of clients, good now.
    current: usize,
    /// Not yet expired.
    revoked: usize,
    revocation_list: Option<ShownList>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownList {
    file: String,
    serials: usize,
    #[serde(with = "time::serde::rfc3339")]
    this_update: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    next_update: Option<OffsetDateTime>,
    is_outdated: bool,
}

fn show(arguments: &SiteArguments, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let files = Files::of(&settings);
    let info = CertificateInfo::read(&settings.ca_certificate())?;
    let ledger = files.ledger()?;
    let now = OffsetDateTime::now_utc();
    let list = read_list(&settings)?.map(|list| ShownList {
        file: settings.crl().display().to_string(),
        serials: list.serials.len(),
        this_update: list.this_update,
        next_update: list.next_update,
        is_outdated: list.is_outdated(now),
    });
    let shown = Shown {
        file: settings.ca_certificate().display().to_string(),
        subject: info.subject.clone(),
        key_type: info.key_type.map(pki::KeyType::as_str),
        not_before: info.not_before,
        not_after: info.not_after,
        days_left: info.days_left(now),
        fingerprint: info.fingerprint.clone(),
        key_is_here: settings.ca_key().exists(),
        issued: ledger.issued(),
        current: ledger.current().len(),
        revoked: ledger.revocations(now).len(),
        revocation_list: list,
    };
    if json {
        say!("{}", serde_json::to_string_pretty(&shown).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{}: {}", shown.file, shown.subject);
    say!("  expires:         {}, in {} days", info.not_after_date(), shown.days_left);
    say!("  SHA-256:         {}", shown.fingerprint);
    say!("  key:             {}", if shown.key_is_here { "here: certificates can be issued" } else { "not here" });
    say!("  certificates:    {} issued, {} of clients good, {} revoked", shown.issued, shown.current, shown.revoked);
    match &shown.revocation_list {
        None => say!("  revocation list: none yet; `lockgate ca crl` makes one"),
        Some(list) => {
            let until = list.next_update.map_or_else(|| "for ever".to_owned(), |next| format!("until {}", next.date()));
            let outdated = if list.is_outdated { ", which is over: `lockgate ca crl` makes it anew" } else { "" };
            say!("  revocation list: {}, {} serial numbers, good {until}{outdated}", list.file, list.serials);
        }
    }
    Ok(())
}

fn crl(arguments: &SiteArguments, days: Option<u32>, out: Option<PathBuf>) -> Result<(), Failure> {
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
pub(super) enum ListDays {
    AsBefore,
    So(u32),
}

/// The list that is there.
pub(super) fn read_list(settings: &Settings) -> Result<Option<RevocationList>, Failure> {
    let path = settings.crl();
    let text = site::read_or_empty(&path)?;
    if text.is_empty() {
        return Ok(None);
    }
    let mut lists = RevocationList::parse_all(text.as_bytes())
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(Some(lists.remove(0)))
}

/// Has `change` write a list of what `ledger` says was revoked; gives it as it will be.
pub(super) fn write_list(
    change: &mut Transaction,
    settings: &Settings,
    files: &Files,
    ledger: &Ledger,
    days: ListDays,
) -> Result<RevocationList, Failure> {
    let authority = bundle::authority(settings)?;
    let before = read_list(settings)?;
    let days = match (days, &before) {
        (ListDays::So(days), _) => days,
        (ListDays::AsBefore, Some(RevocationList { this_update, next_update: Some(next), .. })) => {
            u32::try_from((*next - *this_update).whole_days()).unwrap_or(CRL_DAYS).max(1)
        }
        _ => CRL_DAYS,
    };
    let now = OffsetDateTime::now_utc();
    let revoked = ledger.revocations(now);
    let wanted = ListWanted { revoked: &revoked, before: before.as_ref(), days, now };
    let pem = authority.revocation_list(&wanted).map_err(Failure::new)?;
    let list = RevocationList::parse_all(pem.as_bytes()).map_err(Failure::new)?.remove(0);
    change.write(&settings.crl(), pem, 0o644, files.owner());
    Ok(list)
}

/// Signs the list anew when two thirds of its time are over; says whether it did.
pub(super) fn renew_list_if_due(settings: &Settings, now: OffsetDateTime) -> Result<bool, Failure> {
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
