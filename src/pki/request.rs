//! Certificate signing requests (PKCS #10, RFC 2986), from keys that never leave their devices.

use rcgen::{CertificateParams, DnType, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

use super::inspect::{is_pem, weak_signature};
use super::issue::{IssueError, distinguished_name, generate, subject_alt_names};
use super::plan::{KeyType, ServerName};
use crate::types::Identity;

/// Why a request is not signed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RequestError {
    #[error("it is no certificate signing request: PEM with BEGIN CERTIFICATE REQUEST, or DER, is expected")]
    NotARequest,
    #[error("it is signed with {0}: SHA-256 or better is expected")]
    Signature(String),
    #[error("its signature is broken: whoever made it does not have the key, or it was changed on its way")]
    Broken,
    #[error("its key is {0}: ECDSA P-256 or P-384, Ed25519 or RSA of 2048 to 4096 bits is expected")]
    Key(String),
    #[error("it asks for the name {0:?}: the only one that it can have is {1}")]
    Name(String, Identity),
    #[error("it asks to be a CA")]
    Ca,
    #[error("it asks for a usage that is not a client's: {0}")]
    Usage(&'static str),
    #[error("it asks for the extension {0}, which no client gets")]
    Extension(String),
}

/// A new key (PKCS #8, PEM) and a request for it (PEM) by the device that is called so.
pub fn new_request(identity: &Identity, kind: KeyType) -> Result<(Zeroizing<String>, String), IssueError> {
    let key = generate(kind)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&[(DnType::CommonName, identity.as_str())]);
    let request = params.serialize_request(&key)?.pem()?;
    Ok((Zeroizing::new(key.serialize_pem()), request))
}

/// A new key (PKCS #8, PEM) and a request (DER) for it by a server that is called so, for a CA of elsewhere.
pub fn new_server_request(names: &[ServerName], kind: KeyType) -> Result<(Zeroizing<String>, Vec<u8>), IssueError> {
    let key = generate(kind)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&[]);
    params.subject_alt_names = subject_alt_names(names)?;
    let request = params.serialize_request(&key)?;
    Ok((Zeroizing::new(key.serialize_pem()), request.der().to_vec()))
}

/// What is taken over from a request that policy allows: its public key, and nothing else.
pub struct Request {
    pub(super) public_key: SubjectPublicKeyInfo,
    pub(super) is_rsa: bool,
}

impl Request {
    /// Reads PEM or DER and looks at all that it asks for; what a client of this name may not have is refused.
    pub fn parse(bytes: &[u8], identity: &Identity) -> Result<Request, RequestError> {
        let der = match is_pem(bytes) {
            // Windows and old Java write NEW.
            true => CertificateSigningRequestDer::from_pem_slice(
                String::from_utf8_lossy(bytes).replace("NEW CERTIFICATE REQUEST", "CERTIFICATE REQUEST").as_bytes(),
            )
            .map_err(|_| RequestError::NotARequest)?,
            false => CertificateSigningRequestDer::from(bytes.to_vec()),
        };
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::NotARequest)?;
        if !rest.is_empty() {
            return Err(RequestError::NotARequest);
        }
        check_signature_algorithm(&request.signature_algorithm.algorithm.to_id_string())?;
        let info = &request.certification_request_info;
        let is_rsa = match info.subject_pki.parsed() {
            Ok(PublicKey::EC(point)) if matches!(point.key_size(), 256 | 384) => false,
            Ok(PublicKey::EC(point)) => return Err(RequestError::Key(format!("ECDSA of {} bits", point.key_size()))),
            Ok(PublicKey::RSA(key)) if (2_048..=4_096).contains(&key.key_size()) => true,
            Ok(PublicKey::RSA(key)) => return Err(RequestError::Key(format!("RSA of {} bits", key.key_size()))),
            _ => match info.subject_pki.algorithm.algorithm.to_id_string().as_str() {
                "1.3.101.112" => false,
                other => return Err(RequestError::Key(format!("of the kind {other}"))),
            },
        };
        let public_key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|_| RequestError::Key("on an unusual curve".to_owned()))?;
        request.verify_signature().map_err(|_| RequestError::Broken)?;
        check_names(&request, identity)?;
        Ok(Request { public_key, is_rsa })
    }
}

fn check_signature_algorithm(oid: &str) -> Result<(), RequestError> {
    match oid {
        // RSA and ECDSA, each with SHA-256, SHA-384 and SHA-512; Ed25519.
        "1.2.840.113549.1.1.11"
        | "1.2.840.113549.1.1.12"
        | "1.2.840.113549.1.1.13"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10045.4.3.3"
        | "1.2.840.10045.4.3.4"
        | "1.3.101.112" => Ok(()),
        other => Err(RequestError::Signature(
            weak_signature(other).map_or_else(|| format!("the algorithm {other}"), str::to_owned),
        )),
    }
}

fn check_names(request: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), RequestError> {
    let foreign = |name: &str| RequestError::Name(name.chars().take(80).collect(), identity.clone());
    for name in request.certification_request_info.subject.iter_common_name() {
        match name.as_str() {
            Ok(name) if name == identity.as_str() => {}
            other => return Err(foreign(other.unwrap_or("?"))),
        }
    }
    // An attribute that asks for extensions more than once would be read only in part.
    let asking = request.certification_request_info.iter_attributes();
    if asking.filter(|attribute| attribute.oid.to_id_string() == "1.2.840.113549.1.9.14").count() > 1 {
        return Err(RequestError::NotARequest);
    }
    let Some(extensions) = request.requested_extensions() else { return Ok(()) };
    for extension in extensions {
        match extension {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(RequestError::Ca),
            ParsedExtension::BasicConstraints(_) | ParsedExtension::SubjectKeyIdentifier(_) => {}
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() => {
                return Err(RequestError::Usage("certificate signing"));
            }
            ParsedExtension::KeyUsage(usage) if usage.crl_sign() => return Err(RequestError::Usage("CRL signing")),
            ParsedExtension::KeyUsage(_) => {}
            ParsedExtension::ExtendedKeyUsage(usage) => {
                if usage.any || usage.server_auth {
                    return Err(RequestError::Usage("server authentication"));
                }
                if usage.code_signing || usage.email_protection || usage.time_stamping || usage.ocsp_signing {
                    return Err(RequestError::Usage("signing"));
                }
                if !usage.other.is_empty() {
                    return Err(RequestError::Usage("an unknown extended key usage"));
                }
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) if *name == identity.as_str() => {}
                        other => return Err(foreign(&other.to_string())),
                    }
                }
            }
            ParsedExtension::UnsupportedExtension { oid } => {
                return Err(RequestError::Extension(oid.to_id_string()));
            }
            _ => return Err(RequestError::Extension("of another kind".to_owned())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
    use time::OffsetDateTime;
    use x509_parser::prelude::X509Certificate;

    use super::super::issue::Authority;
    use super::*;

    /// What somebody may ask for.
    fn asked() -> impl Strategy<Value = (String, u8, Vec<u8>, Vec<u8>, Vec<String>)> {
        let name = prop_oneof![Just("d1".to_owned()), Just("d2".to_owned()), Just(String::new()), "[a-z.*]{1,8}"];
        let some = |upto: u8| proptest::collection::vec(0..upto, 0..3);
        let names = proptest::collection::vec(prop_oneof![Just("d1".to_owned()), "[a-z]{1,6}(\\.[a-z]{1,6})?"], 0..3);
        (name, 0_u8..3, some(9), some(6), names)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Whatever is asked for: it is refused, or what comes of it is a client's certificate of this name and
        /// nothing more.
        #[test]
        fn no_request_gets_more_than_policy_gives((name, ca, usages, purposes, names) in asked()) {
            let now = OffsetDateTime::now_utc();
            let (authority, _) = Authority::create("site", KeyType::EcdsaP256, 100, now).unwrap();
            let key = generate(KeyType::EcdsaP256).unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = distinguished_name(&[(DnType::CommonName, &name)]);
            params.is_ca = match ca {
                0 => IsCa::NoCa,
                1 => IsCa::ExplicitNoCa,
                _ => IsCa::Ca(BasicConstraints::Unconstrained),
            };
            let all_usages = [
                KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment, KeyUsagePurpose::KeyEncipherment,
                KeyUsagePurpose::DataEncipherment, KeyUsagePurpose::KeyAgreement, KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign, KeyUsagePurpose::EncipherOnly, KeyUsagePurpose::DecipherOnly,
            ];
            params.key_usages = usages.iter().map(|at| all_usages[usize::from(*at)]).collect();
            let all_purposes = [
                ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::EmailProtection,
                ExtendedKeyUsagePurpose::OcspSigning,
            ];
            params.extended_key_usages = purposes.iter().map(|at| all_purposes[usize::from(*at)].clone()).collect();
            params.subject_alt_names =
                names.iter().filter_map(|name| Some(SanType::DnsName(name.as_str().try_into().ok()?))).collect();
            let Ok(csr) = params.serialize_request(&key) else { return Ok(()) };
            let d1 = Identity::parse("d1").unwrap();
            let Ok(request) = Request::parse(csr.der(), &d1) else { return Ok(()) };
            prop_assert!(ca < 2 && names.iter().all(|name| name == "d1"));
            let (pem, info) = authority.sign_request("site", &d1, &request, 30, now).unwrap();
            let der = super::super::certificate_der(&pem).unwrap();
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            prop_assert!(!info.is_ca && info.names.is_empty() && info.common_name.as_deref() == Some("d1"));
            prop_assert!(info.not_after <= now + time::Duration::days(30));
            prop_assert_eq!(&info.public_key, &rcgen::PublicKeyData::subject_public_key_info(&key));
            let usage = certificate.key_usage().unwrap().unwrap().value;
            prop_assert!(usage.digital_signature() && usage.flags.count_ones() == 1);
            let purpose = certificate.extended_key_usage().unwrap().unwrap().value;
            prop_assert!(purpose.client_auth && !purpose.server_auth && !purpose.any && !purpose.code_signing);
            prop_assert!(!purpose.email_protection && !purpose.ocsp_signing && purpose.other.is_empty());
        }
    }
}
