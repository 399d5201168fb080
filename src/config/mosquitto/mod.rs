//! mosquitto.conf, read into the same [`Settings`] as our own configuration: two readers, one meaning.

mod apply;
mod ciphers;
mod door;
mod finish;
mod options;
mod plugins;
mod value;

use std::path::{Path, PathBuf};

pub use options::{Fate, OPTIONS};

use super::{KeyLog, Settings};
use apply::Draft;
pub use apply::default_limits;

/// What Mosquitto's command line says.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    /// `-c`
    pub file: Option<PathBuf>,
    /// `-p`, each a listener of its own
    pub ports: Vec<u16>,
    /// `-v`: everything is logged, whatever the file says
    pub verbose: bool,
    /// `-q`: nothing is
    pub quiet: bool,
    /// Where state lies if nothing is to be kept.
    pub scratch: PathBuf,
    /// What is refused otherwise is left out, and said among the notices.
    pub lenient: bool,
    /// Where state lies, whatever the file says: the environment's MOSQUITTO_PERSISTENCE_LOCATION.
    pub location: Option<PathBuf>,
    /// `--tls-keylog`: where the keys of all TLS sessions go.
    pub key_log: Option<KeyLog>,
}

/// A configuration as read.
#[derive(Debug)]
pub struct Read {
    pub settings: Settings,
    /// What is worth saying of it: options that have no effect, habits that are better dropped.
    pub notices: Vec<String>,
    /// No listener is named: it serves this machine alone.
    pub local_only: bool,
}

/// Why a configuration cannot be used: one sentence, and where (`FILE:LINE`), the place it was included from last.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Error: {what}{}", .places.iter().map(|place| format!("\nError found at {place}.")).collect::<String>())]
pub struct Wrong {
    pub what: String,
    pub places: Vec<String>,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Wrong {
        Wrong { what: what.into(), places: Vec::new() }
    }

    fn at(mut self, file: &Path, line: usize) -> Wrong {
        self.places.push(format!("{}:{line}", file.display()));
        self
    }
}

/// One option with its value.
#[derive(Debug)]
struct Line<'a> {
    name: &'a str,
    /// All behind the name, without spaces around it.
    value: &'a str,
}

/// Reads what the command line names.
pub fn load(command: &CommandLine) -> Result<Read, Wrong> {
    let mut draft = Draft { lenient: command.lenient, ..Draft::default() };
    if let Some(file) = &command.file {
        read_file(&mut draft, file, true)?;
    }
    draft.finish(command)
}

fn read_file(draft: &mut Draft, path: &Path, is_main: bool) -> Result<(), Wrong> {
    if path.is_dir() {
        return Err(Wrong::new(format!("Config file {} is a directory.", path.display())));
    }
    let bytes = std::fs::read(path)
        .map_err(|error| Wrong::new(format!("Unable to open config file {}: {error}.", path.display())))?;
    draft.begin_file();
    for (at, raw) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let wrong = |what: Wrong| what.at(path, at + 1);
        let text = str::from_utf8(raw).map_err(|_| wrong(Wrong::new("the line is not UTF-8")))?;
        let Some(line) = split(draft, path, at + 1, text) else { continue };
        if line.name == "include_dir" {
            if !is_main {
                return Err(wrong(Wrong::new("include_dir is for the main file alone")));
            }
            include(draft, line.value).map_err(wrong)?;
            draft.resume_file();
            continue;
        }
        draft.take(&line).map_err(wrong)?;
    }
    Ok(())
}

/// Where Mosquitto itself is needlessly cruel this is not: a tab counts as a space, and a comment may be indented.
fn split<'a>(draft: &mut Draft, path: &Path, number: usize, text: &'a str) -> Option<Line<'a>> {
    let trimmed = text.trim_matches([' ', '\t', '\r']);
    if trimmed.is_empty() || trimmed.starts_with('#') {
        if trimmed.starts_with('#') && !text.starts_with('#') {
            draft.notice(path, number, "an indented comment, which Mosquitto itself refuses");
        }
        return None;
    }
    let (name, value) = trimmed.split_once([' ', '\t']).unwrap_or((trimmed, ""));
    if text.trim_start_matches(' ').starts_with('\t') || trimmed[name.len()..].starts_with('\t') {
        draft.notice(path, number, "a tab before or behind the option's name, which Mosquitto itself refuses");
    }
    Some(Line { name, value: value.trim_matches([' ', '\t']) })
}

/// Every *.conf of a folder: upper case before lower, as their bytes are.
fn include(draft: &mut Draft, folder: &str) -> Result<(), Wrong> {
    let failed = |error| Wrong::new(format!("Unable to open include_dir '{folder}': {error}"));
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>().map_err(failed)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    // A and a stand together, A first.
    files.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.to_lowercase(), name)
    });
    files.iter().try_for_each(|file| read_file(draft, file, false))
}

#[cfg(test)]
mod tests;
