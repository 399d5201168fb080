//! Certificate revocation lists (RFC 5280 section 5): our own for others, and others' for our listeners.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use super::inspect::{is_pem, rfc2253, trim};
use super::issue::{Authority, IssueError};
use super::ledger::{Reason, Revocation};

/// How long one of our lists holds unless told otherwise, days.
pub const CRL_DAYS: u32 = 30;

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CrlError {
    #[error("no revocation list in it: PEM with BEGIN X509 CRL, or DER, is expected")]
    NoList,
    #[error("the revocation list is damaged: {0}")]
    Damaged(String),
}

/// A revocation list as read. Who signed it is another question: [`RevocationList::is_signed_by`].
#[derive(Clone, Debug)]
pub struct RevocationList {
    pub der: CertificateRevocationListDer<'static>,
    /// RFC 2253.
    pub issuer: String,
    /// Big-endian; `None`: it has none, as those of version 1.
    pub number: Option<Vec<u8>>,
    pub this_update: OffsetDateTime,
    pub next_update: Option<OffsetDateTime>,
    /// Serial numbers, big-endian, without a leading zero byte.
    pub serials: Vec<Vec<u8>>,
}

impl RevocationList {
    /// All lists of a file: PEM, or one of DER.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<RevocationList>, CrlError> {
        let ders: Vec<_> = match is_pem(bytes) {
            true => CertificateRevocationListDer::pem_slice_iter(bytes)
                .collect::<Result<_, _>>()
                .map_err(|error| CrlError::Damaged(error.to_string()))?,
            false if bytes.is_empty() => Vec::new(),
            false => vec![CertificateRevocationListDer::from(bytes.to_vec())],
        };
        if ders.is_empty() {
            return Err(CrlError::NoList);
        }
        ders.into_iter().map(RevocationList::of).collect()
    }

    fn of(der: CertificateRevocationListDer<'static>) -> Result<RevocationList, CrlError> {
        let damaged = |error: &dyn std::fmt::Display| CrlError::Damaged(error.to_string());
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|error| damaged(&error))?;
        Ok(RevocationList {
            issuer: rfc2253(list.issuer()),
            number: list.crl_number().map(|number| number.to_bytes_be()),
            this_update: list.last_update().to_datetime(),
            next_update: list.next_update().map(|time| time.to_datetime()),
            serials: list.iter_revoked_certificates().map(|one| trim(one.raw_serial()).to_vec()).collect(),
            der: der.clone(),
        })
    }

    /// Whether the CA (DER) signed it.
    pub fn is_signed_by(&self, ca: &[u8]) -> bool {
        let Ok((_, ca)) = X509Certificate::from_der(ca) else { return false };
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else { return false };
        list.verify_signature(ca.public_key()).is_ok()
    }

    pub fn is_outdated(&self, now: OffsetDateTime) -> bool {
        self.next_update.is_some_and(|next| next <= now)
    }

    /// The later of two lists of one issuer.
    pub fn is_newer_than(&self, other: &RevocationList) -> bool {
        let key = |list: &RevocationList| {
            let number = list.number.clone().unwrap_or_default();
            (number.len(), number, list.this_update)
        };
        key(self) > key(other)
    }
}

/// What a list is to say.
pub struct ListWanted<'a> {
    pub revoked: &'a [Revocation],
    /// The one before it, if any: the numbers go up (RFC 5280 section 5.2.3).
    pub before: Option<&'a RevocationList>,
    pub days: u32,
    pub now: OffsetDateTime,
}

impl Authority {
    /// Signs a list of what was revoked; PEM.
    pub fn revocation_list(&self, wanted: &ListWanted<'_>) -> Result<String, IssueError> {
        let start = wanted.now.replace_nanosecond(0).expect("zero is in range");
        // Seconds go up by themselves; a clock that went back does not take the number along.
        let last = wanted.before.and_then(|list| list.number.clone()).unwrap_or_default();
        let last = last.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let number = u64::try_from(start.unix_timestamp()).unwrap_or(0).max(last.saturating_add(1));
        let revoked_certs = wanted.revoked.iter().map(|one| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&one.serial),
            revocation_time: one.at,
            reason_code: reason_code(one.reason),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: start - Duration::minutes(5),
            next_update: start + Duration::days(i64::from(wanted.days)),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            // RFC 5280 section 5.2.1: as the CA has it, whoever made that.
            key_identifier_method: match &self.info.subject_key_id {
                Some(id) => KeyIdMethod::PreSpecified(id.clone()),
                None => KeyIdMethod::Sha256,
            },
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

/// `unspecified` is left out (RFC 5280 section 5.3.1).
fn reason_code(reason: Reason) -> Option<RevocationReason> {
    match reason {
        Reason::Unspecified => None,
        Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
        Reason::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
        Reason::Superseded => Some(RevocationReason::Superseded),
        Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
        Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{KeyType, random_serial};

    #[test]
    fn a_list_says_what_was_revoked_and_its_number_goes_up() {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let ca = |site: &str| Authority::create(site, KeyType::EcdsaP256, 100, now).unwrap().0;
        let (authority, stranger) = (ca("site"), ca("other"));
        let revoked: Vec<Revocation> = [Reason::KeyCompromise, Reason::Unspecified]
            .map(|reason| Revocation { serial: random_serial().to_vec(), at: now, reason })
            .into();
        let list = |before: Option<&RevocationList>, now| {
            let wanted = ListWanted { revoked: &revoked, before, days: 30, now };
            let pem = authority.revocation_list(&wanted).unwrap();
            RevocationList::parse_all(pem.as_bytes()).unwrap().remove(0)
        };
        let first = list(None, now);
        assert_eq!(first.serials, revoked.iter().map(|one| one.serial.clone()).collect::<Vec<_>>());
        assert_eq!(first.issuer, authority.info.subject);
        assert!(!first.is_outdated(now) && first.is_outdated(now + Duration::days(31)));
        let der = |authority: &Authority| super::super::inspect::first_certificate(&authority.certificate_pem).unwrap();
        assert!(first.is_signed_by(&der(&authority)) && !first.is_signed_by(&der(&stranger)));
        // In the same second, and after the clock went back.
        let second = list(Some(&first), now);
        let third = list(Some(&second), now - Duration::days(300));
        assert!(second.is_newer_than(&first) && third.is_newer_than(&second) && !first.is_newer_than(&third));
        // One of DER too; and what is none.
        assert_eq!(RevocationList::parse_all(&first.der).unwrap().len(), 1);
        assert_eq!(RevocationList::parse_all(b"").unwrap_err(), CrlError::NoList);
        assert!(matches!(RevocationList::parse_all(b"x").unwrap_err(), CrlError::Damaged(_)));
    }
}
