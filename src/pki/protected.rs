//! A private key under a passphrase: PKCS #8 (RFC 5958), PBES2 (RFC 8018) with scrypt (RFC 7914) and AES-256.

use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::pkcs5::scrypt;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use thiserror::Error;
use zeroize::Zeroizing;

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
    let key = sealed.decrypt(passphrase).map_err(|_| ProtectedKeyError::WrongPassphrase)?;
    key.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|_| ProtectedKeyError::Format)
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
