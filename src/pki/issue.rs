use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, RsaKeySize, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::inspect::{CertificateInfo, InspectError};
use super::plan::{KeyType, Permitted, ServerName};
use super::request::Request;
use crate::types::Identity;

/// A certificate that was just made, with its key.
pub struct Issued {
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: Zeroizing<String>,
    pub info: CertificateInfo,
}

#[derive(Debug, Error)]
pub enum IssueError {
    #[error("cannot make a certificate: {0}")]
    Rcgen(#[from] rcgen::Error),
    #[error("{0}")]
    Inspect(#[from] InspectError),
    #[error("the CA certificate is not one: it lacks CA:TRUE in its basic constraints")]
    NotACa,
    #[error("the CA key does not belong to the CA certificate")]
    KeyMismatch,
    #[error("the CA certificate expired on {0}")]
    Expired(String),
    #[error("the name {0:?} cannot stand in a certificate")]
    Name(String),
}

/// A serial number: 16 random bytes, positive (RFC 5280 section 4.1.2.2).
pub fn random_serial() -> [u8; 16] {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).expect("the kernel's random generator");
    // The top bit is the sign, and a leading zero byte would be cut off.
    serial[0] = serial[0] & 0x7F | 0x40;
    serial
}

/// The certificate authority with its key.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub info: CertificateInfo,
    pub certificate_pem: String,
}

impl Authority {
    /// A new root: `site` is its organisation, and its common name is unique.
    pub fn create(
        site: &str,
        kind: KeyType,
        ca_days: u32,
        now: OffsetDateTime,
    ) -> Result<(Authority, Issued), IssueError> {
        Authority::create_for(site, kind, ca_days, None, now)
    }

    /// The same; of names and addresses it may issue for `permitted` alone (RFC 5280 section 4.2.1.10).
    pub fn create_for(
        site: &str,
        kind: KeyType,
        ca_days: u32,
        permitted: Option<&[Permitted]>,
        now: OffsetDateTime,
    ) -> Result<(Authority, Issued), IssueError> {
        let (authority, issued, _) = Authority::new_root(site, generate(kind)?, ca_days, permitted, now)?;
        Ok((authority, issued))
    }

    /// A CA below this one, which signs leaves alone: its path length is 0.
    pub fn issue_ca(
        &self,
        site: &str,
        kind: KeyType,
        ca_days: u32,
        now: OffsetDateTime,
    ) -> Result<(Authority, Issued), IssueError> {
        let key = generate(kind)?;
        let mut params = ca_params(site, ca_days, self.info.permitted.as_deref(), now);
        params.not_after = params.not_after.min(self.info.not_after);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let issued = issued(&certificate, &key)?;
        let authority = Authority::from_parts(certificate.der(), &issued.certificate_pem, key)?;
        Ok((authority, issued))
    }

    /// A new root in this one's place, and this one's word for its key, so that whoever trusts this one alone
    /// trusts what the new one issues (RFC 4210 section 4.4: new with old); that word as PEM.
    pub fn succeed(
        &self,
        site: &str,
        kind: KeyType,
        ca_days: u32,
        now: OffsetDateTime,
    ) -> Result<(Authority, Issued, String), IssueError> {
        let permitted = self.info.permitted.as_deref();
        let (authority, issued, mut params) = Authority::new_root(site, generate(kind)?, ca_days, permitted, now)?;
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
        params.not_after = params.not_after.min(self.info.not_after);
        params.use_authority_key_identifier_extension = true;
        let word = params.signed_by(authority.issuer.key(), &self.issuer)?;
        Ok((authority, issued, word.pem()))
    }

    fn new_root(
        site: &str,
        key: KeyPair,
        ca_days: u32,
        permitted: Option<&[Permitted]>,
        now: OffsetDateTime,
    ) -> Result<(Authority, Issued, CertificateParams), IssueError> {
        let params = ca_params(site, ca_days, permitted, now);
        let certificate = params.self_signed(&key)?;
        let issued = issued(&certificate, &key)?;
        let authority = Authority::from_parts(certificate.der(), &issued.certificate_pem, key)?;
        Ok((authority, issued, params))
    }

    /// Takes up a CA by its certificate (DER) and key; `certificate_pem` is what its clients are given.
    pub fn of(der: &CertificateDer<'_>, certificate_pem: &str, key_pem: &str) -> Result<Authority, IssueError> {
        Authority::from_parts(der, certificate_pem, KeyPair::from_pem(key_pem)?)
    }

    /// Takes up a CA from its files. What rcgen does not check is checked here: that it is a CA, that
    /// key and certificate belong together, and that it is still valid.
    pub fn load(certificate_pem: &str, key_pem: &str, now: OffsetDateTime) -> Result<Authority, IssueError> {
        let der = super::inspect::first_certificate(certificate_pem)?;
        let key = KeyPair::from_pem(key_pem)?;
        let authority = Authority::from_parts(&der, certificate_pem, key)?;
        if authority.info.not_after <= now {
            return Err(IssueError::Expired(authority.info.not_after_date()));
        }
        Ok(authority)
    }

    fn from_parts(der: &CertificateDer<'_>, certificate_pem: &str, key: KeyPair) -> Result<Authority, IssueError> {
        let info = CertificateInfo::parse(der)?;
        if !info.is_ca {
            return Err(IssueError::NotACa);
        }
        if info.public_key != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(IssueError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(der, key)?;
        Ok(Authority { issuer, info, certificate_pem: certificate_pem.to_owned() })
    }

    /// A server certificate for `names`, with a new key; the first is its common name.
    pub fn issue_server(
        &self,
        site: &str,
        names: &[ServerName],
        kind: KeyType,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        self.sign_server(site, names, generate(kind)?, days, now)
    }

    /// Another server certificate for a key that there is already: PEM, PKCS#8.
    pub fn renew_server(
        &self,
        site: &str,
        names: &[ServerName],
        key_pem: &str,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        self.sign_server(site, names, KeyPair::from_pem(key_pem)?, days, now)
    }

    fn sign_server(
        &self,
        site: &str,
        names: &[ServerName],
        key: KeyPair,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        let mut params = self.leaf(days, now);
        let common_name = names.first().map(ToString::to_string).unwrap_or_else(|| "localhost".to_owned());
        params.distinguished_name = distinguished_name(&[
            (DnType::OrganizationName, site),
            // A common name has at most 64 characters (RFC 5280, ub-common-name).
            (DnType::CommonName, &common_name[..common_name.len().min(64)]),
        ]);
        params.subject_alt_names = subject_alt_names(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key)
    }

    /// A client certificate whose common name is the identity's, for a new key.
    pub fn issue_client(
        &self,
        site: &str,
        identity: &Identity,
        kind: KeyType,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        self.sign_client(site, identity, generate(kind)?, days, now)
    }

    /// Another client certificate for a key that there is already: PEM, PKCS#8.
    pub fn renew_client(
        &self,
        site: &str,
        identity: &Identity,
        key_pem: &str,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        self.sign_client(site, identity, KeyPair::from_pem(key_pem)?, days, now)
    }

    /// A client certificate for a key that its device alone has; the certificate as PEM.
    pub fn sign_request(
        &self,
        site: &str,
        identity: &Identity,
        request: &Request,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<(String, CertificateInfo), IssueError> {
        let mut params = self.leaf(days, now);
        params.distinguished_name =
            distinguished_name(&[(DnType::OrganizationName, site), (DnType::CommonName, identity.as_str())]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if request.is_rsa {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        Ok((certificate.pem(), CertificateInfo::parse(certificate.der())?))
    }

    fn sign_client(
        &self,
        site: &str,
        identity: &Identity,
        key: KeyPair,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        let mut params = self.leaf(days, now);
        params.distinguished_name =
            distinguished_name(&[(DnType::OrganizationName, site), (DnType::CommonName, identity.as_str())]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key)
    }

    fn leaf(&self, days: u32, now: OffsetDateTime) -> CertificateParams {
        let mut params = blank(now, days, &random_serial());
        // Nothing outlives the CA.
        params.not_after = params.not_after.min(self.info.not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params
    }

    fn sign(&self, mut params: CertificateParams, key: KeyPair) -> Result<Issued, IssueError> {
        if key.is_compatible(&rcgen::PKCS_RSA_SHA256) {
            // TLS 1.2 without forward secrecy, which old microcontrollers may be left with.
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        issued(&certificate, &key)
    }
}

/// A CA's, with a common name of its own.
fn ca_params(site: &str, ca_days: u32, permitted: Option<&[Permitted]>, now: OffsetDateTime) -> CertificateParams {
    let serial = random_serial();
    let mut params = blank(now, ca_days, &serial);
    let tag: String = serial[12..].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = distinguished_name(&[
        (DnType::OrganizationName, site),
        (DnType::CommonName, &format!("{site} Lockgate CA {tag}")),
    ]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = permitted.map(|permitted| NameConstraints {
        permitted_subtrees: permitted
            .iter()
            .map(|name| match name {
                Permitted::Dns(name) => GeneralSubtree::DnsName(name.clone()),
                Permitted::Network(address, bits) => {
                    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, *bits))
                }
            })
            .collect(),
        excluded_subtrees: Vec::new(),
    });
    params
}

fn blank(now: OffsetDateTime, days: u32, serial: &[u8]) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Five minutes back: clocks that are a little late.
    let start = now.replace_nanosecond(0).expect("zero is in range") - Duration::minutes(5);
    params.not_before = start;
    params.not_after = start + Duration::days(i64::from(days));
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params
}

/// A server certificate that nobody vouches for but its own key: what clients are to refuse.
pub fn self_signed(
    site: &str,
    names: &[ServerName],
    kind: KeyType,
    days: u32,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    let key = generate(kind)?;
    let mut params = blank(now, days, &random_serial());
    params.distinguished_name = distinguished_name(&[(DnType::CommonName, site)]);
    params.subject_alt_names = subject_alt_names(names)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issued(&params.self_signed(&key)?, &key)
}

pub(super) fn distinguished_name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        name.push(kind.clone(), *value);
    }
    name
}

pub(super) fn subject_alt_names(names: &[ServerName]) -> Result<Vec<SanType>, IssueError> {
    let of = |name: &ServerName| {
        Ok(match name {
            ServerName::Dns(name) => {
                SanType::DnsName(name.as_str().try_into().map_err(|_| IssueError::Name(name.clone()))?)
            }
            ServerName::Address(address) => SanType::IpAddress(*address),
        })
    };
    names.iter().map(of).collect()
}

pub(super) fn generate(kind: KeyType) -> Result<KeyPair, rcgen::Error> {
    match kind {
        KeyType::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyType::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyType::Rsa3072 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        KeyType::Ed25519 => {
            // Version 1 of PKCS#8: OpenSSL does not read version 2, which holds the public key too.
            let key =
                aws_lc_rs::signature::Ed25519KeyPair::generate().map_err(|_| rcgen::Error::KeyGenerationUnavailable)?;
            let document = key.to_pkcs8v1().map_err(|_| rcgen::Error::KeyGenerationUnavailable)?;
            let der = rustls_pki_types::PrivatePkcs8KeyDer::from(document.as_ref());
            KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)
        }
    }
}

fn issued(certificate: &rcgen::Certificate, key: &KeyPair) -> Result<Issued, IssueError> {
    Ok(Issued {
        certificate_pem: certificate.pem(),
        key_pem: Zeroizing::new(key.serialize_pem()),
        info: CertificateInfo::parse(certificate.der())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_follow_the_profile() {
        let now = OffsetDateTime::now_utc();
        for kind in [KeyType::EcdsaP256, KeyType::Ed25519, KeyType::Rsa2048] {
            let (authority, ca) = Authority::create("site", kind, 100, now).unwrap();
            let names = [ServerName::parse("localhost").unwrap(), ServerName::parse("127.0.0.1").unwrap()];
            let server = authority.issue_server("site", &names, kind, 30, now).unwrap();
            let client = authority.issue_client("site", &Identity::parse("d1").unwrap(), kind, 397, now).unwrap();
            assert!(ca.info.is_ca && !server.info.is_ca && !client.info.is_ca);
            assert_eq!(client.info.common_name.as_deref(), Some("d1"));
            assert_eq!(server.info.names, names);
            assert_ne!(ca.info.subject, server.info.subject);
            assert_eq!(server.info.issuer, ca.info.subject);
            assert_eq!(server.info.authority_key_id, ca.info.subject_key_id);
            assert!(server.info.subject_key_id.is_some());
            // Nothing outlives the CA.
            assert_eq!(client.info.not_after, ca.info.not_after);
            assert_eq!(client.info.serial.len(), 16);
            assert_ne!(client.info.serial, server.info.serial);
        }
    }

    #[test]
    fn what_is_no_ca_is_refused_as_one() {
        let now = OffsetDateTime::now_utc();
        let (authority, ca) = Authority::create("site", KeyType::EcdsaP256, 100, now).unwrap();
        let client =
            authority.issue_client("site", &Identity::parse("d1").unwrap(), KeyType::EcdsaP256, 5, now).unwrap();
        assert!(Authority::load(&ca.certificate_pem, &ca.key_pem, now).is_ok());
        let load = |certificate: &str, key: &str, now| Authority::load(certificate, key, now).map(|_| ()).unwrap_err();
        assert!(matches!(load(&client.certificate_pem, &client.key_pem, now), IssueError::NotACa));
        assert!(matches!(load(&ca.certificate_pem, &client.key_pem, now), IssueError::KeyMismatch));
        let later = now + Duration::days(200);
        assert!(matches!(load(&ca.certificate_pem, &ca.key_pem, later), IssueError::Expired(_)));
    }
}
