//! `lockgate up` on its default ports, in namespaces of its own, and the commands that it prints,
//! as they are printed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::site::{PATIENCE, run_with};

struct Up {
    child: Child,
    printed: String,
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn up(folder: &Path, command: &str) -> Up {
    let script = format!("ip link set lo up && exec {} {command}", env!("CARGO_BIN_EXE_lockgate"));
    let mut child = Command::new("unshare")
        .args(["-rmn", "sh", "-c", &script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let mut all = String::new();
    let started = std::time::Instant::now();
    while !line.contains("is ready") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0 && started.elapsed() < PATIENCE, "it ended: {all}");
        all.push_str(&line);
    }
    std::thread::spawn(move || drop(log.read_to_string(&mut String::new())));
    // What was printed lies in the pipe; the broker goes on.
    let mut printed = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    while !printed.contains("The broker runs until") && !printed.contains("starting its broker") {
        assert!(stdout.read_line(&mut printed).unwrap() > 0, "{printed}");
    }
    Up { child, printed }
}

/// A shell command in the broker's network, with the test clients on the path.
fn inside(up: &Up, folder: &Path, script: &str) -> (Option<i32>, String) {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.clients/venv/bin");
    assert!(clients.exists(), "tests/run installs the test clients");
    let path = format!("{}:{}", clients.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("nsenter");
    command.args(["-t", &up.child.id().to_string(), "-U", "--preserve-credentials", "-n", "--wdns=."]);
    command.args(["sh", "-c", script]).current_dir(folder).env("PATH", path);
    run_with(&mut command, b"")
}

/// The printed command that begins with `start`, up to an empty line.
fn printed<'a>(text: &'a str, start: &str) -> &'a str {
    let at = text.find(start).unwrap_or_else(|| panic!("{start} is not in {text}"));
    let rest = &text[at..];
    &rest[..rest.find("\n\n").unwrap_or(rest.len())]
}

#[test]
fn the_printed_commands_work_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    let broker = up(folder.path(), "up");
    let text = &broker.printed;
    assert!(text.contains("Plain MQTT is for this machine alone"), "{text}");
    assert!(!text.contains("MQTT_PASSWORD="), "a password is shown: {text}");
    let (subscribe, publish) = (printed(text, "mosquitto_sub"), printed(text, "mosquitto_pub"));
    let python = printed(text, "python3 - <<");
    let script = format!(
        "({subscribe} -W 30 -C 2 > got) & sub=$!\n\
         until {lockgate} status --json | grep -q '\"subscriptions\": 1'; do sleep 0.1; done\n\
         {publish} || exit 1\n{python}\n[ $? = 0 ] || exit 2\nwait $sub; cat got",
        lockgate = env!("CARGO_BIN_EXE_lockgate"),
    );
    let (code, got) = inside(&broker, folder.path(), &script);
    assert_eq!(code, Some(0), "{got}");
    assert_eq!(got, "device1/hello The gate is open\ndevice1/hello The gate is open, says Python\n");
    // It serves plain MQTT on loopback too, and nowhere else.
    let (code, status) = inside(&broker, folder.path(), &format!("{} status", env!("CARGO_BIN_EXE_lockgate")));
    assert!(code == Some(0) && status.contains("127.0.0.1:1883") && status.contains("[::]:8883"), "{status}");
    drop(broker);
    // Again, it makes nothing and starts what is there.
    let before = std::fs::read(folder.path().join("pki/ca.crt")).unwrap();
    let again = up(folder.path(), "up");
    assert!(again.printed.contains("exists: starting its broker"), "{}", again.printed);
    assert!(std::fs::read(folder.path().join("pki/ca.crt")).unwrap() == before);
}
