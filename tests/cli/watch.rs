//! Files that change beneath a running broker, as certbot and Kubernetes change them.

use lockgate::codec::Version;
use lockgate::pki::{Authority, KeyType, ServerName};
use time::OffsetDateTime;

use crate::mqtt::Raw;
use crate::site::{Site, eventually, run_with};

fn renamed_over(site: &Site, below: &str, text: &str) {
    let staged = format!("{below}.new");
    site.write(&staged, text);
    std::fs::set_permissions(site.path(&staged), std::fs::metadata(site.path(below)).unwrap().permissions()).unwrap();
    std::fs::rename(site.path(&staged), site.path(below)).unwrap();
}

fn served_serial(port: u16) -> String {
    let mut command = std::process::Command::new("openssl");
    let (_, chain) = run_with(command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]), b"");
    run_with(std::process::Command::new("openssl").args(["x509", "-noout", "-serial"]), chain.as_bytes()).1
}

#[test]
fn a_certificate_that_is_renamed_over_is_served_and_a_bad_one_changes_nothing() {
    let site = Site::new(&["--client", "device1"]);
    let now = OffsetDateTime::now_utc();
    let authority = Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), now).unwrap();
    let broker = site.serve();
    let secret = site.variable("device1", "MQTT_PASSWORD");
    let (mut connected, _) = Raw::connect(broker.plain_port, Version::V5, "stays", Some(("device1", &secret)));
    let before = served_serial(broker.tls_port);
    let names = [ServerName::parse("localhost").unwrap()];
    let issued = authority.issue_server("test", &names, KeyType::EcdsaP256, 300, now).unwrap();
    // The certificate alone does not fit the key.
    renamed_over(&site, "pki/server.crt", &issued.certificate_pem);
    broker.wait_for("not reloaded, all is as it was");
    assert_eq!(served_serial(broker.tls_port), before);
    // It is said once, not at each look.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    assert_eq!(broker.log().matches("not reloaded, all is as it was").count(), 1);
    renamed_over(&site, "pki/server.key", &issued.key_pem);
    eventually("the new certificate is served", || {
        served_serial(broker.tls_port).to_lowercase().contains(&issued.info.serial_text())
    });
    connected.send(&[0xC0, 0]);
    assert_eq!(connected.packet().as_deref(), Some("PINGRESP"));
}

#[test]
fn passwords_and_the_acl_are_read_anew_when_they_change() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let secret = site.variable("device1", "MQTT_PASSWORD");
    let (mut connected, _) = Raw::connect(broker.plain_port, Version::V5, "d", Some(("device1", &secret)));
    let acl = site.text("config/acl");
    renamed_over(&site, "config/acl", "user device1\ntopic read nothing\n");
    broker.wait_for("files of this site have changed");
    eventually("the ACL holds", || {
        // PUBLISH at QoS 1.
        connected.send(&[0x32, 8, 0, 1, b't', 0, 1, 0, b'x', b'y']);
        connected.packet().as_deref() == Some("PUBACK #1 0x87")
    });
    renamed_over(&site, "config/acl", &acl);
    // Whoever is gone from the password file and has no certificate is out.
    site.ok(&["client", "add", "app", "--no-cert"]);
    let app = site.variable("app", "MQTT_PASSWORD");
    let (mut app_connected, answer) = Raw::connect(broker.plain_port, Version::V5, "a", Some(("app", &app)));
    assert_eq!(answer, "CONNACK");
    let without: String = site
        .text("config/passwd")
        .lines()
        .filter(|line| !line.starts_with("app:"))
        .map(|line| format!("{line}\n"))
        .collect();
    renamed_over(&site, "config/passwd", &without);
    assert_eq!(app_connected.packet().as_deref(), Some("DISCONNECT 0x98"));
    assert_eq!(Raw::connect(broker.plain_port, Version::V5, "a", Some(("app", &app))).1, "CONNACK 0x86");
}

#[test]
fn the_configuration_is_taken_up_when_somebody_says_so_and_not_before() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    site.edit("config/lockgate.yaml", "allow-anonymous: false", "allow-anonymous: true");
    let acl = site.text("config/acl");
    renamed_over(&site, "config/acl", &(acl.clone() + "# more\n"));
    eventually("the files are read", || broker.log().matches("reloaded").count() == 1);
    let anonymous = || Raw::connect(broker.plain_port, Version::V5, "a", None).1;
    assert_ne!(anonymous(), "CONNACK");
    // One that is broken does not keep the files from being read either.
    site.edit("config/lockgate.yaml", "name:", "nmae:");
    assert!(site.fails(2, &["reload"]).contains("nmae"));
    site.edit("config/lockgate.yaml", "nmae:", "name:");
    renamed_over(&site, "config/acl", &acl);
    eventually("the files are read again", || broker.log().matches("INFO reloaded").count() == 2);
    assert_ne!(anonymous(), "CONNACK");
    site.ok(&["reload"]);
    assert_eq!(anonymous(), "CONNACK");
}
