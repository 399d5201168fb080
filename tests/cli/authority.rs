//! What becomes of certificates after their first day: renewal, revocation, lists.

use lockgate::codec::Version;
use lockgate::pki::{Authority, CertificateInfo, KeyType, RevocationList, ServerName};
use time::{Duration, OffsetDateTime};

use crate::mqtt::Raw;
use crate::site::{Site, run_with};

fn password(site: &Site, name: &str) -> String {
    site.variable(name, "MQTT_PASSWORD")
}

fn list(site: &Site) -> RevocationList {
    RevocationList::parse_all(site.text("pki/ca.crl").as_bytes()).unwrap().remove(0)
}

#[test]
fn a_server_certificate_is_renewed_beneath_connected_clients() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let secret = password(&site, "device1");
    let (mut connected, _) = Raw::connect(broker.plain_port, Version::V5, "stays", Some(("device1", &secret)));
    let info = || CertificateInfo::read(&site.path("pki/server.crt")).unwrap();
    let (first, key) = (info(), site.text("pki/server.key"));
    let said = site.ok(&["server", "renew", "--san", "broker.example"]);
    assert!(said.contains("broker.example") && said.contains("the running broker has taken it up"), "{said}");
    let second = info();
    let named = ServerName::Dns("broker.example".to_owned());
    assert!(second.names.contains(&named) && first.names.iter().all(|name| second.names.contains(name)));
    assert!(second.serial != first.serial && site.text("pki/server.key") != key);
    // What is served now; and nobody was dropped.
    let served = run_with(
        std::process::Command::new("openssl").args(["s_client", "-connect", &format!("127.0.0.1:{}", broker.tls_port)]),
        b"",
    );
    let shown =
        run_with(std::process::Command::new("openssl").args(["x509", "-noout", "-serial"]), served.1.as_bytes());
    assert!(shown.1.to_lowercase().contains(&second.serial_text()), "{}", shown.1);
    connected.send(&[0xC0, 0]);
    assert_eq!(connected.packet().as_deref(), Some("PINGRESP"));
    // The key may stay, a name may go.
    let key = site.text("pki/server.key");
    site.ok(&["server", "renew", "--keep-key", "--drop-san", "broker.example", "--days", "10"]);
    let third = info();
    assert!(!third.names.contains(&named) && third.public_key == second.public_key);
    assert_eq!(site.text("pki/server.key"), key);
    assert_eq!((third.not_after - third.not_before).whole_days(), 10);
    assert!(site.ok(&["server", "show"]).contains(&third.fingerprint));
    let json: serde_json::Value = serde_json::from_str(&site.ok(&["server", "show", "--json"])).unwrap();
    assert_eq!(json["days-left"], 9);
    let ledger = site.text("pki/ledger.jsonl");
    assert!(ledger.contains(&format!("\"renews\":\"{}\"", first.serial_text())), "{ledger}");
    assert!(
        site.fails(1, &["server", "renew", "--drop-san", "nobody.example"]).contains("does not name nobody.example")
    );
    assert!(site.fails(2, &["server", "renew", "--san", "a b"]).contains("--san \"a b\""));
    std::fs::remove_file(site.path("pki/ca.key")).unwrap();
    assert!(site.fails(1, &["server", "renew"]).contains("the CA's key is needed"));
    assert_eq!(info(), third);
}

#[test]
fn from_sixty_days_on_the_end_of_a_certificate_is_announced_with_the_command_to_type() {
    let site = Site::new(&[]);
    let now = OffsetDateTime::now_utc();
    let authority = Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), now).unwrap();
    let put = |days: u32| {
        let names = [ServerName::parse("localhost").unwrap()];
        let issued = authority.issue_server("test", &names, KeyType::EcdsaP256, days, now).unwrap();
        site.write("pki/server.crt", &issued.certificate_pem);
        site.write("pki/server.key", &issued.key_pem);
    };
    put(62);
    assert!(!site.ok(&["serve", "--check"]).contains("expires in"));
    put(59);
    assert!(site.ok(&["serve", "--check"]).contains("expires in 58 days"));
    let broker = site.serve();
    broker.wait_for("`lockgate server renew` makes a new one");
    assert!(site.ok(&["status"]).contains("`lockgate server renew` makes a new one"));
    site.ok(&["server", "renew", "--days", "300"]);
    assert!(!site.ok(&["status"]).contains("`lockgate server renew` makes a new one"));
}

#[test]
fn a_revoked_identity_is_out_at_once_and_stands_in_the_list() {
    let site = Site::new(&["--client", "thief", "--client", "other"]);
    let broker = site.serve();
    let secret = password(&site, "thief");
    let serial = CertificateInfo::read(&site.path("pki/clients/thief/client.crt")).unwrap().serial;
    let (mut connected, answer) = Raw::connect(broker.plain_port, Version::V5, "t", Some(("thief", &secret)));
    assert_eq!(answer, "CONNACK");
    let said = site.ok(&["client", "revoke", "thief", "--reason", "key-compromise"]);
    assert!(said.contains("1 certificate(s) admit no more") && said.contains("has taken it up"), "{said}");
    assert_eq!(connected.packet().as_deref(), Some("DISCONNECT 0x98"));
    assert_eq!(connected.packet(), None);
    let again = |secret: &str| Raw::connect(broker.plain_port, Version::V5, "t", Some(("thief", secret))).1;
    assert_eq!(again(&secret), "CONNACK 0x86");
    let other = password(&site, "other");
    assert_eq!(Raw::connect(broker.plain_port, Version::V5, "o", Some(("other", &other))).1, "CONNACK");
    // RFC 5280 section 5: the list is the CA's, says when and why, and each has a higher number.
    assert_eq!(list(&site).serials, std::slice::from_ref(&serial));
    let (ca, crl) = (site.path("pki/ca.crt"), site.path("pki/ca.crl"));
    let text = |arguments: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        command.args(["crl", "-noout", "-in"]).arg(&crl).arg("-CAfile").arg(&ca).args(arguments);
        run_with(&mut command, b"").1
    };
    let all = text(&["-text"]);
    assert!(all.contains("verify OK") && all.contains("Key Compromise"), "{all}");
    assert!(all.contains("Authority Key Identifier") && all.contains("CRL Number"), "{all}");
    let first = list(&site);
    site.ok(&["client", "remove", "other"]);
    let second = list(&site);
    assert!(second.is_newer_than(&first) && second.serials.len() == 2);
    let said = site.ok(&["ca", "crl", "--days", "7", "--out", site.path("copy.crl").to_str().unwrap()]);
    assert!(said.contains("2 revoked serial numbers"), "{said}");
    let third = list(&site);
    assert_eq!((third.next_update.unwrap() - third.this_update).whole_days(), 7);
    assert_eq!(site.text("copy.crl"), site.text("pki/ca.crl"));
    let shown = site.ok(&["ca", "show"]);
    assert!(shown.contains("2 revoked") && shown.contains("2 serial numbers"), "{shown}");
    // The name may begin anew; nobody else's was touched.
    site.ok(&["client", "add", "thief"]);
    assert_eq!(again(&password(&site, "thief")), "CONNACK");
    assert_eq!(again(&secret), "CONNACK 0x86");
    assert!(site.fails(1, &["client", "revoke", "nobody"]).contains("there is no nobody"));
    assert!(site.fails(2, &["client", "revoke", "thief", "--reason", "spite"]).contains("key-compromise"));
}

#[test]
fn without_the_ca_key_a_revocation_takes_effect_all_the_same() {
    let site = Site::new(&["--client", "thief"]);
    let broker = site.serve();
    let secret = password(&site, "thief");
    std::fs::rename(site.path("pki/ca.key"), site.path("offline.key")).unwrap();
    let said = site.ok(&["client", "revoke", "thief"]);
    assert!(said.contains("the revocation list is as it was") && said.contains("ca.key"), "{said}");
    assert_eq!(Raw::connect(broker.plain_port, Version::V5, "t", Some(("thief", &secret))).1, "CONNACK 0x86");
    assert!(!site.path("pki/ca.crl").exists());
    std::fs::rename(site.path("offline.key"), site.path("pki/ca.key")).unwrap();
    site.ok(&["ca", "crl"]);
    assert_eq!(list(&site).serials.len(), 1);
}

#[test]
fn a_list_that_this_broker_signs_is_signed_anew_before_its_time_is_over() {
    let site = Site::new(&["--self-renew"]);
    let now = OffsetDateTime::now_utc();
    let authority = Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), now).unwrap();
    let old = lockgate::pki::ListWanted { revoked: &[], before: None, days: 9, now: now - Duration::days(7) };
    site.write("pki/ca.crl", &authority.revocation_list(&old).unwrap());
    let before = list(&site);
    let broker = site.serve();
    broker.wait_for("the revocation list was signed anew");
    let after = list(&site);
    assert!(after.is_newer_than(&before) && after.next_update.unwrap() > now + Duration::days(8));
}

#[test]
fn a_list_is_served_and_fits_a_ca_that_was_made_elsewhere() {
    let site = Site::new(&[]);
    site.edit("config/lockgate.yaml", "  address: off", "  address: 127.0.0.1:0");
    // RFC 5280 section 5.2.1: OpenSSL's key identifiers are not ours.
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 99 -subj '/CN=elsewhere' \
                  -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt 2>/dev/null && chmod 600 ca.key \
                  && rm server.crt server.key";
    let shell = |script: &str| {
        run_with(std::process::Command::new("sh").args(["-ec", script]).current_dir(site.path("pki")), b"")
    };
    assert_eq!(shell(script).0, Some(0));
    site.init(&["--client", "device1"]);
    site.ok(&["ca", "crl"]);
    let broker = site.serve();
    let line = broker.wait_for("metrics and health on http://");
    let address = line.rsplit("http://").next().unwrap().trim_end_matches("/metrics").to_owned();
    let script = format!(
        "curl -sf http://{address}/ca.crl | openssl crl -inform DER -out served.crl\n\
         curl -sf http://{address}/ca.crt -o served.crt\n\
         openssl verify -crl_check -CAfile served.crt -CRLfile served.crl clients/device1/client.crt"
    );
    let (code, said) = shell(&script);
    assert!(code == Some(0) && said.contains("OK"), "{said}");
    // Other servers are not let down silently.
    site.ok(&["ca", "crl", "--days", "3"]);
    assert!(site.ok(&["status"]).contains("`lockgate ca crl` signs it anew"));
    // A damaged one is made anew.
    site.write("pki/ca.crl", "nothing");
    site.ok(&["ca", "crl"]);
    assert_eq!(list(&site).serials.len(), 0);
}

#[test]
fn the_ca_key_lies_under_a_passphrase_where_that_is_wanted() {
    let site = Site::new(&[]);
    let clear = site.text("pki/ca.key");
    site.write("secret", "open sesame\n");
    site.write("wrong", "open barley\n");
    for name in ["secret", "wrong"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(site.path(name), mode).unwrap();
    }
    site.ok(&["ca", "passphrase", "--passphrase-file", site.path("secret").to_str().unwrap()]);
    let sealed = site.text("pki/ca.key");
    assert!(sealed.contains("BEGIN ENCRYPTED PRIVATE KEY") && site.ok(&["ca", "show"]).contains("under a passphrase"));
    // RFC 5958, RFC 8018: others open it too.
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["pkey", "-in", "pki/ca.key", "-passin", "file:secret"]).current_dir(site.path(""));
    let (code, opened) = run_with(&mut openssl, b"");
    assert_eq!((code, opened.trim()), (Some(0), clear.trim()));
    // Nobody signs without it.
    let complaint = site.fails(1, &["client", "add", "pump7"]);
    assert!(complaint.contains("LOCKGATE_CA_PASSPHRASE_FILE"), "{complaint}");
    assert!(!site.path("pki/clients/pump7").exists());
    let with = |file: &str, arguments: &[&str]| {
        let mut command = crate::site::lockgate();
        command.args(arguments).arg("--dir").arg(site.path("")).env("LOCKGATE_CA_PASSPHRASE_FILE", site.path(file));
        run_with(&mut command, b"")
    };
    let (code, said) = with("wrong", &["client", "add", "pump7"]);
    assert!(code == Some(1) && said.contains("the passphrase is wrong"), "{said}");
    assert_eq!(with("secret", &["client", "add", "pump7"]).0, Some(0));
    // A broker that does not sign needs it not; one that does says so at once.
    let broker = site.serve();
    let secret = password(&site, "pump7");
    assert_eq!(Raw::connect(broker.plain_port, Version::V5, "p", Some(("pump7", &secret))).1, "CONNACK");
    drop(broker);
    site.edit("config/lockgate.yaml", "self-renew: false", "self-renew: true");
    site.serve().wait_for("LOCKGATE_CA_PASSPHRASE_FILE");
    site.edit("config/lockgate.yaml", "self-renew: true", "self-renew: false");
    site.edit("config/lockgate.yaml", "enrolment:\n  address: off", "enrolment:\n  address: 127.0.0.1:0");
    assert!(site.fails(1, &["serve"]).contains("LOCKGATE_CA_PASSPHRASE_FILE"));
    site.edit("config/lockgate.yaml", "enrolment:\n  address: 127.0.0.1:0", "enrolment:\n  address: off");
    // A new CA's key lies under the same; and it can be taken away.
    assert_eq!(with("secret", &["ca", "rotate"]).0, Some(0));
    assert!(
        site.text("pki/ca.key").contains("BEGIN ENCRYPTED") && site.text("pki/ca-old.key").contains("BEGIN ENCRYPTED")
    );
    let (code, said) = with("secret", &["ca", "passphrase", "--remove"]);
    assert!(code == Some(0) && said.contains("without a passphrase"), "{said}");
    assert!(site.text("pki/ca.key").contains("BEGIN PRIVATE KEY"));
    assert_eq!(site.text("pki/ca-old.key").trim(), clear.trim());
}
