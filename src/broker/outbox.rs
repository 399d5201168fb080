use std::sync::Arc;

use bytes::Bytes;

use super::change::{Change, Fetched, Restored, Ticket, Wanted};
use super::connection::ConnectionId;
use super::letter::{Letter, ShardId};
use super::message::MessageId;
use super::violation::Violation;
use crate::codec::{DecodeError, Packet};
use crate::types::{ClientId, Entrance, Identity, QoS, Realm, ReasonCode};

/// What happens to the core. A packet borrows from the read buffer.
#[derive(Debug)]
pub enum Input<'a> {
    /// The gate let a client in.
    Connected(ConnectionId, Admission<'a>),
    Received(ConnectionId, Packet<'a>),
    /// Bytes that are no packet.
    Malformed(ConnectionId, DecodeError),
    /// The socket took what was written: the backlog is down again.
    Drained(ConnectionId),
    /// The connection is gone without a DISCONNECT.
    Lost(ConnectionId),
    /// A deadline that [`super::Core::next_deadline`] named has come.
    Timer,
    /// What was persisted under this ticket is safe.
    Committed(Ticket),
    /// What was persisted under this ticket is not safe and will not be.
    Failed(Ticket),
    /// The store's answer to [`Outbox::fetch`], under the number given there.
    Fetched(ClientId, u64, Vec<Fetched>),
    /// What the store had at start: before anything else.
    Restored(Restored),
    Command(Command),
    /// What another shard of the broker told this one.
    Heard(ShardId, Letter),
}

/// An authenticated client with its CONNECT.
#[derive(Debug)]
pub struct Admission<'a> {
    pub connect: &'a crate::codec::Connect<'a>,
    /// As sent, or as the gate assigned it.
    pub client: ClientId,
    /// The client sent none: MQTT 5 tells it.
    pub assigned: bool,
    /// `None`: anonymous.
    pub identity: Option<Identity>,
    /// What the last step of an extended authentication had to say [MQTT-4.12.0-5].
    pub authentication_data: Option<&'a [u8]>,
    /// What an MQTT 5 client should know, for CONNACK's reason string (MQTT 5 section 3.2.2.3.9).
    pub notice: Option<&'a str>,
    pub entrance: Arc<Entrance>,
}

/// What an administrator asks for.
#[derive(Debug)]
pub enum Command {
    /// Ends a connection.
    Kick(ConnectionId, Closing),
    /// Ends all sessions of an identity that is no more; of one realm, or of all.
    Forget(Identity, Option<Realm>),
    /// Messages of the broker's own, at QoS 0.
    Announce(Vec<Announcement>),
    /// DISCONNECT 0x8B to all, then close.
    ShutDown,
}

/// What a broker says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// Below `$SYS/` or `$CONTROL/`.
    pub topic: String,
    pub text: String,
    /// It is so until something else is said.
    pub retained: bool,
    /// For this client alone, whatever it subscribes to.
    pub to: Option<ClientId>,
}

/// Why the core ends a connection, or how it learnt of its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// DISCONNECT from the client, with its reason.
    ByClient(ReasonCode),
    /// The transport went away without DISCONNECT.
    Lost,
    Violation(Violation),
    TakenOver,
    /// `lockgate client kick`.
    Kicked,
    /// Its identity or certificate is no longer valid.
    Revoked,
    /// Its certificate has come to its end.
    CertificateExpired,
    /// It was asked to authenticate again, at its own wish, and could not.
    NotAuthenticated,
    ShuttingDown,
    /// The session belongs to another identity.
    NotOwner,
    /// The will's topic is outside the ACL.
    WillNotAllowed,
    /// The will's payload says that it is UTF-8 and is not.
    WillInvalid,
    TooManySessions,
    /// Its keep alive is longer than is allowed, and its version has no way to tell it another.
    KeepAliveTooLong,
    StoreFailed,
}

/// A payload on its way out: shared where it is kept anyway, borrowed where it passes through.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    Borrowed(&'a [u8]),
    Shared(&'a Bytes),
}

impl Payload<'_> {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Shared(bytes) => bytes,
        }
    }
}

/// Where the core's output goes: the shard's write path, or a recorder in tests.
pub trait Outbox {
    /// Bytes of whole packets for a connection.
    fn write(&mut self, to: ConnectionId, bytes: &[u8]);

    /// A PUBLISH: `head`, then the payload.
    fn publish(&mut self, to: ConnectionId, head: &[u8], payload: Payload<'_>);

    /// Bytes written for `to` that its socket has not taken.
    fn backlog(&self, to: ConnectionId) -> usize;

    /// Whether what `from` sends is read now; while it is not, its keep alive rests.
    fn is_read(&self, _from: ConnectionId) -> bool {
        true
    }

    /// End the connection once what was written has left. No input of this connection comes after.
    fn close(&mut self, to: ConnectionId, why: Closing);

    /// Make `changes` durable, all or none, and answer `Committed` or `Failed` under the ticket, if there is one.
    fn persist(&mut self, ticket: Option<Ticket>, changes: &[Change]);

    /// Bring messages of a client's queue from the store: answered by `Fetched`. What was persisted before
    /// and is committed is seen.
    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted);

    /// The core has dropped what it had at hand of a client's queue but for `inflight`: the store will be
    /// asked for it.
    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>);

    /// Tell another shard of the broker: it is given [`Input::Heard`], in the order of telling. A
    /// broker of one shard never calls this.
    fn tell(&mut self, to: ShardId, letter: Letter);

    /// `from` asks the broker itself, below `$CONTROL/`: answered by [`Command::Announce`] later, if it was taken.
    fn ask(&mut self, from: ConnectionId, topic: &str, payload: &[u8]) -> bool;

    /// Something that the log is to know.
    fn note(&mut self, note: Note<'_>);
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug)]
pub enum Note<'a> {
    Connected { connection: ConnectionId, session_present: bool },
    PublishDenied { connection: ConnectionId, topic: &'a str },
    Subscribed { connection: ConnectionId, filter: &'a str, qos: QoS },
    Unsubscribed { connection: ConnectionId, filter: &'a str },
    SubscribeDenied { connection: ConnectionId, filter: &'a str, reason: ReasonCode },
    QueueFull { client: &'a ClientId },
    RetainedFull { topic: &'a str },
    SessionExpired { client: &'a ClientId },
}
