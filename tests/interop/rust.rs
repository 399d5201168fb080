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

/// What both versions of rumqttc do below, in the words of one of them: retained messages, a will, a
/// session taken up, and 5 MB, at one level.
macro_rules! lives {
    ($name:ident, $client:ty, $event:path, $packet:path, $qos:path, $options:expr, $will:expr, $topic:expr) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            use $event as Event;
            use $packet as Packet;
            use $qos as QoS;
            let site = Site::new(&["--client", "device1"]);
            let broker = site.serve();
            for level in LEVELS {
                let work = async {
                    // A subscriber that keeps its session, and goes.
                    let (sleeper, mut events) =
                        <$client>::new($options(&site, port(&broker, level), level, "sleeper", false), 20);
                    sleeper.subscribe("queue", QoS::AtLeastOnce).await.unwrap();
                    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
                    sleeper.disconnect().await.unwrap();
                    while events.poll().await.is_ok() {}
                    // One that dies with a will.
                    let mut options = $options(&site, port(&broker, level), level, "mortal", true);
                    $will(&mut options);
                    let (_mortal, mut mortal_events) = <$client>::new(options, 20);
                    while !matches!(mortal_events.poll().await.unwrap(), Event::Incoming(Packet::ConnAck(_))) {}
                    let (publisher, mut publishing) =
                        <$client>::new($options(&site, port(&broker, level), level, "pub", true), 20);
                    let task = tokio::spawn(async move { while publishing.poll().await.is_ok() {} });
                    publisher.publish("kept", QoS::AtLeastOnce, true, level).await.unwrap();
                    publisher.publish("queue", QoS::AtLeastOnce, false, vec![7; LARGE]).await.unwrap();
                    let (watcher, mut watching) =
                        <$client>::new($options(&site, port(&broker, level), level, "watcher", true), 20);
                    watcher.subscribe("kept", QoS::AtLeastOnce).await.unwrap();
                    watcher.subscribe("will", QoS::AtLeastOnce).await.unwrap();
                    let mut subscribed = 0;
                    let mut mortal_events = Some(mortal_events);
                    let mut seen = Vec::new();
                    while seen.len() < 2 {
                        match watching.poll().await.unwrap() {
                            Event::Incoming(Packet::SubAck(_)) => {
                                subscribed += 1;
                                if subscribed == 2 {
                                    drop(mortal_events.take());
                                }
                            }
                            Event::Incoming(Packet::Publish(publish)) => {
                                // If the subscription was faster, the one of the level before is retained still.
                                let text = String::from_utf8(publish.payload.to_vec()).unwrap();
                                if $topic(&publish) == "will" || text == level {
                                    seen.push(($topic(&publish), text));
                                }
                            }
                            _ => {}
                        }
                    }
                    seen.sort();
                    assert_eq!(seen, [("kept".to_owned(), level.to_owned()), ("will".to_owned(), "gone".to_owned())]);
                    let (_sleeper, mut events) =
                        <$client>::new($options(&site, port(&broker, level), level, "sleeper", false), 20);
                    let mut present = false;
                    loop {
                        match events.poll().await.unwrap() {
                            Event::Incoming(Packet::ConnAck(connack)) => present = connack.session_present,
                            Event::Incoming(Packet::Publish(publish)) => {
                                assert!(present && publish.payload.len() == LARGE);
                                break;
                            }
                            _ => {}
                        }
                    }
                    task.abort();
                };
                tokio::time::timeout(2 * PATIENCE, work).await.unwrap_or_else(|_| panic!("{level}: {}", broker.log()));
            }
        }
    };
}

fn options_3(site: &Site, port: u16, level: &str, id: &str, clean: bool) -> rumqttc::MqttOptions {
    let mut options = rumqttc::MqttOptions::new(format!("{id}-{level}"), "localhost", port);
    options.set_transport(transport(site, level));
    options.set_credentials("device1", site.variable("device1", "MQTT_PASSWORD"));
    options.set_max_packet_size(2 * LARGE, 2 * LARGE);
    options.set_clean_session(clean);
    options
}

fn options_5(site: &Site, port: u16, level: &str, id: &str, clean: bool) -> rumqttc::v5::MqttOptions {
    let mut options = rumqttc::v5::MqttOptions::new(format!("{id}-{level}"), "localhost", port);
    options.set_transport(transport(site, level));
    options.set_credentials("device1", site.variable("device1", "MQTT_PASSWORD"));
    options.set_max_packet_size(Some(2 * LARGE as u32));
    options.set_clean_start(clean);
    options.set_session_expiry_interval((!clean).then_some(3_600));
    options
}

fn will_3(options: &mut rumqttc::MqttOptions) {
    options.set_last_will(rumqttc::LastWill::new("will", "gone", rumqttc::QoS::AtLeastOnce, false));
}

fn will_5(options: &mut rumqttc::v5::MqttOptions) {
    use rumqttc::v5::mqttbytes::{QoS, v5::LastWill};
    options.set_last_will(LastWill::new("will", "gone", QoS::AtLeastOnce, false, None));
}

lives!(
    rumqttc_keeps_sessions_wills_and_retained_messages_in_3_1_1,
    rumqttc::AsyncClient,
    rumqttc::Event,
    rumqttc::Packet,
    rumqttc::QoS,
    options_3,
    will_3,
    |publish: &rumqttc::Publish| publish.topic.clone()
);

lives!(
    rumqttc_keeps_sessions_wills_and_retained_messages_in_5,
    rumqttc::v5::AsyncClient,
    rumqttc::v5::Event,
    rumqttc::v5::mqttbytes::v5::Packet,
    rumqttc::v5::mqttbytes::QoS,
    options_5,
    will_5,
    |publish: &rumqttc::v5::mqttbytes::v5::Publish| String::from_utf8(publish.topic.to_vec()).unwrap()
);
