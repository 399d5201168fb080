//! The broker of `lockgate run`: a process of its own, so that it can be killed.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child as Process, Command};

use super::workshop;
use crate::cli::{Failure, ask, serve, site};
use crate::config::{self, Settings};
use crate::shard::DIED;

pub(super) const LOG: &str = "broker.log";
/// How long a start may take, and an end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves `folder`, and says the port on standard output once clients can come.
pub(super) fn serve(folder: &Path, parent: i32) -> Result<(), Failure> {
    // Whoever started it may be killed, even before this line: then nobody needs it, and nobody else clears up.
    let parent = Pid::from_raw(parent);
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(Failure::new)?;
    ask::no_more();
    let file = folder.join("config/lockgate.yaml");
    let owned = folder.to_owned();
    let load = move || -> Result<Settings, Failure> {
        let mut settings = config::load(&owned.join("config/lockgate.yaml"), []).map_err(Failure::configuration)?;
        settings.faults = workshop::faults(&owned)?;
        if settings.faults.over_quota {
            settings.limits.payload_size_max = 0;
        }
        Ok(settings)
    };
    let settings = load()?;
    let served = match getppid() == parent {
        true => serve::run_on(
            settings,
            Arc::new(load),
            |_| {},
            |ready| {
                let port = ready
                    .listeners
                    .iter()
                    .flat_map(|listener| &listener.addresses)
                    .find_map(|address| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()));
                say!("{}", port.unwrap_or(0));
            },
        ),
        false => Ok(()),
    };
    if getppid() != parent {
        drop(std::fs::remove_dir_all(folder));
    }
    served.map_err(|failure| Failure::new(format!("{}: {}", file.display(), failure.message)))
}

pub(super) struct Child {
    process: Process,
    pub(super) port: u16,
}

impl Child {
    /// Starts the broker of `folder`, and waits until clients can come.
    pub(super) async fn start(folder: &Path) -> Result<Child, Failure> {
        let log = File::options().create(true).append(true).open(folder.join(LOG)).map_err(Failure::new)?;
        let mut command = Command::from(site::this_program()?);
        command.args(["run", "--parent", &std::process::id().to_string(), "--serve"]).arg(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // Ctrl-C is for the command.
        command.process_group(0).kill_on_drop(true);
        let mut process = command.spawn().map_err(|error| Failure::new(format!("cannot start the broker: {error}")))?;
        let stdout = process.stdout.take().expect("piped above");
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        match line.ok().and_then(Result::ok).flatten().and_then(|line| line.parse().ok()) {
            Some(port) => Ok(Child { process, port }),
            None => Err(Failure::new(format!("the broker does not start: {}", last_words(folder)))),
        }
    }

    /// Ends when the broker is gone that was not to go; one that dies on purpose comes back.
    pub(super) async fn watch(&mut self, folder: &Path, restarts: bool) -> Failure {
        loop {
            let status = self.process.wait().await;
            if !(restarts && status.is_ok_and(|status| status.code() == Some(DIED))) {
                return Failure::new(format!("the broker ended by itself: {}", last_words(folder)));
            }
            match Child::start(folder).await {
                Ok(again) => *self = again,
                Err(failure) => return failure,
            }
        }
    }

    pub(super) async fn stop(mut self) {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(pid as i32));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(Duration::from_secs(3), self.process.wait()).await.is_err() {
            drop(self.process.kill().await);
        }
    }
}

fn last_words(folder: &Path) -> String {
    let log = std::fs::read_to_string(folder.join(LOG)).unwrap_or_default();
    log.lines().last().unwrap_or("it said nothing").to_owned()
}
