use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use mio::event::Event;
use mio::{Events, Poll, Token};
use tokio::sync::oneshot;
use tracing::{error, info};

use super::Message;
use super::farewell;
use super::link::{Link, Taken};
use super::output::Output;
use super::requests::Listing;
use super::wire::{Connection, Wire, who};
use crate::broker::{Admission, Closing, ConnectionId, Core, Input, Restored};
use crate::codec::{self, DecodeError, Packet};
use crate::handover::Handover;
use crate::store::Answer;
use crate::websocket::{End, close_frame};

pub(super) const WAKER: Token = Token(usize::MAX);

/// The shard's one read buffer.
const BUFFER: usize = 256 * 1024;
/// Bytes read from one connection before others get their turn.
const READ_BUDGET: usize = 512 * 1024;
/// Bytes read in one turn, whatever they are: once so many were, the connections that are left wait for the next.
/// Subscribers acknowledge meanwhile what this turn sent them; were everybody read first, what comes for a busy
/// one would lie in its queue.
const TURN_BUDGET: usize = 64 * 1024;
/// How long what was written last may take to leave.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// The clock's one door.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(super) fn clock() -> Instant {
    Instant::now()
}

pub(super) struct Shard {
    poll: Poll,
    pub(super) inbox: Receiver<Message>,
    pub(super) core: Core,
    pub(super) wire: Wire,
    buffer: Box<[u8]>,
    /// Its place for what TLS has not opened yet.
    sealed: Box<[u8]>,
    /// Connections with bytes to read, in turn.
    ready: VecDeque<usize>,
    /// Closing connections and when they go, whatever is left.
    lingering: VecDeque<(Instant, ConnectionId)>,
    next_epoch: u32,
    pub(super) levels: [usize; 3],
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) packets_received: u64,
    pub(super) listings: VecDeque<Listing>,
    /// No certificate of a connected client ends before.
    pub(super) certificate_expires: Option<SystemTime>,
    pub(super) stopping: Option<Stopping>,
    /// Connections that are not read from.
    parked: Vec<usize>,
    /// The inbox was not emptied, and its waker has been heard.
    pub(super) more_messages: bool,
}

/// Nobody reads any more on the other side.
fn is_over_at_once(why: Closing) -> bool {
    matches!(why, Closing::ByClient(_) | Closing::Lost)
}

pub(super) struct Stopping {
    pub(super) by: Instant,
    pub(super) answer: oneshot::Sender<()>,
}

impl Shard {
    pub(super) fn new(poll: Poll, inbox: Receiver<Message>, core: Core, wire: Wire) -> Shard {
        Shard {
            poll,
            inbox,
            core,
            wire,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            sealed: vec![0; BUFFER / 2].into_boxed_slice(),
            ready: VecDeque::new(),
            lingering: VecDeque::new(),
            next_epoch: 1,
            levels: [0; 3],
            bytes_received: 0,
            bytes_sent: 0,
            packets_received: 0,
            listings: VecDeque::new(),
            certificate_expires: None,
            stopping: None,
            parked: Vec::new(),
            more_messages: false,
        }
    }

    /// `restored`: what the store had.
    pub(super) fn run(mut self, restored: Option<Restored>) {
        if let Some(restored) = restored {
            self.core.handle(clock(), Input::Restored(restored), &mut self.wire);
        }
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return error!("the event loop failed: {error}");
                }
                _ => {}
            }
            let now = clock();
            let mut inbox = std::mem::take(&mut self.more_messages);
            for event in &events {
                if event.token() == WAKER {
                    inbox = true;
                } else {
                    self.mark(event);
                }
            }
            self.read_ready(now);
            if inbox && !self.take_messages(now) {
                return;
            }
            self.answers(now);
            if self.core.next_deadline(now).is_some_and(|at| at <= now) {
                self.core.handle(now, Input::Timer, &mut self.wire);
            }
            self.misbehave(now);
            self.settle(now);
            self.unpark(now);
            self.list();
            self.let_go(now);
            if self.is_over(now) {
                return;
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let more = self.more_messages || !self.wire.dirty.is_empty();
        if more || !self.ready.is_empty() || !self.listings.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = clock();
        let deadlines = [
            self.core.next_deadline(now),
            self.lingering.front().map(|(at, _)| *at),
            self.stopping.as_ref().map(|stopping| stopping.by),
        ];
        deadlines.into_iter().flatten().min().map(|at| at.saturating_duration_since(now))
    }

    fn mark(&mut self, event: &Event) {
        let key = event.token().0;
        let Some(connection) = self.wire.connections.get_mut(key) else { return };
        connection.read_closed |= event.is_read_closed();
        let (readable, writable) = (event.is_readable() || event.is_read_closed(), event.is_writable());
        if readable && !connection.ready {
            connection.ready = true;
            self.ready.push_back(key);
        }
        // Pressed with no output: rustls holds the rest.
        let waits = connection.pressed || !connection.output.is_empty() || connection.closing.is_some();
        if writable && waits && !connection.dirty {
            connection.dirty = true;
            self.wire.dirty.push(key);
        }
    }

    /// Each ready connection once, as far as the turn's budget goes; one with more to read than its own comes again
    /// next turn.
    fn read_ready(&mut self, now: Instant) {
        let mut taken = 0;
        for _ in 0..self.ready.len() {
            if taken >= TURN_BUDGET {
                return;
            }
            let Some(key) = self.ready.pop_front() else { return };
            if let Some(connection) = self.wire.connections.get_mut(key) {
                connection.ready = false;
                taken += self.read(now, key);
            }
        }
    }

    /// Reads one connection within its budget; says about how many bytes that were.
    fn read(&mut self, now: Instant, key: usize) -> usize {
        let mut left = READ_BUDGET;
        self.read_within(now, key, &mut left);
        READ_BUDGET - left
    }

    fn read_within(&mut self, now: Instant, key: usize, left: &mut usize) {
        loop {
            let connection = &mut self.wire.connections[key];
            let id = connection.id;
            if connection.closing.is_none() && self.must_wait(key) {
                // It does not take its answers, or they wait for the store: no more questions.
                return self.park(key);
            }
            let connection = &mut self.wire.connections[key];
            if connection.closing.is_some() {
                match connection.link.discard(&mut self.buffer) {
                    Ok(count @ 1..) => *left = left.saturating_sub(count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    // The peer has seen our end, or is gone.
                    Ok(0) | Err(_) => {
                        let connection = &mut self.wire.connections[key];
                        drop(connection.link.write(&mut connection.output));
                        return self.remove(key);
                    }
                }
            } else {
                match connection.link.read(&mut self.buffer, &mut self.sealed) {
                    Ok(Taken { count: 0, .. }) => return self.ended(now, key),
                    Ok(Taken { count, mqtt, pong, is_drained }) => {
                        if let Some(pong) = pong {
                            connection.output.control(pong);
                            self.wire.touch(key);
                        }
                        let connection = &self.wire.connections[key];
                        self.bytes_received += count as u64;
                        let may_rest = is_drained && !connection.read_closed;
                        self.take(now, id, mqtt);
                        *left = left.saturating_sub(count);
                        if may_rest && self.wire.connection(id).is_some_and(|connection| connection.closing.is_none()) {
                            return;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => *left = 0,
                    Err(error) => return self.lost(now, key, Some(&error)),
                }
            }
            if *left == 0 {
                self.wire.connections[key].ready = true;
                self.ready.push_back(key);
                return;
            }
        }
    }

    fn park(&mut self, key: usize) {
        if !std::mem::replace(&mut self.wire.connections[key].parked, true) {
            self.parked.push(key);
        }
    }

    fn must_wait(&self, key: usize) -> bool {
        let connection = &self.wire.connections[key];
        connection.output.len() >= 2 * self.core.limits().backlog_bytes_max.max(64 * 1024)
            || self.core.must_wait(connection.id)
            // What needs no commit runs on.
            || (self.wire.is_store_busy() && self.core.awaits_commit(connection.id))
    }

    /// Reads again from those that have caught up, first what was read of them before.
    fn unpark(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.parked) {
            let Some(connection) = self.wire.connections.get(key).filter(|connection| connection.parked) else {
                continue;
            };
            if connection.closing.is_none() && self.must_wait(key) {
                self.parked.push(key);
                continue;
            }
            let connection = &mut self.wire.connections[key];
            connection.parked = false;
            let (id, input) = (connection.id, std::mem::take(&mut connection.input));
            if !connection.ready {
                connection.ready = true;
                self.ready.push_back(key);
            }
            if !input.is_empty() {
                self.feed(now, id, input);
            }
        }
    }

    /// The peer has ended its side: by its socket, or by its WebSocket.
    fn ended(&mut self, now: Instant, key: usize) {
        let connection = &mut self.wire.connections[key];
        match connection.link.web_end() {
            None => self.lost(now, key, None),
            Some(End::Closed(code)) => {
                connection.output.control(close_frame(code));
                self.lost(now, key, None);
            }
            Some(End::Breach(breach)) => {
                let id = connection.id;
                self.core.handle(now, Input::Malformed(id, DecodeError::WebSocket(breach)), &mut self.wire);
            }
        }
    }

    /// Handles the packets in this part of the buffer, behind what was there before.
    fn take(&mut self, now: Instant, id: ConnectionId, part: Range<usize>) {
        if part.is_empty() {
            return;
        }
        let Some(connection) = self.wire.connection(id) else { return };
        if connection.input.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            let used = self.packets(now, id, &buffer[part.clone()]);
            if let Some(connection) = self.wire.connection(id)
                && used < part.len()
            {
                connection.input.extend_from_slice(&buffer[part.start + used..part.end]);
            }
            self.buffer = buffer;
        } else {
            let mut input = std::mem::take(&mut connection.input);
            input.extend_from_slice(&self.buffer[part]);
            self.feed(now, id, input);
        }
    }

    /// Handles the packets in `input` and keeps the rest.
    fn feed(&mut self, now: Instant, id: ConnectionId, mut input: Vec<u8>) {
        let used = self.packets(now, id, &input);
        if let Some(connection) = self.wire.connection(id)
            && used < input.len()
        {
            input.drain(..used);
            connection.input = input;
        }
    }

    /// Gives whole packets to the core; says how many bytes they took.
    fn packets(&mut self, now: Instant, id: ConnectionId, bytes: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let Some(connection) = self.wire.connection(id) else { return bytes.len() };
            if connection.closing.is_some() {
                return bytes.len();
            }
            if self.core.must_wait(id) {
                self.park(id.index as usize);
                return used;
            }
            let Some(connection) = self.wire.connection(id) else { return bytes.len() };
            let rest = &bytes[used..];
            let max = connection.packet_size_max;
            let decoded = match codec::frame(rest, max) {
                Ok(None) => return used,
                Ok(Some(frame)) => codec::decode(rest, frame, connection.version).map(|packet| (packet, frame.end)),
                Err(error) => Err(error),
            };
            match decoded {
                Ok((packet, end)) => {
                    self.packets_received += 1;
                    if self.wire.mischief.as_mut().is_some_and(|mischief| !mischief.takes(id, &packet)) {
                        return bytes.len();
                    }
                    self.core.handle(now, Input::Received(id, packet), &mut self.wire);
                    used += end;
                }
                Err(error) => {
                    self.core.handle(now, Input::Malformed(id, error), &mut self.wire);
                    return bytes.len();
                }
            }
        }
    }

    fn lost(&mut self, now: Instant, key: usize, error: Option<&io::Error>) {
        let connection = &mut self.wire.connections[key];
        let id = connection.id;
        // It may only have stopped sending: what was answered in this turn is for it still.
        if error.is_none() {
            drop(connection.link.write(&mut connection.output));
        }
        match error {
            Some(error) => info!(id = connection.about.number, "{} lost: {error}", who(connection.identity.as_ref())),
            None => {
                info!(id = connection.about.number, "{} closed without DISCONNECT", who(connection.identity.as_ref()))
            }
        }
        self.core.handle(now, Input::Lost(id), &mut self.wire);
        self.remove(key);
    }

    /// What goes wrong on purpose, before what was written leaves.
    fn misbehave(&mut self, now: Instant) {
        let Some(mischief) = &mut self.wire.mischief else { return };
        if !self.wire.dirty.is_empty() {
            mischief.delay();
        }
        let cut = std::mem::take(&mut mischief.cut);
        if cut.is_empty() {
            return;
        }
        // Long enough for the store to have kept what came before.
        std::thread::sleep(Duration::from_millis(50));
        self.settle(now);
        for id in cut {
            if let Some(connection) = self.wire.connection(id)
                && connection.closing.is_none()
            {
                self.lost(now, id.index as usize, Some(&io::Error::other("cut on purpose")));
            }
        }
    }

    fn remove(&mut self, key: usize) {
        self.said_why(key);
        // Closing the socket, its last and only handle, takes it out of the poll too.
        let connection = self.wire.connections.remove(key);
        self.levels[connection.about.level as usize] -= 1;
    }

    pub(super) fn adopt(&mut self, now: Instant, handover: Handover) {
        let Handover {
            socket,
            tls,
            web,
            bytes,
            client,
            assigned,
            identity,
            authentication_data,
            notice,
            entrance,
            about,
            slot,
        } = handover;
        let entry = self.wire.connections.vacant_entry();
        let key = entry.key();
        let id = ConnectionId { index: key as u32, epoch: self.next_epoch };
        self.next_epoch = self.next_epoch.wrapping_add(1);
        let mut link = Link::new(socket, tls, web);
        if let Err(error) = link.register(self.poll.registry(), Token(key)) {
            return error!(id = about.number, "cannot watch a connection: {error}");
        }
        self.levels[about.level as usize] += 1;
        if let Some(certificate) = &about.certificate {
            self.certificate_expires =
                Some(self.certificate_expires.map_or(certificate.expires, |at| at.min(certificate.expires)));
        }
        let version = about.version;
        // rustls may hold bytes that no event will tell of.
        let may_hold = !link.is_plain() || link.web_end().is_some();
        entry.insert(Connection {
            id,
            link,
            version,
            input: Vec::new(),
            output: Output::default(),
            pressed: false,
            parked: false,
            took: now,
            packet_size_max: self.core.limits().packet_size_max as usize,
            ready: may_hold,
            read_closed: false,
            dirty: false,
            closing: None,
            finished: false,
            said_why: false,
            said_close: false,
            lingers: false,
            denials: 0,
            client: client.clone(),
            identity: identity.clone(),
            about,
            _slot: slot,
        });
        if may_hold {
            self.ready.push_back(key);
        }
        self.bytes_received += bytes.len() as u64;
        self.packets_received += 1;
        // Decoded at the gate already: it travels as bytes so that nothing of it is copied.
        let frame = codec::frame(&bytes, codec::PACKET_SIZE_MAX).ok().flatten().expect("the gate found it");
        let Ok(Packet::Connect(connect)) = codec::decode(&bytes, frame, version) else {
            unreachable!("the gate decoded it");
        };
        let authentication_data = authentication_data.as_deref();
        let notice = notice.as_deref();
        let admission =
            Admission { connect: &connect, client, assigned, identity, authentication_data, notice, entrance };
        self.core.handle(now, Input::Connected(id, admission), &mut self.wire);
        if bytes.len() > frame.end {
            let rest = bytes[frame.end..].to_vec();
            drop(connect);
            self.feed(now, id, rest);
        }
    }

    /// What the store has to say, and what comes of it.
    fn answers(&mut self, now: Instant) {
        loop {
            let Some(answer) = self.wire.store.poll_answer() else { return };
            let input = match answer {
                Answer::Committed(ticket) => Input::Committed(ticket),
                Answer::Failed(ticket) => Input::Failed(ticket),
                Answer::Fetched(client, number, messages) => Input::Fetched(client, number, messages),
            };
            self.core.handle(now, input, &mut self.wire);
        }
    }

    /// Takes the store's answers and writes each connection, until nothing follows from it: telling
    /// the core that a socket has room again can make it write, or fetch, more. What is left after a
    /// while goes on next turn.
    fn settle(&mut self, now: Instant) {
        for _ in 0..8 {
            self.answers(now);
            if self.wire.dirty.is_empty() {
                return;
            }
            let mut dirty = std::mem::take(&mut self.wire.dirty);
            for key in dirty.drain(..) {
                self.flush_one(now, key);
            }
            if self.wire.dirty.is_empty() {
                self.wire.dirty = dirty;
            }
        }
    }

    fn flush_one(&mut self, now: Instant, key: usize) {
        let Some(connection) = self.wire.connections.get_mut(key) else { return };
        connection.dirty = false;
        if connection.finished {
            return;
        }
        if let Some(why) = connection.closing.filter(|_| connection.link.is_web())
            && !std::mem::replace(&mut connection.said_close, true)
        {
            let code = match connection.link.web_end() {
                Some(End::Breach(breach)) => breach.close_code(),
                Some(End::Closed(code)) => code,
                None => farewell::close_code(why),
            };
            connection.output.control(close_frame(code));
        }
        if connection.link.is_web() {
            connection.output.frame();
        }
        let before = connection.output.len();
        connection.pressed |= before >= self.core.limits().backlog_bytes_max;
        let written = connection.link.write(&mut connection.output);
        let count = before - connection.output.len();
        self.bytes_sent += count as u64;
        if count > 0 {
            connection.took = now;
        }
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.pressed = true;
                if connection.closing.is_some() {
                    self.linger(now, key);
                }
                return;
            }
            Err(error) => {
                if connection.closing.is_some() {
                    return self.remove(key);
                }
                return self.lost(now, key, Some(&error));
            }
        }
        if let Some(why) = connection.closing {
            // Who said goodbye itself, and not by TLS, is told enough by the close that follows.
            if !(is_over_at_once(why) && connection.link.is_plain() && !connection.link.is_web()) {
                connection.link.finish();
            }
            connection.finished = true;
            self.linger(now, key);
        } else if std::mem::take(&mut connection.pressed) {
            let id = connection.id;
            self.core.handle(now, Input::Drained(id), &mut self.wire);
        }
    }

    /// A connection that the core is done with: the peer gets some time to take what was written.
    fn linger(&mut self, now: Instant, key: usize) {
        self.said_why(key);
        let connection = &self.wire.connections[key];
        match connection.closing {
            // It said goodbye itself, or is gone: nobody reads any more.
            Some(why) if is_over_at_once(why) && connection.finished => self.remove(key),
            _ => {
                let id = connection.id;
                if !std::mem::replace(&mut self.wire.connections[key].lingers, true) {
                    self.lingering.push_back((now + LINGER, id));
                }
            }
        }
    }

    /// The last line of a connection's life, once.
    fn said_why(&mut self, key: usize) {
        let connection = &mut self.wire.connections[key];
        if !std::mem::replace(&mut connection.said_why, true) {
            farewell::say(connection);
        }
    }

    /// Ends connections whose time to linger is over.
    fn let_go(&mut self, now: Instant) {
        while let Some((at, id)) = self.lingering.front().copied() {
            let gone = self.wire.connection(id).is_none();
            if !gone && at > now {
                return;
            }
            if !gone {
                self.remove(id.index as usize);
            }
            self.lingering.pop_front();
        }
    }

    /// After a shutdown, when all has left or its time is over.
    fn is_over(&mut self, now: Instant) -> bool {
        let Some(stopping) = &self.stopping else { return false };
        let all_left = self.wire.connections.iter().all(|(_, connection)| connection.finished);
        if !all_left && now < stopping.by {
            return false;
        }
        if let Some(stopping) = self.stopping.take() {
            let _ = stopping.answer.send(());
        }
        true
    }
}
