use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A Client Identifier (MQTT 5 section 3.1.3.1): up to 65,535 bytes of UTF-8, never empty (the
/// gate assigns one where a client sent none). Cloning shares the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// `None` for an empty text.
    pub fn new(text: &str) -> Option<ClientId> {
        if text.is_empty() { None } else { Some(ClientId(Arc::from(text))) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Looked up by its text.
impl Borrow<str> for ClientId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Escaped: a client id is a peer's text.
impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_debug())
    }
}
