use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::handover::Peer;
use crate::types::{Identity, Level};

/// When and how each identity last came in; kept in a file, so that it outlives a restart.
#[derive(Debug, Default)]
pub struct Seen {
    entries: Mutex<BTreeMap<String, SeenEntry>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SeenEntry {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub level: String,
    pub from: String,
}

impl Seen {
    /// Reads the file; without one, or with a damaged one, nobody was seen yet.
    pub fn load(path: &Path) -> Seen {
        let entries =
            std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Seen { entries: Mutex::new(entries) }
    }

    pub(super) fn note(&self, identity: &Identity, level: Level, peer: &Peer, at: OffsetDateTime) {
        let entry = SeenEntry {
            at: at.replace_nanosecond(0).expect("zero is in range"),
            level: level.to_string(),
            from: peer.to_string(),
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(identity.as_str().to_owned(), entry);
    }

    pub fn entries(&self) -> BTreeMap<String, SeenEntry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets whom `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| keep(name));
    }
}
