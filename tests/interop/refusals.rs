//! Each refusal with its code and its line in the log.

use std::process::Command;

use lockgate::codec::Version;
use lockgate::pki::{Authority, KeyType};
use lockgate::types::Identity;
use time::{Duration, OffsetDateTime};

use crate::clients::{mosquitto, python};
use crate::mqtt::Raw;
use crate::site::{Broker, Site, run_with};

fn site() -> Site {
    Site::new(&["--client", "device1", "--client", "device2", "--acl", "own"])
}

/// mosquitto_pub over TLS with these files of `folder`.
fn publish_tls(broker: &Broker, host: &str, ca: &str, certificate: Option<(&str, &str)>) -> (Option<i32>, String) {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", host, "-p", &broker.tls_port.to_string(), "--cafile", ca, "-t", "device1/x", "-m", "x"]);
    if let Some((certificate, key)) = certificate {
        command.args(["--cert", certificate, "--key", key]);
    }
    run_with(&mut command, b"")
}

fn text(path: std::path::PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_wrong_password_is_told_by_its_code() {
    // MQTT 5 section 3.2.2.2: 0x86; 3.1.1 section 3.2.2.3: 4
    let site = site();
    let broker = site.serve();
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "c", Some(("device1", "wrong")));
    assert_eq!(answer, "CONNACK 0x86");
    let (_, answer) = Raw::connect(broker.plain_port, Version::V311, "c", Some(("device1", "wrong")));
    assert_eq!(answer, "CONNACK 0x86");
    let line = broker.wait_for("wrong password for \"device1\"");
    for part in ["client \"c\"", "user \"device1\"", "address=127.0.0.1:", "listener=\"loopback:", "WARN"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let mut command = Command::new("mosquitto_pub");
    command.args([
        "-h",
        "localhost",
        "-p",
        &broker.plain_port.to_string(),
        "-u",
        "device1",
        "-P",
        "wrong",
        "-t",
        "t",
        "-m",
        "x",
    ]);
    let (code, text) = run_with(&mut command, b"");
    assert!(code != Some(0) && text.to_lowercase().contains("bad user name or password"), "{text}");
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "c", Some(("nobody", "hunter2")));
    assert_eq!(answer, "CONNACK 0x86");
    broker.wait_for("there is no user \"nobody\"");
    assert!(!broker.log().contains("hunter2"), "a password is in the log");
}

#[test]
fn nobody_without_a_name_is_let_in() {
    let site = site();
    let broker = site.serve();
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "c", None);
    assert_eq!(answer, "CONNACK 0x87");
    let (_, answer) = Raw::connect(broker.plain_port, Version::V31, "c", None);
    assert_eq!(answer, "CONNACK 0x87");
    broker.wait_for("does not allow anonymous clients");
}

#[test]
fn a_client_that_does_not_know_the_ca_is_told_of_in_plain_words() {
    let (site, other) = (site(), site());
    let broker = site.serve();
    let (code, output) = publish_tls(&broker, "localhost", &text(other.path("pki/ca.crt")), None);
    assert!(code != Some(0), "{output}");
    let line = broker.wait_for("does not trust this CA: give it pki/ca.crt");
    assert!(line.contains("client at 127.0.0.1 refused") || line.contains("client at ::1 refused"), "{line}");
}

#[test]
fn a_client_without_the_certificate_that_is_required_is_refused() {
    let site = Site::new(&["--client", "device1", "--client-certs", "required"]);
    let broker = site.serve();
    let ca = text(site.path("pki/ca.crt"));
    let (code, output) = publish_tls(&broker, "localhost", &ca, None);
    assert!(code != Some(0), "{output}");
    broker.wait_for("the client sent no certificate, and this listener requires one signed by");
    let file = |name: &str| text(site.path("pki/clients/device1").join(name));
    let (code, output) = publish_tls(&broker, "localhost", &ca, Some((&file("client.crt"), &file("client.key"))));
    assert_eq!(code, Some(0), "{output}");
}

#[test]
fn expired_and_foreign_certificates_are_refused() {
    let (site, other) = (site(), site());
    let broker = site.serve();
    let ca = text(site.path("pki/ca.crt"));
    let authority =
        Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), OffsetDateTime::now_utc()).unwrap();
    let device = Identity::parse("device1").unwrap();
    let past = OffsetDateTime::now_utc() - Duration::days(30);
    let expired = authority.issue_client("test", &device, KeyType::EcdsaP256, 10, past).unwrap();
    site.write("expired.crt", &expired.certificate_pem);
    site.write("expired.key", &expired.key_pem);
    let (code, output) = publish_tls(
        &broker,
        "localhost",
        &ca,
        Some((&text(site.path("expired.crt")), &text(site.path("expired.key")))),
    );
    assert!(code != Some(0), "{output}");
    broker.wait_for("the client's certificate is expired");
    let foreign = |name: &str| text(other.path("pki/clients/device1").join(name));
    let (code, output) = publish_tls(&broker, "localhost", &ca, Some((&foreign("client.crt"), &foreign("client.key"))));
    assert!(code != Some(0), "{output}");
    broker.wait_for("the client's certificate was not signed by");
    // Signed by our CA, but nowhere in the ledger: made behind its back.
    let unknown = authority.issue_client("test", &device, KeyType::EcdsaP256, 10, OffsetDateTime::now_utc()).unwrap();
    site.write("unknown.crt", &unknown.certificate_pem);
    site.write("unknown.key", &unknown.key_pem);
    let (code, output) = publish_tls(
        &broker,
        "localhost",
        &ca,
        Some((&text(site.path("unknown.crt")), &text(site.path("unknown.key")))),
    );
    assert!(code != Some(0), "{output}");
    broker.wait_for("is not current in the ledger");
}

#[test]
fn a_name_that_the_certificate_does_not_have_is_noticed_by_the_client() {
    let site = site();
    let broker = site.serve();
    let (code, output) = publish_tls(&broker, "127.0.0.2", &text(site.path("pki/ca.crt")), None);
    assert!(code != Some(0), "{output}");
    broker.wait_for("check the name it dialled");
    // A client that only hangs up, as Python does.
    let script = format!(
        "import socket, ssl\ncontext = ssl.create_default_context(cafile={:?})\ntry:\n    context.wrap_socket(socket.create_connection(('127.0.0.2', {})), server_hostname='wrong.example')\nexcept ssl.SSLCertVerificationError as error:\n    print(error)\n",
        text(site.path("pki/ca.crt")),
        broker.tls_port
    );
    let (_, output) = run_with(python().args(["-c", &script]), b"");
    assert!(output.contains("Hostname mismatch"), "{output}");
}

#[test]
fn plain_on_the_tls_port_and_tls_on_the_plain_port_are_told_apart() {
    let site = site();
    let broker = site.serve();
    let mut command = Command::new("mosquitto_pub");
    command.args([
        "-h",
        "localhost",
        "-p",
        &broker.tls_port.to_string(),
        "-u",
        "device1",
        "-P",
        "x",
        "-t",
        "t",
        "-m",
        "x",
    ]);
    let (code, _) = run_with(&mut command, b"");
    assert_ne!(code, Some(0));
    broker.wait_for(&format!("plain MQTT on the TLS port {}: the client needs TLS switched on", broker.tls_port));
    let mut command = Command::new("mosquitto_pub");
    let ca = text(site.path("pki/ca.crt"));
    command.args(["-h", "localhost", "-p", &broker.plain_port.to_string(), "--cafile", &ca, "-t", "t", "-m", "x"]);
    let (code, _) = run_with(&mut command, b"");
    assert_ne!(code, Some(0));
    broker.wait_for(&format!("TLS on the plain port {}", broker.plain_port));
}

#[test]
fn another_identitys_client_id_is_refused() {
    let site = site();
    let broker = site.serve();
    let login = |name: &str| site.variable(name, "MQTT_PASSWORD");
    let (mut owner, answer) =
        Raw::connect(broker.plain_port, Version::V5, "shared", Some(("device1", &login("device1"))));
    assert_eq!(answer, "CONNACK");
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "shared", Some(("device2", &login("device2"))));
    assert_eq!(answer, "CONNACK 0x87");
    let (_, answer) = Raw::connect(broker.plain_port, Version::V311, "shared", Some(("device2", &login("device2"))));
    assert_eq!(answer, "CONNACK 0x87");
    broker.wait_for("the session belongs to another identity");
    owner.send(&[0xC0, 0]);
    assert_eq!(owner.packet().as_deref(), Some("PINGRESP"));
}

#[test]
fn publish_and_subscribe_outside_the_acl_are_refused() {
    let site = site();
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut raw, _) = Raw::connect(broker.plain_port, Version::V5, "c", Some(("device1", &password)));
    raw.send(b"\x32\x0b\x00\x05other\x00\x01\x00x");
    assert_eq!(raw.packet().as_deref(), Some("PUBACK #1 0x87"));
    // The first refusal of a connection has its line; the last line says how many there were.
    let (mut other, _) = Raw::connect(broker.plain_port, Version::V5, "d", Some(("device1", &password)));
    for _ in 0..3 {
        other.send(b"\x82\x0b\x00\x01\x00\x00\x05other\x01");
        assert_eq!(other.packet().as_deref(), Some("SUBACK #1 0x87"));
    }
    other.send(&[0xE0, 0]);
    broker.wait_for("device1 was refused 3 publishes and subscriptions in all");
    broker.wait_for("publish of device1 to \"other\" refused by the ACL");
    broker.wait_for("subscription of device1 to \"other\" refused by the ACL");
    // mosquitto_sub says so too.
    let mut command = mosquitto("mosquitto_sub", &site, &broker, "tls");
    command.args(["-t", "other", "-W", "5", "-V", "mqttv5"]);
    let (_, output) = run_with(&mut command, b"");
    assert!(
        output.contains("denied") || output.contains("not authorized") || output.contains("Not authorized"),
        "{output}"
    );
}

#[test]
fn wrong_passwords_are_throttled_but_not_for_who_lately_succeeded() {
    let site = site();
    site.edit("config/lockgate.yaml", "wrong-passwords-max: 5", "wrong-passwords-max: 2");
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let try_with =
        |name: &str, password: &str| Raw::connect(broker.plain_port, Version::V5, "c", Some((name, password))).1;
    assert_eq!(try_with("device1", &password), "CONNACK");
    for _ in 0..2 {
        assert_eq!(try_with("stranger", "guess"), "CONNACK 0x86");
    }
    assert_eq!(try_with("stranger", "guess"), "CONNACK 0x97");
    broker.wait_for("too many wrong passwords from its address");
    assert_eq!(try_with("device1", &password), "CONNACK");
}

#[test]
fn garbage_half_open_and_http_clients_end_at_the_gate() {
    let site = site();
    site.edit("config/lockgate.yaml", "connect-timeout: 10s", "connect-timeout: 1s");
    let broker = site.serve();
    let mut http = Raw::open(broker.plain_port, Version::V5);
    http.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(http.packet(), None);
    broker.wait_for("HTTP on the MQTT port");
    let mut garbage = Raw::open(broker.plain_port, Version::V5);
    garbage.send(&[0xE0, 0]);
    assert_eq!(garbage.packet(), None);
    broker.wait_for("the first packet is no CONNECT");
    let mut unknown = Raw::open(broker.plain_port, Version::V311);
    unknown.send(&[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 9, 2, 0, 0, 0, 0]);
    assert!(broker.wait_for("protocol level 9 is not supported").contains("0x84"));
    let mut slow = Raw::open(broker.plain_port, Version::V5);
    slow.send(&[0x10]);
    assert_eq!(slow.packet(), None);
    broker.wait_for("no CONNECT within 1 s");
    let mut large = Raw::open(broker.plain_port, Version::V5);
    large.send(&[0x10, 0xFF, 0xFF, 0x7F, 0, 4, b'M', b'Q', b'T', b'T', 5]);
    assert_eq!(large.packet().as_deref(), Some("CONNACK 0x95"));
    broker.wait_for("admission.connect-size-max");
    // An authentication method that nobody knows: 0x8C, [MQTT-4.12.0-1].
    let mut method = Raw::open(broker.plain_port, Version::V5);
    method.send(b"\x10\x13\x00\x04MQTT\x05\x02\x00\x00\x06\x15\x00\x03abc\x00\x00");
    assert_eq!(method.packet().as_deref(), Some("CONNACK 0x8c"));
    // An empty client id that wants its session kept: 3.1.1 [MQTT-3.1.3-8].
    let mut nameless = Raw::open(broker.plain_port, Version::V311);
    nameless.send(&[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 0, 0, 0, 0, 0]);
    assert_eq!(nameless.packet().as_deref(), Some("CONNACK 0x85"));
}
