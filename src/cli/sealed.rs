//! A file that only a passphrase opens: Argon2id (RFC 9106) makes the key, AES-256-GCM seals the whole.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::Failure;

/// What a sealed file begins with; the digit is its format.
const MAGIC: &[u8; 16] = b"lockgate-sealed1";
const SALT: usize = 16;
const HEADER: usize = MAGIC.len() + SALT + NONCE_LEN;
/// Of Argon2id: 64 MiB, three passes, as RFC 9106 section 4 recommends where memory is short.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;

fn key(passphrase: &str, salt: &[u8]) -> LessSafeKey {
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(32)).expect("parameters within RFC 9106");
    let mut bytes = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut *bytes)
        .expect("a salt and an output of allowed lengths");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*bytes).expect("32 bytes"))
}

/// Seals `plain`.
pub(super) fn seal(passphrase: &str, plain: Zeroizing<Vec<u8>>) -> Vec<u8> {
    let mut header = [0; HEADER];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    getrandom::fill(&mut header[MAGIC.len()..]).expect("the kernel's random generator");
    let (salt, nonce) = header[MAGIC.len()..].split_at(SALT);
    let nonce = Nonce::try_assume_unique_for_key(nonce).expect("12 bytes");
    let mut sealed = plain;
    let tag = key(passphrase, salt)
        .seal_in_place_separate_tag(nonce, Aad::from(&header), &mut sealed)
        .expect("less than 64 GiB");
    [&header[..], &sealed, tag.as_ref()].concat()
}

/// Opens what [`seal`] made.
pub(super) fn open(passphrase: &str, mut sealed: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if sealed.len() < HEADER || !sealed.starts_with(MAGIC) {
        return Err(Failure::new("the sealed site is damaged, or was made by a newer Lockgate"));
    }
    let mut body = sealed.split_off(HEADER);
    let (salt, nonce) = sealed[MAGIC.len()..].split_at(SALT);
    let nonce = Nonce::try_assume_unique_for_key(nonce).expect("12 bytes");
    let opened = key(passphrase, salt).open_in_place(nonce, Aad::from(&sealed), &mut body);
    let len = opened.map_err(|_| Failure::new("the passphrase is wrong, or the sealed site is damaged"))?.len();
    body.truncate(len);
    Ok(Zeroizing::new(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_opens_what_it_sealed_and_no_bit_can_change() {
        let plain = Zeroizing::new(b"ca.key".repeat(100));
        let sealed = seal("correct horse", plain.clone());
        assert!(!sealed.windows(6).any(|window| window == b"ca.key"));
        assert_eq!(*open("correct horse", sealed.clone()).unwrap(), *plain);
        assert!(open("correct hors", sealed.clone()).is_err());
        for at in [3, 20, 40, 60, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open("correct horse", changed).is_err(), "byte {at}");
        }
        assert!(open("correct horse", sealed[..HEADER - 1].to_vec()).is_err());
        assert_ne!(seal("correct horse", plain.clone()), sealed, "salt and nonce are new each time");
    }
}
