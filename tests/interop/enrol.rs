//! Devices that get their certificates by a token: with our own client, and with openssl and curl alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use lockgate::pki::CertificateInfo;

use crate::clients::publishes;
use crate::site::{Broker, Site, lockgate, run_with};

/// A site where devices enrol, and where that is.
fn served() -> (Site, Broker, String) {
    let site = Site::new(&[]);
    site.edit("config/lockgate.yaml", "enrolment:\n  address: off", "enrolment:\n  address: 127.0.0.1:0");
    let broker = site.serve();
    let line = broker.wait_for("devices enrol at https://127.0.0.1:");
    let port = line.rsplit_once(':').unwrap().1.trim().to_owned();
    (site, broker, format!("https://localhost:{port}"))
}

fn token(site: &Site, name: &str, more: &[&str]) -> String {
    site.ok(&[&["enroll", "token", "--name", name], more].concat()).trim().to_owned()
}

fn enroll(url: &str, out: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    run_with(lockgate().args(["enroll", "--url", url, "--out"]).arg(out).args(arguments), b"")
}

fn shell(folder: &Path, script: &str) -> (Option<i32>, String) {
    run_with(Command::new("sh").args(["-ec", script]).current_dir(folder), b"")
}

fn info(folder: &Path) -> CertificateInfo {
    CertificateInfo::read(&folder.join("client.crt")).unwrap()
}

#[test]
fn a_device_enrols_renews_and_its_key_never_leaves_it() {
    let (site, broker, url) = served();
    let out = site.path("etc/pump7");
    let text = token(&site, "pump7", &[]);
    let secret = text.rsplit('.').nth(1).unwrap().to_owned();
    assert!(!site.text("pki/tokens.json").contains(&secret));
    let (code, said) = enroll(&url, &out, &["--token", &text]);
    assert!(code == Some(0) && said.contains("pump7 has a certificate"), "{said}\n{}", broker.log());
    broker.wait_for("pump7 was enrolled");
    let first = info(&out);
    assert_eq!((first.common_name.as_deref(), (first.not_after - first.not_before).whole_days()), (Some("pump7"), 90));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(out.join("client.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let environment = std::fs::read_to_string(out.join("mqtt.env")).unwrap();
    assert!(environment.contains("MQTT_HOST=localhost\n") && environment.contains("MQTT_KEYFILE="), "{environment}");
    // It may connect at once; the site has the certificate and not the key.
    assert!(publishes(&broker, &out), "{}", broker.log());
    assert!(site.path("pki/clients/pump7/client.crt").exists() && !site.path("pki/clients/pump7/client.key").exists());
    assert!(site.text("pki/ledger.jsonl").lines().last().unwrap().contains("\"key-origin\":\"request\""));
    // Renewed when it is time, with a new key, by the certificate that it has.
    let (code, said) = enroll(&url, &out, &["--renew"]);
    assert!(code == Some(0) && said.contains("nothing to do"), "{said}");
    assert_eq!(info(&out), first);
    let (code, said) = enroll(&url, &out, &["--renew", "--force"]);
    assert!(code == Some(0) && said.contains("a new key"), "{said}\n{}", broker.log());
    let second = info(&out);
    assert!(second.serial != first.serial && second.public_key != first.public_key);
    let renews = format!("\"renews\":\"{}\"", first.serial_text());
    assert!(site.text("pki/ledger.jsonl").lines().last().unwrap().contains(&renews));
    assert!(publishes(&broker, &out));
    // What is there is not overwritten.
    let (code, said) = enroll(&url, &out, &["--token", &token(&site, "pump7", &[])]);
    assert!(code == Some(1) && said.contains("is there already"), "{said}");
    // Revoked, it neither connects nor renews.
    site.ok(&["client", "revoke", "pump7"]);
    assert!(!publishes(&broker, &out));
    let (code, said) = enroll(&url, &out, &["--renew", "--force"]);
    assert!(code == Some(1) && said.contains("is not current in the ledger"), "{said}");
    assert_eq!(info(&out), second);
}

#[test]
fn a_used_expired_or_foreign_token_gets_nothing_and_is_logged() {
    let (site, broker, url) = served();
    let once = token(&site, "pump7", &[]);
    assert_eq!(enroll(&url, &site.path("a"), &["--token", &once]).0, Some(0));
    let refused = |folder: &str, token: &str| {
        let (code, said) = enroll(&url, &site.path(folder), &["--token", token]);
        assert_eq!(code, Some(1), "{said}");
        assert!(!site.path(folder).exists(), "nothing is left of {folder}");
        said
    };
    assert!(refused("b", &once).contains("the token was used already"));
    broker.wait_for("enrolment refused: pump7: the token was used already");
    // For another name.
    let other = token(&site, "pump8", &[]).replacen("pump8", "pump9", 1);
    assert!(refused("c", &other).contains("is not for this name"));
    // Its time is over.
    let late = token(&site, "late", &["--ttl", "1m"]);
    let tokens = site.text("pki/tokens.json");
    let expires = tokens.lines().rfind(|line| line.contains("expires")).unwrap().to_owned();
    site.write("pki/tokens.json", &tokens.replace(&expires, "    \"expires\": \"2026-01-01T00:00:00Z\","));
    assert!(refused("d", &late).contains("the token has expired"));
    assert!(
        refused("d", &format!("late.{}.{}", "x".repeat(32), late.rsplit('.').next().unwrap())).contains("not known")
    );
    // A revoked identity's tokens are gone with it.
    site.ok(&["client", "add", "gone", "--no-cert"]);
    let gone = token(&site, "gone", &[]);
    site.ok(&["client", "revoke", "gone"]);
    assert!(refused("e", &gone).contains("is not known here"));
    // Five wrong ones: this address has to wait, with a right one too.
    let good = token(&site, "good", &[]);
    assert!(refused("f", &good).contains("too many wrong tokens"));
    let (code, said) = enroll(&url, &site.path("g"), &["--token", "x"]);
    assert!(code == Some(2) && said.contains("it is no token"), "{said}");
    let (code, said) = enroll("http://localhost:1", &site.path("g"), &["--token", &good]);
    assert!(code == Some(2) && said.contains("https://HOST:PORT is expected"), "{said}");
}

#[test]
fn another_broker_is_found_out_before_anything_is_sent_to_it() {
    let (_impostor, impostors_broker, url) = served();
    let (site, _broker, _) = served();
    let (code, said) = enroll(&url, &site.path("x"), &["--token", &token(&site, "pump7", &[])]);
    assert!(code == Some(1) && said.contains("nothing was sent to it"), "{said}");
    assert!(!site.path("x").exists() && !impostors_broker.log().contains("enrolment"));
}

#[test]
fn the_lines_of_the_readme_work_as_written() {
    let (site, broker, url) = served();
    let folder = site.path("device");
    std::fs::create_dir(&folder).unwrap();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let from = readme.find("curl -sk https://broker.example:8443/ca.crt").unwrap();
    let lines = &readme[from..from + readme[from..].find("```").unwrap()];
    let lines = lines.replace("https://broker.example:8443", &url).replace("TOKEN", &token(&site, "pump7", &[]));
    let (code, said) = shell(&folder, &lines);
    let ca = CertificateInfo::read(&site.path("pki/ca.crt")).unwrap();
    assert!(code == Some(0) && said.contains(&ca.fingerprint), "{said}\n{}", broker.log());
    let made = CertificateInfo::read(&folder.join("pump7.crt")).unwrap();
    assert_eq!(made.common_name.as_deref(), Some("pump7"));
}

#[test]
fn openssl_and_curl_do_the_same_by_est() {
    let (site, broker, url) = served();
    let folder = site.path("device");
    std::fs::create_dir(&folder).unwrap();
    let text = token(&site, "pump7", &[]);
    // RFC 7030 section 4.1: the CA's certificates, to be compared with what is known of them.
    let (code, said) = shell(
        &folder,
        &format!(
            "curl -sSfk {url}/.well-known/est/cacerts | openssl base64 -d | openssl pkcs7 -inform DER -print_certs -out ca.crt\n\
             openssl x509 -in ca.crt -noout -fingerprint -sha256"
        ),
    );
    let ca = CertificateInfo::read(&site.path("pki/ca.crt")).unwrap();
    assert!(code == Some(0) && said.contains(&ca.fingerprint), "{said}");
    let request = |name: &str, more: &str| {
        shell(
            &folder,
            &format!(
                "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -subj /CN=pump7 {more} -outform DER -out {name}.der 2>/dev/null\n\
                 openssl base64 -in {name}.der -out {name}.b64"
            ),
        )
    };
    // RFC 7030 section 4.2.1
    let post = |file: &str, more: &str, path: &str| {
        shell(
            &folder,
            &format!(
                "curl -sS --cacert ca.crt {more} -H 'Content-Type: application/pkcs10' --data-binary @{file}.b64 -w '%{{http_code}}' \
                 -D head -o answer {url}/.well-known/est/{path}"
            ),
        )
        .1
    };
    let login = format!("-u 'pump7:{text}'");
    assert_eq!(request("greedy", "-addext basicConstraints=CA:TRUE").0, Some(0));
    assert_eq!(post("greedy", &login, "simpleenroll"), "400");
    assert!(std::fs::read_to_string(folder.join("answer")).unwrap().contains("it asks to be a CA"));
    assert_eq!(request("client", "").0, Some(0));
    assert_eq!(post("client", "", "simpleenroll"), "401");
    assert!(std::fs::read_to_string(folder.join("head")).unwrap().to_lowercase().contains("www-authenticate: basic"));
    // The token is still good: nothing was issued for it.
    assert_eq!(post("client", &login, "simpleenroll"), "200", "{}", broker.log());
    assert!(
        std::fs::read_to_string(folder.join("head")).unwrap().contains("application/pkcs7-mime; smime-type=certs-only")
    );
    let (code, said) = shell(
        &folder,
        "openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out client.crt; openssl verify -CAfile ca.crt client.crt",
    );
    assert!(code == Some(0) && said.contains("OK"), "{said}");
    assert!(publishes(&broker, &folder));
    // RFC 7030 section 4.2.2
    assert_eq!(request("next", "").0, Some(0));
    assert_eq!(post("next", "", "simplereenroll"), "401");
    assert_eq!(post("next", "--cert client.crt --key client.key", "simplereenroll"), "200", "{}", broker.log());
    // And the plain form: a device's first line, with jq nowhere needed.
    let again = token(&site, "pump7", &[]);
    let csr = std::fs::read_to_string(folder.join("next.b64")).unwrap();
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{csr}-----END CERTIFICATE REQUEST-----\n");
    let body = serde_json::json!({ "name": "pump7", "token": again, "csr": pem });
    std::fs::write(folder.join("body"), body.to_string()).unwrap();
    let (code, said) = shell(&folder, &format!("curl -sSf --cacert ca.crt --data-binary @body {url}/enroll"));
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(code == Some(0) && answer["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"), "{said}");
}

#[test]
fn what_is_no_request_is_answered_and_a_broker_without_the_key_says_so() {
    let (site, mut broker, url) = served();
    let folder = site.path("");
    let ask = |arguments: &str, path: &str| {
        let script = format!("curl -sS -k {arguments} -o /dev/null -w '%{{http_code}}' {url}{path}");
        shell(&folder, &script).1
    };
    assert_eq!(ask("", "/nothing"), "404");
    assert_eq!(ask("", "/.well-known/est/csrattrs"), "204");
    assert_eq!(ask("-d nonsense", "/enroll"), "400");
    assert_eq!(ask("-d nonsense", "/.well-known/est/simpleenroll"), "401");
    assert_eq!(ask("-d x -u nobody:nothing", "/.well-known/est/simpleenroll"), "401");
    std::fs::write(folder.join("large"), vec![b'A'; 900_000]).unwrap();
    assert_eq!(ask("--data-binary @large -u a:b", "/.well-known/est/simpleenroll"), "413");
    broker.signal("TERM");
    assert_eq!(broker.wait(), Some(0));
    let key: PathBuf = site.path("pki/ca.key");
    std::fs::rename(&key, site.path("away")).unwrap();
    assert!(site.fails(1, &["serve"]).contains("enrolment signs with the CA's key"));
    std::fs::rename(site.path("away"), key).unwrap();
    site.edit("config/lockgate.yaml", "enrolment:\n  address: 127.0.0.1:0", "enrolment:\n  address: off");
    assert!(site.fails(1, &["enroll", "token", "--name", "pump7"]).contains("nobody could use a token"));
}

/// A command that waits for the site's lock, which the test has.
fn waiting(command: &mut Command) -> std::process::Child {
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // Until it has come to the lock; too early only makes the test weaker.
    std::thread::sleep(std::time::Duration::from_millis(700));
    child
}

#[test]
fn who_is_revoked_while_it_renews_gets_nothing() {
    let (site, broker, url) = served();
    let out = site.path("pump7");
    assert_eq!(enroll(&url, &out, &["--token", &token(&site, "pump7", &[])]).0, Some(0));
    let serial = info(&out).serial_text();
    let lock = lockgate::pki::Lock::acquire(&site.path("config")).unwrap();
    let renewal = waiting(lockgate().args(["enroll", "--url", &url, "--renew", "--force", "--out"]).arg(&out));
    let at = time::OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    let revoked = lockgate::pki::Event::Revoked { at, serial, reason: lockgate::pki::Reason::KeyCompromise };
    let ledger = site.text("pki/ledger.jsonl");
    site.write("pki/ledger.jsonl", &(ledger.clone() + &lockgate::pki::Ledger::lines(&[revoked])));
    drop(lock);
    let output = renewal.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is not current in the ledger"), "{said}\n{}", broker.log());
    assert_eq!(site.text("pki/ledger.jsonl").lines().count(), ledger.lines().count() + 1);
}

#[test]
fn what_is_issued_is_taken_up_though_the_device_hangs_up_or_another_file_is_broken() {
    let (site, broker, url) = served();
    let folder = site.path("device");
    std::fs::create_dir(&folder).unwrap();
    let lock = lockgate::pki::Lock::acquire(&site.path("config")).unwrap();
    drop(lock);
    let text = token(&site, "pump7", &[]);
    shell(
        &folder,
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout client.key -subj /CN=pump7 -out csr 2>/dev/null",
    );
    let lock = lockgate::pki::Lock::acquire(&site.path("config")).unwrap();
    let script =
        format!("curl -sk --max-time 1 -u pump7:{text} --data-binary @csr {url}/.well-known/est/simpleenroll || true");
    assert_eq!(shell(&folder, &script).1, "");
    drop(lock);
    broker.wait_for("pump7 was enrolled");
    // A file that has nothing to do with it is broken: the certificate is the device's all the same.
    let text = token(&site, "pump8", &[]);
    site.write("config/identities.yaml", "pump8: [");
    let (code, said) = enroll(&url, &site.path("pump8"), &["--token", &text]);
    assert_eq!(code, Some(0), "{said}");
    broker.wait_for("has not taken up the certificate of pump8");
}

#[test]
fn a_token_is_withdrawn_with_its_name_and_enrolment_ends_with_a_reload() {
    let (site, broker, url) = served();
    let unused = token(&site, "fresh", &[]);
    let said = site.ok(&["client", "revoke", "fresh"]);
    assert!(said.contains("1 token(s) for its enrolment are withdrawn"), "{said}");
    assert!(enroll(&url, &site.path("fresh"), &["--token", &unused]).1.contains("is not known here"));
    let text = token(&site, "late", &[]);
    site.edit("config/lockgate.yaml", "enrolment:\n  address: 127.0.0.1:0", "enrolment:\n  address: off");
    site.ok(&["reload"]);
    let (code, said) = enroll(&url, &site.path("late"), &["--token", &text]);
    assert!(code == Some(1) && said.contains("enrolment is switched off"), "{said}\n{}", broker.log());
}
