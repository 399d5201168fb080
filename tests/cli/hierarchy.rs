//! A root above the CA, a CA for some names alone, and a server certificate from elsewhere.

use std::process::Command;

use lockgate::pki::CertificateInfo;

use crate::site::{Site, lockgate, run_with};

fn secret(site: &Site, name: &str, text: &str) {
    site.write(name, text);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(site.path(name), mode).unwrap();
}

fn shell(site: &Site, script: &str) -> (Option<i32>, String) {
    run_with(Command::new("sh").args(["-ec", script]).current_dir(site.path("")), b"")
}

/// A publish over TLS with all that a bundle has, and nothing else.
fn publishes(site: &Site, port: u16, name: &str, host: &str) -> (Option<i32>, String) {
    let script = format!(
        "cd pki/clients/{name}; mosquitto_pub -h {host} -p {port} -t t -m m -q 1 --cafile ca.crt --cert client.crt --key client.key"
    );
    shell(site, &script)
}

#[test]
fn a_root_that_lies_elsewhere_outlives_the_ca_below_it() {
    let site = Site::empty();
    secret(&site, "root.pass", "the root's\n");
    secret(&site, "ca.pass", "the CA's\n");
    let path = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (root, pass, ca_pass) = (path("medium.key"), path("root.pass"), path("ca.pass"));
    let said = site.init(&[
        "--client",
        "device1",
        "--intermediate",
        "--root-key-out",
        &root,
        "--root-passphrase-file",
        &pass,
        "--ca-passphrase-file",
        &ca_pass,
    ]);
    assert!(said.contains("off this machine"), "{said}");
    // RFC 5280 section 4.2.1.9: the CA signs leaves alone.
    let script = "openssl x509 -in pki/ca.crt -noout -text; openssl verify -CAfile pki/root.crt -untrusted pki/ca.crt pki/server.crt \
                  pki/clients/device1/client.crt; openssl pkey -in medium.key -passin file:root.pass -noout";
    let (code, said) = shell(&site, script);
    assert!(code == Some(0) && said.contains("CA:TRUE, pathlen:0"), "{said}");
    assert!(site.text("medium.key").contains("ENCRYPTED") && site.text("pki/ca.key").contains("ENCRYPTED"));
    // The root's key is nowhere else: no other file has a key that fits the root.
    let fits = "want=$(openssl x509 -in pki/root.crt -noout -pubkey)
        for key in $(grep -rl 'PRIVATE KEY' . --include=*.key | grep -v medium.key); do
          if [ \"$(openssl pkey -in $key -pubout -passin file:ca.pass)\" = \"$want\" ]; then echo FOUND $key; fi; done";
    assert!(!shell(&site, fits).1.contains("FOUND"));
    let broker = site.serve();
    // Who trusts the root alone verifies the chain that the server shows.
    assert_eq!(site.text("pki/clients/device1/ca.crt"), site.text("pki/root.crt"));
    assert_eq!(publishes(&site, broker.tls_port, "device1", "localhost").0, Some(0), "{}", broker.log());
    let shown = site.ok(&["ca", "show"]);
    assert!(shown.contains("its root:") && shown.contains("under a passphrase"), "{shown}");
    shell(
        &site,
        "cat pki/clients/device1/client.crt pki/ca.crt > retired.crt; cp pki/clients/device1/client.key retired.key",
    );
    // The next CA: clients keep what they trust.
    assert!(site.fails(2, &["ca", "rotate"]).contains("--root-key FILE"));
    let with = |arguments: &[&str]| {
        let mut command = lockgate();
        command.args(arguments).arg("--dir").arg(site.path("")).env("LOCKGATE_CA_PASSPHRASE_FILE", &ca_pass);
        run_with(&mut command, b"")
    };
    let (code, said) = with(&["ca", "rotate", "--root-key", &root, "--root-passphrase-file", &pass]);
    assert!(code == Some(0) && said.contains("1 client(s) have certificates of the old one"), "{said}");
    assert_eq!(site.text("pki/clients/device1/ca.crt"), site.text("pki/root.crt"));
    assert_eq!(publishes(&site, broker.tls_port, "device1", "localhost").0, Some(0), "{}", broker.log());
    assert_eq!(with(&["client", "renew", "device1"]).0, Some(0));
    assert_eq!(with(&["ca", "retire"]).0, Some(0));
    assert_eq!(with(&["server", "renew"]).0, Some(0));
    assert_eq!(publishes(&site, broker.tls_port, "device1", "localhost").0, Some(0), "{}", broker.log());
    // What the retired CA issued is judged by the ledger, though listeners trust all below the root.
    site.edit("config/lockgate.yaml", "client-ca: ../pki/ca.crt", "client-ca: ../pki/root.crt");
    site.ok(&["reload"]);
    let (code, _) = shell(
        &site,
        &format!(
            "mosquitto_pub -h localhost -p {} -t t -m m -q 1 --cafile pki/root.crt --cert retired.crt --key retired.key",
            broker.tls_port
        ),
    );
    assert_ne!(code, Some(0));
    broker.wait_for("is not current in the ledger");
    // Another server, which knows the root alone, needs the whole chain: the bundle for it has that.
    site.ok(&["client", "export", "device1", "--for", "pem", "--out", &path("handed")]);
    let (code, said) =
        shell(&site, "openssl verify -CAfile pki/root.crt -untrusted handed/chain.crt handed/client.crt");
    assert!(code == Some(0), "{said}");
    // It is for new sites.
    let again =
        site.run(&["init", "--yes", "--intermediate", "--root-passphrase-file", &pass, "--root-key-out", "x.key"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("--intermediate is for a new CA"), "{said}");
    // Nothing is half-made where the root's key cannot go.
    let other = Site::empty();
    let refused = |out: &str| {
        let mut command = lockgate();
        command.args(["init", "--yes", "--intermediate", "--root-passphrase-file", &pass, "--root-key-out", out]);
        run_with(command.arg("--dir").arg(other.path("")), b"")
    };
    let (code, said) = refused(&root);
    assert!(code == Some(1) && said.contains("medium.key exists") && !other.path("pki/ca.crt").exists(), "{said}");
    let (code, said) = refused(other.path("pki/root.key").to_str().unwrap());
    assert!(code == Some(1) && said.contains("this site's own folder"), "{said}");
    let (code, said) = refused("/nowhere/root.key");
    assert!(code == Some(1) && said.contains("/nowhere/") && !other.path("pki/ca.crt").exists(), "{said}");
}

#[test]
fn a_ca_for_some_names_alone_issues_for_no_others() {
    let site = Site::new(&["--permit", "water.example", "--permit", "10.1.0.0/16", "--client", "device1"]);
    // RFC 5280 section 4.2.1.10, as OpenSSL reads it.
    let (_, text) = shell(&site, "openssl x509 -in pki/ca.crt -noout -text");
    assert!(text.contains("DNS:water.example") && text.contains("IP:10.1.0.0/255.255.0.0"), "{text}");
    assert!(shell(&site, "openssl verify -CAfile pki/ca.crt pki/server.crt").1.contains("OK"));
    site.ok(&["server", "renew", "--san", "pumps.water.example", "--san", "10.1.2.3"]);
    assert!(shell(&site, "openssl verify -CAfile pki/ca.crt pki/server.crt").1.contains("OK"));
    assert!(site.fails(1, &["server", "renew", "--san", "bank.example"]).contains("may not issue for bank.example"));
    assert!(site.ok(&["ca", "show"]).contains("water.example, 10.1.0.0/16"));
    let broker = site.serve();
    assert_eq!(publishes(&site, broker.tls_port, "device1", "localhost").0, Some(0), "{}", broker.log());
    // The next CA is bound as well.
    site.ok(&["ca", "rotate"]);
    assert!(CertificateInfo::read(&site.path("pki/ca.crt")).unwrap().permitted.is_some());
}

/// In namespaces of its own: root there, and folders over those of the system.
fn contained(site: &Site, script: &str) -> (Option<i32>, String) {
    let all = format!(
        "mkdir -p t/local t/certs; mount --bind t/local /usr/local/share/ca-certificates; mount --bind t/certs /etc/ssl/certs\n{script}"
    );
    run_with(Command::new("unshare").args(["-rm", "sh", "-ec", &all]).current_dir(site.path("")), b"")
}

#[test]
fn a_ca_for_every_name_is_not_trusted_system_wide_unless_that_is_said() {
    let binary = env!("CARGO_BIN_EXE_lockgate");
    let open = Site::new(&[]);
    let (code, said) = contained(&open, &format!("{binary} ca install --dir ."));
    assert!(
        code == Some(1) && said.contains("may vouch for every name there is") && said.contains("--permit"),
        "{said}"
    );
    let trusted = "openssl verify -CApath /etc/ssl/certs pki/server.crt";
    let (code, said) = contained(&open, &format!("{binary} ca install --any-name --dir . && {trusted}"));
    assert!(code == Some(0) && said.contains("whoever gets its key can pass for any bank"), "{said}");
    // One that may issue for all but a few names, or for few names and any address, is as open.
    for constraint in ["excluded;DNS:bad.example", "permitted;DNS:good.example"] {
        let site = Site::empty();
        let script = format!(
            "mkdir own; openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=x -addext 'nameConstraints={constraint}' -keyout own/ca.key -out own/ca.crt; {binary} ca import own --dir .; {binary} init --yes --dir . --plain-port 0 --tls-port 0"
        );
        let (code, said) = shell(&site, &script);
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = contained(&site, &format!("{binary} ca install --dir ."));
        assert!(code == Some(1) && said.contains("may vouch for every name there is"), "{constraint}: {said}");
    }
    let bound = Site::new(&["--permit", "water.example"]);
    let script = format!(
        "{binary} ca install --dir .; {trusted}; {binary} ca install --remove --dir .; ! {trusted}; ! {binary} ca install --remove --dir ."
    );
    let (code, said) = contained(&bound, &script);
    assert!(code == Some(0) && said.contains("will believe what") && said.contains("trusts the CA no more"), "{said}");
    assert!(said.contains("was not installed"), "{said}");
}

#[test]
fn a_server_certificate_of_a_company_ca_goes_with_clients_of_our_own() {
    let site = Site::empty();
    // As certbot lays it out: leaf and intermediate in fullchain.pem, the key in privkey.pem.
    let script = "mkdir -p live; cd live; printf 'basicConstraints=critical,CA:TRUE,pathlen:0' > ca.ext; printf 'subjectAltName=DNS:localhost' > ext
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 99 -subj '/O=Company/CN=Root' -keyout root.key -out root.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/O=Company/CN=R3' -keyout r3.key -out r3.csr
        openssl x509 -req -in r3.csr -CA root.pem -CAkey root.key -set_serial 1 -days 50 -extfile ca.ext -out r3.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout privkey.pem -out leaf.csr
        openssl x509 -req -in leaf.csr -CA r3.pem -CAkey r3.key -set_serial 2 -days 9 -extfile ext -out leaf.pem
        cat leaf.pem r3.pem > fullchain.pem; chmod 600 privkey.pem";
    let (code, said) = shell(&site, script);
    assert_eq!(code, Some(0), "{said}");
    site.init(&["--client", "device1"]);
    let at = |name: &str| site.path(&format!("live/{name}")).display().to_string();
    site.edit(
        "config/lockgate.yaml",
        "certificate: ../pki/server.crt",
        &format!("certificate: {}", at("fullchain.pem")),
    );
    site.edit("config/lockgate.yaml", "key: ../pki/server.key", &format!("key: {}", at("privkey.pem")));
    site.edit("config/lockgate.yaml", "server-ca: own", &format!("server-ca: {}", at("root.pem")));
    site.ok(&["client", "add", "pump7"]);
    let broker = site.serve();
    // A bundle trusts what the server shows, and its certificate is our CA's.
    assert_eq!(publishes(&site, broker.tls_port, "pump7", "localhost").0, Some(0), "{}", broker.log());
    // It is renewed elsewhere, and taken up as it is put in place.
    assert!(site.fails(1, &["server", "renew"]).contains("was not made here"));
    let renew = "cd live; openssl x509 -req -in leaf.csr -CA r3.pem -CAkey r3.key -set_serial 3 -days 9 -extfile ext -out leaf.pem
        cat leaf.pem r3.pem > new; mv new fullchain.pem";
    assert_eq!(shell(&site, renew).0, Some(0));
    broker.wait_for("reloaded");
    assert_eq!(publishes(&site, broker.tls_port, "pump7", "localhost").0, Some(0), "{}", broker.log());
    // One that is no more this company's: what clients are told to trust does not fit, and that is said.
    site.edit("config/lockgate.yaml", "live/root.pem", "pki/ca.crt");
    assert!(site.ok(&["serve", "--check"]).contains("does not lead to"));
}
