//! Certificates for keys that were made elsewhere.

use std::io::Read;
use std::path::Path;

use time::OffsetDateTime;

use super::super::{Failure, bundle};
use super::{Editing, Sign, edit, learned};
use crate::pki::{self, Entry, Event, Kind, Ledger, Request, Transaction};

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
    if folder.join("client.key").exists() {
        return Err(Failure::new(format!(
            "{} is another key of {name}: `lockgate client remove {name}` first, or choose another name",
            folder.join("client.key").display()
        )));
    }
    let authority = bundle::authority(settings)?;
    let now = OffsetDateTime::now_utc();
    let (pem, info) =
        authority.sign_request(&settings.name, name, &request, arguments.days, now).map_err(Failure::new)?;
    let entry = Entry {
        key: request.key.clone(),
        key_origin: "request".to_owned(),
        ..Entry::of(&info, Kind::Client, Some(name), Default::default(), now)
    };
    let mut change = Transaction::new(&files.anchor);
    change.folder(&files.bundles, 0o700, *owner);
    change.folder(&folder, 0o700, *owner);
    change.write(&folder.join("client.crt"), pem.as_str(), 0o644, *owner);
    change.write(&folder.join("ca.crt"), authority.certificate_pem.as_str(), 0o644, *owner);
    let events = [Event::Issued(entry)];
    change.write(&files.ledger, files.ledger_text()? + &Ledger::lines(&events), 0o600, *owner);
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
