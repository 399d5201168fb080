//! PKCS #12 (RFC 7292): key and certificates in one file under a password.

use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, PrivateKey, PrivateKeyChain,
};
use thiserror::Error;

use super::inspect::{CertificateInfo, InspectError, first_certificate, load_certificates, load_key};

#[derive(Debug, Error)]
pub enum KeystoreError {
    #[error("{0}")]
    Inspect(#[from] InspectError),
    #[error("cannot write PKCS #12: {0}")]
    Keystore(#[from] p12_keystore::error::Error),
    #[error("the private key is not PKCS #8")]
    KeyFormat,
}

/// How a file's content is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// PBES2 with AES-256 and HMAC-SHA-256.
    Aes256,
    /// Triple DES and HMAC-SHA-1, for what reads nothing else: Java before 8u301, Windows before 10.
    Legacy,
}

/// A key with its certificate and the CA's. All PEM.
pub fn pkcs12(
    alias: &str,
    certificate_pem: &str,
    key_pem: &str,
    ca_pem: &str,
    password: &str,
    protection: Protection,
) -> Result<Vec<u8>, KeystoreError> {
    let rustls_pki_types::PrivateKeyDer::Pkcs8(key) = load_key(key_pem.as_bytes())? else {
        return Err(KeystoreError::KeyFormat);
    };
    // While two CAs are trusted the chain has the one that issued it.
    let issuer = CertificateInfo::parse(&load_certificates(certificate_pem.as_bytes())?[0])?;
    let mut issuers = Vec::new();
    for ca in load_certificates(ca_pem.as_bytes())? {
        if issuer.is_issued_by(&CertificateInfo::parse(&ca)?) {
            issuers.push(Certificate::from_der(&ca)?);
        }
    }
    let chain = certificates(certificate_pem)?.into_iter().chain(issuers);
    let key = PrivateKey::from_der(key.secret_pkcs8_der())?;
    let chain = PrivateKeyChain::new(alias.as_bytes(), key, chain.collect::<Vec<_>>());
    let mut store = KeyStore::new();
    store.add_entry(alias, KeyStoreEntry::PrivateKeyChain(chain));
    write(&store, password, protection)
}

/// The CA's certificates alone, marked as trusted, as Java wants them in a trust store.
pub fn truststore(ca_pem: &str, password: &str, protection: Protection) -> Result<Vec<u8>, KeystoreError> {
    let mut store = KeyStore::new();
    for (at, certificate) in certificates(ca_pem)?.into_iter().enumerate() {
        store.add_entry(&format!("ca{at}"), KeyStoreEntry::Certificate(certificate));
    }
    write(&store, password, protection)
}

fn certificates(pem: &str) -> Result<Vec<Certificate>, KeystoreError> {
    load_certificates(pem.as_bytes())?.iter().map(|der| Ok(Certificate::from_der(der)?)).collect()
}

fn write(store: &KeyStore, password: &str, protection: Protection) -> Result<Vec<u8>, KeystoreError> {
    let (encryption, mac) = match protection {
        Protection::Aes256 => (EncryptionAlgorithm::PbeWithHmacSha256AndAes256, MacAlgorithm::HmacSha256),
        Protection::Legacy => (EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc, MacAlgorithm::HmacSha1),
    };
    Ok(store.writer(password).encryption_algorithm(encryption).mac_algorithm(mac).write()?)
}

/// The DER of the first certificate of a PEM text.
pub fn certificate_der(pem: &str) -> Result<Vec<u8>, InspectError> {
    first_certificate(pem).map(|der| der.to_vec())
}
