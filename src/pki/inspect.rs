use std::net::IpAddr;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::plan::{KeyType, Permitted, ServerName};

#[derive(Debug, Error)]
pub enum InspectError {
    #[error("no certificate in it: PEM with BEGIN CERTIFICATE is expected")]
    NoCertificate,
    #[error("no private key in it: PEM with BEGIN PRIVATE KEY is expected")]
    NoKey,
    #[error("the certificate is damaged: {0}")]
    Damaged(String),
    #[error("the PEM text is damaged: {0}")]
    Pem(String),
    #[error("the private key cannot be used: {0}")]
    Key(String),
}

/// What there is to know of a certificate (RFC 5280).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// RFC 2253.
    pub subject: String,
    pub issuer: String,
    pub common_name: Option<String>,
    /// Big-endian, without a leading zero byte.
    pub serial: Vec<u8>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub is_ca: bool,
    /// An X.509 v1 certificate, which has no extensions.
    pub is_v1: bool,
    pub names: Vec<ServerName>,
    pub subject_key_id: Option<Vec<u8>>,
    pub authority_key_id: Option<Vec<u8>>,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// `None` for kinds that are not made here.
    pub key_type: Option<KeyType>,
    /// `ecdsa-p256`, `rsa-4096`: of every kind.
    pub key: String,
    /// What its signature is made with, where nobody should accept it any more.
    pub weak_signature: Option<&'static str>,
    /// Whether its extended key usages let it be a server's; without any it may be all.
    pub for_server: bool,
    pub for_client: bool,
    /// Names and addresses that a CA may issue for, where it is so constrained (RFC 5280 section 4.2.1.10).
    pub permitted: Option<Vec<Permitted>>,
    /// SHA-256 of the DER, `AB:CD:…`.
    pub fingerprint: String,
}

impl CertificateInfo {
    pub fn parse(der: &[u8]) -> Result<CertificateInfo, InspectError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| InspectError::Damaged(error.to_string()))?;
        let key = key_text(certificate.public_key());
        let mut info = CertificateInfo {
            subject: rfc2253(certificate.subject()),
            issuer: rfc2253(certificate.issuer()),
            common_name: certificate
                .subject()
                .iter_common_name()
                .last()
                .and_then(|name| name.as_str().ok())
                .map(str::to_owned),
            serial: trim(certificate.raw_serial()).to_vec(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            is_ca: certificate.is_ca(),
            is_v1: certificate.version() == X509Version::V1,
            names: Vec::new(),
            subject_key_id: None,
            authority_key_id: None,
            public_key: certificate.public_key().raw.to_vec(),
            key_type: KeyType::parse(&key),
            key,
            weak_signature: weak_signature(&certificate.signature_algorithm.algorithm.to_id_string()),
            for_server: true,
            for_client: true,
            permitted: None,
            fingerprint: fingerprint(der),
        };
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => info.subject_key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    info.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    info.names = names.general_names.iter().filter_map(server_name).collect();
                }
                ParsedExtension::ExtendedKeyUsage(usages) => {
                    info.for_server = usages.any || usages.server_auth;
                    info.for_client = usages.any || usages.client_auth;
                }
                ParsedExtension::NameConstraints(constraints) => {
                    let trees = constraints.permitted_subtrees.iter().flatten();
                    info.permitted = Some(trees.filter_map(|tree| Permitted::of(&tree.base)).collect());
                }
                _ => {}
            }
        }
        Ok(info)
    }

    /// Hexadecimal, as the ledger has it.
    pub fn serial_text(&self) -> String {
        hex(&self.serial)
    }

    /// Whole days until it expires; negative once it has.
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        (self.not_after - now).whole_seconds().div_euclid(86_400)
    }

    /// `2027-12-25`.
    pub fn not_after_date(&self) -> String {
        self.not_after.date().to_string()
    }

    /// Whether neither names nor addresses are left open to it.
    pub fn is_constrained(&self) -> bool {
        let permitted = self.permitted.iter().flatten();
        let (mut names, mut addresses) = (false, false);
        for tree in permitted {
            match tree {
                Permitted::Dns(name) => names |= !name.is_empty(),
                Permitted::Network(..) => addresses = true,
            }
        }
        names && addresses
    }

    /// Of names, those that this CA may not issue for. What no tree speaks of is open (RFC 5280 section 4.2.1.10).
    pub fn not_permitted(&self, names: &[ServerName]) -> Vec<ServerName> {
        let Some(permitted) = &self.permitted else { return Vec::new() };
        let speaks = |name: &ServerName| {
            permitted.iter().any(|tree| {
                matches!(
                    (tree, name),
                    (Permitted::Dns(_), ServerName::Dns(_)) | (Permitted::Network(..), ServerName::Address(_))
                )
            })
        };
        let foreign = |name: &&ServerName| speaks(name) && !permitted.iter().any(|tree| tree.covers(name));
        names.iter().filter(foreign).cloned().collect()
    }

    /// Whether `ca` issued it, as far as the names and key identifiers tell.
    pub fn is_issued_by(&self, ca: &CertificateInfo) -> bool {
        self.issuer == ca.subject
            && match (&self.authority_key_id, &ca.subject_key_id) {
                (Some(wanted), Some(has)) => wanted == has,
                _ => true,
            }
    }
}

/// The kind of a key, of those that are not made here too.
fn key_text(key: &SubjectPublicKeyInfo<'_>) -> String {
    match key.parsed() {
        Ok(PublicKey::EC(point)) => format!("ecdsa-p{}", point.key_size()),
        Ok(PublicKey::RSA(key)) => format!("rsa-{}", key.key_size()),
        _ => match key.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => "ed25519".to_owned(),
            other => other.to_owned(),
        },
    }
}

/// What nobody should accept any more, of the signature algorithm's `oid`.
pub(super) fn weak_signature(oid: &str) -> Option<&'static str> {
    match oid {
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.2.840.10040.4.3" => Some("SHA-1"),
        "1.2.840.113549.1.1.4" => Some("MD5"),
        _ => None,
    }
}

pub(super) fn trim(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        _ => serial,
    }
}

fn server_name(name: &GeneralName<'_>) -> Option<ServerName> {
    match name {
        GeneralName::DNSName(name) => Some(ServerName::Dns((*name).to_ascii_lowercase())),
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                16 => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
                _ => return None,
            };
            Some(ServerName::Address(address))
        }
        _ => None,
    }
}

/// A name as RFC 2253 writes it: the last part first, with its special characters escaped.
pub fn rfc2253(name: &x509_parser::x509::X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes: Vec<String> = rdn
                .iter()
                .map(|attribute| {
                    let oid = attribute.attr_type().to_id_string();
                    let kind = short_name(&oid).unwrap_or(&oid);
                    match attribute.as_str() {
                        Ok(value) => format!("{kind}={}", escape(value)),
                        // RFC 4514 section 2.4: never two alike that are not.
                        Err(_) => {
                            let value = attribute.attr_value();
                            format!("{kind}=#{:02x}{}", value.tag().0, hex(value.data))
                        }
                    }
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let special = matches!(character, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (at == 0 && matches!(character, '#' | ' '))
            || (at == last && character == ' ');
        if special {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// A certificate's subject as openssl's `-subj` takes it: `/O=site/CN=ca`; `None` where it cannot be written so.
pub fn openssl_subject(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut subject = String::new();
    for rdn in certificate.subject().iter_rdn() {
        let mut attributes = rdn.iter();
        let attribute = attributes.next().filter(|_| attributes.next().is_none())?;
        let value = attribute.as_str().ok().filter(|value| !value.chars().any(char::is_control))?;
        subject.push('/');
        subject.push_str(short_name(&attribute.attr_type().to_id_string())?);
        subject.push('=');
        for character in value.chars() {
            if matches!(character, '/' | '+' | '\\') {
                subject.push('\\');
            }
            subject.push(character);
        }
    }
    Some(subject)
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// SHA-256, in the form that openssl prints.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = Sha256::digest(der);
    let pairs: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, InspectError> {
    certificates(pem.as_bytes())?.into_iter().next().ok_or(InspectError::NoCertificate)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| InspectError::Pem(error.to_string()))
}

/// Whether a file's bytes are PEM, not DER.
pub(super) fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"-----BEGIN ")
}

/// All certificates of PEM text, at least one.
pub fn load_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    let found = certificates(pem)?;
    if found.is_empty() { Err(InspectError::NoCertificate) } else { Ok(found) }
}

/// A certificate as PEM (RFC 7468).
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    pkcs8::der::pem::encode_string("CERTIFICATE", pkcs8::LineEnding::LF, der).expect("memory for it")
}

/// The private key of PEM text: PKCS#8, PKCS#1 or SEC1.
pub fn load_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, InspectError> {
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(InspectError::NoKey),
        Err(error) => Err(InspectError::Pem(error.to_string())),
    }
}

/// The public key that belongs to a private one: SubjectPublicKeyInfo, DER.
pub(super) fn public_key_of(key: &PrivateKeyDer<'_>) -> Result<Vec<u8>, InspectError> {
    let failed = |error: &dyn std::fmt::Display| InspectError::Key(error.to_string());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).map_err(|error| failed(&error))?;
    key.public_key().map(|public| public.as_ref().to_vec()).ok_or_else(|| failed(&"it has no public key"))
}

/// Whether a private key belongs to a certificate.
pub fn key_matches(key: &PrivateKeyDer<'_>, certificate: &CertificateInfo) -> Result<bool, InspectError> {
    Ok(public_key_of(key)? == certificate.public_key)
}

impl CertificateInfo {
    /// Reads all certificates of a PEM file, at least one.
    pub fn read_all(path: &Path) -> Result<Vec<CertificateInfo>, super::files::FileError> {
        let pem = super::files::read(path)?;
        let all = load_certificates(&pem).and_then(|ders| ders.iter().map(|der| CertificateInfo::parse(der)).collect());
        all.map_err(|error| super::files::FileError::Content { path: path.to_owned(), what: error.to_string() })
    }

    /// Reads the first certificate of a PEM file.
    pub fn read(path: &Path) -> Result<CertificateInfo, super::files::FileError> {
        let pem = super::files::read(path)?;
        let der = certificates(&pem)
            .and_then(|all| all.into_iter().next().ok_or(InspectError::NoCertificate))
            .and_then(|der| CertificateInfo::parse(&der));
        der.map_err(|error| super::files::FileError::Content { path: path.to_owned(), what: error.to_string() })
    }
}
