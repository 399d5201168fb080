use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::Bytes;

/// From here on a payload that is shared anyway is queued by reference instead of copied.
const SHARE_FROM: usize = 8 * 1024;
/// A chunk that has grown so large is left alone, so that what was written of it can be freed.
const CHUNK: usize = 64 * 1024;
/// Chunks given to one `writev`.
const SLICES: usize = 64;

/// Bytes on their way to one client. An idle connection owns no buffer.
#[derive(Debug, Default)]
pub(super) struct Output {
    chunks: VecDeque<Chunk>,
    /// Of the first chunk, already written.
    written: usize,
    len: usize,
}

#[derive(Debug)]
enum Chunk {
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Chunk {
    fn as_slice(&self) -> &[u8] {
        match self {
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
        match self.chunks.back_mut() {
            Some(Chunk::Copied(last)) if last.len() < CHUNK => last.extend_from_slice(bytes),
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
        }
        if self.len == 0 {
            self.chunks = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
