//! Client certificates of X.509 version 1, which guides make: Mosquitto takes them, and so does its stand-in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::clients::free_port;
use crate::options::FILES;
use crate::site::{PATIENCE, Site};
use crate::stand_in::{serve, shell, tool};

/// CONNECT with that certificate and that key, whether or not they belong together; CONNACK's code, or why none came.
fn connect(
    site: &Site,
    port: u16,
    pair: (&str, &str),
    version: &'static SupportedProtocolVersion,
) -> Result<u8, String> {
    let provider = aws_lc_rs::default_provider();
    let certificate = CertificateDer::from_pem_file(site.path(pair.0)).unwrap();
    let key = provider.key_provider.load_private_key(PrivateKeyDer::from_pem_file(site.path(pair.1)).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.path("ca.crt")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key))));
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut tls = StreamOwned::new(connection, stream);
    tls.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a").map_err(|error| error.to_string())?;
    let mut answer = [0; 4];
    tls.read_exact(&mut answer).map_err(|error| error.to_string())?;
    Ok(answer[3])
}

#[test]
fn certificates_of_version_1_let_in_whom_the_ca_signed_them_for_and_nobody_else() {
    let site = Site::empty();
    shell(&site, FILES);
    shell(
        &site,
        "sign() { openssl x509 -req -in client.csr -CAcreateserial -days 30 \"$@\" 2>/dev/null; }
         sign -CA ca.crt -CAkey ca.key -out v1.crt; openssl x509 -in v1.crt -noout -text | grep -q 'Version: 1 '
         sign -CA ca.crt -CAkey ca.key -days 0 -out expired.crt; sign -CA ca.crt -CAkey ca.key -sha1 -out weak.crt
         openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -days 30 -subj /CN=ca 2>/dev/null
         sign -CA other.crt -CAkey other.key -out foreign.crt; openssl req -x509 -newkey rsa:2048 -nodes -keyout own.key -out own.crt -days 30 -subj /CN=client 2>/dev/null
         openssl x509 -req -in client.csr -signkey client.key -days 30 -out self.crt 2>/dev/null",
    );
    let port = free_port();
    let configure = |more: &str| {
        site.write(
            "m.conf",
            &format!(
                "user root\nlistener {port} 127.0.0.1\ncafile ca.crt\ncertfile server.crt\nkeyfile server.key\nrequire_certificate true\n\
                 use_identity_as_username true\n{more}"
            ),
        );
    };
    configure("");
    let broker = serve(&site, &[port]);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let enters = |certificate: &str, key: &str| connect(&site, port, (certificate, key), version);
        assert_eq!(enters("v1.crt", "client.key"), Ok(0), "{}", broker.log());
        assert_eq!(enters("client.crt", "client.key"), Ok(0));
        for (certificate, key) in [
            // Whose key is another's; whose CA only has the name; of itself; past its time; signed with SHA-1.
            ("v1.crt", "other.key"),
            ("foreign.crt", "client.key"),
            ("self.crt", "client.key"),
            ("expired.crt", "client.key"),
            ("weak.crt", "client.key"),
            ("other.crt", "other.key"),
        ] {
            assert!(enters(certificate, key).is_err(), "{certificate} with {key}: {}", broker.log());
        }
    }
    assert!(broker.log().contains(" as a (p2, c1, k60, u'client')"), "{}", broker.log());
    let line =
        format!("mosquitto_pub -h localhost -p {port} --cafile ca.crt --cert v1.crt --key client.key -t t -m m -q 1");
    assert_eq!(tool(&site, &line).0, Some(0));
    drop(broker);
    // Lists of version 1, as `openssl ca` makes them, go by both kinds; one that is not in time keeps all out.
    shell(
        &site,
        "printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=index\\ndefault_md=sha256\\n' > ca.cnf; touch index
         list() { openssl ca -config ca.cnf -keyfile ca.key -cert ca.crt \"$@\" 2>/dev/null; }
         list -gencrl -crldays 30 -out none.crl; list -gencrl -crlsec 1 -out old.crl; sleep 2
         list -revoke v1.crt; list -gencrl -crldays 30 -out v1.crl; list -revoke client.crt; list -gencrl -crldays 30 -out both.crl",
    );
    for (list, codes) in
        [("none", [true, true]), ("v1", [false, true]), ("both", [false, false]), ("old", [false, false])]
    {
        configure(&format!("crlfile {list}.crl\n"));
        let broker = serve(&site, &[port]);
        let enters = |name: &str| connect(&site, port, (name, "client.key"), &rustls::version::TLS13).is_ok();
        assert_eq!([enters("v1.crt"), enters("client.crt")], codes, "{list}: {}", broker.log());
    }
}
