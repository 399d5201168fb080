//! What is asked of a shard from outside: to take a client over, to end some, to say how it stands.

use std::collections::BTreeSet;
use std::sync::mpsc::TryRecvError;
use std::time::{Instant, SystemTime};

use tokio::sync::oneshot;

use super::Message;
use super::report::{ClientRow, ConnectedRow, ShardReport};
use super::turn::{LINGER, Shard, Stopping};
use super::wire::Connection;
use crate::broker::{Closing, Command, ConnectionId, Input};
use crate::types::CertificateId;

/// Messages from outside taken in one turn.
const INBOX_BUDGET: usize = 256;
/// Sessions listed in one turn.
const LIST_SLICE: usize = 1_000;

/// A list of sessions in the making.
pub(super) struct Listing {
    cursor: usize,
    rows: Vec<ClientRow>,
    with_filters: bool,
    answer: oneshot::Sender<Vec<ClientRow>>,
}

impl Shard {
    /// `false` when nobody can send any more.
    pub(super) fn take_messages(&mut self, now: Instant) -> bool {
        for _ in 0..INBOX_BUDGET {
            match self.inbox.try_recv() {
                Ok(message) => self.message(now, message),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        // More than one turn's worth: look again at once.
        self.more_messages = true;
        true
    }

    fn message(&mut self, now: Instant, message: Message) {
        match message {
            Message::Adopt(handover) => self.adopt(now, *handover),
            Message::Letter(from, letter) => self.core.handle(now, Input::Heard(from, letter), &mut self.wire),
            Message::Configure { limits, acl } => {
                self.core.configure(limits, acl);
                for id in self.core.strangers() {
                    self.core.handle(now, Input::Command(Command::Kick(id, Closing::Revoked)), &mut self.wire);
                }
            }
            Message::Kick(name, answer) => {
                let kicked = self.kick(now, Closing::Kicked, |connection| {
                    connection.client.as_str() == name
                        || connection.identity.as_ref().is_some_and(|identity| identity.as_str() == name)
                });
                let _ = answer.send(kicked);
            }
            Message::Forget(identities) => {
                for (identity, realm) in identities {
                    self.core.handle(now, Input::Command(Command::Forget(identity, realm)), &mut self.wire);
                }
            }
            Message::Revoke(certificates) => {
                let revoked: BTreeSet<&CertificateId> = certificates.iter().collect();
                self.kick(now, Closing::Revoked, |connection| {
                    let certificate = connection.about.certificate.as_ref();
                    certificate.is_some_and(|its| its.chain.iter().any(|one| revoked.contains(one)))
                });
            }
            Message::Announce(messages) => {
                self.core.handle(now, Input::Command(Command::Announce(messages)), &mut self.wire);
            }
            Message::Expire(by) => self.expire(now, by),
            Message::Report(answer) => drop(answer.send(self.report())),
            Message::Clients(answer, with_filters) => {
                self.listings.push_back(Listing { cursor: 0, rows: Vec::new(), with_filters, answer });
            }
            Message::Queued(answer) => drop(answer.send(self.core.queued())),
            Message::Ping(answer) => drop(answer.send(())),
            Message::ShutDown(answer) => {
                self.core.handle(now, Input::Command(Command::ShutDown), &mut self.wire);
                self.stopping = Some(Stopping { by: now + LINGER, answer });
            }
        }
    }

    /// Ends the connections whose certificate ended by then.
    fn expire(&mut self, now: Instant, by: SystemTime) {
        if self.certificate_expires.is_none_or(|at| at > by) {
            return;
        }
        let expires = |connection: &Connection| connection.about.certificate.as_ref().map(|its| its.expires);
        self.kick(now, Closing::CertificateExpired, |connection| expires(connection).is_some_and(|at| at <= by));
        let connections = self.wire.connections.iter().map(|(_, connection)| connection);
        self.certificate_expires = connections.filter(|one| one.closing.is_none()).filter_map(expires).min();
    }

    fn kick(&mut self, now: Instant, why: Closing, wanted: impl Fn(&Connection) -> bool) -> usize {
        let found: Vec<ConnectionId> = self
            .wire
            .connections
            .iter()
            .filter(|(_, connection)| connection.closing.is_none() && wanted(connection))
            .map(|(_, connection)| connection.id)
            .collect();
        for id in &found {
            self.core.handle(now, Input::Command(Command::Kick(*id, why)), &mut self.wire);
        }
        found.len()
    }

    fn report(&self) -> ShardReport {
        ShardReport {
            counters: self.core.counters(),
            gauges: self.core.gauges(),
            levels: self.levels,
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            packets_received: self.packets_received,
            packets_sent: self.wire.packets_sent,
            commits: self.wire.store.commit_times(),
        }
    }

    /// One slice of the oldest list in the making.
    pub(super) fn list(&mut self) {
        let Some(listing) = self.listings.front_mut() else { return };
        let (page, next) = self.core.sessions(listing.cursor, LIST_SLICE, listing.with_filters);
        for session in page {
            let connected = session
                .connection
                .and_then(|id| self.wire.connection(id))
                .filter(|connection| connection.closing.is_none())
                .map(|connection| ConnectedRow {
                    number: connection.about.number,
                    address: connection.about.peer.to_string(),
                    listener: connection.about.listener.to_string(),
                    level: connection.about.level,
                    version: connection.about.version.as_str(),
                    since: connection.about.since,
                });
            listing.rows.push(ClientRow {
                client: session.client.as_str().to_owned(),
                identity: session.identity.map(|identity| identity.as_str().to_owned()),
                connected,
                subscriptions: session.subscriptions,
                filters: session.filters,
                queued_messages: session.queued_messages,
                queued_bytes: session.queued_bytes,
                inflight_messages: session.inflight_messages,
            });
        }
        match next {
            Some(cursor) => listing.cursor = cursor,
            None => {
                let done = self.listings.pop_front().expect("looked at above");
                drop(done.answer.send(done.rows));
            }
        }
    }
}
