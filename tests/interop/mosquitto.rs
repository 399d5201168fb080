use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use crate::clients::{LEVELS, mosquitto};
use crate::site::{Broker, Site, run_with};

/// mosquitto_sub that is subscribed; its messages come by line.
struct Subscriber {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Subscriber {
    fn start(mut command: Command, count: u32) -> Subscriber {
        command.args(["-C", &count.to_string(), "-W", "30", "-d"]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("mosquitto_sub; tests/run installs it");
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("SUBACK") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "mosquitto_sub ended without SUBACK");
        }
        Subscriber { child, lines }
    }

    /// What it printed, when it has had all its messages.
    fn finish(mut self) -> String {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }
}

fn versions() -> [&'static str; 3] {
    ["mqttv31", "mqttv311", "mqttv5"]
}

fn publish(site: &Site, broker: &Broker, level: &str, arguments: &[&str]) {
    let (code, text) = run_with(mosquitto("mosquitto_pub", site, broker, level).args(arguments), b"");
    assert_eq!(code, Some(0), "{level} {arguments:?}: {text}\n{}", broker.log());
}

#[test]
fn messages_pass_at_every_level_version_and_qos() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    for level in LEVELS {
        for version in versions() {
            let mut subscribe = mosquitto("mosquitto_sub", &site, &broker, level);
            subscribe.args(["-V", version, "-q", "2", "-v", "-t", "hello/#"]);
            let subscriber = Subscriber::start(subscribe, 3);
            for qos in ["0", "1", "2"] {
                publish(
                    &site,
                    &broker,
                    level,
                    &["-V", version, "-q", qos, "-t", &format!("hello/{qos}"), "-m", &format!("from {level}")],
                );
            }
            let got = subscriber.finish();
            for qos in ["0", "1", "2"] {
                assert!(got.contains(&format!("hello/{qos} from {level}")), "{level} {version}: {got}");
            }
        }
    }
    let line = broker.wait_for("disconnected");
    assert!(line.contains("id="), "{line}");
}

#[test]
fn retained_messages_wills_and_sessions_work() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    for level in LEVELS {
        // Retained: for who subscribes later.
        publish(&site, &broker, level, &["-t", "state", "-m", level, "-r", "-q", "1"]);
        let mut late = mosquitto("mosquitto_sub", &site, &broker, level);
        late.args(["-t", "state", "-C", "1", "-W", "30", "-F", "%r %p"]);
        let (_, got) = run_with(&mut late, b"");
        assert_eq!(got.trim(), format!("1 {level}"));

        // Will: published when mosquitto_sub is killed.
        let mut mortal = mosquitto("mosquitto_sub", &site, &broker, level);
        mortal.args(["-t", "nothing", "--will-topic", "will", "--will-payload", "gone", "--will-qos", "1"]);
        let mut mortal = Subscriber::start(mortal, 1);
        let mut watcher = mosquitto("mosquitto_sub", &site, &broker, level);
        watcher.args(["-t", "will", "-q", "1", "-F", "will: %p"]);
        let watcher = Subscriber::start(watcher, 1);
        mortal.child.kill().unwrap();
        mortal.child.wait().unwrap();
        assert!(watcher.finish().contains("will: gone"));

        // Session: queued while the subscriber is away.
        let session = |extra: &[&str]| {
            let mut command = mosquitto("mosquitto_sub", &site, &broker, level);
            command
                .args(["-i", &format!("sleeper-{level}"), "-c", "-q", "1", "-t", "queue", "-V", "mqttv311"])
                .args(extra);
            command
        };
        let (code, text) = run_with(&mut session(&["-E"]), b"");
        assert_eq!(code, Some(0), "{text}");
        for number in 1..=3 {
            publish(&site, &broker, level, &["-q", "1", "-t", "queue", "-m", &number.to_string()]);
        }
        let (_, got) = run_with(&mut session(&["-C", "3", "-W", "30"]), b"");
        assert_eq!(got, "1\n2\n3\n", "{level}");
    }
}

#[test]
fn five_megabytes_pass_whole() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let payload: Vec<u8> = (0..5 * 1024 * 1024u32).map(|at| (at * 31 % 251) as u8).collect();
    let (input, output) = (site.path("payload"), site.path("received"));
    std::fs::write(&input, &payload).unwrap();
    for level in LEVELS {
        let mut subscribe = mosquitto("mosquitto_sub", &site, &broker, level);
        subscribe.args(["-t", "large", "-q", "1", "-N", "-C", "1", "-W", "60"]);
        let file = std::fs::File::create(&output).unwrap();
        let mut child = subscribe.stdin(Stdio::null()).stdout(file).spawn().unwrap();
        crate::site::eventually("the subscription", || site.ok(&["status", "--json"]).contains("\"subscriptions\": 1"));
        publish(&site, &broker, level, &["-q", "1", "-t", "large", "-f", input.to_str().unwrap()]);
        assert!(child.wait().unwrap().success());
        assert!(std::fs::read(&output).unwrap() == payload, "{level}");
        crate::site::eventually("the end of the session", || {
            site.ok(&["status", "--json"]).contains("\"subscriptions\": 0")
        });
    }
}

#[test]
fn a_unix_socket_is_a_listener_too() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "listeners:\n", "listeners:\n  - transport: unix\n    path: ../mqtt.sock\n");
    let broker = site.serve();
    let password = site.variable("device1", "MQTT_PASSWORD");
    let mut stream = std::os::unix::net::UnixStream::connect(site.path("mqtt.sock")).unwrap();
    use std::io::Write;
    let version = lockgate::codec::Version::V5;
    stream.write_all(&crate::mqtt::connect_bytes(version, "local", Some(("device1", &password)))).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[3]), (0x20, 0), "{}", broker.log());
    broker.wait_for("unix socket");
}
