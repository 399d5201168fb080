//! Everything after a client is in: one thread with an event loop that owns its connections,
//! sessions, subscriptions and retained messages.
//!
//! A turn: wait for readiness; read each ready socket and handle its packets; take what came in by
//! [`Handle`]; the timers; then the store's answers and the writes, until nothing follows from them.
//! The clock and randomness have their only doors here.

mod farewell;
mod link;
mod output;
mod report;
mod turn;
mod wire;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

pub use report::{ClientRow, ConnectedRow, ShardReport};

use crate::auth::Acl;
use crate::broker::{Core, Limits, Options};
use crate::handover::Handover;
use crate::store::Store;
use crate::types::Identity;

/// What a shard is told from outside.
pub(crate) enum Message {
    Adopt(Box<Handover>),
    Configure {
        limits: Limits,
        acl: Arc<Acl>,
    },
    /// DISCONNECT 0x98 for all connections of an identity or client id; answers how many.
    Kick(String, oneshot::Sender<usize>),
    /// These can no longer come in: their sessions end.
    Forget(Vec<Identity>),
    /// Connections that came in by these certificates end.
    Revoke(Vec<Vec<u8>>),
    Report(oneshot::Sender<ShardReport>),
    Clients(oneshot::Sender<Vec<ClientRow>>),
    Ping(oneshot::Sender<()>),
    ShutDown(oneshot::Sender<()>),
}

/// The way into a running shard. Cloning it is cheap; nothing here blocks.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    waker: Arc<mio::Waker>,
}

/// The shard is gone.
#[derive(Debug, thiserror::Error)]
#[error("the broker's engine has stopped")]
pub struct Stopped;

impl Handle {
    fn send(&self, message: Message) -> Result<(), Stopped> {
        self.inbox.send(message).map_err(|_| Stopped)?;
        self.waker.wake().map_err(|_| Stopped)
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(message(answer))?;
        answered.await.map_err(|_| Stopped)
    }

    /// Takes over a client that the gate let in.
    pub fn adopt(&self, handover: Handover) -> Result<(), Stopped> {
        self.send(Message::Adopt(Box::new(handover)))
    }

    pub fn configure(&self, limits: Limits, acl: Arc<Acl>) -> Result<(), Stopped> {
        self.send(Message::Configure { limits, acl })
    }

    /// Disconnects an identity's connections, or a client id's; says how many there were.
    pub async fn kick(&self, name: String) -> Result<usize, Stopped> {
        self.ask(|answer| Message::Kick(name, answer)).await
    }

    pub fn forget(&self, identities: Vec<Identity>) -> Result<(), Stopped> {
        self.send(Message::Forget(identities))
    }

    pub fn revoke(&self, serials: Vec<Vec<u8>>) -> Result<(), Stopped> {
        self.send(Message::Revoke(serials))
    }

    pub async fn report(&self) -> Result<ShardReport, Stopped> {
        self.ask(Message::Report).await
    }

    /// All sessions, gathered in slices.
    pub async fn clients(&self) -> Result<Vec<ClientRow>, Stopped> {
        self.ask(Message::Clients).await
    }

    /// Answered by the next turn: the event loop lives.
    pub async fn ping(&self) -> Result<(), Stopped> {
        self.ask(Message::Ping).await
    }

    /// Says goodbye to all clients; answered when what was written has left, or could not.
    pub async fn shut_down(&self) -> Result<(), Stopped> {
        self.ask(Message::ShutDown).await
    }
}

/// Starts a shard's thread.
pub fn spawn(
    limits: Limits,
    durable: bool,
    acl: Arc<Acl>,
    store: Box<dyn Store + Send>,
) -> io::Result<(Handle, JoinHandle<()>)> {
    let poll = mio::Poll::new()?;
    let waker = Arc::new(mio::Waker::new(poll.registry(), turn::WAKER)?);
    let (inbox, messages) = mpsc::channel();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let word = |at: usize| u64::from_ne_bytes(seed[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
    let options = Options { limits, durable, seed: std::array::from_fn(word) };
    let core = Core::new(options, acl);
    let thread = std::thread::Builder::new()
        .name("shard-0".to_owned())
        .spawn(move || turn::Shard::new(poll, messages, core, store).run())?;
    Ok((Handle { inbox, waker }, thread))
}
