//! What `client export` hands out, with the programs that it is for.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clients::{node, python};
use crate::site::{Broker, Site, run_with};

fn served() -> (Site, Broker) {
    let site = Site::new(&["--client", "device1", "--acl", "own"]);
    let broker = site.serve();
    // The ports that the kernel chose, for what names them.
    site.edit("config/lockgate.yaml", "port: 0", &format!("port: {}", broker.plain_port));
    site.edit("config/lockgate.yaml", "port: 0", &format!("port: {}", broker.tls_port));
    (site, broker)
}

fn export(site: &Site, name: &str, arguments: &[&str]) -> (PathBuf, String) {
    let out = site.path(name);
    let place = ["client", "export", "device1", "--host", "localhost", "--out", out.to_str().unwrap(), "--for"];
    let said = site.ok(&[&place[..], arguments].concat());
    (out, said)
}

fn openssl(arguments: &[&str], folder: &Path) -> String {
    let (code, text) = run_with(Command::new("openssl").args(arguments).current_dir(folder), b"");
    assert_eq!(code, Some(0), "{arguments:?}: {text}");
    text
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}

#[test]
fn the_python_program_says_hello_and_hears_it() {
    let (site, broker) = served();
    let (folder, _) = export(&site, "python", &["python-paho"]);
    let (code, text) = run_with(python().arg(folder.join("client.py")), b"");
    assert_eq!((code, text.as_str()), (Some(0), "device1/hello hello\n"), "{}", broker.log());
}

#[test]
fn the_node_program_says_hello_and_hears_it() {
    let (site, broker) = served();
    let (folder, _) = export(&site, "node", &["node-mqtt"]);
    let (code, text) = run_with(node().arg(folder.join("client.js")), b"");
    assert_eq!((code, text.as_str()), (Some(0), "device1/hello hello\n"), "{}", broker.log());
}

#[test]
fn pem_is_a_bundle_that_mosquitto_pub_takes() {
    let (site, broker) = served();
    let (folder, _) = export(&site, "pem", &["pem"]);
    assert!(openssl(&["verify", "-CAfile", "ca.crt", "client.crt"], &folder).contains("OK"));
    assert_eq!(std::fs::read_to_string(folder.join("chain.crt")).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!((mode(&folder), mode(&folder.join("client.key")), mode(&folder.join("ca.crt"))), (0o700, 0o600, 0o644));
    let port = broker.tls_port.to_string();
    let mut publish = Command::new("mosquitto_pub");
    publish.args(["-h", "localhost", "-p", &port, "-q", "1", "-t", "device1/x", "-m", "y", "-u", "device1", "-P"]);
    publish.arg(site.variable("device1", "MQTT_PASSWORD")).current_dir(&folder);
    publish.args(["--cafile", "ca.crt", "--cert", "client.crt", "--key", "client.key"]);
    let (code, text) = run_with(&mut publish, b"");
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn pkcs_12_and_der_are_what_openssl_and_java_read() {
    let (site, _broker) = served();
    for (name, arguments, cipher) in
        [("new", &["p12"][..], "AES-256-CBC"), ("old", &["p12", "--legacy"], "pbeWithSHA1And3-KeyTripleDES-CBC")]
    {
        let (folder, said) = export(&site, name, arguments);
        let password = said.lines().find_map(|line| line.split_once("password: ")).unwrap().1.to_owned();
        let pass = format!("pass:{password}");
        // OpenSSL 3 keeps the old ciphers apart.
        let info = ["pkcs12", "-info", "-noout", "-legacy", "-in", "device1.p12", "-passin", &pass];
        let said = openssl(&info, &folder);
        assert!(said.contains(cipher), "{said}");
        assert_eq!(mode(&folder.join("device1.p12")), 0o600);
        let nodes = ["pkcs12", "-nodes", "-legacy", "-in", "device1.p12", "-passin", &pass];
        let all = openssl(&nodes, &folder);
        assert!(all.matches("BEGIN CERTIFICATE").count() == 2 && all.contains("BEGIN PRIVATE KEY"));
    }
    let (folder, _) = export(&site, "der", &["der"]);
    let subject = openssl(&["x509", "-inform", "DER", "-in", "client.der", "-noout", "-subject"], &folder);
    assert!(subject.contains("CN = device1"), "{subject}");
    openssl(&["x509", "-inform", "DER", "-in", "ca.der", "-noout"], &folder);
    openssl(&["pkey", "-inform", "DER", "-in", "client-key.der", "-noout"], &folder);
    // Java, where it is.
    let (folder, said) = export(&site, "java", &["java"]);
    let password = said.lines().find_map(|line| line.split_once("password: ")).unwrap().1;
    assert!(std::fs::read_to_string(folder.join("Client.java")).unwrap().contains("ssl://localhost:"));
    if Command::new("keytool").arg("-help").output().is_ok() {
        for (store, kind) in [("keystore.p12", "PrivateKeyEntry"), ("truststore.p12", "trustedCertEntry")] {
            let mut list = Command::new("keytool");
            list.args(["-list", "-storetype", "PKCS12", "-keystore", store, "-storepass", password]);
            let (code, text) = run_with(list.current_dir(&folder), b"");
            assert!(code == Some(0) && text.contains(kind), "{text}");
        }
    }
}

#[test]
fn c_arrays_compile_and_hold_the_certificates() {
    let (site, _broker) = served();
    let (folder, _) = export(&site, "c", &["c-header"]);
    let program = "#include <stdio.h>\n#include <string.h>\n#include \"mqtt_device1.h\"\nint main(void) {\n\
         fwrite(mqtt_client_cert_der, 1, sizeof mqtt_client_cert_der, stdout);\n\
         return strlen(mqtt_ca_pem) + 1 == sizeof mqtt_ca_pem && sizeof mqtt_client_key_der > 100 && sizeof mqtt_ca_der > 100 &&\n\
         strlen(mqtt_client_cert_pem) && strlen(mqtt_client_key_pem) && strlen(MQTT_PASSWORD) && MQTT_PORT > 0 ? 0 : 1; }\n";
    std::fs::write(folder.join("main.c"), program).unwrap();
    let mut gcc = Command::new("gcc");
    let (code, text) = run_with(gcc.args(["-Wall", "-Werror", "-o", "main", "main.c"]).current_dir(&folder), b"");
    assert_eq!(code, Some(0), "{text}");
    let output = Command::new(folder.join("main")).output().unwrap();
    assert!(output.status.success());
    let info = lockgate::pki::CertificateInfo::parse(&output.stdout).unwrap();
    assert_eq!(info.common_name.as_deref(), Some("device1"));
    let (folder, _) = export(&site, "esp", &["esp-idf"]);
    let config = std::fs::read_to_string(folder.join("mqtt_client_config.c")).unwrap();
    assert!(config.contains(".broker.verification.certificate = mqtt_ca_pem"), "{config}");
}

#[test]
fn configurations_for_others_name_the_files_where_they_will_lie() {
    let (site, broker) = served();
    let prefix = ["--path-prefix", "/etc/remote"];
    let (folder, _) = export(&site, "bridge", &[&["mosquitto-bridge"], &prefix[..]].concat());
    let text = std::fs::read_to_string(folder.join("bridge.conf")).unwrap();
    assert!(
        text.contains("bridge_cafile /etc/remote/ca.crt") && text.contains(&format!("localhost:{}", broker.tls_port))
    );
    let (folder, _) = export(&site, "red", &[&["node-red"], &prefix[..]].concat());
    let flow: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("flow.json")).unwrap()).unwrap();
    let tls = flow.as_array().unwrap().iter().find(|node| node["type"] == "tls-config").unwrap();
    assert_eq!((tls["ca"].as_str(), tls["verifyservercert"].as_bool()), (Some("/etc/remote/ca.crt"), Some(true)));
    let (folder, _) = export(&site, "ha", &["home-assistant"]);
    let text = std::fs::read_to_string(folder.join("home-assistant.txt")).unwrap();
    assert!(text.contains("Ignore validation    off"), "{text}");
}

#[test]
fn what_is_taken_is_here_no_more() {
    let (site, _broker) = served();
    assert!(site.ok(&["status"]).contains("1 in "));
    let out = site.path("handed.tar");
    let taken = ["client", "export", "device1", "--host", "localhost", "--for", "pem", "--archive", "--take", "--out"];
    let said = site.ok(&[&taken[..], &[out.to_str().unwrap()]].concat());
    assert!(said.contains("neither key nor password"), "{said}");
    assert_eq!(mode(&out), 0o600);
    let (_, names) = run_with(Command::new("tar").arg("-tf").arg(&out), b"");
    assert!(names.contains("device1-pem/client.key") && names.contains("device1-pem/mqtt.env"), "{names}");
    assert!(!site.path("pki/clients/device1/client.key").exists());
    assert!(site.path("pki/clients/device1/client.crt").exists());
    assert!(!site.text("pki/clients/device1/mqtt.env").contains("MQTT_PASSWORD"));
    assert!(!site.ok(&["status"]).contains("hold a private key"));
    let json: serde_json::Value = serde_json::from_str(&site.ok(&["status", "--json"])).unwrap();
    assert_eq!(json["bundles-with-secrets"], 0);
    // Others' renewals do not fail for it.
    site.ok(&["client", "add", "stays"]);
    let said = site.ok(&["client", "renew", "--all-expiring", "397"]);
    assert!(said.contains("device1 is left out") && said.contains("stays has a new certificate"), "{said}");
    let again =
        site.fails(1, &["client", "export", "device1", "--for", "pem", "--out", site.path("x").to_str().unwrap()]);
    assert!(again.contains("they were handed over"), "{again}");
    assert!(site.fails(1, &["client", "export", "nobody", "--for", "pem"]).contains("there is no nobody"));
    assert!(site.fails(1, &[&taken[..], &[out.to_str().unwrap()]].concat()).contains("exists"));
}

#[test]
fn what_has_no_place_in_a_form_is_not_lost_when_it_is_taken() {
    let (site, _broker) = served();
    let secret = site.variable("device1", "MQTT_PASSWORD");
    let (folder, said) = export(&site, "p12", &["p12", "--take"]);
    assert!(said.contains("mqtt.env  (secret)"), "{said}");
    let login = std::fs::read_to_string(folder.join("mqtt.env")).unwrap();
    assert!(login.contains(&secret) && !login.contains("MQTT_CERTFILE"), "{login}");
}
