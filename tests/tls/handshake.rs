use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use lockgate::codec::Version;
use lockgate::pki::{Authority, Entry, Event, KeyType, Kind, Ledger};
use lockgate::types::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use time::{Duration, OffsetDateTime};

use crate::mqtt::connect_bytes;
use crate::site::{PATIENCE, Site};

pub(crate) fn config(
    ca: &Path,
    client: Option<(&Path, &Path)>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match client {
        Some((certificate, key)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    }
}

pub(crate) type Tls = rustls::StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn open(port: u16, config: &Arc<ClientConfig>) -> Tls {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
    rustls::StreamOwned::new(connection, stream)
}

/// CONNECT by certificate alone; the return code, or why there was none.
fn connect(tls: &mut Tls) -> Result<u8, String> {
    tls.write_all(&connect_bytes(Version::V311, "c", None)).map_err(|error| error.to_string())?;
    let mut answer = [0; 4];
    tls.read_exact(&mut answer).map_err(|error| error.to_string())?;
    Ok(answer[3])
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[test]
fn both_tls_versions_are_spoken_and_the_minimum_is_kept() {
    let site = Site::new(&["--client", "device1"]);
    let (ca, folder) = (site.path("pki/ca.crt"), site.path("pki/clients/device1"));
    let (certificate, key) = (folder.join("client.crt"), folder.join("client.key"));
    let try_all = |port: u16| {
        [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]]
            .map(|versions| connect(&mut open(port, &Arc::new(config(&ca, Some((&certificate, &key)), versions)))))
    };
    let broker = site.serve();
    assert_eq!(try_all(broker.tls_port), [Ok(0), Ok(0)]);
    drop(broker);
    site.edit("config/lockgate.yaml", "min-version: \"1.2\"", "min-version: \"1.3\"");
    let broker = site.serve();
    let [newer, older] = try_all(broker.tls_port);
    assert!(newer == Ok(0) && older.is_err(), "{older:?}");
    broker.wait_for("no TLS version");
}

#[test]
fn alpn_is_an_offer_and_not_a_demand() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let (ca, folder) = (site.path("pki/ca.crt"), site.path("pki/clients/device1"));
    for (offered, chosen) in [(&[&b"mqtt"[..]][..], Some(&b"mqtt"[..])), (&[b"h2", b"http/1.1"], None), (&[], None)] {
        let mut config = config(&ca, Some((&folder.join("client.crt"), &folder.join("client.key"))), BOTH);
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let mut tls = open(broker.tls_port, &Arc::new(config));
        assert_eq!(connect(&mut tls), Ok(0), "{offered:?}");
        assert_eq!(tls.conn.alpn_protocol(), chosen);
    }
}

#[test]
fn a_resumed_session_is_no_way_around_removal_or_expiry() {
    // design section 6: resumption skips the verification of the client.
    let site = Site::new(&["--client", "device1", "--client", "short"]);
    // A certificate with seconds to live, in the ledger as if init had made it.
    let authority =
        Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), OffsetDateTime::now_utc()).unwrap();
    let short = Identity::parse("short").unwrap();
    let begun = OffsetDateTime::now_utc() - Duration::days(1) + Duration::minutes(5) + Duration::seconds(4);
    let issued = authority.issue_client("test", &short, KeyType::EcdsaP256, 1, begun).unwrap();
    site.write("short.crt", &issued.certificate_pem);
    site.write("short.key", &issued.key_pem);
    let entry = Entry::of(&issued.info, "", Kind::Client, Some(&short), begun);
    let ledger = site.text("pki/ledger.jsonl") + &Ledger::lines(&[Event::Issued(entry)]);
    site.write("pki/ledger.jsonl", &ledger);
    let broker = site.serve();
    let ca = site.path("pki/ca.crt");
    let folder = site.path("pki/clients/device1");
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let device = Arc::new(config(&ca, Some((&folder.join("client.crt"), &folder.join("client.key"))), versions));
        assert_eq!(connect(&mut open(broker.tls_port, &device)), Ok(0));
        let mut resumed = open(broker.tls_port, &device);
        assert_eq!(connect(&mut resumed), Ok(0));
        assert_eq!(resumed.conn.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
    let device = Arc::new(config(&ca, Some((&folder.join("client.crt"), &folder.join("client.key"))), BOTH));
    assert_eq!(connect(&mut open(broker.tls_port, &device)), Ok(0));
    let dying = Arc::new(config(&ca, Some((&site.path("short.crt"), &site.path("short.key"))), BOTH));
    assert_eq!(connect(&mut open(broker.tls_port, &dying)), Ok(0));
    site.ok(&["client", "remove", "device1"]);
    assert_ne!(connect(&mut open(broker.tls_port, &device)), Ok(0));
    broker.wait_for("is not current in the ledger");
    while OffsetDateTime::now_utc() <= issued.info.not_after {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_ne!(connect(&mut open(broker.tls_port, &dying)), Ok(0));
    broker.wait_for("the client's certificate is expired");
}

#[test]
fn a_device_resumes_however_many_others_came_meanwhile() {
    // RFC 8446 section 2.2: after an outage of the network all of them come back at once.
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    let (ca, folder) = (site.path("pki/ca.crt"), site.path("pki/clients/device1"));
    let device = || Arc::new(config(&ca, Some((&folder.join("client.crt"), &folder.join("client.key"))), BOTH));
    let first = device();
    assert_eq!(connect(&mut open(broker.tls_port, &first)), Ok(0));
    for _ in 0..300 {
        assert_eq!(connect(&mut open(broker.tls_port, &device())), Ok(0));
    }
    let mut again = open(broker.tls_port, &first);
    assert_eq!(connect(&mut again), Ok(0));
    assert_eq!(again.conn.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    // Whoever has got a new certificate is to come with it: what began with the old one is not resumed.
    site.ok(&["client", "renew", "device1"]);
    let mut renewed = open(broker.tls_port, &first);
    assert_eq!(connect(&mut renewed), Ok(0));
    assert_eq!(renewed.conn.handshake_kind(), Some(rustls::HandshakeKind::Full));
    // What a reload may have ceased to trust is verified anew.
    site.ok(&["reload"]);
    let mut after = open(broker.tls_port, &first);
    assert_eq!(connect(&mut after), Ok(0));
    assert_eq!(after.conn.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

#[test]
fn whoever_is_removed_while_it_connects_does_not_get_in() {
    let site = Site::new(&["--client", "thief"]);
    let broker = site.serve();
    let folder = site.path("pki/clients/thief");
    let config = Arc::new(config(
        &site.path("pki/ca.crt"),
        Some((&folder.join("client.crt"), &folder.join("client.key"))),
        BOTH,
    ));
    // The handshake is done before the removal, CONNECT comes after it.
    let mut pending = open(broker.tls_port, &config);
    pending.flush().unwrap();
    while pending.conn.is_handshaking() {
        pending.conn.complete_io(&mut pending.sock).unwrap();
    }
    let password = site.variable("thief", "MQTT_PASSWORD");
    let bytes = connect_bytes(Version::V311, "p", Some(("thief", &password)));
    let mut plain = TcpStream::connect(("127.0.0.1", broker.plain_port)).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(&bytes[..5]).unwrap();
    site.ok(&["client", "remove", "thief"]);
    assert_ne!(connect(&mut pending), Ok(0));
    plain.write_all(&bytes[5..]).unwrap();
    let mut answer = [0; 4];
    plain.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 4]);
}

#[test]
fn a_missing_ledger_is_refused_and_one_address_does_not_keep_the_others_out() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "pending-per-address-max: 500", "pending-per-address-max: 3");
    let broker = site.serve();
    let idle: Vec<TcpStream> = (0..3)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
            socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], broker.plain_port)).into()).unwrap();
            socket.into()
        })
        .collect();
    crate::site::eventually("the fourth is turned away", || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], broker.plain_port)).into()).unwrap();
        drop(socket);
        broker.log().contains("admission.pending-per-address-max is reached")
    });
    let login = Some(("device1", &*site.variable("device1", "MQTT_PASSWORD")));
    let (_, answer) = crate::mqtt::Raw::connect(broker.plain_port, Version::V5, "c", login);
    assert_eq!(answer, "CONNACK");
    drop((idle, broker));
    std::fs::rename(site.path("pki/ledger.jsonl"), site.path("away")).unwrap();
    assert!(site.fails(1, &["serve"]).contains("ledger.jsonl is missing"));
}
