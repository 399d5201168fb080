//! The server certificate from a CA that speaks ACME: obtained, put in place, renewed in time.

use std::path::{Path, PathBuf};

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
    // From the try-out directory to the real one, say.
    let directory = std::fs::read(account(settings)).ok().and_then(|bytes| acme::directory_of(&bytes));
    let elsewhere = directory.as_ref() != Some(&acme.directory);
    let life = info.not_after - info.not_before;
    own || elsewhere
        || acme.names.iter().any(|name| !info.names.contains(name))
        || now >= info.not_before + life * 2 / 3
}

/// Obtains a certificate and puts it in the place of the first TLS listener's; nothing changes unless it came.
pub(super) async fn obtain(settings: &Settings) -> Result<CertificateInfo, Failure> {
    let acme = configured(settings)?;
    let tls = settings.tls_files().next().ok_or_else(|| {
        Failure::new(format!("no listener of this site takes TLS: see `listeners` in {}", settings.file.display()))
    })?;
    // Nothing is ordered that could not be kept.
    for path in [&tls.certificate, &tls.key, &account(settings)] {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).map_err(|error| {
            Failure::new(format!("cannot write to {}: {error}; nothing was ordered", folder.display()))
        })?;
    }
    let file = account(settings);
    let known = if file.exists() { Some(pki::read_secret(&file)?) } else { None };
    let keep =
        |bytes: &[u8]| put(settings, &[(file.clone(), bytes.to_vec(), 0o600)]).map_err(|failure| failure.message);
    let known = known.as_ref().map(|bytes| bytes.as_slice());
    let obtained = acme::obtain(acme, known, keep).await.map_err(Failure::new)?;
    let files = [
        (tls.certificate.clone(), obtained.chain_pem.into_bytes(), 0o644),
        (tls.key.clone(), obtained.key_pem.as_bytes().to_vec(), 0o600),
    ];
    let settings = settings.clone();
    // The site's lock may be somebody else's for a while.
    let written = tokio::task::spawn_blocking(move || put(&settings, &files)).await;
    written.map_err(Failure::new)??;
    Ok(obtained.info)
}

/// Writes files of this site, all or none.
fn put(settings: &Settings, contents: &[(PathBuf, Vec<u8>, u32)]) -> Result<(), Failure> {
    let files = Files::of(settings);
    let _lock = Lock::acquire(&files.anchor)?;
    files.recover()?;
    let mut change = Transaction::new(&files.anchor);
    for (path, bytes, mode) in contents {
        change.write(path, bytes.as_slice(), *mode, files.owner());
    }
    Ok(change.commit()?)
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
