//! rumqttc, in MQTT 3.1.1 and 5.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::clients::{LEVELS, bundle, port};
use crate::site::{PATIENCE, Site};

fn transport(site: &Site, level: &str) -> Transport {
    if level == "plain" {
        return Transport::Tcp;
    }
    let folder = bundle(site, "device1", level);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match level {
        "mtls" => {
            let chain = vec![CertificateDer::from_pem_file(folder.join("client.crt")).unwrap()];
            config
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(folder.join("client.key")).unwrap())
                .unwrap()
        }
        _ => config.with_no_client_auth(),
    };
    Transport::Tls(TlsConfiguration::Rustls(Arc::new(config)))
}

const LARGE: usize = 5 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_speaks_3_1_1_at_every_level() {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    for level in LEVELS {
        let options = |id: &str| {
            let mut options = MqttOptions::new(format!("{id}-{level}"), "localhost", port(&broker, level));
            options.set_transport(transport(&site, level));
            options.set_credentials("device1", site.variable("device1", "MQTT_PASSWORD"));
            options.set_max_packet_size(2 * LARGE, 2 * LARGE);
            options.set_keep_alive(Duration::from_secs(30));
            options
        };
        let (subscriber, mut events) = AsyncClient::new(options("rust-sub"), 20);
        subscriber.subscribe("rust/#", QoS::ExactlyOnce).await.unwrap();
        let work = async {
            let (publisher, mut publishing) = AsyncClient::new(options("rust-pub"), 20);
            let mut sent = 0;
            let mut seen = Vec::new();
            // A poll that is dropped half-way would connect anew: each has a task of its own.
            let publishing = tokio::spawn(async move { while publishing.poll().await.is_ok() {} });
            let seen = loop {
                match events.poll().await.unwrap() {
                    Event::Incoming(Packet::SubAck(_)) => {
                        for (qos, size) in [(QoS::AtMostOnce, 5), (QoS::AtLeastOnce, LARGE), (QoS::ExactlyOnce, 7)] {
                            publisher.publish(format!("rust/{}", qos as u8), qos, false, vec![7; size]).await.unwrap();
                            sent += 1;
                        }
                    }
                    Event::Incoming(Packet::Publish(publish)) => {
                        seen.push((publish.topic, publish.qos as u8, publish.payload.len()));
                        if seen.len() == sent {
                            break seen;
                        }
                    }
                    _ => {}
                }
            };
            publishing.abort();
            seen
        };
        let mut seen = tokio::time::timeout(2 * PATIENCE, work).await.unwrap_or_else(|_| panic!("{}", broker.log()));
        seen.sort();
        assert_eq!(
            seen,
            [("rust/0".to_owned(), 0, 5), ("rust/1".to_owned(), 1, LARGE), ("rust/2".to_owned(), 2, 7)],
            "{level}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_speaks_5_at_every_level() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::Packet;
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    for level in LEVELS {
        let options = |id: &str| {
            let mut options = MqttOptions::new(format!("{id}-{level}"), "localhost", port(&broker, level));
            options.set_transport(transport(&site, level));
            options.set_credentials("device1", site.variable("device1", "MQTT_PASSWORD"));
            options.set_max_packet_size(Some(2 * LARGE as u32));
            options.set_keep_alive(Duration::from_secs(30));
            options
        };
        let (subscriber, mut events) = AsyncClient::new(options("rust-sub"), 20);
        subscriber.subscribe("rust/#", QoS::ExactlyOnce).await.unwrap();
        let work = async {
            let (publisher, mut publishing) = AsyncClient::new(options("rust-pub"), 20);
            let mut seen = Vec::new();
            // A poll that is dropped half-way would connect anew: each has a task of its own.
            let publishing = tokio::spawn(async move { while publishing.poll().await.is_ok() {} });
            let seen = loop {
                match events.poll().await.unwrap() {
                    Event::Incoming(Packet::SubAck(_)) => {
                        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                            publisher.publish(format!("rust/{}", qos as u8), qos, true, "hello").await.unwrap();
                        }
                    }
                    Event::Incoming(Packet::Publish(publish)) => {
                        seen.push((String::from_utf8(publish.topic.to_vec()).unwrap(), publish.qos as u8));
                        if seen.len() == 3 {
                            break seen;
                        }
                    }
                    _ => {}
                }
            };
            publishing.abort();
            seen
        };
        let mut seen = tokio::time::timeout(2 * PATIENCE, work).await.unwrap_or_else(|_| panic!("{}", broker.log()));
        seen.sort();
        assert_eq!(seen, [("rust/0".to_owned(), 0), ("rust/1".to_owned(), 1), ("rust/2".to_owned(), 2)], "{level}");
        // Retained ones are taken away again for the next level.
        let (cleaner, mut cleaning) = AsyncClient::new(options("rust-cleaner"), 20);
        for qos in 0..3 {
            cleaner.publish(format!("rust/{qos}"), QoS::AtLeastOnce, true, "").await.unwrap();
        }
        let mut acknowledged = 0;
        while acknowledged < 3 {
            if let Event::Incoming(Packet::PubAck(_)) = cleaning.poll().await.unwrap() {
                acknowledged += 1;
            }
        }
    }
}
