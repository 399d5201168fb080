//! Subscribers: count what comes and acknowledge it.

use std::io;

use hdrhistogram::Histogram;

use super::link::Link;
use crate::codec;

/// What is read at once.
const BUFFER: usize = 256 * 1024;

/// One that is subscribed.
#[derive(Debug)]
pub(super) struct Subscriber {
    link: Link,
    /// A packet that is not there whole.
    rest: Vec<u8>,
    out: Vec<u8>,
}

/// What the subscribers of a thread share.
#[derive(Debug)]
pub(super) struct Tally {
    buffer: Vec<u8>,
    pub(super) delivered: u64,
    /// Nanoseconds from publisher to subscriber, where messages say when they were sent.
    pub(super) latency: Option<Histogram<u64>>,
}

impl Tally {
    pub(super) fn new(latency: Option<Histogram<u64>>) -> Tally {
        Tally { buffer: vec![0; BUFFER], delivered: 0, latency }
    }
}

/// Two bytes of a packet that may be cut short.
fn pair(packet: &[u8], at: usize) -> io::Result<[u8; 2]> {
    let found = packet.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the broker sends a packet that is cut short"))
}

impl Subscriber {
    pub(super) fn new(link: Link) -> Subscriber {
        Subscriber { link, rest: Vec::new(), out: Vec::new() }
    }

    /// Reads what is there, once; says whether there may be more.
    pub(super) fn turn(&mut self, tally: &mut Tally, now_nanos: impl Fn() -> u64) -> io::Result<bool> {
        self.link.send(&mut self.out)?;
        let kept = self.rest.len();
        tally.buffer[..kept].copy_from_slice(&self.rest);
        let Some(count) = self.link.read(&mut tally.buffer[kept..])? else { return Ok(false) };
        let now = tally.latency.is_some().then(now_nanos);
        let bytes = &tally.buffer[..kept + count];
        let mut at = 0;
        while let Some(frame) = codec::frame(&bytes[at..], codec::PACKET_SIZE_MAX).map_err(io::Error::other)? {
            let (packet, body) = (&bytes[at..at + frame.end], frame.body_start);
            at += frame.end;
            match frame.first_byte >> 4 {
                3 => {
                    tally.delivered += 1;
                    let qos = (frame.first_byte >> 1) & 3;
                    let mut payload = body + 2 + usize::from(u16::from_be_bytes(pair(packet, body)?));
                    if qos > 0 {
                        let [high, low] = pair(packet, payload)?;
                        self.out.extend_from_slice(&[if qos == 1 { 0x40 } else { 0x50 }, 2, high, low]);
                        payload += 2;
                    }
                    if let (Some(latency), Some(now)) = (&mut tally.latency, now)
                        && let Some(stamp) = packet.get(payload..payload + 8)
                    {
                        let sent = u64::from_le_bytes(stamp.try_into().expect("eight bytes"));
                        latency.saturating_record(now.saturating_sub(sent));
                    }
                }
                6 => {
                    let [high, low] = pair(packet, body)?;
                    self.out.extend_from_slice(&[0x70, 2, high, low]);
                }
                _ => {}
            }
        }
        let is_full = kept + count == tally.buffer.len();
        if at == 0 && is_full {
            // A packet that is larger than the room.
            tally.buffer.resize(2 * BUFFER.max(tally.buffer.len()), 0);
        }
        self.rest.clear();
        self.rest.extend_from_slice(&tally.buffer[at..kept + count]);
        self.link.send(&mut self.out)?;
        Ok(true)
    }
}
