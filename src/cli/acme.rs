//! The server certificate from a CA that speaks ACME: obtained, put in place, renewed in time.

use std::path::PathBuf;

use time::OffsetDateTime;

use super::Failure;
use super::site::{self, Files};
use crate::acme;
use crate::config::{Acme, Settings};
use crate::pki::{self, CertificateInfo, Lock, Transaction};

/// Where the account is kept.
fn account(settings: &Settings) -> PathBuf {
    settings.pki.join("acme-account.json")
}

/// What is configured, where anything is.
fn configured(settings: &Settings) -> Result<&Acme, Failure> {
    settings.acme.as_ref().ok_or_else(|| {
        Failure::new(format!(
            "no ACME CA is configured: see `acme` in {}, and `server-ca` of its TLS listeners",
            settings.file.display()
        ))
    })
}

/// Whether it is time: what serves is not from that CA, is not for these names, or two thirds of its life are over.
pub(super) fn is_due(settings: &Settings, now: OffsetDateTime) -> bool {
    let (Some(acme), Some(tls)) = (&settings.acme, settings.tls_files().next()) else { return false };
    let Ok(info) = CertificateInfo::read(&tls.certificate) else { return true };
    let own = CertificateInfo::read(&settings.ca_certificate()).is_ok_and(|ca| info.is_issued_by(&ca));
    let life = info.not_after - info.not_before;
    own || acme.names.iter().any(|name| !info.names.contains(name)) || now >= info.not_before + life * 2 / 3
}

/// Obtains a certificate and puts it in the place of the first TLS listener's; nothing changes unless it came.
pub(super) async fn obtain(settings: &Settings) -> Result<CertificateInfo, Failure> {
    let acme = configured(settings)?;
    let file = account(settings);
    let known = if file.exists() { Some(pki::read_secret(&file)?) } else { None };
    let obtained = acme::obtain(acme, known.as_ref().map(|bytes| bytes.as_slice())).await.map_err(Failure::new)?;
    let ders = pki::load_certificates(obtained.chain_pem.as_bytes()).map_err(Failure::new)?;
    let info = CertificateInfo::parse(&ders[0]).map_err(Failure::new)?;
    let tls = settings.tls_files().next().ok_or_else(|| {
        Failure::new(format!("no listener of this site takes TLS: see `listeners` in {}", settings.file.display()))
    })?;
    let files = Files::of(settings);
    let _lock = Lock::acquire(&files.anchor)?;
    files.recover()?;
    let mut change = Transaction::new(&files.anchor);
    let owner = files.owner();
    change.write(&tls.certificate, obtained.chain_pem.as_str(), 0o644, owner);
    change.write(&tls.key, obtained.key_pem.as_str(), 0o600, owner);
    change.write(&file, obtained.account.as_slice(), 0o600, owner);
    change.commit()?;
    Ok(info)
}

/// `lockgate server acme`: now, whether it is due or not.
pub(super) fn run(arguments: &super::SiteArguments) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let acme = configured(&settings)?;
    let names: Vec<String> = acme.names.iter().map(ToString::to_string).collect();
    eprintln!("asking {} for a certificate for {}", acme.directory, names.join(", "));
    let info = site::runtime().block_on(obtain(&settings))?;
    let tls = settings.tls_files().next().map(|tls| tls.certificate.display().to_string()).unwrap_or_default();
    say!("{tls} is new, by {}: it expires {}, SHA-256 {}", info.issuer, info.not_after_date(), info.fingerprint);
    say!("  {}", site::tell_broker_all(&settings)?);
    Ok(())
}
