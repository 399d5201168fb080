use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;

use thiserror::Error;

use super::password::{HashError, PasswordHash};
use crate::types::{Identity, IdentityError, Level, Realm};

/// One line of a password file.
#[derive(Clone, Debug)]
pub struct PasswordLine {
    pub identity: Identity,
    pub hash: PasswordHash,
}

/// A line of a password file that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DirectoryError {
    #[error("line {line}: expected NAME:HASH")]
    NoColon { line: u32 },
    #[error("line {line}: {error}")]
    Name { line: u32, error: IdentityError },
    #[error("line {line}: {error}; set it anew with `lockgate client passwd {name}`")]
    Hash { line: u32, name: Identity, error: HashError },
    #[error("line {line}: {name} is there twice")]
    Twice { line: u32, name: Identity },
}

/// Reads a password file: `NAME:HASH`, a line each; empty lines and `#` comments are skipped.
pub fn parse_passwords(text: &str) -> Result<Vec<PasswordLine>, Vec<DirectoryError>> {
    let (mut lines, mut errors, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (at, content) in text.lines().enumerate() {
        let line = at as u32 + 1;
        match parse_line(line, content, Identity::parse) {
            Some(Ok(read)) if !seen.insert(read.identity.clone()) => {
                errors.push(DirectoryError::Twice { line, name: read.identity });
            }
            Some(Ok(read)) => lines.push(read),
            Some(Err(error)) => errors.push(error),
            None => {}
        }
    }
    if errors.is_empty() { Ok(lines) } else { Err(errors) }
}

/// The same of one that Mosquitto wrote, for which any name will do: who has a line that cannot be read does not come
/// in, and of several lines of one name the last counts.
pub fn parse_foreign_passwords(text: &str) -> (Vec<PasswordLine>, Vec<DirectoryError>) {
    let mut lines: BTreeMap<Identity, PasswordLine> = BTreeMap::new();
    let mut errors = Vec::new();
    for (at, content) in text.lines().enumerate() {
        match parse_line(at as u32 + 1, content, |name| Ok(Identity::foreign(name))) {
            Some(Ok(read)) => drop(lines.insert(read.identity.clone(), read)),
            Some(Err(error)) => {
                if let DirectoryError::Hash { name, .. } = &error {
                    lines.remove(name);
                }
                errors.push(error);
            }
            None => {}
        }
    }
    (lines.into_values().collect(), errors)
}

/// `None` for one that says nothing.
fn parse_line(
    line: u32,
    content: &str,
    identity: impl Fn(&str) -> Result<Identity, IdentityError>,
) -> Option<Result<PasswordLine, DirectoryError>> {
    let content = content.trim();
    if content.is_empty() || content.starts_with('#') {
        return None;
    }
    let Some((name, hash)) = content.split_once(':') else { return Some(Err(DirectoryError::NoColon { line })) };
    Some(match (identity(name), PasswordHash::parse(hash)) {
        (Err(error), _) => Err(DirectoryError::Name { line, error }),
        (Ok(name), Err(error)) => Err(DirectoryError::Hash { line, name, error }),
        (Ok(identity), Ok(hash)) => Ok(PasswordLine { identity, hash }),
    })
}

/// Everybody who may come in, as read from the password file, the identities and the ledger.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    passwords: BTreeMap<Identity, PasswordHash>,
    /// By position, for [`Directory::decoy`].
    names: Vec<Identity>,
    min_levels: BTreeMap<Identity, Level>,
    /// Serial numbers of current certificates of our own CA, and whose they are.
    certificates: BTreeMap<Vec<u8>, Identity>,
    /// Has a hash that takes no part in any login.
    fallback: Option<PasswordHash>,
    /// Where listeners are in several.
    realms: BTreeMap<Realm, Directory>,
}

impl Directory {
    /// `fallback`: what an unknown name is measured against where nobody has a password.
    pub fn new(
        passwords: Vec<PasswordLine>,
        min_levels: BTreeMap<Identity, Level>,
        certificates: BTreeMap<Vec<u8>, Identity>,
        fallback: PasswordHash,
    ) -> Directory {
        let names = passwords.iter().map(|line| line.identity.clone()).collect();
        let passwords = passwords.into_iter().map(|line| (line.identity, line.hash)).collect();
        let realms = BTreeMap::new();
        Directory { passwords, names, min_levels, certificates, fallback: Some(fallback), realms }
    }

    /// One for each realm that a listener is in; `self` is the site's.
    pub fn with_realms(self, realms: BTreeMap<Realm, Directory>) -> Directory {
        Directory { realms, ..self }
    }

    /// What the listeners of a realm go by.
    pub fn of(&self, realm: Realm) -> &Directory {
        self.realms.get(&realm).unwrap_or(self)
    }

    /// Those that listeners are in, where there are several.
    pub fn realms(&self) -> impl Iterator<Item = (Realm, &Directory)> {
        self.realms.iter().map(|(realm, directory)| (*realm, directory))
    }

    pub fn password(&self, identity: &Identity) -> Option<&PasswordHash> {
        self.passwords.get(identity)
    }

    /// A hash to measure an unknown name's attempt against, so that it takes as long as a known
    /// one's: somebody's, always the same for one name, in the proportions that there are.
    pub fn decoy(&self, name: &str, hasher: &impl BuildHasher) -> Option<&PasswordHash> {
        if self.names.is_empty() {
            return self.fallback.as_ref();
        }
        let at = hasher.hash_one(name) % self.names.len() as u64;
        self.passwords.get(&self.names[at as usize])
    }

    /// The hash that takes longest to check: a wrong attempt at a quicker one is made to take as long,
    /// so that a slow answer does not say that the name exists.
    pub fn dearest(&self) -> Option<&PasswordHash> {
        self.passwords.values().max_by_key(|hash| hash.work())
    }

    /// How many have a hash that is quick to guess at.
    pub fn weak(&self) -> usize {
        self.passwords.values().filter(|hash| hash.is_weak()).count()
    }

    pub fn min_level(&self, identity: &Identity) -> Level {
        self.min_levels.get(identity).copied().unwrap_or_default()
    }

    /// Those for whom a minimum level is set.
    pub fn min_levels(&self) -> impl Iterator<Item = &Identity> {
        self.min_levels.keys()
    }

    /// Whose a certificate of our own CA is, by its serial number; `None`: it is not current.
    pub fn certificate_owner(&self, serial: &[u8]) -> Option<&Identity> {
        self.certificates.get(serial)
    }

    /// Everybody that can come in.
    pub fn identities(&self) -> BTreeSet<&Identity> {
        let own = self.passwords.keys().chain(self.certificates.values());
        own.chain(self.realms.values().flat_map(Directory::identities)).collect()
    }

    pub fn serials(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.keys().map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::Cost;
    use super::*;

    #[test]
    fn all_bad_lines_are_reported() {
        let hash = PasswordHash::new(b"x", Cost::Generated, [1; 16]);
        let text = format!("# people\n\na:{hash}\nb\n../c:{hash}\nd:$7$x\na:{hash}\n");
        let errors = parse_passwords(&text).unwrap_err();
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(lines[0].starts_with("line 4: expected NAME:HASH"), "{lines:?}");
        assert!(lines[1].starts_with("line 5:") && lines[2].starts_with("line 6:") && lines[3].starts_with("line 7:"));
        assert_eq!(parse_passwords(&format!("a:{hash}\n")).unwrap().len(), 1);
        // Of somebody else's file what can be read counts, the last of a name.
        let other = PasswordHash::new(b"y", Cost::Generated, [2; 16]);
        let (lines, errors) = parse_foreign_passwords(&format!("bob b:{hash}\nbad\na:{hash}\na:{other}\n"));
        let hashes: Vec<String> = lines.iter().map(|line| line.hash.to_string()).collect();
        assert_eq!(hashes, [other.to_string(), hash.to_string()]);
        assert!(errors[0].to_string().starts_with("line 2: "));
    }

    #[test]
    fn the_dearest_hash_is_the_one_that_takes_longest() {
        let line = |name: &str, cost| PasswordLine {
            identity: Identity::parse(name).unwrap(),
            hash: PasswordHash::new(b"x", cost, [1; 16]),
        };
        let lines =
            vec![line("device1", Cost::Generated), line("alice", Cost::Human), line("device2", Cost::Generated)];
        let directory =
            Directory::new(lines, BTreeMap::new(), BTreeMap::new(), PasswordHash::new(b"", Cost::Human, [0; 16]));
        let alice = Identity::parse("alice").unwrap();
        assert_eq!(directory.dearest().map(ToString::to_string), directory.password(&alice).map(ToString::to_string));
    }
}
