//! The physical floor: the same bytes through a bare relay, `read` and `write` on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the shard reads at once.
const BUFFER: usize = 256 * 1024;
/// What the generator writes at once.
const BLOCK: usize = 64 * 1024;

/// CPU time of this thread so far, seconds.
fn thread_secs() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("/proc");
    text.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("a number") as f64 / 1e9
}

/// CPU µs of a relay for each message of `packet` bytes.
fn relay(packet: usize) -> f64 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut from = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let (mut relay_in, _) = listener.accept().expect("accepted");
    let mut to = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let (mut relay_out, _) = listener.accept().expect("accepted");
    let writer = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let block = vec![b'x'; (BLOCK / packet).max(1) * packet];
            while !stop.load(Ordering::Relaxed) && from.write_all(&block).is_ok() {}
        })
    };
    let reader = {
        let count = count.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; BUFFER];
            while let Ok(read @ 1..) = to.read(&mut buffer) {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        })
    };
    let relaying = std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER];
        let before = thread_secs();
        while let Ok(read @ 1..) = relay_in.read(&mut buffer) {
            if relay_out.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        thread_secs() - before
    });
    std::thread::sleep(Duration::from_secs(2));
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer ends");
    let secs = relaying.join().expect("the relay ends");
    reader.join().expect("the reader ends");
    secs * 1e6 / (count.load(Ordering::Relaxed) as f64 / packet as f64)
}

/// Prints a line for each size.
pub(crate) fn run(rounds: usize) {
    println!("| A bare relay, 1 to 1 | CPU µs a message: median (min to max) |");
    println!("|---|---|");
    // A PUBLISH of the generator is its payload and 28 bytes.
    for payload in [64, 16 * 1024] {
        let measured = (0..rounds).map(|_| relay(payload + 28)).collect();
        let (middle, least, most) = crate::speed::median(measured).expect("at least one round");
        println!("| {payload} bytes of payload | {middle:.3} ({least:.3} to {most:.3}) |");
    }
}
