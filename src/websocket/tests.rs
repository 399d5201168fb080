use super::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A client's frame, by hand: independent of the library under test.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length @ ..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

const FIN: u8 = 0x80;
const BINARY: u8 = 2;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

#[derive(Default, PartialEq, Debug)]
struct Seen {
    payload: Vec<u8>,
    pongs: Vec<Vec<u8>>,
    end: Option<End>,
}

fn run<'a>(decoder: &mut Decoder, chunks: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut seen = Seen::default();
    for chunk in chunks {
        let mut chunk = chunk.to_vec();
        let decoded = decoder.decode(&mut chunk);
        seen.payload.extend_from_slice(&chunk[decoded.payload]);
        seen.pongs.extend(decoded.pong);
        seen.end = decoder.end();
        assert!(decoder.held.len() < HEADER_MAX + CONTROL_MAX, "bounded");
    }
    seen
}

/// The same whatever the chunks: whole, cut once at every place, in pieces of every size up to 20.
fn everyhow(bytes: &[u8]) -> Seen {
    let fresh = || Decoder::new(100_000);
    let whole = run(&mut fresh(), [bytes]);
    let (payload, end) = (&whole.payload, whole.end);
    for at in 0..=bytes.len() {
        let (front, back) = bytes.split_at(at);
        let seen = run(&mut fresh(), [front, back]);
        assert!(seen.payload == *payload && seen.end == end, "cut at {at}: {seen:?}");
        assert!(seen.pongs.last() == whole.pongs.last());
    }
    for size in 1..=20 {
        let seen = run(&mut fresh(), bytes.chunks(size));
        assert!(seen.payload == *payload && seen.end == end, "pieces of {size}: {seen:?}");
    }
    whole
}

fn breach(bytes: &[u8]) -> Breach {
    match everyhow(bytes).end {
        Some(End::Breach(breach)) => breach,
        other => panic!("{other:?}"),
    }
}

#[test]
fn payload_comes_out_whatever_the_frames_and_the_cuts() {
    let connect: Vec<u8> = (0..=255).collect();
    let bytes = [
        frame(FIN | BINARY, &connect[..100]),
        frame(FIN | BINARY, &connect[100..103]),
        frame(FIN | BINARY, b""),
        frame(BINARY, &connect[103..104]),
        frame(PING, b"one"),
        frame(0, b""),
        frame(PING, &[7; 125]),
        frame(0x8a, b"unasked pong"),
        frame(0, &connect[104..107]),
        frame(FIN, &connect[107..]),
        frame(CLOSE, &[3, 0xe9]),
        frame(FIN | BINARY, b"after the end"),
    ];
    let seen = everyhow(&bytes.concat());
    assert_eq!(seen.payload, connect);
    assert_eq!(seen.end, Some(End::Closed(CloseCode::Away)));
    // One answer a chunk, to the last.
    assert_eq!(seen.pongs, [[&[0x8a, 125][..], &[7; 125]].concat()]);
    let each = run(&mut Decoder::new(1000), bytes.iter().map(|frame| &frame[..]));
    assert_eq!(each.pongs[0], b"\x8a\x03one");
    assert_eq!(each.pongs.len(), 2);
}

#[test]
fn lengths_of_every_form() {
    for length in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 70_001] {
        let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let bytes = frame(FIN | BINARY, &payload);
        for cut in [1, 2, 3, 9, 10, 13, 14, 15, bytes.len() / 2] {
            let seen = run(&mut Decoder::new(100_000), bytes.chunks(cut));
            assert!(seen.payload == payload && seen.end.is_none(), "{length} {cut}");
        }
        let mut header = Vec::new();
        encode_header(length, &mut header);
        let mut masked = bytes[..bytes.len() - length - 4].to_vec();
        masked[1] &= 0x7f;
        assert_eq!(header, masked);
    }
}

#[test]
fn what_lies_unmasked_is_not_copied() {
    let mut bytes = frame(FIN | BINARY, &[1; 1000]);
    let decoded = Decoder::new(1000).decode(&mut bytes);
    assert_eq!(decoded.payload, 8..1008);
}

#[test]
fn an_idle_decoder_owns_nothing() {
    let mut decoder = Decoder::new(1000);
    run(&mut decoder, [&frame(PING, b"x")[..3], &frame(PING, b"x")[3..]]);
    assert_eq!(decoder.held.capacity(), 0);
    assert!(size_of::<Decoder>() <= 64, "{}", size_of::<Decoder>());
}

#[test]
fn breaches() {
    for bit in [0x40, 0x20, 0x10] {
        assert_eq!(breach(&frame(FIN | BINARY | bit, b"x")), Breach::ReservedBit);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(breach(&frame(FIN | opcode, b"x")), Breach::Opcode(opcode));
    }
    assert_eq!(breach(b"\x82\x01x"), Breach::Unmasked);
    assert_eq!(breach(&frame(PING & !FIN, b"x")), Breach::Control);
    assert_eq!(breach(&frame(PING, &[0; 126])), Breach::Control);
    assert_eq!(breach(&frame(FIN, b"x")), Breach::Continuation);
    assert_eq!(breach(&[frame(BINARY, b"x"), frame(FIN | BINARY, b"x")].concat()), Breach::Interleaved);
    assert_eq!(breach(&[frame(BINARY, b"x"), frame(FIN, b"x"), frame(FIN, b"x")].concat()), Breach::Continuation);
    assert_eq!(breach(&frame(FIN | 1, b"x")), Breach::Text);
    assert_eq!(breach(&frame(FIN | BINARY, &[0; 100_001])[..14]), Breach::TooLarge(100_001));
    assert_eq!(breach(b"\x82\xfe\x00\x01\0\0\0\0x"), Breach::LongLength);
    assert_eq!(breach(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0x"), Breach::TooLarge(u64::MAX >> 1));
    // The most significant bit must be 0 (section 5.2).
    assert_eq!(breach(b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0x"), Breach::LongLength);
    for close in [&[3][..], &[3, 0xed], &[0, 0], &[3, 0xe8, 0xff]] {
        assert_eq!(breach(&frame(CLOSE, close)), Breach::Close);
    }
    assert_eq!(Breach::Text.close_code(), CloseCode::Unsupported);
    assert_eq!(close_frame(Breach::TooLarge(0).close_code()), [0x88, 2, 3, 0xf1]);
    // What came before it counts.
    assert_eq!(everyhow(&[frame(FIN | BINARY, b"good"), frame(FIN | 1, b"bad")].concat()).payload, b"good");
    assert_eq!(everyhow(&frame(CLOSE, b"")).end, Some(End::Closed(CloseCode::Normal)));
}

/// tungstenite's own client understands what we say, and we what it says.
#[test]
fn agrees_with_tungstenite() {
    use tungstenite::protocol::{Message, Role, WebSocketContext};
    let mut sent = std::io::Cursor::new(Vec::new());
    let mut client = WebSocketContext::new(Role::Client, None);
    for length in [0, 5, 200, 70_000] {
        client.write(&mut sent, Message::binary(vec![length as u8; length])).unwrap();
    }
    client.flush(&mut sent).unwrap();
    let sent = sent.into_inner();
    let seen = run(&mut Decoder::new(100_000), sent.chunks(4096));
    assert_eq!(seen.payload.len(), 70_205);
    let mut said = Vec::new();
    encode_header(300, &mut said);
    said.extend([9; 300]);
    said.extend(close_frame(CloseCode::Size));
    let mut said = std::io::Cursor::new(said);
    assert_eq!(client.read(&mut said).unwrap(), Message::binary(vec![9; 300]));
    assert!(matches!(client.read(&mut said).unwrap(), Message::Close(Some(close)) if close.code == CloseCode::Size));
}

/// Bytes that make little sense come to the same whatever the cuts, and never panic.
#[test]
fn noise_is_taken_the_same_in_any_pieces() {
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut ends = std::collections::BTreeSet::new();
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..random(6) + 1 {
            let first = [0x82, 0x82, 0x02, 0x80, 0x00, 0x89, 0x8a, 0x88][random(8) as usize];
            let data: Vec<u8> = (0..[0, 1, 5, 126, 300][random(5) as usize]).map(|at| at as u8).collect();
            bytes.extend(frame(first, &data));
        }
        if random(2) == 0 {
            let at = random(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random(8);
        }
        let whole = run(&mut Decoder::new(1000), [&bytes[..]]);
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, next) = rest.split_at((random(20) as usize).min(rest.len()));
            pieces.push(piece);
            rest = next;
        }
        let cut = run(&mut Decoder::new(1000), pieces);
        assert!(whole.payload == cut.payload && whole.end == cut.end, "{bytes:?}");
        ends.insert(format!("{:?}", whole.end));
    }
    assert!(ends.len() > 5, "{ends:?}");
}
