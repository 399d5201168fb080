use std::process::Output;

use crate::site::{Broker, Site, lockgate};

/// `lockgate bench` as device1 of `site`, below its own topics.
fn bench(site: &Site, url: &str, arguments: &[&str]) -> Output {
    site.write("password", &site.variable("device1", "MQTT_PASSWORD"));
    let mut command = lockgate();
    command.arg("bench").args(arguments).args(["--url", url, "--json", "--user", "device1"]);
    command.arg("--password-file").arg(site.path("password")).arg("--ca").arg(site.path("pki/ca.crt"));
    command.output().unwrap()
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn running() -> (Site, Broker) {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    (site, broker)
}

const ONE_SECOND: [&str; 4] = ["--seconds", "1", "--topic", "device1/bench"];

#[test]
fn bench_counts_what_was_published_delivered_and_lost_at_every_qos() {
    let (site, broker) = running();
    let url = format!("mqtt://localhost:{}", broker.plain_port);
    for qos in ["0", "1", "2"] {
        let report = report(&bench(&site, &url, &[&["throughput", "--qos", qos][..], &ONE_SECOND].concat()));
        assert!(report["delivered"].as_u64().unwrap() > 100, "{report:#}");
        assert_eq!(report["lost"], 0, "{report:#}");
        assert_eq!(report["acknowledged"].is_null(), qos == "0", "{report:#}");
    }
    let report = report(&bench(&site, &url, &[&["fan-out", "--subscribers", "5"][..], &ONE_SECOND].concat()));
    let (published, delivered) = (report["published"].as_u64().unwrap(), report["delivered"].as_u64().unwrap());
    assert!(delivered > 4 * published && report["lost"] == 0, "{report:#}");
}

#[test]
fn bench_measures_latency_and_connections_over_tls_with_the_brokers_cpu() {
    let (site, broker) = running();
    let url = format!("mqtts://localhost:{}", broker.tls_port);
    let pid = broker.pid().to_string();
    let rate = ["latency", "--rate", "200", "--pid", &pid];
    let measured = report(&bench(&site, &url, &[&rate[..], &ONE_SECOND].concat()));
    let latency = |name: &str| measured["latency-micros"][name].as_f64().unwrap();
    assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99") && latency("p99") <= latency("max"));
    assert!((150..=250).contains(&measured["published"].as_u64().unwrap()), "{measured:#}");
    assert!(measured["broker-rss-bytes-after"].as_u64().unwrap() > 1_000_000);
    let opened = report(&bench(&site, &url, &["connections", "--count", "20", "--pid", &pid]));
    assert_eq!(opened["connections"], 20);
    assert!(opened["broker-cpu-micros-each"].as_f64().unwrap() > 0.0);
    let held = report(&bench(&site, &url, &["connections", "--count", "20", "--hold", "1", "--pid", &pid]));
    assert!(held["broker-rss-bytes-after"].as_u64() >= held["broker-rss-bytes-before"].as_u64(), "{held:#}");
}

#[test]
fn bench_says_in_one_sentence_why_it_cannot() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/acl", "\npattern readwrite #\n", "\npattern readwrite %u/#\n");
    let broker = site.serve();
    let url = format!("mqtt://localhost:{}", broker.plain_port);
    let fails = |url: &str, arguments: &[&str], code: i32| {
        let output = bench(&site, url, arguments);
        assert_eq!(output.status.code(), Some(code));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let said = fails(&url, &["throughput", "--seconds", "1"], 1);
    assert!(said.contains("ACL"), "{said}");
    let said = fails("localhost", &["throughput"], 2);
    assert!(said.contains("mqtt://HOST[:PORT]"), "{said}");
    drop(broker);
    let said = fails(&url, &["throughput", "--seconds", "1"], 1);
    assert!(said.contains("refused"), "{said}");
}
