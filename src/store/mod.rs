//! Where durable changes go.
//!
//! [`Store::append`] takes changes under a ticket and answers later, through
//! [`Store::poll_answer`]; [`Store::fetch`] brings a queued message back. There is the memory store,
//! whose answers can be held back and made to fail so that the core's waiting can be tested.

mod memory;

use std::sync::Arc;

pub use memory::MemoryStore;

use crate::broker::{Change, Message, MessageId, Ticket};

/// What became of a ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Committed(Ticket),
    Failed(Ticket),
}

pub trait Store {
    /// Takes `changes` to be made durable together; never blocks. Those of which none [may fail] are
    /// never answered by `Failed`.
    ///
    /// [may fail]: Change::may_fail
    fn append(&mut self, ticket: Ticket, changes: Vec<Change>);

    /// The next answer that is ready.
    fn poll_answer(&mut self) -> Option<Answer>;

    /// A message that a session still waits for, appended before and committed or not.
    fn fetch(&mut self, message: MessageId) -> Option<Arc<Message>>;
}
