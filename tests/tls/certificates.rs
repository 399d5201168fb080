//! Clients' certificates that end while their clients are connected: by time, or by somebody else's list.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockgate::codec::Version;
use lockgate::pki::{Authority, Entry, Event, Issued, KeyType, Kind, Ledger, ListWanted, Reason, Revocation};
use lockgate::types::Identity;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use crate::describe::describe_all;
use crate::handshake::{Tls, config, open};
use crate::mqtt::connect_bytes;
use crate::site::{Broker, Site, eventually};

const V13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A certificate with so many seconds to live.
fn short_lived(authority: &Authority, name: &str, secs: i64) -> Issued {
    let begun = OffsetDateTime::now_utc() - Duration::days(1) + Duration::minutes(5) + Duration::seconds(secs);
    authority.issue_client("test", &Identity::parse(name).unwrap(), KeyType::EcdsaP256, 1, begun).unwrap()
}

fn connect(site: &Site, broker: &Broker, name: &str, ca: &str) -> Result<(Tls, String), std::io::Error> {
    let (certificate, key) = (site.path(&format!("{name}.crt")), site.path(&format!("{name}.key")));
    let config = config(&site.path(ca), Some((&certificate, &key)), V13);
    let mut tls = open(broker.tls_port, &Arc::new(config));
    // Nobody takes over from another.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let client_id = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    tls.write_all(&connect_bytes(Version::V5, &client_id, None))?;
    let answer = packet(&mut tls)?;
    Ok((tls, answer))
}

/// The next packet; none has more than 127 bytes here.
fn packet(tls: &mut Tls) -> Result<String, std::io::Error> {
    let mut head = [0; 2];
    tls.read_exact(&mut head)?;
    let mut bytes = head.to_vec();
    bytes.resize(2 + usize::from(head[1]), 0);
    tls.read_exact(&mut bytes[2..])?;
    Ok(describe_all(&bytes, Version::V5).remove(0) + &format!(" {}", String::from_utf8_lossy(&bytes[2..])))
}

fn put(site: &Site, name: &str, issued: &Issued) {
    site.write(&format!("{name}.crt"), &issued.certificate_pem);
    site.write(&format!("{name}.key"), &issued.key_pem);
}

#[test]
fn a_session_ends_with_its_certificate_unless_it_may_stay() {
    for (rule, ends) in [("disconnect", true), ("keep", false)] {
        let site = Site::new(&[]);
        site.edit("config/lockgate.yaml", "at-expiry: disconnect", &format!("at-expiry: {rule}"));
        let broker = site.serve();
        let now = OffsetDateTime::now_utc();
        let authority = Authority::load(&site.text("pki/ca.crt"), &site.text("pki/ca.key"), now).unwrap();
        let mut events = Vec::new();
        for (name, secs) in [("short", 8), ("long", 80_000)] {
            let issued = short_lived(&authority, name, secs);
            put(&site, name, &issued);
            let identity = Identity::parse(name).unwrap();
            events.push(Event::Issued(Entry::of(&issued.info, "", Kind::Client, Some(&identity), now)));
        }
        site.write("pki/ledger.jsonl", &(site.text("pki/ledger.jsonl") + &Ledger::lines(&events)));
        site.ok(&["reload"]);
        let (mut short, answer) = connect(&site, &broker, "short", "pki/ca.crt").unwrap();
        // MQTT 5 section 3.2.2.3.9: the client learns of it in time.
        assert!(answer.starts_with("CONNACK") && answer.contains("your certificate expires in 0 days"), "{answer}");
        broker.wait_for("`lockgate client renew \"short\"` makes a new one");
        let (mut long, _) = connect(&site, &broker, "long", "pki/ca.crt").unwrap();
        if ends {
            let farewell = packet(&mut short).unwrap();
            assert!(farewell.starts_with("DISCONNECT 0x98") && farewell.contains("has expired"), "{farewell}");
            broker.wait_for("short disconnected: its certificate has expired");
        } else {
            std::thread::sleep(std::time::Duration::from_secs(11));
            short.write_all(&[0xC0, 0]).unwrap();
            assert!(packet(&mut short).unwrap().starts_with("PINGRESP"));
        }
        assert!(connect(&site, &broker, "short", "pki/ca.crt").is_err());
        long.write_all(&[0xC0, 0]).unwrap();
        assert!(packet(&mut long).unwrap().starts_with("PINGRESP"));
    }
}

#[test]
fn the_list_of_another_ca_is_obeyed_and_never_locks_everybody_out() {
    // A company's CA signs the clients, and keeps its list.
    let site = Site::new(&[]);
    let now = OffsetDateTime::now_utc();
    let (company, _) = Authority::create("company", KeyType::EcdsaP256, 100, now).unwrap();
    let (stranger, _) = Authority::create("stranger", KeyType::EcdsaP256, 100, now).unwrap();
    let mut issued = Vec::new();
    for name in ["good", "thief"] {
        let one =
            company.issue_client("company", &Identity::parse(name).unwrap(), KeyType::EcdsaP256, 30, now).unwrap();
        put(&site, name, &one);
        issued.push(one);
    }
    let list = |of: &Authority, serials: &[Vec<u8>], at: OffsetDateTime| {
        let revoked: Vec<Revocation> = serials
            .iter()
            .map(|serial| Revocation { serial: serial.clone(), at, reason: Reason::KeyCompromise })
            .collect();
        of.revocation_list(&ListWanted { revoked: &revoked, before: None, days: 5, now: at }).unwrap()
    };
    site.write("company.crt", &company.certificate_pem);
    site.write("company.crl", &list(&company, &[], now - Duration::hours(1)));
    site.edit("config/lockgate.yaml", "client-ca: ../pki/ca.crt", "client-ca: ../company.crt");
    site.edit("config/lockgate.yaml", "client-crl: none", "client-crl: ../company.crl");
    let broker = site.serve();
    let enters = |name: &str| connect(&site, &broker, name, "pki/ca.crt");
    let (mut good, _) = enters("good").unwrap();
    let (mut thief, answer) = enters("thief").unwrap();
    assert!(answer.starts_with("CONNACK"), "{answer}");
    // The list changes: who is on it is out, connected or not.
    let thiefs = std::slice::from_ref(&issued[1].info.serial);
    site.write("company.crl", &list(&company, thiefs, now));
    assert!(packet(&mut thief).unwrap().starts_with("DISCONNECT 0x98"));
    assert!(enters("thief").is_err());
    broker.wait_for("the client's certificate is revoked");
    // One that is past its time goes on to be obeyed, and it is said.
    site.write("company.crl", &list(&company, thiefs, now - Duration::days(9)));
    broker.wait_for("fetch the new one");
    assert!(enters("good").is_ok() && enters("thief").is_err());
    // A stranger's has no effect, and it is said.
    site.write("company.crl", &list(&stranger, thiefs, now));
    broker.wait_for("it has no effect");
    assert!(enters("good").is_ok());
    // What is no list changes nothing.
    site.write("company.crl", "nothing");
    eventually("it is refused", || broker.log().contains("not reloaded, all is as it was"));
    assert!(enters("good").is_ok());
    good.write_all(&[0xC0, 0]).unwrap();
    assert!(packet(&mut good).unwrap().starts_with("PINGRESP"));
}

#[test]
fn an_intermediate_that_is_revoked_takes_its_clients_along() {
    let site = Site::new(&[]);
    let script = "
        ec='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
        openssl req -x509 $ec -days 99 -subj /CN=root -keyout root.key -out root.crt
        printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,cRLSign\\n' > int.ext
        openssl req -new $ec -subj /CN=int -keyout int.key -out int.csr
        openssl x509 -req -in int.csr -CA root.crt -CAkey root.key -set_serial 77 -days 50 -extfile int.ext -out int.crt
        printf 'extendedKeyUsage=clientAuth\\n' > leaf.ext
        openssl req -new $ec -subj /CN=leaf -keyout leaf.key -out leaf.csr
        openssl x509 -req -in leaf.csr -CA int.crt -CAkey int.key -set_serial 5 -days 50 -extfile leaf.ext -out one.crt
        cat one.crt int.crt > leaf.crt
        touch index; echo 01 > number
        printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=index\\ncrlnumber=number\\ndefault_md=sha256\\ndefault_crl_days=9\\n' > ca.cnf
        openssl ca -config ca.cnf -gencrl -keyfile root.key -cert root.crt -out before.crl
        openssl ca -config ca.cnf -revoke int.crt -keyfile root.key -cert root.crt
        openssl ca -config ca.cnf -gencrl -keyfile root.key -cert root.crt -out after.crl
        cp before.crl root.crl";
    let (code, said) =
        crate::site::run_with(std::process::Command::new("sh").args(["-ec", script]).current_dir(site.path("")), b"");
    assert_eq!(code, Some(0), "{said}");
    site.edit("config/lockgate.yaml", "client-ca: ../pki/ca.crt", "client-ca: ../root.crt");
    site.edit("config/lockgate.yaml", "client-crl: none", "client-crl: ../root.crl");
    let broker = site.serve();
    let certificates = rustls::pki_types::CertificateDer::pem_file_iter(site.path("leaf.crt")).unwrap();
    let chain: Vec<_> = certificates.map(Result::unwrap).collect();
    let enters = || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(site.path("pki/ca.crt")).unwrap()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(site.path("leaf.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(V13).unwrap();
        let config = config.with_root_certificates(roots).with_client_auth_cert(chain.clone(), key).unwrap();
        let mut tls = open(broker.tls_port, &Arc::new(config));
        tls.write_all(&connect_bytes(Version::V5, "leaf", None))?;
        packet(&mut tls).map(|answer| (tls, answer))
    };
    let (mut leaf, answer) = enters().unwrap();
    assert!(answer.starts_with("CONNACK"), "{answer}");
    std::fs::rename(site.path("after.crl"), site.path("root.crl")).unwrap();
    assert!(packet(&mut leaf).unwrap().starts_with("DISCONNECT 0x98"));
    assert!(enters().is_err());
}

/// A publish by `mosquitto_pub` with whatever `more` says; whether it came through.
fn comes_in(broker: &Broker, more: &[&str]) -> bool {
    let mut command = std::process::Command::new("mosquitto_pub");
    command.args(["-t", "t", "-m", "m", "-q", "1", "-V", "5"]).args(more).current_dir(broker.folder());
    crate::site::run_with(&mut command, b"").0 == Some(0)
}

/// One who is connected in a certain way; what comes is collected until the connection ends.
struct Connected(std::process::Child);

impl Connected {
    fn by(broker: &Broker, id: &str, more: &[&str]) -> Connected {
        let mut command = std::process::Command::new("mosquitto_sub");
        command.args(["-t", "#", "-V", "5", "-i", id]).args(more).current_dir(broker.folder());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        broker.wait_for(&format!("as client \"{id}\""));
        Connected(child)
    }
}

#[test]
fn a_revoked_identity_is_out_on_every_transport_alike() {
    let site = Site::new(&["--client", "thief", "--client", "other"]);
    site.edit("config/lockgate.yaml", "listeners:\n", "listeners:\n  - transport: unix\n    path: ../mqtt.sock\n");
    let broker = site.serve();
    let (plain, tls) = (broker.plain_port.to_string(), broker.tls_port.to_string());
    let password = site.variable("thief", "MQTT_PASSWORD");
    let login = ["-u", "thief", "-P", &password];
    let bundle = ["--cert", "pki/clients/thief/client.crt", "--key", "pki/clients/thief/client.key"];
    let (ca, local) = (["--cafile", "pki/ca.crt"], ["-h", "localhost"]);
    let ways: Vec<(&str, Vec<&str>)> = vec![
        ("tcp", [&local[..], &["-p", &plain], &login].concat()),
        ("unix", [&["--unix", "mqtt.sock"], &login[..]].concat()),
        ("tls-password", [&local[..], &["-p", &tls], &ca, &login].concat()),
        ("tls-certificate", [&local[..], &["-p", &tls], &ca, &bundle].concat()),
    ];
    // A bundle's files go with the revocation: the thief has copies.
    std::fs::create_dir(site.path("stolen")).unwrap();
    for file in ["client.crt", "client.key"] {
        std::fs::copy(site.path(&format!("pki/clients/thief/{file}")), site.path(&format!("stolen/{file}"))).unwrap();
    }
    let ways: Vec<(&str, Vec<String>)> = ways
        .into_iter()
        .map(|(name, more)| (name, more.into_iter().map(|text| text.replace("pki/clients/thief", "stolen")).collect()))
        .collect();
    let words = |more: &[String]| more.iter().map(|word| word.clone().leak() as &str).collect::<Vec<_>>();
    let mut connected = Vec::new();
    for (name, more) in &ways {
        assert!(comes_in(&broker, &words(more)), "{name}: {}", broker.log());
        connected.push((name, Connected::by(&broker, name, &words(more))));
    }
    let kept = site.variable("other", "MQTT_PASSWORD");
    let mut other = Connected::by(&broker, "other", &["-h", "localhost", "-p", &plain, "-u", "other", "-P", &kept]);
    // That a TLS session's ticket is no way around is tested in handshake.rs.
    site.ok(&["client", "revoke", "thief"]);
    for (name, child) in &mut connected {
        eventually(name, || child.0.try_wait().unwrap().is_some());
    }
    for (name, more) in &ways {
        assert!(!comes_in(&broker, &words(more)), "{name} lets the thief in");
    }
    assert!(other.0.try_wait().unwrap().is_none());
    drop(other.0.kill());
    drop(other.0.wait());
}
