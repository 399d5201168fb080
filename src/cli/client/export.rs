//! `lockgate client export`: what a device or a program needs, in its own form.

use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::super::bundle::Export;
use super::super::environment::{Environment, path_text};
use super::super::site::{self, Editing, Files, edit};
use super::super::{Failure, SiteArguments, ask, bundle, server};
use super::formats::{Bundle, File, Format};
use super::{nobody, passwords};
use crate::config::Settings;
use crate::pki::{self, Protection, Transaction};
use crate::types::{Identity, Level};

#[derive(Args)]
pub(super) struct Arguments {
    /// Letters, digits, '.', '_' and '-', 64 at the most
    name: Identity,
    /// The form
    #[arg(long = "for", value_name = "FORMAT", value_enum)]
    format: Format,
    /// The name or address by which that machine reaches this broker [default: this host's name]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The folder to write [default: NAME-FORMAT]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Write one tar file in place of a folder
    #[arg(long)]
    archive: bool,
    /// Where the files will lie on that machine, for configurations that need whole paths [default: where they are written]
    #[arg(long, value_name = "FOLDER")]
    path_prefix: Option<PathBuf>,
    /// Read the key store's password from standard input (p12, java) [default: one is made and printed]
    #[arg(long)]
    password_stdin: bool,
    /// Read the key store's password from a file
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    password_file: Option<PathBuf>,
    /// Protect the key store as old Java and Windows need it: weakly
    #[arg(long)]
    legacy: bool,
    /// Hand it over: key and password leave this machine's disk once the export is written
    #[arg(long)]
    take: bool,
    #[command(flatten)]
    site: SiteArguments,
}

pub(super) fn export(arguments: &Arguments) -> Result<(), Failure> {
    let has_store = matches!(arguments.format, Format::P12 | Format::Java);
    let given = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) => None,
        (_, file) => Some(ask::one_password(file.as_deref())?),
    };
    let is_made = given.is_none();
    let store_password = given.unwrap_or_else(site::generate_secret);
    let Editing { settings, files, lock, .. } = edit(&arguments.site)?;
    let name = &arguments.name;
    let (_, names) = passwords(&files)?;
    if !names.contains(name) && files.ledger()?.current_of(name).is_empty() {
        return Err(nobody(name));
    }
    let format = arguments.format.as_str();
    let extension = if arguments.archive { ".tar" } else { "" };
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-{format}{extension}")));
    if out.exists() {
        return Err(Failure::new(format!("{} exists: name another place with --out", out.display())));
    }
    let host = arguments.host.clone().unwrap_or_else(|| pki::host_names().host);
    let prefix = match &arguments.path_prefix {
        Some(prefix) => prefix.clone(),
        None => std::path::absolute(&out).map_err(Failure::new)?,
    };
    let folder = files.bundles.join(name.as_str());
    let protection = if arguments.legacy { Protection::Legacy } else { Protection::Aes256 };
    let bundle = Bundle { store_password, protection, ..bundle_of(&settings, name, &folder, &host, &prefix)? };
    let mut made = bundle.files(arguments.format)?;
    if arguments.take {
        let leaves_key = bundle.certificate.is_none() && folder.join("client.key").exists();
        if leaves_key {
            return Err(Failure::new(format!(
                "{} would be lost: this site takes no TLS, and the export is without it; export it without --take",
                folder.join("client.key").display()
            )));
        }
        // What is in no file of this form goes along all the same.
        if bundle.password.is_some() && !arguments.format.has_password() {
            made.push(("mqtt.env".to_owned(), Zeroizing::new(bundle.login()?.into_bytes()), 0o600));
        }
    }
    match arguments.archive {
        true => pki::replace(&out, &archive(&format!("{name}-{format}"), &made)?, 0o600)?,
        false => pki::write_folder(&out, &made, None)?,
    }
    say!("{}: {format} for {name}, to connect to {host}", out.display());
    for (file, _, mode) in &made {
        say!("  {file}{}", if *mode == 0o600 { "  (secret)" } else { "" });
    }
    if has_store && is_made {
        say!("  the key store's password: {}", bundle.store_password.as_str());
    }
    let level = match (&bundle.ca_pem, &bundle.certificate) {
        (None, _) => Level::Plain,
        (Some(_), None) => Level::Tls,
        (Some(_), Some(_)) => Level::Mtls,
    };
    let levels = crate::gate::read_min_levels(&settings).map_err(Failure::configuration)?;
    let min_level = levels.get(name).copied().unwrap_or_default();
    let check = Export { identity: name, level, host, prefix };
    for warning in check.warnings(&settings, bundle.password.is_some(), min_level) {
        say!("  warning: {warning}");
    }
    if arguments.take {
        take(&files, &folder)?;
        say!("  taken: neither key nor password of {name} is left in {}", folder.display());
    }
    drop(lock);
    Ok(())
}

/// What is here of an identity.
fn bundle_of(
    settings: &Settings,
    name: &Identity,
    folder: &Path,
    host: &str,
    prefix: &Path,
) -> Result<Bundle, Failure> {
    let (plain_port, tls_port) = site::ports(settings);
    let port = tls_port.or(plain_port).ok_or_else(|| Failure::new("this site listens on no port"))?;
    let (certificate, key) = (folder.join("client.crt"), folder.join("client.key"));
    let has_pair = certificate.exists() && key.exists() && tls_port.is_some();
    let pair = if has_pair {
        let secret = pki::read_secret(&key)?;
        let secret = String::from_utf8(secret.to_vec()).map_err(|_| Failure::new("the key is no PEM text"))?;
        Some((site::read_or_empty(&certificate)?, Zeroizing::new(secret)))
    } else {
        None
    };
    let here = site::read_or_empty(&folder.join("mqtt.env"))?;
    let password = Environment::value(&here, "MQTT_PASSWORD").map(|password| Zeroizing::new(password.to_owned()));
    // A name without its password would only be refused, beside a certificate.
    let user = (password.is_some() || pair.is_none()).then(|| name.to_string());
    let ca_pem = if tls_port.is_some() { bundle::ca_pem(settings)? } else { None };
    if pair.is_none() && password.is_none() {
        return Err(Failure::new(format!(
            "neither a key nor a password of {name} is here: they were handed over, or never were here; \
             `lockgate client renew {name} --new-key` or `lockgate client passwd {name}` make new ones"
        )));
    }
    Ok(Bundle {
        name: name.to_string(),
        host: host.to_owned(),
        port,
        ca_pem,
        between: if settings.ca_root().exists() { server::link(settings)? } else { String::new() },
        certificate: pair,
        user,
        password,
        folder: path_text(prefix),
        store_password: Zeroizing::default(),
        protection: Protection::Aes256,
    })
}

/// The files below a folder of this name.
fn archive(folder: &str, files: &[File]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, format!("{folder}/{name}"), bytes.as_slice()).map_err(Failure::new)?;
    }
    tar.into_inner().map(Zeroizing::new).map_err(Failure::new)
}

/// Key and password leave the disk; what is no secret stays.
fn take(files: &Files, folder: &Path) -> Result<(), Failure> {
    let mut change = Transaction::new(&files.anchor);
    let (key, environment) = (folder.join("client.key"), folder.join("mqtt.env"));
    if key.exists() {
        change.remove(&key);
    }
    let text = site::read_or_empty(&environment)?;
    if Environment::value(&text, "MQTT_PASSWORD").is_some() {
        let user = Environment::value(&text, "MQTT_USER");
        change.write(&environment, Environment::with_password(&text, user, None).map_err(Failure::new)?, 0o600, None);
    }
    Ok(change.commit()?)
}

/// How many bundles of this site hold a private key or a password.
pub(in crate::cli) fn bundles_with_secrets(settings: &Settings) -> usize {
    let Ok(folders) = std::fs::read_dir(settings.pki.join("clients")) else { return 0 };
    let holds = |folder: &PathBuf| {
        let environment = std::fs::read_to_string(folder.join("mqtt.env")).unwrap_or_default();
        folder.join("client.key").exists() || Environment::value(&environment, "MQTT_PASSWORD").is_some()
    };
    folders.flatten().filter(|entry| holds(&entry.path())).count()
}
