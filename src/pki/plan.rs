use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

/// Longest that a server or client certificate lives, days: what browsers and phones accept.
pub const LEAF_DAYS_MAX: u32 = 397;
/// How long the CA lives unless told otherwise, days.
pub const CA_DAYS: u32 = 3653;

/// The kind of a key pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KeyType {
    #[default]
    EcdsaP256,
    /// For old microcontrollers.
    Rsa2048,
    Rsa3072,
    /// mbedTLS has none.
    Ed25519,
}

impl KeyType {
    pub const ALL: [KeyType; 4] = [KeyType::EcdsaP256, KeyType::Rsa2048, KeyType::Rsa3072, KeyType::Ed25519];

    pub fn as_str(self) -> &'static str {
        match self {
            KeyType::EcdsaP256 => "ecdsa-p256",
            KeyType::Rsa2048 => "rsa-2048",
            KeyType::Rsa3072 => "rsa-3072",
            KeyType::Ed25519 => "ed25519",
        }
    }

    pub fn parse(text: &str) -> Option<KeyType> {
        KeyType::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name or address that a server certificate is for (RFC 5280 section 4.2.1.6).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum ServerName {
    Dns(String),
    Address(IpAddr),
}

#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0:?} is no host name and no IP address")]
pub struct ServerNameError(pub String);

impl ServerName {
    /// A host name (letters, digits, `-`, labels of up to 63 characters, `*.` in front allowed) or
    /// an IP address; `DNS:` and `IP:` in front are understood.
    pub fn parse(text: &str) -> Result<ServerName, ServerNameError> {
        let bare = text.strip_prefix("DNS:").or(text.strip_prefix("IP:")).unwrap_or(text);
        let bare = bare.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(bare);
        if let Ok(address) = bare.parse() {
            return Ok(ServerName::Address(address));
        }
        let name = bare.to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let host = name.strip_prefix("*.").unwrap_or(&name);
        if name.len() > 253 || !host.split('.').all(label) {
            return Err(ServerNameError(text.to_owned()));
        }
        Ok(ServerName::Dns(name))
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerName::Dns(name) => f.write_str(name),
            ServerName::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        assert_eq!(ServerName::parse("Broker.Example").unwrap(), ServerName::Dns("broker.example".to_owned()));
        assert_eq!(ServerName::parse("IP:10.0.0.7").unwrap(), ServerName::Address("10.0.0.7".parse().unwrap()));
        assert_eq!(ServerName::parse("[::1]").unwrap(), ServerName::Address("::1".parse().unwrap()));
        for bad in ["", "a b", "-a", "a..b", "a_b", "ä.example", "*", "a.*.b"] {
            assert!(ServerName::parse(bad).is_err(), "{bad}");
        }
    }
}
