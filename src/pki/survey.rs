//! What lies in somebody else's folders of certificates: openssl's, easy-rsa's, mkcert's, Mosquitto's.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::crl::RevocationList;
use super::files::{FileError, read};
use super::inspect::{CertificateInfo, is_pem, load_certificates, load_key, public_key_of};
use super::ledger::Reason;
use super::protected::is_protected;

const FILES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 6;

/// A certificate and where it was found.
#[derive(Clone, Debug)]
pub struct FoundCertificate {
    pub path: PathBuf,
    pub der: CertificateDer<'static>,
    pub info: CertificateInfo,
    /// Those behind it in its file.
    pub chain: Vec<CertificateDer<'static>>,
}

/// A private key and where it was found.
#[derive(Clone)]
pub struct FoundKey {
    pub path: PathBuf,
    pub pem: Zeroizing<String>,
    /// SubjectPublicKeyInfo, DER; `None`: it is under a passphrase.
    pub public_key: Option<Vec<u8>>,
}

/// A line of the books that `openssl ca` keeps, in `index.txt`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Indexed {
    /// Hexadecimal.
    pub serial: String,
    /// As openssl writes it: `/O=site/CN=device1`.
    pub subject: String,
    pub expires: OffsetDateTime,
    pub revoked: Option<(OffsetDateTime, Reason)>,
}

/// Such books, and where they were found.
#[derive(Clone, Debug)]
pub struct Book {
    pub path: PathBuf,
    pub lines: Vec<Indexed>,
}

#[derive(Default)]
pub struct Survey {
    pub certificates: Vec<FoundCertificate>,
    pub keys: Vec<FoundKey>,
    pub lists: Vec<(PathBuf, RevocationList)>,
    pub books: Vec<Book>,
    /// Files that look as if something were in them, and cannot be used.
    pub unusable: Vec<(PathBuf, String)>,
}

impl Survey {
    /// Reads files, and folders with all below them.
    pub fn of(paths: &[PathBuf]) -> Result<Survey, FileError> {
        let mut survey = Survey::default();
        let mut files = 0;
        for path in paths {
            survey.walk(path, 0, &mut files)?;
        }
        Ok(survey)
    }

    fn walk(&mut self, path: &Path, depth: usize, files: &mut usize) -> Result<(), FileError> {
        let failed = |error| FileError::Io { action: "read", path: path.to_owned(), error };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            let mut below: Vec<PathBuf> = std::fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
                .map_err(failed)?;
            below.sort();
            for path in below {
                // A link that leads nowhere, or in a circle, says nothing.
                if !path.exists() || (path.is_symlink() && path.is_dir()) {
                    continue;
                }
                if depth >= DEPTH_MAX || *files >= FILES_MAX {
                    self.unusable(&path, "not looked at: the folders are too deep, or too full; name it by itself");
                    return Ok(());
                }
                self.walk(&path, depth + 1, files)?;
            }
        } else if metadata.is_file() {
            *files += 1;
            let bytes = Zeroizing::new(read(path)?);
            self.file(path, &bytes)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_book(bytes) || name == "index.txt" {
            let lines = books(&String::from_utf8_lossy(bytes))
                .map_err(|what| FileError::Content { path: path.to_owned(), what })?;
            self.books.push(Book { path: path.to_owned(), lines });
        } else if is_pem(bytes) {
            self.pem(path, &String::from_utf8_lossy(bytes));
        } else if bytes.starts_with(&[0x30, 0x82]) {
            if let Ok(lists) = RevocationList::parse_all(bytes) {
                self.lists.extend(lists.into_iter().map(|list| (path.to_owned(), list)));
            } else if [".crt", ".cer", ".der"].iter().any(|end| name.ends_with(end)) {
                self.certificate(path, vec![CertificateDer::from(bytes.to_vec())]);
            }
        }
        Ok(())
    }

    fn pem(&mut self, path: &Path, text: &str) {
        if text.contains("-----BEGIN CERTIFICATE-----") {
            match load_certificates(text.as_bytes()) {
                Ok(all) => self.certificate(path, all),
                Err(error) => self.unusable(path, error),
            }
        }
        if text.contains("-----BEGIN X509 CRL-----") {
            match RevocationList::parse_all(text.as_bytes()) {
                Ok(lists) => self.lists.extend(lists.into_iter().map(|list| (path.to_owned(), list))),
                Err(error) => self.unusable(path, error),
            }
        }
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            let place = path.display();
            self.unusable(
                path,
                format!(
                    "a key under a passphrase in OpenSSL's old form: `openssl pkcs8 -topk8 -in {place} -out {place}.new` makes a new one of it"
                ),
            );
        } else if is_protected(text) {
            self.keys.push(FoundKey { path: path.to_owned(), pem: Zeroizing::new(text.to_owned()), public_key: None });
        } else if text.contains("PRIVATE KEY-----") {
            match load_key(text.as_bytes()).and_then(|key| public_key_of(&key)) {
                Ok(public) => self.keys.push(FoundKey {
                    path: path.to_owned(),
                    pem: Zeroizing::new(text.to_owned()),
                    public_key: Some(public),
                }),
                Err(error) => self.unusable(path, error),
            }
        }
    }

    fn certificate(&mut self, path: &Path, mut all: Vec<CertificateDer<'static>>) {
        let der = all.remove(0);
        match CertificateInfo::parse(&der) {
            // easy-rsa and openssl keep a second copy of each.
            Ok(info) if self.certificates.iter().any(|known| known.info.fingerprint == info.fingerprint) => {}
            Ok(info) => self.certificates.push(FoundCertificate { path: path.to_owned(), der, info, chain: all }),
            Err(error) => self.unusable(path, error),
        }
    }

    fn unusable(&mut self, path: &Path, why: impl ToString) {
        self.unusable.push((path.to_owned(), why.to_string()));
    }

    /// The key of a certificate, among those that lie open.
    pub fn key_of(&self, info: &CertificateInfo) -> Option<&FoundKey> {
        self.keys.iter().find(|key| key.public_key.as_ref() == Some(&info.public_key))
    }
}

/// Whether a file's first line is one of openssl's books.
fn is_book(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    first.iter().filter(|byte| **byte == b'\t').count() == 5 && matches!(first, [b'V' | b'R' | b'E', b'\t', ..])
}

/// A line that cannot be read may be one that revokes: then nothing is taken.
fn books(text: &str) -> Result<Vec<Indexed>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            indexed(line).ok_or_else(|| format!("line {} is none of openssl's books: mend it first", at + 1))
        })
        .collect()
}

/// `V<tab>290101000000Z<tab><tab>SERIAL<tab>unknown<tab>/CN=device1`.
fn indexed(line: &str) -> Option<Indexed> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [status, expires, revoked, serial, _, subject] = fields.as_slice() else { return None };
    let revoked = match *status {
        "R" => {
            let (at, reason) = revoked.split_once(',').unwrap_or((revoked, ""));
            Some((asn1_time(at)?, reason_of(reason)))
        }
        "V" | "E" => None,
        _ => return None,
    };
    let serial = serial.to_ascii_lowercase();
    let serial = if serial.len() > 2 { serial.strip_prefix("00").unwrap_or(&serial).to_owned() } else { serial };
    Some(Indexed { serial, subject: (*subject).to_owned(), expires: asn1_time(expires)?, revoked })
}

/// UTCTime or GeneralizedTime (RFC 5280 section 4.1.2.5).
fn asn1_time(text: &str) -> Option<OffsetDateTime> {
    let text = text.strip_suffix('Z')?;
    let full = match text.len() {
        12 if text < "50" => format!("20{text}"),
        12 => format!("19{text}"),
        _ => text.to_owned(),
    };
    let format = format_description!("[year][month][day][hour][minute][second]");
    time::PrimitiveDateTime::parse(&full, format).ok().map(time::PrimitiveDateTime::assume_utc)
}

fn reason_of(text: &str) -> Reason {
    match text.split(',').next().unwrap_or_default() {
        "keyCompromise" | "CACompromise" => Reason::KeyCompromise,
        "affiliationChanged" => Reason::AffiliationChanged,
        "superseded" => Reason::Superseded,
        "cessationOfOperation" => Reason::CessationOfOperation,
        "privilegeWithdrawn" => Reason::PrivilegeWithdrawn,
        _ => Reason::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_of_openssl_are_read() {
        let good = indexed("V\t290101120000Z\t\t00AB01\tunknown\t/O=x/CN=device1").unwrap();
        assert_eq!((&*good.serial, good.expires.year(), good.revoked), ("ab01", 2029, None));
        let bad = indexed("R\t20510101120000Z\t260101000000Z,keyCompromise\t07\tunknown\t/CN=thief").unwrap();
        assert_eq!((bad.expires.year(), bad.revoked.unwrap().1), (2051, Reason::KeyCompromise));
        for line in ["", "V\tx", "V\tsoon\t\t01\tunknown\t/CN=x", "Q\t290101120000Z\t\t01\tu\t/CN=x"] {
            assert_eq!(indexed(line), None, "{line}");
        }
    }
}
