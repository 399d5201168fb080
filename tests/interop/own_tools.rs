//! `lockgate pub` and `lockgate sub`, against our broker and Debian's Mosquitto, beside mosquitto_pub and mosquitto_sub.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::clients::{LEVELS, bundle, free_port, port};
use crate::site::{Broker, Site, eventually, lockgate, run_with};
use crate::stand_in::tool;

/// A command that is ended with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's Mosquitto, which lets anybody in.
fn mosquitto(site: &Site) -> (Running, u16) {
    let port = free_port();
    site.write("m.conf", &format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n"));
    let mut command = Command::new("/usr/sbin/mosquitto");
    command.args(["-c", "m.conf"]).current_dir(site.path("")).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    eventually("mosquitto", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (running, port)
}

/// What a command of ours does: its exit code, and what it said on both outputs.
fn ours(site: &Site, line: &str, input: &[u8]) -> (Option<i32>, String) {
    let mut command = lockgate();
    command.args(shlex::split(line).unwrap()).current_dir(site.path(""));
    run_with(&mut command, input)
}

/// Subscribes by `line`, publishes once that holds, and gives what was received.
fn receives(site: &Site, line: &str, publish: impl FnOnce()) -> (Option<i32>, String) {
    let mut command = lockgate();
    command.args(shlex::split(line).unwrap()).current_dir(site.path("")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    publish();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn each_level_publishes_and_subscribes_by_its_bundle() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    for (level, qos) in LEVELS.into_iter().zip(["0", "1", "2"]) {
        let env = bundle(&site, "device1", level).join("mqtt.env");
        let (env, port) = (env.display(), port(&broker, level));
        let publish = || {
            let line = format!("pub --env {env} -h localhost -p {port} -t here/{level} -m 'at {level}' -q {qos} -r");
            assert_eq!(ours(&site, &line, b""), (Some(0), String::new()), "{level}");
        };
        publish();
        let line = format!("sub --env {env} -h localhost -p {port} -t 'here/{level}' -C 1 -W 10 -q 2 -v");
        assert_eq!(receives(&site, &line, || {}), (Some(0), format!("here/{level} at {level}\n")), "{level}");
        let info: Value = serde_json::from_str(&site.ok(&["client", "show", "device1", "--json"])).unwrap();
        assert!(info.to_string().contains("device1"), "{info}");
    }
    // By its name in the site, and by the environment alone.
    let tls = broker.tls_port;
    assert_eq!(ours(&site, &format!("pub --as device1 -p {tls} -t t -m m -q 1"), b"").0, Some(0));
    let (code, said) = ours(&site, "pub --as nobody -t t -m m", b"");
    assert!(code == Some(2) && said.contains("there is no bundle of nobody here"), "{said}");
    let mut command = lockgate();
    command.args(["pub", "-t", "t", "-m", "m", "-q", "1"]).current_dir(site.path(""));
    let text = site.text("pki/clients/device1/mqtt.env");
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        command.env(name, if name == "MQTT_PORT" { tls.to_string() } else { value.to_owned() });
    }
    assert_eq!(run_with(&mut command, b""), (Some(0), String::new()));
}

#[test]
fn what_goes_through_is_the_same_as_with_mosquitto_s_tools() {
    let site = Site::empty();
    let (_mosquitto, port) = mosquitto(&site);
    // Theirs to ours.
    let line = format!("sub -h 127.0.0.1 -p {port} -t 'a/#' -C 2 -W 10 -q 1 --json");
    let (code, said) = receives(&site, &line, || {
        let properties = "-D publish content-type text/plain -D publish response-topic r -D publish correlation-data c \
                          -D publish message-expiry-interval 60 -D publish user-property unit cm";
        // Retained: when the subscription comes does not matter.
        tool(&site, &format!("mosquitto_pub -p {port} -V 5 -t a/1 -m wörd -q 1 -r {properties}"));
        tool(&site, &format!("printf '\\377\\000' | mosquitto_pub -p {port} -V 5 -t a/2 -s -q 2 -r"));
    });
    assert_eq!(code, Some(0), "{said}");
    let mut came: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    came.sort_by_key(|value| value["topic"].as_str().unwrap().to_owned());
    for value in &mut came {
        assert!(value.as_object_mut().unwrap().remove("received").is_some());
        let secs = value.as_object_mut().unwrap().remove("message-expiry-interval");
        assert!(secs.is_none_or(|secs| (50..=60).contains(&secs.as_u64().unwrap())));
        value.as_object_mut().unwrap().remove("retain");
    }
    let first = json!({
        "topic": "a/1", "qos": 1, "payload": "wörd", "content-type": "text/plain", "response-topic": "r",
        "correlation-data": "Yw==", "user-properties": [["unit", "cm"]],
    });
    assert_eq!(came, [first, json!({ "topic": "a/2", "qos": 1, "payload-base64": "/wA=" })]);
    // Ours to theirs, and all that one prints the other takes.
    let copy = format!("sub -h 127.0.0.1 -p {port} -t a/1 -C 1 -W 10 --json");
    let (_, copied) = receives(&site, &copy, || {});
    let copied = copied.replace("\"a/1\"", "\"b/1\"");
    assert_eq!(ours(&site, &format!("pub -h 127.0.0.1 -p {port} --json -r -q 1"), copied.as_bytes()).0, Some(0));
    let (_, said) = tool(&site, &format!("mosquitto_sub -p {port} -V 5 -t b/1 -C 1 -W 10 -F '%t %p %C %R %D %P'"));
    assert_eq!(said.trim(), "b/1 wörd text/plain r c unit:cm");
    assert_eq!(
        ours(&site, &format!("pub -h 127.0.0.1 -p {port} -t lines -l -q 2 -V 311"), b"one\ntwo\nthree\n").0,
        Some(0)
    );
    let (code, said) =
        ours(&site, &format!("pub -h 127.0.0.1 -p {port} --json"), b"{\"topic\":\"t\",\"payload\":1}\n{\n");
    assert!(code == Some(2) && said.contains("standard input:2: this is no JSON"), "{said}");
    // A will, and a session that is kept.
    let will = format!(
        "sub -h 127.0.0.1 -p {port} -t never --will-topic gone --will-payload here --will-retain -D will user-property a b"
    );
    let mut command = lockgate();
    command.args(shlex::split(&will).unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut dies = Running(command.spawn().unwrap());
    std::thread::sleep(std::time::Duration::from_millis(500));
    dies.0.kill().unwrap();
    let (code, said) = ours(&site, &format!("sub -h 127.0.0.1 -p {port} -t gone -C 1 -W 10"), b"");
    assert_eq!((code, said.trim()), (Some(0), "here"));
    let kept = format!("sub -h 127.0.0.1 -p {port} -t kept -i keeper -c -q 1 -C 1");
    assert_eq!(ours(&site, &format!("{kept} -W 0.5"), b"").0, Some(27));
    assert_eq!(ours(&site, &format!("pub -h 127.0.0.1 -p {port} -t kept -m later -q 1"), b"").0, Some(0));
    assert_eq!(ours(&site, &format!("{kept} -W 10"), b""), (Some(0), "later\n".to_owned()));
}

#[test]
fn exit_codes_tell_a_script_what_was_wrong() {
    let site = Site::new(&["--client", "device1", "--acl", "own"]);
    let broker = site.serve();
    let tls = broker.tls_port;
    // Refused by the ACL, with MQTT 5's words.
    for (line, code, what) in [
        (format!("pub --as device1 -p {tls} -t foreign/t -m m -q 1"), 3, "0x87 not authorized"),
        (format!("sub --as device1 -p {tls} -t foreign/t -W 5"), 3, "0x87 not authorized"),
        (
            format!("pub --as device1 -p {tls} -P wrong -u device1 -t t -m m"),
            3,
            "the password is from the command line",
        ),
        (format!("pub -h localhost -p {tls} --cafile pki/ca.crt -u device1 -t t -m m"), 3, "no password was given"),
        ("pub -t a -m m -V 311 -x 5".to_owned(), 2, "-x needs MQTT 5"),
        (format!("pub -h localhost -p {tls} --cafile nothing -t a -m m"), 2, "nothing"),
        (format!("pub --as device1 -p {} -t t -m m", free_port()), 1, "`lockgate doctor --as device1 -p "),
        (format!("sub --as device1 -p {tls} -t device1/x -C 1 -W 0.3"), 27, "0 of 1 messages came"),
        ("pub -h no-such-host.invalid -t t -m m".to_owned(), 1, "cannot be resolved"),
        ("pub -t 'a/#' -m m".to_owned(), 2, "is no topic"),
        ("pub -t a".to_owned(), 2, "there is nothing to publish"),
        ("sub -t 'a#'".to_owned(), 2, "is no topic filter"),
        ("pub -t a -m m -D publish nonsense 1".to_owned(), 2, "it is not known here"),
        ("pub -t a -m m -V 311 -D publish content-type x".to_owned(), 2, "needs MQTT 5"),
        ("pub -t a -m m -D connect content-type x".to_owned(), 2, "it goes with publish and will"),
        (format!("pub -t a -m m -u {}", "u".repeat(65_536)), 2, "MQTT has room for 65535"),
        (format!("pub -t a -m m -i {}", "i".repeat(65_536)), 2, "MQTT has room for 65535"),
        (format!("pub -t a -m m -D publish content-type {}", "c".repeat(65_536)), 2, "MQTT has room for 65535"),
    ] {
        let (exit, said) = ours(&site, &line, b"");
        assert!(exit == Some(code) && said.contains(what), "{line}: {exit:?} {said}");
    }
    assert_eq!(ours(&site, &format!("sub --as device1 -p {tls} -t device1/x -W 0.3"), b"").0, Some(0));
    drop(broker);
}

/// What CONNACK says, the client heeds [MQTT-3.2.2-11], [MQTT-3.2.2-14], [MQTT-3.2.2-15].
#[test]
fn what_the_broker_does_not_take_is_not_sent_and_what_came_before_is() {
    let site = Site::new(&["--client", "device1"]);
    let text = site.text("config/lockgate.yaml").replace("qos-max: 2", "qos-max: 1");
    let sized = |line: &str| line.trim_start().starts_with("packet-size-max:");
    assert!(text.lines().any(sized));
    let lines = text.lines().map(|line| if sized(line) { "  packet-size-max: 1024" } else { line });
    site.write("config/lockgate.yaml", &lines.collect::<Vec<_>>().join("\n"));
    let broker = site.serve();
    let tls = broker.tls_port;
    let (code, said) = ours(&site, &format!("pub --as device1 -p {tls} -t t -m m -q 2"), b"");
    assert!(code == Some(3) && said.contains("takes QoS 1 at most"), "{said}");
    let (code, said) = ours(&site, &format!("pub --as device1 -p {tls} -t t -s"), &[b'x'; 2000]);
    assert!(code == Some(3) && said.contains("takes 1024 at most"), "{said}");
    // Lines before the bad one arrive, one that is no UTF-8 too.
    let lines =
        b"{\"topic\":\"t\",\"payload\":\"good\",\"retain\":true}\n{\"topic\":\"t\",\"payload\":\"x\",\"qos\":256}\n";
    let (code, said) = ours(&site, &format!("pub --as device1 -p {tls} --json -q 1"), lines);
    assert!(code == Some(2) && said.contains("standard input:2: qos is 0, 1 or 2"), "{said}");
    let line = format!("sub --as device1 -p {tls} -t t -C 1 -W 10");
    assert_eq!(ours(&site, &line, b""), (Some(0), "good\n".to_owned()));
    assert_eq!(ours(&site, &format!("pub --as device1 -p {tls} -t u -l -r -q 1"), b"\xff").0, Some(0));
    let (_, said) = ours(&site, &format!("sub --as device1 -p {tls} -t u -C 1 -W 10 --json"), b"");
    assert!(said.contains("\"payload-base64\":\"/w==\""), "{said}");
}

/// A broker that is named by hand does not get the password of the one that the environment speaks of.
#[test]
fn a_password_goes_to_no_other_broker_and_words_of_the_environment_are_read_or_refused() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let ask = |line: &str, variables: &[(&str, &str)]| {
        let mut command = lockgate();
        command.args(shlex::split(line).unwrap()).current_dir(site.path("")).envs(variables.iter().copied());
        run_with(&mut command, b"")
    };
    let bundle = site.text("pki/clients/device1/mqtt.env");
    let value = |name: &str| bundle.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let password = value("MQTT_PASSWORD=");
    let plain = broker.plain_port;
    let port = plain.to_string();
    let who = [("MQTT_USER", "device1"), ("MQTT_PASSWORD", &password), ("MQTT_HOST", "localhost")];
    let with = |more: &[(&'static str, &str)]| {
        let all = who.iter().copied().chain(more.iter().copied());
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>()
    };
    let run = |line: &str, variables: Vec<(String, String)>| {
        let all: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        ask(line, &all)
    };
    assert_eq!(run("pub -t t -m m -q 1", with(&[("MQTT_PORT", &port)])).0, Some(0));
    let (code, said) = run(&format!("pub -h localhost -p {plain} -t t -m m -q 1"), with(&[]));
    assert!(code == Some(3), "without a name it is refused: {said}");
    let (code, said) = run(&format!("doctor localhost:{plain}"), with(&[]));
    assert!(code == Some(3) && said.contains("wants to know who comes"), "{said}");
    let (code, said) = run("pub -t t -m m", with(&[("MQTT_PORT", &port), ("MQTT_USE_TLS", "maybe")]));
    assert!(code == Some(2) && said.contains("MQTT_USE_TLS is \"maybe\""), "{said}");
    let (code, said) = run("pub -t t -m m", with(&[("MQTT_CERTFILE", "client.crt")]));
    assert!(code == Some(2) && said.contains("go together"), "{said}");
    let tls = broker.tls_port.to_string();
    let ca = site.path("pki/ca.crt");
    let ca = ca.to_str().unwrap();
    // As Python writes it, and where only the CA is named.
    for word in [("MQTT_USE_TLS", "True"), ("MQTT_NONSENSE", "")] {
        let variables = with(&[("MQTT_PORT", &tls), ("MQTT_CA_CERTS", ca), word]);
        assert_eq!(run("pub -t t -m m -q 1", variables), (Some(0), String::new()));
    }
}

/// A message that comes again before it was released is the same [MQTT-4.3.3-10].
#[test]
fn a_message_at_qos_2_is_printed_once_however_often_it_comes() {
    let site = Site::empty();
    let own = env!("CARGO_BIN_EXE_lockgate");
    for (qos, expected) in [(1, "m\nm\n"), (2, "m\n")] {
        let script = format!("{own} pub -t t -m m -q {qos} -r && {own} sub -t t -q {qos} -W 1");
        let line = format!("run --break duplicate-publish -- sh -c '{script}'");
        assert_eq!(ours(&site, &line, b""), (Some(0), expected.to_owned()), "QoS {qos}");
    }
}

#[test]
fn a_subscriber_keeps_its_time_though_nothing_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let site = Site::empty();
    let (code, said) = ours(&site, &format!("sub -h 127.0.0.1 -p {port} -t t -W 0.3"), b"");
    assert!(code == Some(27) && said.contains("did not take the subscription within 0.3 s"), "{said}");
    let mut command = lockgate();
    command.args(["sub", "-h", "127.0.0.1", "-p", &port.to_string(), "-t", "t"]).stdout(Stdio::null());
    let mut waits = Running(command.spawn().unwrap());
    let (mut taken, _) = silent.accept().and_then(|_| silent.accept()).unwrap();
    // It is past its start once CONNECT comes.
    std::io::Read::read_exact(&mut taken, &mut [0; 2]).unwrap();
    let status = Command::new("kill").args(["-s", "TERM", &waits.0.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert_eq!(waits.0.wait().unwrap().code(), Some(0));
}

/// Only that it ends: the rest is asked above.
#[test]
fn a_subscriber_ends_with_the_broker_and_by_ctrl_c() {
    let site = Site::new(&["--client", "device1"]);
    let broker: Broker = site.serve();
    let start = || {
        let mut command = lockgate();
        let line = format!("sub --as device1 -p {} -t t -C 2", broker.tls_port);
        command.args(shlex::split(&line).unwrap()).current_dir(site.path("")).stdout(Stdio::null());
        Running(command.stderr(Stdio::piped()).spawn().unwrap())
    };
    let mut stopped = start();
    broker.wait_for("connected as client");
    let status = Command::new("kill").args(["-s", "INT", &stopped.0.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert_eq!(stopped.0.wait().unwrap().code(), Some(0));
    let mut left = start();
    eventually("it is there", || broker.log().matches("connected as client").count() == 2);
    broker.signal("TERM");
    assert_eq!(left.0.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(left.0.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(said.contains("server shutting down"), "{said}");
}
