use thiserror::Error;

use super::Topic;

/// A Topic Filter (MQTT 5 section 4.7.1), shared (`$share/NAME/FILTER`, section 4.8.2) or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Filter<'a> {
    text: &'a str,
    /// Where the filter proper begins behind `$share/NAME/`; 0 for an ordinary one.
    path_start: u32,
}

/// Why a text is no Topic Filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FilterError {
    #[error("a topic filter must have at least one character")]
    Empty,
    #[error("a topic filter has at most 65,535 bytes")]
    TooLong,
    #[error("a topic filter must not contain the character U+0000")]
    Null,
    #[error("# must stand alone in the last level")]
    MultiLevelWildcard,
    #[error("+ must stand alone in its level")]
    SingleLevelWildcard,
    #[error("a shared subscription is $share/NAME/FILTER, NAME without + and #")]
    Share,
}

impl<'a> Filter<'a> {
    pub fn parse(text: &'a str) -> Result<Filter<'a>, FilterError> {
        if text.len() > usize::from(u16::MAX) {
            return Err(FilterError::TooLong);
        }
        if memchr::memchr(0, text.as_bytes()).is_some() {
            return Err(FilterError::Null);
        }
        let mut path_start = 0;
        if let Some(rest) = text.strip_prefix("$share/") {
            // [MQTT-4.8.2-1], [MQTT-4.8.2-2]: a name of at least one character without wildcards,
            // then a filter.
            let (name, path) = rest.split_once('/').ok_or(FilterError::Share)?;
            if name.is_empty() || name.contains(['+', '#']) || path.is_empty() {
                return Err(FilterError::Share);
            }
            path_start = text.len() - path.len();
        }
        check_path(&text[path_start..])?;
        Ok(Filter { text, path_start: path_start as u32 })
    }

    /// For a text that was parsed before and kept as it was (a session's subscription).
    pub(crate) fn from_parsed(text: &'a str) -> Filter<'a> {
        Filter::parse(text).expect("parsed when it was subscribed")
    }

    /// As subscribed, with `$share/NAME/` if there was one.
    pub fn as_str(self) -> &'a str {
        self.text
    }

    /// The filter that topics are matched against.
    pub fn path(self) -> &'a str {
        &self.text[self.path_start as usize..]
    }

    /// The share name of a shared subscription.
    pub fn share(self) -> Option<&'a str> {
        (self.path_start > 0).then(|| &self.text["$share/".len()..self.path_start as usize - 1])
    }

    pub fn levels(self) -> impl Iterator<Item = &'a str> {
        self.path().split('/')
    }

    pub fn has_wildcard(self) -> bool {
        memchr::memchr2(b'+', b'#', self.path().as_bytes()).is_some()
    }

    /// Whether `topic` matches (MQTT 5 section 4.7). Runs along both texts once; the broker's
    /// index answers the same question for many filters at a time.
    pub fn matches(self, topic: Topic<'_>) -> bool {
        let path = self.path();
        // [MQTT-4.7.2-1]: a leading wildcard does not match a topic that begins with $.
        if topic.is_system() && path.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = topic.levels();
        for wanted in path.split('/') {
            if wanted == "#" {
                return true;
            }
            match levels.next() {
                Some(level) if wanted == "+" || wanted == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }
}

fn check_path(path: &str) -> Result<(), FilterError> {
    if path.is_empty() {
        return Err(FilterError::Empty);
    }
    let bytes = path.as_bytes();
    for at in memchr::memchr2_iter(b'+', b'#', bytes) {
        let starts = at == 0 || bytes[at - 1] == b'/';
        let ends = at + 1 == bytes.len();
        if bytes[at] == b'#' {
            // [MQTT-4.7.1-1].
            if !starts || !ends {
                return Err(FilterError::MultiLevelWildcard);
            }
        } else if !starts || !(ends || bytes[at + 1] == b'/') {
            // [MQTT-4.7.1-2].
            return Err(FilterError::SingleLevelWildcard);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        Filter::parse(filter).unwrap().matches(Topic::parse(topic).unwrap())
    }

    #[test]
    fn the_specifications_examples_match() {
        // MQTT 5 sections 4.7.1.2 and 4.7.1.3.
        for topic in ["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"] {
            assert!(matches("sport/tennis/player1/#", topic));
        }
        assert!(matches("sport/#", "sport"));
        assert!(matches("sport/tennis/+", "sport/tennis/player1"));
        assert!(!matches("sport/tennis/+", "sport/tennis/player1/ranking"));
        assert!(!matches("sport/+", "sport"));
        assert!(matches("sport/+", "sport/"));
        assert!(matches("+/+", "/finance"));
        assert!(matches("/+", "/finance"));
        assert!(!matches("+", "/finance"));
    }

    #[test]
    fn wildcards_do_not_reach_system_topics() {
        // [MQTT-4.7.2-1]
        assert!(!matches("#", "$SYS/uptime"));
        assert!(!matches("+/uptime", "$SYS/uptime"));
        assert!(matches("$SYS/#", "$SYS/uptime"));
        assert!(matches("$SYS/+", "$SYS/uptime"));
    }

    #[test]
    fn misplaced_wildcards_are_refused() {
        // [MQTT-4.7.1-1], [MQTT-4.7.1-2]
        for bad in ["sport/tennis#", "sport/#/ranking", "##"] {
            assert_eq!(Filter::parse(bad).unwrap_err(), FilterError::MultiLevelWildcard, "{bad}");
        }
        for bad in ["sport+", "+sport", "a/b+/c", "++"] {
            assert_eq!(Filter::parse(bad).unwrap_err(), FilterError::SingleLevelWildcard, "{bad}");
        }
    }

    #[test]
    fn shared_filters_are_taken_apart() {
        // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
        let filter = Filter::parse("$share/group/a/+").unwrap();
        assert_eq!((filter.share(), filter.path()), (Some("group"), "a/+"));
        for bad in ["$share/", "$share/x", "$share/x/", "$share//a", "$share/+/a", "$share/a#/b"] {
            assert_eq!(Filter::parse(bad).unwrap_err(), FilterError::Share, "{bad}");
        }
        assert_eq!(Filter::parse("$shared/a").unwrap().share(), None);
    }
}
