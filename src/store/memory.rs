use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Answer, Store};
use crate::broker::{Change, Message, MessageId, Ticket};
use crate::types::ClientId;

/// Keeps queued messages while somebody waits for them, in memory: nothing survives the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    messages: BTreeMap<MessageId, (Arc<Message>, BTreeSet<ClientId>)>,
    /// What each client waits for.
    clients: BTreeMap<ClientId, BTreeSet<MessageId>>,
    waiting: VecDeque<Ticket>,
    ready: VecDeque<Answer>,
    /// Answer only when told to.
    held: bool,
    /// Tickets appended from now on fail.
    failing: bool,
    failed: Vec<Ticket>,
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::default()
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
            if let Some(ticket) = self.waiting.remove(at) {
                self.answer(ticket);
            }
        }
    }

    /// Messages that somebody waits for.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn answer(&mut self, ticket: Ticket) {
        let failed = self.failed.iter().position(|known| *known == ticket);
        self.ready.push_back(match failed {
            Some(at) => {
                self.failed.swap_remove(at);
                Answer::Failed(ticket)
            }
            None => Answer::Committed(ticket),
        });
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Message { message, queued, .. } => {
                for queued in queued {
                    self.keep(&message, queued.client);
                }
            }
            Change::Moved { message, body, from, to, .. } => {
                let known = self.messages.get(&message).map(|(message, _)| message.clone());
                if let Some(kept) = known.or(body) {
                    self.keep(&kept, to.client);
                }
                self.apply(Change::Done { client: from, message, packet_id: None });
            }
            Change::Done { client, message, .. } => {
                if let Some(waits) = self.clients.get_mut(&client) {
                    waits.remove(&message);
                }
                self.done(message, &client);
            }
            Change::SessionEnded { client } => {
                for message in self.clients.remove(&client).unwrap_or_default() {
                    self.done(message, &client);
                }
            }
            _ => {}
        }
    }

    fn keep(&mut self, message: &Arc<Message>, client: ClientId) {
        self.clients.entry(client.clone()).or_default().insert(message.id);
        self.messages.entry(message.id).or_insert_with(|| (message.clone(), BTreeSet::new())).1.insert(client);
    }

    fn done(&mut self, message: MessageId, client: &ClientId) {
        if let Some((_, waiting)) = self.messages.get_mut(&message) {
            waiting.remove(client);
            if waiting.is_empty() {
                self.messages.remove(&message);
            }
        }
    }
}

impl Store for MemoryStore {
    fn append(&mut self, ticket: Ticket, changes: Vec<Change>) {
        if self.failing && changes.iter().any(Change::may_fail) {
            self.failed.push(ticket);
        } else {
            changes.into_iter().for_each(|change| self.apply(change));
        }
        if self.held {
            self.waiting.push_back(ticket);
        } else {
            self.answer(ticket);
        }
    }

    fn poll_answer(&mut self) -> Option<Answer> {
        self.ready.pop_front()
    }

    fn fetch(&mut self, message: MessageId) -> Option<Arc<Message>> {
        self.messages.get(&message).map(|(message, _)| message.clone())
    }
}
