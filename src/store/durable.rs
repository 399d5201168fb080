//! The store on a thread of its own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::batch::Batch;
use super::recover::{OpenError, Recovery, open};
use super::{Answer, Clocks, Durability, Engine, Folder, News, Sizes, Stats, Store};
use crate::broker::{Change, MessageId, Restored, Ticket, Wanted};
use crate::types::{ClientId, Histogram};

/// How long nothing has to come before the store tidies up.
const IDLE: Duration = Duration::from_secs(2);
/// Bytes appended at most before they are sent, about.
const APPENDED_MAX: usize = 64 * 1024;
/// Commands taken for one commit.
const BATCH_MAX: usize = 1_000;

enum Command {
    Append(Batch),
    Fetch(ClientId, u64, Wanted),
    Rewind(ClientId, Vec<MessageId>),
    Waker(Box<dyn Fn() + Send>),
    Stats(Sender<Stats>),
    Sync(Sender<std::io::Result<()>>),
    /// The files that a copy has to have; they stay until `Release`.
    Hold(Sender<Held>),
    /// Whether all was there until now.
    Release(u64, Sender<bool>),
    Stop,
}

/// The number of a hold, and the files with how much of each.
pub type Held = (u64, Vec<(String, u64)>);

/// The store of one shard; dropped, it writes down what is pending and ends.
pub struct DurableStore {
    commands: Sender<Command>,
    answers: Receiver<Vec<Answer>>,
    thread: Option<JoinHandle<()>>,
    /// Appended in this turn: sent together.
    appended: Batch,
    /// About what takes memory because it was sent and is not committed, bytes.
    pending: Arc<AtomicUsize>,
    commit_times: Arc<Histogram>,
    /// Answers that were received and not yet asked for.
    ready: VecDeque<Answer>,
}

/// Asks a running store from outside.
#[derive(Clone)]
pub struct StoreHandle {
    commands: Sender<Command>,
}

/// What comes of opening one.
pub struct Opened {
    pub store: DurableStore,
    pub handle: StoreHandle,
    pub restored: Restored,
    pub recovery: Recovery,
}

impl DurableStore {
    /// Opens the store in `folder`; `commit_delay` is how long a commit may wait for more to share it.
    pub fn open(folder: &Path, durability: Durability, commit_delay: Duration) -> Result<Opened, OpenError> {
        let clocks = Clocks::look();
        let (mut engine, mut recovery) = open(Folder::new(folder)?, durability, Sizes::default(), new_tag(), clocks)?;
        let restored = engine.restored(clocks);
        recovery.took = Clocks::look().now.saturating_duration_since(clocks.now);
        let (commands, inbox) = channel();
        let (answers, outbox) = channel();
        let handle = StoreHandle { commands: commands.clone() };
        let (appended, pending, commit_times) = (engine.batch(), Arc::default(), Arc::default());
        let mut committer = Committer {
            engine,
            folder: folder.to_owned(),
            inbox,
            answers,
            wake: Box::new(|| ()),
            commit_delay,
            first: None,
            fetches: Vec::new(),
            pending: Arc::clone(&pending),
            taken: 0,
            commit_times: Arc::clone(&commit_times),
        };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| committer.run()));
            if ran.is_err() {
                // Nobody would be acknowledged any more: better gone, and started anew with what is safe.
                error!("the store's thread has broken down: the broker ends");
                std::process::exit(101);
            }
        })?;
        let store = DurableStore {
            commands,
            answers: outbox,
            thread: Some(thread),
            appended,
            pending,
            commit_times,
            ready: VecDeque::new(),
        };
        Ok(Opened { store, handle, restored, recovery })
    }

    /// What was appended goes before.
    fn send(&mut self, command: Command) {
        self.flush();
        // It lives as long as this does.
        let _ = self.commands.send(command);
    }

    fn flush(&mut self) {
        if !self.appended.is_empty() {
            self.pending.fetch_add(self.appended.size(), Ordering::Relaxed);
            let _ = self.commands.send(Command::Append(self.appended.take()));
        }
    }
}

impl Drop for DurableStore {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Store for DurableStore {
    fn append(&mut self, ticket: Option<Ticket>, changes: &[Change]) {
        // Of those that go together the first is timed.
        let now = self.appended.since.unwrap_or_else(Clocks::monotonic);
        self.appended.append(now, ticket, changes);
        if self.appended.size() >= APPENDED_MAX {
            self.flush();
        }
    }

    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted) {
        self.send(Command::Fetch(client.clone(), number, wanted));
    }

    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        self.send(Command::Rewind(client.clone(), inflight));
    }

    fn poll_answer(&mut self) -> Option<Answer> {
        if self.ready.is_empty() {
            // What follows from the answers before goes together too.
            self.flush();
            self.ready.extend(self.answers.try_iter().flatten());
        }
        self.ready.pop_front()
    }

    fn pending_size(&self) -> usize {
        self.pending.load(Ordering::Relaxed) + self.appended.size()
    }

    fn commit_times(&self) -> Arc<Histogram> {
        self.commit_times.clone()
    }

    fn set_waker(&mut self, wake: Box<dyn Fn() + Send>) {
        self.send(Command::Waker(wake));
    }
}

impl StoreHandle {
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = channel();
        self.commands.send(command(answer)).ok()?;
        answered.recv_timeout(Duration::from_secs(60)).ok()
    }

    /// Blocks until the commit that is under way is done; `None` if the store has ended.
    pub fn stats(&self) -> Option<Stats> {
        self.ask(Command::Stats)
    }

    /// Has all that came until now written down and synced, whatever `durability` says.
    pub fn sync(&self) -> std::io::Result<()> {
        self.ask(Command::Sync).unwrap_or_else(|| Err(std::io::Error::other("the store does not answer")))
    }

    /// The files to copy, and how much of each; nothing is removed until [`StoreHandle::release`], or for
    /// an hour.
    pub fn hold(&self) -> Option<Held> {
        self.ask(Command::Hold)
    }

    /// Whether what was held was there until now.
    pub fn release(&self, number: u64) -> bool {
        self.ask(|answer| Command::Release(number, answer)).unwrap_or(false)
    }
}

#[expect(clippy::disallowed_methods, reason = "nobody is to guess it")]
fn new_tag() -> [u8; 4] {
    let mut tag = [0; 4];
    getrandom::fill(&mut tag).expect("the kernel's random generator");
    // Not what unused room is filled with.
    tag[0] |= 1;
    tag
}

/// The thread.
struct Committer {
    engine: Engine<Folder>,
    folder: PathBuf,
    inbox: Receiver<Command>,
    answers: Sender<Vec<Answer>>,
    wake: Box<dyn Fn() + Send>,
    commit_delay: Duration,
    /// When the first of what is pending came.
    first: Option<Instant>,
    /// Asked for, and answered after the commit.
    fetches: Vec<(ClientId, u64, Wanted)>,
    /// About what takes memory because it was sent here and is not committed, bytes.
    pending: Arc<AtomicUsize>,
    /// What of these has come.
    taken: usize,
    commit_times: Arc<Histogram>,
}

impl Committer {
    fn run(&mut self) {
        loop {
            let now = Clocks::monotonic();
            let due = [self.engine.retry_at(), self.first.map(|first| first + self.commit_delay)];
            let due = due.into_iter().flatten().max();
            let wait = due.map_or(IDLE, |due| due.saturating_duration_since(now));
            match self.inbox.recv_timeout(wait) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return self.stop(),
                Ok(command) => {
                    let now = Clocks::monotonic();
                    self.take(now, command);
                    // All that waits shares the commit.
                    for _ in 0..BATCH_MAX {
                        match self.inbox.try_recv() {
                            Ok(Command::Stop) => return self.stop(),
                            Ok(command) => self.take(now, command),
                            Err(_) => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let clocks = Clocks::look();
            let waited = self.first.map(|first| clocks.now.saturating_duration_since(first));
            if waited.is_some_and(|waited| waited >= self.commit_delay) || !self.fetches.is_empty() {
                self.commit(clocks);
            } else if self.first.is_none() {
                self.engine.note_time(clocks);
            }
            // Answers do not wait for what can wait.
            self.tell();
            self.fetch();
            self.engine.maintain(clocks);
            self.tell();
        }
    }

    /// Brings back what was asked for since the last commit, and sees it.
    fn fetch(&mut self) {
        for (client, number, wanted) in std::mem::take(&mut self.fetches) {
            let found = self.engine.fetch(&client, &wanted);
            let _ = self.answers.send(vec![Answer::Fetched(client, number, found)]);
            (self.wake)();
        }
    }

    /// What is pending is written down, and a checkpoint, so that the next start has little to read.
    fn stop(&mut self) {
        let clocks = Clocks::look();
        self.commit(clocks);
        self.engine.checkpoint(clocks);
        self.tell();
    }

    fn take(&mut self, now: Instant, command: Command) {
        match command {
            Command::Append(batch) => {
                self.first.get_or_insert(now);
                self.taken += batch.size();
                self.engine.append(batch);
            }
            // What was appended before is to be seen.
            Command::Fetch(client, number, wanted) => self.fetches.push((client, number, wanted)),
            Command::Rewind(client, inflight) => {
                // Who asked before does not want it any more.
                self.fetches.retain(|(asked, ..)| *asked != client);
                self.engine.rewind(&client, inflight);
            }
            Command::Stats(answer) => drop(answer.send(self.engine.stats())),
            Command::Sync(answer) => {
                self.commit(Clocks::look());
                let synced = match self.engine.has_pending() {
                    true => Err(std::io::Error::other("it cannot be written")),
                    // All segments, and their folder.
                    false => std::fs::File::open(&self.folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?)),
                };
                drop(answer.send(synced));
            }
            Command::Hold(answer) => {
                let clocks = Clocks::look();
                self.commit(clocks);
                drop(answer.send(self.engine.hold(clocks)));
            }
            Command::Release(number, answer) => drop(answer.send(self.engine.release(number, Clocks::look()))),
            Command::Waker(wake) => self.wake = wake,
            Command::Stop => {}
        }
    }

    fn commit(&mut self, clocks: Clocks) {
        self.engine.commit(clocks);
        let now = Clocks::monotonic();
        for (since, count) in self.engine.waited() {
            self.commit_times.observe_all(now.saturating_duration_since(*since), *count);
        }
        let left = self.engine.pending_size();
        self.pending.fetch_sub(self.taken - left, Ordering::Relaxed);
        self.taken = left;
        if !self.engine.has_pending() {
            self.first = None;
        }
    }

    fn tell(&mut self) {
        let answers = self.engine.take_answers();
        if !answers.is_empty() {
            let _ = self.answers.send(answers);
            (self.wake)();
        }
        while let Some(news) = self.engine.poll_news() {
            match news {
                News::Failing(cause) => error!(
                    "the store cannot be written: {cause}; nothing durable is acknowledged until it can be: free \
                     space, or look at the disk"
                ),
                News::Recovered => info!("the store can be written again"),
                News::CheckpointFailed(cause) => warn!("no checkpoint of the store could be written: {cause}"),
                News::BodyLost { client, segment } => {
                    error!("a message for client {client:?} cannot be read any more: {segment} is damaged");
                }
            }
        }
    }
}
