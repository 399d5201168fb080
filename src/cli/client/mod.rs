//! `lockgate client`: who may connect.

mod change;
mod countdown;
mod export;
mod formats;
mod list;
mod renew;
mod revoke;
mod sign;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use super::site::{self, Editing, Files, edit};
use super::{Failure, SiteArguments};
use crate::auth;
use crate::pki::{LEAF_DAYS_MAX, Reason};
use crate::types::Identity;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a device, an application or a person
    #[command(after_help = "Example:\n  lockgate client add pump7 --min-level mtls")]
    Add(Add),
    /// List everybody: what they have, how they are connected, when they were last seen
    #[command(after_help = "Example:\n  lockgate client list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Show one identity
    #[command(after_help = "Example:\n  lockgate client show pump7")]
    Show {
        /// Whom
        name: Identity,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Make a bundle for another machine
    #[command(
        after_help = "Examples:\n  lockgate client env pump7 --level mtls --host broker.local --path-prefix /etc/pump\n  lockgate client env --all --level tls --host broker.local --out bundles"
    )]
    Env(Env),
    /// Hand out what a device or a program needs, in its own form: PEM, PKCS #12, C arrays, a ready program
    #[command(
        after_help = "Examples:\n  lockgate client export pump7 --for python-paho --host broker.local\n  lockgate client export pump7 --for p12 --take\n  lockgate client export pump7 --for esp-idf --host 192.0.2.7 --out firmware/main/mqtt"
    )]
    Export(export::Arguments),
    /// Set a password: a generated one, unless it is given
    #[command(after_help = "Example:\n  lockgate client passwd alice")]
    Passwd(Passwd),
    /// Issue a new certificate before the old one expires, or after; the old one stays good until then
    #[command(
        after_help = "Examples:\n  lockgate client renew pump7\n  lockgate client renew --all-expiring 30\n\nThe bundle in pki/clients/NAME gets the new certificate. A device whose certificate has expired\ngets back in with it: copy the bundle, or make one for it with `lockgate client env`."
    )]
    Renew(Renew),
    /// Issue a certificate for a key that never leaves its device, by its certificate signing request
    #[command(
        after_help = "Example, on the device and here:\n  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\\n    -keyout pump8.key -subj /CN=pump8 -out pump8.csr\n  lockgate client sign pump8 pump8.csr --out pump8.crt\n\nOnly the public key is taken over. A request for other names, usages or to be a CA is refused."
    )]
    Sign(Sign),
    /// Revoke an identity: at once its certificates and its password admit no more, and its sessions end
    #[command(
        after_help = "Example:\n  lockgate client revoke pump7 --reason key-compromise\n\nThe revocation stays in the ledger and stands in pki/ca.crl. `lockgate client add` lets the name begin anew."
    )]
    Revoke {
        /// Whom
        name: Identity,
        /// Why (RFC 5280)
        #[arg(long, value_name = "REASON", default_value = "unspecified", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
        reason: String,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Remove an identity: password and certificate stop working, sessions end
    #[command(after_help = "Example:\n  lockgate client remove pump7")]
    Remove {
        /// Whom
        name: Identity,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Disconnect; the client may come back
    #[command(after_help = "Example:\n  lockgate client kick pump7")]
    Kick {
        /// An identity's name, or a client id
        name: String,
        #[command(flatten)]
        site: SiteArguments,
    },
}

#[derive(Args)]
struct Add {
    /// Letters, digits, '.', '_' and '-', 64 at the most
    name: Identity,
    /// A password only
    #[arg(long, conflicts_with = "no_password")]
    no_cert: bool,
    /// A certificate only
    #[arg(long)]
    no_password: bool,
    /// Refuse it where it is less protected
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(["plain", "tls", "mtls"]))]
    min_level: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "no_password")]
    password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_stdin", "no_password"])]
    password_file: Option<PathBuf>,
    /// Kind of the key
    #[arg(long, value_name = "KIND", default_value = "ecdsa-p256", value_parser = PossibleValuesParser::new(["ecdsa-p256", "rsa-2048", "rsa-3072", "ed25519"]))]
    key_type: String,
    /// How long the certificate lives, days
    #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    days: u32,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Env {
    /// Whose
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<Identity>,
    /// Everybody's who does not come over TLS yet, each in a folder of its own below --out
    #[arg(long, requires = "out")]
    all: bool,
    /// What it is to connect with: without TLS, with TLS and password, with TLS and certificate
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(["plain", "tls", "mtls"]))]
    level: String,
    /// The name or address by which that machine reaches this broker [default: this host's name]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Where the files will lie on that machine [default: where they are written]
    #[arg(long, value_name = "FOLDER")]
    path_prefix: Option<PathBuf>,
    /// The user, or uid:gid, to whom the files are to belong
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// The folder to write [default: NAME-LEVEL]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Passwd {
    /// Letters, digits, '.', '_' and '-', 64 at the most
    name: Identity,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Sign {
    /// Whose: letters, digits, '.', '_' and '-', 64 at the most; made if it is new
    name: Identity,
    /// The request, PEM or DER; - for standard input
    request: PathBuf,
    /// Where to write the certificate too, beside pki/clients/NAME/client.crt
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long the certificate lives, days
    #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    days: u32,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Renew {
    /// Whose
    #[arg(required_unless_present = "all_expiring")]
    name: Option<Identity>,
    /// Everybody's that expires within so many days, or has expired
    #[arg(long, value_name = "DAYS", conflicts_with = "name", value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    all_expiring: Option<u32>,
    /// Make a new key too
    #[arg(long)]
    new_key: bool,
    /// How long the new certificate lives, days [default: as long as the old one]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    days: Option<u32>,
    #[command(flatten)]
    site: SiteArguments,
}

pub(super) use countdown::Countdown;
pub(super) use export::bundles_with_secrets;
pub(super) use sign::{Signing, has_generated_key};

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Add(arguments) => change::add(&arguments),
        Command::List { json, site } => list::list(&site, json),
        Command::Show { name, json, site } => list::show(&site, &name, json),
        Command::Env(arguments) => change::env(&arguments),
        Command::Export(arguments) => export::export(&arguments),
        Command::Passwd(arguments) => change::passwd(&arguments),
        Command::Renew(arguments) => renew::renew(&arguments),
        Command::Sign(arguments) => sign::sign(&arguments),
        Command::Revoke { name, reason, site } => {
            revoke::revoke(&site, &name, Reason::parse(&reason).expect("clap takes no other"))
        }
        Command::Remove { name, site } => revoke::remove(&site, &name),
        Command::Kick { name, site } => change::kick(&site, name),
    }
}

fn passwords(files: &Files) -> Result<(String, BTreeSet<Identity>), Failure> {
    let text = site::read_or_empty(&files.passwords)?;
    let lines = auth::parse_passwords(&text)
        .map_err(|errors| Failure::configuration(format!("{}: {}", files.passwords.display(), errors[0])))?;
    let names = lines.into_iter().map(|line| line.identity).collect();
    Ok((text, names))
}

/// Tells a running broker, when the site's lock is free again.
fn learned(editing: Editing) -> Result<(), Failure> {
    let Editing { settings, lock, .. } = editing;
    drop(lock);
    say!("  {}", site::tell_broker(&settings)?);
    Ok(())
}

fn nobody(name: &Identity) -> Failure {
    Failure::new(format!(
        "there is no {name}: `lockgate client list` shows who there is, `lockgate client add {name}` makes it"
    ))
}
