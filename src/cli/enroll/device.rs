//! The device's side: a key made here, a certificate for it, and `mqtt.env`.

use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::super::Failure;
use super::super::environment::{Environment, path_text};
use super::super::site::{self, runtime};
use super::http::{Place, trusting, trusting_anybody};
use crate::admin::Certified;
use crate::pki::{self, CertificateInfo, KeyType, Lock, Token, Transaction, new_request};
use crate::types::Identity;

#[derive(Args)]
pub(super) struct Device {
    /// Where the broker enrols: https://HOST:PORT
    #[arg(long, value_name = "URL", required = true)]
    url: Option<String>,
    /// The token that `lockgate enroll token` printed; - reads it from standard input
    #[arg(long, value_name = "TOKEN", required_unless_present = "renew", conflicts_with = "renew")]
    token: Option<String>,
    /// Renew the certificate that is in the folder, if a third of its life or less is left
    #[arg(long)]
    renew: bool,
    /// With --renew: whatever is left of it
    #[arg(long, requires = "renew")]
    force: bool,
    /// The folder for key, certificate, CA and mqtt.env [default: the device's name]
    #[arg(long, value_name = "FOLDER", required_if_eq("renew", "true"))]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Device) -> Result<(), Failure> {
    let place = Place::parse(arguments.url.as_deref().unwrap_or_default())?;
    match (&arguments.token, &arguments.out) {
        (Some(token), out) => first(&place, token, out.as_deref()),
        (None, Some(out)) => again(&place, out, arguments.force),
        (None, None) => Err(Failure::configuration("--renew needs --out FOLDER, where the certificate is")),
    }
}

/// What a device sends; the fields are those of the broker's JSON form.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Wanted<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    csr: &'a str,
}

fn first(place: &Place, token: &str, out: Option<&Path>) -> Result<(), Failure> {
    let given = match token {
        "-" => super::super::ask::one_password(None)?,
        token => Zeroizing::new(token.to_owned()),
    };
    let token = Token::parse(&given).map_err(|error| Failure::configuration(format!("--token: {error}")))?;
    let out = out.map_or_else(|| PathBuf::from(token.name.as_str()), Path::to_path_buf);
    let existing = if out.exists() { Some(prepare(&out)?) } else { None };
    if out.join("client.key").exists() {
        return Err(Failure::new(format!(
            "{} is there already: `lockgate enroll --renew` renews its certificate; move it away to begin anew",
            out.join("client.key").display()
        )));
    }
    let ca = runtime().block_on(place.ask(trusting_anybody()?, "/ca.crt", None))?;
    let cas = pki::load_certificates(&ca).map_err(Failure::new)?;
    let proven = cas.into_iter().find(|ca| <[u8; 32]>::from(Sha256::digest(ca)) == token.ca_fingerprint);
    let proven = proven.ok_or_else(|| {
        Failure::new(format!(
            "{} is not the broker that the token is of: its CA is another one; nothing was sent to it",
            place.host
        ))
    })?;
    let (key, csr) = new_request(&token.name, KeyType::EcdsaP256).map_err(Failure::new)?;
    let text = token.text();
    let wanted = Wanted { name: Some(token.name.as_str()), token: Some(&text), csr: &csr };
    let body = serde_json::to_vec(&wanted).map_err(Failure::new)?;
    let answer = runtime().block_on(place.ask(trusting(vec![proven], None)?, "/enroll", Some(body)))?;
    let certified = read(&answer, &token.name, &key)?;
    let _lock = match existing {
        Some(lock) => lock,
        None => {
            let mut folder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
            folder.recursive(true).create(&out).map_err(|error| Failure::new(format!("{}: {error}", out.display())))?;
            prepare(&out)?
        }
    };
    keep(place, &out, &certified, &key)?;
    say!("{} has a certificate: {}/ (mqtt.env is ready for an application)", token.name, out.display());
    say!("  by a timer, before it expires: lockgate enroll --url URL --renew --out {}", out.display());
    Ok(())
}

fn again(place: &Place, out: &Path, force: bool) -> Result<(), Failure> {
    let certificate = out.join("client.crt");
    if !out.exists() {
        return Err(Failure::new(format!("there is no {}: --token makes it", out.display())));
    }
    let _lock = prepare(out)?;
    let info = CertificateInfo::read(&certificate)?;
    let now = OffsetDateTime::now_utc();
    let (life, left) = (info.not_after - info.not_before, info.not_after - now);
    if left > life / 3 && !force {
        say!("{} is good until {}: nothing to do", certificate.display(), info.not_after_date());
        return Ok(());
    }
    if left.is_negative() {
        return Err(Failure::new(format!(
            "{} expired on {}: a new token lets the device in again (`lockgate enroll token` at the broker)",
            certificate.display(),
            info.not_after_date()
        )));
    }
    let name = info.common_name.as_deref().and_then(|name| Identity::parse(name).ok());
    let name = name.ok_or_else(|| Failure::new(format!("{} has no device's name", certificate.display())))?;
    let file =
        |name: &str| std::fs::read(out.join(name)).map_err(|error| format!("{}: {error}", out.join(name).display()));
    let ca = file("ca.crt").map_err(Failure::new)?;
    let cas = pki::load_certificates(&ca).map_err(Failure::new)?;
    let chain = pki::load_certificates(&file("client.crt").map_err(Failure::new)?).map_err(Failure::new)?;
    let secret = pki::read_secret(&out.join("client.key"))?;
    let old_key = pki::load_key(&secret).map_err(Failure::new)?;
    let (key, csr) = new_request(&name, info.key_type.unwrap_or_default()).map_err(Failure::new)?;
    let body = serde_json::to_vec(&Wanted { name: None, token: None, csr: &csr }).map_err(Failure::new)?;
    let config = trusting(cas, Some((chain, old_key)))?;
    let answer = runtime().block_on(place.ask(config, "/reenroll", Some(body)))?;
    let certified = read(&answer, &name, &key)?;
    keep(place, out, &certified, &key)?;
    let new = CertificateInfo::read(&certificate)?;
    say!("{name} has a new certificate and a new key: it expires {}", new.not_after_date());
    Ok(())
}

/// What the broker answers, if it is what was asked for.
fn read(answer: &[u8], name: &Identity, key: &str) -> Result<Certified, Failure> {
    let certified: Certified = serde_json::from_slice(answer)
        .map_err(|error| Failure::new(format!("the broker answers something else than a certificate: {error}")))?;
    let der = pki::certificate_der(&certified.certificate).map_err(Failure::new)?;
    let info = CertificateInfo::parse(&der).map_err(Failure::new)?;
    let loaded = pki::load_key(key.as_bytes()).map_err(Failure::new)?;
    let fits = pki::key_matches(&loaded, &info).map_err(Failure::new)?;
    if !fits || info.common_name.as_deref() != Some(name.as_str()) {
        return Err(Failure::new("the broker's certificate is for another key or name: it is not kept"));
    }
    Ok(certified)
}

/// The folder, locked, with what was interrupted mended.
fn prepare(out: &Path) -> Result<Lock, Failure> {
    let lock = Lock::acquire(out)?;
    pki::recover(out, &[out])?;
    Ok(lock)
}

/// Puts all in place at once.
fn keep(place: &Place, out: &Path, certified: &Certified, key: &str) -> Result<(), Failure> {
    let absolute = std::path::absolute(out).map_err(Failure::new)?;
    let in_folder = |name: &str| path_text(&absolute.join(name));
    let environment = Environment {
        host: place.host.clone(),
        port: certified.port.unwrap_or(8883),
        use_tls: true,
        ca_certs: Some(in_folder("ca.crt")),
        certificate: Some((in_folder("client.crt"), in_folder("client.key"))),
        ..Environment::default()
    };
    let environment = environment.render().map_err(Failure::new)?;
    let mut change = Transaction::new(out);
    change.write(&out.join("client.key"), key, 0o600, None);
    change.write(&out.join("client.crt"), certified.certificate.as_str(), 0o644, None);
    change.write(&out.join("ca.crt"), certified.ca.as_str(), 0o644, None);
    if site::read_or_empty(&out.join("mqtt.env"))?.is_empty() {
        change.write(&out.join("mqtt.env"), environment, 0o600, None);
    }
    Ok(change.commit()?)
}
