//! Everything after a client is in: one thread with an event loop that owns its connections,
//! sessions, subscriptions and retained messages.
//!
//! A turn: wait for readiness; read each ready socket and handle its packets; take what came in by
//! [`Handle`]; the timers; then the store's answers and the writes, until nothing follows from them.
//! The clock and randomness have their only doors here.

mod farewell;
mod link;
mod mischief;
mod output;
mod report;
mod requests;
mod turn;
mod wire;

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::SystemTime;

use tokio::sync::oneshot;

pub use mischief::DIED;
pub use report::{ClientRow, ConnectedRow, ShardReport};

use wire::Wire;

use crate::auth::{Acl, Methods};
use crate::broker::{Announcement, Core, Letter, Limits, Options, Restored, ShardId};
use crate::config::Faults;
use crate::handover::Handover;
use crate::store::Store;
use crate::types::{CertificateId, ClientId, Identity, Realm};

/// What a shard is told from outside.
pub(crate) enum Message {
    Adopt(Box<Handover>),
    /// From another shard.
    Letter(ShardId, Letter),
    Configure {
        limits: Limits,
        acl: Arc<Acl>,
    },
    /// DISCONNECT 0x98 for all connections of an identity or client id; answers how many.
    Kick(String, oneshot::Sender<usize>),
    /// These can no longer come in: their sessions end.
    Forget(Vec<(Identity, Option<Realm>)>),
    /// Connections that came in by these certificates end.
    Revoke(Arc<[CertificateId]>),
    /// Connections whose certificate is past its time by now end.
    Expire(SystemTime),
    /// Messages of the broker's own.
    Announce(Vec<Announcement>),
    Report(oneshot::Sender<ShardReport>),
    /// All sessions; with their filters or without.
    Clients(oneshot::Sender<Vec<ClientRow>>, bool),
    /// Messages and bytes that wait for all sessions.
    Queued(oneshot::Sender<(usize, usize)>),
    Ping(oneshot::Sender<()>),
    ShutDown(oneshot::Sender<()>),
}

/// One shard's inbox and what wakes it.
pub(crate) struct Inbox {
    messages: mpsc::Sender<Message>,
    waker: Arc<mio::Waker>,
}

impl Inbox {
    fn send(&self, message: Message) -> Result<(), Stopped> {
        self.messages.send(message).map_err(|_| Stopped)?;
        self.waker.wake().map_err(|_| Stopped)
    }
}

/// All shards' inboxes. Once the last [`Handle`] is gone the shards are told so, and end.
struct Inboxes(Vec<Inbox>);

impl Drop for Inboxes {
    fn drop(&mut self) {
        for Inbox { messages, waker } in self.0.drain(..) {
            drop(messages);
            let _ = waker.wake();
        }
    }
}

/// A shard's way to the others, which does not keep them alive.
pub(crate) struct Peers {
    me: ShardId,
    inboxes: Weak<Inboxes>,
}

impl Peers {
    fn tell(&self, to: ShardId, letter: Letter) {
        // One that has stopped needs to know nothing any more.
        if let Some(inboxes) = self.inboxes.upgrade() {
            let _ = inboxes.0[usize::from(to.0)].send(Message::Letter(self.me, letter));
        }
    }
}

/// The way into a broker's running shards. Cloning it is cheap; nothing here blocks.
#[derive(Clone)]
pub struct Handle {
    shards: Arc<Inboxes>,
    seed: [u64; 4],
}

/// The shard is gone.
#[derive(Debug, thiserror::Error)]
#[error("the broker's engine has stopped")]
pub struct Stopped;

impl Handle {
    fn send_all(&self, message: impl Fn() -> Message) -> Result<(), Stopped> {
        self.shards.0.iter().try_for_each(|shard| shard.send(message()))
    }

    /// Asks all shards at once; gives their answers in their order.
    async fn ask_all<T>(&self, message: impl Fn(oneshot::Sender<T>) -> Message) -> Result<Vec<T>, Stopped> {
        let mut asked = Vec::with_capacity(self.shards.0.len());
        for shard in &self.shards.0 {
            let (answer, answered) = oneshot::channel();
            shard.send(message(answer))?;
            asked.push(answered);
        }
        let mut answers = Vec::with_capacity(asked.len());
        for answered in asked {
            answers.push(answered.await.map_err(|_| Stopped)?);
        }
        Ok(answers)
    }

    /// Takes over a client that the gate let in.
    pub fn adopt(&self, handover: Handover) -> Result<(), Stopped> {
        let shard = Core::shard_of(self.seed, self.shards.0.len() as u16, &handover.client);
        self.shards.0[usize::from(shard.0)].send(Message::Adopt(Box::new(handover)))
    }

    pub fn configure(&self, limits: &Limits, acl: &Arc<Acl>) -> Result<(), Stopped> {
        self.send_all(|| Message::Configure { limits: limits.clone(), acl: acl.clone() })
    }

    /// Disconnects an identity's connections, or a client id's; says how many there were.
    pub async fn kick(&self, name: String) -> Result<usize, Stopped> {
        Ok(self.ask_all(|answer| Message::Kick(name.clone(), answer)).await?.into_iter().sum())
    }

    pub fn forget(&self, identities: &[(Identity, Option<Realm>)]) -> Result<(), Stopped> {
        self.send_all(|| Message::Forget(identities.to_vec()))
    }

    pub fn revoke(&self, certificates: Vec<CertificateId>) -> Result<(), Stopped> {
        let certificates: Arc<[CertificateId]> = certificates.into();
        self.send_all(|| Message::Revoke(certificates.clone()))
    }

    /// Ends the connections whose client's certificate has expired by `now`.
    pub fn expire(&self, now: SystemTime) -> Result<(), Stopped> {
        self.send_all(|| Message::Expire(now))
    }

    pub async fn report(&self) -> Result<ShardReport, Stopped> {
        let reports = self.ask_all(Message::Report).await?;
        Ok(reports.into_iter().reduce(ShardReport::and).expect("there is a shard"))
    }

    /// All sessions, gathered in slices.
    pub async fn clients(&self) -> Result<Vec<ClientRow>, Stopped> {
        Ok(self.ask_all(|answer| Message::Clients(answer, false)).await?.into_iter().flatten().collect())
    }

    /// The same with what they subscribe to.
    pub async fn clients_with_filters(&self) -> Result<Vec<ClientRow>, Stopped> {
        Ok(self.ask_all(|answer| Message::Clients(answer, true)).await?.into_iter().flatten().collect())
    }

    /// Messages and bytes that wait for all sessions together; each is counted for each session.
    pub async fn queued(&self) -> Result<(usize, usize), Stopped> {
        let queued = self.ask_all(Message::Queued).await?.into_iter();
        Ok(queued.fold((0, 0), |(count, bytes), (more, size)| (count + more, bytes + size)))
    }

    /// Publishes what the broker says of itself.
    pub fn announce(&self, messages: Vec<Announcement>) -> Result<(), Stopped> {
        self.shards.0[0].send(Message::Announce(messages))
    }

    /// Says something to one client alone.
    pub fn tell(&self, client: ClientId, topic: String, text: String) -> Result<(), Stopped> {
        let shard = Core::shard_of(self.seed, self.shards.0.len() as u16, &client);
        let message = Announcement { topic, text, retained: false, to: Some(client) };
        self.shards.0[usize::from(shard.0)].send(Message::Announce(vec![message]))
    }

    /// Answered by the next turn: the event loops live.
    pub async fn ping(&self) -> Result<(), Stopped> {
        self.ask_all(Message::Ping).await.map(|_| ())
    }

    /// Says goodbye to all clients; answered when what was written has left, or could not.
    pub async fn shut_down(&self) -> Result<(), Stopped> {
        self.ask_all(Message::ShutDown).await.map(|_| ())
    }
}

/// What a client asks the broker itself, below `$CONTROL/`.
#[derive(Debug)]
pub struct Question {
    pub topic: String,
    pub payload: Vec<u8>,
    pub client: ClientId,
    pub identity: Option<Identity>,
}

/// What shards are started with.
pub struct Start {
    pub limits: Limits,
    pub acl: Arc<Acl>,
    /// Whether changes go to the stores and acknowledgements wait for them.
    pub durable: bool,
    /// One for each shard.
    pub stores: Vec<Box<dyn Store + Send>>,
    /// What the store of the only shard had.
    pub restored: Option<Restored>,
    pub methods: Methods,
    /// Who answers what clients ask of the broker.
    pub questions: Option<tokio::sync::mpsc::Sender<Question>>,
    /// What goes wrong on purpose.
    pub faults: Faults,
}

/// Starts a thread for each shard.
pub fn spawn(mut start: Start) -> io::Result<(Handle, Vec<JoinHandle<()>>)> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    let word = |at: usize| u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
    let seed: [u64; 4] = std::array::from_fn(word);
    let mut inboxes = Vec::new();
    let mut ends = Vec::new();
    for _ in &start.stores {
        let poll = mio::Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), turn::WAKER)?);
        let (messages, inbox) = mpsc::channel();
        inboxes.push(Inbox { messages, waker: waker.clone() });
        ends.push((poll, inbox, waker));
    }
    let shards = Arc::new(Inboxes(inboxes));
    let mut threads = Vec::new();
    for (at, ((poll, inbox, waker), mut store)) in ends.into_iter().zip(std::mem::take(&mut start.stores)).enumerate() {
        let me = ShardId(at as u16);
        let options = Options {
            limits: start.limits.clone(),
            durable: start.durable,
            seed,
            shard: me,
            shards: shards.0.len() as u16,
            methods: start.methods.clone(),
        };
        let core = Core::new(options, start.acl.clone());
        let peers = Peers { me, inboxes: Arc::downgrade(&shards) };
        let restored = start.restored.take();
        let bell = waker.clone();
        store.set_waker(Box::new(move || drop(bell.wake())));
        let wire = Wire::new(store, peers, start.questions.clone(), mischief::Mischief::of(&start.faults));
        let thread = std::thread::Builder::new().name(format!("shard-{at}")).spawn(move || {
            turn::Shard::new(poll, inbox, core, wire).run(restored);
            // A waker that is gone before its event was seen wakes nobody.
            drop(waker);
        })?;
        threads.push(thread);
    }
    Ok((Handle { shards, seed }, threads))
}
