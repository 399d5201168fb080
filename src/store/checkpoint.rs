//! Checkpoints: the whole state but the bodies, as frames of records; and the room that they give back.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::disk::{Disk, DiskFile};
use super::engine::{Engine, News, checkpoint_name, checkpoint_number, segment_name};
use super::frame::{Counts, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader};
use super::image::{Image, Place};
use super::record;
use super::time::Clocks;

/// How long files are kept for somebody who copies them and does not come back.
const HOLD: Duration = Duration::from_secs(3600);
/// About what a body takes beside topic, payload and properties.
const BODY_OVERHEAD: u64 = 64;
/// Bytes of one frame: so much is lost when a bit of it flips.
const FRAME: usize = 256 * 1024;

/// Gives the state to `write`, a payload at a time.
pub(super) fn write(image: &Image, mut write: impl FnMut(&[u8], Counts) -> io::Result<()>) -> io::Result<()> {
    let mut out = Vec::with_capacity(FRAME + 1024);
    let mut counts = Counts::default();
    record::next_message(&mut out, image.next_message);
    let mut flush = |out: &mut Vec<u8>, counts: &mut Counts, at_least: usize| {
        if out.len() <= at_least {
            return Ok(());
        }
        write(out, *counts)?;
        out.clear();
        *counts = Counts::default();
        Ok::<(), io::Error>(())
    };
    for (client, kept) in &image.sessions {
        if let Some(facts) = &kept.facts {
            counts.sessions = counts.sessions.saturating_add(1);
            let will = facts.will.as_deref();
            let who = (client, facts.identity.as_ref(), facts.realm);
            let (expiry, since) = (facts.expiry_interval_secs, facts.since.max(1));
            record::session(&mut out, who, expiry, will, facts.connected, Some(since));
        }
        for (filter, (options, identifier)) in &kept.subscriptions {
            record::subscribed(&mut out, client, filter, options, *identifier);
        }
        kept.received.iter().for_each(|packet_id| record::received_in(&mut out, client, *packet_id));
        for (packet_id, id) in &kept.released {
            record::released_out(&mut out, client, *packet_id, *id);
        }
        for entry in &kept.queue {
            counts.messages = counts.messages.saturating_add(1);
            let mut to = image.queued_for(client, entry);
            to.at_hand = false;
            record::queued(&mut out, entry, &to);
            flush(&mut out, &mut counts, FRAME)?;
        }
        flush(&mut out, &mut counts, FRAME)?;
    }
    for (topic, (place, size)) in &image.retained {
        counts.others = counts.others.saturating_add(1);
        record::retained(&mut out, topic, place.segment, place.offset, *size);
        flush(&mut out, &mut counts, FRAME)?;
    }
    record::checkpoint_end(&mut out);
    flush(&mut out, &mut counts, 0)
}

impl<D: Disk> Engine<D> {
    /// A checkpoint, if it would give room back.
    pub fn tidy(&mut self, clocks: Clocks) {
        if self.has_room_to_give() {
            self.checkpoint(clocks);
        }
    }

    /// Writes the whole state down, so that older frames are not needed any more.
    pub fn checkpoint(&mut self, clocks: Clocks) {
        if self.failing.is_none() {
            self.replace_checkpoint(clocks, true);
        }
    }

    pub(super) fn replace_checkpoint(&mut self, clocks: Clocks, copies: bool) {
        self.holds.retain(|(_, until)| *until > clocks.now);
        if !self.holds.is_empty() {
            return;
        }
        match self.write_checkpoint(clocks, copies) {
            Ok(()) => self.stats.checkpoints += 1,
            // What is there stays good; the next one is tried when as much was written again.
            Err(error) => {
                self.since_checkpoint = 0;
                self.news.push_back(News::CheckpointFailed(error));
            }
        }
        self.collect();
    }

    fn write_checkpoint(&mut self, clocks: Clocks, copies: bool) -> io::Result<()> {
        if copies {
            self.copy_old_bodies(clocks)?;
        }
        let sequence = self.next_sequence - 1;
        let first = self.writer.as_ref().map_or(self.next_segment, |writer| writer.number);
        let temporary = "checkpoint.new";
        let _ = self.disk.remove(temporary);
        let mut file = self.disk.create(temporary, FILE_HEADER as u64)?;
        file.write_at(&FileHeader { number: first, first_sequence: sequence, tag: self.tag }.encode(), 0)?;
        let time = self.last_time(clocks);
        let mut end = FILE_HEADER as u64;
        write(&self.image, |payload, counts| {
            let header = FrameHeader::new(payload, sequence, time, counts).encode(self.tag);
            file.write_at(&[&header[..], payload].concat(), end)?;
            end += (FRAME_HEADER + payload.len()) as u64;
            Ok(())
        })?;
        self.stats.bytes_written += end;
        // Whatever the durability: what it replaces is removed.
        file.sync()?;
        self.disk.rename(temporary, &checkpoint_name(sequence))?;
        self.disk.sync_folder()?;
        self.checkpointed = (sequence, first);
        self.checkpoint_bytes = end;
        self.since_checkpoint = 0;
        self.copied.clear();
        for name in self.disk.list()? {
            if checkpoint_number(&name).is_some_and(|number| number < sequence) {
                let _ = self.disk.remove(&name);
            }
        }
        Ok(())
    }

    /// Bodies in segments that are mostly of no use move to the newest one.
    fn copy_old_bodies(&mut self, clocks: Clocks) -> io::Result<()> {
        let current = self.writer.as_ref().map(|writer| writer.number);
        let mut budget = self.sizes.copied_max;
        let mut sparse = Vec::new();
        for (number, segment) in &self.segments {
            let Some(live) = self.image.live.get(number).filter(|_| Some(*number) != current) else { continue };
            // With what comes with each.
            let bytes = live.bytes + BODY_OVERHEAD * live.bodies;
            if bytes * 4 < segment.end && bytes <= budget {
                budget -= bytes;
                sparse.push(*number);
            }
        }
        if sparse.is_empty() {
            return Ok(());
        }
        let mut moved = BTreeMap::new();
        let (mut frame, mut places) = (vec![0; FRAME_HEADER], Vec::new());
        let wanted = self.image.places(|segment| sparse.contains(&segment));
        let mut left = wanted.len();
        for place in wanted {
            left -= 1;
            if let Some(body) = self.read_body_bytes(place, 1024) {
                let at = record::copied(&mut frame, &body) - FRAME_HEADER;
                places.push((place, at));
            }
            if frame.len() > self.sizes.frame_max || (left == 0 && frame.len() > FRAME_HEADER) {
                let at = self.write_frame(clocks, &mut frame, Counts::default(), false)?;
                for (old, offset) in places.drain(..) {
                    let new = Place { segment: at.segment, offset: (at.payload + offset as u64) as u32 };
                    moved.insert(old, new);
                }
                frame.truncate(FRAME_HEADER);
            }
        }
        // True from the checkpoint on that follows; until then both places are good.
        self.image.relocate(&moved);
        self.copied.extend(sparse);
        Ok(())
    }

    /// Removes segments that nobody needs.
    pub(super) fn collect(&mut self) {
        if !self.holds.is_empty() {
            return;
        }
        let checkpointed = self.segments.range(..self.checkpointed.1).map(|(number, _)| *number);
        let unwanted: Vec<u32> =
            checkpointed.filter(|number| self.is_unwanted(*number) && !self.copied.contains(number)).collect();
        for number in unwanted {
            if self.disk.remove(&segment_name(number)).is_ok() {
                self.segments.remove(&number);
            }
        }
    }

    /// What a copy of the store has to have, and how much of each file. Nothing is removed until
    /// [`Engine::release`] of this number, or for an hour.
    pub fn hold(&mut self, clocks: Clocks) -> (u64, Vec<(String, u64)>) {
        self.checkpoint(clocks);
        let number = self.next_hold;
        self.next_hold += 1;
        self.holds.push((number, clocks.now + HOLD));
        (number, self.files())
    }

    /// The files, and how much of each.
    pub fn files(&self) -> Vec<(String, u64)> {
        let mut files: Vec<(String, u64)> =
            self.segments.iter().map(|(number, segment)| (segment_name(*number), segment.end)).collect();
        if self.checkpointed.0 > 0 || self.checkpoint_bytes > 0 {
            files.push((checkpoint_name(self.checkpointed.0), self.checkpoint_bytes));
        }
        files
    }

    /// Says whether all that was held under this number was there until now.
    pub fn release(&mut self, number: u64, clocks: Clocks) -> bool {
        let found = self.holds.iter().position(|(held, _)| *held == number);
        let was_held = found.map(|found| self.holds.remove(found)).is_some_and(|(_, until)| until > clocks.now);
        self.collect();
        was_held
    }

    /// Whether a checkpoint would let go of a segment.
    pub(super) fn has_room_to_give(&self) -> bool {
        let mut later = self.segments.range(self.checkpointed.1..);
        self.since_checkpoint > 0 && later.any(|(number, _)| self.is_unwanted(*number))
    }
}
