//! Who still comes without TLS: what is left of a migration.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::admin::api;
use crate::config::{ListenerAddress, Settings, Transport};
use crate::gate::SeenEntry;
use crate::types::Level;

/// Names that are shown, at most.
const SHOWN: usize = 12;

/// By how everybody came last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Countdown {
    on_tls: BTreeSet<String>,
    still_plain: BTreeSet<String>,
}

impl Countdown {
    /// Who is connected now counts as it is; of others what was seen last. Unix sockets leave no machine.
    pub(crate) fn of<'a>(
        connections: impl Iterator<Item = (&'a str, &'a api::Connection)>,
        seen: &BTreeMap<String, SeenEntry>,
    ) -> Countdown {
        let mut now: BTreeMap<&str, bool> = BTreeMap::new();
        for (name, connection) in connections.filter(|(_, connection)| connection.address != "unix socket") {
            *now.entry(name).or_insert(true) &= connection.level != Level::Plain.as_str();
        }
        for (name, entry) in seen.iter().filter(|(_, entry)| entry.from != "unix socket") {
            now.entry(name).or_insert(entry.level != Level::Plain.as_str());
        }
        let mut countdown = Countdown::default();
        for (name, by_tls) in now {
            let list = if by_tls { &mut countdown.on_tls } else { &mut countdown.still_plain };
            list.insert(name.to_owned());
        }
        countdown
    }

    /// Of what a running broker says.
    pub(crate) fn of_clients(clients: &api::Clients) -> Countdown {
        let connections = clients.clients.iter().filter_map(|client| {
            Some((client.identity.as_deref().unwrap_or("(anonymous)"), client.connection.as_ref()?))
        });
        Countdown::of(connections, &clients.seen)
    }

    pub(super) fn is_on_tls(&self, name: &str) -> bool {
        self.on_tls.contains(name)
    }

    /// `7 of 12 on TLS; still plain: …`, and what comes next; empty where nobody was seen yet.
    pub(crate) fn lines(&self, settings: &Settings) -> Vec<String> {
        let (done, left) = (self.on_tls.len(), self.still_plain.len());
        let all = done + left;
        if all == 0 {
            return Vec::new();
        }
        let names: Vec<&str> = self.still_plain.iter().take(SHOWN).map(String::as_str).collect();
        let more = if left > SHOWN { format!(" and {} more", left - SHOWN) } else { String::new() };
        let open = settings
            .listeners
            .iter()
            .find(|listener| listener.transport == Transport::Tcp && listener.address.is_remote());
        let port = |address: &ListenerAddress| address.port().unwrap_or(1883);
        match (left, open) {
            (0, None) => {
                let mut lines = vec![format!("{done} of {all} on TLS")];
                if settings.listeners.iter().any(|listener| listener.transport == Transport::Tcp) {
                    lines.push(format!(
                        "plain MQTT is open to this machine alone; take that listener out of {}, then `lockgate reload`, and it is closed",
                        settings.file.display()
                    ));
                }
                lines
            }
            (0, Some(listener)) => vec![
                format!("{done} of {all} on TLS: nobody comes over plain {} any more", port(&listener.address)),
                format!(
                    "`address: loopback` at that listener in {} closes it to the network, then `lockgate reload`",
                    settings.file.display()
                ),
            ],
            (_, _) => vec![
                format!("{done} of {all} on TLS; still plain: {}{more}", names.join(", ")),
                "`lockgate client env --all --level tls --host NAME --path-prefix /etc/mqtt --out DIR` makes their bundles: NAME is what they dial, and the files lie in /etc/mqtt there".to_owned(),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(level: &str, address: &str) -> api::Connection {
        api::Connection {
            id: 1,
            address: address.to_owned(),
            listener: String::new(),
            level: level.to_owned(),
            version: String::new(),
            since: String::new(),
        }
    }

    #[test]
    fn who_is_connected_counts_as_it_is_and_others_as_they_were_seen() {
        let (tls, plain, unix) =
            (connection("mtls", "10.0.0.1:1"), connection("plain", "10.0.0.2:1"), connection("plain", "unix socket"));
        let entry = |level: &str| SeenEntry {
            at: time::OffsetDateTime::UNIX_EPOCH,
            level: level.to_owned(),
            from: "10.0.0.3:1".to_owned(),
        };
        let seen = BTreeMap::from([
            ("moved".to_owned(), entry("plain")),
            ("old".to_owned(), entry("plain")),
            ("done".to_owned(), entry("tls")),
        ]);
        let connected = [("moved", &tls), ("two", &tls), ("two", &plain), ("local", &unix)];
        let countdown = Countdown::of(connected.into_iter(), &seen);
        assert!(["moved", "done"].iter().all(|name| countdown.is_on_tls(name)));
        assert_eq!(countdown.still_plain.iter().collect::<Vec<_>>(), ["old", "two"]);
    }
}
