//! Certificates for keys that were made elsewhere.

use std::io::Read;
use std::path::Path;

use time::OffsetDateTime;

use super::super::site::Files;
use super::super::{Failure, bundle};
use super::{Editing, Sign, edit, learned};
use crate::config::Settings;
use crate::pki::{self, Authority, CertificateInfo, Entry, Event, Kind, Owner, Request, Transaction};
use crate::types::Identity;

/// No request is larger.
const REQUEST_MAX: u64 = 64 * 1024;

pub(super) fn sign(arguments: &Sign) -> Result<(), Failure> {
    let name = &arguments.name;
    let (bytes, place) = read(&arguments.request)?;
    let request =
        Request::parse(&bytes, name).map_err(|error| Failure::new(format!("{place} is not signed: {error}")))?;
    let editing = edit(&arguments.site)?;
    let Editing { settings, files, owner, .. } = &editing;
    let folder = files.bundles.join(name.as_str());
    if has_generated_key(files, name) {
        return Err(Failure::new(format!(
            "{} is another key of {name}: `lockgate client remove {name}` first, or choose another name",
            folder.join("client.key").display()
        )));
    }
    let authority = bundle::authority(settings)?;
    let mut change = Transaction::new(&files.anchor);
    let (owner, days) = (*owner, arguments.days);
    let ledger = files.ledger()?;
    let renews = ledger.current_of(name).last().map(|entry| entry.serial.clone());
    let signing = Signing { settings, files, authority: &authority, owner, days, renews, keeps_bundle: true };
    let (pem, info) = signing.sign(&mut change, name, &request, OffsetDateTime::now_utc())?;
    change.commit()?;
    say!(
        "{name} has a certificate for its own key: it expires {}, SHA-256 {}",
        info.not_after_date(),
        info.fingerprint
    );
    say!("  for the device: client.crt and ca.crt in {}/", folder.display());
    if let Some(out) = &arguments.out {
        pki::replace(out, pem.as_bytes(), 0o644)?;
        say!("  and the certificate in {}", out.display());
    }
    learned(editing)
}

/// What a certificate for a key of a device's own is made with.
pub(in crate::cli) struct Signing<'a> {
    pub(in crate::cli) settings: &'a Settings,
    pub(in crate::cli) files: &'a Files,
    pub(in crate::cli) authority: &'a Authority,
    pub(in crate::cli) owner: Option<Owner>,
    pub(in crate::cli) days: u32,
    /// The serial number of the one in whose place it comes.
    pub(in crate::cli) renews: Option<String>,
    /// Whether certificate and CA are put into the identity's bundle too.
    pub(in crate::cli) keeps_bundle: bool,
}

impl Signing<'_> {
    /// Issues it and has `change` write it down; the certificate as PEM.
    pub(in crate::cli) fn sign(
        self,
        change: &mut Transaction,
        name: &Identity,
        request: &Request,
        now: OffsetDateTime,
    ) -> Result<(String, CertificateInfo), Failure> {
        let Signing { settings, files, authority, owner, days, renews, keeps_bundle } = self;
        let (pem, info) = authority.sign_request(&settings.name, name, request, days, now).map_err(Failure::new)?;
        let entry =
            Entry { key_origin: "request".to_owned(), renews, ..Entry::of(&info, &pem, Kind::Client, Some(name), now) };
        if keeps_bundle {
            let folder = files.bundles.join(name.as_str());
            change.folder(&files.bundles, 0o700, owner);
            change.folder(&folder, 0o700, owner);
            change.write(&folder.join("client.crt"), pem.as_str(), 0o644, owner);
            change.write(&folder.join("ca.crt"), bundle::trusted_pem(settings)?, 0o644, owner);
        }
        files.record(change, &[Event::Issued(entry)], owner)?;
        Ok((pem, info))
    }
}

/// Whether an identity's private key was made here, and is.
pub(in crate::cli) fn has_generated_key(files: &Files, name: &Identity) -> bool {
    files.bundles.join(name.as_str()).join("client.key").exists()
}

/// The request, and how to call it.
fn read(path: &Path) -> Result<(Vec<u8>, String), Failure> {
    let (mut bytes, is_stdin) = (Vec::new(), path == Path::new("-"));
    let place = if is_stdin { "the request on standard input".to_owned() } else { path.display().to_string() };
    let read = match is_stdin {
        true => std::io::stdin().take(REQUEST_MAX).read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|file| file.take(REQUEST_MAX).read_to_end(&mut bytes)),
    };
    read.map_err(|error| Failure::new(format!("cannot read {place}: {error}")))?;
    Ok((bytes, place))
}
