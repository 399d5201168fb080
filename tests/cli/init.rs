use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::site::{Site, lockgate, run_with};

fn mode(site: &Site, path: &str) -> u32 {
    std::fs::metadata(site.path(path)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_site_is_made_with_its_modes() {
    let site = Site::new(&["--client", "device1", "--user", "alice"]);
    for folder in ["config", "pki", "data", "pki/clients", "pki/clients/device1"] {
        assert_eq!(mode(&site, folder), 0o700, "{folder}");
    }
    let secrets = ["pki/ca.key", "pki/server.key", "config/passwd", "config/lockgate.yaml", "config/acl"];
    let bundle = ["pki/clients/device1/client.key", "pki/clients/device1/mqtt.env", "pki/clients/alice/mqtt.env"];
    for secret in secrets.iter().chain(&bundle) {
        assert_eq!(mode(&site, secret), 0o600, "{secret}");
    }
    for certificate in ["pki/ca.crt", "pki/server.crt", "pki/clients/device1/client.crt", "pki/clients/device1/ca.crt"]
    {
        assert_eq!(mode(&site, certificate), 0o644, "{certificate}");
    }
    assert!(!site.path("pki/clients/alice/client.crt").exists());
    let passwords = site.text("config/passwd");
    assert_eq!(passwords.lines().filter(|line| line.contains(":$argon2id$")).count(), 2);
    assert!(!passwords.contains(&site.variable("device1", "MQTT_PASSWORD")));
}

#[test]
fn every_certificate_is_accepted_by_openssl_and_python_in_their_strict_modes() {
    for kind in ["ecdsa-p256", "rsa-2048", "rsa-3072", "ed25519"] {
        let site = Site::new(&["--client", "device1", "--key-type", kind]);
        let ca = site.path("pki/ca.crt");
        for (purpose, certificate) in
            [("sslserver", "pki/server.crt"), ("sslclient", "pki/clients/device1/client.crt"), ("any", "pki/ca.crt")]
        {
            let mut command = Command::new("openssl");
            command.args(["verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose, "-CAfile"]);
            let (code, text) = run_with(command.arg(&ca).arg(site.path(certificate)), b"");
            assert_eq!(code, Some(0), "{kind} {certificate}: {text}");
        }
        let broker = site.serve();
        let script = format!(
            "import socket, ssl\nc = ssl.create_default_context(cafile={ca:?})\nc.verify_flags |= ssl.VERIFY_X509_STRICT\nc.load_cert_chain({crt:?}, {key:?})\nwith c.wrap_socket(socket.create_connection(('127.0.0.1', {port})), server_hostname='localhost') as s:\n    print(s.version())\n",
            crt = site.path("pki/clients/device1/client.crt"),
            key = site.path("pki/clients/device1/client.key"),
            port = broker.tls_port,
        );
        let (code, text) = run_with(Command::new("python3").args(["-c", &script]), b"");
        assert!(code == Some(0) && text.contains("TLSv1.3"), "{kind}: {text}");
    }
}

#[test]
fn run_again_it_overwrites_nothing_and_adds_what_is_new() {
    let site = Site::new(&["--client", "device1"]);
    let files = [
        "pki/ca.crt",
        "pki/ca.key",
        "pki/server.crt",
        "config/lockgate.yaml",
        "config/acl",
        "pki/clients/device1/mqtt.env",
    ];
    let before: Vec<String> = files.iter().map(|file| site.text(file)).collect();
    let said = site.init(&["--client", "device1", "--client", "device2", "--acl", "own"]);
    assert!(
        said.contains("Existed, and was not changed:")
            && said.contains("client device1")
            && said.contains("device2: certificate, password"),
        "{said}"
    );
    assert!(said.contains("--acl had no effect"), "{said}");
    for (file, text) in files.iter().zip(before) {
        assert!(site.text(file) == text, "{file}");
    }
    assert_eq!(site.text("config/passwd").lines().filter(|line| !line.starts_with('#')).count(), 2);
    // Once more: nothing at all.
    let passwords = site.text("config/passwd");
    site.init(&["--client", "device1", "--client", "device2"]);
    assert_eq!(site.text("config/passwd"), passwords);
}

#[test]
fn json_says_what_was_made() {
    let site = Site::new(&[]);
    let said: serde_json::Value = serde_json::from_str(&site.init(&["--json", "--client", "d9"])).unwrap();
    assert_eq!(said["clients"][0]["name"], "d9");
    assert!(said["existed"].as_array().unwrap().len() > 4, "{said}");
    assert!(said["listeners"][0]["open-to"].as_str().unwrap().starts_with("this machine"), "{said}");
}

#[test]
fn passwords_of_people_come_from_standard_input() {
    let site = Site::new(&[]);
    let mut command = lockgate();
    command.args(["init", "--user", "alice", "--user", "bob", "--password-stdin", "--dir"]).arg(site.path(""));
    let (code, text) = run_with(&mut command, b"for alice\nfor bob\n");
    assert_eq!(code, Some(0), "{text}");
    // A password that somebody knows is written nowhere in clear.
    assert!(!site.text("pki/clients/alice/mqtt.env").contains("MQTT_PASSWORD"));
    let broker = site.serve();
    use lockgate::codec::Version;
    let (_, answer) = crate::mqtt::Raw::connect(broker.plain_port, Version::V5, "c", Some(("bob", "for bob")));
    assert_eq!(answer, "CONNACK");
    let (_, answer) = crate::mqtt::Raw::connect(broker.plain_port, Version::V5, "c", Some(("bob", "for alice")));
    assert_eq!(answer, "CONNACK 0x86");
}

#[test]
fn inconsistent_sites_are_one_clear_sentence_each() {
    let complaint = |change: fn(&Site)| {
        let site = Site::new(&["--client", "device1"]);
        change(&site);
        let output = lockgate().args(["init", "--dir"]).arg(site.path("")).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let text = complaint(|site| {
        std::fs::copy(site.path("pki/server.key"), site.path("pki/ca.key")).unwrap();
    });
    assert!(text.contains("the CA key does not belong to the CA certificate"), "{text}");
    let text = complaint(|site| {
        std::fs::copy(site.path("pki/server.crt"), site.path("pki/ca.crt")).unwrap();
        std::fs::copy(site.path("pki/server.key"), site.path("pki/ca.key")).unwrap();
    });
    assert!(text.contains("the CA certificate is not one"), "{text}");
    let text = complaint(|site| std::fs::remove_file(site.path("pki/server.key")).unwrap());
    assert!(text.contains("server.crt exists and") && text.contains("server.key does not"), "{text}");
    let text = complaint(|site| {
        std::fs::copy(site.path("pki/ca.key"), site.path("pki/server.key")).unwrap();
    });
    assert!(text.contains("this key does not belong to"), "{text}");
    let text = complaint(|site| {
        std::fs::set_permissions(site.path("pki/ca.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    });
    assert!(text.contains("chmod 600"), "{text}");
    let text = complaint(|site| site.write("pki/server.crt", "nonsense"));
    assert!(text.contains("no certificate in it"), "{text}");
}

#[test]
fn expired_ca_and_server_are_told() {
    let site = Site::new(&[]);
    let now = time::OffsetDateTime::now_utc();
    use lockgate::pki::{Authority, KeyType, ServerName};
    let past = now - time::Duration::days(30);
    let (_, ca) = Authority::create("old", KeyType::EcdsaP256, 10, past).unwrap();
    let (live, _) = Authority::create("live", KeyType::EcdsaP256, 10, now).unwrap();
    let names = [ServerName::parse("localhost").unwrap()];
    let server = live.issue_server("old", &names, KeyType::EcdsaP256, 5, past).unwrap();
    let (crt, key) = (site.text("pki/ca.crt"), site.text("pki/ca.key"));
    site.write("pki/ca.crt", &ca.certificate_pem);
    site.write("pki/ca.key", &ca.key_pem);
    let run = || {
        let output = lockgate().args(["init", "--dir"]).arg(site.path("")).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run().contains("the CA certificate expired on"));
    site.write("pki/ca.crt", &crt);
    site.write("pki/ca.key", &key);
    site.write("pki/server.crt", &server.certificate_pem);
    site.write("pki/server.key", &server.key_pem);
    assert!(run().contains("the server certificate expired on"));
    assert!(site.fails(1, &["serve"]).contains("the server certificate expired on"));
}

#[test]
fn names_and_values_that_cannot_be_are_refused_before_anything_is_made() {
    for arguments in [
        &["--client", "../x"][..],
        &["--client", "a/b"],
        &["--client", "x", "--client", "x"],
        &["--client", "x", "--user", "x"],
        &["--san", "not a name"],
        &["--days", "398"],
        &["--plain-port", "5", "--tls-port", "5"],
        &["--key-type", "rsa-1024"],
        &["--client", ""],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output =
            lockgate().args(["init", "--dir"]).arg(folder.path().join("site")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!folder.path().join("site").exists(), "{arguments:?}");
    }
    // A path that not every reader of mqtt.env reads alike.
    let folder = tempfile::tempdir().unwrap();
    let output =
        lockgate().args(["init", "--client", "x", "--dir"]).arg(folder.path().join("my site")).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("MQTT_CA_CERTS") && text.contains("' '"), "{text}");
    assert!(!folder.path().join("my site/pki").exists());
}

#[test]
fn killed_at_any_moment_a_site_is_mended_by_init() {
    // The order of steps is tested one by one in pki::files; here the process is really killed.
    let mut unfinished = 0;
    for round in 0..25u64 {
        let folder = tempfile::tempdir().unwrap();
        let init = || {
            let mut command = lockgate();
            command
                .args(["init", "--client", "device1", "--client", "device2", "--plain-port", "0", "--tls-port", "0"])
                .arg("--dir")
                .arg(folder.path());
            command
        };
        let mut child = init().stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 + round * 600));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        unfinished += usize::from(!finished);
        let check = || lockgate().args(["serve", "--check", "--dir"]).arg(folder.path()).output().unwrap();
        let before = check();
        let output = init().output().unwrap();
        assert!(output.status.success(), "{round}: {}", String::from_utf8_lossy(&output.stderr));
        let after = check();
        assert!(after.status.success(), "{round}: {}", String::from_utf8_lossy(&after.stderr));
        if finished {
            assert!(before.status.success());
        }
        let leftovers = Command::new("find")
            .arg(folder.path())
            .args(["-name", "*staged*", "-o", "-name", "*journal*"])
            .output()
            .unwrap();
        assert!(leftovers.stdout.is_empty(), "{}", String::from_utf8_lossy(&leftovers.stdout));
    }
    assert!(unfinished > 3, "{unfinished}");
}

#[test]
fn a_half_made_site_is_refused_until_init_mends_it() {
    let site = Site::new(&["--client", "device1"]);
    // As a kill between the commit and the last rename leaves it.
    std::fs::rename(site.path("pki/server.key"), site.path("pki/.server.key.lockgate-staged")).unwrap();
    site.write("config/.lockgate-journal", "{\"files\":[\"pki/server.key\"],\"removals\":[]}");
    let text = site.fails(1, &["serve"]);
    assert!(text.contains("half made; run `lockgate init` to mend it"), "{text}");
    let said = site.init(&[]);
    assert!(said.contains("an interrupted change was found and finished"), "{said}");
    site.ok(&["serve", "--check"]);
}

#[test]
fn in_a_git_checkout_secrets_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| Command::new("git").args(arguments).current_dir(folder.path()).output().unwrap();
    git(&["init", "-q"]);
    let output = lockgate().args(["init", "--client", "device1", "--dir"]).arg(folder.path()).output().unwrap();
    assert!(output.status.success());
    let untracked = git(&["status", "--porcelain", "--untracked-files=all"]);
    let untracked = String::from_utf8(untracked.stdout).unwrap();
    for secret in ["passwd", "ca.key", "server.key", "mqtt.env", "client.key", "ledger"] {
        assert!(!untracked.contains(secret), "{untracked}");
    }
    assert!(untracked.contains("config/acl"), "{untracked}");
}

#[test]
fn a_system_site_has_its_own_user_and_roots_ca_key() {
    // In mount and user namespaces of its own: /etc, /var/lib and /run are this test's.
    let folder = tempfile::tempdir().unwrap();
    for name in ["etc", "lib"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let script = format!(
        "set -e\nmount -t tmpfs t /var/lib\ncp -a /etc/passwd /etc/group /etc/shadow /etc/gshadow {base}/etc/ 2>/dev/null || true\n\
         cp -aL /etc/login.defs /etc/default {base}/etc/ 2>/dev/null || true\nmount --bind {base}/etc /etc\n\
         {binary} init --system --yes --client device1 >/dev/null\n\
         stat -c '%U %a %n' /etc/lockgate /etc/lockgate/passwd /etc/lockgate/pki /etc/lockgate/pki/ca.key /etc/lockgate/pki/server.key /var/lib/lockgate\n\
         grep -c '^lockgate:' /etc/passwd\n",
        base = folder.path().display(),
        binary = env!("CARGO_BIN_EXE_lockgate"),
    );
    // A second user id is needed to give files away: real root, in a mount namespace.
    let is_root = String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout).unwrap().trim() == "0";
    let flags = if is_root { "-m" } else { "-rm" };
    if !is_root {
        eprintln!("not root: the user lockgate cannot be made here; only root can give files away");
        return;
    }
    let (code, text) = run_with(Command::new("unshare").args([flags, "sh", "-c", &script]), b"");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        text,
        "lockgate 700 /etc/lockgate\nlockgate 600 /etc/lockgate/passwd\nlockgate 700 /etc/lockgate/pki\n\
         root 600 /etc/lockgate/pki/ca.key\nlockgate 600 /etc/lockgate/pki/server.key\nlockgate 700 /var/lib/lockgate\n1\n"
    );
}
