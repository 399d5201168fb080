use std::collections::VecDeque;

use super::recover::open;
use super::{Answer, Clocks, Durability, Engine, OpenError, RamDisk, Recovery, Sizes, Store};
use crate::broker::{Change, MessageId, Restored, Ticket, Wanted};
use crate::types::ClientId;

/// The store over files in memory: nothing survives the process. Its answers can be held back, and
/// made to fail; the files can be made to fail, and lose their power.
#[derive(Debug)]
pub struct MemoryStore {
    engine: Engine<RamDisk>,
    disk: RamDisk,
    sizes: Sizes,
    waiting: VecDeque<(Ticket, bool)>,
    ready: VecDeque<Answer>,
    /// Answer only when told to.
    held: bool,
    /// Write only when told to.
    lazy: bool,
    /// Tickets appended from now on fail.
    failing: bool,
    clocks: Clocks,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new(Clocks::look(), Sizes::default())
    }
}

impl MemoryStore {
    pub fn new(clocks: Clocks, sizes: Sizes) -> MemoryStore {
        let (store, ..) = MemoryStore::open(RamDisk::default(), sizes, clocks).expect("an empty disk");
        store
    }

    /// Goes on with what `disk` has.
    pub fn open(disk: RamDisk, sizes: Sizes, clocks: Clocks) -> Result<(MemoryStore, Restored, Recovery), OpenError> {
        let (mut engine, recovery) = open(disk.clone(), Durability::Fsync, sizes, *b"LgF1", clocks)?;
        let restored = engine.restored(clocks);
        let store = MemoryStore {
            engine,
            disk,
            sizes,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            held: false,
            lazy: false,
            failing: false,
            clocks,
        };
        Ok((store, restored, recovery))
    }

    /// Goes on with what its own disk has, as another process would.
    pub fn reopen(&mut self) -> Result<(Restored, Recovery), OpenError> {
        let (store, restored, recovery) = MemoryStore::open(self.disk.clone(), self.sizes, self.clocks)?;
        *self = MemoryStore { held: self.held, lazy: self.lazy, ..store };
        Ok((restored, recovery))
    }

    pub fn engine(&mut self) -> &mut Engine<RamDisk> {
        &mut self.engine
    }

    pub fn disk(&self) -> &RamDisk {
        &self.disk
    }

    /// What time it is from now on.
    pub fn set_clocks(&mut self, clocks: Clocks) {
        self.clocks = clocks;
    }

    /// From now on answers wait for [`MemoryStore::release`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// From now on nothing is written before [`MemoryStore::work`].
    pub fn be_lazy(&mut self) {
        self.lazy = true;
    }

    /// Writes down what is pending.
    pub fn work(&mut self) {
        self.engine.commit(self.clocks);
        self.engine.maintain(self.clocks);
        self.ready.extend(self.engine.take_answers());
    }

    /// Whether what is appended from now on fails.
    pub fn set_failing(&mut self, failing: bool) {
        self.failing = failing;
    }

    /// Lets go up to `count` held answers: the oldest, or those that `pick` chooses by position.
    pub fn release(&mut self, count: usize, mut pick: impl FnMut(usize) -> usize) {
        for _ in 0..count.min(self.waiting.len()) {
            let at = pick(self.waiting.len()) % self.waiting.len();
            if let Some(answer) = self.waiting.remove(at) {
                self.answer(answer);
            }
        }
    }

    /// Bodies that somebody waits for, or that are retained.
    pub fn len(&self) -> usize {
        self.engine.bodies()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn answer(&mut self, (ticket, kept): (Ticket, bool)) {
        self.ready.push_back(if kept { Answer::Committed(ticket) } else { Answer::Failed(ticket) });
    }
}

impl Store for MemoryStore {
    fn append(&mut self, ticket: Option<Ticket>, changes: &[Change]) {
        let mut batch = self.engine.batch();
        batch.append(self.clocks.now, ticket, changes);
        if self.lazy {
            return self.engine.append(batch);
        }
        let kept = !self.failing || changes.iter().any(Change::must_be_kept);
        if kept {
            self.engine.append(batch);
            self.engine.commit(self.clocks);
            self.engine.maintain(self.clocks);
            self.engine.take_answers();
        }
        let Some(ticket) = ticket else { return };
        match self.held {
            true => self.waiting.push_back((ticket, kept)),
            false => self.answer((ticket, kept)),
        }
    }

    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted) {
        if self.lazy {
            self.work();
        }
        let found = self.engine.fetch(client, &wanted);
        self.ready.push_back(Answer::Fetched(client.clone(), number, found));
    }

    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        self.engine.rewind(client, inflight);
    }

    fn poll_answer(&mut self) -> Option<Answer> {
        self.ready.pop_front()
    }
}
