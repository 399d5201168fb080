use lockgate::codec::Version;

use crate::mqtt::Raw;
use crate::site::{Site, eventually, lockgate, run_with};

fn password(site: &Site, name: &str) -> String {
    site.variable(name, "MQTT_PASSWORD")
}

fn connects(port: u16, name: &str, password: &str) -> String {
    Raw::connect(port, Version::V5, &format!("{name}-test"), Some((name, password))).1
}

#[test]
fn a_running_broker_learns_of_changes_at_once() {
    let site = Site::new(&[]);
    let broker = site.serve();
    let said = site.ok(&["client", "add", "pump7"]);
    assert!(
        said.contains("a certificate and a password") && said.contains("the running broker has taken it up"),
        "{said}"
    );
    let first = password(&site, "pump7");
    assert_eq!(connects(broker.plain_port, "pump7", &first), "CONNACK");
    let complaint = site.fails(1, &["client", "add", "pump7"]);
    assert!(complaint.contains("pump7 exists"), "{complaint}");
    // A new password: the old one stops working, what is connected stays.
    let (mut connected, _) = Raw::connect(broker.plain_port, Version::V5, "stays", Some(("pump7", &first)));
    site.ok(&["client", "passwd", "pump7"]);
    let second = password(&site, "pump7");
    assert_ne!(first, second);
    assert_eq!(connects(broker.plain_port, "pump7", &first), "CONNACK 0x86");
    assert_eq!(connects(broker.plain_port, "pump7", &second), "CONNACK");
    connected.send(&[0xC0, 0]);
    assert_eq!(connected.packet().as_deref(), Some("PINGRESP"));
    // Kicked, it may come back.
    assert!(site.ok(&["client", "kick", "stays"]).contains("1 connection(s) ended"));
    assert_eq!(connected.packet().as_deref(), Some("DISCONNECT 0x98"));
    assert!(site.fails(1, &["client", "kick", "stays"]).contains("is not connected"));
    // Removed, it may not; its sessions end.
    let (mut connected, _) = Raw::connect(broker.plain_port, Version::V5, "stays", Some(("pump7", &second)));
    let said = site.ok(&["client", "remove", "pump7"]);
    assert!(said.contains("its password and 1 certificate(s) admit no more"), "{said}");
    assert_eq!(connected.packet().as_deref(), Some("DISCONNECT 0x98"));
    assert_eq!(connects(broker.plain_port, "pump7", &second), "CONNACK 0x86");
    assert!(!site.path("pki/clients/pump7").exists());
    assert!(site.text("pki/ledger.jsonl").contains("\"event\":\"revoked\""));
    assert!(site.fails(1, &["client", "remove", "pump7"]).contains("there is no pump7"));
}

#[test]
fn without_a_broker_changes_hold_from_the_next_start_on() {
    let site = Site::new(&[]);
    let said = site.ok(&["client", "add", "app", "--no-cert"]);
    assert!(said.contains("a password") && said.contains("no broker is running"), "{said}");
    site.ok(&["client", "add", "gauge", "--no-password"]);
    assert!(!site.text("pki/clients/gauge/mqtt.env").contains("MQTT_PASSWORD"));
    assert!(site.path("pki/clients/app/ca.crt").exists() && !site.path("pki/clients/app/client.crt").exists());
    let list = site.ok(&["client", "list"]);
    assert!(list.contains("app") && list.contains("gauge") && list.contains("No broker is running"), "{list}");
    let broker = site.serve();
    assert_eq!(connects(broker.plain_port, "app", &password(&site, "app")), "CONNACK");
}

#[test]
fn a_minimum_level_is_demanded() {
    let site = Site::new(&[]);
    site.ok(&["client", "add", "pump7", "--min-level", "tls"]);
    assert!(site.text("config/identities.yaml").contains("pump7:"));
    let broker = site.serve();
    assert_eq!(connects(broker.plain_port, "pump7", &password(&site, "pump7")), "CONNACK 0x87");
    broker.wait_for("pump7 has to connect at level tls at least, this is plain");
    site.ok(&["client", "remove", "pump7"]);
    assert!(!site.text("config/identities.yaml").contains("pump7"));
}

#[test]
fn list_and_show_say_who_is_connected_how_and_since_when() {
    let site = Site::new(&["--client", "device1", "--client", "device2"]);
    let mut broker = site.serve();
    let (_kept, _) =
        Raw::connect(broker.plain_port, Version::V311, "one", Some(("device1", &password(&site, "device1"))));
    let rows: serde_json::Value = serde_json::from_str(&site.ok(&["client", "list", "--json"])).unwrap();
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    let connection = row("device1")["connections"][0].clone();
    assert_eq!((connection["level"].as_str(), connection["version"].as_str()), (Some("plain"), Some("3.1.1")));
    assert!(connection["since"].as_str().unwrap().ends_with('Z'));
    assert_eq!(row("device1")["last-seen"]["level"], "plain");
    assert!(row("device2")["connections"].as_array().unwrap().is_empty());
    let list = site.ok(&["client", "list"]);
    assert!(list.contains("plain from 127.0.0.1:"), "{list}");
    let shown = site.ok(&["client", "show", "device1"]);
    assert!(shown.contains("\"one\" connected at level plain") && shown.contains("SHA-256"), "{shown}");
    assert!(site.fails(1, &["client", "show", "nobody"]).contains("there is no nobody"));
    // Last seen outlives the broker.
    broker.signal("TERM");
    assert_eq!(broker.wait(), Some(0));
    let rows: serde_json::Value = serde_json::from_str(&site.ok(&["client", "list", "--json"])).unwrap();
    assert_eq!(rows[0]["last-seen"]["level"], "plain");
}

#[test]
fn a_bundle_for_another_machine_has_its_host_paths_and_owner() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "port: 0", "port: 1883");
    site.edit("config/lockgate.yaml", "port: 0", "port: 8883");
    let out = site.path("bundle");
    let made = |level: &str| {
        drop(std::fs::remove_dir_all(&out));
        site.ok(&[
            "client",
            "env",
            "device1",
            "--level",
            level,
            "--host",
            "broker.example",
            "--path-prefix",
            "/etc/device",
            "--out",
            out.to_str().unwrap(),
        ]);
        let mut names: Vec<String> =
            std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        (names, std::fs::read_to_string(out.join("mqtt.env")).unwrap())
    };
    let secret = password(&site, "device1");
    let (names, text) = made("plain");
    assert_eq!(names, ["mqtt.env"]);
    assert_eq!(
        text,
        format!(
            "MQTT_HOST=broker.example\nMQTT_PORT=1883\nMQTT_USE_TLS=false\nMQTT_USER=device1\nMQTT_PASSWORD={secret}\nMQTT_TLS_INSECURE=false\n"
        )
    );
    let (names, text) = made("tls");
    assert_eq!(names, ["ca.crt", "mqtt.env"]);
    assert!(
        text.contains("MQTT_PORT=8883\n")
            && text.contains("MQTT_CA_CERTS=/etc/device/ca.crt\n")
            && !text.contains("CERTFILE")
    );
    let (names, text) = made("mtls");
    assert_eq!(names, ["ca.crt", "client.crt", "client.key", "mqtt.env"]);
    assert!(
        text.contains("MQTT_CERTFILE=/etc/device/client.crt\n")
            && text.contains("MQTT_KEYFILE=/etc/device/client.key\n")
    );
    // What will keep it from working is said.
    drop(std::fs::remove_dir_all(&out));
    let said = site.ok(&[
        "client",
        "env",
        "device1",
        "--level",
        "tls",
        "--host",
        "other.example",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(said.contains("warning: the server certificate does not name other.example"), "{said}");
    let complaint = site.fails(1, &["client", "env", "device1", "--level", "tls", "--out", out.to_str().unwrap()]);
    assert!(complaint.contains("exists"), "{complaint}");
    let complaint =
        site.fails(1, &["client", "env", "device1", "--level", "tls", "--owner", "no-such-user", "--out", "x"]);
    assert!(complaint.contains("no-such-user"), "{complaint}");
}

#[test]
fn a_given_password_is_read_from_standard_input_alone() {
    let site = Site::new(&[]);
    let mut command = lockgate();
    command.args(["client", "add", "alice", "--no-cert", "--password-stdin", "--dir"]).arg(site.path(""));
    let (code, text) = run_with(&mut command, b"correct horse\n");
    assert_eq!(code, Some(0), "{text}");
    assert!(!site.text("pki/clients/alice/mqtt.env").contains("MQTT_PASSWORD") && !text.contains("horse"));
    let broker = site.serve();
    assert_eq!(connects(broker.plain_port, "alice", "correct horse"), "CONNACK");
    let mut command = lockgate();
    command.args(["client", "passwd", "alice", "--password-stdin", "--dir"]).arg(site.path(""));
    let (code, text) = run_with(&mut command, b"\n");
    assert!(code == Some(1) && text.contains("is empty"), "{text}");
}

#[test]
fn a_bare_password_file_is_edited_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passwd");
    let passwd = |arguments: &[&str], input: &[u8]| {
        let mut command = lockgate();
        command.arg("passwd").args(arguments).arg(&file).arg("alice");
        run_with(&mut command, input)
    };
    let (code, text) = passwd(&["--password-stdin"], b"x\n");
    assert!(code == Some(1) && text.contains("--create"), "{text}");
    assert_eq!(passwd(&["--create", "--password-stdin"], b"x\n").0, Some(0));
    assert_eq!(passwd(&["--create", "--password-stdin"], b"x\n").0, Some(1));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("# kept\n{text}")).unwrap();
    assert_eq!(passwd(&["--password-stdin"], b"y\n").0, Some(0));
    let again = std::fs::read_to_string(&file).unwrap();
    assert!(
        again.starts_with("# kept\nalice:$argon2id$") && again.lines().count() == 2 && !again.contains(text.trim()),
        "{again}"
    );
    assert_eq!(passwd(&["--delete"], b"").0, Some(0));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "# kept\n");
    assert_eq!(passwd(&["--delete"], b"").0, Some(1));
}

#[test]
fn a_certificate_that_was_removed_admits_no_more() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let folder = site.path("pki/clients/device1");
    let copy = site.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        std::fs::copy(folder.join(name), copy.join(name)).unwrap();
    }
    let publish = |folder: &std::path::Path| {
        let mut command = std::process::Command::new("mosquitto_pub");
        command.args(["-h", "localhost", "-p", &broker.tls_port.to_string(), "-t", "t", "-m", "x"]);
        command
            .arg("--cafile")
            .arg(folder.join("ca.crt"))
            .arg("--cert")
            .arg(folder.join("client.crt"))
            .arg("--key")
            .arg(folder.join("client.key"));
        run_with(&mut command, b"").0
    };
    assert_eq!(publish(&copy), Some(0));
    site.ok(&["client", "remove", "device1"]);
    assert_ne!(publish(&copy), Some(0));
    broker.wait_for("is not current in the ledger");
    // The name can be given anew; the old certificate stays out.
    site.ok(&["client", "add", "device1"]);
    assert_ne!(publish(&copy), Some(0));
    eventually("the new certificate", || publish(&folder) == Some(0));
}

#[test]
fn a_change_that_was_interrupted_is_finished_by_the_next() {
    let site = Site::new(&["--client", "device1"]);
    std::fs::rename(site.path("pki/ledger.jsonl"), site.path("pki/.ledger.jsonl.lockgate-staged")).unwrap();
    site.write("config/.lockgate-journal", "{\"files\":[\"config/passwd\",\"pki/ledger.jsonl\"],\"removals\":[]}");
    site.ok(&["client", "add", "device2"]);
    assert!(!site.path("config/.lockgate-journal").exists());
    assert_eq!(site.text("pki/ledger.jsonl").matches("\"kind\":\"client\"").count(), 2);
}

#[test]
fn a_password_that_a_person_chose_leaves_a_bundle_that_connects() {
    let site = Site::new(&["--client", "device1"]);
    let mut command = lockgate();
    command.args(["client", "passwd", "device1", "--password-stdin", "--dir"]).arg(site.path(""));
    assert_eq!(run_with(&mut command, b"mine\n").0, Some(0));
    // The certificate alone is enough: a name without its password would be refused.
    let text = site.text("pki/clients/device1/mqtt.env");
    assert!(!text.contains("MQTT_USER") && text.contains("MQTT_CERTFILE"), "{text}");
}

/// Both certificates admit until the old one expires: the device moves over when it can.
#[test]
fn a_renewed_certificate_admits_beside_the_old_one() {
    let site = Site::new(&["--client", "pump7"]);
    let broker = site.serve();
    let folder = |name: &str| site.path(&format!("pki/clients/pump7/{name}"));
    let url = format!("mqtts://localhost:{}", broker.tls_port);
    let comes_in = |certificate: &std::path::Path, key: &std::path::Path| {
        let mut bench = lockgate();
        bench.args(["bench", "connections", "--count", "1", "--url", &url]).arg("--ca").arg(site.path("pki/ca.crt"));
        bench.arg("--cert").arg(certificate).arg("--key").arg(key).output().unwrap().status.success()
    };
    let keep = |name: &str, kept: &str| std::fs::copy(folder(name), site.path(kept)).unwrap();
    keep("client.crt", "old.crt");
    keep("client.key", "old.key");
    let said = site.ok(&["client", "renew", "pump7", "--days", "20"]);
    assert!(said.contains("pump7 has a new certificate: it expires") && said.contains("taken it up"), "{said}");
    assert_eq!(site.text("old.key"), site.text("pki/clients/pump7/client.key"));
    assert_ne!(site.text("old.crt"), site.text("pki/clients/pump7/client.crt"));
    assert!(comes_in(&folder("client.crt"), &folder("client.key")));
    assert!(comes_in(&site.path("old.crt"), &site.path("old.key")));
    assert_eq!(site.text("pki/ledger.jsonl").matches("\"renews\":").count(), 1);
    // The certificate that lives longest counts, and nobody else is near the end.
    assert!(site.ok(&["client", "renew", "--all-expiring", "30"]).contains("No certificate expires within 30 days"));
    site.ok(&["client", "add", "gauge", "--days", "10"]);
    let said = site.ok(&["client", "renew", "--all-expiring", "30", "--new-key", "--days", "100"]);
    assert!(said.contains("gauge has a new certificate and a new key") && !said.contains("pump7"), "{said}");
    // Renewed with a new key, and removed: neither certificate admits any more.
    site.ok(&["client", "renew", "pump7", "--new-key"]);
    assert_ne!(site.text("old.key"), site.text("pki/clients/pump7/client.key"));
    keep("client.crt", "new.crt");
    keep("client.key", "new.key");
    assert!(comes_in(&site.path("new.crt"), &site.path("new.key")));
    assert!(site.ok(&["client", "remove", "pump7"]).contains("3 certificate(s) admit no more"));
    assert!(!comes_in(&site.path("new.crt"), &site.path("new.key")));
    assert!(!comes_in(&site.path("old.crt"), &site.path("old.key")));
}

#[test]
fn what_cannot_be_renewed_says_why_and_changes_nothing() {
    let site = Site::new(&["--client", "pump7"]);
    site.ok(&["client", "add", "app", "--no-cert"]);
    let ledger = site.text("pki/ledger.jsonl");
    assert!(site.fails(1, &["client", "renew", "nobody"]).contains("there is no nobody"));
    assert!(site.fails(1, &["client", "renew", "app"]).contains("app has no certificate, only a password"));
    std::fs::rename(site.path("pki/clients/pump7/client.key"), site.path("taken.key")).unwrap();
    let complaint = site.fails(1, &["client", "renew", "pump7"]);
    assert!(complaint.contains("client.key is not here") && complaint.contains("--new-key"), "{complaint}");
    std::fs::rename(site.path("pki/ca.key"), site.path("away.key")).unwrap();
    let complaint = site.fails(1, &["client", "renew", "pump7", "--new-key"]);
    assert!(complaint.contains("the CA's key is needed"), "{complaint}");
    assert_eq!(site.text("pki/ledger.jsonl"), ledger);
}

#[test]
fn a_migration_to_tls_is_counted_down_and_the_bundles_for_the_rest_are_made() {
    let site = Site::new(&["--client", "device1", "--client", "device2"]);
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    site.edit("config/lockgate.yaml", "address: loopback", "address: all");
    site.edit("config/lockgate.yaml", "port: 0", &format!("port: {port}"));
    let broker = site.serve();
    let publish = |name: &str, port: u16, tls: bool| {
        let mut command = lockgate();
        command.args(["pub", "-h", "localhost", "-p", &port.to_string(), "-u", name, "-t", "t", "-m", "m", "-q", "1"]);
        command.args(["-P", &site.variable(name, "MQTT_PASSWORD")]);
        if tls {
            command.arg("--cafile").arg(site.path("pki/ca.crt"));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish("device1", broker.tls_port, true);
    publish("device2", broker.plain_port, false);
    for command in ["status", "client list"] {
        let words: Vec<&str> = command.split(' ').collect();
        let said = site.ok(&words);
        assert!(said.contains("1 of 2 on TLS; still plain: device2"), "{said}");
    }
    let status: serde_json::Value = serde_json::from_str(&site.ok(&["status", "--json"])).unwrap();
    assert_eq!(status["by-transport"], serde_json::json!({ "on-tls": ["device1"], "still-plain": ["device2"] }));
    let out = site.path("bundles").to_str().unwrap().to_owned();
    let said = site.ok(&["client", "env", "--all", "--level", "tls", "--host", "localhost", "--out", &out]);
    assert!(said.contains("1 bundle(s) made in") && said.contains("1 come over TLS already"), "{said}");
    assert!(site.path("bundles/device2/mqtt.env").exists() && !site.path("bundles/device1").exists());
    // Again: who is new is made, and who has nothing but a certificate gets it.
    site.ok(&["client", "add", "bare", "--no-password"]);
    let said = site.ok(&["client", "env", "--all", "--level", "tls", "--host", "localhost", "--out", &out]);
    assert!(said.contains("1 bundle(s) made in") && said.contains("(1 lay there before)"), "{said}");
    assert!(site.path("bundles/bare/client.key").exists());
    let mut command = lockgate();
    command.args(["pub", "--env", &format!("{out}/device2/mqtt.env"), "-p", &broker.tls_port.to_string()]);
    assert!(command.args(["-t", "t", "-m", "m", "-q", "1"]).output().unwrap().status.success());
    let said = site.ok(&["status"]);
    assert!(said.contains("2 of 2 on TLS: nobody comes over plain"), "{said}");
    // One line closes the door.
    assert!(said.contains("`address: loopback` at that listener"), "{said}");
    site.edit("config/lockgate.yaml", "address: all", "address: loopback");
    site.ok(&["reload"]);
    let said = site.ok(&["client", "list"]);
    assert!(said.contains("2 of 2 on TLS\n"), "{said}");
}
