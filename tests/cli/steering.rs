//! Seeing and steering a running broker: status, reload, health, metrics.

use std::io::{Read, Write};
use std::net::TcpStream;

use lockgate::codec::Version;

use crate::mqtt::Raw;
use crate::site::{Broker, Site, eventually};

fn login(password: &str) -> Option<(&'static str, &str)> {
    Some(("device1", password))
}

#[test]
fn status_says_what_the_broker_does() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut raw, _) = Raw::connect(broker.plain_port, Version::V5, "c", login(&password));
    raw.send(b"\x82\x07\x00\x01\x00\x00\x01t\x01\x31\x05\x00\x01t\x00x");
    assert_eq!(raw.packet().as_deref(), Some("SUBACK #1 1"));
    assert_eq!(raw.packet().as_deref(), Some("PUBLISH t x"));
    let status = || -> serde_json::Value { serde_json::from_str(&site.ok(&["status", "--json"])).unwrap() };
    // Nobody waits for what is published at QoS 0: it is retained once it is safe.
    eventually("a retained message", || status()["retained-messages"] == 1);
    let status = status();
    assert_eq!(status["connections"], serde_json::json!({"plain": 1, "tls": 0, "mtls": 0}));
    assert_eq!(
        (&status["sessions"], &status["subscriptions"], &status["retained-messages"]),
        (&1.into(), &1.into(), &1.into())
    );
    assert!(status["received-per-sec"].as_f64().unwrap() > 0.0);
    assert_eq!(status["certificates"].as_array().unwrap().len(), 2);
    assert!(status["certificates"][0]["days-left"].as_i64().unwrap() > 3_600);
    let text = site.ok(&["status"]);
    assert!(text.contains("1 connected: 0 mtls, 0 tls, 1 plain") && text.contains("loopback:0"), "{text}");
}

#[test]
fn reload_takes_up_good_files_and_leaves_all_as_it_was_for_a_bad_one() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut raw, _) = Raw::connect(broker.plain_port, Version::V5, "c", login(&password));
    let mut publish = |topic: &str| {
        let mut packet = vec![0x32, 6 + topic.len() as u8, 0, topic.len() as u8];
        packet.extend_from_slice(topic.as_bytes());
        packet.extend_from_slice(b"\x00\x01\x00x");
        raw.send(&packet);
        raw.packet().unwrap()
    };
    assert_eq!(publish("t"), "PUBACK #1 0x10");
    let good = site.text("config/acl");
    site.write("config/acl", "pattern write allowed\nnonsense\n");
    let complaint = site.fails(1, &["reload"]);
    assert!(complaint.contains("config/acl:2: "), "{complaint}");
    assert_eq!(publish("t"), "PUBACK #1 0x10");
    site.write("config/acl", "pattern write allowed\n");
    assert!(site.ok(&["reload"]).starts_with("reloaded"));
    assert_eq!(publish("t"), "PUBACK #1 0x87");
    assert_eq!(publish("allowed"), "PUBACK #1 0x10");
    // SIGHUP does the same.
    site.write("config/acl", &good);
    broker.signal("HUP");
    eventually("the old ACL again", || publish("t") == "PUBACK #1 0x10");
    broker.wait_for("not reloaded, all is as it was");
}

#[test]
fn a_certificate_that_is_replaced_is_served_after_a_reload() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let served = |broker: &Broker| {
        let script = format!(
            "echo | openssl s_client -connect 127.0.0.1:{} 2>/dev/null | openssl x509 -noout -serial",
            broker.tls_port
        );
        let (_, text) = crate::site::run_with(std::process::Command::new("sh").args(["-c", &script]), b"");
        text
    };
    let before = served(&broker);
    assert!(before.starts_with("serial="), "{before}");
    std::fs::remove_file(site.path("pki/server.crt")).unwrap();
    std::fs::remove_file(site.path("pki/server.key")).unwrap();
    assert!(site.fails(1, &["reload"]).contains("pki/server.crt"));
    assert_eq!(served(&broker), before);
    site.init(&["--san", "new.example"]);
    site.ok(&["reload"]);
    assert_ne!(served(&broker), before);
}

#[test]
fn listeners_come_and_go_with_a_reload() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut kept, _) = Raw::connect(broker.plain_port, Version::V5, "c", login(&password));
    let with = "listeners:\n  - transport: unix\n    path: ../mqtt.sock\n";
    site.edit("config/lockgate.yaml", "listeners:\n", with);
    site.ok(&["reload"]);
    assert!(site.path("mqtt.sock").exists());
    site.edit("config/lockgate.yaml", with, "listeners:\n");
    site.ok(&["reload"]);
    eventually("the socket's removal", || !site.path("mqtt.sock").exists());
    kept.send(&[0xC0, 0]);
    assert_eq!(kept.packet().as_deref(), Some("PINGRESP"));
}

#[test]
fn a_reload_cannot_admit_what_init_would_refuse() {
    let site = Site::new(&["--client", "device1"]);
    let _broker = site.serve();
    std::fs::copy(site.path("pki/ca.key"), site.path("pki/server.key")).unwrap();
    assert!(site.fails(1, &["reload"]).contains("does not belong to the certificate"));
}

#[test]
fn health_and_metrics_are_served_on_tcp_where_asked() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "address: off", "address: 127.0.0.1:0");
    let broker = site.serve();
    let line = broker.wait_for("metrics and health on http://");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut raw, _) = Raw::connect(broker.plain_port, Version::V5, "c", login(&password));
    raw.send(b"\x32\x07\x00\x01t\x00\x01\x00x");
    assert_eq!(raw.packet().as_deref(), Some("PUBACK #1 0x10"));
    Raw::connect(broker.plain_port, Version::V5, "d", login("wrong"));
    for path in ["/health", "/health/live", "/health/ready"] {
        let text = get(path);
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"alive\":true"), "{path}: {text}");
    }
    let metrics = get("/metrics");
    for wanted in [
        "lockgate_messages_total{direction=\"received\",qos=\"1\"} 1",
        "lockgate_connections{level=\"plain\"} 1",
        "lockgate_refusals_total{reason=\"wrong-password\"} 1",
        "lockgate_handshake_seconds_bucket{le=\"+Inf\"}",
        "lockgate_commit_seconds_count",
        "lockgate_certificate_days{certificate=\"ca\"}",
        "lockgate_dropped_messages_total{cause=\"queue-full\"} 0",
        "lockgate_queued_messages",
        "# EOF",
    ] {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }
    // What steers is for the local door alone.
    for path in ["/status", "/clients", "/kick", "/reload"] {
        assert!(get(path).starts_with("HTTP/1.1 404"), "{path}");
    }
    assert!(site.ok(&["health"]).contains("alive: true, ready: true"));
    site.ok(&["health", "--live"]);
}

#[test]
fn the_local_door_is_its_owners_alone_however_deep_its_folder_lies() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a-folder-with-a-long-name/".repeat(8));
    std::fs::create_dir_all(&deep).unwrap();
    let site = deep.join("site");
    let run = |arguments: &[&str]| crate::site::lockgate().args(arguments).arg("--dir").arg(&site).output().unwrap();
    assert!(run(&["init", "--plain-port", "0", "--tls-port", "0"]).status.success());
    let mut child = crate::site::lockgate()
        .args(["serve", "--dir"])
        .arg(&site)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the broker's answer", || run(&["health"]).status.success());
    let mode = std::fs::metadata(site.join("data/lockgate.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(run(&["health"]).status.code(), Some(1));
}

#[test]
fn the_acl_answers_questions_with_the_line_that_decided() {
    let site = Site::new(&["--client", "device1", "--acl", "own"]);
    let said = site.ok(&["acl", "test", "device1", "write", "device1/x"]);
    assert!(said.starts_with("yes: device1 may write device1/x") && said.contains("pattern readwrite %u/#"), "{said}");
    let output = site.run(&["acl", "test", "device1", "write", "device2/x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no line of"), "{output:?}");
    site.fails(2, &["acl", "test", "device1", "write", "a/#"]);
    let said = site.ok(&["acl", "test", "nobody", "read", "nobody/x"]);
    assert!(said.contains("note: there is no nobody here"), "{said}");
}
