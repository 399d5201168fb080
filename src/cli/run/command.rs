//! The command that a throw-away broker is for.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::cli::Failure;

/// Those that are passed on.
pub(super) struct Signals {
    streams: Vec<(Signal, Stream)>,
}

impl Signals {
    pub(super) fn take() -> Result<Signals, Failure> {
        let kinds = [
            (Signal::INT, SignalKind::interrupt()),
            (Signal::TERM, SignalKind::terminate()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        let streams = kinds.into_iter().map(|(name, kind)| Ok((name, signal(kind)?)));
        let streams: Result<Vec<_>, std::io::Error> = streams.collect();
        Ok(Signals { streams: streams.map_err(|error| Failure::new(format!("cannot take signals: {error}")))? })
    }

    /// The next that comes.
    pub(super) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (name, stream) in &mut self.streams {
                if let std::task::Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return std::task::Poll::Ready(*name);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Runs it with `variables`; its exit code, or 128 and the signal that ended it.
pub(super) async fn run(
    words: &[OsString],
    variables: &[(String, String)],
    signals: &mut Signals,
    gone: impl Future<Output = Failure>,
) -> Result<u8, Failure> {
    let mut gone = std::pin::pin!(gone);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    for (name, _) in std::env::vars_os() {
        // What is said of another broker is not meant for this one.
        if name.to_string_lossy().starts_with("MQTT_") {
            command.env_remove(name);
        }
    }
    command.envs(variables.iter().cloned());
    let mut child = command.spawn().map_err(|error| {
        let what = format!("cannot start {}: {error}", words[0].to_string_lossy());
        let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
        Failure::new(what).with_code(code)
    })?;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(Failure::new)?;
                let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                return Ok(code as u8);
            }
            signal = signals.next() => {
                // A terminal tells those in its foreground itself.
                let told = matches!(signal, Signal::INT | Signal::QUIT) && is_in_foreground();
                if !told {
                    tell(&child, signal);
                }
            }
            failure = &mut gone => {
                // What it was for is gone.
                tell(&child, Signal::TERM);
                if tokio::time::timeout(Duration::from_secs(3), child.wait()).await.is_err() {
                    drop(child.kill().await);
                }
                return Err(failure);
            }
        }
    }
}

fn tell(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}
