//! The core's output, written down, with the memory store behind it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, VecDeque};

use lockgate::broker::{
    Change, Closing, ConnectionId, Letter, MessageId, Note, Outbox, Payload, ShardId, Ticket, Wanted,
};
use lockgate::store::{MemoryStore, Store};
use lockgate::types::ClientId;

#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) written: BTreeMap<ConnectionId, Vec<u8>>,
    /// What a connection's socket does not take: the rest is backlog.
    pub(crate) stalled: BTreeMap<ConnectionId, usize>,
    pub(crate) closed: BTreeMap<ConnectionId, Closing>,
    pub(crate) store: MemoryStore,
    /// Questions to the store, and the shard that asked.
    pub(crate) asked: BTreeMap<(ClientId, u64), ShardId>,
    pub(crate) notes: Vec<String>,
    /// What clients asked the broker itself.
    pub(crate) questions: Vec<(String, Vec<u8>)>,
    /// Say what is persisted and told.
    pub(crate) trace: bool,
    /// The shard whose turn it is.
    pub(crate) speaking: ShardId,
    pub(crate) inboxes: BTreeMap<ShardId, VecDeque<(ShardId, Letter)>>,
    /// FNV-1a of all that was written and to whom: two runs of one seed have the same.
    pub(crate) digest: u64,
}

impl Outbox for Recorder {
    fn write(&mut self, to: ConnectionId, bytes: &[u8]) {
        assert!(!self.closed.contains_key(&to), "written after close");
        for byte in bytes.iter().chain(&to.epoch.to_le_bytes()) {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
        self.written.entry(to).or_default().extend_from_slice(bytes);
        if let Some(backlog) = self.stalled.get_mut(&to) {
            *backlog += bytes.len();
        }
    }

    fn publish(&mut self, to: ConnectionId, head: &[u8], payload: Payload<'_>) {
        self.write(to, &[head, payload.as_slice()].concat());
    }

    fn backlog(&self, to: ConnectionId) -> usize {
        self.stalled.get(&to).copied().unwrap_or(0)
    }

    fn close(&mut self, to: ConnectionId, why: Closing) {
        assert!(self.closed.insert(to, why).is_none(), "closed twice");
    }

    fn persist(&mut self, ticket: Option<Ticket>, changes: &[Change]) {
        if self.trace {
            eprintln!("    {:?} persists {ticket:?}: {changes:?}", self.speaking);
        }
        self.store.append(ticket, changes);
    }

    fn fetch(&mut self, client: &ClientId, number: u64, wanted: Wanted) {
        if self.trace {
            eprintln!("    {:?} fetches {wanted:?} of {client:?}", self.speaking);
        }
        self.asked.insert((client.clone(), number), self.speaking);
        self.store.fetch(client, number, wanted);
    }

    fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        self.store.rewind(client, inflight);
    }

    fn tell(&mut self, to: ShardId, letter: Letter) {
        assert_ne!(to, self.speaking, "a letter to itself");
        if self.trace {
            eprintln!("    {:?} tells {to:?}: {letter:?}", self.speaking);
        }
        self.inboxes.entry(to).or_default().push_back((self.speaking, letter));
    }

    fn ask(&mut self, _: ConnectionId, topic: &str, payload: &[u8]) -> bool {
        // As a broker that takes two at a time.
        let taken = self.questions.len() < 2;
        if taken {
            self.questions.push((topic.to_owned(), payload.to_vec()));
        }
        taken
    }

    fn note(&mut self, note: Note<'_>) {
        self.notes.push(format!("{note:?}"));
    }
}
