//! The real binary and what it keeps: killed, without room, damaged, copied and put back (design
//! section 5).

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/describe.rs"]
mod describe;
#[path = "../support/mqtt.rs"]
mod mqtt;
#[path = "../support/site.rs"]
mod site;

mod backup;
mod crash;
mod disk;

use std::process::Command;

use site::{Broker, Site, run_with};

/// A Debian client of `device1` on the plain port.
fn mosquitto(program: &str, site: &Site, broker: &Broker, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &broker.plain_port.to_string(), "-u", "device1"]);
    command.args(["-P", &site.variable("device1", "MQTT_PASSWORD")]).args(arguments);
    run_with(&mut command, b"")
}

/// The same, which must succeed.
fn works(program: &str, site: &Site, broker: &Broker, arguments: &[&str]) -> String {
    let (code, text) = mosquitto(program, site, broker, arguments);
    assert_eq!(code, Some(0), "{program} {arguments:?}: {text}\n{}", broker.log());
    text
}

/// A site with a client, and a session of it that waits for `t/#`, and messages for it, and a retained one.
fn with_messages(site: &Site, broker: &Broker) {
    works("mosquitto_sub", site, broker, &["-c", "-i", "keep", "-q", "2", "-t", "t/#", "-E"]);
    for number in 1..=5 {
        let topic = format!("t/{number}");
        works("mosquitto_pub", site, broker, &["-q", "1", "-t", &topic, "-m", &format!("message {number}")]);
    }
    works("mosquitto_pub", site, broker, &["-q", "2", "-r", "-t", "state", "-m", "kept"]);
}

/// What waits for it, and what is retained.
fn read_messages(site: &Site, broker: &Broker) -> String {
    let waiting =
        works("mosquitto_sub", site, broker, &["-c", "-i", "keep", "-q", "2", "-t", "t/#", "-C", "5", "-W", "20"]);
    waiting + &works("mosquitto_sub", site, broker, &["-t", "state", "-C", "1", "-W", "20", "-F", "%r %p"])
}

const ALL: &str = "message 1\nmessage 2\nmessage 3\nmessage 4\nmessage 5\n1 kept\n";
