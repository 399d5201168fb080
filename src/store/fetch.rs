//! Bodies, brought back from where they lie.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::engine::{Engine, News, Pending, segment_name};
use super::image::{Entry, Place};
use super::record;
use crate::broker::{Fetched, Message, MessageId, Wanted};
use crate::types::{ClientId, PacketId};

/// Bytes of bodies that are brought back at once, but for the last.
const FETCHED_MAX: usize = 256 * 1024;

impl<D: Disk> Engine<D> {
    /// Brings messages back.
    pub fn fetch(&mut self, client: &ClientId, wanted: &Wanted) -> Vec<Fetched> {
        match wanted {
            Wanted::Next(most) => {
                // What it had at hand is to come again first.
                let is_parked = |pending: &Pending| pending.rewinds.iter().any(|(parked, _)| parked == client);
                if self.pending.iter().any(is_parked) {
                    return Vec::new();
                }
                let entries = self.image.next(client, *most, FETCHED_MAX);
                entries.iter().map(|entry| self.fetch_one(client, entry)).collect()
            }
            Wanted::Sent(wanted) => {
                let mut bytes = 0;
                let mut found = Vec::new();
                for (packet_id, id) in wanted {
                    let Some(fetched) = self.fetch_sent(client, *packet_id, *id) else { continue };
                    bytes += fetched.message.as_ref().map_or(0, |message| message.size());
                    found.push(fetched);
                    if bytes >= FETCHED_MAX {
                        break;
                    }
                }
                found
            }
        }
    }

    fn fetch_sent(&mut self, client: &ClientId, packet_id: PacketId, id: MessageId) -> Option<Fetched> {
        let queue = self.image.sessions.get(client).map(|kept| &kept.queue);
        let find = |packet_id: Option<PacketId>| {
            queue?.iter().find(|entry| entry.id == id.0 && entry.packet_id() == packet_id).copied()
        };
        // That it was sent could not be written down, perhaps.
        let Some(entry) = find(Some(packet_id)).or_else(|| find(None)) else {
            return self.pending.is_empty().then(|| Fetched::missing(client, packet_id, id));
        };
        let mut fetched = self.fetch_one(client, &entry);
        fetched.to.packet_id = Some(packet_id);
        Some(fetched)
    }

    fn fetch_one(&mut self, client: &ClientId, entry: &Entry) -> Fetched {
        let message = self.read_body(entry.place, entry.size);
        if message.is_none() {
            let segment = segment_name(entry.place.segment);
            self.news.push_back(News::BodyLost { client: client.clone(), segment });
        }
        let id = MessageId(entry.id);
        Fetched { id, to: self.image.queued_for(client, entry), published: entry.published(), message }
    }

    /// Reads one body; about `size` bytes are expected.
    pub(super) fn read_body(&mut self, place: Place, size: u32) -> Option<Arc<Message>> {
        let bytes = self.read_body_bytes(place, size)?;
        record::message(Bytes::from(bytes), &self.timeline).ok().map(Arc::new)
    }

    pub(super) fn read_body_bytes(&mut self, place: Place, size: u32) -> Option<Vec<u8>> {
        let segment = self.segments.get_mut(&place.segment)?;
        if segment.file.is_none() {
            segment.file = self.disk.open(&segment_name(place.segment)).ok();
        }
        let file = segment.file.as_ref()?;
        let mut bytes = vec![0; size as usize + 96];
        let count = file.read_at(&mut bytes, u64::from(place.offset)).ok()?;
        bytes.truncate(count);
        let whole = record::body_len(&bytes)?;
        if whole > bytes.len() {
            if u64::from(place.offset) + whole as u64 > segment.end {
                return None;
            }
            let known = bytes.len();
            bytes.resize(whole, 0);
            let more = file.read_at(&mut bytes[known..], u64::from(place.offset) + known as u64).ok()?;
            if known + more < whole {
                return None;
            }
        }
        bytes.truncate(whole);
        Some(bytes)
    }
}
