use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use lockgate::codec::Version;

use crate::mqtt::Raw;
use crate::site::{Site, lockgate, run_with};

#[test]
fn sigterm_and_sigint_say_goodbye_and_exit_0() {
    for signal in ["TERM", "INT"] {
        let site = Site::new(&["--client", "device1"]);
        let mut broker = site.serve();
        let login = Some(("device1", &*site.variable("device1", "MQTT_PASSWORD")));
        let (mut new, _) = Raw::connect(broker.plain_port, Version::V5, "new", login);
        let (mut old, _) = Raw::connect(broker.plain_port, Version::V311, "old", login);
        let started = std::time::Instant::now();
        broker.signal(signal);
        // [MQTT-3.14.4-*]: 0x8B to those who can read it.
        assert_eq!(new.packet().as_deref(), Some("DISCONNECT 0x8b"));
        assert_eq!(new.packet(), None);
        assert_eq!(old.packet(), None);
        drop((new, old));
        assert_eq!(broker.wait(), Some(0), "{}", broker.log());
        assert!(started.elapsed().as_secs() < 10);
        assert!(!site.path("data/lockgate.sock").exists());
    }
}

#[test]
fn a_client_that_does_not_read_cannot_hold_up_the_end() {
    let site = Site::new(&["--client", "device1"]);
    let mut broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let login = Some(("device1", &*password));
    let (mut stalled, _) = Raw::connect(broker.plain_port, Version::V5, "stalled", login);
    stalled.send(b"\x82\x07\x00\x01\x00\x00\x01t\x00");
    assert_eq!(stalled.packet().as_deref(), Some("SUBACK #1 0"));
    let (mut publisher, _) = Raw::connect(broker.plain_port, Version::V5, "publisher", login);
    let mut publish = b"\x30\x84\x80\x20\x00\x01t\x00".to_vec();
    publish.resize(5 + 4 + 512 * 1024 - 1, 7);
    publish.truncate(4 + 524_292);
    for _ in 0..40 {
        publisher.send(&publish);
    }
    publisher.send(&[0xC0, 0]);
    assert_eq!(publisher.packet().as_deref(), Some("PINGRESP"));
    let started = std::time::Instant::now();
    broker.signal("TERM");
    assert_eq!(broker.wait(), Some(0));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn a_port_in_use_is_one_sentence_and_exit_code_1() {
    let site = Site::new(&[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    site.edit("config/lockgate.yaml", "port: 0", &format!("port: {port}"));
    for arguments in [&["serve"][..], &["serve", "--check"]] {
        let text = site.fails(1, arguments);
        assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("the port is in use"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let left =
        || std::fs::read_dir(site.path("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left(), [".gitignore"]);
    // A folder that was made for the attempt goes as well.
    std::fs::remove_dir_all(site.path("data")).unwrap();
    site.fails(1, &["serve"]);
    assert!(!site.path("data").exists());
}

#[test]
fn files_that_are_missing_or_loose_are_one_sentence_each() {
    let complaint = |change: fn(&Site)| {
        let site = Site::new(&["--client", "device1"]);
        change(&site);
        let text = site.fails(1, &["serve"]);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(site.fails(1, &["serve", "--check"]), text);
        text
    };
    let text = complaint(|site| std::fs::remove_file(site.path("pki/server.crt")).unwrap());
    assert!(text.contains("pki/server.crt: No such file"), "{text}");
    let text = complaint(|site| {
        std::fs::set_permissions(site.path("pki/server.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(site.path("pki/server.key"), Some(65_534), None).unwrap();
    });
    assert!(text.contains("chmod 600") && text.contains("pki/server.key"), "{text}");
    let text = complaint(|site| std::fs::remove_file(site.path("config/passwd")).unwrap());
    assert!(text.contains("config/passwd"), "{text}");
    let text = complaint(|site| {
        std::fs::copy(site.path("pki/ca.key"), site.path("pki/server.key")).unwrap();
    });
    assert!(text.contains("does not belong to the certificate"), "{text}");
    let text = complaint(|site| site.write("config/acl", "topics x\n"));
    assert!(text.contains("config/acl:1: "), "{text}");
    let text = complaint(|site| site.write("config/passwd", "# people\nalice\n"));
    assert!(text.contains("config/passwd:2: expected NAME:HASH"), "{text}");
    let text = complaint(|site| site.write("pki/ledger.jsonl", "{}\n"));
    assert!(text.contains("pki/ledger.jsonl:1: "), "{text}");
}

#[test]
fn a_bad_configuration_says_all_and_exits_with_2() {
    let site = Site::new(&[]);
    site.edit("config/lockgate.yaml", "queue-policy: drop-new", "queue-policy: drop-some");
    site.edit("config/lockgate.yaml", "level: info", "level: verbose");
    site.edit("config/lockgate.yaml", "sessions-max:", "session-max:");
    let text = site.fails(2, &["serve"]);
    assert!(text.contains("unknown key \"session-max\"; did you mean \"sessions-max\"?"), "{text}");
    assert!(text.contains("level is error, warn, info, debug or trace"), "{text}");
    assert!(text.contains("queue-policy is one of drop-new, drop-oldest, not \"drop-some\""), "{text}");
    assert!(text.contains("lockgate.yaml:") && text.contains(" | "), "{text}");
    // From nothing.
    let folder = tempfile::tempdir().unwrap();
    let output = lockgate().arg("serve").current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("make a site here with `lockgate init`"));
}

#[test]
fn the_configuration_is_found_by_flag_variable_and_place() {
    let site = Site::new(&[]);
    let check = |change: &dyn Fn(&mut std::process::Command)| {
        let mut command = lockgate();
        command.args(["serve", "--check"]);
        change(&mut command);
        command.output().unwrap().status.code()
    };
    let file = site.path("config/lockgate.yaml");
    assert_eq!(check(&|command| _ = command.arg("--config").arg(&file)), Some(0));
    assert_eq!(check(&|command| _ = command.env("LOCKGATE_CONFIG", &file).current_dir("/")), Some(0));
    assert_eq!(check(&|command| _ = command.current_dir(site.path(""))), Some(0));
    // A variable over the file, and one that is wrong.
    let bad = |command: &mut std::process::Command| {
        _ = command.current_dir(site.path("")).env("LOCKGATE__LIMITS__PACKET_SIZE_MAX", "big")
    };
    assert_eq!(check(&bad), Some(2));
}

#[test]
fn check_says_what_it_found() {
    let site = Site::new(&[]);
    site.edit("config/lockgate.yaml", "address: loopback", "address: 0.0.0.0");
    let said = site.ok(&["serve", "--check"]);
    assert!(said.contains("the ports are free") && said.contains("days left"), "{said}");
    assert!(said.contains("warning: listener 0.0.0.0:0 takes plain MQTT from the network"), "{said}");
    site.write("config/identities.yaml", "ghost:\n  min-level: tls\n");
    assert!(site.ok(&["serve", "--check"]).contains("there is no ghost"));
    site.write("config/identities.yaml", "");
    let _broker = site.serve();
    assert!(site.ok(&["serve", "--check"]).contains("a broker runs on this data folder"));
}

#[test]
fn two_brokers_on_one_data_folder_are_refused() {
    let site = Site::new(&[]);
    let _first = site.serve();
    let text = site.fails(1, &["serve"]);
    assert!(text.contains("another broker runs on the data folder"), "{text}");
    site.ok(&["status"]);
}

#[test]
fn after_a_kill_the_socket_is_taken_over() {
    let site = Site::new(&[]);
    let mut broker = site.serve();
    broker.signal("KILL");
    broker.wait();
    assert!(site.path("data/lockgate.sock").exists());
    assert!(site.fails(1, &["status"]).contains("no broker is running"));
    let _again = site.serve();
    site.ok(&["status"]);
}

#[test]
fn the_log_can_be_json_and_escapes_what_peers_send() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "format: human", "format: json");
    let broker = site.serve();
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "a\nb\u{1b}[31m", Some(("device1", "wrong\"}")));
    assert_eq!(answer, "CONNACK 0x86");
    let line = broker.wait_for("wrong password for");
    let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(parsed["message"].as_str().unwrap().contains("a\\nb\\u{1b}[31m"), "{line}");
    assert_eq!(parsed["level"], "WARN");
    // No name is there twice in one line.
    let password = site.variable("device1", "MQTT_PASSWORD");
    Raw::connect(broker.plain_port, Version::V5, "c", Some(("device1", &password)));
    let line = broker.wait_for("connected as client");
    assert_eq!(line.matches("\"level\":").count(), 1, "{line}");
}

#[test]
fn systemd_is_told_of_readiness_reload_watchdog_and_end() {
    let site = Site::new(&[]);
    let path = site.path("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::site::PATIENCE)).unwrap();
    // As systemd starts it: the watchdog's variables name the process.
    let mut command = std::process::Command::new("sh");
    let script = "export WATCHDOG_PID=$$; exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_lockgate"), "serve", "--dir"]).arg(site.path(""));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let mut broker = crate::site::Broker::start(command, site.path(""));
    let wait_for = |wanted: &str| {
        let mut buffer = [0; 512];
        loop {
            let count = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted} does not come: {error}"));
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.lines().any(|line| line.starts_with(wanted)) {
                return text;
            }
        }
    };
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    broker.signal("HUP");
    assert!(wait_for("RELOADING=1").contains("MONOTONIC_USEC="));
    wait_for("READY=1");
    site.ok(&["reload"]);
    wait_for("RELOADING=1");
    broker.signal("TERM");
    wait_for("STOPPING=1");
    assert_eq!(broker.wait(), Some(0));
}

#[test]
fn with_self_renewal_an_old_server_certificate_is_replaced_and_swapped() {
    use lockgate::pki::{Authority, CertificateInfo, KeyType, ServerName};
    let site = Site::new(&["--self-renew", "--key-type", "rsa-2048"]);
    let now = time::OffsetDateTime::now_utc();
    let authority = Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), now).unwrap();
    let names = [ServerName::parse("localhost").unwrap(), ServerName::parse("only.example").unwrap()];
    let old = authority.issue_server("test", &names, KeyType::Rsa2048, 10, now - time::Duration::days(8)).unwrap();
    site.write("pki/server.crt", &old.certificate_pem);
    site.write("pki/server.key", &old.key_pem);
    let broker = site.serve();
    broker.wait_for("the server certificate was renewed");
    broker.wait_for("reloaded");
    let new = CertificateInfo::read(&site.path("pki/server.crt")).unwrap();
    assert!(new.not_after > old.info.not_after && new.serial != old.info.serial);
    // With the names and the kind of key that it had.
    assert_eq!((new.names, new.key_type), (names.to_vec(), Some(KeyType::Rsa2048)));
    assert!(site.text("pki/ledger.jsonl").lines().last().unwrap().contains("only.example"));
}

#[test]
fn a_missing_address_family_is_logged_and_not_fatal() {
    let site = Site::new(&[]);
    // A network of its own, with IPv6 switched off.
    let script = format!(
        "ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1 2>/dev/null || \
         ip -6 addr flush dev lo; exec {} serve --dir {}",
        env!("CARGO_BIN_EXE_lockgate"),
        site.path("").display()
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["-rn", "sh", "-c", &script]);
    let broker = crate::site::Broker::start(command, site.path(""));
    broker.wait_for("one address family is missing here");
    broker.wait_for("is ready");
}

#[test]
fn the_variables_that_kubernetes_sets_are_not_ours() {
    let site = Site::new(&[]);
    let mut command = lockgate();
    command.args(["serve", "--check", "--dir"]).arg(site.path(""));
    command.env("LOCKGATE_PORT", "tcp://10.0.0.1:1883").env("LOCKGATE_SERVICE_HOST", "10.0.0.1");
    assert!(command.output().unwrap().status.success());
}

#[test]
fn a_listener_may_let_anybody_in_and_another_only_by_certificate() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "allow-anonymous: false", "allow-anonymous: true");
    site.edit("config/lockgate.yaml", "identity: default", "identity: cn");
    site.edit("config/lockgate.yaml", "connections-max: 100000", "connections-max: 1");
    let broker = site.serve();
    let (kept, answer) = Raw::connect(broker.plain_port, Version::V5, "nobody", None);
    assert_eq!(answer, "CONNACK");
    broker.wait_for("anonymous connected as client \"nobody\"");
    // A second one finds no place: closed, unanswered.
    let (_, answer) = Raw::connect(broker.plain_port, Version::V5, "second", None);
    assert_eq!(answer, "closed");
    broker.wait_for("turned away: the listener's connections-max is reached");
    drop(kept);
    let password = site.variable("device1", "MQTT_PASSWORD");
    let mut command = std::process::Command::new("mosquitto_pub");
    command.args([
        "-h",
        "localhost",
        "-p",
        &broker.tls_port.to_string(),
        "-t",
        "t",
        "-m",
        "x",
        "-u",
        "device1",
        "-P",
        &password,
    ]);
    command.arg("--cafile").arg(site.path("pki/ca.crt"));
    assert_ne!(crate::site::run_with(&mut command, b"").0, Some(0));
    broker.wait_for("this listener takes the identity from a client certificate, and it sent none");
}

#[test]
fn a_flood_is_summed_up_by_kind_and_does_not_hide_the_others() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "wrong-passwords-max: 5", "wrong-passwords-max: 1000");
    let mut broker = site.serve();
    for _ in 0..45 {
        Raw::connect(broker.plain_port, Version::V5, "c", Some(("device1", "wrong")));
    }
    Raw::connect(broker.plain_port, Version::V5, "c", None);
    broker.wait_for("does not allow anonymous clients");
    broker.signal("TERM");
    assert_eq!(broker.wait(), Some(0));
    let log = broker.log();
    let lines = log.lines().filter(|line| line.contains("wrong password for")).count();
    assert!(lines < 45, "{lines}");
    let summary = broker.wait_for("more lines of this kind");
    assert!(summary.contains(&format!("{} more", 45 - lines)) && summary.contains("wrong-password"), "{summary}");
}

#[test]
fn started_as_root_a_broker_reads_keys_binds_ports_and_becomes_its_user_for_good() {
    if run_with(std::process::Command::new("id").arg("-u"), b"").1.trim() != "0" {
        eprintln!("NOT RUN: this needs root");
        return;
    }
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "user: none", "user: nobody");
    let broker = site.serve();
    broker.wait_for("running as nobody");
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).unwrap();
    let ids = |key: &str| {
        status.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().skip(1).collect::<Vec<_>>()
    };
    let nobody = run_with(std::process::Command::new("id").args(["-u", "nobody"]), b"").1.trim().to_owned();
    assert!(ids("Uid:").iter().all(|id| *id == nobody) && !ids("Groups:").contains(&"0"), "{status}");
    // Its state is its own; the keys it cannot even read any more, and it says what that means.
    use std::os::unix::fs::MetadataExt;
    for path in ["data", "data/store"] {
        assert_eq!(std::fs::metadata(site.path(path)).unwrap().uid().to_string(), nobody, "{path}");
    }
    broker.wait_for("nobody cannot read");
    let secret = site.variable("device1", "MQTT_PASSWORD");
    let answer =
        crate::mqtt::Raw::connect(broker.plain_port, lockgate::codec::Version::V5, "c", Some(("device1", &secret))).1;
    assert_eq!(answer, "CONNACK");
    assert!(site.fails(1, &["reload"]).contains("Permission denied"));
    drop(broker);
    site.edit("config/lockgate.yaml", "user: nobody", "user: nobody-at-all");
    assert!(site.fails(1, &["serve"]).contains("cannot become nobody-at-all (user): there is no such user here"));
}
