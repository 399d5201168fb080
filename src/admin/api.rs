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

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    pub error: String,
}
