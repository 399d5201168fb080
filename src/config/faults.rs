//! What a throw-away broker does wrong on purpose. No configuration can say it.

use serde::{Deserialize, Serialize};

use super::TlsVersion;

/// Each is off unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// No PUBACK, PUBREC or PUBCOMP leaves.
    pub drop_puback: bool,
    /// Messages at QoS 1 and 2 leave twice, the second time with DUP.
    pub duplicate_publish: bool,
    /// Milliseconds that every answer takes.
    pub slow_ms: u64,
    /// A connection is cut once so many messages went over it.
    pub disconnect_after: Option<u32>,
    /// So many connections are refused as the broker is too busy.
    pub server_busy: u32,
    /// What has to be kept cannot be: the disk is full.
    pub full_disk: bool,
    /// Every message with a payload is over the quota.
    pub over_quota: bool,
    /// The broker dies once so many messages came.
    pub dies_after: Option<u32>,
    /// The server certificate is served whatever is wrong with it.
    pub any_certificate: bool,
    /// This version of TLS is spoken alone.
    pub only_tls: Option<TlsVersion>,
}
