//! One-time tokens with which a device asks for its first certificate.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::inspect::hex;
use crate::types::Identity;

/// What a device is given: its name, a secret of 192 bits, and the SHA-256 of the CA's certificate, so that it
/// knows whom it speaks to the first time. As text `NAME.SECRET.FINGERPRINT`.
#[derive(Clone)]
pub struct Token {
    pub name: Identity,
    secret: Zeroizing<String>,
    pub ca_fingerprint: [u8; 32],
}

/// Why a token is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TokenError {
    #[error("it is no token: NAME.SECRET.FINGERPRINT is expected, as `lockgate enroll token` prints it")]
    Malformed,
    #[error("the token is not known here, or is not for this name")]
    Unknown,
    #[error("the token has expired")]
    Expired,
    #[error("the token was used already")]
    Used,
}

impl Token {
    pub fn new(name: &Identity, ca_der: &[u8]) -> Token {
        let mut random = Zeroizing::new([0; 24]);
        getrandom::fill(&mut *random).expect("the kernel's random generator");
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(*random));
        Token { name: name.clone(), secret, ca_fingerprint: Sha256::digest(ca_der).into() }
    }

    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let mut parts = text.trim().rsplitn(3, '.');
        let (fingerprint, secret, name) = (parts.next(), parts.next(), parts.next());
        let (Some(fingerprint), Some(secret), Some(name)) = (fingerprint, secret, name) else {
            return Err(TokenError::Malformed);
        };
        let fingerprint = URL_SAFE_NO_PAD.decode(fingerprint).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Token {
            name: Identity::parse(name).map_err(|_| TokenError::Malformed)?,
            secret: Zeroizing::new(secret.to_owned()),
            ca_fingerprint: fingerprint.ok_or(TokenError::Malformed)?,
        })
    }

    pub fn text(&self) -> Zeroizing<String> {
        let fingerprint = URL_SAFE_NO_PAD.encode(self.ca_fingerprint);
        Zeroizing::new(format!("{}.{}.{fingerprint}", self.name, self.secret.as_str()))
    }

    fn digest(&self) -> String {
        hex(&Sha256::digest(self.secret.as_bytes()))
    }
}

/// A token as it is kept: by the hash of its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Record {
    name: String,
    digest: String,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
    /// How often it may still be used; 0: it is kept to say so.
    uses: u32,
}

/// All tokens of a site.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tokens(Vec<Record>);

/// How long after its end a token is known by name, so that its refusal says why.
const REMEMBERED: time::Duration = time::Duration::days(7);

impl Tokens {
    /// An empty text is an empty list.
    pub fn parse(text: &str) -> Result<Tokens, serde_json::Error> {
        if text.trim().is_empty() { Ok(Tokens::default()) } else { serde_json::from_str(text) }
    }

    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data") + "\n"
    }

    pub fn add(&mut self, token: &Token, expires: OffsetDateTime, uses: u32, now: OffsetDateTime) {
        self.0.retain(|record| record.expires + REMEMBERED > now);
        let expires = expires.replace_nanosecond(0).expect("zero is in range");
        self.0.push(Record { name: token.name.to_string(), digest: token.digest(), expires, uses });
    }

    /// Uses a token up, or says why not. Every known one is compared, in the same time.
    pub fn spend(&mut self, token: &Token, now: OffsetDateTime) -> Result<(), TokenError> {
        let digest = token.digest();
        let mut found = None;
        for (at, record) in self.0.iter().enumerate() {
            let is_it = record.digest.as_bytes().ct_eq(digest.as_bytes());
            if bool::from(is_it) {
                found = Some(at);
            }
        }
        let record = found.map(|at| &mut self.0[at]).filter(|record| record.name == token.name.as_str());
        let record = record.ok_or(TokenError::Unknown)?;
        if record.uses == 0 {
            return Err(TokenError::Used);
        }
        if record.expires <= now {
            return Err(TokenError::Expired);
        }
        record.uses -= 1;
        Ok(())
    }

    /// Takes away the tokens of a name, which was revoked; how many of them were still good.
    pub fn forget(&mut self, name: &Identity, now: OffsetDateTime) -> usize {
        let is_good = |record: &&Record| record.name == name.as_str() && record.uses > 0 && record.expires > now;
        let good = self.0.iter().filter(is_good).count();
        self.0.retain(|record| record.name != name.as_str());
        good
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn a_token_is_for_one_name_for_a_time_and_for_so_many_uses() {
        let now = OffsetDateTime::now_utc();
        let name = Identity::parse("pump.7").unwrap();
        let token = Token::new(&name, b"the CA");
        let mut tokens = Tokens::default();
        tokens.add(&token, now + Duration::hours(1), 2, now);
        let text = tokens.text();
        assert!(!text.contains(token.secret.as_str()), "{text}");
        let mut tokens = Tokens::parse(&text).unwrap();
        let given = Token::parse(&format!(" {}\n", token.text().as_str())).unwrap();
        assert_eq!((given.name.as_str(), given.ca_fingerprint), ("pump.7", token.ca_fingerprint));
        let other = Token { name: Identity::parse("pump8").unwrap(), ..given.clone() };
        assert_eq!(tokens.spend(&other, now), Err(TokenError::Unknown));
        assert_eq!(tokens.spend(&Token::new(&name, b"the CA"), now), Err(TokenError::Unknown));
        assert_eq!(tokens.spend(&given, now + Duration::hours(2)), Err(TokenError::Expired));
        assert_eq!([tokens.spend(&given, now), tokens.spend(&given, now)], [Ok(()), Ok(())]);
        assert_eq!(tokens.spend(&given, now), Err(TokenError::Used));
        assert_eq!(tokens.forget(&name, now), 0);
        tokens.add(&token, now + Duration::hours(1), 1, now);
        assert_eq!([tokens.forget(&name, now), tokens.forget(&name, now)], [1, 0]);
        assert_eq!(tokens.spend(&given, now), Err(TokenError::Unknown));
        for bad in ["", "a", "a.b", "a.b.c", "a b.c.d", "..", "../x.s.AAAA"] {
            assert_eq!(Token::parse(bad).err(), Some(TokenError::Malformed), "{bad}");
        }
    }
}
