use std::fmt;
use std::net::IpAddr;

use thiserror::Error;
use x509_parser::extensions::GeneralName;

/// Longest that a server or client certificate lives, days: what browsers and phones accept.
pub const LEAF_DAYS_MAX: u32 = 397;
/// How long the CA lives unless told otherwise, days.
pub const CA_DAYS: u32 = 3653;
/// How long a CA below a root lives, days.
pub const ISSUING_CA_DAYS: u32 = 1826;

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

/// What a CA may issue for, where that is constrained (RFC 5280 section 4.2.1.10).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Permitted {
    /// This name and all below it.
    Dns(String),
    /// A network: its address and how many of its bits count.
    Network(IpAddr, u8),
}

impl Permitted {
    /// A host name, an address or `NETWORK/BITS`.
    pub fn parse(text: &str) -> Result<Permitted, ServerNameError> {
        let wrong = || ServerNameError(text.to_owned());
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let bits: u8 = bits.parse().map_err(|_| wrong())?;
            return (bits <= width(&address)).then_some(Permitted::Network(address, bits)).ok_or_else(wrong);
        }
        Ok(Permitted::from(&ServerName::parse(text.strip_prefix('.').unwrap_or(text))?))
    }

    pub(super) fn of(name: &GeneralName<'_>) -> Option<Permitted> {
        match name {
            GeneralName::DNSName(name) => Some(Permitted::Dns(name.trim_start_matches('.').to_ascii_lowercase())),
            GeneralName::IPAddress(bytes) => {
                let (address, mask) = bytes.split_at(bytes.len() / 2);
                let (address, mask, width) = match bytes.len() {
                    8 => {
                        let mask = u32::from_be_bytes(mask.try_into().ok()?);
                        (IpAddr::from(<[u8; 4]>::try_from(address).ok()?), u128::from(mask) << 96, 32)
                    }
                    32 => {
                        let mask = u128::from_be_bytes(mask.try_into().ok()?);
                        (IpAddr::from(<[u8; 16]>::try_from(address).ok()?), mask, 128)
                    }
                    _ => return None,
                };
                // RFC 4632: ones, then zeros.
                let bits = mask.leading_ones();
                (mask.count_ones() == bits && bits <= width).then_some(Permitted::Network(address, bits as u8))
            }
            _ => None,
        }
    }

    pub fn covers(&self, name: &ServerName) -> bool {
        match (self, name) {
            (Permitted::Dns(parent), ServerName::Dns(name)) => {
                let name = name.strip_prefix("*.").unwrap_or(name);
                name == parent || name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
            }
            (Permitted::Network(IpAddr::V4(network), bits), ServerName::Address(IpAddr::V4(address))) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(*bits)
            }
            (Permitted::Network(IpAddr::V6(network), bits), ServerName::Address(IpAddr::V6(address))) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(*bits)
            }
            _ => false,
        }
    }
}

fn width(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl From<&ServerName> for Permitted {
    fn from(name: &ServerName) -> Permitted {
        match name {
            ServerName::Dns(name) => Permitted::Dns(name.strip_prefix("*.").unwrap_or(name).to_owned()),
            ServerName::Address(address) => Permitted::Network(*address, width(address)),
        }
    }
}

impl fmt::Display for Permitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Permitted::Dns(name) => f.write_str(name),
            Permitted::Network(address, bits) if *bits == width(address) => write!(f, "{address}"),
            Permitted::Network(address, bits) => write!(f, "{address}/{bits}"),
        }
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
    fn a_constraint_covers_what_lies_below_it() {
        let covers = |constraint: &str, name: &str| {
            Permitted::parse(constraint).unwrap().covers(&ServerName::parse(name).unwrap())
        };
        assert!(covers("water.example", "broker.water.example") && covers("water.example", "water.example"));
        assert!(!covers("water.example", "firewater.example") && !covers("water.example", "10.0.0.1"));
        assert!(covers("10.1.0.0/16", "10.1.2.3") && !covers("10.1.0.0/16", "10.2.0.1"));
        assert!(covers("192.0.2.7", "192.0.2.7") && !covers("192.0.2.7", "192.0.2.6"));
        assert!(covers("2001:db8::/32", "2001:db8::7") && !covers("0.0.0.0/0", "::1"));
        for bad in ["10.0.0.0/33", "::/129", "a b", "10.0.0.0/x"] {
            assert!(Permitted::parse(bad).is_err(), "{bad}");
        }
    }

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
