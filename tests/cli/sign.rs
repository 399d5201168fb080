//! Certificate signing requests, made by openssl.

use std::path::Path;
use std::process::Command;

use crate::site::{Site, lockgate};

/// A request of this subject; `more` are arguments of `openssl req`.
fn request(site: &Site, name: &str, subject: &str, more: &[&str]) {
    let file = |ending: &str| site.path(&format!("{name}.{ending}"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-new", "-nodes", "-subj", subject, "-keyout"]).arg(file("key")).arg("-out").arg(file("csr"));
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    openssl.args(if more.contains(&"-newkey") { &[] } else { &key[..] }).args(more);
    let output = openssl.output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_key_that_never_left_its_device_gets_in() {
    let site = Site::new(&["--client-certs", "required"]);
    let broker = site.serve();
    let comes_in = |certificate: &Path, name: &str| {
        let mut bench = lockgate();
        bench.args([
            "bench",
            "connections",
            "--count",
            "1",
            "--url",
            &format!("mqtts://localhost:{}", broker.tls_port),
        ]);
        bench.arg("--ca").arg(site.path("pki/ca.crt")).arg("--cert").arg(certificate);
        bench.arg("--key").arg(site.path(&format!("{name}.key"))).output().unwrap().status.success()
    };
    // What openssl's own configuration puts into a subject is not taken over.
    let kinds: [(&str, &[&str]); 4] = [
        ("p256", &[]),
        ("p384", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("rsa", &["-newkey", "rsa:2048"]),
        ("der", &["-outform", "DER", "-addext", "subjectAltName=DNS:der", "-addext", "extendedKeyUsage=clientAuth"]),
    ];
    for (name, more) in kinds {
        request(&site, name, &format!("/C=AU/O=Widgits/CN={name}"), more);
        let (csr, out) = (site.path(&format!("{name}.csr")), site.path(&format!("{name}.crt")));
        let said = site.ok(&["client", "sign", name, csr.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert!(said.contains("a certificate for its own key") && said.contains("taken it up"), "{said}");
        assert_eq!(
            std::fs::read(&out).unwrap(),
            std::fs::read(site.path(&format!("pki/clients/{name}/client.crt"))).unwrap()
        );
        assert!(comes_in(&out, name), "{name}");
        let text = Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(&out).output().unwrap();
        let text = String::from_utf8_lossy(&text.stdout);
        assert!(text.contains("CA:FALSE") && text.contains("TLS Web Client Authentication"), "{text}");
        assert!(!text.contains("Widgits") && !text.contains("Server Authentication"), "{text}");
    }
    assert_eq!(site.text("pki/ledger.jsonl").matches("\"key-origin\":\"request\"").count(), 4);
    let complaint = site.fails(1, &["client", "renew", "p256"]);
    assert!(complaint.contains("lockgate client sign p256 CSR"), "{complaint}");
    // Its key is not missed here.
    assert!(site.init(&["--client", "p256"]).contains("p256"));
    site.ok(&["client", "remove", "rsa"]);
    assert!(!comes_in(&site.path("rsa.crt"), "rsa"));
}

#[test]
fn a_request_for_more_than_policy_gives_is_refused_with_the_reason() {
    let site = Site::new(&["--client", "pump7"]);
    let ledger = site.text("pki/ledger.jsonl");
    let cases: [(&str, &[&str], &str); 11] = [
        ("/CN=pump7", &[], "it asks for the name \"pump7\": the only one that it can have is pump8"),
        ("/CN=pump8/CN=admin", &[], "it asks for the name \"admin\""),
        ("/CN=pump8", &["-addext", "subjectAltName=DNS:broker.example"], "broker.example"),
        ("/CN=pump8", &["-addext", "subjectAltName=IP:10.0.0.1"], "it asks for the name"),
        ("/CN=pump8", &["-addext", "basicConstraints=critical,CA:TRUE"], "it asks to be a CA"),
        ("/CN=pump8", &["-addext", "keyUsage=keyCertSign"], "certificate signing"),
        ("/CN=pump8", &["-addext", "extendedKeyUsage=serverAuth,clientAuth"], "server authentication"),
        ("/CN=pump8", &["-addext", "extendedKeyUsage=codeSigning"], "signing"),
        ("/CN=pump8", &["-newkey", "rsa:1024"], "its key is RSA of 1024 bits"),
        ("/CN=pump8", &["-sha1"], "it is signed with SHA-1"),
        ("/CN=pump8", &["-addext", "nameConstraints=permitted;DNS:example"], "extension"),
    ];
    for (subject, more, reason) in cases {
        request(&site, "asks", subject, more);
        let complaint = site.fails(1, &["client", "sign", "pump8", site.path("asks.csr").to_str().unwrap()]);
        assert!(complaint.contains("asks.csr is not signed: ") && complaint.contains(reason), "{complaint}");
    }
    // Changed on its way, cut short, something else.
    request(&site, "asks", "/CN=pump8", &["-outform", "DER"]);
    let path = site.path("asks.csr");
    let good = std::fs::read(&path).unwrap();
    let sign = || site.fails(1, &["client", "sign", "pump8", path.to_str().unwrap()]);
    let mut changed = good.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    for bytes in [changed, good[..good.len() / 2].to_vec(), [&good[..], &[0]].concat(), b"-----BEGIN X-----\n".to_vec()]
    {
        std::fs::write(&path, bytes).unwrap();
        let complaint = sign();
        assert!(
            complaint.contains("its signature is broken") || complaint.contains("no certificate signing"),
            "{complaint}"
        );
    }
    // Somebody's key lies here already.
    request(&site, "asks", "/CN=pump7", &[]);
    let complaint = site.fails(1, &["client", "sign", "pump7", path.to_str().unwrap()]);
    assert!(complaint.contains("is another key of pump7"), "{complaint}");
    assert_eq!(site.text("pki/ledger.jsonl"), ledger);
    assert!(!site.path("pki/clients/pump8").exists());
}
