//! A server certificate by ACME (RFC 8555), from Pebble: a CA that looks at the answers as Let's Encrypt does.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lockgate::pki::{Authority, CertificateInfo, KeyType, ServerName};
use time::OffsetDateTime;

use crate::clients::free_port;
use crate::site::{Site, eventually, run_with};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The ports on which a process listens, by the kernel's tables.
fn listening(pid: u32, table: &str) -> Vec<u16> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inodes: Vec<String> = links
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    let state = if table.starts_with("tcp") { "0A" } else { "07" };
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = fields[3] == state && inodes.iter().any(|inode| inode == fields[9]);
        ours.then(|| u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap())
    };
    sockets.lines().skip(1).filter_map(port).collect()
}

/// Pebble, for which every name is this machine.
struct Pebble {
    directory: String,
    management: String,
    /// Of its own two ports; not what it issues by.
    front_ca: PathBuf,
    _pebble: Running,
    _names: Running,
}

impl Pebble {
    /// `http`, `tls`: where it looks for answers.
    fn start(site: &Site, http: u16, tls: u16) -> Pebble {
        let now = OffsetDateTime::now_utc();
        let (authority, ca) = Authority::create("pebble", KeyType::EcdsaP256, 9, now).unwrap();
        let names = ["localhost", "127.0.0.1"].map(|name| ServerName::parse(name).unwrap());
        let front = authority.issue_server("pebble", &names, KeyType::EcdsaP256, 9, now).unwrap();
        site.write("front-ca.pem", &ca.certificate_pem);
        site.write("front.pem", &front.certificate_pem);
        site.write("front.key", &front.key_pem);
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let started = |command: &mut Command| {
            let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
            Running(child)
        };
        let mut names = quiet("pebble-challtestsrv");
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", "", "-defaultIPv4", "127.0.0.1"]);
        let names = started(names.args(["-dns01", "127.0.0.1:0", "-management", "127.0.0.1:0"]));
        let mut port = None;
        eventually("the name server", || {
            port = listening(names.0.id(), "udp").first().copied();
            port.is_some()
        });
        let config = serde_json::json!({"pebble": {
            "listenAddress": "127.0.0.1:0", "managementListenAddress": "127.0.0.1:0",
            "certificate": site.path("front.pem"), "privateKey": site.path("front.key"),
            "httpPort": http, "tlsPort": tls, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        site.write("pebble.json", &config.to_string());
        let mut pebble = quiet("pebble");
        pebble
            .arg("-config")
            .arg(site.path("pebble.json"))
            .arg("-dnsserver")
            .arg(format!("127.0.0.1:{}", port.unwrap()));
        let env = [("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "0"), ("PEBBLE_AUTHZREUSE", "0")];
        let pebble = started(pebble.envs(env));
        let mut ports = Vec::new();
        eventually("the CA", || {
            ports = listening(pebble.0.id(), "tcp");
            ports.len() == 2
        });
        let front_ca = site.path("front-ca.pem");
        // Only one of them knows a directory.
        let knows = |port: u16| {
            let mut curl = Command::new("curl");
            curl.args(["-sf", "--cacert"]).arg(&front_ca).arg(format!("https://127.0.0.1:{port}/dir"));
            run_with(&mut curl, b"").0 == Some(0)
        };
        let (acme, management) = if knows(ports[0]) { (ports[0], ports[1]) } else { (ports[1], ports[0]) };
        Pebble {
            directory: format!("https://127.0.0.1:{acme}/dir"),
            management: format!("https://127.0.0.1:{management}"),
            front_ca,
            _pebble: pebble,
            _names: names,
        }
    }

    /// The root that it issues by, PEM.
    fn root(&self) -> String {
        let mut curl = Command::new("curl");
        curl.args(["-sf", "--cacert"]).arg(&self.front_ca).arg(format!("{}/roots/0", self.management));
        let (code, pem) = run_with(&mut curl, b"");
        assert_eq!(code, Some(0), "{pem}");
        pem
    }
}

fn configured(site: &Site, pebble: &Pebble, names: &str, challenge: &str, port: u16) {
    site.write("root.pem", &pebble.root());
    site.edit("config/lockgate.yaml", "server-ca: own", "server-ca: ../root.pem");
    site.edit("config/lockgate.yaml", "directory: off", &format!("directory: {}", pebble.directory));
    site.edit("config/lockgate.yaml", "names: none", &format!("names: {names}"));
    site.edit("config/lockgate.yaml", "challenge: http-01", &format!("challenge: {challenge}"));
    site.edit("config/lockgate.yaml", "address: 0.0.0.0:80", &format!("address: 127.0.0.1:{port}"));
    site.edit("config/lockgate.yaml", "roots: system", "roots: ../front-ca.pem");
}

#[test]
fn a_broker_gets_its_certificate_from_an_acme_ca_and_bundles_trust_it() {
    let site = Site::new(&[]);
    let (http, tls) = (free_port(), free_port());
    let pebble = Pebble::start(&site, http, tls);
    configured(&site, &pebble, "localhost broker.example", "http-01", http);
    assert!(site.fails(2, &["serve", "--check"]).contains("terms-agreed: true"));
    site.edit("config/lockgate.yaml", "terms-agreed: false", "terms-agreed: true");
    site.ok(&["client", "add", "pump7"]);
    let broker = site.serve();
    // It served what it had; now what came.
    broker.wait_for("issued the server certificate");
    broker.wait_for("reloaded");
    let info = CertificateInfo::read(&site.path("pki/server.crt")).unwrap();
    assert!(info.issuer.contains("Pebble") && info.names.len() == 2, "{info:?}");
    let publish = format!(
        "cd pki/clients/pump7; mosquitto_pub -h localhost -p {} -t t -m m -q 1 --cafile ca.crt --cert client.crt --key client.key",
        broker.tls_port
    );
    let publishes = || run_with(Command::new("sh").args(["-ec", &publish]).current_dir(site.path("")), b"");
    assert_eq!(publishes().0, Some(0), "{}", broker.log());
    // By the other challenge, with the account of before.
    let account = site.text("pki/acme-account.json");
    let mode = std::fs::metadata(site.path("pki/acme-account.json")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o600);
    site.edit("config/lockgate.yaml", "challenge: http-01", "challenge: tls-alpn-01");
    site.edit("config/lockgate.yaml", &format!("127.0.0.1:{http}"), &format!("127.0.0.1:{tls}"));
    let said = site.ok(&["server", "acme"]);
    assert!(said.contains("is new") && said.contains("has taken it up"), "{said}");
    let second = CertificateInfo::read(&site.path("pki/server.crt")).unwrap();
    assert!(second.serial != info.serial && second.public_key != info.public_key);
    assert_eq!(site.text("pki/acme-account.json"), account);
    assert_eq!(publishes().0, Some(0), "{}", broker.log());
    // Our own CA keeps its hands off.
    assert!(site.fails(1, &["server", "renew"]).contains("`lockgate server acme`"));
    // A CA that has forgotten the account is one that never knew it.
    drop(pebble);
    let again = Pebble::start(&site, http, tls);
    let directory = |line: &str| line.trim_start().starts_with("directory: ");
    let old = site.text("config/lockgate.yaml").lines().find(|line| directory(line)).unwrap().to_owned();
    site.edit("config/lockgate.yaml", &old, &format!("  directory: {}", again.directory));
    site.write("root.pem", &again.root());
    let text = account.replace(old.trim().trim_start_matches("directory: "), &again.directory);
    site.write("pki/acme-account.json", &text);
    site.ok(&["server", "acme"]);
    assert_ne!(site.text("pki/acme-account.json"), text);
}

#[test]
fn what_an_acme_ca_does_not_believe_is_told_and_nothing_changes() {
    let site = Site::new(&[]);
    let (http, elsewhere) = (free_port(), free_port());
    let pebble = Pebble::start(&site, http, elsewhere);
    // Answered where the CA does not look.
    configured(&site, &pebble, "broker.example", "http-01", elsewhere);
    site.edit("config/lockgate.yaml", "terms-agreed: false", "terms-agreed: true");
    let before = site.text("pki/server.crt");
    let complaint = site.fails(1, &["server", "acme"]);
    assert!(complaint.contains("does not believe that broker.example is this machine"), "{complaint}");
    assert!(complaint.contains("connection refused"), "{complaint}");
    let broker = site.serve();
    broker.wait_for("no certificate came from the ACME CA, what serves stays");
    assert_eq!(site.text("pki/server.crt"), before);
    drop(broker);
    // No such directory; a stranger in its place; an address that is taken.
    site.edit("config/lockgate.yaml", "roots: ../front-ca.pem", "roots: ../pki/ca.crt");
    assert!(site.fails(1, &["server", "acme"]).contains("UnknownIssuer"));
    site.edit("config/lockgate.yaml", "roots: ../pki/ca.crt", "roots: ../front-ca.pem");
    let taken = std::net::TcpListener::bind(("127.0.0.1", elsewhere)).unwrap();
    assert!(site.fails(1, &["server", "acme"]).contains("it has to reach that as port 80"));
    drop(taken);
    site.edit("config/lockgate.yaml", &pebble.directory, "https://127.0.0.1:1/dir");
    assert!(site.fails(1, &["server", "acme"]).contains("127.0.0.1:1: "));
    site.edit("config/lockgate.yaml", "server-ca: ../root.pem", "server-ca: own");
    assert!(site.fails(2, &["serve", "--check"]).contains("each TLS listener needs `server-ca:`"));
}
