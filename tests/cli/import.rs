//! A CA that was made elsewhere, taken over.

use std::process::Command;

use lockgate::pki::CertificateInfo;

use crate::site::{Site, lockgate, run_with};

fn shell(site: &Site, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(site.path("")).env("PATH", path());
    let (code, said) = run_with(&mut command, b"");
    assert_eq!(code, Some(0), "{script}: {said}");
    said
}

fn path() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/share/easy-rsa"
}

/// `ca import`, with the passphrase in the file `pass`.
fn import(site: &Site, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = lockgate();
    command.args(["ca", "import"]).args(arguments).current_dir(site.path(""));
    run_with(command.env("LOCKGATE_CA_PASSPHRASE_FILE", site.path("pass")), b"")
}

fn taken_over(site: &Site, arguments: &[&str]) -> String {
    let (code, said) = import(site, arguments);
    assert_eq!(code, Some(0), "{said}");
    site.init(&["--yes"]);
    said
}

/// A publish over TLS as `mosquitto_pub` does it, with the certificate of a bundle if it is named.
fn publishes(site: &Site, port: u16, host: &str, client: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new("mosquitto_pub");
    let port = port.to_string();
    command.args(["-h", host, "-p", &port, "-t", "t", "-m", "m", "-q", "1", "--cafile", "pki/ca.crt"]);
    if let Some(name) = client {
        command.args(["--cert", &format!("pki/clients/{name}/client.crt")]);
        command.args(["--key", &format!("pki/clients/{name}/client.key")]);
    }
    run_with(command.current_dir(site.path("")), b"")
}

/// What Mosquitto's manual page on TLS says, line by line; the CA's key under a passphrase.
const MANUAL_PAGE: &str = "mkdir man; cd man
    openssl req -new -x509 -days 3650 -extensions v3_ca -keyout ca.key -out ca.crt -subj '/O=Water/CN=Water CA' -passout pass:open
    openssl genrsa -out server.key 2048
    openssl req -out server.csr -key server.key -new -subj '/O=Water/CN=localhost'
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -passin pass:open -CAcreateserial -out server.crt -days 365
    openssl genrsa -out client.key 2048
    openssl req -out client.csr -key client.key -new -subj '/O=Water/CN=pump7'
    openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -passin pass:open -CAcreateserial -out client.crt -days 365
    echo open > ../pass; chmod 600 ../pass";

#[test]
fn what_the_manual_page_of_mosquitto_makes_is_served_with_a_warning_and_mended_by_two_commands() {
    let site = Site::empty();
    shell(&site, MANUAL_PAGE);
    let (code, said) = import(&site, &["--dry-run", "man"]);
    assert!(code == Some(0) && said.contains("Nothing was changed") && !site.path("pki").exists(), "{said}");
    let said = taken_over(&site, &["man"]);
    assert!(
        said.contains("man/server.crt: an X.509 v1 certificate") && said.contains("`lockgate server renew`"),
        "{said}"
    );
    assert!(said.contains("pump7 cannot come in; `lockgate client renew pump7`"), "{said}");
    assert!(site.text("pki/ca.key").contains("BEGIN ENCRYPTED PRIVATE KEY"));
    let broker = site.serve();
    broker.wait_for("an X.509 v1 certificate, without names: modern clients refuse it");
    // OpenSSL itself takes it as long as nobody asks for a name.
    let script = format!(
        "openssl s_client -connect 127.0.0.1:{} -CAfile pki/ca.crt -verify_return_error </dev/null 2>&1",
        broker.tls_port
    );
    assert!(shell(&site, &script).contains("Verify return code: 0 (ok)"));
    let (code, said) = publishes(&site, broker.tls_port, "localhost", Some("pump7"));
    assert!(code != Some(0), "{said}");
    for command in [&["server", "renew"][..], &["client", "renew", "pump7"]] {
        let mut mend = lockgate();
        mend.args(command).arg("--dir").arg(site.path("")).env("LOCKGATE_CA_PASSPHRASE_FILE", site.path("pass"));
        let (code, said) = run_with(&mut mend, b"");
        assert!(code == Some(0) && said.contains("has taken it up"), "{said}");
    }
    let (code, said) = publishes(&site, broker.tls_port, "localhost", Some("pump7"));
    assert_eq!(code, Some(0), "{said}{}", broker.log());
    let ledger = site.ok(&["ca", "ledger"]);
    assert!(ledger.contains("renewed by") && ledger.contains("imported"), "{ledger}");
    // There is a CA now.
    let (code, said) = import(&site, &["man"]);
    assert!(code == Some(1) && said.contains("this site has a CA") && said.contains("`client-ca`"), "{said}");
}

#[test]
fn easy_rsa_comes_over_with_its_books() {
    let site = Site::empty();
    let script = "export EASYRSA_BATCH=1
        easyrsa init-pki; easyrsa build-ca nopass; easyrsa --subject-alt-name=DNS:localhost build-server-full broker nopass
        for name in one two three; do easyrsa build-client-full $name nopass; done
        easyrsa revoke two; easyrsa gen-crl; mv pki easy; rm -r easy/issued/three.crt easy/certs_by_serial";
    shell(&site, script);
    let said = taken_over(&site, &["easy"]);
    assert!(said.contains("Client:  one, with its key") && said.contains("two, with its key, revoked"), "{said}");
    assert!(said.contains("three, good, of which index.txt alone knows"), "{said}");
    assert!(site.path("pki/clients/one/client.key").exists() && !site.path("pki/clients/two").exists());
    let broker = site.serve();
    assert_eq!(publishes(&site, broker.tls_port, "localhost", Some("one")).0, Some(0), "{}", broker.log());
    // What the books know is admitted, what they revoke is not: its files are still where they were.
    for (name, revoked) in [("three", false), ("two", true)] {
        let find = format!(
            "mkdir -p pki/clients/{name}; cp $(grep -rlE 'CN ?= ?{name}$' easy --include=*.crt --include=*.pem | head -1) pki/clients/{name}/client.crt"
        );
        if revoked {
            shell(&site, &find);
            shell(
                &site,
                "cp easy/revoked/private_by_serial/*.key pki/clients/two/client.key; chmod 600 pki/clients/two/client.key",
            );
            assert_ne!(publishes(&site, broker.tls_port, "localhost", Some(name)).0, Some(0));
            broker.wait_for("is not current in the ledger");
        }
    }
    assert!(site.ok(&["client", "list"]).contains("three"));
    // The ledger can be made anew, but for what only the books knew.
    let before = site.ok(&["ca", "ledger"]);
    std::fs::write(site.path("pki/ledger.jsonl"), "{torn\n").unwrap();
    let said = site.ok(&["ca", "ledger", "--rebuild"]);
    assert!(said.contains("line(s) 1 could not be read") && site.text("pki/ledger.damaged") == "{torn\n", "{said}");
    let after = site.ok(&["ca", "ledger"]);
    let named = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.contains(&format!(" {name} ")))?;
        Some(line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    assert!(named(&before, "one").is_some() && named(&before, "one") == named(&after, "one"), "{before}{after}");
    assert_eq!(named(&before, "two"), named(&after, "two"));
}

#[test]
fn mkcert_comes_over_and_those_without_a_name_of_their_own_are_told() {
    let site = Site::empty();
    shell(&site, "export CAROOT=$PWD/root; mkcert broker.local localhost; mkcert -client device1");
    let said = taken_over(&site, &["root", "broker.local+1.pem", "broker.local+1-key.pem", "device1-client.pem"]);
    assert!(said.contains("Server:  broker.local, localhost"), "{said}");
    assert!(said.contains("device1-client.pem: left out: it has no common name"), "{said}");
    site.ok(&["client", "add", "device1"]);
    let broker = site.serve();
    assert_eq!(publishes(&site, broker.tls_port, "localhost", Some("device1")).0, Some(0), "{}", broker.log());
}

#[test]
fn what_is_wrong_with_certificates_is_said_with_what_mends_it() {
    let site = Site::empty();
    // The same subject for all, as many a guide has it; no alternative name; a key that is another's.
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 99 -subj /CN=localhost -keyout ca.key -out ca.crt
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        printf 'basicConstraints=CA:FALSE\nauthorityKeyIdentifier=none\nsubjectKeyIdentifier=none\n' > ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial 7 -days 9 -extfile ext -out server.crt
        openssl genrsa -out client.key 2048
        openssl req -new -key server.key -subj '/CN=pump 7' -out bad.csr
        openssl x509 -req -in bad.csr -CA ca.crt -CAkey ca.key -set_serial 8 -days 9 -extfile ext -out bad.crt
        printf 'extendedKeyUsage=serverAuth' > ext
        openssl req -newkey rsa:2048 -nodes -subj /CN=pump8 -keyout pump8.key -out pump8.csr
        openssl x509 -req -in pump8.csr -CA ca.crt -CAkey ca.key -set_serial 9 -sha1 -days 9 -out pump8.crt
        openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=stranger -addext basicConstraints=critical,CA:FALSE -keyout s.key -out stranger.crt
        mkdir all; mv *.crt *.key all; rm all/s.key";
    shell(&site, script);
    let said = taken_over(&site, &["all", "--ca", "all/ca.crt"]);
    let finds = |file: &str, what: &str| {
        let found = said.lines().any(|line| line.contains(&format!("all/{file}: ")) && line.contains(what));
        assert!(found, "{file}: {what}\n{said}");
    };
    finds(
        "server.crt",
        "its subject is the CA's: clients may take it for self-signed (OpenSSL's error 18); `lockgate server renew`",
    );
    finds("server.crt", "it names no host (subjectAltName)");
    finds("bad.crt", "\"pump 7\" is no identity's name");
    finds(
        "pump8.crt",
        "an X.509 v1 certificate, which is refused: pump8 cannot come in; `lockgate client renew pump8`",
    );
    finds("pump8.crt", "it is signed with SHA-1");
    finds("stranger.crt", "left out: CN=stranger issued CN=stranger, not this CA");
    // Error 18, and then no more.
    let broker = site.serve();
    site.ok(&["client", "add", "good"]);
    assert_ne!(publishes(&site, broker.tls_port, "localhost", Some("good")).0, Some(0));
    site.ok(&["server", "renew"]);
    site.ok(&["client", "renew", "pump8"]);
    for name in ["good", "pump8"] {
        assert_eq!(publishes(&site, broker.tls_port, "localhost", Some(name)).0, Some(0), "{}", broker.log());
    }
}

#[test]
fn a_key_that_is_another_s_and_a_ca_of_version_1_are_told() {
    let site = Site::empty();
    let script = "openssl req -newkey rsa:2048 -nodes -subj '/O=Old/CN=Old CA' -keyout ca.key -out ca.csr
        openssl x509 -req -in ca.csr -signkey ca.key -days 99 -out ca.crt
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        printf 'subjectAltName=DNS:localhost' > ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial 7 -days 9 -extfile ext -out server.crt
        openssl genrsa -out server.key 2048
        mkdir old; mv *.crt *.key old";
    shell(&site, script);
    let (code, said) = import(&site, &["old"]);
    assert!(code == Some(1) && said.contains("old/ca.crt: an X.509 v1 certificate, without CA:TRUE"), "{said}");
    assert!(!site.path("pki").exists());
    // What it says to type does it: the same name and key, and what was issued stays good.
    let command = said.lines().find(|line| line.trim().starts_with("openssl ")).unwrap().trim().to_owned();
    shell(&site, &command);
    shell(&site, "mv old/ca.crt.v3 old/ca.crt");
    let said = taken_over(&site, &["old"]);
    assert!(said.contains("server.crt: the key old/server.key does not belong to it: it is left out"), "{said}");
    assert!(CertificateInfo::read(&site.path("pki/ca.crt")).unwrap().is_ca);
    let script = "openssl verify -CAfile pki/ca.crt old/server.crt pki/server.crt";
    assert!(shell(&site, script).contains("old/server.crt: OK"));
    for (arguments, what) in [
        (&["nowhere"][..], "cannot read nowhere"),
        (&["old/server.key"], "there is no CA's certificate here"),
        (&["old", "--server", "old/server.key"], "there is no server certificate in it"),
    ] {
        let other = Site::empty();
        let mut all = arguments.to_vec();
        all.extend(["--dir", other.path("").to_str().unwrap()].map(|text| &*text.to_owned().leak()));
        let (code, said) = import(&site, &all);
        assert!(code == Some(1) && said.contains(what) && !other.path("pki").exists(), "{said}");
    }
}

/// A CA of openssl's, and two clients of it with their keys; one of them is revoked, in books or in a list.
const TWO_CLIENTS: &str = "mkdir old; cd old; printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n' > ../ext
    openssl req -x509 -newkey rsa:2048 -nodes -days 99 -subj '/O=Old/CN=Old CA' -keyout ca.key -out ca.crt
    for name in good thief; do
      openssl req -newkey rsa:2048 -nodes -subj /CN=$name -keyout $name.key -out ../$name.csr
      openssl x509 -req -in ../$name.csr -CA ca.crt -CAkey ca.key -set_serial 0x${#name}0 -days 9 -extfile ../ext -out $name.crt
    done; cp thief.crt thief.key ..; chmod 600 ../thief.key";

#[test]
fn what_was_revoked_stays_so_whatever_form_that_came_in_and_whatever_key_identifiers_say() {
    // In books, under a CA of the same name and key that was made anew, with another key identifier.
    let books = "printf 'R\\t400101000000Z\\t260101000000Z,keyCompromise\\t50\\tunknown\\t/CN=thief\\n' > old/index.txt
        openssl req -x509 -new -key old/ca.key -days 99 -subj '/O=Old/CN=Old CA' -addext subjectKeyIdentifier=01020304 -addext authorityKeyIdentifier=none -out old/ca.crt";
    // In a list, as DER.
    let list = "printf 'R\\t400101000000Z\\t260101000000Z\\t50\\tunknown\\t/CN=thief\\n' > db; echo 01 > number
        printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=db\\ncrlnumber=number\\ndefault_md=sha256\\ndefault_crl_days=9\\n' > conf
        openssl ca -config conf -gencrl -keyfile old/ca.key -cert old/ca.crt | openssl crl -outform DER -out old/list.crl";
    for how in [books, list] {
        let site = Site::empty();
        shell(&site, TWO_CLIENTS);
        shell(&site, how);
        let said = taken_over(&site, &["old"]);
        assert!(said.contains("thief, with its key, revoked"), "{said}");
        let broker = site.serve();
        let publish = |name: &str, files: &str| {
            let script = format!(
                "mosquitto_pub -h localhost -p {} -t t -m m -q 1 --cafile pki/ca.crt --cert {files}/{name}.crt --key {files}/{name}.key",
                broker.tls_port
            );
            run_with(Command::new("sh").args(["-ec", &script]).current_dir(site.path("")), b"").0
        };
        assert_eq!(publish("good", "old"), Some(0), "{}", broker.log());
        assert_ne!(publish("thief", "."), Some(0));
        broker.wait_for("is not current in the ledger");
    }
    // A line that cannot be read may be one that revokes.
    let site = Site::empty();
    shell(&site, TWO_CLIENTS);
    site.write("old/index.txt", "R\tsome day\t260101000000Z\t50\tunknown\t/CN=thief\n");
    let (code, said) = import(&site, &["old"]);
    assert!(
        code == Some(1) && said.contains("index.txt: line 1 is none of openssl's books") && !site.path("pki").exists(),
        "{said}"
    );
}

#[test]
fn an_imported_ca_without_its_ledger_lets_nobody_in() {
    let site = Site::empty();
    shell(&site, TWO_CLIENTS);
    let server = "cd old; printf 'subjectAltName=DNS:localhost' > ../ext; openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out ../s.csr
        openssl x509 -req -in ../s.csr -CA ca.crt -CAkey ca.key -set_serial 9 -days 9 -extfile ../ext -out server.crt; rm ca.key";
    shell(&site, server);
    let said = taken_over(&site, &["old"]);
    assert!(said.contains("its key is not there"), "{said}");
    std::fs::remove_file(site.path("pki/ledger.jsonl")).unwrap();
    assert!(site.fails(1, &["serve", "--check"]).contains("`lockgate ca ledger --rebuild`"));
    site.ok(&["ca", "ledger", "--rebuild"]);
    site.ok(&["serve", "--check"]);
}

#[test]
fn equal_serial_numbers_and_a_stranger_s_sealed_key_are_told_and_stop_nothing() {
    let site = Site::empty();
    shell(&site, &TWO_CLIENTS.replace("0x${#name}0", "7"));
    shell(
        &site,
        "openssl genpkey -algorithm RSA -aes256 -pass pass:other -out old/Camera.key; echo wrong > pass; chmod 600 pass",
    );
    let (code, said) = import(&site, &["old"]);
    assert!(code == Some(0) && said.contains("another certificate has its serial number, 07"), "{said}");
}
