//! `lockgate doctor`: it names the cause, and what mends it.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::clients::{bundle, free_port};
use crate::options::FILES;
use crate::own_tools::Running;
use crate::site::{Site, eventually, lockgate, run_with};
use crate::stand_in::shell;

/// Its exit code and what it found: severity and sentence, with what mends it.
fn examine(site: &Site, before: &[&str], arguments: &[&str]) -> (Option<i32>, Vec<(String, String)>) {
    let mut command = lockgate();
    command.args(before).args(arguments).arg("--json").current_dir(site.path(""));
    let (code, said) = run_with(&mut command, b"");
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    (
        code,
        findings
            .map(|one| (text(&one["severity"]), format!("{} | {}", text(&one["what"]), text(&one["mend"]))))
            .collect(),
    )
}

/// Each trouble of `lockgate run`, and the words that name it.
#[rustfmt::skip]
const NAMED: &[(&str, &str, i32, &str)] = &[
    ("expired-server", "tls", 3, "expired on"),
    ("not-yet-valid-server", "tls", 3, "is valid from"),
    ("wrong-host", "tls", 3, "certificate verify failed: the certificate does not name localhost: it is for other.invalid"),
    ("unknown-ca", "tls", 3, "certificate verify failed: it is of the CA CN=stranger"),
    ("self-signed", "tls", 3, "certificate verify failed: the server's certificate is signed by itself"),
    ("revoked-client", "mtls", 3, "it was revoked"),
    ("expired-client", "mtls", 3, "client.crt expired on"),
    ("bad-password", "tls", 3, "bad user name or password"),
    ("not-authorized", "tls", 3, "the ACL keeps this client out"),
    ("tls1.2-only", "tls", 1, "TLS 1.2 alone is spoken"),
    ("tls1.3-only", "tls", 0, "TLS 1.3 alone is spoken"),
    ("drop-puback", "tls", 3, "does not acknowledge messages"),
    ("duplicate-publish", "tls", 1, "come twice"),
    ("slow", "tls", 1, "slow: the broker took"),
    ("disconnect-after", "tls", 3, "the connection was cut in the middle"),
    ("server-busy", "tls", 3, "the broker is too busy"),
    ("quota-exceeded", "tls", 3, "every message is refused: a quota"),
    ("full-disk", "tls", 3, "its disk is full"),
    ("restart-after", "tls", 3, "it was restarted, or it crashed"),
];

#[test]
fn it_names_the_cause_of_each_trouble_and_finds_none_where_there_is_none() {
    let site = Site::empty();
    let own = env!("CARGO_BIN_EXE_lockgate");
    for level in ["tls", "mtls"] {
        let (code, findings) = examine(&site, &["run", "--level", level, "--", own, "doctor"], &[]);
        assert_eq!(code, Some(0), "{findings:?}");
        for qos in ["QoS 0: there and back in", "QoS 1: there", "QoS 2: there"] {
            assert!(findings.iter().any(|(severity, what)| severity == "good" && what.contains(qos)), "{findings:?}");
        }
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((trouble, level, exit, words)) =
                    NAMED.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let run = ["run", "--level", level, "--break", trouble, "--", own, "doctor"];
                    let (code, findings) = examine(&site, &run, &[]);
                    let named = findings.iter().find(|(_, what)| what.contains(words));
                    assert!(named.is_some() && code == Some(*exit), "{trouble}: {code:?} {findings:#?}");
                    let problems: Vec<_> = findings.iter().filter(|(severity, _)| severity == "problem").collect();
                    assert!(problems.iter().all(|(_, what)| !what.ends_with("| ")), "{trouble}: {problems:#?}");
                }
            });
        }
    });
}

#[test]
fn the_usual_list_of_troubles_is_told_apart() {
    let site = Site::new(&["--client", "device1", "--client-certs", "required"]);
    let broker = site.serve();
    let (plain, tls) = (broker.plain_port.to_string(), broker.tls_port.to_string());
    let ca = site.path("pki/ca.crt").to_str().unwrap().to_owned();
    let nobody = free_port().to_string();
    let secret = site.variable("device1", "MQTT_PASSWORD");
    let local = |port: &str| format!("localhost:{port}");
    for (arguments, words, mend) in [
        (vec![local(&nobody)], "connection refused", "lockgate status"),
        (vec!["no-such-host.invalid:1883".to_owned()], "cannot be resolved", "getent hosts"),
        (vec![local(&tls)], "TLS is spoken on port", "switch TLS on"),
        (vec![local(&plain), "--ca".to_owned(), ca.clone()], "plain MQTT is spoken on port", "dial the TLS port"),
        (vec![local(&tls), "--ca".to_owned(), ca.clone()], "client certificate", "--cert and --key"),
        (vec![local(&plain)], "the broker wants to know who comes", "lockgate client add"),
        (
            vec![local(&plain), "-u".to_owned(), "device1".to_owned(), "-P".to_owned(), "wrong".to_owned()],
            "bad user name or password",
            "lockgate client passwd device1",
        ),
    ] {
        let mut all = vec!["doctor"];
        all.extend(arguments.iter().map(String::as_str));
        let (code, findings) = examine(&site, &all, &[]);
        let named = findings.iter().find(|(severity, what)| severity == "problem" && what.contains(words));
        assert!(code == Some(3) && named.is_some_and(|(_, what)| what.contains(mend)), "{arguments:?}: {findings:#?}");
        // Where it would not be understood no password goes out.
        if words == "TLS is spoken on port" {
            assert!(findings.last().unwrap().1.contains(words), "{findings:#?}");
        }
    }
    // Without TLS it works, and that is said.
    let (code, findings) = examine(&site, &["doctor", &local(&plain), "-u", "device1", "-P", &secret], &[]);
    assert!(code == Some(0) && findings.iter().any(|(_, what)| what.contains("is without TLS")), "{findings:#?}");
    // With TLS, but below the level that it has to come at.
    site.ok(&["client", "add", "strict", "--min-level", "mtls"]);
    let secret = site.variable("strict", "MQTT_PASSWORD");
    let (code, findings) = examine(&site, &["doctor", &local(&plain), "-u", "strict", "-P", &secret], &[]);
    let named = findings.iter().any(|(_, what)| what.contains("min-level") && what.contains("client show strict"));
    assert!(code == Some(3) && named, "{findings:#?}");
    // A bundle with another's key, that others can read, and a CA that is none.
    let folder = bundle(&site, "device1", "mtls");
    shell(&site, &format!("cp pki/server.key {0}/client.key; chmod 644 {0}/client.key", folder.display()));
    let env = folder.join("mqtt.env").to_str().unwrap().to_owned();
    let (_, findings) = examine(&site, &["doctor", &local(&tls), "--env", &env], &[]);
    for words in ["does not belong to the certificate", "chmod 600"] {
        assert!(findings.iter().any(|(_, what)| what.contains(words)), "{words}: {findings:#?}");
    }
    let (_, findings) = examine(&site, &["doctor", &local(&tls), "--ca", "pki/server.crt"], &[]);
    assert!(findings.iter().any(|(_, what)| what.contains("is no CA")), "{findings:#?}");
    // Names on the command line are the command line's errors.
    let (code, said) = run_with(lockgate().args(["doctor", "localhost:x"]), b"");
    assert!(code == Some(2) && said.contains("is no HOST:PORT"), "{said}");
    for (line, words) in [
        (["doctor", "mqtts://localhost:1", "--json"], "say localhost:1"),
        (["doctor", "--topic", "a/#"], "is no topic"),
        (["doctor", "--env", "config/acl"], "there is no MQTT_HOST in it"),
        (["doctor", "--as", "nobody"], "there is no bundle of nobody"),
    ] {
        let (code, said) = run_with(lockgate().args(line).current_dir(site.path("")), b"");
        assert!(code == Some(2) && said.contains(words), "{said}");
    }
}

/// Who comes by a certificate alone is known by its name.
#[test]
fn a_client_that_may_only_write_below_its_name_is_well() {
    let site = Site::new(&["--client", "device1", "--acl", "own"]);
    let broker = site.serve();
    site.ok(&["client", "add", "bare", "--no-password"]);
    let (code, findings) = examine(&site, &["doctor", "--as", "bare", "-p", &broker.tls_port.to_string()], &[]);
    let note = findings.iter().any(|(_, what)| what.contains("below its own name (bare/lockgate-doctor)"));
    assert!(code == Some(0) && note, "{findings:#?}");
}

#[test]
fn a_mosquitto_with_the_certificates_of_a_guide_is_seen_through() {
    let site = Site::empty();
    shell(&site, FILES);
    // X.509 v1, and the same subject for CA and server, as guides have it.
    shell(
        &site,
        "openssl req -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=localhost 2>/dev/null
         openssl x509 -req -in v1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out v1.crt -days 30 2>/dev/null
         openssl req -newkey rsa:2048 -nodes -keyout same.key -out same.csr -subj /CN=ca 2>/dev/null
         openssl x509 -req -in same.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names -out same.crt -days 30 2>/dev/null
         chmod 644 *.key",
    );
    for (name, words) in [("v1", "X.509 version 1"), ("same", "have the same subject")] {
        let port = free_port();
        let conf = format!("{name}.conf");
        site.write(
            &conf,
            &format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\ncertfile {name}.crt\nkeyfile {name}.key\ncafile ca.crt\n"),
        );
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.args(["-c", &conf]).current_dir(site.path("")).stderr(Stdio::null());
        let _running = Running(command.spawn().unwrap());
        eventually("mosquitto", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let (code, findings) = examine(&site, &["doctor", &format!("localhost:{port}"), "--ca", "ca.crt"], &[]);
        assert!(code == Some(3) && findings.iter().any(|(_, what)| what.contains(words)), "{name}: {findings:#?}");
    }
}

#[test]
fn a_site_is_examined_without_a_broker() {
    let site = Site::new(&["--client", "device1"]);
    let dir = site.path("").to_str().unwrap().to_owned();
    let offline = || examine(&site, &["doctor", "--offline", "--dir", &dir], &[]);
    let (code, findings) = offline();
    assert_eq!(code, Some(0), "{findings:#?}");
    for words in
        ["all that it names can be used", "is good until", "no broker runs on this site", "open to this machine"]
    {
        assert!(findings.iter().any(|(_, what)| what.contains(words)), "{words}: {findings:#?}");
    }
    // Others can read the server's key, the bundle's key is another's, and plain MQTT is open to all.
    site.edit("config/lockgate.yaml", "address: loopback", "address: all");
    site.edit("config/lockgate.yaml", "port: 0", &format!("port: {}", free_port()));
    shell(&site, "chmod 644 pki/server.key; cp pki/server.key pki/clients/device1/client.key");
    let (code, findings) = offline();
    assert_eq!(code, Some(3));
    for (words, mend) in
        [("server.key", "chmod 600"), ("device1", "--new-key"), ("plain MQTT, open to", "address: loopback")]
    {
        let named = findings.iter().find(|(_, what)| what.contains(words) && what.contains(mend));
        assert!(named.is_some(), "{words}: {findings:#?}");
    }
    // For people: a line each, and the last one sums up.
    let (code, said) = run_with(lockgate().args(["doctor", "--offline", "--dir", &dir]), b"");
    assert!(code == Some(3) && said.contains("problem  ") && said.contains(" problem(s), "), "{said}");
    assert!(!said.contains('\u{1b}'), "colours are for terminals: {said}");
}
