use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use lockgate::codec::{self, Packet, Version};
use lockgate::types::{PacketId, QoS};

use crate::mqtt::Raw;
use crate::site::{Broker, Site, eventually};
use crate::{mosquitto, with_messages, works};

/// A site whose store lies on a small disk of its own, with a file on it that takes up most of it and
/// goes when there is a file `free` in the site's folder.
fn on_a_small_disk() -> (Site, Broker) {
    let site = Site::new(&["--client", "device1"]);
    let store = site.path("data/store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::set_permissions(site.path("data"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let (store, free) = (store.display().to_string(), site.path("free").display().to_string());
    let script = format!(
        "mount -t tmpfs -o size=48m,mode=700 t {store} && head -c 12m /dev/zero > {store}/filler || exit 1
         (n=0; while [ ! -e {free} ] && [ $n -lt 1200 ]; do sleep 0.1; n=$((n+1)); done; rm {store}/filler) >/dev/null 2>&1 &
         exec \"$@\""
    );
    let broker = site.serve_with(|command| {
        let mut wrapped = Command::new("unshare");
        wrapped.args(["-rm", "sh", "-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
        wrapped.env_remove("LOCKGATE_CONFIG");
        *command = wrapped;
    });
    (site, broker)
}

/// PUBLISH at QoS 1 to `t/x`.
fn publish(packet_id: u16, len: usize) -> Vec<u8> {
    let packet = Packet::Publish(codec::Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "t/x",
        packet_id: PacketId::new(packet_id),
        properties: codec::PublishProperties::default(),
        payload: &vec![b'x'; len],
    });
    let mut bytes = Vec::new();
    codec::encode(&mut bytes, &packet, Version::V5);
    bytes
}

#[test]
fn a_full_disk_stops_what_is_durable_alone_and_mends_by_itself() {
    let (site, broker) = on_a_small_disk();
    works("mosquitto_sub", &site, &broker, &["-c", "-i", "keep", "-q", "1", "-t", "t/#", "-E"]);
    let password = site.variable("device1", "MQTT_PASSWORD");
    let (mut publisher, answer) =
        Raw::connect(broker.plain_port, Version::V5, "publisher", Some(("device1", &password)));
    assert!(answer.starts_with("CONNACK"), "{answer}");
    let mut accepted = 0;
    // MQTT 5 section 3.4.2.1: 0x97.
    let refused = (1..2_000).find(|packet_id| {
        publisher.send(&publish(*packet_id, 64 * 1024));
        let answer = publisher.packet().unwrap();
        accepted += u32::from(answer == format!("PUBACK #{packet_id}"));
        answer == format!("PUBACK #{packet_id} 0x97")
    });
    assert!(refused.is_some_and(|packet_id| u32::from(packet_id) == accepted + 1), "{refused:?} after {accepted}");
    broker.wait_for("the store cannot be written: No space left on device");
    // What is small may still find room in what was laid out before.
    let mut packet_id = 3_000;
    loop {
        publisher.send(&publish(packet_id, 4_000));
        if publisher.packet().unwrap().ends_with("0x97") {
            break;
        }
        accepted += 1;
        packet_id += 1;
    }
    // Before MQTT 5 there is no such answer: the connection ends.
    let large = site.path("large");
    std::fs::write(&large, vec![b'y'; 64 * 1024]).unwrap();
    let (code, text) = mosquitto(
        "mosquitto_pub",
        &site,
        &broker,
        &["-V", "mqttv311", "-q", "1", "-t", "t/y", "-f", large.to_str().unwrap(), "-d"],
    );
    assert!(code != Some(0) || !text.contains("received PUBACK"), "{text}");
    // What needs no disk runs on.
    let mut live = Command::new("mosquitto_sub");
    live.args(["-h", "127.0.0.1", "-p", &broker.plain_port.to_string(), "-u", "device1", "-P", &password]);
    live.args(["-t", "live", "-C", "1", "-W", "20"]);
    let live = std::thread::spawn(move || crate::run_with(&mut live, b""));
    eventually("a live subscription", || {
        works("mosquitto_pub", &site, &broker, &["-t", "live", "-m", "now"]);
        live.is_finished()
    });
    assert_eq!(live.join().unwrap(), (Some(0), "now\n".to_owned()));
    let status = site.ok(&["status"]);
    assert!(status.contains("IT CANNOT BE WRITTEN NOW"), "{status}");
    // There is room again.
    std::fs::write(site.path("free"), "").unwrap();
    eventually("room again", || {
        publisher.send(&publish(5_000, 64 * 1024));
        let is_accepted = publisher.packet().unwrap() == "PUBACK #5000";
        accepted += u32::from(is_accepted);
        is_accepted
    });
    broker.wait_for("the store can be written again");
    // All that was acknowledged is there.
    let count = accepted.to_string();
    let got = works(
        "mosquitto_sub",
        &site,
        &broker,
        &["-c", "-i", "keep", "-q", "1", "-t", "t/#", "-C", &count, "-W", "20", "-F", "%l"],
    );
    assert_eq!(got.lines().count(), accepted as usize);
}

/// A site whose broker was killed, with messages kept.
fn killed_with_messages() -> Site {
    let site = Site::new(&["--client", "device1"]);
    let mut broker = site.serve();
    with_messages(&site, &broker);
    broker.signal("KILL");
    broker.wait();
    site
}

/// Flips a byte of a file.
fn flip(path: &std::path::Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn first_segment(site: &Site) -> PathBuf {
    site.path("data/store/segment-00000001")
}

#[test]
fn a_damaged_file_is_reported_set_aside_and_the_rest_is_served() {
    let site = killed_with_messages();
    assert!(site.ok(&["store", "check"]).contains("all of it is sound"));
    // In the third message.
    let text = std::fs::read(first_segment(&site)).unwrap();
    let at = text.windows(9).position(|window| window == b"message 3").unwrap();
    flip(&first_segment(&site), at as u64);
    let (looked, complaint) = {
        let output = site.run(&["store", "check"]);
        assert_eq!(output.status.code(), Some(1));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(looked.contains("segment-00000001 is damaged at byte") && looked.contains("1 messages"), "{looked}");
    assert!(complaint.contains("the next start keeps what is sound"), "{complaint}");
    assert!(!site.path("data/store/damaged").exists(), "looking changes nothing");
    let broker = site.serve();
    let line = broker.wait_for("segment-00000001 is damaged at byte");
    assert!(line.contains("that piece is kept as damaged/segment-00000001-"), "{line}");
    assert_eq!(std::fs::read_dir(site.path("data/store/damaged")).unwrap().count(), 1);
    let waiting =
        works("mosquitto_sub", &site, &broker, &["-c", "-i", "keep", "-q", "2", "-t", "t/#", "-C", "4", "-W", "20"]);
    assert_eq!(waiting, "message 1\nmessage 2\nmessage 4\nmessage 5\n");
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let site = killed_with_messages();
    let mut bytes = std::fs::read(first_segment(&site)).unwrap();
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(first_segment(&site), &bytes).unwrap();
    let complaint = site.fails(1, &["serve"]);
    assert!(complaint.contains("segment-00000001 was written by a newer Lockgate (format 9;"), "{complaint}");
    assert_eq!(std::fs::read(first_segment(&site)).unwrap(), bytes);
}

#[test]
fn a_store_that_cannot_be_written_is_refused_at_start() {
    let site = Site::new(&["--client", "device1"]);
    std::fs::create_dir_all(site.path("data")).unwrap();
    std::fs::write(site.path("data/store"), "a file").unwrap();
    let complaint = site.fails(1, &["serve"]);
    assert!(complaint.contains("data/store: "), "{complaint}");
}

#[test]
fn what_the_store_costs_is_in_the_metrics() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "  address: off", "  address: 127.0.0.1:0");
    let broker = site.serve();
    with_messages(&site, &broker);
    let line = broker.wait_for("metrics and health on http://");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let text = {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("lockgate_store_messages_total"), 6.0);
    let per_message = value("lockgate_store_bytes_per_message");
    assert!(per_message > 50.0 && per_message < 5_000.0, "{per_message}");
    assert_eq!(value("lockgate_store_failing"), 0.0);
    let stats = site.ok(&["store", "stats"]);
    assert!(stats.contains("1 sessions, 5 queued and 1 retained messages"), "{stats}");
}
