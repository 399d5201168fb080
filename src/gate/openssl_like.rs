//! What webpki does not take and OpenSSL does, for where this stands in for Mosquitto: client certificates of X.509
//! version 1, which the usual `openssl x509 -req` lines make, and revocation lists of version 1, which `openssl ca` does.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme};
use webpki::RawPublicKeyEntity;

use crate::pki::{CertificateInfo, RevocationList, is_signed_by, same_name};

/// Asks another verifier, but for a certificate of version 1: that has to be signed by a trusted CA itself, with
/// nothing weak, and in time. Then the lists, where there are any.
#[derive(Debug)]
pub(super) struct OpensslLike {
    inner: Arc<dyn ClientCertVerifier>,
    /// As with Mosquitto's crlfile: the CA of each client needs one, in time.
    lists: Option<Vec<RevocationList>>,
    cas: Vec<(CertificateDer<'static>, CertificateInfo)>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OpensslLike {
    pub(super) fn new(
        inner: Arc<dyn ClientCertVerifier>,
        cas: &[CertificateDer<'static>],
        lists: Option<Vec<RevocationList>>,
    ) -> OpensslLike {
        let parsed = cas.iter().filter_map(|ca| Some((ca.clone(), CertificateInfo::parse(ca).ok()?)));
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        OpensslLike { inner, lists, cas: parsed.collect(), algorithms }
    }

    fn verify_v1(&self, certificate: &CertificateDer<'_>, info: &CertificateInfo, secs: i64) -> Result<(), Error> {
        if info.weak_signature.is_some() {
            return Err(CertificateError::BadSignature.into());
        }
        let signs = |ca: &&(CertificateDer<'static>, CertificateInfo)| {
            (ca.1.is_ca || ca.1.is_v1) && same_name(certificate, &ca.0) && is_signed_by(certificate, &ca.0)
        };
        let (_, ca) = self.cas.iter().find(signs).ok_or(CertificateError::UnknownIssuer)?;
        is_valid_at(info, secs)?;
        is_valid_at(ca, secs)
    }

    fn check_lists(&self, info: &CertificateInfo, secs: i64) -> Result<(), Error> {
        let Some(lists) = &self.lists else { return Ok(()) };
        let mut of_issuer = lists.iter().filter(|list| list.issuer == info.issuer).peekable();
        if of_issuer.peek().is_none() {
            return Err(CertificateError::UnknownRevocationStatus.into());
        }
        // Two CAs of one name: what either revokes is out.
        for list in of_issuer {
            if list.serials.contains(&info.serial) {
                return Err(CertificateError::Revoked.into());
            }
            if let Some(next_update) = list.next_update.map(|at| at.unix_timestamp()).filter(|at| *at <= secs) {
                return Err(CertificateError::ExpiredRevocationListContext {
                    time: UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs.unsigned_abs())),
                    next_update: UnixTime::since_unix_epoch(std::time::Duration::from_secs(next_update.unsigned_abs())),
                }
                .into());
            }
        }
        Ok(())
    }

    /// The public key of a certificate of version 1.
    fn key_of(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
        let info = CertificateInfo::parse(certificate).ok().filter(|info| info.is_v1)?;
        Some(SubjectPublicKeyInfoDer::from(info.public_key))
    }
}

fn is_valid_at(info: &CertificateInfo, secs: i64) -> Result<(), Error> {
    match () {
        () if secs < info.not_before.unix_timestamp() => Err(CertificateError::NotValidYet.into()),
        () if secs >= info.not_after.unix_timestamp() => Err(CertificateError::Expired.into()),
        () => Ok(()),
    }
}

impl ClientCertVerifier for OpensslLike {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let info = CertificateInfo::parse(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if info.is_v1 {
            self.verify_v1(end_entity, &info, secs)?;
        } else {
            self.inner.verify_client_cert(end_entity, intermediates, now)?;
        }
        self.check_lists(&info, secs)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(key) = OpensslLike::key_of(certificate) else {
            return self.inner.verify_tls12_signature(message, certificate, signed);
        };
        let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
        let known = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, algorithms) = known.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        // TLS 1.2 leaves open which of them a scheme means.
        match algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match OpensslLike::key_of(certificate) {
            None => self.inner.verify_tls13_signature(message, certificate, signed),
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms),
        }
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
