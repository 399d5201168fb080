//! Troubles that a client has to cope with, each made on purpose.

use std::fmt;

use crate::config::{Faults, TlsVersion};
use crate::types::Level;

/// What is made of a site's certificates, names and passwords before its broker starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spoilt {
    ExpiredServer,
    NotYetValidServer,
    WrongHost,
    UnknownCa,
    SelfSigned,
    RevokedClient,
    ExpiredClient,
    BadPassword,
    NotAuthorized,
}

/// One trouble.
pub(super) struct Break {
    pub(super) name: &'static str,
    /// What `=N` counts, and how many where it is left out; `None`: there is no number.
    pub(super) counts: Option<(&'static str, u32)>,
    /// What happens.
    pub(super) what: &'static str,
    /// What a good client does.
    pub(super) good: &'static str,
    /// The levels at which it can happen.
    pub(super) levels: &'static [Level],
    pub(super) does: Does,
}

/// How it is made.
pub(super) enum Does {
    Spoil(Spoilt),
    Fault(fn(&mut Faults, u32)),
    /// The broker is killed, and started again.
    Restart,
}

const ALL: &[Level] = &Level::ALL;
const TLS: &[Level] = &[Level::Tls, Level::Mtls];
const CERTIFICATE: &[Level] = &[Level::Mtls];

const REFUSE: &str = "refuses to go on, says that the certificate cannot be trusted and why, and sends no password";

/// All, in the order in which they are listed.
pub(super) const BREAKS: &[Break] = &[
    Break {
        name: "expired-server",
        counts: None,
        what: "the server's certificate expired yesterday",
        good: REFUSE,
        levels: TLS,
        does: Does::Spoil(Spoilt::ExpiredServer),
    },
    Break {
        name: "not-yet-valid-server",
        counts: None,
        what: "the server's certificate is valid from tomorrow on",
        good: "as with an expired one; on a device it says that its own clock may be wrong",
        levels: TLS,
        does: Does::Spoil(Spoilt::NotYetValidServer),
    },
    Break {
        name: "wrong-host",
        counts: None,
        what: "the server's certificate is for another host, other.invalid",
        good: REFUSE,
        levels: TLS,
        does: Does::Spoil(Spoilt::WrongHost),
    },
    Break {
        name: "unknown-ca",
        counts: None,
        what: "the server's certificate is of a CA that the client does not know",
        good: REFUSE,
        levels: TLS,
        does: Does::Spoil(Spoilt::UnknownCa),
    },
    Break {
        name: "self-signed",
        counts: None,
        what: "the server's certificate is signed by itself",
        good: REFUSE,
        levels: TLS,
        does: Does::Spoil(Spoilt::SelfSigned),
    },
    Break {
        name: "revoked-client",
        counts: None,
        what: "the client's certificate was revoked",
        good: "stops, and asks its owner for a new one; it does not come back every second",
        levels: CERTIFICATE,
        does: Does::Spoil(Spoilt::RevokedClient),
    },
    Break {
        name: "expired-client",
        counts: None,
        what: "the client's certificate expired yesterday",
        good: "had warned its owner before; now it stops and says so",
        levels: CERTIFICATE,
        does: Does::Spoil(Spoilt::ExpiredClient),
    },
    Break {
        name: "bad-password",
        counts: None,
        what: "the client has a wrong password",
        good: "stops and says so: trying again would only have it throttled",
        levels: &[Level::Plain, Level::Tls],
        does: Does::Spoil(Spoilt::BadPassword),
    },
    Break {
        name: "not-authorized",
        counts: None,
        what: "the ACL lets the client neither publish nor subscribe",
        good: "looks at SUBACK and, with MQTT 5, at PUBACK, and says which topic was refused",
        levels: ALL,
        does: Does::Spoil(Spoilt::NotAuthorized),
    },
    Break {
        name: "tls1.2-only",
        counts: None,
        what: "the broker speaks TLS 1.2 alone",
        good: "connects",
        levels: TLS,
        does: Does::Fault(|faults, _| faults.only_tls = Some(TlsVersion::V12)),
    },
    Break {
        name: "tls1.3-only",
        counts: None,
        what: "the broker speaks TLS 1.3 alone",
        good: "connects; one that only knows 1.2 says that the versions do not meet",
        levels: TLS,
        does: Does::Fault(|faults, _| faults.only_tls = Some(TlsVersion::V13)),
    },
    Break {
        name: "drop-puback",
        counts: None,
        what: "acknowledgements of the client's messages never come",
        good: "keeps the message, gives up waiting after a while, connects anew and sends it again with DUP",
        levels: ALL,
        does: Does::Fault(|faults, _| faults.drop_puback = true),
    },
    Break {
        name: "duplicate-publish",
        counts: None,
        what: "messages at QoS 1 and 2 come twice, the second time with DUP",
        good: "takes a message at QoS 2 once, by its packet identifier; at QoS 1 twice does no harm",
        levels: ALL,
        does: Does::Fault(|faults, _| faults.duplicate_publish = true),
    },
    Break {
        name: "slow",
        counts: Some(("milliseconds", 500)),
        what: "every answer takes half a second",
        good: "waits, and does not do the same again meanwhile",
        levels: ALL,
        does: Does::Fault(|faults, ms| faults.slow_ms = ms.into()),
    },
    Break {
        name: "disconnect-after",
        counts: Some(("messages", 3)),
        what: "a connection is cut once so many messages went over it, the last of them unacknowledged",
        good: "connects again, after a pause that grows, and sends what was not acknowledged",
        levels: ALL,
        does: Does::Fault(|faults, count| faults.disconnect_after = Some(count)),
    },
    Break {
        name: "server-busy",
        counts: Some(("connections", u32::MAX)),
        what: "the broker refuses connections: it is too busy (with =N the first N alone)",
        good: "comes back later, after pauses that grow",
        levels: ALL,
        does: Does::Fault(|faults, count| faults.server_busy = count),
    },
    Break {
        name: "quota-exceeded",
        counts: None,
        what: "every message with a payload is refused: it is over the quota",
        good: "looks at PUBACK (MQTT 5), and says that the message was not taken",
        levels: ALL,
        does: Does::Fault(|faults, _| faults.over_quota = true),
    },
    Break {
        name: "full-disk",
        counts: None,
        what: "the broker's disk is full: what would have to be kept is refused",
        good: "as with quota-exceeded; QoS 0 goes on",
        levels: ALL,
        does: Does::Fault(|faults, _| faults.full_disk = true),
    },
    Break {
        name: "restart-after",
        counts: Some(("messages", 3)),
        what: "the broker is killed when the Nth message comes, and is back at once with what it had acknowledged",
        good: "connects again, takes up its session, and sends what was not acknowledged",
        levels: ALL,
        does: Does::Restart,
    },
];

/// A trouble that was asked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) of: &'static Break,
    pub(super) count: u32,
}

impl Wanted {
    /// `NAME` or `NAME=N`.
    pub(super) fn parse(text: &str) -> Result<Wanted, String> {
        let (name, number) = text.split_once('=').map_or((text, None), |(name, number)| (name, Some(number)));
        let Some(of) = BREAKS.iter().find(|known| known.name == name) else {
            let far = |known: &&Break| strsim::damerau_levenshtein(known.name, name);
            let near = BREAKS.iter().min_by_key(far).filter(|known| far(known) <= 4);
            let near = near.map_or(String::new(), |known| format!("did you mean {}? ", known.name));
            return Err(format!("{name:?} is not among them; {near}`lockgate run --list` shows all"));
        };
        let count = match (of.counts, number) {
            (Some((_, usual)), None) => usual,
            (None, None) => 0,
            (Some((what, _)), Some(number)) => number
                .parse()
                .ok()
                .filter(|count| *count > u32::from(name == "disconnect-after"))
                .ok_or_else(|| format!("{name}={number}: {number:?} is no number of {what} that would do"))?,
            (None, Some(_)) => return Err(format!("{name} has no number")),
        };
        Ok(Wanted { of, count })
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.of.name)
    }
}
