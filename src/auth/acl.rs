//! The ACL file, in Mosquitto's grammar.
//!
//! ```text
//! topic [read|write|readwrite|deny] TOPIC     before any user: for anonymous clients
//! user NAME
//! topic [read|write|readwrite|deny] TOPIC     for that user
//! pattern [read|write|readwrite|deny] TOPIC   for all; %u is the user name, %c the client id
//! ```
//!
//! A user's own lines decide first, then the patterns; in each of the two a `deny` comes before
//! what allows. What nothing allows is denied. Topics that begin with `$` need a line that begins
//! with `$`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use thiserror::Error;

use crate::types::{Filter, FilterError, Realm, Topic};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Receive messages of a topic.
    Read,
    /// Publish to a topic.
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
    Deny,
}

impl Access {
    fn allows(self, operation: Operation) -> bool {
        match self {
            Access::ReadWrite => true,
            Access::Read => operation == Operation::Read,
            Access::Write => operation == Operation::Write,
            Access::Deny => false,
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subject<'a> {
    /// `None`: anonymous.
    pub identity: Option<&'a str>,
    pub client_id: &'a str,
    /// Who vouches for it.
    pub realm: Realm,
}

/// An answer and the line that gave it (`None`: no line says anything, which denies).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub allowed: bool,
    pub line: Option<u32>,
}

/// A line that is not in the grammar.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AclError {
    #[error("line {line}: {word:?} is not one of user, topic and pattern")]
    Keyword { line: u32, word: String },
    #[error("line {line}: {word:?} is not one of read, write, readwrite and deny")]
    Access { line: u32, word: String },
    #[error("line {line}: nothing follows {word:?}")]
    Incomplete { line: u32, word: &'static str },
    #[error("line {line}: {topic:?} is no topic filter: {error}")]
    Filter { line: u32, topic: String, error: FilterError },
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    line: u32,
    access: Access,
    filter: Box<str>,
    /// Contains `%u` or `%c`.
    substitutes: bool,
}

/// Who may do what.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Acl {
    anonymous: Vec<Rule>,
    users: BTreeMap<Box<str>, Vec<Rule>>,
    patterns: Vec<Rule>,
    /// Where listeners are in several: nothing else holds then.
    realms: BTreeMap<Realm, Acl>,
}

impl Acl {
    /// What holds without a file: every topic but those that begin with `$`, of which the broker's
    /// own may be read.
    pub fn open() -> Acl {
        Acl::open_with(false, false)
    }

    /// The same, with what the broker keeps of Sparkplug's births, and with questions to the broker itself.
    pub fn open_with(sparkplug: bool, control: bool) -> Acl {
        let mut text = "pattern readwrite #\npattern read $SYS/#\n".to_owned();
        if sparkplug {
            text.push_str("pattern read $sparkplug/#\n");
        }
        if control {
            text.push_str("pattern readwrite $CONTROL/#\n");
        }
        Acl::parse(&text).expect("a sound file")
    }

    /// All lines that are wrong are reported, not the first alone.
    pub fn parse(text: &str) -> Result<Acl, Vec<AclError>> {
        let mut acl = Acl::default();
        let mut errors = Vec::new();
        let mut user: Option<Box<str>> = None;
        for (at, raw) in text.lines().enumerate() {
            let line = at as u32 + 1;
            let content = raw.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (word, rest) = content.split_once([' ', '\t']).unwrap_or((content, ""));
            let rest = rest.trim();
            let list = match word {
                "user" if rest.is_empty() => {
                    errors.push(AclError::Incomplete { line, word: "user" });
                    continue;
                }
                "user" => {
                    acl.users.entry(rest.into()).or_default();
                    user = Some(rest.into());
                    continue;
                }
                "topic" => match &user {
                    Some(name) => acl.users.get_mut(name).expect("entered at its line"),
                    None => &mut acl.anonymous,
                },
                "pattern" => &mut acl.patterns,
                _ => {
                    errors.push(AclError::Keyword { line, word: word.to_owned() });
                    continue;
                }
            };
            match rule(line, rest, word == "pattern") {
                Ok(rule) => list.push(rule),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(acl) } else { Err(errors) }
    }

    /// One for the clients of each realm. Who came in by one that is not there any more may do what all allow.
    pub fn of_realms(realms: BTreeMap<Realm, Acl>) -> Acl {
        Acl { realms, ..Acl::default() }
    }

    /// Whether any listener is in that realm.
    pub fn knows(&self, realm: Realm) -> bool {
        if self.realms.is_empty() { realm == Realm::SITE } else { self.realms.contains_key(&realm) }
    }

    /// Whether all that judge a client say yes; `None` where there is one ACL for everybody.
    fn all_say(&self, realm: Realm, yes: impl Fn(&Acl) -> bool) -> Option<bool> {
        match self.realms.get(&realm) {
            _ if self.realms.is_empty() => None,
            Some(acl) => Some(yes(acl)),
            None => Some(self.realms.values().all(yes)),
        }
    }

    pub fn check(&self, subject: Subject<'_>, operation: Operation, topic: Topic<'_>) -> Decision {
        if let Some(acl) = self.realms.get(&subject.realm) {
            return acl.check(subject, operation, topic);
        }
        if let Some(allowed) = self.all_say(subject.realm, |acl| acl.check(subject, operation, topic).allowed) {
            return Decision { allowed, line: None };
        }
        let own = self.own(subject);
        decide(own, subject, operation, topic)
            .or_else(|| decide(&self.patterns, subject, operation, topic))
            .unwrap_or(Decision { allowed: false, line: None })
    }

    /// Whether every topic that does not begin with `$` is allowed, so that no message has to be
    /// asked about: some line allows `#` and none denies.
    pub fn allows_all(&self, subject: Subject<'_>, operation: Operation) -> bool {
        if let Some(all) = self.all_say(subject.realm, |acl| acl.allows_all(subject, operation)) {
            return all;
        }
        let all = |rules: &[Rule]| rules.iter().any(|rule| rule.access.allows(operation) && &*rule.filter == "#");
        let denies = |rules: &[Rule]| rules.iter().any(|rule| rule.access == Access::Deny);
        let own = self.own(subject);
        !denies(own) && (all(own) || (!denies(&self.patterns) && all(&self.patterns)))
    }

    /// Whether a subscription could match anything that may be read.
    pub fn may_subscribe(&self, subject: Subject<'_>, filter: Filter<'_>) -> bool {
        if let Some(may) = self.all_say(subject.realm, |acl| acl.may_subscribe(subject, filter)) {
            return may;
        }
        let own = self.own(subject);
        // A topic that an own line decides never reaches the patterns.
        reaches(own, own, subject, filter) || {
            let mut denies: Vec<&Rule> = own.iter().filter(|rule| rule.access == Access::Deny).collect();
            denies.extend(self.patterns.iter().filter(|rule| rule.access == Access::Deny));
            let denies: Vec<Rule> = denies.into_iter().cloned().collect();
            reaches(&self.patterns, &denies, subject, filter)
        }
    }

    /// Users that have lines of their own.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        let listed = std::iter::once(self).chain(self.realms.values());
        listed.flat_map(|acl| acl.users.keys()).map(|name| &**name)
    }

    fn own(&self, subject: Subject<'_>) -> &[Rule] {
        match subject.identity {
            Some(name) => self.users.get(name).map_or(&[], Vec::as_slice),
            None => &self.anonymous,
        }
    }
}

fn rule(line: u32, rest: &str, pattern: bool) -> Result<Rule, AclError> {
    let word = if pattern { "pattern" } else { "topic" };
    let (access, topic) = match rest.split_once([' ', '\t']) {
        Some(("read", topic)) => (Access::Read, topic.trim()),
        Some(("write", topic)) => (Access::Write, topic.trim()),
        Some(("readwrite", topic)) => (Access::ReadWrite, topic.trim()),
        Some(("deny", topic)) => (Access::Deny, topic.trim()),
        // A topic with a space in it needs its access before it: a misspelt `deny` must not allow.
        Some((word, _)) => return Err(AclError::Access { line, word: word.to_owned() }),
        None => (Access::ReadWrite, rest),
    };
    if topic.is_empty() || (rest == topic && matches!(rest, "read" | "write" | "readwrite" | "deny")) {
        return Err(AclError::Incomplete { line, word });
    }
    let refused = |error| AclError::Filter { line, topic: topic.to_owned(), error };
    if Filter::parse(topic).map_err(refused)?.share().is_some() {
        // Topics are permitted, not subscriptions.
        return Err(refused(FilterError::Share));
    }
    let substitutes = pattern && (topic.contains("%u") || topic.contains("%c"));
    Ok(Rule { line, access, filter: topic.into(), substitutes })
}

impl Rule {
    /// The filter for this subject; `None` where a pattern names what the subject does not have, or
    /// what would widen it: a name with a wildcard in it matches nothing.
    fn filter_for(&self, subject: Subject<'_>) -> Option<Cow<'_, str>> {
        if !self.substitutes {
            return Some(Cow::Borrowed(&self.filter));
        }
        let mut text = String::with_capacity(self.filter.len() + subject.client_id.len());
        let mut rest = &*self.filter;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            let (value, skip) = match rest.as_bytes().get(at + 1) {
                Some(b'u') => (subject.identity?, 2),
                Some(b'c') => (subject.client_id, 2),
                _ => ("%", 1),
            };
            if skip == 2 && (value.contains(['+', '#']) || (text.is_empty() && value.starts_with('$'))) {
                return None;
            }
            text.push_str(value);
            rest = &rest[at + skip..];
        }
        text.push_str(rest);
        Some(Cow::Owned(text))
    }
}

fn decide(rules: &[Rule], subject: Subject<'_>, operation: Operation, topic: Topic<'_>) -> Option<Decision> {
    let matches = |rule: &Rule| {
        rule.filter_for(subject).is_some_and(|filter| {
            (!topic.is_system() || rule.filter.starts_with('$'))
                && Filter::parse(&filter).is_ok_and(|filter| filter.matches(topic))
        })
    };
    let denied = rules.iter().find(|rule| rule.access == Access::Deny && matches(rule));
    if let Some(rule) = denied {
        return Some(Decision { allowed: false, line: Some(rule.line) });
    }
    let allowed = rules.iter().find(|rule| rule.access.allows(operation) && matches(rule));
    allowed.map(|rule| Decision { allowed: true, line: Some(rule.line) })
}

/// Whether some topic matches `filter` and an allowing rule, and no denying rule covers all such.
fn reaches(rules: &[Rule], denies: &[Rule], subject: Subject<'_>, filter: Filter<'_>) -> bool {
    rules.iter().filter(|rule| rule.access.allows(Operation::Read)).any(|rule| {
        let Some(allowed) = rule.filter_for(subject) else { return false };
        let Some(common) = intersection(filter.path(), &allowed) else { return false };
        !denies
            .iter()
            .filter(|rule| rule.access == Access::Deny)
            .any(|deny| deny.filter_for(subject).is_some_and(|denied| covers(&denied, &common)))
    })
}

/// The filter that matches exactly what both match; `None` if there is nothing.
fn intersection(a: &str, b: &str) -> Option<String> {
    if (starts_open(a) && b.starts_with('$')) || (starts_open(b) && a.starts_with('$')) {
        return None;
    }
    let (mut left, mut right) = (a.split('/'), b.split('/'));
    let mut common: Vec<&str> = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => break,
            // `#` stands for whatever the other goes on with, its parent level included.
            (Some("#"), other) => {
                common.extend(other.into_iter().chain(right));
                break;
            }
            (other, Some("#")) => {
                common.extend(other.into_iter().chain(left));
                break;
            }
            (Some("+"), Some(level)) | (Some(level), Some("+")) => common.push(level),
            (Some(x), Some(y)) if x == y => common.push(x),
            _ => return None,
        }
    }
    Some(common.join("/"))
}

fn starts_open(filter: &str) -> bool {
    filter.starts_with(['+', '#'])
}

/// Whether `wide` matches every topic that `narrow` matches.
fn covers(wide: &str, narrow: &str) -> bool {
    if starts_open(wide) && narrow.starts_with('$') {
        return false;
    }
    let (mut wide, mut narrow) = (wide.split('/'), narrow.split('/'));
    loop {
        match (wide.next(), narrow.next()) {
            (None, None) | (Some("#"), _) => return true,
            (_, Some("#")) => return false,
            (Some("+"), Some(_)) => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALICE: Subject<'_> = Subject { identity: Some("alice"), client_id: "c1", realm: Realm::SITE };
    const NOBODY: Subject<'_> = Subject { identity: None, client_id: "c2", realm: Realm::SITE };

    fn may(acl: &Acl, subject: Subject<'_>, operation: Operation, topic: &str) -> (bool, Option<u32>) {
        let decision = acl.check(subject, operation, Topic::parse(topic).unwrap());
        (decision.allowed, decision.line)
    }

    #[test]
    fn lines_decide_in_mosquittos_order() {
        let acl = Acl::parse(
            "# comment\ntopic read public/#\n\nuser alice\ntopic sensors/#\ntopic deny sensors/secret/#\npattern write dev/%u/%c\n",
        )
        .unwrap();
        use Operation::{Read, Write};
        assert_eq!(may(&acl, NOBODY, Read, "public/a"), (true, Some(2)));
        assert_eq!(may(&acl, NOBODY, Write, "public/a"), (false, None));
        // The first topics are for anonymous clients alone.
        assert_eq!(may(&acl, ALICE, Read, "public/a"), (false, None));
        assert_eq!(may(&acl, ALICE, Write, "sensors/a"), (true, Some(5)));
        assert_eq!(may(&acl, ALICE, Read, "sensors/secret/a"), (false, Some(6)));
        assert_eq!(may(&acl, ALICE, Write, "dev/alice/c1"), (true, Some(7)));
        assert_eq!(may(&acl, NOBODY, Write, "dev/alice/c2"), (false, None));
    }

    #[test]
    fn names_with_wildcards_match_no_pattern() {
        let acl = Acl::parse("pattern readwrite %c/#\npattern read own/%u\n").unwrap();
        for client_id in ["+", "#", "a/+"] {
            let subject = Subject { client_id, ..ALICE };
            assert!(!acl.check(subject, Operation::Read, Topic::parse("a/b/c").unwrap()).allowed, "{client_id}");
        }
        let sneaky = Subject { client_id: "%u", ..ALICE };
        assert!(acl.check(sneaky, Operation::Read, Topic::parse("%u/x").unwrap()).allowed);
        assert!(!acl.check(sneaky, Operation::Read, Topic::parse("alice/x").unwrap()).allowed);
        for client_id in ["$SYS", "$share/g/victim"] {
            let system = Subject { client_id, ..ALICE };
            for topic in ["$SYS/x", "victim/x"] {
                assert!(
                    !acl.check(system, Operation::Read, Topic::parse(topic).unwrap()).allowed,
                    "{client_id} {topic}"
                );
            }
        }
        assert!(Acl::parse("topic read $share/g/t\n").is_err());
    }

    #[test]
    fn system_topics_need_a_line_of_their_own() {
        let acl = Acl::parse("pattern readwrite #\npattern read $SYS/#\n").unwrap();
        assert_eq!(may(&acl, ALICE, Operation::Write, "$SYS/x"), (false, None));
        assert_eq!(may(&acl, ALICE, Operation::Read, "$SYS/x"), (true, Some(2)));
        assert!(acl.allows_all(ALICE, Operation::Write));
    }

    #[test]
    fn a_subscription_that_could_match_nothing_is_refused() {
        let acl = Acl::parse("user alice\ntopic read a/#\ntopic deny a/b/#\ntopic write w/#\n").unwrap();
        let may = |filter: &str| acl.may_subscribe(ALICE, Filter::parse(filter).unwrap());
        for granted in ["a/#", "#", "+/c", "a", "a/+", "a/c", "$share/g/a/c", "+/+/x"] {
            assert!(may(granted), "{granted}");
        }
        for refused in ["b", "b/#", "a/b/c", "a/b/#", "a/b", "w/#", "$SYS/#", "/a"] {
            assert!(!may(refused), "{refused}");
        }
    }

    #[test]
    fn all_bad_lines_are_reported() {
        let errors = Acl::parse("topics a\nuser\ntopic read\ntopic read a/#/b\n").unwrap_err();
        assert_eq!(errors.len(), 4);
        assert!(errors[3].to_string().starts_with("line 4: "), "{}", errors[3]);
        let errors = Acl::parse("pattern reedwrite #\ntopic denny secret/#\ntopic read my topic/x\n").unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[1].to_string().contains("\"denny\" is not one of read, write"), "{}", errors[1]);
    }

    fn filter_text() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(vec!["a", "b", "+", "$s"]), 1..4).prop_flat_map(|levels| {
            proptest::bool::ANY.prop_map(move |multi| {
                let text = levels.join("/");
                if multi { format!("{text}/#") } else { text }
            })
        })
    }

    proptest! {
        #[test]
        fn intersection_and_cover_agree_with_matching(a in filter_text(), b in filter_text(), topic in "(\\$s|a|b|)(/(a|b|)){0,4}") {
            prop_assume!(!topic.is_empty());
            let (left, right) = (Filter::parse(&a).unwrap(), Filter::parse(&b).unwrap());
            let topic = Topic::parse(&topic).unwrap();
            let both = left.matches(topic) && right.matches(topic);
            let common = intersection(&a, &b);
            let in_common = common.as_ref().is_some_and(|text| Filter::parse(text).unwrap().matches(topic));
            prop_assert_eq!(both, in_common, "{:?}", common);
            if covers(&a, &b) && right.matches(topic) {
                prop_assert!(left.matches(topic));
            }
        }
    }
}
