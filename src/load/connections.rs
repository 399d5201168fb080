//! Connections without messages: what each costs to open, and to hold.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::link::converse;
use super::process::{Process, Usage, clock};

/// How long a broker may take to let somebody in.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections one after the other, on some threads.
#[derive(Clone, Debug)]
pub struct Connections {
    /// What client ids begin with.
    pub prefix: String,
    pub count: usize,
    pub threads: usize,
}

/// What opening, CONNACK and closing cost.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    pub count: usize,
    pub secs: f64,
    pub broker: Option<(Usage, Usage)>,
    pub own_cpu_secs: f64,
    /// The share of a core that each of its threads used.
    pub busy: f64,
}

/// What connections that do nothing cost.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub count: usize,
    /// Until all were in.
    pub secs: f64,
    pub broker: Option<(Usage, Usage)>,
    pub own_cpu_secs: f64,
}

struct Connected {
    stream: TcpStream,
    tls: Option<rustls::ClientConnection>,
}

impl Connected {
    fn is_closed(&self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let _ = self.stream.set_nonblocking(false);
        match looked {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

fn enter(endpoint: &Endpoint, client_id: &str) -> io::Result<Connected> {
    let (mut stream, mut tls) = endpoint.dial()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    converse(&mut stream, tls.as_mut(), &endpoint.connect(client_id), &mut [0; 4], |connack| connack[3] == 0)?;
    Ok(Connected { stream, tls })
}

/// DISCONNECT, and the end of the stream.
fn leave(mut connected: Connected) -> io::Result<()> {
    const DISCONNECT: [u8; 2] = [0xE0, 0];
    match &mut connected.tls {
        None => connected.stream.write_all(&DISCONNECT),
        Some(tls) => {
            let mut stream = rustls::Stream::new(tls, &mut connected.stream);
            stream.write_all(&DISCONNECT)?;
            stream.conn.send_close_notify();
            stream.flush()
        }
    }
}

/// Opens and closes connections.
pub fn open(
    endpoint: &Endpoint,
    plan: &Connections,
    broker: Option<&Process>,
    progress: impl Fn(usize) + Sync,
) -> io::Result<Opened> {
    let own = Process::own().usage()?;
    let before = broker.map(Process::usage).transpose()?;
    let began = clock();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let (done, progress) = (&done, &progress);
    std::thread::scope(|scope| {
        let work = |thread: usize| {
            move || -> io::Result<()> {
                for number in (thread..plan.count).step_by(plan.threads) {
                    leave(enter(endpoint, &format!("{}-{number}", plan.prefix))?)?;
                    progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..plan.threads).map(|thread| scope.spawn(work(thread))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a connecting thread broke down"))?)
    })?;
    let secs = began.elapsed().as_secs_f64();
    // What is left of the last ones.
    std::thread::sleep(Duration::from_millis(100));
    let after = broker.map(Process::usage).transpose()?;
    let own_cpu_secs = Process::own().usage()?.cpu_secs - own.cpu_secs;
    let busy = own_cpu_secs / secs / plan.threads as f64;
    Ok(Opened { count: plan.count, secs, broker: before.zip(after), own_cpu_secs, busy })
}

/// Opens connections and holds them for a while.
pub fn hold(
    endpoint: &Endpoint,
    plan: &Connections,
    lasts: Duration,
    broker: Option<&Process>,
    progress: impl Fn(usize) + Sync,
) -> io::Result<Held> {
    let own = Process::own().usage()?;
    let before = broker.map(Process::usage).transpose()?;
    let began = clock();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let (done, progress) = (&done, &progress);
    let held: Vec<Connected> = std::thread::scope(|scope| {
        let work = |thread: usize| {
            move || -> io::Result<Vec<Connected>> {
                let mut held = Vec::new();
                for number in (thread..plan.count).step_by(plan.threads) {
                    held.push(enter(endpoint, &format!("{}-{number}", plan.prefix))?);
                    progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
                }
                Ok(held)
            }
        };
        let threads: Vec<_> = (0..plan.threads).map(|thread| scope.spawn(work(thread))).collect();
        let mut held = Vec::new();
        for thread in threads {
            held.extend(thread.join().map_err(|_| io::Error::other("a connecting thread broke down"))??);
        }
        Ok::<_, io::Error>(held)
    })?;
    let secs = began.elapsed().as_secs_f64();
    std::thread::sleep(lasts);
    let after = broker.map(Process::usage).transpose()?;
    let own_cpu_secs = Process::own().usage()?.cpu_secs - own.cpu_secs;
    let count = held.len();
    let closed = held.iter().filter(|connected| connected.is_closed()).count();
    if closed > 0 {
        return Err(io::Error::other(format!("{closed} of {count} connections were closed meanwhile")));
    }
    held.into_iter().for_each(|connected| drop(leave(connected)));
    Ok(Held { count, secs, broker: before.zip(after), own_cpu_secs })
}
