//! A broker on a site of its own, and the plainest client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) plain: u16,
    pub(crate) tls: u16,
}

pub(crate) struct Broker {
    child: Child,
    pub(crate) plain_port: u16,
    tls_port: u16,
    folder: tempfile::TempDir,
}

impl Broker {
    pub(crate) fn start(binary: &str) -> Broker {
        Broker::start_with(binary, &[], |_| {})
    }

    /// With more arguments for `init`; `prepare` changes its folder before it starts.
    pub(crate) fn start_with(binary: &str, arguments: &[&str], prepare: impl FnOnce(&Path)) -> Broker {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        };
        let mut init = Command::new(binary);
        init.args(["init", "--plain-port", "0", "--tls-port", "0", "--dir"]).arg(folder.path()).args(arguments);
        quiet(&mut init);
        assert!(init.status().expect("the binary runs").success(), "lockgate init");
        let path = folder.path().join("config/lockgate.yaml");
        let text = std::fs::read_to_string(&path).expect("the configuration");
        std::fs::write(&path, text.replacen("allow-anonymous: false", "allow-anonymous: true", 1)).expect("written");
        prepare(folder.path());
        let mut serve = Command::new(binary);
        serve.arg("serve").arg("--dir").arg(folder.path());
        quiet(&mut serve);
        let child = serve.spawn().expect("the binary runs");
        let until = Instant::now() + Duration::from_secs(20);
        let (plain_port, tls_port) = loop {
            assert!(Instant::now() < until, "the broker does not come up");
            std::thread::sleep(Duration::from_millis(50));
            let status = Command::new(binary).args(["status", "--json", "--dir"]).arg(folder.path()).output();
            let text = String::from_utf8(status.expect("the binary runs").stdout).expect("text");
            let ports: Vec<u16> = text
                .split('"')
                .filter_map(|part| part.rsplit_once("]:").and_then(|(_, port)| port.parse().ok()))
                .collect();
            if let [plain, tls, ..] = ports[..] {
                break (plain, tls);
            }
        };
        Broker { child, plain_port, tls_port, folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn ports(&self) -> Ports {
        Ports { plain: self.plain_port, tls: self.tls_port }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// A packet of this first byte and body.
pub(crate) fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        bytes.push((length & 0x7F) as u8 | if length > 0x7F { 0x80 } else { 0 });
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// An MQTT 3.1.1 CONNECT without a session that stays; `will` is a topic.
pub(crate) fn connect(client_id: &str, login: Option<(&str, &str)>, will: Option<&str>) -> Vec<u8> {
    connect_with(client_id, true, login, will)
}

/// The same; whether the session is `clean`.
pub(crate) fn connect_with(client_id: &str, clean: bool, login: Option<(&str, &str)>, will: Option<&str>) -> Vec<u8> {
    let flags =
        if clean { 0x02 } else { 0 } | if login.is_some() { 0xC0 } else { 0 } | if will.is_some() { 0x04 } else { 0 };
    let mut body = [field(b"MQTT"), vec![4, flags, 0x0E, 0x10], field(client_id.as_bytes())].concat();
    if let Some(topic) = will {
        body.extend([field(topic.as_bytes()), field(&[b'x'; 1_000])].concat());
    }
    if let Some((name, password)) = login {
        body.extend([field(name.as_bytes()), field(password.as_bytes())].concat());
    }
    framed(0x10, &body)
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(port: u16, client_id: &str, will: Option<&str>) -> Client {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(&connect(client_id, None, will)).expect("sent");
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).expect("CONNACK");
        assert_eq!(connack[3], 0, "CONNACK");
        Client { stream, buffer: vec![0; 64 * 1024] }
    }

    pub(crate) fn subscribe(&mut self, filter: &str) {
        let body = [&[0, 1][..], &field(filter.as_bytes()), &[0]].concat();
        self.stream.write_all(&framed(0x82, &body)).expect("sent");
        self.stream.read_exact(&mut self.buffer[..5]).expect("SUBACK");
    }

    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8]) {
        let body = [&field(topic.as_bytes())[..], payload].concat();
        self.stream.write_all(&framed(0x30, &body)).expect("sent");
    }

    /// The one message that is under way.
    pub(crate) fn wait_for_a_message(&mut self) {
        let count = self.stream.read(&mut self.buffer).expect("a message");
        assert!(count > 0, "the broker closed");
    }
}
