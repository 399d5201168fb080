//! What a long ledger costs: lists, handshakes, and the time from a revocation to the end of a session.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{Broker, connect};
use crate::speed::{median, number, report_of, shown};

/// A ledger line of somebody else's certificate.
fn line(number: usize) -> String {
    format!(
        "{{\"event\":\"issued\",\"at\":\"2026-11-01T00:00:00Z\",\"kind\":\"client\",\"serial\":\"{number:032x}\",\"subject\":\"CN=d{number},O=bench\",\
         \"identity\":\"d{number}\",\"key\":\"ecdsa-p256\",\"key-origin\":\"generated\",\"expires\":\"2036-11-01T00:00:00Z\",\"fingerprint\":\"AB:CD\"}}\n"
    )
}

fn add_lines(folder: &Path, count: usize) {
    let path = folder.join("pki/ledger.jsonl");
    let mut text = std::fs::read_to_string(&path).expect("the ledger");
    (0..count).for_each(|number| text.push_str(&line(number + 1)));
    std::fs::write(path, text).expect("written");
}

fn variable(folder: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(folder.join("pki/clients/c1/mqtt.env")).expect("a bundle");
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).expect("a variable").to_owned()
}

/// ms of `client list`, CPU µs of a mutual handshake, ms from `client revoke` to the end of the session.
fn measure(lockgate: &str, count: usize) -> [Option<f64>; 3] {
    let broker = Broker::start_with(lockgate, &["--client", "c1"], |folder| add_lines(folder, count));
    let (folder, ports) = (broker.folder(), broker.ports());
    let command = |arguments: &[&str]| {
        let mut command = Command::new(lockgate);
        command.args(arguments).arg("--dir").arg(folder).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let began = Instant::now();
    let listed = command(&["client", "list"]).status().expect("the binary runs").success();
    let list = began.elapsed().as_secs_f64() * 1e3;
    let mut generator = Command::new(lockgate);
    generator.args(["bench", "connections", "--count", "500", "--json", "--pid", &broker.pid().to_string()]);
    generator.args(["--url", &format!("mqtts://localhost:{}", ports.tls)]);
    for (flag, file) in [("--ca", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")] {
        generator.arg(flag).arg(folder.join("pki/clients/c1").join(file));
    }
    let report = report_of(&mut generator, "handshakes");
    let mut stream = TcpStream::connect(("127.0.0.1", ports.plain)).expect("the broker listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let login = variable(folder, "MQTT_PASSWORD");
    std::io::Write::write_all(&mut stream, &connect("live", Some(("c1", &login)), None)).expect("sent");
    stream.read_exact(&mut [0; 4]).expect("CONNACK");
    let began = Instant::now();
    let mut revoke = command(&["client", "revoke", "c1"]).spawn().expect("the binary runs");
    // MQTT 3.1.1: it is closed.
    let ended = stream.read(&mut [0; 1]).is_ok_and(|count| count == 0);
    let until = began.elapsed().as_secs_f64() * 1e3;
    let revoked = revoke.wait().expect("it ends").success();
    let handshake = report.as_ref().and_then(|report| number(report, "/broker-cpu-micros-each"));
    [listed.then_some(list), handshake, (ended && revoked).then_some(until)]
}

pub(crate) fn run(lockgate: &str, rounds: usize) {
    println!(
        "| Certificates in the ledger | `client list`, ms | mutual handshake, CPU µs | revocation to disconnect, ms |"
    );
    println!("|---|---|---|---|");
    for count in [10, 1_000, 10_000, 100_000] {
        let measured: Vec<[Option<f64>; 3]> = (0..rounds).map(|_| measure(lockgate, count)).collect();
        let cell = |at: usize| match median(measured.iter().filter_map(|one| one[at]).collect()) {
            Some((middle, least, most)) => format!("{} ({} to {})", shown(middle), shown(least), shown(most)),
            None => "void".to_owned(),
        };
        println!("| {count} | {} | {} | {} |", cell(0), cell(1), cell(2));
    }
}
