//! `lockgate torture`: kills a broker of its own again and again, and accounts for every message that it
//! had acknowledged.

mod account;
mod publisher;
mod subscriber;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::account::{Account, Received};
use self::publisher::{Published, Publisher};
use self::subscriber::Subscriber;
use super::{Failure, site};
use crate::client::blocking::{Client, Event};
use crate::store::Durability;
use crate::types::QoS;

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate torture --rounds 50 --folder /mnt/flash")]
pub(super) struct Arguments {
    /// How often the broker is killed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Where its data lies meanwhile: on the disk that is to be tried. It is removed afterwards, but where
    /// something went wrong
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// What the broker is to survive; with off it loses what it has, to be seen
    #[arg(long, value_parser = Durability::ALL.map(Durability::as_str), default_value = Durability::Fsync.as_str())]
    durability: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Every second publishes at QoS 2.
const PUBLISHERS: usize = 4;
const SUBSCRIBERS: usize = 3;
/// How long a broker may take to come back, and clients to settle in the end.
const PATIENCE: Duration = Duration::from_secs(60);
const STATE: &str = "torture/state";

/// The broker's socket in the folder of a run.
fn socket(folder: &Path) -> PathBuf {
    folder.join("mqtt.sock")
}

/// A number below `bound`, at random.
fn random(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel's random generator");
    u64::from_le_bytes(bytes) % bound.max(1)
}

/// The folder of a run; it goes with it, but where there is something to look into.
struct Workshop {
    folder: PathBuf,
    stays: bool,
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if !self.stays {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// The broker that suffers; it does not outlive the run.
struct Victim {
    child: Child,
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Victim {
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let folder = arguments.folder.join(format!("lockgate-torture-{}", std::process::id()));
    let folder = std::path::absolute(&folder).map_err(Failure::new)?;
    // Nobody else's: others may write where it lies.
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    let made = builder.create(&folder).and_then(|()| std::fs::create_dir(folder.join("config")));
    made.map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    let mut workshop = Workshop { folder: folder.clone(), stays: false };
    let folder = folder.as_path();
    // The kernel's limit on the path of a Unix socket.
    if socket(folder).as_os_str().len() > 100 {
        return Err(Failure::configuration(format!("{}: choose a --folder with a shorter path", folder.display())));
    }
    let syncs_per_sec =
        measure_syncs(folder).map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    configure(folder, &arguments.durability)?;
    let progress = ProgressBar::new(u64::from(arguments.rounds));
    let style = ProgressStyle::with_template("{bar:40} round {pos} of {len}, {msg}").map_err(Failure::new)?;
    progress.set_style(style);
    let outcome = torture(folder, arguments.rounds, &progress);
    progress.finish_and_clear();
    workshop.stays = outcome.as_ref().map_or(true, |(account, _)| !account.is_clean());
    if workshop.stays {
        eprintln!("the broker's log and data are in {}", folder.display());
    }
    let (account, restarts) = outcome?;
    let report = Report::new(&arguments, &account, &restarts, syncs_per_sec);
    match arguments.json {
        true => say!("{}", serde_json::to_string_pretty(&report).map_err(Failure::new)?),
        false => report.print(),
    }
    match account.is_clean() {
        true => Ok(()),
        false => Err(Failure::new("the broker did not keep its promise")),
    }
}

/// Writes and syncs of 4 KiB a second, where the broker's data will lie.
fn measure_syncs(folder: &Path) -> std::io::Result<f64> {
    let mut file = std::fs::File::create(folder.join("syncs"))?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(500) {
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

fn configure(folder: &Path, durability: &str) -> Result<(), Failure> {
    let text = format!(
        "name: torture\ndata: ../data\npki: ../pki\npasswords: none\nacl: none\nidentities: none\n\
         durability: {durability}\n\
         listeners:\n  - path: {}\n    transport: unix\n    allow-anonymous: true\n\
         limits:\n  queued-messages-max: 1000000\n  queued-bytes-max: 1GiB\n",
        socket(folder).display()
    );
    let path = folder.join("config/lockgate.yaml");
    std::fs::write(&path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn start(folder: &Path) -> Result<Victim, Failure> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).map_err(Failure::new)?;
    let mut command = site::this_program()?;
    command.arg("serve").arg("--dir").arg(folder).stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(Failure::new)?).stderr(log);
    let child = command.spawn().map_err(Failure::new)?;
    Ok(Victim { child })
}

/// Waits until the broker lets somebody in; how long that took.
fn wait_until_back(folder: &Path, victim: &mut Victim) -> Result<Duration, Failure> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Ok(client) = Client::connect(&socket(folder), "torture-probe", true, Duration::from_secs(5)) {
            let took = began.elapsed();
            let _ = client.disconnect();
            return Ok(took);
        }
        if let Some(status) = victim.child.try_wait().map_err(Failure::new)? {
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            return Err(Failure::new(format!("the broker did not start again ({status}): {last}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(Failure::new(format!("the broker was not back within {} s", PATIENCE.as_secs())))
}

fn torture(folder: &Path, rounds: u32, progress: &ProgressBar) -> Result<(Account, Vec<Duration>), Failure> {
    let mut victim = start(folder)?;
    wait_until_back(folder, &mut victim)?;
    let (stop, drain) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut subscribers = Vec::new();
    for number in 0..SUBSCRIBERS {
        let subscriber = Subscriber::subscribe(&socket(folder), number).map_err(Failure::new)?;
        let drain = drain.clone();
        subscribers.push(std::thread::spawn(move || subscriber.run(&drain)));
    }
    let publishers: Vec<_> = (0..=PUBLISHERS)
        .map(|number| {
            let publisher = Publisher::new(&socket(folder), number);
            let stop = stop.clone();
            std::thread::spawn(move || publisher.run(&stop))
        })
        .collect();
    let mut restarts = Vec::new();
    let mut outcome = Ok(());
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(50 + random(950)));
        victim.kill();
        match start(folder).and_then(|started| {
            victim = started;
            wait_until_back(folder, &mut victim)
        }) {
            Ok(took) => restarts.push(took),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
        progress.inc(1);
        progress.set_message(format!("back after {} ms", restarts.last().map_or(0, Duration::as_millis)));
    }
    progress.set_message("accounting");
    // Nothing is waited for from a broker that is not there.
    outcome?;
    stop.store(true, Ordering::Relaxed);
    let published: Result<Vec<Published>, Failure> = publishers.into_iter().map(end).collect();
    drain.store(true, Ordering::Relaxed);
    let received: Result<Vec<Received>, Failure> = subscribers.into_iter().map(end).collect();
    let retained = read_retained(folder).map_err(|error| Failure::new(format!("retained: {error}")))?;
    Ok((Account::of(&published?, &received?, retained), restarts))
}

fn end<T>(thread: JoinHandle<T>) -> Result<T, Failure> {
    thread.join().map_err(|_| Failure::new("a client of this run broke down: it is no judgement of the broker"))
}

/// What a new subscriber finds retained.
fn read_retained(folder: &Path) -> std::io::Result<Option<u64>> {
    let mut client = Client::connect(&socket(folder), "torture-reader", true, PATIENCE)?;
    client.subscribe(STATE, QoS::AtMostOnce)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Some(Event::Publish { payload, .. }) = client.receive(Duration::from_millis(200))? {
            return Ok(str::from_utf8(&payload).ok().and_then(|text| text.parse().ok()));
        }
    }
    Ok(None)
}

/// What is told in the end.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    durability: Durability,
    kills: usize,
    acknowledged: u64,
    kept: u64,
    lost: u64,
    twice: u64,
    out_of_order: u64,
    retained_lost: bool,
    /// QoS 1 that came again, which is its right.
    repeated: u64,
    restart_median_ms: u64,
    restart_max_ms: u64,
    syncs_per_sec: u64,
    what_went_wrong: Vec<String>,
}

/// No disk that writes through to its medium is faster.
const HONEST_SYNCS_PER_SEC: u64 = 50_000;

impl Report {
    fn new(arguments: &Arguments, account: &Account, restarts: &[Duration], syncs_per_sec: f64) -> Report {
        let mut sorted: Vec<u64> = restarts.iter().map(|took| took.as_millis() as u64).collect();
        sorted.sort_unstable();
        Report {
            durability: Durability::parse(&arguments.durability).expect("clap takes no other"),
            kills: restarts.len(),
            acknowledged: account.acknowledged,
            kept: account.acknowledged - account.lost,
            lost: account.lost,
            twice: account.twice,
            out_of_order: account.out_of_order,
            retained_lost: account.retained_lost,
            repeated: account.repeated,
            restart_median_ms: sorted.get(sorted.len() / 2).copied().unwrap_or(0),
            restart_max_ms: sorted.last().copied().unwrap_or(0),
            syncs_per_sec: syncs_per_sec as u64,
            what_went_wrong: account.examples.clone(),
        }
    }

    fn print(&self) {
        say!("killed          {} times (durability: {})", self.kills, self.durability);
        say!("acknowledged    {} messages, each for {SUBSCRIBERS} subscribers", self.acknowledged);
        say!("kept            {}", self.kept);
        say!("lost            {}", self.lost);
        say!("twice           {} (QoS 2; at QoS 1, {} came again, as they may)", self.twice, self.repeated);
        say!("out of order    {}", self.out_of_order);
        say!(
            "retained        {}",
            if self.retained_lost { "an older state than was acknowledged" } else { "the newest state" }
        );
        say!("back after      {} ms in the middle, {} ms at most", self.restart_median_ms, self.restart_max_ms);
        let honest = if self.syncs_per_sec > HONEST_SYNCS_PER_SEC {
            ": more than a medium can do; this is memory, or the disk says more than it does"
        } else {
            ""
        };
        say!("disk            {} writes of 4 KiB a second, each synced{honest}", self.syncs_per_sec);
        for example in &self.what_went_wrong {
            say!("  {example}");
        }
    }
}
