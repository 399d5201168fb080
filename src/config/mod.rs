//! What was written becomes what is meant.
//!
//! A file is parsed into a [`tree`] that remembers where each value stands; the environment is laid
//! over it; [`read`] takes it apart by name, collects every problem there is, and what remains is a
//! checked [`Settings`]. Every configuration format ends in the same [`Settings`].

mod faults;
mod listeners;
pub mod mosquitto;
mod read;
mod reader;
mod settings;
mod template;
mod tree;

use std::path::{Path, PathBuf};

use thiserror::Error;

pub use faults::Faults;
pub use settings::{
    Acme, Admission, AtExpiry, Challenge, ClientCerts, ClientIds, KeyLog, Listener, ListenerAddress, ListenerFiles,
    Log, LogDestination, LogFormat, LogStyle, Pages, SUBSCRIBE_LINES, Settings, TlsFiles, TlsVersion, Transport,
    UNSUBSCRIBE_LINES, WebSocket,
};
pub use template::{Template, render};

/// The prefix of environment variables that set a key: `LOCKGATE__LIMITS__PACKET_SIZE_MAX`.
pub const ENVIRONMENT_PREFIX: &str = "LOCKGATE__";

/// What is wrong with a configuration, all of it.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}{}", advice(.error), path = .path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "; the site is another user's: run this as that user, or as root",
        _ => "",
    }
}

/// One thing that is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `config/lockgate.yaml:12:5`, or the environment variable's name.
    pub place: String,
    pub what: String,
    /// The line with a marker under the place.
    pub snippet: Option<String>,
    /// The line in the file; 0 where it is not in the file.
    pub line: usize,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        match &self.snippet {
            Some(snippet) => write!(f, "\n{snippet}"),
            None => Ok(()),
        }
    }
}

/// Reads the file and lays `environment` (names with [`ENVIRONMENT_PREFIX`]) over it.
pub fn load(path: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Result<Settings, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    parse(path, &text, environment)
}

/// As [`load`], with the file's text at hand; relative paths in it start at its folder.
pub fn parse(
    path: &Path,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    let source = tree::Source { path: path.to_owned(), text: text.to_owned() };
    let mut root = tree::parse(&source).map_err(|problem| ConfigError::Problems(vec![problem]))?;
    let mut problems = Vec::new();
    for (name, value) in environment {
        if let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX) {
            tree::overlay(&mut root, &name, key, &value, &mut problems);
        }
    }
    let settings = read::settings(&source, root, &mut problems);
    problems.sort_by_key(|problem| problem.line);
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(ConfigError::Problems(problems)),
    }
}

/// Where the configuration is looked for: `--config`, `LOCKGATE_CONFIG`, `./config/lockgate.yaml`,
/// `/etc/lockgate/lockgate.yaml`; the last two only where they exist.
pub fn find(given: Option<&Path>, from_environment: Option<&Path>) -> Option<PathBuf> {
    let standard = [Path::new("config/lockgate.yaml"), Path::new("/etc/lockgate/lockgate.yaml")];
    given
        .or(from_environment)
        .map(Path::to_owned)
        // One that is there and may not be looked at is found too: reading it says so.
        .or_else(|| {
            let there = |path: &&&Path| !matches!(path.try_exists(), Ok(false));
            standard.iter().find(there).map(|path| path.to_path_buf())
        })
}

#[cfg(test)]
mod tests;
