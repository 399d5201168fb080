use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::account::Received;
use super::{PATIENCE, random};
use crate::client::blocking::{Client, Event};
use crate::types::{PacketId, QoS};

/// So long after the last message nothing more is expected.
const QUIET: Duration = Duration::from_secs(3);

/// Comes and goes, and notes what it gets; its session stays.
pub(super) struct Subscriber {
    socket: PathBuf,
    name: String,
    /// QoS 2 identifiers that were received and not released: a message under one of them is known.
    unreleased: BTreeSet<PacketId>,
    received: Received,
}

impl Subscriber {
    /// Subscribes before anything is published.
    pub(super) fn subscribe(socket: &Path, number: usize) -> io::Result<Subscriber> {
        let name = format!("torture-subscriber-{number}");
        let mut client = Client::connect(socket, &name, false, PATIENCE)?;
        client.subscribe("torture/#", QoS::ExactlyOnce)?;
        let deadline = Instant::now() + PATIENCE;
        while client.receive(Duration::from_millis(100))? != Some(Event::SubAck) {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        client.disconnect()?;
        let received = Received::default();
        Ok(Subscriber { socket: socket.to_owned(), name, unreleased: BTreeSet::new(), received })
    }

    /// Until told to drain, and then until nothing more comes.
    pub(super) fn run(mut self, drain: &AtomicBool) -> Received {
        let mut deadline = None;
        loop {
            if drain.load(Ordering::Relaxed) {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                if self.session(None, drain).is_ok() || Instant::now() > deadline {
                    return self.received;
                }
            } else {
                let _ = self.session(Some(Duration::from_millis(random(1500))), drain);
            }
            std::thread::sleep(Duration::from_millis(random(100)));
        }
    }

    /// One connection: for so long, or until nothing more comes.
    fn session(&mut self, lasts: Option<Duration>, drain: &AtomicBool) -> io::Result<()> {
        let mut client = Client::connect(&self.socket, &self.name, false, Duration::from_secs(5))?;
        let ends = lasts.map(|lasts| Instant::now() + lasts);
        let mut last = Instant::now();
        loop {
            match ends {
                Some(ends) if Instant::now() > ends || drain.load(Ordering::Relaxed) => break,
                None if last.elapsed() > QUIET => break,
                _ => {}
            }
            if let Some(event) = client.receive(Duration::from_millis(50))? {
                last = Instant::now();
                self.take(&mut client, event)?;
            }
        }
        match random(2) {
            0 => client.disconnect(),
            // Gone without a word.
            _ => Ok(()),
        }
    }

    fn take(&mut self, client: &mut Client, event: Event) -> io::Result<()> {
        match event {
            Event::Publish { topic, payload, qos: QoS::ExactlyOnce, packet_id: Some(packet_id), .. } => {
                if self.unreleased.insert(packet_id) {
                    self.received.note(&topic, &payload, QoS::ExactlyOnce);
                }
                client.acknowledge(packet_id, QoS::ExactlyOnce)
            }
            Event::Publish { topic, payload, qos, packet_id, .. } => {
                self.received.note(&topic, &payload, qos);
                packet_id.map_or(Ok(()), |packet_id| client.acknowledge(packet_id, qos))
            }
            Event::PubRel(packet_id) => {
                self.unreleased.remove(&packet_id);
                client.complete(packet_id)
            }
            _ => Ok(()),
        }
    }
}
