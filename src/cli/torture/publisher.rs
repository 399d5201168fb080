use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{PATIENCE, PUBLISHERS, STATE};
use crate::client::blocking::{Client, Event, Message};
use crate::types::{PacketId, QoS};

/// Messages under way at once.
const WINDOW: usize = 20;
/// Between two messages.
const PAUSE: Duration = Duration::from_millis(2);

/// What one publisher sent, and what was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) qos: QoS,
    /// The last of them keeps a state retained; the others number their messages.
    pub(super) retains: bool,
    pub(super) sent: u64,
    pub(super) acknowledged: Vec<u64>,
    /// Acknowledgements that never came, though there was time.
    pub(super) unanswered: usize,
}

struct Outgoing {
    number: u64,
    packet_id: PacketId,
    /// PUBREC came.
    is_released: bool,
}

pub(super) struct Publisher {
    socket: PathBuf,
    name: String,
    topic: String,
    next_id: PacketId,
    outgoing: VecDeque<Outgoing>,
    published: Published,
}

impl Publisher {
    pub(super) fn new(socket: &Path, number: usize) -> Publisher {
        let retains = number == PUBLISHERS;
        let qos = if number.is_multiple_of(2) { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        Publisher {
            socket: socket.to_owned(),
            name: format!("torture-publisher-{number}"),
            topic: if retains { STATE.to_owned() } else { format!("torture/{number}") },
            next_id: PacketId::FIRST,
            outgoing: VecDeque::new(),
            published: Published { qos, retains, sent: 0, acknowledged: Vec::new(), unanswered: 0 },
        }
    }

    /// Publishes until told to stop, and then until everything is acknowledged.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Published {
        let mut deadline = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                if self.outgoing.is_empty() || Instant::now() > deadline {
                    self.published.unanswered = self.outgoing.len();
                    return self.published;
                }
            }
            // It is killed all the time.
            let _ = self.session(stop);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One connection, until it breaks or all is done.
    fn session(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut client = Client::connect(&self.socket, &self.name, false, Duration::from_secs(5))?;
        for at in 0..self.outgoing.len() {
            self.send(&mut client, at, true)?;
        }
        let mut due = Instant::now();
        loop {
            let is_stopped = stop.load(Ordering::Relaxed);
            if is_stopped && self.outgoing.is_empty() {
                return client.disconnect();
            }
            if !is_stopped && self.outgoing.len() < WINDOW && Instant::now() >= due {
                self.outgoing.push_back(Outgoing {
                    number: self.published.sent,
                    packet_id: self.next_id,
                    is_released: false,
                });
                self.published.sent += 1;
                self.next_id = self.next_id.next();
                self.send(&mut client, self.outgoing.len() - 1, false)?;
                due = Instant::now() + PAUSE;
            }
            if let Some(event) = client.receive(PAUSE)? {
                self.answered(&mut client, &event)?;
            }
        }
    }

    fn send(&self, client: &mut Client, at: usize, dup: bool) -> io::Result<()> {
        let outgoing = &self.outgoing[at];
        if outgoing.is_released {
            return client.release(outgoing.packet_id);
        }
        client.publish(Message {
            topic: &self.topic,
            payload: outgoing.number.to_string().as_bytes(),
            qos: self.published.qos,
            retain: self.published.retains,
            dup,
            packet_id: Some(outgoing.packet_id),
        })
    }

    fn answered(&mut self, client: &mut Client, event: &Event) -> io::Result<()> {
        let find = |outgoing: &VecDeque<Outgoing>, packet_id| {
            outgoing.iter().position(|outgoing| outgoing.packet_id == packet_id)
        };
        match event {
            Event::PubAck(packet_id) => {
                let found = find(&self.outgoing, *packet_id).and_then(|at| self.outgoing.remove(at));
                self.published.acknowledged.extend(found.map(|outgoing| outgoing.number));
            }
            Event::PubRec(packet_id) => {
                if let Some(at) = find(&self.outgoing, *packet_id)
                    && !std::mem::replace(&mut self.outgoing[at].is_released, true)
                {
                    self.published.acknowledged.push(self.outgoing[at].number);
                }
                client.release(*packet_id)?;
            }
            Event::PubComp(packet_id) => {
                find(&self.outgoing, *packet_id).and_then(|at| self.outgoing.remove(at));
            }
            Event::Publish { .. } | Event::PubRel(_) | Event::SubAck => {}
        }
        Ok(())
    }
}
