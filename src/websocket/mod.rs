//! MQTT over WebSocket (RFC 6455; MQTT 5 section 6), the server's side, without I/O: bytes go in, bytes come out.
//!
//! The formats of frame headers and of ping and close frames are tungstenite's. What is here is what no library has
//! without a buffer of its own: a decoder that unmasks in place whatever part of a frame was read.

use std::io::{Cursor, Write};
use std::ops::Range;

use tungstenite::protocol::CloseFrame;
pub use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

/// Bytes of a frame's header (section 5.2), and of a control frame's payload (section 5.5).
const HEADER_MAX: usize = 14;
const CONTROL_MAX: usize = 125;

/// Takes frames apart, however they are cut. It moves from gate to shard as it is, in the middle of a frame too, and
/// owns no memory but the beginning of a header or control frame, 139 bytes at most.
#[derive(Debug)]
pub struct Decoder {
    held: Vec<u8>,
    /// Payload bytes of the data frame that has begun, and the key for the next of them.
    left: u64,
    mask: [u8; 4],
    /// Of frames that begin from now on: the gate's limit, then the shard's.
    pub frame_size_max: u64,
    /// A message's first frame was there, its last was not (section 5.4).
    in_message: bool,
    /// After it nothing counts (section 5.5.1).
    end: Option<End>,
}

/// What a chunk held.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Where in the chunk the MQTT bytes are, in one piece.
    pub payload: Range<usize>,
    /// The frame that answers the last ping (section 5.5.3 asks for no more).
    pub pong: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The peer's close frame; the code to answer with.
    Closed(CloseCode),
    Breach(Breach),
}

/// How a client may break RFC 6455, or [MQTT-6.0.0-1].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Breach {
    #[error("a reserved bit is set, and no extension was agreed on")]
    ReservedBit,
    #[error("reserved opcode {0}")]
    Opcode(u8),
    #[error("a frame without a mask")]
    Unmasked,
    #[error("a length in more bytes than it needs")]
    LongLength,
    #[error("a control frame in fragments, or of more than 125 bytes")]
    Control,
    #[error("a continuation of nothing")]
    Continuation,
    #[error("a new message inside another")]
    Interleaved,
    #[error("a text frame: MQTT is binary")]
    Text,
    #[error("a frame of {0} bytes")]
    TooLarge(u64),
    #[error("a close frame whose code or reason is not valid")]
    Close,
}

impl Breach {
    /// Section 7.4.1.
    pub fn close_code(self) -> CloseCode {
        match self {
            Breach::Text => CloseCode::Unsupported,
            Breach::TooLarge(_) => CloseCode::Size,
            _ => CloseCode::Protocol,
        }
    }
}

/// A control frame, or the beginning of a data frame, as it was found.
enum Begun {
    Data,
    Ping(Vec<u8>),
    Pong,
    Close(CloseCode),
}

impl Decoder {
    pub fn new(frame_size_max: u64) -> Decoder {
        Decoder { held: Vec::new(), left: 0, mask: [0; 4], frame_size_max, in_message: false, end: None }
    }

    /// Why nothing more comes, once it is so; what came before it still counts.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Takes all of `chunk`. Payload is unmasked where it lies; that of a second frame moves up against the first's.
    pub fn decode(&mut self, chunk: &mut [u8]) -> Decoded {
        let mut decoded = Decoded::default();
        let mut at = 0;
        while at < chunk.len() && self.end.is_none() {
            if self.left > 0 {
                let end = at + usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len() - at);
                unmask(&mut chunk[at..end], &mut self.mask);
                if decoded.payload.is_empty() {
                    decoded.payload = at..end;
                } else {
                    chunk.copy_within(at..end, decoded.payload.end);
                    decoded.payload.end += end - at;
                }
                self.left -= (end - at) as u64;
                at = end;
                continue;
            }
            match self.begin_from(&chunk[at..]) {
                Ok((used, begun)) => {
                    at += used;
                    match begun {
                        Some(Begun::Ping(data)) => decoded.pong = Some(bytes_of(Frame::pong(data))),
                        Some(Begun::Close(code)) => self.end = Some(End::Closed(code)),
                        Some(Begun::Data | Begun::Pong) | None => {}
                    }
                }
                Err(breach) => self.end = Some(End::Breach(breach)),
            }
        }
        decoded
    }

    /// Begins a frame with what is held and `rest`; says how much of `rest` that took, all where it did not do.
    fn begin_from(&mut self, rest: &[u8]) -> Result<(usize, Option<Begun>), Breach> {
        let mut held = std::mem::take(&mut self.held);
        let before = held.len();
        let start = if before == 0 {
            rest
        } else {
            held.extend_from_slice(&rest[..rest.len().min(HEADER_MAX + CONTROL_MAX - before)]);
            &held
        };
        if let Some((used, begun)) = self.begin(start)? {
            return Ok((used - before, Some(begun)));
        }
        self.held = if before == 0 { rest.to_vec() } else { held };
        Ok((rest.len(), None))
    }

    /// Section 5.2: a data frame's header, or a control frame whole, at the front of `bytes`; and its size.
    fn begin(&mut self, bytes: &[u8]) -> Result<Option<(usize, Begun)>, Breach> {
        let mut cursor = Cursor::new(bytes);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(_) => return Err(Breach::Opcode(bytes[0] & 0x0f)),
        };
        let size = cursor.position() as usize;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Breach::ReservedBit);
        }
        let mut mask = header.mask.ok_or(Breach::Unmasked)?;
        // The shortest form, whose topmost bit is 0.
        if header.len(length) != size || length >> 63 != 0 {
            return Err(Breach::LongLength);
        }
        let control = match header.opcode {
            OpCode::Data(data) => {
                match data {
                    Data::Text => return Err(Breach::Text),
                    Data::Binary if self.in_message => return Err(Breach::Interleaved),
                    Data::Continue if !self.in_message => return Err(Breach::Continuation),
                    _ if length > self.frame_size_max => return Err(Breach::TooLarge(length)),
                    _ => {}
                }
                self.in_message = !header.is_final;
                (self.left, self.mask) = (length, mask);
                return Ok(Some((size, Begun::Data)));
            }
            OpCode::Control(control) => control,
        };
        if !header.is_final || length > CONTROL_MAX as u64 {
            return Err(Breach::Control);
        }
        let end = size + length as usize;
        let Some(data) = bytes.get(size..end) else { return Ok(None) };
        let mut data = data.to_vec();
        unmask(&mut data, &mut mask);
        let begun = match control {
            Control::Ping => Begun::Ping(data),
            Control::Close => Begun::Close(answer_to(&data).ok_or(Breach::Close)?),
            _ => Begun::Pong,
        };
        Ok(Some((end, begun)))
    }
}

/// Section 5.3; the key is turned for the byte that follows.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    tail.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    mask.rotate_left(bytes.len() % 4);
}

/// Sections 5.5.1 and 7.4: the code that answers a close frame with this payload; `None`: it is not valid.
fn answer_to(payload: &[u8]) -> Option<CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return payload.is_empty().then_some(CloseCode::Normal);
    };
    let code = CloseCode::from(u16::from_be_bytes(*code));
    (code.is_allowed() && str::from_utf8(reason).is_ok()).then_some(code)
}

fn bytes_of(frame: Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.len());
    frame.format(&mut bytes).expect("a Vec takes all");
    bytes
}

/// The frame that says goodbye (section 5.5.1).
pub fn close_frame(code: CloseCode) -> Vec<u8> {
    bytes_of(Frame::close(Some(CloseFrame { code, reason: "".into() })))
}

/// The header for so many MQTT bytes: one binary frame, a message of its own, unmasked [MQTT-6.0.0-1].
pub fn encode_header(length: usize, out: &mut impl Write) {
    let header = FrameHeader { opcode: OpCode::Data(Data::Binary), ..FrameHeader::default() };
    header.format(length as u64, out).expect("room for a header");
}

#[cfg(test)]
mod tests;
