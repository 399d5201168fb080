//! Publishers: as fast as they are let, or at a rate.

use std::io;

use super::endpoint::VERSION;
use super::link::Link;
use crate::codec::{self, Packet, PublishProperties};
use crate::types::{PacketId, QoS};

/// About what is written at once.
const BLOCK: usize = 64 * 1024;

/// One that publishes to one topic.
#[derive(Debug)]
pub(super) struct Publisher {
    link: Link,
    qos: QoS,
    /// One packet; where its identifier and its payload stand.
    packet: Vec<u8>,
    identifier_at: usize,
    payload_at: usize,
    /// At QoS 0: many of it, one behind the other.
    block: Vec<u8>,
    /// Of `block`, written.
    written: usize,
    out: Vec<u8>,
    next_identifier: u16,
    /// Messages that may be sent before others are acknowledged.
    window: usize,
    /// Bytes of an acknowledgement that is not there whole.
    rest: Vec<u8>,
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
}

/// A PUBLISH; where its identifier and its payload stand.
fn publish(topic: &str, qos: QoS, payload: usize) -> (Vec<u8>, usize, usize) {
    let mut bytes = Vec::new();
    let publish = codec::Publish {
        dup: false,
        qos,
        retain: false,
        topic,
        packet_id: (qos != QoS::AtMostOnce).then_some(PacketId::FIRST),
        properties: PublishProperties::default(),
        payload: &vec![b'x'; payload],
    };
    codec::encode(&mut bytes, &Packet::Publish(publish), VERSION);
    let payload_at = bytes.len() - payload;
    (bytes, payload_at - 2, payload_at)
}

impl Publisher {
    pub(super) fn new(link: Link, topic: &str, qos: QoS, payload: usize, window: usize) -> Publisher {
        let (packet, identifier_at, payload_at) = publish(topic, qos, payload);
        let block = packet.repeat((BLOCK / packet.len()).max(1));
        Publisher {
            link,
            qos,
            packet,
            identifier_at,
            payload_at,
            block,
            written: 0,
            out: Vec::new(),
            next_identifier: 1,
            window,
            rest: Vec::new(),
            sent: 0,
            acknowledged: 0,
        }
    }

    /// One message more, that says when it was sent.
    pub(super) fn send_one(&mut self, now_nanos: u64) -> io::Result<()> {
        let at = self.append();
        if let Some(stamp) = self.out.get_mut(at + self.payload_at..at + self.payload_at + 8) {
            stamp.copy_from_slice(&now_nanos.to_le_bytes());
        }
        self.link.send(&mut self.out)
    }

    fn append(&mut self) -> usize {
        let at = self.out.len();
        self.out.extend_from_slice(&self.packet);
        if self.qos != QoS::AtMostOnce {
            let identifier = &mut self.out[at + self.identifier_at..at + self.identifier_at + 2];
            identifier.copy_from_slice(&self.next_identifier.to_be_bytes());
            self.next_identifier = self.next_identifier.checked_add(1).unwrap_or(1);
        }
        self.sent += 1;
        at
    }

    /// Reads acknowledgements and sends what the window lets; says whether it could go on at once.
    pub(super) fn turn(&mut self, buffer: &mut [u8], is_over: bool) -> io::Result<bool> {
        let has_read = self.read(buffer)?;
        if !is_over && self.qos == QoS::AtMostOnce {
            return self.flood();
        }
        // Many at once, as a client does that has much to say: half a window, or more.
        let under_way = (self.sent - self.acknowledged) as usize;
        if !is_over && under_way <= self.window / 2 {
            for _ in under_way..self.window {
                self.append();
            }
        }
        self.link.send(&mut self.out)?;
        Ok(has_read)
    }

    /// Takes what came; says whether anything did.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let kept = self.rest.len();
        buffer[..kept].copy_from_slice(&self.rest);
        let Some(count) = self.link.read(&mut buffer[kept..])? else { return Ok(false) };
        let bytes = &buffer[..kept + count];
        let whole = bytes.chunks_exact(4);
        self.rest.clear();
        self.rest.extend_from_slice(whole.remainder());
        for ack in whole {
            match ack[0] {
                0x40 | 0x70 => self.acknowledged += 1,
                0x50 => self.out.extend_from_slice(&[0x62, 2, ack[2], ack[3]]),
                _ => return Err(io::Error::other("the broker says something unexpected to a publisher")),
            }
        }
        Ok(true)
    }

    /// Says whether the socket takes more.
    fn flood(&mut self) -> io::Result<bool> {
        let len = self.packet.len();
        let count = self.link.write(&self.block[self.written..])?;
        self.sent += ((self.written + count) / len - self.written / len) as u64;
        self.written = (self.written + count) % self.block.len();
        Ok(count > 0)
    }
}
