//! The real binary on a site of its own: a temporary folder, ports that the kernel chose.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything that a test waits for may take: a loaded machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn lockgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    command.env_remove("LOCKGATE_CONFIG").stdin(Stdio::null());
    command
}

pub(crate) struct Site {
    folder: TempDir,
}

impl Site {
    /// A folder with nothing in it.
    pub(crate) fn empty() -> Site {
        Site { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// `init` with kernel-chosen ports and more arguments.
    pub(crate) fn new(arguments: &[&str]) -> Site {
        let site = Site { folder: tempfile::tempdir().expect("a temporary folder") };
        site.init(arguments);
        site
    }

    pub(crate) fn init(&self, arguments: &[&str]) -> String {
        let mut all = vec![
            "init",
            "--dir",
            self.path("").to_str().unwrap(),
            "--plain-port",
            "0",
            "--tls-port",
            "0",
            "--name",
            "test",
        ]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let output = lockgate().args(&all).output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        if below.is_empty() { self.folder.path().to_owned() } else { self.folder.path().join(below) }
    }

    pub(crate) fn text(&self, below: &str) -> String {
        let path = self.path(below);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) fn write(&self, below: &str, text: &str) {
        std::fs::write(self.path(below), text).unwrap();
    }

    /// Replaces a text in a file, which must be there.
    pub(crate) fn edit(&self, below: &str, from: &str, to: &str) {
        let text = self.text(below);
        assert!(text.contains(from), "{from:?} is not in {text}");
        self.write(below, &text.replacen(from, to, 1));
    }

    /// The variables of a client's bundle.
    pub(crate) fn variable(&self, client: &str, name: &str) -> String {
        let text = self.text(&format!("pki/clients/{client}/mqtt.env"));
        let prefix = format!("{name}=");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("{name} in {text}"))
            .to_owned()
    }

    /// A command of ours about this site.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        lockgate().args(arguments).arg("--dir").arg(self.path("")).output().expect("the binary runs")
    }

    /// The same, which must succeed; gives what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, which must fail with `code`; gives what it complained of.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaint}");
        complaint
    }

    pub(crate) fn serve(&self) -> Broker {
        self.serve_with(|_| {})
    }

    /// Starts the broker and waits until it is ready.
    pub(crate) fn serve_with(&self, change: impl FnOnce(&mut Command)) -> Broker {
        let mut command = lockgate();
        command.arg("serve").arg("--dir").arg(self.path(""));
        change(&mut command);
        let mut broker = Broker::start(command, self.path(""));
        broker.wait_for("is ready");
        let status: serde_json::Value = serde_json::from_str(&self.ok(&["status", "--json"])).unwrap();
        for listener in status["listeners"].as_array().unwrap() {
            let address = listener["addresses"][0].as_str().unwrap();
            let Some((_, port)) = address.rsplit_once(':') else { continue };
            let Ok(port) = port.parse() else { continue };
            match listener["transport"].as_str().unwrap() {
                "tcp" if broker.plain_port == 0 => broker.plain_port = port,
                "tls" if broker.tls_port == 0 => broker.tls_port = port,
                _ => {}
            }
        }
        broker
    }
}

/// A running broker; killed when dropped.
pub(crate) struct Broker {
    child: Child,
    log: Arc<(Mutex<String>, Condvar)>,
    pub(crate) plain_port: u16,
    pub(crate) tls_port: u16,
    folder: PathBuf,
}

impl Broker {
    pub(crate) fn start(mut command: Command, folder: PathBuf) -> Broker {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let log: Arc<(Mutex<String>, Condvar)> = Arc::default();
        let writer = log.clone();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let (text, changed) = &*writer;
                let mut text = text.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
                changed.notify_all();
            }
        });
        Broker { child, log, plain_port: 0, tls_port: 0, folder }
    }

    pub(crate) fn log(&self) -> String {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits for a line that contains `text`, and gives it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let (log, changed) = &*self.log;
        let mut log = log.lock().unwrap();
        loop {
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} does not come:\n{log}");
            log = changed.wait_timeout(log, left).unwrap().0;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end; gives the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the broker does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a command with input, within [`PATIENCE`]; its output as text, and its exit code.
pub(crate) fn run_with(command: &mut Command, input: &[u8]) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs the test clients"));
    drop(child.stdin.take().unwrap().write_all(input));
    let watched = Watch::of(child.id());
    let output = child.wait_with_output().unwrap();
    drop(watched);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Kills a child that takes too long.
struct Watch {
    done: Arc<(Mutex<bool>, Condvar)>,
}

impl Watch {
    fn of(pid: u32) -> Watch {
        let done: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let watched = done.clone();
        std::thread::spawn(move || {
            let (flag, changed) = &*watched;
            let flag = flag.lock().unwrap();
            let (flag, _) = changed.wait_timeout_while(flag, 3 * PATIENCE, |done| !*done).unwrap();
            if !*flag {
                drop(Command::new("kill").args(["-KILL", &pid.to_string()]).status());
            }
        });
        Watch { done }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.done.0.lock().unwrap() = true;
        self.done.1.notify_all();
    }
}

/// Polls `done` until it says yes.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}
