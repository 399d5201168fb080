//! A private key under a passphrase: PKCS #8 (RFC 5958), PBES2 (RFC 8018) with scrypt (RFC 7914) and AES-256.

use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::pkcs5::scrypt;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use rustls_pki_types::PrivateKeyDer;
use thiserror::Error;
use zeroize::Zeroizing;

use super::inspect::load_key;

/// 16 MiB and five passes: what OWASP recommends where OpenSSL is to open it too, which takes no more memory.
const LOG_N: u8 = 14;
const R: u32 = 8;
const P: u32 = 5;
const LABEL: &str = "ENCRYPTED PRIVATE KEY";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProtectedKeyError {
    #[error("it is no private key as PKCS #8")]
    Format,
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    #[error(
        "it is sealed in a way that is not known here: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW` makes it anew"
    )]
    Unknown,
}

/// Whether a PEM text is a key under a passphrase.
pub fn is_protected(pem: &str) -> bool {
    pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
}

/// Puts a key (PEM, PKCS #8) under a passphrase.
pub fn protect(pem: &str, passphrase: &str) -> Result<Zeroizing<String>, ProtectedKeyError> {
    let (_, key) = SecretDocument::from_pem(pem).map_err(|_| ProtectedKeyError::Format)?;
    let key = PrivateKeyInfoRef::try_from(key.as_bytes()).map_err(|_| ProtectedKeyError::Format)?;
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt).expect("the kernel's random generator");
    getrandom::fill(&mut iv).expect("the kernel's random generator");
    let params = scrypt::Params::new(LOG_N, R, P).expect("parameters within RFC 7914");
    let params = Parameters::generate_scrypt_aes256cbc(params, &salt, iv).expect("a salt of an allowed length");
    let sealed = key.encrypt_with_params(params, passphrase).map_err(|_| ProtectedKeyError::Format)?;
    sealed.to_pem(LABEL, LineEnding::LF).map_err(|_| ProtectedKeyError::Format)
}

/// The key under a passphrase; PEM, PKCS #8.
pub fn open(pem: &str, passphrase: &str) -> Result<Zeroizing<String>, ProtectedKeyError> {
    let (_, sealed) = SecretDocument::from_pem(pem).map_err(|_| ProtectedKeyError::Format)?;
    let sealed = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes()).map_err(|_| ProtectedKeyError::Format)?;
    let key = sealed.decrypt(passphrase).map_err(|error| match error {
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed) | pkcs8::Error::Asn1(_) => {
            ProtectedKeyError::WrongPassphrase
        }
        _ => ProtectedKeyError::Unknown,
    })?;
    key.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|_| ProtectedKeyError::Format)
}

/// A key (PEM) as PKCS #8, whatever it was: PKCS #1, SEC 1.
pub fn to_pkcs8(pem: &str) -> Result<Zeroizing<String>, ProtectedKeyError> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, RsaKeyPair,
    };
    let key = load_key(pem.as_bytes()).map_err(|_| ProtectedKeyError::Format)?;
    let der: Zeroizing<Vec<u8>> = match &key {
        PrivateKeyDer::Pkcs8(_) => return Ok(Zeroizing::new(pem.to_owned())),
        PrivateKeyDer::Pkcs1(key) => {
            let pair = RsaKeyPair::from_der(key.secret_pkcs1_der()).map_err(|_| ProtectedKeyError::Format)?;
            let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| ProtectedKeyError::Format)?;
            Zeroizing::new(der.as_ref().to_vec())
        }
        PrivateKeyDer::Sec1(key) => {
            let read = |algorithm| EcdsaKeyPair::from_private_key_der(algorithm, key.secret_sec1_der());
            let pair = read(&ECDSA_P256_SHA256_ASN1_SIGNING).or_else(|_| read(&ECDSA_P384_SHA384_ASN1_SIGNING));
            let pair = pair.map_err(|_| ProtectedKeyError::Format)?;
            let document = pair.to_pkcs8v1().map_err(|_| ProtectedKeyError::Format)?;
            Zeroizing::new(document.as_ref().to_vec())
        }
        _ => return Err(ProtectedKeyError::Format),
    };
    let document = SecretDocument::try_from(der.as_slice()).map_err(|_| ProtectedKeyError::Format)?;
    document.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|_| ProtectedKeyError::Format)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::pki::{Authority, KeyType};

    #[test]
    fn only_the_passphrase_opens_a_key() {
        for kind in KeyType::ALL {
            let (_, ca) = Authority::create("site", kind, 10, OffsetDateTime::now_utc()).unwrap();
            let sealed = protect(&ca.key_pem, "open sesame").unwrap();
            assert!(is_protected(&sealed) && !is_protected(&ca.key_pem));
            assert_eq!(open(&sealed, "open sesam").unwrap_err(), ProtectedKeyError::WrongPassphrase);
            let opened = open(&sealed, "open sesame").unwrap();
            assert!(Authority::load(&ca.certificate_pem, &opened, OffsetDateTime::now_utc()).is_ok(), "{kind}");
        }
        assert_eq!(open("nothing", "x").unwrap_err(), ProtectedKeyError::Format);
    }
}
