//! Every certificate ever made, a JSON object a line: what was issued, what was revoked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

use super::inspect::{CertificateInfo, hex};
use crate::types::Identity;

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Ca,
    Server,
    Client,
}

/// One line of the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "nearly every line is of the larger kind")]
pub enum Event {
    Issued(Entry),
    #[serde(rename_all = "kebab-case")]
    Revoked {
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
        serial: String,
        #[serde(deserialize_with = "reason")]
        reason: Reason,
    },
}

/// Why a certificate is good no more, in the words of RFC 5280 section 5.3.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    #[default]
    Unspecified,
    /// Somebody else may have its key.
    KeyCompromise,
    AffiliationChanged,
    /// Another one took its place.
    Superseded,
    /// What it was for is no more.
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl Reason {
    pub const ALL: [Reason; 6] = [
        Reason::Unspecified,
        Reason::KeyCompromise,
        Reason::AffiliationChanged,
        Reason::Superseded,
        Reason::CessationOfOperation,
        Reason::PrivilegeWithdrawn,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unspecified => "unspecified",
            Reason::KeyCompromise => "key-compromise",
            Reason::AffiliationChanged => "affiliation-changed",
            Reason::Superseded => "superseded",
            Reason::CessationOfOperation => "cessation-of-operation",
            Reason::PrivilegeWithdrawn => "privilege-withdrawn",
        }
    }

    pub fn parse(text: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// Ledgers of before have `removed`.
fn reason<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(match text.as_str() {
        "removed" => Reason::CessationOfOperation,
        // That it was revoked is what counts.
        text => Reason::parse(text).unwrap_or_default(),
    })
}

/// A certificate that was revoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revocation {
    /// Big-endian.
    pub serial: Vec<u8>,
    pub at: OffsetDateTime,
    pub reason: Reason,
}

/// A certificate that was issued.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entry {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub kind: Kind,
    /// Hexadecimal.
    pub serial: String,
    pub subject: String,
    /// RFC 2253; lines from before there could be two CAs have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    pub key: String,
    /// `generated` here; a key that was made elsewhere comes with a request.
    pub key_origin: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
    /// The serial number of the one in whose place it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<String>,
    /// PEM, of one that was just issued: it is kept beside the ledger, not in it.
    #[serde(skip)]
    pub certificate: String,
}

impl Entry {
    /// `certificate`: itself, PEM.
    pub fn of(
        info: &CertificateInfo,
        certificate: &str,
        kind: Kind,
        identity: Option<&Identity>,
        at: OffsetDateTime,
    ) -> Entry {
        Entry {
            at: at.replace_nanosecond(0).expect("zero is in range"),
            kind,
            serial: hex(&info.serial),
            subject: info.subject.clone(),
            issuer: Some(info.issuer.clone()),
            names: info.names.iter().map(ToString::to_string).collect(),
            identity: identity.map(|name| name.as_str().to_owned()),
            key: info.key.clone(),
            key_origin: "generated".to_owned(),
            expires: info.not_after,
            fingerprint: info.fingerprint.clone(),
            renews: None,
            certificate: certificate.to_owned(),
        }
    }
}

impl Entry {
    /// Whether the CA of this subject (RFC 2253) issued it. Where a line says nothing it was the first CA.
    pub fn is_of(&self, ca: &CertificateInfo) -> bool {
        self.issuer.as_deref() == Some(&ca.subject)
    }
}

#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("line {line}: {error}")]
    Line { line: usize, error: String },
}

/// The ledger as read.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: Vec<Entry>,
    revoked: BTreeMap<String, (OffsetDateTime, Reason)>,
}

impl Ledger {
    pub fn parse(text: &str) -> Result<Ledger, LedgerError> {
        let mut ledger = Ledger::default();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let event = serde_json::from_str(line)
                .map_err(|error| LedgerError::Line { line: at + 1, error: error.to_string() })?;
            match event {
                Event::Issued(entry) => ledger.issued.push(entry),
                Event::Revoked { at, serial, reason } => {
                    // The first one is when it happened.
                    ledger.revoked.entry(serial).or_insert((at, reason));
                }
            }
        }
        Ok(ledger)
    }

    /// The text of events to append.
    pub fn lines(events: &[Event]) -> String {
        events.iter().map(|event| serde_json::to_string(event).expect("plain data") + "\n").collect()
    }

    /// What a revocation list names: what was revoked and had not expired by `since`, which is a list's time before
    /// now, so that each stands on a list that was issued past its end (RFC 5280 section 3.3).
    pub fn revocations(&self, since: OffsetDateTime) -> Vec<Revocation> {
        let revoked = self.issued.iter().filter(|entry| entry.expires > since).filter_map(|entry| {
            let (at, reason) = *self.revoked.get(&entry.serial)?;
            Some(Revocation { serial: unhex(&entry.serial)?, at, reason })
        });
        revoked.collect()
    }

    /// Whether there was more than one CA.
    pub fn has_two_cas(&self) -> bool {
        self.issued.iter().filter(|entry| entry.kind == Kind::Ca).nth(1).is_some()
    }

    /// All that was ever issued, oldest first; when and why each was revoked, if it was.
    pub fn all(&self) -> impl Iterator<Item = (&Entry, Option<(OffsetDateTime, Reason)>)> {
        self.issued.iter().map(|entry| (entry, self.revoked.get(&entry.serial).copied()))
    }

    /// How many certificates were ever issued.
    pub fn issued(&self) -> usize {
        self.issued.len()
    }

    /// When and why the newest certificate of an identity was revoked, if it was.
    pub fn revocation_of(&self, identity: &Identity) -> Option<(OffsetDateTime, Reason)> {
        let of = |entry: &&Entry| entry.identity.as_deref() == Some(identity.as_str()) && entry.kind == Kind::Client;
        self.revoked.get(&self.issued.iter().rev().find(of)?.serial).copied()
    }

    /// Client certificates that admit: issued and not revoked, and whose they are.
    pub fn current(&self) -> BTreeMap<Vec<u8>, Identity> {
        self.issued
            .iter()
            .filter(|entry| entry.kind == Kind::Client && !self.revoked.contains_key(&entry.serial))
            .filter_map(|entry| Some((unhex(&entry.serial)?, Identity::parse(entry.identity.as_deref()?).ok()?)))
            .collect()
    }

    /// Current certificates of everybody, by their owners; each one's oldest first.
    pub fn current_by_owner(&self) -> BTreeMap<Identity, Vec<&Entry>> {
        let mut owners: BTreeMap<Identity, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.issued {
            if entry.kind == Kind::Client
                && !self.revoked.contains_key(&entry.serial)
                && let Some(Ok(owner)) = entry.identity.as_deref().map(Identity::parse)
            {
                owners.entry(owner).or_default().push(entry);
            }
        }
        owners
    }

    /// Current certificates of one identity, oldest first.
    pub fn current_of(&self, identity: &Identity) -> Vec<&Entry> {
        self.issued
            .iter()
            .filter(|entry| entry.kind == Kind::Client && entry.identity.as_deref() == Some(identity.as_str()))
            .filter(|entry| !self.revoked.contains_key(&entry.serial))
            .collect()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (text.len().is_multiple_of(2) && text.is_ascii()).then_some(())?;
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_certificate_is_not_current() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let entry = |serial: &str| {
            Event::Issued(Entry {
                at: now,
                kind: Kind::Client,
                serial: serial.to_owned(),
                subject: "CN=d1".to_owned(),
                issuer: None,
                names: Vec::new(),
                identity: Some("d1".to_owned()),
                key: "ecdsa-p256".to_owned(),
                key_origin: "generated".to_owned(),
                expires: now,
                fingerprint: String::new(),
                renews: None,
                certificate: String::new(),
            })
        };
        let text = Ledger::lines(&[
            entry("0a"),
            entry("0b"),
            Event::Revoked { at: now, serial: "0a".to_owned(), reason: Reason::KeyCompromise },
        ]);
        let ledger = Ledger::parse(&text).unwrap();
        let d1 = Identity::parse("d1").unwrap();
        assert_eq!(ledger.current(), BTreeMap::from([(vec![0x0b], d1.clone())]));
        assert_eq!(ledger.current_of(&d1).len(), 1);
        let before = now - time::Duration::seconds(1);
        let revoked = Revocation { serial: vec![0x0a], at: now, reason: Reason::KeyCompromise };
        assert_eq!(ledger.revocations(before), [revoked]);
        // What has expired needs no list any more.
        assert_eq!(ledger.revocations(now), []);
        let old = text.replace("key-compromise", "removed");
        assert_eq!(Ledger::parse(&old).unwrap().revocations(before)[0].reason, Reason::CessationOfOperation);
        assert!(Ledger::parse("{\"event\":\"teleported\"}\n").unwrap_err().to_string().starts_with("line 1: "));
    }
}
