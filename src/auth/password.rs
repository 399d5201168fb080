use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
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

/// A hashed password, in the PHC string format: `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`.
/// Salts and hashes of any length are read (Mosquitto writes 64 bytes of each).
#[derive(Clone)]
pub struct PasswordHash {
    params: Params,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// Why a text is no hash that can be checked.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum HashError {
    #[error("{0:?} is not a kind of hash that is known here (argon2id is)")]
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
        PasswordHash { params, salt: salt.to_vec(), hash }
    }

    /// Nobody's: it costs what others cost to check, and no password is known that it is of.
    pub fn of_nobody(cost: Cost) -> PasswordHash {
        PasswordHash { params: cost.params(), salt: vec![0; 16], hash: vec![0; HASH_BYTES] }
    }

    pub fn parse(text: &str) -> Result<PasswordHash, HashError> {
        let mut parts = text.split('$');
        let kind = match (parts.next(), parts.next()) {
            (Some(""), Some(kind)) if !kind.is_empty() => kind,
            _ => return Err(HashError::Damaged),
        };
        if kind != "argon2id" {
            return Err(HashError::Kind(format!("${kind}$")));
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
        Ok(PasswordHash { params, salt, hash })
    }

    /// A measure of how long a check takes.
    pub fn work(&self) -> u64 {
        u64::from(self.params.m_cost()) * u64::from(self.params.t_cost())
    }

    /// Slow on purpose: call it where nothing else waits.
    pub fn verify(&self, password: &[u8]) -> bool {
        let mut computed = Zeroizing::new(vec![0; self.hash.len()]);
        argon2(&self.params).hash_password_into(password, &self.salt, &mut computed).is_ok()
            && bool::from(computed.ct_eq(&self.hash))
    }
}

fn argon2(params: &Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
}

impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, t, p) = (self.params.m_cost(), self.params.t_cost(), self.params.p_cost());
        let (salt, hash) = (STANDARD_NO_PAD.encode(&self.salt), STANDARD_NO_PAD.encode(&self.hash));
        write!(f, "$argon2id$v=19$m={m},t={t},p={p}${salt}${hash}")
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
    fn what_is_no_hash_is_refused_by_its_reason() {
        assert_eq!(PasswordHash::parse("secret").unwrap_err(), HashError::Damaged);
        assert_eq!(PasswordHash::parse("$7$101$a$b").unwrap_err(), HashError::Kind("$7$".to_owned()));
        assert_eq!(PasswordHash::parse("$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ").unwrap_err(), HashError::Damaged);
        let greedy = "$argon2id$v=19$m=4000000,t=1,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ";
        assert_eq!(PasswordHash::parse(greedy).unwrap_err(), HashError::TooExpensive);
    }
}
