use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::Bytes;

use crate::websocket::encode_header;

/// From here on a payload that is shared anyway is queued by reference instead of copied.
const SHARE_FROM: usize = 8 * 1024;
/// A chunk that has grown so large is left alone, so that what was written of it can be freed.
const CHUNK: usize = 64 * 1024;
/// Bytes of one frame: a browser hands out nothing before the whole of it, and clients have a limit of their own.
const FRAME: usize = 256 * 1024;
/// Chunks given to one `writev`.
const SLICES: usize = 64;

/// Bytes on their way to one client. An idle connection owns no buffer.
#[derive(Debug, Default)]
pub(super) struct Output {
    chunks: VecDeque<Chunk>,
    /// Of the first chunk, already written.
    written: usize,
    len: usize,
    /// Chunks that belong to frames whose header is there.
    framed: usize,
}

#[derive(Debug)]
enum Chunk {
    Header { bytes: [u8; 10], len: u8 },
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Chunk {
    fn as_slice(&self) -> &[u8] {
        match self {
            Chunk::Header { bytes, len } => &bytes[..usize::from(*len)],
            Chunk::Copied(bytes) => bytes,
            Chunk::Shared(bytes) => bytes,
        }
    }
}

impl Output {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn copy(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        let is_open = self.chunks.len() > self.framed;
        match self.chunks.back_mut() {
            Some(Chunk::Copied(last)) if is_open && last.len() < CHUNK => last.extend_from_slice(bytes),
            _ => self.chunks.push_back(Chunk::Copied(bytes.to_vec())),
        }
    }

    pub(super) fn share(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARE_FROM {
            return self.copy(bytes);
        }
        self.len += bytes.len();
        self.chunks.push_back(Chunk::Shared(bytes.clone()));
    }

    /// Puts what was added since the last time into binary frames [MQTT-6.0.0-1], [MQTT-6.0.0-2].
    pub(super) fn frame(&mut self) {
        while self.framed < self.chunks.len() {
            let (mut end, mut size) = (self.framed, 0);
            while end < self.chunks.len() && size < FRAME {
                let next = self.chunks[end].as_slice().len();
                if size > 0 && size + next > FRAME {
                    break;
                }
                (end, size) = (end + 1, size + next);
            }
            if size > FRAME {
                // One chunk that is too large by itself: cut without a copy.
                let mut bytes = match &mut self.chunks[self.framed] {
                    Chunk::Shared(bytes) => std::mem::take(bytes),
                    Chunk::Copied(bytes) => Bytes::from(std::mem::take(bytes)),
                    Chunk::Header { .. } => unreachable!("framed already"),
                };
                let rest = bytes.split_off(FRAME);
                self.chunks[self.framed] = Chunk::Shared(bytes);
                self.chunks.insert(end, Chunk::Shared(rest));
                size = FRAME;
            }
            let mut header = [0; 10];
            let mut space = &mut header[..];
            encode_header(size, &mut space);
            let len = 10 - space.len();
            self.chunks.insert(self.framed, Chunk::Header { bytes: header, len: len as u8 });
            self.len += len;
            self.framed = end + 1;
        }
    }

    /// A frame of its own, pong or close: behind what is there.
    pub(super) fn control(&mut self, frame: Vec<u8>) {
        self.frame();
        self.len += frame.len();
        self.chunks.push_back(Chunk::Copied(frame));
        self.framed = self.chunks.len();
    }

    /// Gives as much as `writer` takes; the error may be `WouldBlock`.
    pub(super) fn write_to(&mut self, writer: &mut impl Write) -> io::Result<()> {
        while self.len > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                let skip = if used == 0 { self.written } else { 0 };
                *slice = IoSlice::new(&chunk.as_slice()[skip..]);
                used += 1;
            }
            match writer.write_vectored(&slices[..used]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while count > 0 {
            let left = self.chunks[0].as_slice().len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.chunks.pop_front();
            self.framed = self.framed.saturating_sub(1);
        }
        if self.len == 0 {
            self.chunks = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::{CloseCode, close_frame};

    /// Takes `step` bytes at a time.
    struct Slow {
        taken: Vec<u8>,
        step: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.step);
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_written_is_freed_though_it_is_never_empty() {
        let mut output = Output::default();
        for _ in 0..1_000 {
            output.copy(&[1; 10_000]);
            output.advance(output.len().saturating_sub(20_000));
        }
        let held: usize = output.chunks.iter().map(|chunk| chunk.as_slice().len()).sum();
        assert!(held < 4 * CHUNK, "{held}");
    }

    /// What a client reads out of it, and how many frames that were.
    fn unframed(mut bytes: &[u8]) -> (Vec<u8>, Vec<(u8, usize)>) {
        let (mut payload, mut frames) = (Vec::new(), Vec::new());
        while let [first, second, ..] = *bytes {
            let (head, size) = match second {
                126 => (4, u16::from_be_bytes(bytes[2..4].try_into().unwrap()).into()),
                127 => (10, u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize),
                short => (2, short.into()),
            };
            frames.push((first, size));
            if first == 0x82 {
                payload.extend_from_slice(&bytes[head..head + size]);
            }
            bytes = &bytes[head + size..];
        }
        (payload, frames)
    }

    #[test]
    fn each_turn_leaves_in_frames_of_its_own() {
        let large = Bytes::from((0..FRAME * 2 + 5).map(|at| at as u8).collect::<Vec<_>>());
        for step in [1, 7, 1000, 300_000] {
            let (mut output, mut slow, mut wanted) = (Output::default(), Slow { taken: Vec::new(), step }, Vec::new());
            for turn in 0..20u8 {
                for packet in [&[turn; 3][..], &[turn; 9000], &[]] {
                    output.copy(packet);
                    wanted.extend_from_slice(packet);
                }
                if turn % 8 == 3 {
                    output.share(&large);
                    output.copy(b"tail");
                    wanted.extend_from_slice(&large);
                    wanted.extend_from_slice(b"tail");
                }
                output.frame();
                if turn == 5 {
                    output.control(vec![0x8a, 1, 7]);
                }
                // Only some of it leaves; the next turn's frame comes behind.
                let some = output.len() / 3 * 2;
                while slow.taken.len() < some && output.len() > some / 2 {
                    let chunk = &output.chunks[0].as_slice()[output.written..];
                    let count = chunk.len().min(step);
                    slow.taken.extend_from_slice(&chunk[..count]);
                    output.advance(count);
                }
            }
            output.control(close_frame(CloseCode::Normal));
            output.write_to(&mut slow).unwrap();
            let (payload, frames) = unframed(&slow.taken);
            assert!(payload == wanted);
            assert_eq!(frames.len(), 20 + 3 * 3 + 2, "{frames:?}");
            assert!(frames.iter().all(|(_, size)| *size <= FRAME) && frames.last() == Some(&(0x88, 2)));
        }
        let mut output = Output::default();
        output.copy(&large);
        output.frame();
        let sizes = |output: &Output| output.chunks.iter().map(|chunk| chunk.as_slice().len()).collect::<Vec<_>>();
        assert_eq!(sizes(&output), [10, FRAME, 10, FRAME, 2, 5]);
        let mut output = Output::default();
        (0..1000).for_each(|_| output.copy(b"packet"));
        output.frame();
        output.frame();
        assert_eq!((output.chunks.len(), output.len()), (2, 6004));
    }

    #[test]
    fn bytes_leave_in_order_whatever_the_writer_takes() {
        for step in [1, 3, 1000, 100_000] {
            let mut output = Output::default();
            let large = Bytes::from(vec![7; SHARE_FROM + 1]);
            output.copy(b"abc");
            output.copy(b"def");
            output.share(&large);
            output.share(&Bytes::from_static(b"small"));
            output.copy(b"end");
            let wanted = [b"abcdef", &large[..], b"smallend"].concat();
            assert_eq!(output.len(), wanted.len());
            let mut slow = Slow { taken: Vec::new(), step };
            output.write_to(&mut slow).unwrap();
            assert!(slow.taken == wanted && output.is_empty() && output.chunks.is_empty());
        }
    }
}
