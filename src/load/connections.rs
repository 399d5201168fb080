//! Connections without messages: what each costs to open, and to hold.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::process::{Process, Usage, clock};

/// Connections one after the other, on some threads.
#[derive(Clone, Debug)]
pub struct Connections {
    /// What client ids begin with.
    pub prefix: String,
    pub count: usize,
    pub threads: usize,
}

/// What they cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Until all were in, and out again where they were closed.
    pub secs: f64,
    /// The broker's, before and after.
    pub broker: Option<(Usage, Usage)>,
    pub own_cpu_secs: f64,
}

/// Opens and closes connections.
pub fn open(
    endpoint: &Endpoint,
    plan: &Connections,
    broker: Option<&Process>,
    progress: impl Fn(usize) + Sync,
) -> io::Result<Cost> {
    let measured = Measure::begin(broker)?;
    plan.run(progress, |client_id| endpoint.enter(client_id)?.leave())?;
    let secs = measured.began.elapsed().as_secs_f64();
    // What is left of the last ones.
    std::thread::sleep(Duration::from_millis(100));
    measured.end(secs)
}

/// Opens connections and holds them for a while.
pub fn hold(
    endpoint: &Endpoint,
    plan: &Connections,
    lasts: Duration,
    broker: Option<&Process>,
    progress: impl Fn(usize) + Sync,
) -> io::Result<Cost> {
    let measured = Measure::begin(broker)?;
    let held = plan.run(progress, |client_id| endpoint.enter(client_id))?;
    let secs = measured.began.elapsed().as_secs_f64();
    std::thread::sleep(lasts);
    let cost = measured.end(secs)?;
    let closed = held.iter().filter(|connected| connected.is_closed()).count();
    if closed > 0 {
        return Err(io::Error::other(format!("{closed} of {} connections were closed meanwhile", held.len())));
    }
    held.into_iter().for_each(|connected| drop(connected.leave()));
    Ok(cost)
}

impl Connections {
    /// Does `work` once for each connection's client id; gives what came of it.
    fn run<T: Send>(
        &self,
        progress: impl Fn(usize) + Sync,
        work: impl Fn(&str) -> io::Result<T> + Sync,
    ) -> io::Result<Vec<T>> {
        let done = AtomicUsize::new(0);
        let share = |thread: usize| {
            let numbers = (thread..self.count).step_by(self.threads);
            let one = |number: usize| {
                let outcome = work(&format!("{}-{number}", self.prefix))?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                Ok(outcome)
            };
            numbers.map(one).collect::<io::Result<Vec<T>>>()
        };
        std::thread::scope(|scope| {
            let share = &share;
            let threads: Vec<_> = (0..self.threads).map(|thread| scope.spawn(move || share(thread))).collect();
            let mut outcomes = Vec::with_capacity(self.count);
            for thread in threads {
                outcomes.extend(thread.join().map_err(|_| io::Error::other("a connecting thread broke down"))??);
            }
            Ok(outcomes)
        })
    }
}

/// What is known before.
struct Measure<'a> {
    began: Instant,
    process: Option<&'a Process>,
    broker: Option<Usage>,
    own: Usage,
}

impl<'a> Measure<'a> {
    fn begin(process: Option<&'a Process>) -> io::Result<Measure<'a>> {
        let broker = process.map(Process::usage).transpose()?;
        Ok(Measure { began: clock(), process, broker, own: Process::own().usage()? })
    }

    fn end(&self, secs: f64) -> io::Result<Cost> {
        let after = self.process.map(Process::usage).transpose()?;
        let own_cpu_secs = Process::own().usage()?.cpu_secs - self.own.cpu_secs;
        Ok(Cost { secs, broker: self.broker.zip(after), own_cpu_secs })
    }
}
