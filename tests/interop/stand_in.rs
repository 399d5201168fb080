//! `lockgate mosquitto`: Mosquitto's configuration, files and tools, as they are.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::clients::{free_port, python};
use crate::site::{Broker, Site, eventually, lockgate, run_with};

pub(crate) fn shell(site: &Site, script: &str) -> String {
    let (code, said) = run_with(Command::new("sh").args(["-ec", script]).current_dir(site.path("")), b"");
    assert_eq!(code, Some(0), "{script}: {said}");
    said
}

/// Starts it on `m.conf`, and waits until its ports take connections.
pub(crate) fn serve(site: &Site, ports: &[u16]) -> Broker {
    let mut command = lockgate();
    command.args(["mosquitto", "-c", "m.conf"]).current_dir(site.path(""));
    let broker = Broker::start(command, site.path(""));
    for port in ports {
        eventually("a listener", || TcpStream::connect(("127.0.0.1", *port)).is_ok());
    }
    broker
}

/// Mosquitto's own tool, with whatever it is told; its exit code and what it said.
pub(crate) fn tool(site: &Site, line: &str) -> (Option<i32>, String) {
    run_with(Command::new("sh").args(["-c", line]).current_dir(site.path("")), b"")
}

/// The lines that nearly every guide has, for the files that it makes: a v1 server certificate without a name among them.
pub(crate) const GUIDE: &str = "openssl genrsa -out ca.key 2048
    openssl req -new -x509 -days 1826 -key ca.key -out ca.crt -subj '/O=Home/CN=Home CA'
    openssl genrsa -out server.key 2048; openssl req -new -out server.csr -key server.key -subj '/O=Home/CN=localhost'
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 360
    openssl genrsa -out client.key 2048; openssl req -new -out client.csr -key client.key -subj '/CN=client'
    printf 'basicConstraints=CA:FALSE' > ext
    openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile ext -out client.crt -days 360
    mosquitto_passwd -c -b passwd alice secret; mosquitto_passwd -b -H sha512 passwd 'bob b' other";

#[test]
fn a_typical_guide_runs_unchanged_with_the_files_that_it_makes() {
    let site = Site::empty();
    shell(&site, GUIDE);
    let (plain, tls) = (free_port(), free_port());
    let folder = site.path("").display().to_string();
    site.write(
        "m.conf",
        &format!(
            "user root\nlistener {plain}\nlistener {tls}\ncafile {folder}/ca.crt\ncertfile {folder}/server.crt\nkeyfile {folder}/server.key\n\
             require_certificate true\nallow_anonymous false\npassword_file {folder}/passwd\nlog_dest file {folder}/m.log\n\
             log_type error\nlog_type warning\nlog_type notice\nlog_type information\n"
        ),
    );
    let broker = serve(&site, &[plain, tls]);
    let publish = |more: &str| tool(&site, &format!("mosquitto_pub -t t -m m -q 1 {more}"));
    assert_eq!(publish(&format!("-p {plain} -u alice -P secret -i me -k 33")).0, Some(0));
    // The older kind of hash, and a name that is none of ours.
    assert_eq!(publish(&format!("-p {plain} -u 'bob b' -P other -V 5")).0, Some(0));
    assert!(publish(&format!("-p {plain} -u alice -P wrong")).1.contains("bad user name or password"));
    assert_ne!(publish(&format!("-p {plain}")).0, Some(0));
    let files = "--cafile ca.crt --insecure";
    // As guides make it, without extensions: X.509 version 1.
    shell(
        &site,
        "openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out v1.crt -days 360; openssl x509 -in v1.crt -noout -text | grep 'Version: 1 '",
    );
    let pair = "--cert v1.crt --key client.key";
    assert_eq!(publish(&format!("-p {tls} {files} {pair} -u alice -P secret")).0, Some(0));
    // A certificate opens the door, and is no name.
    assert_ne!(publish(&format!("-p {tls} {files} {pair}")).0, Some(0));
    assert_ne!(publish(&format!("-p {tls} {files} -u alice -P secret")).0, Some(0));
    // A will, subscribers and a request with its response, by the three tools.
    let script = format!(
        "mosquitto_sub -p {plain} -u alice -P secret -t gone -C 1 > will & sub=$!; sleep 0.5
         mosquitto_sub -p {plain} -u alice -P secret -t never -i mortal --will-topic gone --will-payload bye & mortal=$!; sleep 0.5
         kill -KILL $mortal; wait $sub; grep bye will
         mosquitto_sub -p {plain} -V 5 -u alice -P secret -t ask -C 1 -F '%R' > topic & sub=$!; sleep 0.5
         (for i in $(seq 50); do test -s topic && break; sleep 0.1; done; mosquitto_pub -p {plain} -V 5 -u alice -P secret -t \"$(cat topic)\" -m answer) &
         timeout 10 mosquitto_rr -p {plain} -V 5 -u alice -P secret -t ask -e back/1 -m question"
    );
    let (_, said) = tool(&site, &script);
    assert!(said.contains("bye") && said.trim_end().ends_with("answer") && site.text("topic") == "back/1\n", "{said}");
    // What people look for.
    let log = site.text("m.log");
    for words in [
        format!(" on port {plain}."),
        "New connection from 127.0.0.1:".to_owned(),
        " as me (p2, c1, k33, u'alice').".to_owned(),
        "Client me disconnected.".to_owned(),
        "Client mortal closed its connection.".to_owned(),
        "2 password(s) have hashes of old kinds".to_owned(),
        "Config loaded from m.conf.".to_owned(),
    ] {
        assert!(log.contains(&words), "{words}: {log}");
    }
    let stamped = |line: &str| line.split_once(": ").is_some_and(|(time, _)| time.parse::<u64>().is_ok());
    assert!(log.lines().all(stamped), "{log}");
    // logrotate: the file is moved away, and comes anew.
    std::fs::rename(site.path("m.log"), site.path("m.log.1")).unwrap();
    shell(&site, "mosquitto_passwd -b passwd carol new");
    broker.signal("HUP");
    eventually("a new log file", || site.path("m.log").exists());
    eventually("the new password", || publish(&format!("-p {plain} -u carol -P new")).0 == Some(0));
    for signal in ["USR1", "USR2"] {
        broker.signal(signal);
    }
    eventually("the lines of both signals", || site.text("m.log").contains("asked to save: nothing is kept"));
}

#[test]
fn debian_s_own_configuration_runs_unchanged() {
    if run_with(Command::new("id").arg("-u"), b"").1.trim() != "0" {
        eprintln!("NOT RUN: this needs root, to become the user mosquitto");
        return;
    }
    let site = Site::empty();
    let binary = env!("CARGO_BIN_EXE_lockgate");
    // In a network and mounts of its own, since it names 1883 and fixed folders; called as Mosquitto is.
    let script = format!(
        "ip link set lo up; ln -s {binary} mosquitto
         for folder in /var/lib/mosquitto /var/log/mosquitto /run/mosquitto; do mkdir -p $folder; mount -t tmpfs tmpfs $folder; chown mosquitto $folder; done
         go() {{ ./mosquitto -c /etc/mosquitto/mosquitto.conf & broker=$!; for i in $(seq 100); do mosquitto_pub -t up -n 2>/dev/null && return; sleep 0.1; done; exit 9; }}
         go; mosquitto_sub -i away -c -q 1 -t kept -E; mosquitto_pub -q 1 -r -t kept -m there; mosquitto_pub -q 1 -t kept -m waiting
         test \"$(cat /run/mosquitto/mosquitto.pid)\" = $broker; grep -q '^Uid:.*0' /proc/$broker/status && echo ROOT
         kill -KILL $broker; wait $broker || true; go
         timeout 10 mosquitto_sub -i away -c -q 1 -t kept -C 2; timeout 10 mosquitto_sub -t kept -C 1
         kill $broker; wait $broker; test ! -e /run/mosquitto/mosquitto.pid; ls -l /var/log/mosquitto /var/lib/mosquitto; cat /var/log/mosquitto/mosquitto.log"
    );
    let (code, said) =
        run_with(Command::new("unshare").args(["-mn", "bash", "-ec", &script]).current_dir(site.path("")), b"");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.matches("there").count() >= 2 && said.contains("waiting"), "{said}");
    assert!(said.contains("Starting in local only mode") && said.contains("lockgate"), "{said}");
}

#[test]
fn called_by_their_names_the_tools_are_mosquitto_s() {
    let site = Site::empty();
    let binary = env!("CARGO_BIN_EXE_lockgate");
    shell(&site, &format!("ln -s {binary} mosquitto_passwd; ln -s {binary} mosquitto; printf '# people\\n' > passwd"));
    shell(
        &site,
        "./mosquitto_passwd -b passwd alice one; ./mosquitto_passwd -H sha512-pbkdf2 -I 101 -b passwd bob two",
    );
    let text = site.text("passwd");
    assert!(text.starts_with("# people\nalice:$argon2id$") && text.contains("\nbob:$7$101$"), "{text}");
    shell(
        &site,
        "./mosquitto_passwd -D passwd alice; printf 'carol:plain\\n' >> passwd; ./mosquitto_passwd -H sha512 -U passwd",
    );
    let text = site.text("passwd");
    assert!(!text.contains("alice") && text.contains("carol:$6$") && text.contains("bob:$7$101$"), "{text}");
    for (line, what) in [
        ("./mosquitto_passwd -b passwd a:b x", "must not contain the ':'"),
        ("./mosquitto_passwd -D passwd nobody", "User nobody not found"),
        ("./mosquitto_passwd -b nowhere/passwd a x", "Unable to open password file nowhere/passwd"),
        ("./mosquitto_passwd -c -D passwd a", "cannot be used together"),
    ] {
        let (code, said) = tool(&site, line);
        assert!(code == Some(1) && said.contains(what) && said.starts_with("Error: "), "{line}: {said}");
    }
    assert_eq!(site.text("passwd"), text);
    // Exit codes that scripts know.
    site.write("bad.conf", "listener 1883\nfoo bar\n");
    let (code, said) = tool(&site, "./mosquitto -c bad.conf");
    assert_eq!(
        (code, said.as_str()),
        (Some(3), "Error: Unknown configuration variable 'foo'\nError found at bad.conf:2.\n")
    );
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    site.write("taken.conf", &format!("listener {} 127.0.0.1\nuser root\n", taken.local_addr().unwrap().port()));
    assert_eq!(tool(&site, "./mosquitto -c taken.conf").0, Some(1));
    assert_eq!(tool(&site, "./mosquitto -c taken.conf --test-config").0, Some(0));
    assert_eq!(tool(&site, "./mosquitto -c").0, Some(3));
    assert_eq!(tool(&site, "./mosquitto -h").0, Some(0));
}

#[test]
fn a_websocket_listener_of_mosquitto_s_serves_paho() {
    let site = Site::empty();
    let web = free_port();
    site.write("m.conf", &format!("user root\nlistener {web} 127.0.0.1\nprotocol websockets\nallow_anonymous true\n"));
    let _broker = serve(&site, &[web]);
    site.write("env", "MQTT_HOST=127.0.0.1\nMQTT_USE_TLS=false\n");
    let mut command = python();
    command.arg(format!("{}/tests/interop/scenario.py", env!("CARGO_MANIFEST_DIR"))).arg(site.path("env"));
    let (code, said) = run_with(command.args(["5", &web.to_string(), "plain", "ws"]), b"");
    assert!(code == Some(0) && said.ends_with("ok\n"), "{said}");
}

#[test]
fn behind_a_proxy_the_client_is_who_the_proxy_says() {
    let site = Site::empty();
    let door = free_port();
    site.write(
        "m.conf",
        &format!("user root\nlistener {door} 127.0.0.1\nenable_proxy_protocol 2\nallow_anonymous true\n"),
    );
    let broker = serve(&site, &[door]);
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\x00\x02\x07\x7f\0\0\x01\x04\xd2\x07\x5b";
    for (header, address) in
        [(&b"PROXY TCP4 192.0.2.9 127.0.0.1 1111 1883\r\n"[..], "192.0.2.9:1111"), (v2, "192.0.2.7:1234")]
    {
        // At once, and in two pieces.
        for cut in [header.len(), 9] {
            let mut stream = TcpStream::connect(("127.0.0.1", door)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(&header[..cut]).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            stream.write_all(&[&header[cut..], V4].concat()).unwrap();
            let mut connack = [0; 4];
            stream.read_exact(&mut connack).unwrap();
            assert_eq!(connack, [0x20, 2, 0, 0]);
        }
        broker.wait_for(&format!("New client connected from {address} as a (p2"));
    }
    // Who does not say it is not let in.
    let mut stream = TcpStream::connect(("127.0.0.1", door)).unwrap();
    stream.write_all(V4).unwrap();
    broker.wait_for("it does not begin as a proxy does");
}

#[test]
fn what_the_broker_says_of_itself_is_below_sys_and_is_not_kept() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "sys-interval: none", "sys-interval: 1s");
    let broker = site.serve();
    let secret = site.variable("device1", "MQTT_PASSWORD");
    let login = format!("-p {} -u device1 -P '{secret}' -V 5", broker.plain_port);
    let read = |topic: &str| {
        let (code, said) = tool(&site, &format!("timeout 10 mosquitto_sub {login} -t '{topic}' -C 1"));
        assert_eq!(code, Some(0), "{topic}: {said}");
        said.trim().to_owned()
    };
    assert!(read("$SYS/broker/version").starts_with("lockgate version "));
    assert!(read("$SYS/broker/uptime").ends_with(" seconds"));
    let days: i64 = read("$SYS/broker/certificates/ca/days-left").parse().unwrap();
    assert!((3650..=3653).contains(&days), "{days}");
    for _ in 0..3 {
        assert_eq!(tool(&site, &format!("mosquitto_pub {login} -t t -m 12345 -q 1")).0, Some(0));
    }
    eventually("three publishes", || read("$SYS/broker/publish/messages/received") == "3");
    eventually("their bytes", || read("$SYS/broker/publish/bytes/received") == "15");
    eventually("a load", || read("$SYS/broker/load/publish/received/1min").parse::<f64>().unwrap() > 0.0);
    let script = format!(
        "timeout 5 mosquitto_sub {login} -t never & sleep 2.5; timeout 10 mosquitto_sub {login} -t '$SYS/broker/clients/connected' -C 1"
    );
    assert_eq!(tool(&site, &script).1.trim(), "1");
    // `#` is not for it; nobody else may say such things; and none of it is on the disk.
    assert_eq!(tool(&site, &format!("timeout 2 mosquitto_sub {login} -t '#' -C 1")).0, Some(124));
    let (_, said) = tool(&site, &format!("mosquitto_pub {login} -t '$SYS/broker/version' -m lie -q 1"));
    assert!(said.contains("ot authori"), "{said}");
    drop(broker);
    let stats = site.ok(&["store", "stats", "--json"]);
    assert!(!stats.contains("$SYS"), "{stats}");
    site.edit("config/lockgate.yaml", "sys-interval: 1s", "sys-interval: none");
    let broker = site.serve();
    let login = format!("-p {} -u device1 -P '{secret}'", broker.plain_port);
    assert_eq!(tool(&site, &format!("timeout 2 mosquitto_sub {login} -t '$SYS/#' -C 1")).0, Some(124));
}

/// What a client sends, and by what name; the same to both brokers.
struct Exchange {
    name: &'static str,
    sends: &'static [&'static [u8]],
    /// What Mosquitto 2.0.11 answers otherwise, and why ours is what it is.
    differs: Option<&'static str>,
}

const V4: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a";
const V5: &[u8] = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a";
const V3: &[u8] = b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a";

const MATRIX: &[Exchange] = &[
    Exchange { name: "connect 3.1", sends: &[V3], differs: None },
    Exchange { name: "connect 3.1.1", sends: &[V4], differs: None },
    Exchange { name: "connect 5", sends: &[V5], differs: None },
    Exchange { name: "ping", sends: &[V4, b"\xc0\x00"], differs: None },
    Exchange { name: "level 9", sends: &[b"\x10\x0d\x00\x04MQTT\x09\x02\x00\x3c\x00\x01a"], differs: None },
    Exchange { name: "another protocol", sends: &[b"\x10\x0d\x00\x04MQXX\x04\x02\x00\x3c\x00\x01a"], differs: None },
    Exchange { name: "empty id, kept", sends: &[b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x3c\x00\x00"], differs: None },
    Exchange {
        name: "subscribe 0 1 2",
        sends: &[V4, b"\x82\x0e\x00\x01\x00\x01a\x00\x00\x01b\x01\x00\x01c\x02"],
        differs: None,
    },
    Exchange { name: "unsubscribe", sends: &[V4, b"\xa2\x05\x00\x02\x00\x01a"], differs: None },
    Exchange { name: "publish QoS 1", sends: &[V4, b"\x32\x06\x00\x01t\x00\x07x"], differs: None },
    Exchange { name: "publish QoS 2", sends: &[V4, b"\x34\x06\x00\x01t\x00\x07x", b"\x62\x02\x00\x07"], differs: None },
    Exchange { name: "publish to nobody, 5", sends: &[V5, b"\x32\x07\x00\x01t\x00\x07\x00x"], differs: None },
    Exchange {
        name: "to itself",
        sends: &[V4, b"\x82\x06\x00\x01\x00\x01s\x00", b"\x30\x04\x00\x01shi\x00"],
        differs: None,
    },
    Exchange { name: "second CONNECT", sends: &[V4, V4], differs: None },
    Exchange {
        name: "denied by the ACL",
        sends: &[V5, b"\x82\x0c\x00\x01\x00\x00\x06secret\x01", b"\x32\x0c\x00\x06secret\x00\x07\x00x"],
        differs: Some("PUBACK says in words too why"),
    },
    Exchange {
        name: "retained, read and cleared",
        sends: &[
            V4,
            b"\x31\x05\x00\x01rhi",
            b"\x82\x06\x00\x01\x00\x01r\x01",
            b"\x31\x03\x00\x01r",
            b"\x82\x06\x00\x02\x00\x01r\x01",
        ],
        differs: None,
    },
    Exchange {
        name: "a subscription with an identifier, 5",
        sends: &[V5, b"\x82\x09\x00\x01\x02\x0b\x07\x00\x01i\x00", b"\x30\x06\x00\x01i\x00hi"],
        differs: None,
    },
    Exchange {
        name: "a shared subscription, 5",
        sends: &[V5, b"\x82\x10\x00\x01\x00\x00\x0a$share/g/w\x00", b"\x30\x06\x00\x01w\x00hi"],
        differs: None,
    },
    Exchange {
        name: "no local, retain as published, 5",
        sends: &[
            V5,
            b"\x82\x0b\x00\x01\x00\x00\x01n\x04\x00\x01m\x08",
            b"\x30\x06\x00\x01n\x00hi",
            b"\x30\x06\x00\x01m\x00hi",
        ],
        differs: None,
    },
    Exchange {
        name: "a topic alias, 5",
        sends: &[
            V5,
            b"\x82\x07\x00\x01\x00\x00\x01k\x00",
            b"\x30\x09\x00\x01k\x03\x23\x00\x01hi",
            b"\x30\x08\x00\x00\x03\x23\x00\x01ho",
        ],
        differs: None,
    },
    Exchange {
        name: "too high a topic alias, 5",
        sends: &[V5, b"\x30\x09\x00\x01k\x03\x23\x00\x0bhi"],
        differs: Some("the same DISCONNECT 0x94, with a reason in words"),
    },
    Exchange { name: "unsubscribed from nothing, 5", sends: &[V5, b"\xa2\x06\x00\x02\x00\x00\x01z"], differs: None },
    Exchange {
        name: "user properties and the rest come through, 5",
        sends: &[
            V5,
            b"\x82\x07\x00\x01\x00\x00\x01u\x00",
            b"\x30\x1b\x00\x01u\x15\x01\x01\x03\x00\x01t\x08\x00\x01r\x09\x00\x01c\x26\x00\x01a\x00\x01bhi\x00",
        ],
        differs: None,
    },
    Exchange { name: "QoS 3", sends: &[V4, b"\x36\x06\x00\x01t\x00\x07x"], differs: None },
    Exchange {
        name: "a filter that is none",
        sends: &[V4, b"\x82\x08\x00\x01\x00\x03a#b\x00"],
        differs: Some("SUBACK 0x80 for that filter; Mosquitto ends the connection"),
    },
    Exchange { name: "an identifier of 0", sends: &[V4, b"\x82\x06\x00\x00\x00\x01a\x00"], differs: None },
    Exchange { name: "DISCONNECT", sends: &[V4, b"\xe0\x00"], differs: None },
    Exchange { name: "unknown PUBREL", sends: &[V4, b"\x62\x02\x00\x09"], differs: None },
    Exchange {
        name: "second CONNECT, 5",
        sends: &[V5, V5],
        differs: Some("an MQTT 5 client is told what it did: DISCONNECT 0x82"),
    },
    Exchange {
        name: "wildcard in a topic, 5",
        sends: &[V5, b"\x30\x05\x00\x02a#\x00x"],
        differs: Some("0x90, the code for it, with a reason; Mosquitto says 0x82"),
    },
];

fn talk(port: u16, exchange: &Exchange) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let mut all = Vec::new();
    for sent in exchange.sends {
        if stream.write_all(sent).is_err() {
            break;
        }
        let mut buffer = [0; 4096];
        // Until nothing comes for a while, or it is closed.
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) if all.len() < usize::MAX => break,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(_) => break,
            }
        }
    }
    all
}

/// What 2.1 says to an MQTT 5 client, in its order: topic alias maximum, maximum packet size, receive maximum.
const CONNACK: &[u8] = b"\x20\x0e\x00\x00\x0b\x22\x00\x0a\x27\x00\x1e\x84\x80\x21\x00\x14";

/// As 2.0 has it, which says nothing of a packet's size.
fn as_2_0(answer: Vec<u8>) -> Vec<u8> {
    match answer.strip_prefix(CONNACK) {
        Some(rest) => [b"\x20\x09\x00\x00\x06\x22\x00\x0a\x21\x00\x14", rest].concat(),
        None => answer,
    }
}

/// Debian's mosquitto and ours on one configuration, by the same clients.
#[test]
fn the_same_packets_come_back_as_from_mosquitto_but_for_what_is_listed() {
    let site = Site::empty();
    let (theirs, ours) = (free_port(), free_port());
    site.write(
        "acl",
        "topic readwrite a\ntopic readwrite b\ntopic readwrite c\ntopic readwrite t\ntopic readwrite s\n",
    );
    let acl = site.path("acl").display().to_string();
    let conf = |port: u16| format!("user root\nlistener {port} 127.0.0.1\nallow_anonymous true\nacl_file {acl}\n");
    site.write("theirs.conf", &conf(theirs));
    site.write("m.conf", &conf(ours));
    let mut command = Command::new("/usr/sbin/mosquitto");
    let _theirs = Broker::start(
        {
            command.args(["-c", "theirs.conf"]).current_dir(site.path(""));
            command
        },
        site.path(""),
    );
    eventually("Debian's broker", || TcpStream::connect(("127.0.0.1", theirs)).is_ok());
    let _ours = serve(&site, &[ours]);
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        for exchange in MATRIX {
            let (a, b) = {
                let a = scope.spawn(|| talk(theirs, exchange));
                let b = talk(ours, exchange);
                (a.join().unwrap(), as_2_0(b))
            };
            match (a == b, exchange.differs) {
                (true, None) | (false, Some(_)) => {}
                (true, Some(why)) => wrong.push(format!("{}: no difference any more ({why})", exchange.name)),
                (false, None) => wrong.push(format!("{}: {a:02x?} there, {b:02x?} here", exchange.name)),
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(talk(ours, &MATRIX[2]).starts_with(CONNACK));
}
