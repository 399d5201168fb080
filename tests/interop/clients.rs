use std::path::{Path, PathBuf};
use std::process::Command;

use crate::site::{Broker, Site, run_with};

/// Where `tests/run` puts the clients.
fn installed(below: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/.clients").join(below);
    assert!(path.exists(), "{} is missing: tests/run installs the test clients", path.display());
    path
}

pub(crate) fn python() -> Command {
    Command::new(installed("venv/bin/python3"))
}

pub(crate) fn node() -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", installed("node_modules"));
    command
}

pub(crate) const LEVELS: [&str; 3] = ["plain", "tls", "mtls"];

/// A bundle of `client` at `level`, made by `client env`; gives its folder.
pub(crate) fn bundle(site: &Site, client: &str, level: &str) -> PathBuf {
    let out = site.path(&format!("bundles/{client}-{level}"));
    if !out.exists() {
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        site.ok(&["client", "env", client, "--level", level, "--host", "localhost", "--out", out.to_str().unwrap()]);
    }
    out
}

/// A port that was free a moment ago, and is not given out again soon.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// The port of `level`.
pub(crate) fn port(broker: &Broker, level: &str) -> u16 {
    if level == "plain" { broker.plain_port } else { broker.tls_port }
}

/// The options that give a mosquitto client `level`.
pub(crate) fn mosquitto(program: &str, site: &Site, broker: &Broker, level: &str) -> Command {
    let folder = bundle(site, "device1", level);
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    // By line: what it prints into a pipe would otherwise come at its end.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", program]);
    command.args(["-h", "localhost", "-p", &port(broker, level).to_string()]);
    if level != "plain" {
        command.args(["--cafile", &file("ca.crt")]);
    }
    match level {
        "mtls" => command.args(["--cert", &file("client.crt"), "--key", &file("client.key")]),
        _ => command.args(["-u", "device1", "-P", &site.variable("device1", "MQTT_PASSWORD")]),
    };
    command
}

/// Publishes with the certificate, key and CA of `folder`; whether the broker took it.
pub(crate) fn publishes(broker: &Broker, folder: &Path) -> bool {
    let mut publish = Command::new("mosquitto_pub");
    publish.args(["-h", "localhost", "-p", &broker.tls_port.to_string(), "-q", "1", "-t", "t", "-m", "m"]);
    publish.args(["--cafile", "ca.crt", "--cert", "client.crt", "--key", "client.key"]);
    run_with(publish.current_dir(folder), b"").0 == Some(0)
}
