//! The ledger made anew from the certificates. Each one that was issued is kept in a file of its own, and before
//! it stand the ledger's lines about it; what they say is believed as far as the certificate bears it out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::crl::RevocationList;
use super::inspect::{CertificateInfo, first_certificate, hex, load_certificates};
use super::ledger::{Entry, Event, Kind, Ledger, Reason};
use crate::types::Identity;

const NOTE: &str = "# ";

/// Whether any certificate is kept in this folder: beside those a ledger is missing, and not only not begun. A folder
/// alone is what a change leaves that was killed before it was true.
pub fn has_kept(folder: &Path) -> bool {
    let certificates = std::fs::read_dir(folder).into_iter().flatten().flatten();
    certificates.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|extension| extension == "crt"))
}

/// The text of a certificate's own file: what the ledger says of it, then itself.
pub fn kept(event: &Event, text: &str) -> String {
    NOTE.to_owned() + &Ledger::lines(std::slice::from_ref(event)) + text
}

/// What a ledger is made anew from.
#[derive(Default)]
pub struct Remains {
    /// Of the ledger, damaged or not.
    pub ledger: String,
    /// The CAs that are trusted now, PEM.
    pub cas: String,
    /// Certificates, PEM, with the lines before them where there are any; and what to call each.
    pub certificates: Vec<(String, String)>,
    pub lists: Vec<RevocationList>,
}

/// A ledger that was made anew.
#[derive(Debug, PartialEq, Eq)]
pub struct Rebuilt {
    pub text: String,
    /// Lines of the old one that cannot be read, by their numbers.
    pub damaged: Vec<usize>,
    /// Certificates that it did not know.
    pub issued: usize,
    /// Revocations that it did not know.
    pub revoked: usize,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// Keeps what can be read of the old ledger, and adds what it does not know.
pub fn rebuild(remains: &Remains) -> Rebuilt {
    let mut rebuilt = Rebuilt { text: String::new(), damaged: Vec::new(), issued: 0, revoked: 0, left_out: Vec::new() };
    let mut events: Vec<Event> = Vec::new();
    for (at, line) in remains.ledger.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(event) => events.push(event),
            Err(_) => rebuilt.damaged.push(at + 1),
        }
    }
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut over: BTreeSet<String> = BTreeSet::new();
    for event in &events {
        match event {
            Event::Issued(entry) => known.insert(entry.serial.clone()),
            Event::Revoked { serial, .. } => over.insert(serial.clone()),
        };
    }
    let trusted = load_certificates(remains.cas.as_bytes()).unwrap_or_default();
    let cas = all_cas(&trusted, remains);
    let (mut found, mut ends) = (Vec::new(), Vec::new());
    for (name, text) in &remains.certificates {
        match entry_of(text, &cas) {
            Ok((entry, ended)) => {
                ends.extend(ended);
                if known.insert(entry.serial.clone()) {
                    found.push(entry);
                }
            }
            Err(why) => rebuilt.left_out.push(format!("{name}: {why}")),
        }
    }
    rebuilt.issued = found.len();
    found.sort_by_key(|entry| entry.at);
    // A CA that is trusted no more ended with all that it issued.
    let current: BTreeSet<String> =
        trusted.iter().filter_map(|der| CertificateInfo::parse(der).ok()).map(|info| info.subject).collect();
    for entry in found.iter().filter(|entry| entry.kind == Kind::Client) {
        if entry.issuer.as_ref().is_some_and(|issuer| !current.contains(issuer)) {
            let (at, serial) = (entry.at, entry.serial.clone());
            ends.push(Event::Revoked { at, serial, reason: Reason::Superseded });
        }
    }
    for list in &remains.lists {
        let listed = list.serials.iter().map(|serial| hex(serial)).filter(|serial| known.contains(serial));
        let at = list.this_update;
        ends.extend(listed.map(|serial| Event::Revoked { at, serial, reason: Reason::Unspecified }));
    }
    events.extend(found.into_iter().map(Event::Issued));
    for end in ends {
        if let Event::Revoked { serial, .. } = &end
            && over.insert(serial.clone())
        {
            rebuilt.revoked += 1;
            events.push(end);
        }
    }
    rebuilt.text = Ledger::lines(&events);
    rebuilt
}

/// Those that are trusted now, and those of before that were kept: by their subjects.
fn all_cas(trusted: &[CertificateDer<'static>], remains: &Remains) -> BTreeMap<String, Vec<CertificateDer<'static>>> {
    let mut cas: BTreeMap<String, Vec<CertificateDer<'static>>> = BTreeMap::new();
    let kept = remains.certificates.iter().filter_map(|(_, text)| first_certificate(text).ok());
    for der in trusted.iter().cloned().chain(kept) {
        if let Ok(info) = CertificateInfo::parse(&der)
            && info.is_ca
        {
            cas.entry(info.subject).or_default().push(der);
        }
    }
    cas
}

/// Whether one certificate's key signed the other.
pub fn is_signed_by(certificate: &[u8], ca: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, ca))) = (X509Certificate::from_der(certificate), X509Certificate::from_der(ca))
    else {
        return false;
    };
    certificate.verify_signature(Some(ca.public_key())).is_ok()
}

/// Whether the issuer in a certificate is, byte for byte, the subject of the CA (RFC 5280 section 7.1).
pub fn same_name(certificate: &[u8], ca: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, ca))) = (X509Certificate::from_der(certificate), X509Certificate::from_der(ca))
    else {
        return false;
    };
    certificate.issuer().as_raw() == ca.subject().as_raw()
}

/// The line of a certificate, and those that say that it is over.
fn entry_of(text: &str, cas: &BTreeMap<String, Vec<CertificateDer<'static>>>) -> Result<(Entry, Vec<Event>), String> {
    let der = first_certificate(text).map_err(|error| error.to_string())?;
    let info = CertificateInfo::parse(&der).map_err(|error| error.to_string())?;
    if !cas.get(&info.issuer).is_some_and(|cas| cas.iter().any(|ca| is_signed_by(&der, ca))) {
        return Err(format!("{} did not come from a CA of this site", info.subject));
    }
    let serial = info.serial_text();
    let lines = text.lines().filter_map(|line| line.strip_prefix(NOTE));
    let said: Vec<Event> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let own = said.iter().find_map(|event| match event {
        Event::Issued(entry) if entry.serial == serial && entry.fingerprint == info.fingerprint => Some(entry.clone()),
        _ => None,
    });
    let ended = said.into_iter().filter(|event| matches!(event, Event::Revoked { serial: of, .. } if *of == serial));
    Ok((own.map_or_else(|| guess(&info), Ok)?, ended.collect()))
}

/// What a certificate says of itself.
fn guess(info: &CertificateInfo) -> Result<Entry, String> {
    let kind = match (info.is_ca, info.for_client && info.common_name.is_some() && info.names.is_empty()) {
        (true, _) => Kind::Ca,
        (false, true) => Kind::Client,
        (false, false) => Kind::Server,
    };
    let identity = match kind {
        Kind::Client => {
            let name = info.common_name.as_deref().unwrap_or_default();
            Some(Identity::parse(name).map_err(|_| format!("{name:?} is no identity's name"))?)
        }
        Kind::Ca | Kind::Server => None,
    };
    // Begun five minutes back.
    let at = (info.not_before + Duration::minutes(5)).min(OffsetDateTime::now_utc());
    Ok(Entry { key_origin: "unknown".to_owned(), ..Entry::of(info, "", kind, identity.as_ref(), at) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, KeyType};

    #[test]
    fn a_ledger_is_made_anew_from_what_is_left() {
        let now = OffsetDateTime::now_utc();
        let (authority, ca) = Authority::create("site", KeyType::EcdsaP256, 100, now).unwrap();
        let (stranger, _) = Authority::create("site", KeyType::EcdsaP256, 100, now).unwrap();
        let issue = |authority: &Authority, name: &str| {
            let identity = Identity::parse(name).unwrap();
            let issued = authority.issue_client("site", &identity, KeyType::EcdsaP256, 10, now).unwrap();
            let entry = Entry::of(&issued.info, &issued.certificate_pem, Kind::Client, Some(&identity), now);
            (issued, Event::Issued(Entry { key_origin: "request".to_owned(), ..entry }))
        };
        let (one, two, other) = (issue(&authority, "one"), issue(&authority, "two"), issue(&stranger, "other"));
        let ended = Event::Revoked { at: now, serial: one.0.info.serial_text(), reason: Reason::KeyCompromise };
        let file = |(issued, event): &(crate::pki::Issued, Event)| kept(event, &issued.certificate_pem);
        // One line of another's in a file says nothing.
        let lie = kept(&ended, &file(&two));
        let remains = Remains {
            ledger: Ledger::lines(std::slice::from_ref(&two.1)) + "{torn",
            cas: ca.certificate_pem.clone(),
            certificates: vec![
                ("one".to_owned(), kept(&ended, &file(&one))),
                ("two".to_owned(), lie),
                ("other".to_owned(), file(&other)),
                ("bare".to_owned(), ca.certificate_pem.clone()),
            ],
            lists: Vec::new(),
        };
        let rebuilt = rebuild(&remains);
        assert_eq!((rebuilt.issued, rebuilt.revoked, &*rebuilt.damaged), (2, 1, &[2][..]));
        assert!(rebuilt.left_out[0].starts_with("other: "), "{:?}", rebuilt.left_out);
        let ledger = Ledger::parse(&rebuilt.text).unwrap();
        let names: Vec<Identity> = ledger.current().into_values().collect();
        assert_eq!(names, [Identity::parse("two").unwrap()]);
        assert!(
            rebuilt.text.contains("\"reason\":\"key-compromise\"")
                && rebuilt.text.contains("\"key-origin\":\"request\"")
        );
        // Made anew of itself it stays as it is; and a list's word counts too.
        let crl = authority
            .revocation_list(&crate::pki::ListWanted {
                revoked: &[crate::pki::Revocation {
                    serial: two.0.info.serial.clone(),
                    at: now,
                    reason: Reason::Unspecified,
                }],
                before: None,
                days: 9,
                now,
            })
            .unwrap();
        let again = Remains { ledger: rebuilt.text.clone(), ..remains };
        assert_eq!(rebuild(&again).text, rebuilt.text);
        let listed = Remains { lists: RevocationList::parse_all(crl.as_bytes()).unwrap(), ..again };
        assert!(Ledger::parse(&rebuild(&listed).text).unwrap().current().is_empty());
        // Whom a CA of before admitted is admitted no more.
        let (next, _, _) = authority.succeed("site", KeyType::EcdsaP256, 100, now).unwrap();
        let moved = Remains { ledger: String::new(), cas: next.certificate_pem, ..listed };
        assert!(Ledger::parse(&rebuild(&moved).text).unwrap().current().is_empty());
    }
}
