//! Files that others read: mqtt.env by all its readers, the samples, the systemd unit.

use std::path::Path;
use std::process::Command;

use crate::site::{Site, run_with};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn mqtt_env_is_read_alike_by_all_its_readers() {
    let site = Site::new(&["--client", "device1"]);
    let file = site.path("pki/clients/device1/mqtt.env");
    let text = std::fs::read_to_string(&file).unwrap();
    let names: Vec<&str> = text.lines().map(|line| line.split_once('=').unwrap().0).collect();
    assert_eq!(
        names,
        [
            "MQTT_HOST",
            "MQTT_PORT",
            "MQTT_USE_TLS",
            "MQTT_USER",
            "MQTT_PASSWORD",
            "MQTT_CA_CERTS",
            "MQTT_CERTFILE",
            "MQTT_KEYFILE",
            "MQTT_TLS_INSECURE"
        ]
    );
    let sorted = |text: &str| {
        let mut lines: Vec<&str> = text.lines().filter(|line| line.starts_with("MQTT_")).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    let wanted = sorted(&text);
    // A shell.
    let script = format!("set -a; . {}; env", file.display());
    let (_, shell) = run_with(Command::new("sh").args(["-c", &script]).env_clear().env("PATH", "/usr/bin:/bin"), b"");
    assert_eq!(sorted(&shell), wanted);
    // dotenv.
    let python = root().join("tests/.clients/venv/bin/python3");
    assert!(python.exists(), "tests/run installs the test clients");
    let script =
        "import dotenv, sys\nfor name, value in dotenv.dotenv_values(sys.argv[1]).items(): print(f'{name}={value}')";
    let (code, dotenv) = run_with(Command::new(python).args(["-c", script]).arg(&file), b"");
    assert_eq!((code, sorted(&dotenv)), (Some(0), wanted.clone()));
    // Node's own reader of such files.
    let script = "for (const [k, v] of Object.entries(process.env)) console.log(`${k}=${v}`)";
    let (_, node) =
        run_with(Command::new("node").arg(format!("--env-file={}", file.display())).args(["-e", script]), b"");
    assert_eq!(sorted(&node), wanted);
    // `docker --env-file` and systemd take a line apart at its first `=` and keep the rest; systemd
    // also reads quotes and backslashes, of which there are none.
    assert!(text.lines().all(|line| !line.contains(['"', '\'', '\\', '$', ' ', '#', '`', '%'])), "{text}");
}

#[test]
fn every_sample_configuration_is_valid() {
    let mut samples = 0;
    for entry in std::fs::read_dir(root().join("config")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".sample.yaml") {
            continue;
        }
        samples += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        // As it would be used: in place of the one that init writes.
        let site = Site::new(&["--client", "device1"]);
        site.write("config/lockgate.yaml", &text);
        let settings = lockgate::config::load(&site.path("config/lockgate.yaml"), [])
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!settings.listeners.is_empty());
        // Ports of a sample are fixed: they are tried in a network of their own.
        let script = format!(
            "ip link set lo up && exec {} serve --check --dir {}",
            env!("CARGO_BIN_EXE_lockgate"),
            site.path("").display()
        );
        let (code, output) = run_with(Command::new("unshare").args(["-rn", "sh", "-c", &script]), b"");
        assert_eq!(code, Some(0), "{name}: {output}");
    }
    assert!(samples >= 3);
}

#[test]
fn the_systemd_unit_is_hardened() {
    let unit = root().join("systemd/lockgate.service");
    let (code, text) =
        run_with(Command::new("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]).arg(&unit), b"");
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{text}"));
    let level: f64 = line.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(level < 2.0, "{line}");
    let text = std::fs::read_to_string(&unit).unwrap();
    for wanted in ["Type=notify", "WatchdogSec=", "User=lockgate", "ExecReload="] {
        assert!(text.contains(wanted), "{wanted}");
    }
}
