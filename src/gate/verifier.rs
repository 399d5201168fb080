//! Who signed a client's certificate, looked into once for each certificate.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::pki::CertificateInfo;

/// Certificates that are remembered; beyond that the oldest is forgotten.
const REMEMBERED_MAX: usize = 20_000;

type Fingerprint = [u8; 32];

/// Asks another verifier, and remembers of a certificate that the CA itself signed that it was found good: a device
/// that comes again, and has no TLS session to resume (mosquitto's clients and paho never have), costs one
/// signature less. That the device has the key is verified each time, and so are its
/// dates; what trusts another CA is another verifier, which remembers nothing.
#[derive(Debug)]
pub(super) struct Remembering {
    inner: Arc<dyn ClientCertVerifier>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Seconds since 1970 in which a certificate is valid.
    valid: BTreeMap<Fingerprint, (u64, u64)>,
    /// Oldest first.
    order: VecDeque<Fingerprint>,
}

impl Remembering {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>) -> Remembering {
        Remembering { inner, known: Mutex::default() }
    }

    fn remembers(&self, fingerprint: &Fingerprint, now: UnixTime) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.valid.get(fingerprint).is_some_and(|(from, to)| (*from..*to).contains(&now.as_secs()))
    }

    fn remember(&self, fingerprint: Fingerprint, certificate: &CertificateDer<'_>) {
        let Ok(info) = CertificateInfo::parse(certificate) else { return };
        let secs = |time: time::OffsetDateTime| u64::try_from(time.unix_timestamp()).unwrap_or(0);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.valid.insert(fingerprint, (secs(info.not_before), secs(info.not_after))).is_none() {
            known.order.push_back(fingerprint);
        }
        if known.order.len() > REMEMBERED_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.valid.remove(&oldest);
        }
    }
}

impl ClientCertVerifier for Remembering {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // What stands between has dates of its own.
        if !intermediates.is_empty() {
            return self.inner.verify_client_cert(end_entity, intermediates, now);
        }
        let fingerprint: Fingerprint = Sha256::digest(end_entity).into();
        if self.remembers(&fingerprint, now) {
            return Ok(ClientCertVerified::assertion());
        }
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        self.remember(fingerprint, end_entity);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use rustls_pki_types::pem::PemObject;
    use time::OffsetDateTime;

    use super::*;
    use crate::pki::{Authority, KeyType};
    use crate::types::Identity;

    /// Finds every certificate good, or none, and counts how often it is asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize, bool);

    impl ClientCertVerifier for Counting {
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match self.1 {
                false => Ok(ClientCertVerified::assertion()),
                true => Err(Error::General("a stranger's".to_owned())),
            }
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            unreachable!("no handshake here")
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            unreachable!("no handshake here")
        }

        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            Vec::new()
        }
    }

    #[test]
    fn a_certificate_is_looked_into_once_while_it_is_valid() {
        let now = OffsetDateTime::now_utc();
        let (authority, _) = Authority::create("site", KeyType::EcdsaP256, 100, now).unwrap();
        let certificate = |name: &str| {
            let name = Identity::parse(name).unwrap();
            let issued = authority.issue_client("site", &name, KeyType::EcdsaP256, 10, now).unwrap();
            CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()
        };
        let counting = Arc::new(Counting::default());
        let verifier = Remembering::new(counting.clone());
        let asked = |certificate: &CertificateDer<'_>, between: &[CertificateDer<'_>], days: i64| {
            let at = Duration::from_secs((now + time::Duration::days(days)).unix_timestamp() as u64);
            let before = counting.0.load(Ordering::Relaxed);
            verifier.verify_client_cert(certificate, between, UnixTime::since_unix_epoch(at)).unwrap();
            counting.0.load(Ordering::Relaxed) - before
        };
        let (one, other) = (certificate("d1"), certificate("d1"));
        assert_eq!([asked(&one, &[], 0), asked(&one, &[], 0), asked(&one, &[], 9)], [1, 0, 0]);
        // Another one of the same name is another one.
        assert_eq!([asked(&other, &[], 0), asked(&other, &[], 1)], [1, 0]);
        // Past its time, or before it, or by way of an intermediate: as if it had never been seen.
        assert_eq!([asked(&one, &[], 11), asked(&one, &[], 11), asked(&one, &[], -1)], [1, 1, 1]);
        let between = [other.clone()];
        assert_eq!([asked(&one, &between, 0), asked(&one, &between, 0)], [1, 1]);
        // What was refused is refused again.
        let refusing = Arc::new(Counting(AtomicUsize::new(0), true));
        let verifier = Remembering::new(refusing.clone());
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now.unix_timestamp() as u64));
        for _ in 0..2 {
            assert!(verifier.verify_client_cert(&one, &[], at).is_err());
        }
        assert_eq!(refusing.0.load(Ordering::Relaxed), 2);
    }
}
