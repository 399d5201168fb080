//! `lockgate ca`: the site's certificate authority.

pub(super) mod import;
mod install;
mod ledger;
mod list;
mod rotate;

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::site::{self, Editing, Files, edit};
use super::{Failure, SiteArguments, ask, bundle};
use crate::pki::{self, CertificateInfo, KeyType, Transaction};

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
    /// Put the CA's key under a passphrase, change that, or take it away
    #[command(
        after_help = "Examples:\n  lockgate ca passphrase\n  lockgate ca passphrase --remove\n\nCommands that sign ask for it; where nobody can be asked LOCKGATE_CA_PASSPHRASE_FILE names a file that has it.\nThe key is PKCS #8 under PBES2 (scrypt, AES-256): openssl opens it too."
    )]
    Passphrase {
        /// Read the new passphrase from this file's first line, in place of asking for it
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
        /// Keep the key without one
        #[arg(long, conflicts_with = "passphrase_file")]
        remove: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Begin a new CA beside the old one: both are trusted until `ca retire`
    #[command(
        after_help = "Example:\n  lockgate ca rotate\n  lockgate client renew --all-expiring 397     # and hand the bundles out, in any order\n  lockgate ca show                             # who still uses the old one\n  lockgate ca retire\n\nClients that know the old CA alone go on verifying the server: it shows what the old CA says of the new one."
    )]
    Rotate(Rotate),
    /// End the CA before this one: its certificates admit no more
    #[command(after_help = "Example:\n  lockgate ca retire")]
    Retire {
        /// Though clients still use it: they are out, and their sessions end
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Take over a CA that was made elsewhere, with the certificates that it issued
    Import(import::Arguments),
    /// Have every program of this machine trust the CA
    Install(install::Arguments),
    /// List every certificate that was ever issued; or make the ledger anew from the certificates
    #[command(
        after_help = "Examples:\n  lockgate ca ledger\n  lockgate ca ledger --rebuild\n\nEach certificate is kept in pki/issued/ too, with what the ledger says of it. --rebuild keeps the lines of\npki/ledger.jsonl that can be read, adds what these files, the bundles and the revocation list know, and keeps a\ncopy of the old ledger if a line of it was damaged."
    )]
    Ledger {
        /// Make pki/ledger.jsonl anew
        #[arg(long, conflicts_with = "json")]
        rebuild: bool,
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

#[derive(Args)]
struct Rotate {
    /// Kind of the new CA's key [default: as the old CA's]
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(["ecdsa-p256", "rsa-2048", "rsa-3072", "ed25519"]))]
    key_type: Option<String>,
    /// How long the new CA lives, days [default: 3653, below a root 1826]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=7_305))]
    days: Option<u32>,
    /// The root's key, where the CA is below one (`init --intermediate`)
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// Read the passphrase of the root's key from this file's first line, in place of asking for it
    #[arg(long, value_name = "FILE", requires = "root_key")]
    root_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    site: SiteArguments,
}

impl Rotate {
    fn key_type(&self) -> Option<KeyType> {
        self.key_type.as_deref().and_then(KeyType::parse)
    }
}

pub(super) use list::{ListDays, renew_list_if_due, write_list};

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Show { json, site } => show(&site, json),
        Command::Passphrase { passphrase_file, remove, site } => passphrase(&site, passphrase_file.as_deref(), remove),
        Command::Rotate(arguments) => rotate::rotate(&arguments),
        Command::Retire { force, site } => rotate::retire(&site, force),
        Command::Install(arguments) => install::install(&arguments),
        Command::Import(arguments) => import::import(&arguments),
        Command::Ledger { rebuild: false, json, site } => ledger::list(&site, json),
        Command::Ledger { rebuild: true, site, .. } => ledger::rebuild(&site),
        Command::Crl { days, out, site } => list::crl(&site, days, out),
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
    /// Names, addresses and networks that it may issue for, where it may not for all.
    permitted: Option<Vec<String>>,
    /// Who signed it, where it is not its own root.
    root: Option<ShownRoot>,
    key_is_here: bool,
    key_has_passphrase: bool,
    issued: usize,
    /// Of clients, good now.
    current: usize,
    /// Not yet expired.
    revoked: usize,
    revocation_list: Option<ShownList>,
    /// The CA before this one, while it is trusted too.
    old: Option<ShownOld>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownRoot {
    file: String,
    subject: String,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    fingerprint: String,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownOld {
    subject: String,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    fingerprint: String,
    /// Those who have no certificate of the new one.
    still_used_by: Vec<String>,
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

fn passphrase(arguments: &SiteArguments, file: Option<&Path>, remove: bool) -> Result<(), Failure> {
    let new = match (remove, file) {
        (true, _) => None,
        (false, file) => Some(ask::new_passphrase(file, "the CA's key", "--passphrase-file")?),
    };
    let Editing { settings, files, .. } = edit(arguments)?;
    if settings.enrolment.is_some() || settings.self_renew {
        say!("  the broker of this site signs too: give it LOCKGATE_CA_PASSPHRASE_FILE");
    }
    let mut change = Transaction::new(&files.anchor);
    for key in [settings.ca_key(), settings.ca_old_key()] {
        if !key.exists() {
            continue;
        }
        let secret = bundle::CaSecret { passphrase: new.clone(), ..bundle::ca_secret(&key)? };
        change.write(&key, secret.keep_alike(&secret.key_pem)?.as_str(), 0o600, None);
    }
    if change.is_empty() {
        return Err(Failure::new(format!("{} is not here", settings.ca_key().display())));
    }
    change.commit()?;
    let under = if new.is_some() { "under the new passphrase" } else { "kept without a passphrase" };
    say!("{} is {under}", settings.ca_key().display());
    Ok(())
}

fn show(arguments: &SiteArguments, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let files = Files::of(&settings);
    let infos = CertificateInfo::read_all(&settings.ca_certificate())?;
    let info = &infos[0];
    let ledger = files.ledger()?;
    let old = infos.get(1).map(|old| ShownOld {
        subject: old.subject.clone(),
        not_after: old.not_after,
        fingerprint: old.fingerprint.clone(),
        still_used_by: rotate::still_on_old(&ledger, info).iter().map(ToString::to_string).collect(),
    });
    let root = match settings.ca_root() {
        path if path.exists() => Some(CertificateInfo::read(&path).map(|info| ShownRoot {
            file: path.display().to_string(),
            subject: info.subject.clone(),
            not_after: info.not_after,
            fingerprint: info.fingerprint,
        })?),
        _ => None,
    };
    let now = OffsetDateTime::now_utc();
    let list = list::read_list(&settings)?.map(|list| ShownList {
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
        permitted: info.permitted.as_ref().map(|all| all.iter().map(ToString::to_string).collect()),
        root,
        key_is_here: settings.ca_key().exists(),
        key_has_passphrase: bundle::is_protected(&settings.ca_key()),
        issued: ledger.issued(),
        current: ledger.current().len(),
        revoked: ledger.revocations(now).len(),
        revocation_list: list,
        old,
    };
    if json {
        say!("{}", serde_json::to_string_pretty(&shown).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{}: {}", shown.file, shown.subject);
    say!("  expires:         {}, in {} days", info.not_after_date(), shown.days_left);
    say!("  SHA-256:         {}", shown.fingerprint);
    if let Some(root) = &shown.root {
        say!("  its root:        {}: {}, until {}", root.file, root.subject, root.not_after.date());
        say!("                   SHA-256 {}: what clients trust", root.fingerprint);
    }
    if let Some(permitted) = &shown.permitted {
        say!("  issues for:      {}, and what is below", permitted.join(", "));
    }
    let key = match (shown.key_is_here, shown.key_has_passphrase) {
        (false, _) => "not here",
        (true, false) => "here: certificates can be issued",
        (true, true) => "here, under a passphrase",
    };
    say!("  key:             {key}");
    say!("  certificates:    {} issued, {} of clients good, {} revoked", shown.issued, shown.current, shown.revoked);
    match &shown.revocation_list {
        None => say!("  revocation list: none yet; `lockgate ca crl` makes one"),
        Some(list) => {
            let until = list.next_update.map_or_else(|| "for ever".to_owned(), |next| format!("until {}", next.date()));
            let outdated = if list.is_outdated { ", which is over: `lockgate ca crl` makes it anew" } else { "" };
            say!("  revocation list: {}, {} serial numbers, good {until}{outdated}", list.file, list.serials);
        }
    }
    if let Some(old) = &shown.old {
        say!("  the old CA:      {}, until {}, SHA-256 {}", old.subject, old.not_after.date(), old.fingerprint);
        match old.still_used_by.as_slice() {
            [] => say!("                   nobody uses it any more: `lockgate ca retire` ends it"),
            names => {
                let more = names.len().saturating_sub(10);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let first: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
                say!(
                    "                   still used by {}{more}: `lockgate client renew NAME`, or `client sign NAME REQUEST` for a key that is not here",
                    first.join(", ")
                );
            }
        }
    }
    Ok(())
}
