//! Asking a tree for its keys: what is missing, unknown or of no sense is collected, with its place.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Problem;
use super::settings::ListenerAddress;
use super::tree::{Located, Node, Origin, Source};

/// A section's keys that nobody has asked for yet.
pub(super) struct Section {
    pub(super) origin: Origin,
    pub(super) entries: Vec<(String, Origin, Located)>,
    pub(super) asked: Vec<&'static str>,
}

impl Section {
    pub(super) fn take(&mut self, key: &'static str) -> Option<(Origin, Located)> {
        self.asked.push(key);
        let at = self.entries.iter().position(|(name, _, _)| name == key)?;
        let (_, _, value) = self.entries.remove(at);
        Some((value.origin.clone(), value))
    }
}

pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn problem(&mut self, origin: &Origin, what: String) {
        self.problems.push(self.source.problem(origin, what));
    }

    pub(super) fn relative(&self, path: &str) -> PathBuf {
        let folder = self.source.path.parent().unwrap_or(Path::new(""));
        normal(&folder.join(path))
    }

    pub(super) fn section(&mut self, located: Located, what: &str) -> Option<Section> {
        match located.node {
            Node::Section(entries) => Some(Section { origin: located.origin, entries, asked: Vec::new() }),
            Node::Empty => Some(Section { origin: located.origin, entries: Vec::new(), asked: Vec::new() }),
            other => {
                let found = format!("{what} is made of `key: value` lines, this is {}", other.kind());
                self.problem(&located.origin, found);
                None
            }
        }
    }

    pub(super) fn subsection<T>(
        &mut self,
        parent: &mut Section,
        key: &'static str,
        read: impl FnOnce(&mut Self, &mut Section) -> T,
    ) -> Option<T> {
        let (_, located) = parent.take(key)?;
        let mut section = self.section(located, key)?;
        let value = read(self, &mut section);
        self.finish(section);
        Some(value)
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(&mut self, section: Section) {
        for (name, origin, located) in section.entries {
            // A variable is named as it was set; what it led to may lie deeper.
            let origin = if matches!(located.origin, Origin::Environment(_)) { located.origin } else { origin };
            let nearest = section.asked.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &name));
            let what = match nearest.filter(|known| strsim::damerau_levenshtein(known, &name) <= 3) {
                Some(known) => format!("unknown key {name:?}; did you mean {known:?}?"),
                None => format!("unknown key {name:?}; here are known: {}", section.asked.join(", ")),
            };
            self.problem(&origin, what);
        }
    }

    pub(super) fn scalar(&mut self, section: &mut Section, key: &'static str) -> Option<(Origin, String)> {
        let (origin, located) = section.take(key)?;
        match located.node {
            Node::Scalar(text) => Some((origin, text)),
            other => {
                self.problem(&origin, format!("{key} takes a value, this is {}", other.kind()));
                None
            }
        }
    }

    pub(super) fn text(&mut self, section: &mut Section, key: &'static str) -> Option<String> {
        let (origin, text) = self.scalar(section, key)?;
        if text.trim().is_empty() {
            self.problem(&origin, format!("{key} is empty"));
            return None;
        }
        Some(text)
    }

    pub(super) fn path(&mut self, section: &mut Section, key: &'static str) -> Option<PathBuf> {
        self.text(section, key).map(|text| self.relative(&text))
    }

    /// A file that may be switched off with `none`.
    pub(super) fn optional_path(&mut self, section: &mut Section, key: &'static str, default: &str) -> Option<PathBuf> {
        match self.text(section, key) {
            Some(text) if text == "none" => None,
            Some(text) => Some(self.relative(&text)),
            None => Some(self.relative(default)),
        }
    }

    pub(super) fn boolean(&mut self, section: &mut Section, key: &'static str) -> Option<bool> {
        self.choice(section, key, &[("true", true), ("false", false)])
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &mut Section,
        key: &'static str,
        known: &[(&str, T)],
    ) -> Option<T> {
        let (origin, text) = self.scalar(section, key)?;
        // YAML 1.1 readers make a boolean of `off`; ours may or may not have.
        let text =
            if text == "false" && known.iter().any(|(name, _)| *name == "off") { "off".to_owned() } else { text };
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.problem(&origin, format!("{key} is one of {}, not {text:?}", names.join(", ")));
        }
        found
    }

    pub(super) fn number(
        &mut self,
        section: &mut Section,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let (origin, text) = self.scalar(section, key)?;
        self.in_range(&origin, key, &text, text.replace('_', "").parse().ok(), range, "a whole number")
    }

    pub(super) fn set_usize(
        &mut self,
        section: &mut Section,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        value: &mut usize,
    ) {
        if let Some(number) = self.number(section, key, range) {
            *value = number as usize;
        }
    }

    /// Bytes: `65536`, `64KiB`, `16MiB`, `1GiB`.
    pub(super) fn size(
        &mut self,
        section: &mut Section,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let (origin, text) = self.scalar(section, key)?;
        let bytes = with_unit(&text, &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1), ("", 1)]);
        self.in_range(&origin, key, &text, bytes, range, "a size such as 64KiB or 16MiB")
    }

    pub(super) fn set_size(
        &mut self,
        section: &mut Section,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        value: &mut usize,
    ) {
        if let Some(bytes) = self.size(section, key, range) {
            *value = bytes as usize;
        }
    }

    /// Seconds: `30s`, `5m`, `2h`, `7d`.
    pub(super) fn seconds(
        &mut self,
        origin: &Origin,
        key: &str,
        text: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let secs = with_unit(text, &[("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)]);
        self.in_range(origin, key, text, secs, range, "a time with its unit, such as 30s, 5m, 2h or 7d")
    }

    /// Milliseconds: `0`, `10ms`, `1s`.
    pub(super) fn millis(
        &mut self,
        section: &mut Section,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let (origin, text) = self.scalar(section, key)?;
        let millis = with_unit(&text, &[("ms", 1), ("s", 1_000)]).or((text == "0").then_some(0));
        self.in_range(&origin, key, &text, millis, range, "a time with its unit, such as 10ms or 1s")
    }

    pub(super) fn set_duration(
        &mut self,
        section: &mut Section,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        value: &mut Duration,
    ) {
        if let Some((origin, text)) = self.scalar(section, key)
            && let Some(secs) = self.seconds(&origin, key, &text, range)
        {
            *value = Duration::from_secs(secs);
        }
    }

    /// As [`Reader::seconds`]; `Some(None)` for the word that means no limit.
    pub(super) fn duration_or(
        &mut self,
        section: &mut Section,
        key: &'static str,
        unlimited: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<Option<u64>> {
        let (origin, text) = self.scalar(section, key)?;
        if text == unlimited {
            return Some(None);
        }
        self.seconds(&origin, key, &text, range).map(Some)
    }

    pub(super) fn in_range(
        &mut self,
        origin: &Origin,
        key: &str,
        text: &str,
        value: Option<u64>,
        range: std::ops::RangeInclusive<u64>,
        expected: &str,
    ) -> Option<u64> {
        match value {
            Some(number) if range.contains(&number) => value,
            Some(_) => {
                self.problem(origin, format!("{key} lies between {} and {}, not {text}", range.start(), range.end()));
                None
            }
            None => {
                self.problem(origin, format!("{key} takes {expected}, not {text:?}"));
                None
            }
        }
    }

    pub(super) fn address(&mut self, located: Located, port: u16) -> Option<ListenerAddress> {
        let Node::Scalar(text) = located.node else {
            let what = format!("address takes a value, this is {}", located.node.kind());
            self.problem(&located.origin, what);
            return None;
        };
        match text.as_str() {
            "loopback" | "localhost" => Some(ListenerAddress::Loopback(port)),
            "all" | "*" => Some(ListenerAddress::All(port)),
            off @ ("off" | "false" | "none") => {
                let what = format!(
                    "address is {off}, and a listener is not switched off: take its block out, from `- address:` on"
                );
                self.problem(&located.origin, what);
                None
            }
            other => match other.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
                Ok(address) => Some(ListenerAddress::Ip(address, port)),
                Err(_) => {
                    let what =
                        format!("address is loopback, all or an IP address, not {other:?}; the port has its own key");
                    self.problem(&located.origin, what);
                    None
                }
            },
        }
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.replace('_', "").parse().ok()?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.checked_mul(*factor)
}

/// Without `.` and `..` where they can be resolved by the text alone, so that messages are short.
fn normal(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut short = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(short.components().next_back(), Some(Component::Normal(_))) => {
                short.pop();
            }
            other => short.push(other),
        }
    }
    if short.as_os_str().is_empty() { PathBuf::from(".") } else { short }
}
