//! `lockgate run`: a broker for the life of one command, and brokers that are broken on purpose.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clients::{node, python};
use crate::own_tools::Running;
use crate::site::{Site, eventually, lockgate, run_with};

/// `lockgate run` with its temporary folders in `site`.
fn run(site: &Site, arguments: &[&str]) -> Command {
    let mut command = lockgate();
    command.arg("run").args(arguments).env("TMPDIR", site.path(""));
    command
}

fn left(site: &Site) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(site.path("")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("lockgate-run-")).collect()
}

#[test]
fn a_command_has_the_variables_of_a_bundle_and_nothing_is_left() {
    let site = Site::empty();
    for (level, expected) in [
        ("plain", "MQTT_HOST MQTT_PASSWORD MQTT_PORT MQTT_TLS_INSECURE MQTT_USER MQTT_USE_TLS"),
        ("tls", "MQTT_CA_CERTS MQTT_HOST MQTT_PASSWORD MQTT_PORT MQTT_TLS_INSECURE MQTT_USER MQTT_USE_TLS"),
        ("mtls", "MQTT_CA_CERTS MQTT_CERTFILE MQTT_HOST MQTT_KEYFILE MQTT_PORT MQTT_TLS_INSECURE MQTT_USE_TLS"),
    ] {
        let own = env!("CARGO_BIN_EXE_lockgate");
        let script = format!(
            "env | grep -o '^MQTT_[A-Z_]*' | sort | tr '\\n' ' '; {own} pub -t t -m m -q 2 -r && {own} sub -t t -C 1 -W 10; exit 7"
        );
        let mut command = run(&site, &["--level", level, "--", "sh", "-c", &script]);
        // What is said of another broker does not reach it.
        command.env("MQTT_NONSENSE", "x").env("LOCKGATE__LISTENERS", "x");
        assert_eq!(run_with(&mut command, b""), (Some(7), format!("{expected} m\n")), "{level}");
        assert!(left(&site).is_empty(), "{:?}", left(&site));
    }
    let (code, said) = run_with(&mut run(&site, &["--", "no-such-command"]), b"");
    assert!(code == Some(127) && said.contains("cannot start no-such-command"), "{said}");
    assert_eq!(run_with(&mut run(&site, &["--", "sh", "-c", "kill -KILL $$"]), b"").0, Some(137));
    let (code, said) = run_with(&mut run(&site, &["--break", "expired-servr", "--", "true"]), b"");
    assert!(code == Some(2) && said.contains("did you mean expired-server?"), "{said}");
    let (code, said) = run_with(&mut run(&site, &["--break", "revoked-client", "--", "true"]), b"");
    assert!(code == Some(2) && said.contains("add --level mtls"), "{said}");
    let (code, said) = run_with(&mut run(&site, &[]), b"");
    assert!(code == Some(2) && said.contains("lockgate run -- COMMAND"), "{said}");
    // Its log is kept where that is asked for.
    let log = site.path("log").to_str().unwrap().to_owned();
    assert_eq!(run_with(&mut run(&site, &["--log", &log, "--", "true"]), b"").0, Some(0));
    assert!(site.text("log").contains("throw-away is ready"));
    assert!(left(&site).is_empty());
}

#[test]
fn it_is_ready_within_200_ms_and_any_number_run_side_by_side() {
    let site = Site::empty();
    // On a busy machine not every time.
    eventually("a start within 200 ms", || {
        let began = Instant::now();
        assert_eq!(run_with(&mut run(&site, &["--", "true"]), b"").0, Some(0));
        began.elapsed() < Duration::from_millis(200)
    });
    let own = env!("CARGO_BIN_EXE_lockgate");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let site = &site;
            scope.spawn(move || {
                let script = format!("{own} pub -t t -m {number} -q 1 -r && {own} sub -t t -C 1 -W 20");
                let mut command = run(site, &["--", "sh", "-c", &script]);
                assert_eq!(run_with(&mut command, b""), (Some(0), format!("{number}\n")));
            });
        }
    });
    assert!(left(&site).is_empty());
}

fn spawn(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

fn line_of(child: &mut Child) -> String {
    use std::io::{BufRead, BufReader};
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn signals_reach_the_command_and_a_kill_leaves_nothing_either() {
    let site = Site::empty();
    let script = "trap 'echo usr1' USR1; trap 'exit 9' TERM; echo started; while :; do sleep 0.05; done";
    let mut running = spawn(&mut run(&site, &["--", "sh", "-c", script]));
    assert_eq!(line_of(&mut running.0), "started\n");
    signal(&running.0, "USR1");
    assert_eq!(line_of(&mut running.0), "usr1\n");
    signal(&running.0, "TERM");
    assert_eq!(running.0.wait().unwrap().code(), Some(9));
    assert!(left(&site).is_empty());
    // Killed itself, it can clear nothing up: its broker does.
    let mut running = spawn(&mut run(&site, &["--json"]));
    let connection: Value = serde_json::from_str(&line_of(&mut running.0)).unwrap();
    assert_eq!(left(&site).len(), 1);
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    eventually("nothing is left", || left(&site).is_empty());
    let port = connection["port"].as_u64().unwrap() as u16;
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// A trouble is made in the temporary site alone, whatever the environment says of a real one.
#[test]
fn a_real_site_that_the_environment_speaks_of_is_not_touched() {
    let site = Site::new(&["--client", "device1"]);
    let before = site.ok(&["client", "list", "--json"]);
    let mut command = run(&site, &["--level", "mtls", "--break", "revoked-client", "--", "true"]);
    for (name, below) in [
        ("LOCKGATE_CONFIG", "config/lockgate.yaml"),
        ("LOCKGATE__PKI", "pki"),
        ("LOCKGATE__DATA", "data"),
        ("LOCKGATE__PASSWORDS", "config/passwd"),
    ] {
        command.env(name, site.path(below));
    }
    assert_eq!(run_with(&mut command, b""), (Some(0), String::new()));
    assert_eq!(site.ok(&["client", "list", "--json"]), before);
    assert!(site.path("pki/clients/device1/client.crt").exists());
}

#[test]
fn a_command_ends_with_its_broker_and_a_signal_ends_what_waits_for_its_input() {
    let site = Site::empty();
    let script = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let mut running = spawn(run(&site, &["--", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert_eq!(line_of(&mut running.0), "ready\n");
    let broker =
        Command::new("pgrep").args(["-P", &running.0.id().to_string(), "-f", "run --parent"]).output().unwrap();
    let broker = String::from_utf8(broker.stdout).unwrap();
    assert!(Command::new("kill").args(["-s", "KILL", broker.trim()]).status().unwrap().success());
    assert_eq!(line_of(&mut running.0), "told\n");
    assert_eq!(running.0.wait().unwrap().code(), Some(1));
    assert!(left(&site).is_empty());
    let mut waits = spawn(run(&site, &["--json"]).stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert!(line_of(&mut waits.0).starts_with('{'));
    signal(&waits.0, "TERM");
    // Its input is still open.
    assert_eq!(waits.0.wait().unwrap().code(), Some(0));
    assert!(left(&site).is_empty());
    let (code, said) = run_with(run(&site, &["--", "true"]).env("TMPDIR", "/tmp/with space"), b"");
    assert!(code == Some(2) && said.contains("name another place by TMPDIR"), "{said}");
}

#[test]
fn without_a_command_it_lives_until_its_input_closes() {
    let site = Site::empty();
    let mut running = spawn(&mut run(&site, &["--json", "--level", "mtls"]));
    let connection: Value = serde_json::from_str(&line_of(&mut running.0)).unwrap();
    for (name, variable) in [("certfile", "MQTT_CERTFILE"), ("ca-certs", "MQTT_CA_CERTS"), ("keyfile", "MQTT_KEYFILE")]
    {
        assert!(Path::new(connection[name].as_str().unwrap()).exists());
        assert_eq!(connection[name], connection["env"][variable]);
    }
    let mut publish = lockgate();
    publish.args(["pub", "-t", "t", "-m", "m", "-q", "1"]);
    for (name, value) in connection["env"].as_object().unwrap() {
        publish.env(name, value.as_str().unwrap());
    }
    assert_eq!(run_with(&mut publish, b""), (Some(0), String::new()));
    drop(running.0.stdin.take());
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert!(left(&site).is_empty());
}

#[test]
fn tests_in_python_and_node_have_brokers_by_the_fixtures_of_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = root.join("tests/interop/fixtures");
    let path = format!(
        "{}:{}",
        Path::new(env!("CARGO_BIN_EXE_lockgate")).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut pytest = python();
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).arg(&fixtures);
    let (code, said) = run_with(pytest.env("PATH", &path).env("PYTHONDONTWRITEBYTECODE", "1"), b"");
    assert!(code == Some(0) && said.contains("1 passed"), "{said}");
    let mut test = node();
    test.arg("--test").arg(fixtures.join("device.test.js"));
    let (code, said) = run_with(test.env("PATH", &path), b"");
    assert!(code == Some(0) && said.contains("pass 1"), "{said}");
    let readme = std::fs::read_to_string(root.join("docs/tests-and-ci.md")).unwrap()
        + &std::fs::read_to_string(root.join("README.md")).unwrap();
    for fixture in ["conftest.py", "broker.js"] {
        let text = std::fs::read_to_string(fixtures.join(fixture)).unwrap();
        assert!(readme.contains(&text), "the README does not show {fixture} as it is");
    }
}

/// A trouble, what a person sees with paho and with MQTT.js, and how long they try.
struct Seen {
    trouble: &'static str,
    level: &'static str,
    seconds: &'static str,
    paho: &'static [&'static str],
    mqtt_js: &'static [&'static str],
}

const fn seen(trouble: &'static str, paho: &'static [&'static str], mqtt_js: &'static [&'static str]) -> Seen {
    Seen { trouble, level: "tls", seconds: "12", paho, mqtt_js }
}

#[rustfmt::skip]
const TROUBLES: &[Seen] = &[
    seen("expired-server", &["certificate verify failed: certificate has expired"], &["error: certificate has expired"]),
    seen("not-yet-valid-server", &["certificate verify failed: certificate is not yet valid"], &["error: certificate is not yet valid"]),
    seen("wrong-host", &["Hostname mismatch, certificate is not valid for 'localhost'"], &["altnames: DNS:other.invalid"]),
    seen("unknown-ca", &["certificate verify failed: unable to get local issuer certificate"], &["error: unable to verify the first certificate"]),
    seen("self-signed", &["certificate verify failed: self-signed certificate"], &["error: self-signed certificate"]),
    Seen { level: "mtls", ..seen("revoked-client", &["CONNACK Not authorized", "0 of 5"], &["Connection refused: Not authorized"]) },
    // paho says no more of it: the alert is in the log of ssl alone.
    Seen { level: "mtls", seconds: "2", ..seen("expired-client", &["disconnected: Unspecified error", "0 of 5"], &["alert certificate expired"]) },
    seen("bad-password", &["CONNACK Bad user name or password", "0 of 5"], &["Connection refused: Bad User Name or Password"]),
    seen("not-authorized", &["SUBACK Not authorized", "PUBACK Not authorized"], &["Subscribe error: Not authorized", "Publish error: Not authorized"]),
    Seen { ..seen("tls1.2-only", &["speaks TLSv1.2", "5 of 5 acknowledged"], &["speaks TLSv1.2", "5 of 5 acknowledged"]) },
    Seen { ..seen("tls1.3-only", &["speaks TLSv1.3", "5 of 5 acknowledged"], &["speaks TLSv1.3", "5 of 5 acknowledged"]) },
    Seen { seconds: "2", ..seen("drop-puback", &["message m4", "0 of 5 acknowledged"], &["message m4", "0 of 5 acknowledged"]) },
    seen("duplicate-publish", &["message m0 DUP", "5 of 5 acknowledged"], &["message m0 DUP", "5 of 5 acknowledged"]),
    seen("slow=1100", &["CONNACK Success after 1.", "5 of 5 acknowledged"], &["CONNACK after 1.", "5 of 5 acknowledged"]),
    seen("disconnect-after=4", &["disconnected: Unspecified error", "5 of 5 acknowledged"], &["closed", "5 of 5 acknowledged"]),
    seen("server-busy=1", &["CONNACK Server busy", "5 of 5 acknowledged"], &["Connection refused: Server busy", "5 of 5 acknowledged"]),
    seen("quota-exceeded", &["PUBACK Quota exceeded"], &["Publish error: Quota exceeded"]),
    Seen { seconds: "2", ..seen("full-disk", &["CONNACK Quota exceeded", "0 of 5"], &["Connection refused: Quota exceeded"]) },
    seen("restart-after=3", &["disconnected: Unspecified error", "5 of 5 acknowledged"], &["closed", "5 of 5 acknowledged"]),
];

#[test]
fn paho_and_mqtt_js_show_each_trouble_as_a_person_sees_it_and_get_over_what_can_be_got_over() {
    let site = Site::empty();
    let listed: Value = serde_json::from_str(&run_with(&mut run(&site, &["--list", "--json"]), b"").1).unwrap();
    let listed: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    let tried: Vec<&str> = TROUBLES.iter().map(|seen| seen.trouble.split('=').next().unwrap()).collect();
    assert_eq!(listed, tried, "each trouble is tried");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let try_one = |seen: &Seen, program: Command, script: &str, expected: &[&str]| {
        let mut command = run(&site, &["--level", seen.level, "--break", seen.trouble, "--"]);
        command.arg(program.get_program()).arg(folder.join(script)).arg(seen.seconds);
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let (_, said) = run_with(&mut command, b"");
        for words in expected {
            assert!(said.contains(words), "{} {script}: {words:?} is not in\n{said}", seen.trouble);
        }
    };
    // A few at a time.
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(seen) = TROUBLES.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    try_one(seen, python(), "broken.py", seen.paho);
                    try_one(seen, node(), "broken.js", seen.mqtt_js);
                }
            });
        }
    });
    assert!(left(&site).is_empty());
}
