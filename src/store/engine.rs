//! The store itself, without a thread: segments, commits, checkpoints, recovery.
//!
//! Everything that is written goes, as frames, to the end of one segment, and a commit is one write
//! and one sync however many changes wait for it. Bodies stay where they were written first; queues
//! hold their places. From time to time a checkpoint writes down the whole state but the bodies;
//! segments that nothing refers to any more, and whose frames a checkpoint has, are removed.
//!
//! A file that a write or a sync failed on is never written to again: it ends at its last synced
//! frame, and what was not committed is written again to a new one.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::frame::{Counts, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, Tag};
use super::image::{At, Entry, Image, Place};
use super::record::{self, Records};
use super::time::{Clocks, LastTime, Moment, Timeline};
use super::{Answer, Durability};
use crate::broker::{Change, Fetched, Message, MessageId, Ticket, Wanted};
use crate::types::{ClientId, PacketId};

const RESERVE_NAME: &str = "reserve";
/// How long a disk may fail before whoever waits is told so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long files are kept for somebody who copies them and does not come back.
const HOLD: Duration = Duration::from_secs(3600);
/// Bytes of bodies that are brought back at once, but for the last.
const FETCHED_MAX: usize = 256 * 1024;
/// About what a body takes beside topic, payload and properties.
const BODY_OVERHEAD: u64 = 64;
/// How often it is looked for room that could be given back.
const TIDY_EVERY: Duration = Duration::from_secs(2);
/// How late the newest frame may be, while that matters; of the store's time.
pub(super) const NOTED_EVERY_MS: u64 = 60_000;
/// How often a failing disk is tried.
const RETRY: Duration = Duration::from_millis(500);

/// How much goes where, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Of a segment; one frame that needs more gets its own.
    pub segment: u64,
    /// Room on the disk that is kept for acknowledgements when it is full.
    pub reserve: u64,
    /// Of one frame, if several changes share it.
    pub frame_max: usize,
    /// Written since the last checkpoint that call for the next, at least.
    pub checkpoint_every: u64,
    /// Of old bodies that one checkpoint copies.
    pub copied_max: u64,
}

const MIB: u64 = 1024 * 1024;

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            segment: 16 * MIB,
            reserve: 4 * MIB,
            frame_max: 4 * MIB as usize,
            checkpoint_every: 64 * MIB,
            copied_max: 16 * MIB,
        }
    }
}

pub(super) fn segment_name(number: u32) -> String {
    format!("segment-{number:08}")
}

pub(super) fn checkpoint_name(sequence: u64) -> String {
    format!("checkpoint-{sequence:016}")
}

/// The number of a segment's file; `None` for a name that no segment has.
pub(super) fn segment_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("segment-")?.parse().ok()?;
    (segment_name(number) == name && number < u32::MAX).then_some(number)
}

/// The same of a checkpoint's.
pub(super) fn checkpoint_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("checkpoint-")?.parse().ok()?;
    (checkpoint_name(number) == name).then_some(number)
}

#[derive(Debug)]
pub(super) struct Segment<F> {
    /// Opened when something is read from it.
    pub(super) file: Option<F>,
    /// Behind its last sound frame.
    pub(super) end: u64,
}

/// The segment that is written to.
#[derive(Debug)]
struct Writer<F> {
    number: u32,
    file: F,
    /// Synced up to here.
    end: u64,
    capacity: u64,
    /// It is the room that was kept: for what has to be written down alone.
    is_reserve: bool,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    bytes: Vec<u8>,
    counts: Counts,
    /// It has to be written down sooner or later.
    must: bool,
    since: Instant,
    /// What is to be rewound when this is done with.
    rewinds: Vec<(ClientId, Vec<MessageId>)>,
}

/// What the store has done, and how full it is.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    pub bytes_written: u64,
    pub commits: u64,
    pub messages: u64,
    pub failures: u64,
    pub checkpoints: u64,
    /// Now.
    pub sessions: usize,
    pub queued: u64,
    pub retained: usize,
    pub segments: usize,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Bytes of them that are bodies still wanted.
    pub live_bytes: u64,
    /// The disk fails now.
    pub is_failing: bool,
}

#[derive(Debug)]
pub struct Engine<D: Disk> {
    pub(super) disk: D,
    durability: Durability,
    sizes: Sizes,
    tag: Tag,
    pub(super) timeline: Timeline,
    pub(super) image: Image,
    pub(super) segments: BTreeMap<u32, Segment<D::File>>,
    writer: Option<Writer<D::File>>,
    pub(super) next_segment: u32,
    pub(super) next_sequence: u64,
    /// Frames up to here are in the newest checkpoint, and segments below that number.
    pub(super) checkpointed: (u64, u32),
    pub(super) checkpoint_bytes: u64,
    pub(super) since_checkpoint: u64,
    pending: VecDeque<Pending>,
    answers: VecDeque<Answer>,
    failing: Option<Failing>,
    has_reserve: bool,
    /// Nothing is removed while somebody copies the files.
    holds: Vec<(u64, Instant)>,
    next_hold: u64,
    /// When it was last looked for room to be given back.
    tidied: Option<Instant>,
    /// The store's time in the newest frame.
    last_frame: Moment,
    /// Segments whose bodies were copied, while the newest checkpoint does not know it.
    copied: Vec<u32>,
    pub(super) stats: Stats,
    /// When what ran before stopped, as far as is known.
    pub(super) stopped: Moment,
    /// What a person should hear.
    pub(super) news: VecDeque<News>,
}

/// Worth a line in the log.
#[derive(Debug)]
pub enum News {
    Failing(io::Error),
    Recovered,
    CheckpointFailed(io::Error),
    BodyLost { client: ClientId, segment: String },
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    retry: Instant,
    /// Somebody was told already: the next need not wait as long.
    is_known: bool,
}

impl<D: Disk> Engine<D> {
    pub(super) fn new(disk: D, durability: Durability, sizes: Sizes, tag: Tag, timeline: Timeline) -> Engine<D> {
        Engine {
            disk,
            durability,
            sizes,
            tag,
            timeline,
            image: Image::default(),
            segments: BTreeMap::new(),
            writer: None,
            next_segment: 1,
            next_sequence: 1,
            checkpointed: (0, 0),
            checkpoint_bytes: 0,
            since_checkpoint: 0,
            pending: VecDeque::new(),
            answers: VecDeque::new(),
            failing: None,
            has_reserve: false,
            holds: Vec::new(),
            next_hold: 1,
            tidied: None,
            last_frame: 0,
            copied: Vec::new(),
            stats: Stats::default(),
            stopped: 0,
            news: VecDeque::new(),
        }
    }

    /// Takes changes to be written with the next [`Engine::commit`].
    pub fn append(&mut self, now: Instant, ticket: Ticket, changes: &[Change]) {
        let mut bytes = Vec::new();
        let mut counts = Counts::default();
        changes.iter().for_each(|change| record::encode(change, &self.timeline, &mut bytes, &mut counts));
        let must = changes.iter().any(Change::must_be_kept);
        self.pending.push_back(Pending { ticket, bytes, counts, must, since: now, rewinds: Vec::new() });
    }

    /// Whether what is acted upon has to survive a power cut.
    pub(super) fn syncs(&self) -> bool {
        self.durability == Durability::Fsync
    }

    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// When [`Engine::commit`] is to be called again though nothing new has come.
    pub fn retry_at(&self) -> Option<Instant> {
        self.failing.as_ref().filter(|_| !self.pending.is_empty()).map(|failing| failing.retry)
    }

    pub fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Writes down what is pending; its answers are there afterwards, or, while the disk fails, later.
    pub fn commit(&mut self, clocks: Clocks) {
        if self.failing.as_ref().is_some_and(|failing| failing.retry > clocks.now) {
            return;
        }
        while !self.pending.is_empty() {
            match self.commit_frame(clocks) {
                Ok(()) => {
                    if self.failing.take().is_some() {
                        self.news.push_back(News::Recovered);
                    }
                }
                Err(error) => return self.failed(clocks, error),
            }
        }
    }

    /// What can wait until the answers are told: checkpoints, and removing what is of no use any more.
    pub fn maintain(&mut self, clocks: Clocks) {
        if self.since_checkpoint > self.sizes.checkpoint_every.max(4 * self.checkpoint_bytes) {
            self.checkpoint(clocks);
        }
        if std::mem::take(&mut self.image.has_dead) {
            self.collect();
        }
        if self.tidied.is_none_or(|at| clocks.now.saturating_duration_since(at) >= TIDY_EVERY) {
            self.tidied = Some(clocks.now);
            self.tidy(clocks);
        }
    }

    /// Says what time it is, once a minute, while somebody is connected whose session is kept: a start after
    /// a crash has to know until when they were there.
    pub fn note_time(&mut self, clocks: Clocks) {
        let is_due = self.timeline.moment(clocks.now).saturating_sub(self.last_frame) >= NOTED_EVERY_MS;
        let is_asked =
            self.image.sessions.values().any(|kept| kept.facts.as_ref().is_some_and(|facts| facts.connected));
        if is_due && is_asked && self.failing.is_none() && self.pending.is_empty() {
            // What fails here fails again where it matters.
            let _ = self.write_frame(clocks, &[], Counts::default(), false);
        }
    }

    /// One frame of what is pending: written, synced, and then true.
    fn commit_frame(&mut self, clocks: Clocks) -> io::Result<()> {
        let mut count = 0;
        let mut len = 0;
        for pending in &self.pending {
            if count > 0 && len + pending.bytes.len() > self.sizes.frame_max {
                break;
            }
            len += pending.bytes.len();
            count += 1;
        }
        let mut payload = Vec::with_capacity(len);
        let mut counts = Counts::default();
        for pending in self.pending.iter().take(count) {
            payload.extend_from_slice(&pending.bytes);
            counts.add(pending.counts);
        }
        let at = self.write_frame(clocks, &payload, counts, false)?;
        self.stats.messages += u64::from(counts.messages);
        self.committed(count, &Bytes::from(payload), at);
        Ok(())
    }

    /// The first `count` of what is pending are done: one behind the other they are the payload.
    fn committed(&mut self, count: usize, payload: &Bytes, at: At) {
        let mut from = 0;
        for pending in self.pending.drain(..count).collect::<Vec<_>>() {
            let to = from + pending.bytes.len();
            self.apply(payload.slice(from..to), At { payload: at.payload + from as u64, ..at });
            from = to;
            self.answers.push_back(Answer::Committed(pending.ticket));
            pending.rewinds.iter().for_each(|(client, inflight)| self.image.rewind(client, inflight));
        }
    }

    fn apply(&mut self, payload: Bytes, at: At) {
        for record in Records::new(payload) {
            match record {
                Ok(record) => self.image.apply(record, at),
                Err(error) => debug_assert!(false, "written and read: {error}"),
            }
        }
    }

    /// Writes a frame behind the last one and syncs it; says where its payload lies.
    fn write_frame(&mut self, clocks: Clocks, payload: &[u8], counts: Counts, reserve: bool) -> io::Result<At> {
        let whole = (FRAME_HEADER + payload.len()) as u64;
        let has_room =
            |writer: &Writer<D::File>| writer.end + whole <= writer.capacity && (reserve || !writer.is_reserve);
        if !self.writer.as_ref().is_some_and(has_room) {
            self.roll(whole, reserve)?;
        }
        let writer = self.writer.as_mut().expect("there after rolling");
        let moment = self.timeline.moment(clocks.now);
        let time = LastTime { moment, wall_secs: clocks.wall_secs, is_sane: clocks.is_sane };
        let header = FrameHeader::new(payload, self.next_sequence, time, counts);
        let mut bytes = Vec::with_capacity(whole as usize);
        bytes.extend_from_slice(&header.encode(self.tag));
        bytes.extend_from_slice(payload);
        let mut written = writer.file.write_at(&bytes, writer.end);
        if self.durability == Durability::Fsync {
            written = written.and_then(|()| writer.file.sync());
        }
        if let Err(error) = written {
            self.seal();
            return Err(error);
        }
        let payload_at = writer.end + FRAME_HEADER as u64;
        writer.end += whole;
        let (number, end) = (writer.number, writer.end);
        self.segments.get_mut(&number).expect("made with its writer").end = end;
        self.next_sequence += 1;
        self.since_checkpoint += whole;
        self.last_frame = moment;
        self.stats.bytes_written += whole;
        self.stats.commits += 1;
        Ok(At { segment: number, payload: payload_at, moment })
    }

    /// A new segment with room for a frame of `whole` bytes.
    fn roll(&mut self, whole: u64, reserve: bool) -> io::Result<()> {
        let number = self.next_segment;
        let name = segment_name(number);
        let needed = whole + FILE_HEADER as u64;
        let header = FileHeader { number, first_sequence: self.next_sequence, tag: self.tag }.encode();
        // What a failed attempt left under this name.
        let _ = self.disk.remove(&name);
        let made = if reserve {
            self.has_reserve = false;
            let renamed = self.disk.rename(RESERVE_NAME, &name).and_then(|()| self.disk.open(&name));
            renamed.map(|file| (file, self.sizes.reserve))
        } else {
            self.keep_reserve().and_then(|()| self.create_segment(&name, needed))
        };
        let (mut file, capacity) = match made {
            Ok(made) => made,
            Err(error) => {
                let _ = self.disk.remove(&name);
                return Err(error);
            }
        };
        // From here on it may be there after a power cut, and void what others would write under its number.
        self.seal();
        self.next_segment += 1;
        if let Err(error) = self.begin_segment(&mut file, &header) {
            let _ = self.disk.remove(&name);
            return Err(error);
        }
        self.stats.bytes_written += FILE_HEADER as u64;
        let reader = self.disk.open(&name).ok();
        self.segments.insert(number, Segment { file: reader, end: FILE_HEADER as u64 });
        self.writer = Some(Writer { number, file, end: FILE_HEADER as u64, capacity, is_reserve: reserve });
        Ok(())
    }

    /// The name is to survive as the frames do, and the header before any of them.
    fn begin_segment(&mut self, file: &mut D::File, header: &[u8]) -> io::Result<()> {
        file.write_at(header, 0)?;
        if self.durability == Durability::Fsync {
            file.sync()?;
            self.disk.sync_folder()?;
        }
        Ok(())
    }

    /// A segment's file, smaller than usual where there is no room for more; and its size.
    fn create_segment(&mut self, name: &str, needed: u64) -> io::Result<(D::File, u64)> {
        let mut size = self.sizes.segment;
        loop {
            let wanted = size.max(needed);
            let is_full =
                |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            match self.disk.create(name, wanted) {
                Err(error) if is_full(&error) && wanted > needed && size > self.sizes.segment / 16 => size /= 4,
                other => return other.map(|file| (file, wanted)),
            }
        }
    }

    /// Room for acknowledgements on a full disk. It comes before room for messages.
    fn keep_reserve(&mut self) -> io::Result<()> {
        if !self.has_reserve {
            let _ = self.disk.remove(RESERVE_NAME);
            self.disk.create(RESERVE_NAME, self.sizes.reserve)?;
            self.has_reserve = true;
        }
        Ok(())
    }

    /// The segment that was written to is not written to again.
    fn seal(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            // Room that was never used, and what a failed write may have left.
            let _ = writer.file.set_len(writer.end);
        }
    }

    fn failed(&mut self, clocks: Clocks, error: io::Error) {
        self.stats.failures += 1;
        if self.failing.is_none() {
            self.news.push_back(News::Failing(error));
        }
        let failing = self.failing.get_or_insert(Failing { since: clocks.now, retry: clocks.now, is_known: false });
        failing.retry = clocks.now + RETRY;
        failing.is_known |= clocks.now.saturating_duration_since(failing.since) >= PATIENCE;
        if !failing.is_known {
            return;
        }
        // Whoever can be told is told; what is left is written to the room that was kept for it.
        for mut pending in std::mem::take(&mut self.pending) {
            if pending.must || clocks.now.saturating_duration_since(pending.since) < RETRY {
                self.pending.push_back(pending);
                continue;
            }
            self.answers.push_back(Answer::Failed(pending.ticket));
            match self.pending.back_mut() {
                Some(before) => before.rewinds.append(&mut pending.rewinds),
                None => pending.rewinds.iter().for_each(|(client, inflight)| self.image.rewind(client, inflight)),
            }
        }
        let front = self.pending.iter().take_while(|pending| pending.must).count();
        if front > 0 && (self.has_reserve || self.writer.is_some()) {
            self.commit_reserved(clocks, front);
        }
        // Perhaps it is this store that has filled the disk.
        if self.has_room_to_give() {
            self.replace_checkpoint(clocks, false);
        }
    }

    /// Whether a checkpoint would let go of a segment.
    fn has_room_to_give(&self) -> bool {
        let current = self.writer.as_ref().map(|writer| writer.number);
        let is_unwanted = |number: &u32| Some(*number) != current && !self.image.live.contains_key(number);
        self.since_checkpoint > 0
            && self.segments.keys().any(|number| *number >= self.checkpointed.1 && is_unwanted(number))
    }

    fn commit_reserved(&mut self, clocks: Clocks, count: usize) {
        let mut payload = Vec::new();
        let mut counts = Counts::default();
        let mut taken = 0;
        let left = match self.writer.as_ref().filter(|writer| writer.is_reserve) {
            Some(writer) => writer.capacity - writer.end,
            None => self.sizes.reserve - FILE_HEADER as u64,
        };
        for pending in self.pending.iter().take(count) {
            if (payload.len() + pending.bytes.len() + FRAME_HEADER) as u64 > left {
                break;
            }
            payload.extend_from_slice(&pending.bytes);
            counts.add(pending.counts);
            taken += 1;
        }
        if taken == 0 {
            return;
        }
        if let Ok(at) = self.write_frame(clocks, &payload, counts, true) {
            self.committed(taken, &Bytes::from(payload), at);
            self.collect();
        }
    }

    /// None of a client's queue is at hand any more but what is in flight, as soon as what was appended
    /// before is done with.
    pub fn rewind(&mut self, client: &ClientId, inflight: Vec<MessageId>) {
        match self.pending.back_mut() {
            Some(last) => last.rewinds.push((client.clone(), inflight)),
            None => self.image.rewind(client, &inflight),
        }
    }

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

    fn read_body_bytes(&mut self, place: Place, size: u32) -> Option<Vec<u8>> {
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

    fn replace_checkpoint(&mut self, clocks: Clocks, copies: bool) {
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
        let time =
            LastTime { moment: self.timeline.moment(clocks.now), wall_secs: clocks.wall_secs, is_sane: clocks.is_sane };
        let mut end = FILE_HEADER as u64;
        super::checkpoint::write(&self.image, |payload, counts| {
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
        let (mut payload, mut places) = (Vec::new(), Vec::new());
        let wanted = self.image.places(|segment| sparse.contains(&segment));
        let mut left = wanted.len();
        for place in wanted {
            left -= 1;
            if let Some(body) = self.read_body_bytes(place, 1024) {
                let at = record::copied(&mut payload, &body);
                places.push((place, at));
            }
            if payload.len() > self.sizes.frame_max || (left == 0 && !payload.is_empty()) {
                let at = self.write_frame(clocks, &payload, Counts::default(), false)?;
                for (old, offset) in places.drain(..) {
                    let new = Place { segment: at.segment, offset: (at.payload + offset as u64) as u32 };
                    moved.insert(old, new);
                }
                payload.clear();
            }
        }
        // True from the checkpoint on that follows; until then both places are good.
        self.image.relocate(&moved);
        self.copied.extend(sparse);
        Ok(())
    }

    /// Removes segments that nobody needs.
    fn collect(&mut self) {
        if !self.holds.is_empty() {
            return;
        }
        let current = self.writer.as_ref().map(|writer| writer.number);
        let below = self.checkpointed.1;
        let unwanted: Vec<u32> = self
            .segments
            .keys()
            .copied()
            .take_while(|number| *number < below)
            .filter(|number| {
                Some(*number) != current && !self.image.live.contains_key(number) && !self.copied.contains(number)
            })
            .collect();
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

    /// Bodies that are in use.
    pub fn bodies(&self) -> usize {
        self.image.places(|_| true).len()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.image.sessions.values().filter(|kept| kept.facts.is_some()).count(),
            queued: self.image.queued,
            retained: self.image.retained.len(),
            segments: self.segments.len(),
            disk_bytes: self.segments.values().map(|segment| segment.end).sum::<u64>() + self.checkpoint_bytes,
            live_bytes: self.image.live.values().map(|live| live.bytes).sum(),
            is_failing: self.failing.is_some(),
            ..self.stats
        }
    }
}
