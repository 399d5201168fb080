use std::fmt;
use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{digest, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

/// How much work a hash costs whoever tries passwords.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// A person's password: argon2id with 19 MiB and two passes, OWASP's first choice.
    Human,
    /// A generated secret of 128 bits and more, which no work makes harder to guess: small
    /// parameters, so that thousands of devices can reconnect in seconds.
    Generated,
}

impl Cost {
    fn params(self) -> Params {
        let (memory_kib, passes, lanes) = match self {
            Cost::Human => (19 * 1024, 2, 1),
            Cost::Generated => (64, 1, 1),
        };
        Params::new(memory_kib, passes, lanes, Some(HASH_BYTES)).expect("within argon2's limits")
    }
}

const HASH_BYTES: usize = 32;
/// What a file may make the broker spend on one attempt.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 255;
const ITERATIONS_MAX: u32 = 10_000_000;
/// From so many iterations on PBKDF2 with SHA-512 is a good hash (OWASP).
const PBKDF2_GOOD: u32 = 210_000;
const OLD_HASH_BYTES: usize = 64;

/// A hashed password: in the PHC string format (`$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`), or one of Mosquitto's older
/// kinds (`$6$SALT$HASH`, SHA-512; `$7$ITERATIONS$SALT$HASH`, PBKDF2 with SHA-512). Salts and hashes of any length
/// are read (Mosquitto writes 12 and 64 bytes).
#[derive(Clone)]
pub struct PasswordHash {
    kind: Kind,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Kind {
    Argon2id(Params),
    Sha512,
    Pbkdf2(NonZeroU32),
}

/// Why a text is no hash that can be checked.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum HashError {
    #[error("{0:?} is not a kind of hash that is known here (argon2id, $6$ and $7$ are)")]
    Kind(String),
    #[error("the hash is cut off or damaged")]
    Damaged,
    #[error("the hash asks for more work than is allowed")]
    TooExpensive,
}

impl PasswordHash {
    /// `salt`: 16 random bytes.
    pub fn new(password: &[u8], cost: Cost, salt: [u8; 16]) -> PasswordHash {
        let params = cost.params();
        let mut hash = vec![0; HASH_BYTES];
        argon2(&params).hash_password_into(password, &salt, &mut hash).expect("lengths within argon2's limits");
        PasswordHash { kind: Kind::Argon2id(params), salt: salt.to_vec(), hash }
    }

    /// Nobody's: it costs what others cost to check, and no password is known that it is of.
    pub fn of_nobody(cost: Cost) -> PasswordHash {
        PasswordHash { kind: Kind::Argon2id(cost.params()), salt: vec![0; 16], hash: vec![0; HASH_BYTES] }
    }

    /// As `mosquitto_passwd -H sha512-pbkdf2` makes it. `salt`: 12 random bytes.
    pub fn pbkdf2(password: &[u8], iterations: NonZeroU32, salt: [u8; 12]) -> PasswordHash {
        let mut hash = vec![0; OLD_HASH_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, &salt, password, &mut hash);
        PasswordHash { kind: Kind::Pbkdf2(iterations), salt: salt.to_vec(), hash }
    }

    /// As `mosquitto_passwd -H sha512` makes it.
    pub fn sha512(password: &[u8], salt: [u8; 12]) -> PasswordHash {
        PasswordHash { kind: Kind::Sha512, salt: salt.to_vec(), hash: sha512(password, &salt) }
    }

    /// Whether it is of a kind that is quick to guess at.
    pub fn is_weak(&self) -> bool {
        match self.kind {
            Kind::Argon2id(_) => false,
            Kind::Sha512 => true,
            Kind::Pbkdf2(iterations) => iterations.get() < PBKDF2_GOOD,
        }
    }

    pub fn parse(text: &str) -> Result<PasswordHash, HashError> {
        let mut parts = text.split('$');
        let kind = match (parts.next(), parts.next()) {
            (Some(""), Some(kind)) if !kind.is_empty() => kind,
            _ => return Err(HashError::Damaged),
        };
        match kind {
            "argon2id" => {}
            "6" | "7" => return old(kind, &parts.collect::<Vec<_>>()),
            _ => return Err(HashError::Kind(format!("${kind}$"))),
        }
        let (Some("v=19"), Some(params), Some(salt), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(HashError::Damaged);
        };
        let number = |name: &str| -> Option<u32> {
            params.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        let (memory_kib, passes, lanes) =
            number("m").zip(number("t")).zip(number("p")).map(|((m, t), p)| (m, t, p)).ok_or(HashError::Damaged)?;
        // The crate multiplies the lanes without looking.
        if memory_kib > MEMORY_KIB_MAX || passes > PASSES_MAX || lanes > LANES_MAX {
            return Err(HashError::TooExpensive);
        }
        let salt = STANDARD_NO_PAD.decode(salt.trim_end_matches('=')).map_err(|_| HashError::Damaged)?;
        let hash = STANDARD_NO_PAD.decode(hash.trim_end_matches('=')).map_err(|_| HashError::Damaged)?;
        let params = Params::new(memory_kib, passes, lanes, Some(hash.len())).map_err(|_| HashError::Damaged)?;
        if salt.len() < argon2::MIN_SALT_LEN {
            return Err(HashError::Damaged);
        }
        Ok(PasswordHash { kind: Kind::Argon2id(params), salt, hash })
    }

    /// A measure of how long a check takes.
    pub fn work(&self) -> u64 {
        match &self.kind {
            Kind::Argon2id(params) => u64::from(params.m_cost()) * u64::from(params.t_cost()),
            // About a microsecond for two iterations, as for a KiB.
            Kind::Pbkdf2(iterations) => u64::from(iterations.get()) / 2,
            Kind::Sha512 => 1,
        }
    }

    /// Slow on purpose: call it where nothing else waits.
    pub fn verify(&self, password: &[u8]) -> bool {
        let mut computed = Zeroizing::new(vec![0; self.hash.len()]);
        let done = match &self.kind {
            Kind::Argon2id(params) => argon2(params).hash_password_into(password, &self.salt, &mut computed).is_ok(),
            Kind::Sha512 => {
                *computed = sha512(password, &self.salt);
                true
            }
            Kind::Pbkdf2(iterations) => {
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, *iterations, &self.salt, password, &mut computed);
                true
            }
        };
        done && bool::from(computed.ct_eq(&self.hash))
    }
}

fn sha512(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA512);
    context.update(password);
    context.update(salt);
    context.finish().as_ref().to_vec()
}

/// `SALT$HASH`, and before them the iterations of `$7$`.
fn old(kind: &str, parts: &[&str]) -> Result<PasswordHash, HashError> {
    let (kind, salt, hash) = match (kind, parts) {
        ("6", [salt, hash]) => (Kind::Sha512, salt, hash),
        ("7", [iterations, salt, hash]) => {
            let iterations: NonZeroU32 = iterations.parse().map_err(|_| HashError::Damaged)?;
            if iterations.get() > ITERATIONS_MAX {
                return Err(HashError::TooExpensive);
            }
            (Kind::Pbkdf2(iterations), salt, hash)
        }
        _ => return Err(HashError::Damaged),
    };
    let bytes = |text: &str| STANDARD_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| HashError::Damaged);
    let (salt, hash) = (bytes(salt)?, bytes(hash)?);
    if salt.is_empty() || hash.len() != OLD_HASH_BYTES {
        return Err(HashError::Damaged);
    }
    Ok(PasswordHash { kind, salt, hash })
}

fn argon2(params: &Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
}

impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
        // The older kinds have their padding.
        let padded = |bytes: &[u8]| STANDARD.encode(bytes);
        match &self.kind {
            Kind::Argon2id(params) => {
                let (m, t, p) = (params.m_cost(), params.t_cost(), params.p_cost());
                write!(f, "$argon2id$v=19$m={m},t={t},p={p}${}${}", of(&self.salt), of(&self.hash))
            }
            Kind::Sha512 => write!(f, "$6${}${}", padded(&self.salt), padded(&self.hash)),
            Kind::Pbkdf2(iterations) => write!(f, "$7${iterations}${}${}", padded(&self.salt), padded(&self.hash)),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_written_and_read_again() {
        for cost in [Cost::Human, Cost::Generated] {
            let text = PasswordHash::new(b"right", cost, [7; 16]).to_string();
            let hash = PasswordHash::parse(&text).unwrap();
            assert_eq!(hash.to_string(), text);
            assert!(hash.verify(b"right"));
            assert!(!hash.verify(b"wrong"));
            assert!(!hash.verify(b""));
        }
    }

    #[test]
    fn a_salt_of_64_bytes_is_read() {
        let salt = STANDARD_NO_PAD.encode([3; 64]);
        let mut hash = vec![0; 64];
        let params = Params::new(64, 1, 1, Some(64)).unwrap();
        argon2(&params).hash_password_into(b"x", &[3; 64], &mut hash).unwrap();
        let text = format!("$argon2id$v=19$m=64,t=1,p=1${salt}${}", STANDARD_NO_PAD.encode(&hash));
        assert!(PasswordHash::parse(&text).unwrap().verify(b"x"));
    }

    #[test]
    fn the_older_kinds_of_mosquitto_are_written_and_read() {
        let iterations = NonZeroU32::new(101).unwrap();
        let good = PasswordHash::pbkdf2(b"right", NonZeroU32::new(300_000).unwrap(), [1; 12]);
        assert!(!good.is_weak() && good.verify(b"right"));
        for hash in [PasswordHash::pbkdf2(b"right", iterations, [7; 12]), PasswordHash::sha512(b"right", [7; 12])] {
            let read = PasswordHash::parse(&hash.to_string()).unwrap();
            assert!(read.is_weak() && read.verify(b"right") && !read.verify(b"wrong") && !read.verify(b""));
            assert_eq!(read.to_string(), hash.to_string());
        }
    }

    #[test]
    fn what_is_no_hash_is_refused_by_its_reason() {
        assert_eq!(PasswordHash::parse("secret").unwrap_err(), HashError::Damaged);
        assert_eq!(PasswordHash::parse("$1$a$b").unwrap_err(), HashError::Kind("$1$".to_owned()));
        assert_eq!(PasswordHash::parse("$7$101$a$b").unwrap_err(), HashError::Damaged);
        assert_eq!(PasswordHash::parse("$7$4000000000$AAAA$AAAA").unwrap_err(), HashError::TooExpensive);
        assert_eq!(PasswordHash::parse("$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ").unwrap_err(), HashError::Damaged);
        let greedy = "$argon2id$v=19$m=4000000,t=1,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ";
        assert_eq!(PasswordHash::parse(greedy).unwrap_err(), HashError::TooExpensive);
    }
}
