//! Frames: what is written, and checked, as one.
//!
//! A segment is a file header and frames one behind the other; behind the last one are zeros. A
//! checkpoint is the same. Numbers are little-endian.
//!
//! A frame begins with its file's tag, four bytes of chance that no client knows: where a reader has to
//! look for the next sound frame, nothing in a message can pose as one.

use std::io;

use super::disk::DiskFile;
use super::time::{LastTime, Moment};

/// Bytes of a frame's header.
pub(super) const FRAME_HEADER: usize = 48;
/// Bytes of a file's header.
pub(super) const FILE_HEADER: usize = 32;

const FILE_MAGIC: [u8; 8] = *b"LOCKGATE";
/// The format that this version writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// What the frames of a file begin with.
pub(super) type Tag = [u8; 4];

/// What a frame holds, for a person who has to hear of its loss.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    pub(super) messages: u16,
    pub(super) done: u16,
    pub(super) sessions: u16,
    pub(super) others: u16,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.messages = self.messages.saturating_add(other.messages);
        self.done = self.done.saturating_add(other.done);
        self.sessions = self.sessions.saturating_add(other.sessions);
        self.others = self.others.saturating_add(other.others);
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { messages, done, sessions, others } = self;
        write!(f, "{messages} messages, {done} acknowledgements, {sessions} changes of sessions, {others} others")
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) len: usize,
    pub(super) sequence: u64,
    pub(super) time: LastTime,
    pub(super) counts: Counts,
    payload_crc: u32,
}

impl FrameHeader {
    pub(super) fn new(payload: &[u8], sequence: u64, time: LastTime, counts: Counts) -> FrameHeader {
        FrameHeader { len: payload.len(), sequence, time, counts, payload_crc: crc32fast::hash(payload) }
    }

    pub(super) fn encode(&self, tag: Tag) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[0..4].copy_from_slice(&tag);
        bytes[4..8].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.time.moment.to_le_bytes());
        let wall = self.time.wall_secs | (u64::from(self.time.is_sane) << 63);
        bytes[24..32].copy_from_slice(&wall.to_le_bytes());
        let Counts { messages, done, sessions, others } = self.counts;
        for (at, count) in [messages, done, sessions, others].into_iter().enumerate() {
            bytes[32 + 2 * at..34 + 2 * at].copy_from_slice(&count.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], tag: Tag) -> Option<FrameHeader> {
        let bytes: &[u8; FRAME_HEADER] = bytes.get(..FRAME_HEADER)?.try_into().ok()?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes[0..4] != tag || u32_at(44) != crc32fast::hash(&bytes[..44]) {
            return None;
        }
        let wall = u64_at(24);
        Some(FrameHeader {
            len: u32_at(4) as usize,
            sequence: u64_at(8),
            time: LastTime { moment: u64_at(16) as Moment, wall_secs: wall & !(1 << 63), is_sane: wall >> 63 == 1 },
            counts: Counts { messages: u16_at(32), done: u16_at(34), sessions: u16_at(36), others: u16_at(38) },
            payload_crc: u32_at(40),
        })
    }
}

/// What lies somewhere in a file; places are counted from the file's begin.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// A sound frame, and where its payload lies.
    Frame { header: FrameHeader, payload: &'a [u8], payload_at: u64 },
    /// Bytes that are no frame, with a sound one somewhere behind them; what they held, if they say so.
    Damaged { from: u64, bytes: &'a [u8], held: Option<Counts> },
    /// No frame follows; what there is instead.
    End { at: u64, rest: &'a [u8] },
}

/// The sound frame that `bytes` begin with.
fn sound(bytes: &[u8], tag: Tag) -> Option<(FrameHeader, &[u8])> {
    let header = FrameHeader::decode(bytes, tag)?;
    let payload = bytes.get(FRAME_HEADER..FRAME_HEADER + header.len)?;
    (crc32fast::hash(payload) == header.payload_crc).then_some((header, payload))
}

/// Walks over the frames in `bytes`.
#[derive(Debug)]
struct Frames<'a> {
    bytes: &'a [u8],
    /// Where in the file they are.
    base: u64,
    tag: Tag,
    at: usize,
    is_over: bool,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        if self.is_over {
            return None;
        }
        let from = self.at;
        let rest = self.bytes.get(from..).unwrap_or_default();
        if let Some((header, payload)) = sound(rest, self.tag) {
            self.at = from + FRAME_HEADER + header.len;
            return Some(Found::Frame { header, payload, payload_at: self.base + (from + FRAME_HEADER) as u64 });
        }
        // The next sound frame, wherever it is: lengths cannot be trusted any more.
        let next =
            memchr::memmem::find_iter(rest, &self.tag).find(|at| *at > 0 && sound(&rest[*at..], self.tag).is_some());
        match next {
            Some(len) => {
                self.at = from + len;
                let held = FrameHeader::decode(rest, self.tag).map(|header| header.counts);
                Some(Found::Damaged { from: self.base + from as u64, bytes: &rest[..len], held })
            }
            None => {
                self.is_over = true;
                Some(Found::End { at: self.base + from as u64, rest })
            }
        }
    }
}

/// Read at once, while frame follows sound frame.
const WINDOW: usize = 1024 * 1024;

/// Gives what lies behind a file's header to `each`, until that says `false`. Files can be large: as long as
/// frames are sound few of them are in memory.
pub(super) fn walk<F: DiskFile>(file: &F, tag: Tag, mut each: impl FnMut(Found<'_>) -> bool) -> io::Result<()> {
    let size = file.size()?;
    let mut at = FILE_HEADER as u64;
    let mut window = Vec::new();
    loop {
        window.resize(WINDOW.min(size.saturating_sub(at) as usize), 0);
        let Ok(count) = file.read_at(&mut window, at) else { break };
        window.truncate(count);
        // One that has no room in the window.
        if let Some(header) = FrameHeader::decode(&window, tag)
            && (FRAME_HEADER + header.len) as u64 <= size - at
            && FRAME_HEADER + header.len > window.len()
        {
            window.resize(FRAME_HEADER + header.len, 0);
            if !file.read_at(&mut window, at).is_ok_and(|count| count == window.len()) {
                break;
            }
        }
        let mut used = 0;
        while let Some((header, payload)) = sound(&window[used..], tag) {
            if !each(Found::Frame { header, payload, payload_at: at + (used + FRAME_HEADER) as u64 }) {
                return Ok(());
            }
            used += FRAME_HEADER + header.len;
        }
        if used == 0 {
            break;
        }
        at += used as u64;
    }
    drop(window);
    let bytes = file.read_from(at)?;
    Frames { bytes: &bytes, base: at, tag, at: 0, is_over: false }.all(each);
    Ok(())
}

/// What a file says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileHeader {
    pub(super) number: u32,
    /// Of the first frame in it: frames of that number and above in older files are void.
    pub(super) first_sequence: u64,
    pub(super) tag: Tag,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileHeaderError {
    Damaged,
    Newer(u32),
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; FILE_HEADER] {
        let mut bytes = [0; FILE_HEADER];
        bytes[0..8].copy_from_slice(&FILE_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.tag);
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<FileHeader, FileHeaderError> {
        let bytes: &[u8; FILE_HEADER] =
            bytes.get(..FILE_HEADER).and_then(|bytes| bytes.try_into().ok()).ok_or(FileHeaderError::Damaged)?;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[0..8] != FILE_MAGIC || u32_at(28) != crc32fast::hash(&bytes[..28]) {
            return Err(FileHeaderError::Damaged);
        }
        if u32_at(8) > VERSION {
            return Err(FileHeaderError::Newer(u32_at(8)));
        }
        let first_sequence = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
        let tag = bytes[24..28].try_into().expect("four bytes");
        Ok(FileHeader { number: u32_at(12), first_sequence, tag })
    }

    /// The tag and the first sequence number of a file whose header is damaged, by its first frame.
    pub(super) fn guess(bytes: &[u8]) -> Option<(Tag, u64)> {
        let tag = bytes.get(FILE_HEADER..FILE_HEADER + 4)?.try_into().ok()?;
        FrameHeader::decode(&bytes[FILE_HEADER..], tag).map(|header| (tag, header.sequence))
    }
}
