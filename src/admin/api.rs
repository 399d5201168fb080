//! What goes over the local door, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gate::SeenEntry;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub name: String,
    pub configuration: String,
    pub uptime_secs: u64,
    pub listeners: Vec<ListenerStatus>,
    pub connections: Levels,
    pub sessions: usize,
    pub subscriptions: usize,
    pub retained_messages: usize,
    pub retained_bytes: usize,
    pub queued_messages: usize,
    pub queued_bytes: usize,
    pub inflight_messages: usize,
    /// Messages a second over the last minute or since the start.
    pub received_per_sec: f64,
    pub sent_per_sec: f64,
    pub dropped: u64,
    pub refused: u64,
    /// Nothing is kept with `durability: off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    pub certificates: Vec<CertificateStatus>,
    pub findings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListenerStatus {
    pub name: String,
    pub transport: String,
    /// With the ports that the kernel chose.
    pub addresses: Vec<String>,
    pub client_certs: String,
    pub anonymous: bool,
    pub min_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Levels {
    pub plain: usize,
    pub tls: usize,
    pub mtls: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CertificateStatus {
    /// `ca`, or the listener's name.
    pub of: String,
    pub subject: String,
    pub expires: String,
    pub days_left: i64,
    pub fingerprint: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Clients {
    pub clients: Vec<Client>,
    /// When and how each identity last came in.
    pub seen: BTreeMap<String, SeenEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Client {
    pub client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    pub subscriptions: usize,
    pub queued_messages: usize,
    pub queued_bytes: usize,
    pub inflight_messages: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Connection {
    pub id: u64,
    pub address: String,
    pub listener: String,
    pub level: String,
    pub version: String,
    /// RFC 3339.
    pub since: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kick {
    /// An identity's name or a client id.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kicked {
    pub connections: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// What takes effect only at the next start, and what deserves attention.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Health {
    /// The engine turns.
    pub alive: bool,
    /// Listeners accept.
    pub ready: bool,
}

/// What is kept on disk, and what keeping it has cost since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Store {
    pub durability: String,
    pub sessions: usize,
    pub queued_messages: u64,
    pub retained_messages: usize,
    pub segments: usize,
    pub disk_bytes: u64,
    /// Of them, messages that somebody waits for or that are retained.
    pub live_bytes: u64,
    pub bytes_written: u64,
    pub commits: u64,
    pub messages: u64,
    pub checkpoints: u64,
    pub failures: u64,
    /// It cannot be written now.
    pub failing: bool,
}

impl Store {
    pub fn of(durability: &str, stats: &crate::store::Stats) -> Store {
        Store {
            durability: durability.to_owned(),
            sessions: stats.sessions,
            queued_messages: stats.queued,
            retained_messages: stats.retained,
            segments: stats.segments,
            disk_bytes: stats.disk_bytes,
            live_bytes: stats.live_bytes,
            bytes_written: stats.bytes_written,
            commits: stats.commits,
            messages: stats.messages,
            checkpoints: stats.checkpoints,
            failures: stats.failures,
            failing: stats.is_failing,
        }
    }

    /// Bytes written for each message that was kept, everything counted.
    pub fn bytes_per_message(&self) -> f64 {
        self.bytes_written as f64 / self.messages.max(1) as f64
    }
}

/// Which hold is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Release {
    pub number: u64,
}

/// Files of the store, and how much of each, that stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Held {
    pub number: u64,
    pub files: Vec<(String, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Released {
    /// Until now.
    pub was_held: bool,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    pub error: String,
}
