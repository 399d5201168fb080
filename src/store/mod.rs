//! Where durable changes go.
//!
//! [`Store::append`] takes changes under a ticket and answers later, through
//! [`Store::poll_answer`]; [`Store::fetch`] brings queued messages back. [`Engine`] is the store
//! itself, over a [`Disk`]; [`DurableStore`] runs it on a thread of its own; [`MemoryStore`] runs it in
//! memory, with answers that can be held back and made to fail, so that the core's waiting can be
//! tested.

mod backup;
mod batch;
mod checkpoint;
mod disk;
mod durable;
mod engine;
mod fetch;
mod frame;
mod frozen;
mod full;
mod image;
mod memory;
mod ram;
mod reader;
mod record;
mod recover;
mod time;

pub use backup::{BackupError, Copied, Manifest, copy, copy_file, look, read_manifest, restore, write_manifest};
pub use disk::{Disk, DiskFile, Folder};
pub use durable::{DurableStore, Held, Opened, StoreHandle};
pub use engine::{Engine, News, Sizes, Stats};
pub use frozen::{Frozen, FrozenFile};
pub use full::FullStore;
pub use memory::MemoryStore;
pub use ram::{RamDisk, RamHandle};
pub use recover::{Damage, OpenError, Recovery};
pub use time::Clocks;

use std::sync::Arc;

use crate::broker::{Change, Fetched, MessageId, Ticket, Wanted};
use crate::types::{ClientId, Histogram};

/// What is to survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// A power cut: every commit is synced.
    #[default]
    Fsync,
    /// A crash of the process: every commit is written, the system syncs when it likes.
    Process,
    /// Nothing: state is in memory.
    Off,
}

impl Durability {
    pub const ALL: [Durability; 3] = [Durability::Fsync, Durability::Process, Durability::Off];

    /// As configurations have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Fsync => "fsync",
            Durability::Process => "process",
            Durability::Off => "off",
        }
    }

    pub fn parse(text: &str) -> Option<Durability> {
        Durability::ALL.into_iter().find(|durability| durability.as_str() == text)
    }
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the store has to say.
#[derive(Debug)]
pub enum Answer {
    Committed(Ticket),
    Failed(Ticket),
    Fetched(ClientId, u64, Vec<Fetched>),
}

/// Keeps nothing: for a core that asks for nothing to be kept.
#[derive(Debug, Default)]
pub struct NoStore {
    answers: std::collections::VecDeque<Answer>,
}

impl Store for NoStore {
    fn append(&mut self, ticket: Option<Ticket>, _: &[Change]) {
        self.answers.extend(ticket.map(Answer::Committed));
    }

    fn fetch(&mut self, client: &ClientId, number: u64, _: Wanted) {
        self.answers.push_back(Answer::Fetched(client.clone(), number, Vec::new()));
    }

    fn rewind(&mut self, _: &ClientId, _: Vec<MessageId>) {}

    fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}

pub trait Store {
    /// Takes `changes` to be made durable together; never blocks. Answered under `ticket`, if there is one;
    /// those of which one [must be kept] are never answered by `Failed`.
    ///
    /// [must be kept]: Change::must_be_kept
    fn append(&mut self, ticket: Option<Ticket>, changes: &[Change]);

    /// Answered by [`Answer::Fetched`] under the same number. What was appended before and is committed
    /// is seen.
    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted);

    /// The core has dropped what it had at hand of the client's queue, but for `inflight`.
    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>);

    /// The next answer that is ready.
    fn poll_answer(&mut self) -> Option<Answer>;

    /// About what takes memory because it was appended and is not committed, bytes.
    fn pending_size(&self) -> usize {
        0
    }

    /// How long tickets waited for their commits, where that is measured.
    fn commit_times(&self) -> Arc<Histogram> {
        Arc::default()
    }

    /// What is to be called when there are answers that came by themselves.
    fn set_waker(&mut self, _wake: Box<dyn Fn() + Send>) {}
}
