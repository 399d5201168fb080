use thiserror::Error;

/// A Topic Name (MQTT 5 section 4.7): at least one character, no wildcard, no U+0000.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Topic<'a>(&'a str);

/// Why a text is no Topic Name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TopicError {
    #[error("a topic name must have at least one character")]
    Empty,
    #[error("a topic name must not contain the wildcards + or #")]
    Wildcard,
    #[error("a topic name must not contain the character U+0000")]
    Null,
    #[error("a topic name has at most 65,535 bytes")]
    TooLong,
}

impl<'a> Topic<'a> {
    pub fn parse(text: &'a str) -> Result<Topic<'a>, TopicError> {
        // [MQTT-4.7.3-1], [MQTT-4.7.3-2], [MQTT-4.7.3-3], [MQTT-3.3.2-2].
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        if text.len() > usize::from(u16::MAX) {
            return Err(TopicError::TooLong);
        }
        if memchr::memchr2(b'+', b'#', text.as_bytes()).is_some() {
            return Err(TopicError::Wildcard);
        }
        if memchr::memchr(0, text.as_bytes()).is_some() {
            return Err(TopicError::Null);
        }
        Ok(Topic(text))
    }

    /// For a text that was parsed before and kept as it was (a stored message's topic).
    pub(crate) fn from_parsed(text: &'a str) -> Topic<'a> {
        Topic(text)
    }

    pub fn as_str(self) -> &'a str {
        self.0
    }

    pub fn levels(self) -> impl Iterator<Item = &'a str> {
        self.0.split('/')
    }

    /// A topic that begins with `$` is kept out of `#` and `+` at the first level [MQTT-4.7.2-1].
    pub fn is_system(self) -> bool {
        self.0.as_bytes().first() == Some(&b'$')
    }
}
