use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The name of a device, an application or a person: `[A-Za-z0-9._-]{1,64}`, neither `.` nor `..`,
/// so that it can be a file's name, an MQTT user name and a certificate's common name alike.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<str>);

/// Why a text is no identity's name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum IdentityError {
    #[error("a name has 1 to 64 characters, this has {0}")]
    Length(usize),
    #[error("a name is made of letters, digits, '.', '_' and '-', not {0:?}")]
    Character(char),
    #[error("'.' and '..' are no names")]
    Dots,
}

impl Identity {
    pub fn parse(text: &str) -> Result<Identity, IdentityError> {
        let bad = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if let Some(character) = text.chars().find(bad) {
            return Err(IdentityError::Character(character));
        }
        if text.is_empty() || text.len() > 64 {
            return Err(IdentityError::Length(text.len()));
        }
        if text == "." || text == ".." {
            return Err(IdentityError::Dots);
        }
        Ok(Identity(Arc::from(text)))
    }

    /// A name that other software gave, whatever is in it, or a certificate's whole subject
    /// (`identity: subject`): never a file's name.
    pub fn foreign(name: &str) -> Identity {
        Identity(Arc::from(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Identity, IdentityError> {
        Identity::parse(text)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_debug())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Identity {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// How well a connection is protected, weakest first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// No encryption: whoever listens on the wire reads along.
    #[default]
    Plain,
    /// TLS; the client proved itself with a password, if at all.
    Tls,
    /// TLS; the client proved itself with a certificate.
    Mtls,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Plain, Level::Tls, Level::Mtls];

    pub fn as_str(self) -> &'static str {
        match self {
            Level::Plain => "plain",
            Level::Tls => "tls",
            Level::Mtls => "mtls",
        }
    }

    pub fn parse(text: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == text)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_a_file_are_refused() {
        for good in ["device1", "a", "a.b_c-D9", "..."] {
            assert!(Identity::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a:b", "a\n", &"x".repeat(65)] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }
}
