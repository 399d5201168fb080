//! Brokers to be measured, each in a folder of its own.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::connect;

/// What runs, and how it keeps what it has to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With this `durability`.
    Lockgate(&'static str),
    /// `persistence true`; after every change, or as shipped.
    Mosquitto { every_change: bool },
    /// Built from crates.io into `tests/bench/.peers`.
    Rumqttd,
}

/// What its clients come by; every peer has the certificates of a Lockgate site.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Plain,
    Tls,
    MutualTls,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        match self {
            Kind::Lockgate(durability) => format!("Lockgate, {durability}"),
            Kind::Mosquitto { every_change: false } => "mosquitto, persistence as shipped".to_owned(),
            Kind::Mosquitto { every_change: true } => "mosquitto, autosave after every change".to_owned(),
            Kind::Rumqttd => "rumqttd".to_owned(),
        }
    }
}

pub(crate) struct Peer {
    kind: Kind,
    lockgate: String,
    child: Child,
    pub(crate) port: u16,
    /// From its start until somebody was let in.
    pub(crate) took: Duration,
    folder: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    socket.local_addr().expect("an address").port()
}

impl Peer {
    pub(crate) fn start(lockgate: &str, kind: Kind, wire: Wire) -> Peer {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        if wire != Wire::Plain {
            let mut init = Command::new(lockgate);
            init.args(["init", "--client", "c1", "--dir"]).arg(folder.path());
            init.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            assert!(init.status().expect("the binary runs").success(), "lockgate init");
        }
        write_configuration(folder.path(), kind, wire, port);
        let began = Instant::now();
        let child = spawn(lockgate, folder.path(), kind);
        let mut peer = Peer { kind, lockgate: lockgate.to_owned(), child, port, took: Duration::ZERO, folder };
        match wire {
            Wire::Plain => drop(peer.wait()),
            _ => peer.wait_for_port(),
        }
        peer.took = began.elapsed();
        peer
    }

    pub(crate) fn name(&self) -> String {
        self.kind.name()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn wait_for_port(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "{} does not come up", self.kind.name());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until somebody is let in; how long that took.
    fn wait(&self) -> Duration {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(120) {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a socket");
                let mut connack = [0; 4];
                let asked = std::io::Write::write_all(&mut stream, &connect("probe", None, None));
                if asked.and_then(|()| stream.read_exact(&mut connack)).is_ok() && connack[3] == 0 {
                    return began.elapsed();
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} does not come up", self.kind.name());
    }

    /// Ends it by a signal and starts it again; how long until it let somebody in.
    pub(crate) fn restart(&mut self, signal: &str) -> Duration {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        self.child.wait().expect("it ends");
        let began = Instant::now();
        self.child = spawn(&self.lockgate, self.folder.path(), self.kind);
        self.wait();
        began.elapsed()
    }

    /// User and system time so far, seconds.
    pub(crate) fn cpu_secs(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<&str> = text.rsplit(')').next().expect("a name").split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number");
        ticks as f64 / 100.0
    }

    /// A line of /proc/PID/status, MiB.
    pub(crate) fn memory_mib(&self, name: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(name)).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
    }

    /// What its files take on the disk, MiB.
    pub(crate) fn disk_mib(&self) -> f64 {
        fn blocks(path: &Path) -> u64 {
            use std::os::unix::fs::MetadataExt;
            let entries = std::fs::read_dir(path).expect("a folder");
            entries
                .flatten()
                .map(|entry| match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => blocks(&entry.path()),
                    Ok(metadata) => metadata.blocks(),
                    Err(_) => 0,
                })
                .sum()
        }
        blocks(self.folder.path()) as f64 * 512.0 / 1_048_576.0
    }
}

fn write_configuration(folder: &Path, kind: Kind, wire: Wire, port: u16) {
    let pki = folder.join("pki");
    let pki = pki.display();
    let (name, text) = match kind {
        Kind::Lockgate(durability) => {
            let transport = match wire {
                Wire::Plain => "    transport: tcp\n".to_owned(),
                _ => format!(
                    "    transport: tls\n    certificate: ../pki/server.crt\n    key: ../pki/server.key\n    client-ca: \
                     ../pki/ca.crt\n    client-certs: {}\n",
                    if wire == Wire::MutualTls { "required" } else { "off" }
                ),
            };
            let text = format!(
                "name: bench\ndata: ../data\npki: ../pki\npasswords: none\nacl: none\nidentities: none\n\
                 durability: {durability}\nadmission:\n  connections-per-address-max: 100000\nlisteners:\n  - address: 127.0.0.1\n    port: {port}\n{transport}    \
                 allow-anonymous: true\nlimits:\n  queued-messages-max: 2000000\n  queued-bytes-max: 4GiB\n  \
                 retained-messages-max: 2000000\n  retained-bytes-max: 4GiB\n"
            );
            ("config/lockgate.yaml", text)
        }
        Kind::Mosquitto { every_change } => {
            let tls = match wire {
                Wire::Plain => String::new(),
                _ => format!(
                    "certfile {pki}/server.crt\nkeyfile {pki}/server.key\n{}",
                    if wire == Wire::MutualTls {
                        format!("cafile {pki}/ca.crt\nrequire_certificate true\n")
                    } else {
                        String::new()
                    }
                ),
            };
            let text = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
                 max_queued_messages 0\nmax_inflight_messages 1000\nuser root\n{}{tls}",
                folder.display(),
                if every_change { "autosave_on_changes true\nautosave_interval 1\n" } else { "" }
            );
            ("mosquitto.conf", text)
        }
        Kind::Rumqttd => {
            let tls = match wire {
                Wire::Plain => String::new(),
                _ => format!(
                    "[v4.1.tls]\ncertpath = \"{pki}/server.crt\"\nkeypath = \"{pki}/server.key\"\n{}",
                    if wire == Wire::MutualTls { format!("capath = \"{pki}/ca.crt\"\n") } else { String::new() }
                ),
            };
            let text = format!(
                "id = 0\n[router]\nid = 0\nmax_connections = 20000\nmax_outgoing_packet_count = 200\n\
                 max_segment_size = 104857600\nmax_segment_count = 10\n[v4.1]\nname = \"v4\"\n\
                 listen = \"127.0.0.1:{port}\"\nnext_connection_delay_ms = 0\n{tls}[v4.1.connections]\n\
                 connection_timeout_ms = 60000\nmax_payload_size = 1048576\nmax_inflight_count = 1000\n\
                 dynamic_filters = true\n"
            );
            ("rumqttd.toml", text)
        }
    };
    std::fs::create_dir_all(folder.join("config")).expect("a folder");
    std::fs::write(folder.join(name), text).expect("a file");
}

fn spawn(lockgate: &str, folder: &Path, kind: Kind) -> Child {
    let mut command = match kind {
        Kind::Lockgate(_) => {
            let mut command = Command::new(lockgate);
            command.arg("serve").arg("--dir").arg(folder);
            command
        }
        Kind::Mosquitto { .. } => {
            let mut command = Command::new("mosquitto");
            command.arg("-c").arg(folder.join("mosquitto.conf"));
            command
        }
        Kind::Rumqttd => {
            let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.peers/bin/rumqttd"));
            command.arg("-q").arg("-c").arg(folder.join("rumqttd.toml"));
            command
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the broker runs: mosquitto is Debian's, rumqttd comes by `lockgate-bench peers`")
}
