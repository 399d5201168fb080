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
use std::time::{Duration, Instant};

use super::batch::{Batch, UNIT_SIZE, Unit};
use super::disk::{Disk, DiskFile};
use super::frame::{Counts, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, Tag};
use super::image::{At, Image, Kept};
use super::record::Records;
use super::time::{Clocks, LastTime, Moment, Timeline};
use super::{Answer, Durability};
use crate::broker::MessageId;
use crate::types::ClientId;

const RESERVE_NAME: &str = "reserve";
/// How long a disk may fail before whoever waits is told so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for room that could be given back.
const TIDY_EVERY: Duration = Duration::from_secs(2);
/// How late the newest frame may be, while that matters; of the store's time.
pub(super) const NOTED_EVERY_MS: u64 = 60_000;
/// Room for records that is kept from one commit to the next.
const FRAME_KEPT: usize = 1024 * 1024;
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
pub(super) struct Writer<F> {
    pub(super) number: u32,
    file: F,
    /// Synced up to here.
    end: u64,
    capacity: u64,
    /// It is the room that was kept: for what has to be written down alone.
    is_reserve: bool,
}

/// A unit that waits for its commit.
#[derive(Debug)]
pub(super) struct Pending {
    unit: Unit,
    since: Instant,
    /// What is to be rewound when this is done with.
    pub(super) rewinds: Vec<(ClientId, Vec<MessageId>)>,
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
    pub(super) sizes: Sizes,
    pub(super) tag: Tag,
    pub(super) timeline: Timeline,
    pub(super) image: Image,
    pub(super) segments: BTreeMap<u32, Segment<D::File>>,
    pub(super) writer: Option<Writer<D::File>>,
    pub(super) next_segment: u32,
    pub(super) next_sequence: u64,
    /// Frames up to here are in the newest checkpoint, and segments below that number.
    pub(super) checkpointed: (u64, u32),
    pub(super) checkpoint_bytes: u64,
    pub(super) since_checkpoint: u64,
    pub(super) pending: VecDeque<Pending>,
    /// The records of what is pending, from `frame_from` on; before that is room for a frame's header.
    frame: Vec<u8>,
    frame_from: usize,
    /// Since when tickets waited that the last commit was for, and how many.
    waited: Vec<(Instant, u64)>,
    answers: Vec<Answer>,
    pub(super) failing: Option<Failing>,
    has_reserve: bool,
    /// Nothing is removed while somebody copies the files.
    pub(super) holds: Vec<(u64, Instant)>,
    pub(super) next_hold: u64,
    /// When it was last looked for room to be given back.
    tidied: Option<Instant>,
    /// The store's time in the newest frame.
    last_frame: Moment,
    /// Segments whose bodies were copied, while the newest checkpoint does not know it.
    pub(super) copied: Vec<u32>,
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
pub(super) struct Failing {
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
            frame: vec![0; FRAME_HEADER],
            frame_from: FRAME_HEADER,
            waited: Vec::new(),
            answers: Vec::new(),
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

    /// Since when tickets waited that the last commit was for, and how many.
    pub(super) fn waited(&self) -> &[(Instant, u64)] {
        &self.waited
    }

    /// For what is to be appended.
    pub(super) fn batch(&self) -> Batch {
        Batch::new(self.timeline)
    }

    /// Takes changes to be written with the next [`Engine::commit`].
    pub(super) fn append(&mut self, batch: Batch) {
        let Some(since) = batch.since else { return };
        self.frame.extend_from_slice(&batch.records);
        let pending = batch.units.into_iter().map(|unit| Pending { unit, since, rewinds: Vec::new() });
        self.pending.extend(pending);
    }

    /// About what takes memory because it is not committed, bytes.
    pub(super) fn pending_size(&self) -> usize {
        self.frame.len() - self.frame_from + UNIT_SIZE * self.pending.len()
    }

    /// Whether what is acted upon has to survive a power cut.
    pub(super) fn syncs(&self) -> bool {
        self.durability == Durability::Fsync
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// When [`Engine::commit`] is to be called again though nothing new has come.
    pub fn retry_at(&self) -> Option<Instant> {
        self.failing.as_ref().filter(|_| !self.pending.is_empty()).map(|failing| failing.retry)
    }

    /// All answers that are ready.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Writes down what is pending; its answers are there afterwards, or, while the disk fails, later.
    pub fn commit(&mut self, clocks: Clocks) {
        self.waited.clear();
        if self.failing.as_ref().is_some_and(|failing| failing.retry > clocks.now) {
            return;
        }
        while !self.pending.is_empty() {
            // One that alone is larger goes alone.
            let most = self.sizes.frame_max.max(self.pending[0].unit.len);
            match self.commit_first(clocks, self.pending.len(), most, false) {
                Ok(_) => {
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
        if !is_due || self.failing.is_some() || !self.pending.is_empty() {
            return;
        }
        let is_connected = |kept: &Kept| kept.facts.as_ref().is_some_and(|facts| facts.connected);
        if self.image.sessions.values().any(is_connected) {
            // What fails here fails again where it matters.
            let _ = self.write_frame(clocks, &mut [0; FRAME_HEADER], Counts::default(), false);
        }
    }

    /// One frame of the first of what is pending, `count` and `bytes_max` at most: written, synced, and then
    /// true. Says whether there was room for any.
    fn commit_first(&mut self, clocks: Clocks, count: usize, bytes_max: usize, reserve: bool) -> io::Result<bool> {
        let mut counts = Counts::default();
        let (mut taken, mut len) = (0, 0);
        for Pending { unit, .. } in self.pending.iter().take(count) {
            if len + unit.len > bytes_max {
                break;
            }
            len += unit.len;
            counts.add(unit.counts);
            taken += 1;
        }
        if taken == 0 {
            return Ok(false);
        }
        // The header goes where records were that are committed, or where nothing was.
        let (from, to) = (self.frame_from, self.frame_from + len);
        let mut frame = std::mem::take(&mut self.frame);
        let written = self.write_frame(clocks, &mut frame[from - FRAME_HEADER..to], counts, reserve);
        if let Ok(at) = written {
            self.stats.messages += u64::from(counts.messages);
            self.committed(taken, &frame[from..to], at);
            self.frame_from = to;
        }
        self.frame = frame;
        if self.pending.is_empty() {
            self.frame.truncate(FRAME_HEADER);
            self.frame.shrink_to(FRAME_KEPT);
            self.frame_from = FRAME_HEADER;
        }
        written.map(|_| true)
    }

    /// The first `count` of what is pending are done: one behind the other they are the payload.
    fn committed(&mut self, count: usize, payload: &[u8], at: At) {
        let mut from = 0;
        for _ in 0..count {
            let Pending { unit, since, rewinds } = self.pending.pop_front().expect("counted");
            let to = from + unit.len;
            self.apply(&payload[from..to], At { payload: at.payload + from as u64, ..at });
            from = to;
            if let Some(ticket) = unit.ticket {
                self.answers.push(Answer::Committed(ticket));
                match self.waited.last_mut() {
                    Some((of, count)) if *of == since => *count += 1,
                    _ => self.waited.push((since, 1)),
                }
            }
            rewinds.iter().for_each(|(client, inflight)| self.image.rewind(client, inflight));
        }
    }

    fn apply(&mut self, payload: &[u8], at: At) {
        for record in Records::new(payload) {
            match record {
                Ok(record) => self.image.apply(record, at),
                Err(error) => debug_assert!(false, "written and read: {error}"),
            }
        }
    }

    /// What a frame says of the time.
    pub(super) fn last_time(&self, clocks: Clocks) -> LastTime {
        let moment = self.timeline.moment(clocks.now);
        LastTime { moment, wall_secs: clocks.wall_secs, is_sane: clocks.is_sane }
    }

    /// Writes a frame, which has room for its header, behind the last one and syncs it; says where its
    /// payload lies.
    pub(super) fn write_frame(
        &mut self,
        clocks: Clocks,
        frame: &mut [u8],
        counts: Counts,
        reserve: bool,
    ) -> io::Result<At> {
        let whole = frame.len() as u64;
        let has_room =
            |writer: &Writer<D::File>| writer.end + whole <= writer.capacity && (reserve || !writer.is_reserve);
        if !self.writer.as_ref().is_some_and(has_room) {
            self.roll(whole, reserve)?;
        }
        let time = self.last_time(clocks);
        let header = FrameHeader::new(&frame[FRAME_HEADER..], self.next_sequence, time, counts);
        frame[..FRAME_HEADER].copy_from_slice(&header.encode(self.tag));
        let syncs = self.syncs();
        let writer = self.writer.as_mut().expect("there after rolling");
        let mut written = writer.file.write_at(frame, writer.end);
        if syncs {
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
        self.last_frame = time.moment;
        self.stats.bytes_written += whole;
        self.stats.commits += 1;
        Ok(At { segment: number, payload: payload_at, moment: time.moment })
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
        if self.syncs() {
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
        let records = std::mem::replace(&mut self.frame, vec![0; FRAME_HEADER]);
        let mut to = std::mem::replace(&mut self.frame_from, FRAME_HEADER);
        for mut pending in std::mem::take(&mut self.pending) {
            let from = to;
            to += pending.unit.len;
            if pending.unit.must || clocks.now.saturating_duration_since(pending.since) < RETRY {
                self.frame.extend_from_slice(&records[from..to]);
                self.pending.push_back(pending);
                continue;
            }
            self.answers.extend(pending.unit.ticket.map(Answer::Failed));
            match self.pending.back_mut() {
                Some(before) => before.rewinds.append(&mut pending.rewinds),
                None => pending.rewinds.iter().for_each(|(client, inflight)| self.image.rewind(client, inflight)),
            }
        }
        let front = self.pending.iter().take_while(|pending| pending.unit.must).count();
        if front > 0 && (self.has_reserve || self.writer.is_some()) {
            self.commit_reserved(clocks, front);
        }
        // Perhaps it is this store that has filled the disk.
        if self.has_room_to_give() {
            self.replace_checkpoint(clocks, false);
        }
    }

    /// As many of the first `count` as the room that was kept has room for.
    fn commit_reserved(&mut self, clocks: Clocks, count: usize) {
        let left = match self.writer.as_ref().filter(|writer| writer.is_reserve) {
            Some(writer) => writer.capacity - writer.end,
            None => self.sizes.reserve - FILE_HEADER as u64,
        };
        let bytes_max = left.saturating_sub(FRAME_HEADER as u64) as usize;
        if self.commit_first(clocks, count, bytes_max, true).is_ok_and(|any| any) {
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

    /// Whether nothing refers to a segment, and nothing is written to it.
    pub(super) fn is_unwanted(&self, number: u32) -> bool {
        let is_current = self.writer.as_ref().is_some_and(|writer| writer.number == number);
        !is_current && !self.image.live.contains_key(&number)
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
