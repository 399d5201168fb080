//! What a process has used so far, from /proc.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

/// A process that is looked at.
#[derive(Clone, Debug)]
pub struct Process {
    folder: PathBuf,
    is_own: bool,
}

/// So far.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    /// User and system time of the threads that it has.
    pub cpu_secs: f64,
    /// Resident memory now.
    pub rss_bytes: u64,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc says nothing of {what}"))
}

/// The clock's door here.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(super) fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "/proc is read")]
fn text(path: PathBuf) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// Time on a processor of a thread, from its `schedstat`: to the nanosecond, where `stat` counts in hundredths.
fn thread_secs(path: PathBuf) -> io::Result<f64> {
    let text = text(path)?;
    let nanos: Option<u64> = text.split_whitespace().next().and_then(|field| field.parse().ok());
    nanos.map(|nanos| nanos as f64 / 1e9).ok_or_else(|| broken("the time on a processor"))
}

/// User and system time of a process and of all threads that it had, to a hundredth of a second or so.
fn process_secs(path: PathBuf) -> io::Result<f64> {
    let text = text(path)?;
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(ticks.sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
}

impl Process {
    pub fn new(pid: u32) -> Process {
        Process { folder: PathBuf::from(format!("/proc/{pid}")), is_own: false }
    }

    /// This one.
    pub fn own() -> Process {
        Process { folder: PathBuf::from("/proc/self"), is_own: true }
    }

    pub fn usage(&self) -> io::Result<Usage> {
        let status = text(self.folder.join("status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib: u64 =
            rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or_else(|| broken("VmRSS"))?;
        // A broker keeps its threads; ours that have ended are only in the process' own count.
        let cpu_secs = match self.is_own {
            true => process_secs(self.folder.join("stat"))?,
            false => self.threads()?.iter().map(|(_, secs)| secs).sum(),
        };
        Ok(Usage { cpu_secs, rss_bytes: rss_kib * 1024 })
    }

    /// CPU seconds of each of its threads.
    pub fn threads(&self) -> io::Result<Vec<(String, f64)>> {
        let mut threads = Vec::new();
        for entry in std::fs::read_dir(self.folder.join("task"))? {
            let entry = entry?;
            // One that ends just now.
            let Ok(secs) = thread_secs(entry.path().join("schedstat")) else { continue };
            threads.push((entry.file_name().to_string_lossy().into_owned(), secs));
        }
        Ok(threads)
    }
}
