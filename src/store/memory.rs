use std::collections::VecDeque;

use super::recover::open;
use super::{Answer, Clocks, Durability, Engine, RamDisk, Store};
use crate::broker::{Change, MessageId, Ticket, Wanted};
use crate::types::ClientId;

/// The store over files in memory: nothing survives the process. Its answers can be held back, and
/// made to fail.
#[derive(Debug)]
pub struct MemoryStore {
    engine: Engine<RamDisk>,
    disk: RamDisk,
    waiting: VecDeque<(Ticket, bool)>,
    ready: VecDeque<Answer>,
    /// Answer only when told to.
    held: bool,
    /// Tickets appended from now on fail.
    failing: bool,
    clocks: Clocks,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new(Clocks::look())
    }
}

impl MemoryStore {
    pub fn new(clocks: Clocks) -> MemoryStore {
        MemoryStore::on(RamDisk::default(), clocks)
    }

    /// Goes on with what `disk` has.
    pub fn on(disk: RamDisk, clocks: Clocks) -> MemoryStore {
        let (engine, _) = open(disk.clone(), Durability::Fsync, clocks).expect("files in memory can be read");
        MemoryStore {
            engine,
            disk,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            held: false,
            failing: false,
            clocks,
        }
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
    fn append(&mut self, ticket: Ticket, changes: Vec<Change>) {
        let kept = !self.failing || !changes.iter().any(Change::may_fail);
        if kept {
            self.engine.append(self.clocks.now, ticket, &changes);
            self.engine.commit(self.clocks);
            while self.engine.poll_answer().is_some() {}
        }
        match self.held {
            true => self.waiting.push_back((ticket, kept)),
            false => self.answer((ticket, kept)),
        }
    }

    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted) {
        let found = self.engine.fetch(client, &wanted);
        self.ready.push_back(Answer::Fetched(client.clone(), number, found));
    }

    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        self.engine.rewind(client, &inflight);
    }

    fn poll_answer(&mut self) -> Option<Answer> {
        self.ready.pop_front()
    }
}
