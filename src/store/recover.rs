//! What is there at start: the newest checkpoint, and the frames behind it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Durability;
use super::disk::{Disk, DiskFile};
use super::engine::{Engine, NOTED_EVERY_MS, Segment, Sizes, checkpoint_number, segment_name, segment_number};
use super::frame::{
    Counts, FILE_HEADER, FRAME_HEADER, FileHeader, FileHeaderError, Found, FrameHeader, Tag, VERSION, walk,
};
use super::image::{At, Entry, Kept};
use super::record::{Record, Records};
use super::time::{Clocks, LastTime, Timeline};
use crate::broker::{
    Message, MessageId, Restored, RestoredInflight, RestoredPosition, RestoredSession, RestoredSubscription,
    StoredPosition,
};
use crate::types::{ClientId, PacketId, Realm};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{file} was written by a newer Lockgate (format {found}; this one reads up to {VERSION}): start that version, \
         or restore a backup"
    )]
    Newer { file: String, found: u32 },
    #[error("the store cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// What a start found that was not as it should be.
#[derive(Debug, Default)]
pub struct Recovery {
    pub damages: Vec<Damage>,
    /// Commits that are nowhere.
    pub commits_missing: u64,
    pub messages_lost: usize,
    pub clients_affected: usize,
    /// The end of a commit that was under way, as it seems: nobody was told that it was safe.
    pub torn: Option<Damage>,
    pub took: Duration,
}

/// A piece of a file that is no good.
#[derive(Debug)]
pub struct Damage {
    pub file: String,
    pub at: u64,
    pub len: u64,
    /// As far as it says so itself.
    pub held: String,
    /// The piece's name under `damaged/`, if it was kept there.
    pub aside: Option<String>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { file, at, len, held, aside } = self;
        write!(f, "{file} is damaged at byte {at} ({len} bytes, {held})")?;
        aside.as_ref().map_or(Ok(()), |aside| write!(f, "; that piece is kept as damaged/{aside}"))
    }
}

/// Opens the store on `disk`: what is sound is kept, what is not is set aside and reported.
pub(super) fn open<D: Disk>(
    disk: D,
    durability: Durability,
    sizes: Sizes,
    tag: Tag,
    clocks: Clocks,
) -> Result<(Engine<D>, Recovery), OpenError> {
    let mut opening = Opening {
        engine: Engine::new(disk, durability, sizes, tag, Timeline::resume(LastTime::default(), clocks)),
        recovery: Recovery::default(),
        last: LastTime::default(),
    };
    let names = opening.engine.disk.list()?;
    for name in ["checkpoint.new", "reserve"] {
        if names.iter().any(|known| known == name) {
            let _ = opening.engine.disk.remove(name);
        }
    }
    opening.checkpoint(&names)?;
    opening.segments(&names)?;
    if opening.engine.syncs() {
        opening.engine.disk.sync_folder()?;
    }
    opening.lost_bodies();
    opening.engine.image.rewind_all();
    let Opening { mut engine, recovery, last, .. } = opening;
    engine.timeline = Timeline::resume(last, clocks);
    engine.stopped = last.moment;
    Ok((engine, recovery))
}

struct Opening<D: Disk> {
    engine: Engine<D>,
    recovery: Recovery,
    last: LastTime,
}

impl<D: Disk> Opening<D> {
    /// Sets a piece aside and reports it; whether it is safe there.
    fn damage(&mut self, file: &str, at: u64, bytes: &[u8], held: Option<Counts>) -> bool {
        let damage = self.set_aside(file, at, bytes, held);
        let is_safe = damage.aside.is_some();
        self.recovery.damages.push(damage);
        is_safe
    }

    fn set_aside(&mut self, file: &str, at: u64, bytes: &[u8], held: Option<Counts>) -> Damage {
        let aside = format!("{file}-{at}");
        let aside = self.engine.disk.set_aside(&aside, bytes).is_ok().then_some(aside);
        let held = held.map_or_else(|| "what they held is not known".to_owned(), |held| format!("they held {held}"));
        Damage { file: file.to_owned(), at, len: bytes.len() as u64, held, aside }
    }

    /// The newest checkpoint that can be read, as far as it can.
    fn checkpoint(&mut self, names: &[String]) -> Result<(), OpenError> {
        let mut found: Vec<(u64, &String)> =
            names.iter().filter_map(|name| Some((checkpoint_number(name)?, name))).collect();
        found.sort_unstable();
        for (number, name) in found.into_iter().rev() {
            let file = self.engine.disk.open(name)?;
            let mut head = [0; FILE_HEADER + FRAME_HEADER];
            // What the disk cannot read is as good as damaged.
            let _ = file.read_at(&mut head, 0);
            let header = match FileHeader::decode(&head) {
                Ok(header) => header,
                Err(FileHeaderError::Newer(found)) => return Err(OpenError::Newer { file: name.clone(), found }),
                Err(FileHeaderError::Damaged) => {
                    let Some((tag, _)) = FileHeader::guess(&head) else {
                        if self.damage(name, 0, &file.read_from(0)?, None) {
                            let _ = self.engine.disk.remove(name);
                        }
                        continue;
                    };
                    // Its frames may be sound all the same; every segment is looked at then.
                    self.damage(name, 0, &head[..FILE_HEADER], None);
                    FileHeader { number: 0, first_sequence: number, tag }
                }
            };
            let mut is_whole = false;
            walk(&file, header.tag, |found| {
                match found {
                    Found::Frame { header, payload, .. } => {
                        self.last = header.time;
                        let at = At { segment: 0, payload: 0, moment: header.time.moment };
                        is_whole |= self.apply(payload, at);
                    }
                    Found::Damaged { from, bytes, held } => {
                        self.damage(name, from, bytes, held);
                    }
                    Found::End { at, rest } if !is_whole => {
                        // It ends before its end.
                        self.damage(name, at, rest, None);
                    }
                    Found::End { .. } => {}
                }
                true
            })?;
            self.engine.checkpointed = (header.first_sequence, header.number);
            // Also where those that had the numbers before are gone: older ones are not read.
            self.engine.next_segment = self.engine.next_segment.max(header.number);
            self.engine.checkpoint_bytes = file.size()?;
            self.engine.next_sequence = header.first_sequence + 1;
            return Ok(());
        }
        Ok(())
    }

    /// Says whether a checkpoint's end is among the records.
    fn apply(&mut self, payload: &[u8], at: At) -> bool {
        let mut is_end = false;
        for record in Records::new(payload) {
            is_end |= matches!(record, Ok(Record::CheckpointEnd));
            match record {
                Ok(record) => self.engine.image.apply(record, at),
                // Sound and meaningless: there is no format that says so.
                Err(_) => self.recovery.commits_missing += 1,
            }
        }
        is_end
    }

    fn segments(&mut self, names: &[String]) -> Result<(), OpenError> {
        let mut headers = BTreeMap::new();
        for name in names {
            let Some(number) = segment_number(name) else { continue };
            self.engine.next_segment = self.engine.next_segment.max(number + 1);
            let file = self.engine.disk.open(name)?;
            let mut head = [0; FILE_HEADER];
            file.read_at(&mut head, 0)?;
            match FileHeader::decode(&head) {
                Ok(header) => {
                    headers.insert(number, (header, file));
                }
                Err(FileHeaderError::Newer(found)) => return Err(OpenError::Newer { file: name.clone(), found }),
                // It was made when the power went, and nothing was written to it.
                Err(FileHeaderError::Damaged) if head.iter().all(|byte| *byte == 0) => {
                    let bytes = file.read_from(0)?;
                    if bytes.iter().all(|byte| *byte == 0) || self.damage(name, 0, &bytes, None) {
                        let _ = self.engine.disk.remove(name);
                    }
                }
                Err(FileHeaderError::Damaged) => {
                    let bytes = file.read_from(0)?;
                    // Its frames may be sound all the same; files that lie side by side mostly have one tag.
                    let beside = headers.values().next_back().map(|(header, _): &(FileHeader, D::File)| header.tag);
                    let guess = FileHeader::guess(&bytes);
                    let (tag, first_sequence) = guess.unwrap_or((beside.unwrap_or(self.engine.tag), 0));
                    self.damage(name, 0, bytes.get(..FILE_HEADER).unwrap_or(&bytes), None);
                    headers.insert(number, (FileHeader { number, first_sequence, tag }, file));
                }
            }
        }
        // What a newer file begins with voids what older ones have from there on.
        let mut void_from = u64::MAX;
        let mut limits = BTreeMap::new();
        for (number, (header, _)) in headers.iter().rev() {
            limits.insert(*number, void_from);
            if header.first_sequence > 0 {
                void_from = void_from.min(header.first_sequence);
            }
        }
        let (_, first) = self.engine.checkpointed;
        for (number, (header, file)) in headers {
            if number < first {
                let end = file.size()?;
                self.engine.segments.insert(number, Segment { file: None, end });
            } else {
                let is_last = limits[&number] == u64::MAX;
                self.segment(number, file, header.tag, limits[&number], is_last)?;
            }
        }
        Ok(())
    }

    fn segment(
        &mut self,
        number: u32,
        mut file: D::File,
        tag: Tag,
        void_from: u64,
        is_last: bool,
    ) -> Result<(), OpenError> {
        let name = segment_name(number);
        let mut end = FILE_HEADER as u64;
        let mut may_cut = true;
        walk(&file, tag, |found| {
            match found {
                Found::Frame { header, .. } if header.sequence >= void_from => return false,
                Found::Frame { header, payload, payload_at } => {
                    end = payload_at + payload.len() as u64;
                    if header.sequence < self.engine.next_sequence {
                        return true;
                    }
                    self.recovery.commits_missing += header.sequence - self.engine.next_sequence;
                    self.engine.next_sequence = header.sequence + 1;
                    self.last = header.time;
                    let at = At { segment: number, payload: payload_at, moment: header.time.moment };
                    self.engine.since_checkpoint += payload.len() as u64;
                    self.apply(payload, at);
                }
                Found::Damaged { from, bytes, held } => {
                    self.damage(&name, from, bytes, held);
                }
                Found::End { at, rest } => {
                    let Some(last) = rest.iter().rposition(|byte| *byte != 0) else { return true };
                    let held = FrameHeader::decode(rest, tag).map(|header| header.counts);
                    // A commit that was under way when everything ended; in an older file, one that failed
                    // and was written again.
                    if is_last {
                        let torn = self.set_aside(&name, at, &rest[..=last], held);
                        may_cut = torn.aside.is_some();
                        self.recovery.torn = Some(torn);
                    } else if self.engine.next_sequence < void_from && void_from != u64::MAX {
                        may_cut = self.damage(&name, at, &rest[..=last], held);
                    }
                }
            }
            true
        })?;
        if void_from != u64::MAX && self.engine.next_sequence < void_from {
            self.recovery.commits_missing += void_from - self.engine.next_sequence;
            self.engine.next_sequence = void_from;
        }
        if end < file.size()? && may_cut {
            // Room that was kept for more.
            let _ = file.set_len(end);
        }
        // What was written and not synced is acted upon from now on.
        if self.engine.syncs() {
            file.sync()?;
        }
        self.engine.segments.insert(number, Segment { file: Some(file), end });
        Ok(())
    }

    /// Messages whose bodies are not there any more.
    fn lost_bodies(&mut self) {
        let ends: BTreeMap<u32, u64> =
            self.engine.segments.iter().map(|(number, segment)| (*number, segment.end)).collect();
        let is_lost =
            |place: super::image::Place| ends.get(&place.segment).is_none_or(|end| u64::from(place.offset) >= *end);
        let (messages, clients) = self.engine.image.lose(is_lost);
        self.recovery.messages_lost = messages;
        self.recovery.clients_affected = clients;
    }
}

impl<D: Disk> Engine<D> {
    /// What the core goes on with. Bodies of queued messages stay where they are.
    pub fn restored(&mut self, clocks: Clocks) -> Restored {
        let now = self.timeline.moment(clocks.now);
        self.image.expire(now);
        let mut sessions = Vec::new();
        let mut groups = Vec::new();
        for (client, kept) in &self.image.sessions {
            if client.as_str().starts_with('\0') {
                groups.push(client.clone());
                continue;
            }
            sessions.push(self.restored_session(client, kept, now));
        }
        let places: Vec<(Box<str>, super::image::Place, u32)> =
            self.image.retained.iter().map(|(topic, (place, size))| (topic.clone(), *place, *size)).collect();
        let mut retained: Vec<Arc<Message>> = Vec::with_capacity(places.len());
        let mut unreadable = Vec::new();
        for (topic, place, size) in places {
            match self.read_body(place, size) {
                Some(message) => retained.push(message),
                None => unreadable.push(topic),
            }
        }
        Restored { sessions, groups, retained, unreadable, next_message: self.image.next_message }
    }

    fn restored_session(&self, client: &ClientId, kept: &Kept, now: u64) -> RestoredSession {
        let facts = kept.facts.as_ref();
        // Whoever was connected was so until everything stopped: that was within a minute of the newest frame.
        let stopped = self.stopped.saturating_add(NOTED_EVERY_MS).min(now);
        let since = |facts: &super::image::Facts| if facts.connected { stopped } else { facts.since };
        let since_ms = facts.map_or(0, |facts| now.saturating_sub(since(facts)));
        let left = |secs: u32| Duration::from_secs(u64::from(secs)).saturating_sub(Duration::from_millis(since_ms));
        let released = kept.released.iter().map(|(packet_id, id)| RestoredInflight {
            packet_id: *packet_id,
            message: *id,
            sent: None,
        });
        let sent = kept.queue.iter().filter_map(|entry| {
            Some(RestoredInflight {
                packet_id: entry.packet_id()?,
                message: MessageId(entry.id),
                sent: Some(RestoredPosition {
                    size: entry.size,
                    published: entry.published(),
                    to: self.image.queued_for(client, entry),
                }),
            })
        });
        let mut shares: Vec<Arc<str>> = Vec::new();
        let mut place_of = |share: &Arc<str>| {
            let known = shares.iter().position(|known| known == share);
            let at = known.unwrap_or_else(|| {
                shares.push(share.clone());
                shares.len() - 1
            });
            at as u32 + 1
        };
        let is_waiting = |entry: &&Entry| entry.packet_id().is_none();
        let mut waiting = Vec::with_capacity(kept.queue.iter().filter(is_waiting).count());
        waiting.extend(kept.queue.iter().filter(is_waiting).map(|entry| {
            let share = self.image.extra(entry).and_then(|extra| extra.shared.as_ref());
            let share = share.map_or(0, &mut place_of);
            StoredPosition { message: MessageId(entry.id), size: entry.size, share }
        }));
        RestoredSession {
            client: client.clone(),
            is_session: facts.is_some(),
            connected: facts.is_some_and(|facts| facts.connected),
            identity: facts.and_then(|facts| facts.identity.clone()),
            realm: facts.map_or(Realm::SITE, |facts| facts.realm),
            expiry_interval_secs: facts.map_or(0, |facts| facts.expiry_interval_secs),
            expires_in: facts.map_or(Duration::ZERO, |facts| left(facts.expiry_interval_secs)),
            will: facts.and_then(|facts| facts.will.clone()),
            will_in: facts
                .and_then(|facts| facts.will.as_ref())
                .map_or(Duration::ZERO, |will| left(will.delay_interval_secs)),
            subscriptions: kept
                .subscriptions
                .iter()
                .map(|(filter, (options, identifier))| RestoredSubscription {
                    filter: filter.clone(),
                    options: *options,
                    identifier: *identifier,
                })
                .collect(),
            received: kept.received.iter().copied().collect::<Vec<PacketId>>(),
            inflight: released.chain(sent).collect(),
            waiting,
            shares,
        }
    }

    /// Looks at every body that is in use; gives the segments with bodies that cannot be read, and how
    /// many those are.
    pub fn check_bodies(&mut self, mut progress: impl FnMut(usize, usize)) -> BTreeMap<String, usize> {
        let places = self.image.places(|_| true);
        let count = places.len();
        let mut bad = BTreeMap::new();
        for (at, place) in places.into_iter().enumerate() {
            if self.read_body(place, 1024).is_none() {
                *bad.entry(segment_name(place.segment)).or_insert(0) += 1;
            }
            progress(at + 1, count);
        }
        bad
    }
}
