//! `lockgate server`: the broker's own certificate.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::site::{self, Editing, Files, edit};
use super::{Failure, SiteArguments, bundle};
use crate::config::{Settings, TlsFiles};
use crate::pki::{
    self, Authority, CertificateInfo, Entry, Event, Issued, Kind, LEAF_DAYS_MAX, Lock, Owner, ServerName, Transaction,
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the server's certificate: its names, and how long it lives
    #[command(after_help = "Example:\n  lockgate server show")]
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Issue a new certificate for the server; a running broker takes it up without a dropped connection
    #[command(
        after_help = "Examples:\n  lockgate server renew\n  lockgate server renew --san broker.example --san 192.0.2.7\n  lockgate server renew --drop-san old.example\n\nThe new certificate has the names of the old one and those that this host has now."
    )]
    Renew(Renew),
    /// Get the certificate from a CA that speaks ACME, as `acme` in the configuration says
    #[command(
        after_help = "Example:\n  lockgate server acme\n\nA running broker does so by itself: when it starts without a certificate of that CA, and at two thirds of its life."
    )]
    Acme {
        #[command(flatten)]
        site: SiteArguments,
    },
}

#[derive(Args)]
struct Renew {
    /// One more name or address that clients dial (may be repeated)
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,
    /// A name of the old certificate that the new one is not to have (may be repeated)
    #[arg(long, value_name = "NAME")]
    drop_san: Vec<String>,
    /// Keep the key, for clients that know the server by it
    #[arg(long)]
    keep_key: bool,
    /// How long it lives, days [default: as long as the old one]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    days: Option<u32>,
    #[command(flatten)]
    site: SiteArguments,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Show { json, site } => show(&site, json),
        Command::Renew(arguments) => renew(&arguments),
        Command::Acme { site } => super::acme::run(&site),
    }
}

/// What `show` says, for programs.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    file: String,
    subject: String,
    issuer: String,
    names: Vec<String>,
    /// Of this host, and not in the certificate.
    names_missing: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    days_left: i64,
    fingerprint: String,
}

fn show(arguments: &SiteArguments, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let tls = tls_files(&settings)?;
    let info = CertificateInfo::read(&tls.certificate)?;
    let text = |names: &[ServerName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let shown = Shown {
        file: tls.certificate.display().to_string(),
        subject: info.subject.clone(),
        issuer: info.issuer.clone(),
        names: text(&info.names),
        names_missing: text(&missing_names(&settings, &info)),
        not_before: info.not_before,
        not_after: info.not_after,
        days_left: info.days_left(OffsetDateTime::now_utc()),
        fingerprint: info.fingerprint.clone(),
    };
    if json {
        say!("{}", serde_json::to_string_pretty(&shown).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{}: {}", shown.file, shown.subject);
    say!("  issued by:  {}", shown.issuer);
    say!("  names:      {}", shown.names.join(", "));
    say!("  expires:    {}, in {} days", info.not_after_date(), shown.days_left);
    say!("  SHA-256:    {}", shown.fingerprint);
    if !shown.names_missing.is_empty() {
        let missing = shown.names_missing.join(", ");
        say!("  this host is also called {missing}: `lockgate server renew` adds that");
    }
    Ok(())
}

fn renew(arguments: &Renew) -> Result<(), Failure> {
    let parse = |texts: &[String]| {
        let parsed = texts.iter().map(|text| ServerName::parse(text)).collect::<Result<Vec<_>, _>>();
        parsed.map_err(|error| Failure::configuration(format!("--san {error}")))
    };
    let (added, dropped) = (parse(&arguments.san)?, parse(&arguments.drop_san)?);
    let Editing { settings, files, lock, .. } = edit(&arguments.site)?;
    let mut renewal = Renewal::of(&settings)?;
    let unknown: Vec<String> =
        dropped.iter().filter(|name| !renewal.old.names.contains(name)).map(ToString::to_string).collect();
    if !unknown.is_empty() {
        return Err(Failure::new(format!(
            "{} does not name {}: `lockgate server show` lists its names",
            renewal.tls.certificate.display(),
            unknown.join(", ")
        )));
    }
    let ca = CertificateInfo::read(&settings.ca_certificate())?;
    if let Some(foreign) = ca.not_permitted(&added).first() {
        return Err(Failure::new(format!(
            "this CA may not issue for {foreign}: `lockgate ca show` says for what; `lockgate init --permit` makes another"
        )));
    }
    let host = pki::host_names().names;
    let foreign = ca.not_permitted(&host);
    renewal.add(host.into_iter().filter(|name| !foreign.contains(name)).collect());
    renewal.add(added);
    renewal.names.retain(|name| !dropped.contains(name));
    if renewal.names.is_empty() {
        return Err(Failure::new("a server certificate without a name is of no use: leave it one"));
    }
    renewal.keep_key = arguments.keep_key;
    renewal.days = arguments.days.unwrap_or(renewal.days);
    let issued = renewal.carry_out(&settings, &files, OffsetDateTime::now_utc())?;
    drop(lock);
    let names: Vec<String> = issued.info.names.iter().map(ToString::to_string).collect();
    say!(
        "{} is new{}: it expires {}, SHA-256 {}",
        renewal.tls.certificate.display(),
        if arguments.keep_key { ", its key is the old one" } else { ", and so is its key" },
        issued.info.not_after_date(),
        issued.info.fingerprint
    );
    say!("  names: {}", names.join(", "));
    say!("  {}", site::tell_broker_all(&settings)?);
    Ok(())
}

/// The TLS listener whose certificate is this site's own.
fn tls_files(settings: &Settings) -> Result<&TlsFiles, Failure> {
    let mut all = settings.tls_files();
    let first = all.next().ok_or_else(|| {
        Failure::new(format!("no listener of this site takes TLS: see `listeners` in {}", settings.file.display()))
    })?;
    Ok(all.find(|files| is_own(settings, files)).filter(|_| !is_own(settings, first)).unwrap_or(first))
}

fn is_own(settings: &Settings, tls: &TlsFiles) -> bool {
    tls.certificate.starts_with(&settings.pki)
}

/// The listener whose server certificate was made here, if there is one.
pub(super) fn own_tls_files(settings: &Settings) -> Option<&TlsFiles> {
    tls_files(settings).ok().filter(|tls| settings.acme.is_none() && is_own(settings, tls) && tls.certificate.exists())
}

/// How long a certificate lives from its beginning, as far as it may.
fn life_days(info: &CertificateInfo) -> u32 {
    (info.not_after - info.not_before).whole_days().clamp(1, i64::from(LEAF_DAYS_MAX)) as u32
}

/// What stands behind a server certificate in its chain: the CA, where it is not what clients trust; or what lets
/// those verify it who only know the CA before this one.
pub(super) fn link(settings: &Settings) -> Result<String, Failure> {
    match settings.ca_root().exists() {
        true => bundle::first_certificate(&site::read_or_empty(&settings.ca_certificate())?),
        false => site::read_or_empty(&settings.ca_link()),
    }
}

/// What this host is called, the CA may say, and its certificate does not.
fn missing_names(settings: &Settings, info: &CertificateInfo) -> Vec<ServerName> {
    let names = pki::host_names().names;
    let foreign =
        CertificateInfo::read(&settings.ca_certificate()).map(|ca| ca.not_permitted(&names)).unwrap_or_default();
    names.into_iter().filter(|name| !info.names.contains(name) && !foreign.contains(name)).collect()
}

/// A server certificate that is to replace one.
pub(super) struct Renewal<'a> {
    tls: &'a TlsFiles,
    old: CertificateInfo,
    names: Vec<ServerName>,
    keep_key: bool,
    days: u32,
}

impl Renewal<'_> {
    /// With what the old one has, but for a new key.
    pub(super) fn of(settings: &Settings) -> Result<Renewal<'_>, Failure> {
        let tls = tls_files(settings)?;
        if settings.acme.is_some() {
            return Err(Failure::new(
                "the server certificate comes from an ACME CA: `lockgate server acme` gets a new one",
            ));
        }
        if !is_own(settings, tls) {
            return Err(Failure::new(format!(
                "{} was not made here: have it renewed where it comes from, then `lockgate reload`",
                tls.certificate.display()
            )));
        }
        let old = CertificateInfo::read(&tls.certificate)?;
        // One without alternative names is called by its common name, as it was dialled until now.
        let mut names = old.names.clone();
        if names.is_empty() {
            names.extend(old.common_name.as_deref().and_then(|name| ServerName::parse(name).ok()));
        }
        Ok(Renewal { tls, names, keep_key: false, days: life_days(&old), old })
    }

    fn add(&mut self, names: Vec<ServerName>) {
        for name in names {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
    }

    /// Issues it and puts it in place; the site is locked, and mended.
    fn carry_out(&self, settings: &Settings, files: &Files, now: OffsetDateTime) -> Result<Issued, Failure> {
        let authority = bundle::authority(settings)?;
        let link = link(settings)?;
        let mut change = Transaction::new(&files.anchor);
        let (issued, event) = self.issue(&mut change, settings, &authority, &link, files.owner(), now)?;
        files.record(&mut change, &[event], files.owner())?;
        change.commit()?;
        Ok(issued)
    }

    /// Issues it and has `change` put it in place, with `link` behind it; what the ledger is to say.
    pub(super) fn issue(
        &self,
        change: &mut Transaction,
        settings: &Settings,
        authority: &Authority,
        link: &str,
        owner: Option<Owner>,
        now: OffsetDateTime,
    ) -> Result<(Issued, Event), Failure> {
        // Clients that need RSA still need it.
        let key_type = self.old.key_type.unwrap_or_default();
        let (site, names, days) = (&settings.name, &self.names, self.days);
        let issued = match self.keep_key {
            false => authority.issue_server(site, names, key_type, days, now),
            true => {
                let key = &self.tls.key;
                let secret = pki::read_secret(key)?;
                let pem = str::from_utf8(&secret)
                    .map_err(|_| Failure::new(format!("{}: it is no PEM text", key.display())))?;
                authority.renew_server(site, names, pem, days, now)
            }
        };
        let issued = issued.map_err(Failure::new)?;
        change.write(&self.tls.certificate, issued.certificate_pem.clone() + link, 0o644, owner);
        change.write(&self.tls.key, issued.key_pem.as_str(), 0o600, owner);
        let entry = Entry::of(&issued.info, &issued.certificate_pem, Kind::Server, None, now);
        let event = Event::Issued(Entry { renews: Some(self.old.serial_text()), ..entry });
        Ok((issued, event))
    }
}

/// Keeps the certificate of a broker that may use the CA's key fit.
#[derive(Default)]
pub(super) struct Renewer {
    /// Names of this host that the certificate does not have, as seen last: they may be gone again.
    missing: BTreeSet<ServerName>,
}

/// What [`Renewer::look`] did.
pub(super) enum Looked {
    Fit,
    /// These names are new here; if they stay, the next look renews the certificate.
    NewNames(Vec<ServerName>),
    /// It expires on this day.
    Renewed(String),
}

impl Renewer {
    /// Renews the site's own server certificate if two thirds of its life are over, or if this host has had
    /// names that it lacks for two looks.
    pub(super) fn look(&mut self, settings: &Settings, now: OffsetDateTime) -> Result<Looked, Failure> {
        if own_tls_files(settings).is_none() {
            return Ok(Looked::Fit);
        }
        let old = Renewal::of(settings)?.old;
        let missing = missing_names(settings, &old);
        let stay: Vec<ServerName> = missing.iter().filter(|name| self.missing.contains(name)).cloned().collect();
        let new: Vec<ServerName> = missing.iter().filter(|name| !self.missing.contains(name)).cloned().collect();
        self.missing = missing.into_iter().collect();
        let life = old.not_after - old.not_before;
        if now < old.not_before + life * 2 / 3 && stay.is_empty() {
            return Ok(if new.is_empty() { Looked::Fit } else { Looked::NewNames(new) });
        }
        let files = Files::of(settings);
        let _lock = Lock::acquire(&files.anchor)?;
        files.recover()?;
        // Somebody may have renewed it meanwhile, with names of their own.
        let mut renewal = Renewal::of(settings)?;
        renewal.add(stay);
        let issued = renewal.carry_out(settings, &files, now)?;
        Ok(Looked::Renewed(issued.info.not_after_date()))
    }
}
