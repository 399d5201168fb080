//! A new CA beneath clients that know the old one, and beneath a load.

use std::process::{Command, Stdio};

use crate::clients::publishes;
use crate::site::{Site, lockgate};

/// What a device has, apart from the site.
fn copied(site: &Site, name: &str, to: &str) -> std::path::PathBuf {
    let folder = site.path(to);
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["ca.crt", "client.crt", "client.key"] {
        std::fs::copy(site.path(&format!("pki/clients/{name}/{file}")), folder.join(file)).unwrap();
    }
    folder
}

#[test]
fn clients_move_to_a_new_ca_in_any_order_and_the_old_one_ends() {
    let site = Site::new(&["--client", "early", "--client", "late"]);
    let broker = site.serve();
    let (early, late) = (copied(&site, "early", "devices/early"), copied(&site, "late", "devices/late"));
    assert!(site.fails(1, &["ca", "retire"]).contains("has one CA"));
    let said = site.ok(&["ca", "rotate"]);
    assert!(
        said.contains("2 client(s) have certificates of the old one") && said.contains("has taken it up"),
        "{said}"
    );
    assert!(site.fails(1, &["ca", "rotate"]).contains("has two CAs already"));
    // Devices that know nothing of it go on.
    assert!(publishes(&broker, &early) && publishes(&broker, &late), "{}", broker.log());
    // One that has both CAs and its old certificate; one that has the new CA alone and a new certificate.
    std::fs::copy(site.path("pki/clients/early/ca.crt"), early.join("ca.crt")).unwrap();
    assert!(publishes(&broker, &early));
    site.ok(&["client", "renew", "early"]);
    let renewed = copied(&site, "early", "devices/early");
    let both = std::fs::read_to_string(renewed.join("ca.crt")).unwrap();
    let end = both.find("-----END CERTIFICATE-----\n").unwrap() + 26;
    std::fs::write(renewed.join("ca.crt"), &both[..end]).unwrap();
    assert!(publishes(&broker, &renewed), "{}", broker.log());
    // The server's certificate is renewed meanwhile, and is still verified by both.
    site.ok(&["server", "renew"]);
    assert!(publishes(&broker, &renewed) && publishes(&broker, &late), "{}", broker.log());
    let shown = site.ok(&["ca", "show"]);
    assert!(shown.contains("still used by late: "), "{shown}");
    let list = site.ok(&["client", "list"]);
    let row = |name: &str| list.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(row("late").contains("old CA") && !row("early").contains("old CA"), "{list}");
    assert!(site.fails(1, &["ca", "retire"]).contains("1 client(s) have no certificate of the new CA yet (late)"));
    // Who is connected by an old one is out with it.
    let mut subscriber = Command::new("mosquitto_sub");
    subscriber.args([
        "-h",
        "localhost",
        "-p",
        &broker.tls_port.to_string(),
        "-t",
        "t",
        "-V",
        "mqttv5",
        "-i",
        "watcher",
    ]);
    subscriber.args(["--cafile", "ca.crt", "--cert", "client.crt", "--key", "client.key"]).current_dir(&late);
    let mut subscriber = subscriber.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    broker.wait_for("late connected as client \"watcher\"");
    let said = site.ok(&["ca", "retire", "--force"]);
    assert!(said.contains("2 certificate(s) of it admit no more"), "{said}");
    broker.wait_for("late disconnected: it may not come in any more");
    drop((subscriber.kill(), subscriber.wait()));
    assert!(publishes(&broker, &renewed) && !publishes(&broker, &late), "{}", broker.log());
    assert!(!site.path("pki/ca-old.key").exists() && !site.path("pki/ca-new-with-old.crt").exists());
    assert_eq!(site.text("pki/ca.crt").matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(site.text("pki/server.crt").matches("BEGIN CERTIFICATE").count(), 1);
    // And a restart finds all in order.
    site.ok(&["serve", "--check"]);
    assert!(site.ok(&["ca", "show"]).contains("here: certificates can be issued"));
}

#[test]
fn a_rotation_and_renewals_lose_no_message_and_drop_nobody() {
    let site = Site::new(&["--client", "load"]);
    let broker = site.serve();
    let folder = copied(&site, "load", "devices/load");
    let mut bench = lockgate();
    bench.args(["bench", "throughput", "--qos", "1", "--rate", "400", "--seconds", "6", "--json", "--url"]);
    bench.arg(format!("mqtts://localhost:{}", broker.tls_port));
    bench.args(["--ca", "ca.crt", "--cert", "client.crt", "--key", "client.key"]).current_dir(&folder);
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    broker.wait_for("load connected");
    site.ok(&["ca", "rotate"]);
    site.ok(&["server", "renew"]);
    site.ok(&["client", "renew", "load"]);
    site.ok(&["reload"]);
    let output = bench.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{}", broker.log()));
    assert_eq!(report["lost"], 0, "{report}");
    assert!(report["delivered"].as_u64().unwrap() > 1_000, "{report}");
    assert!(!broker.log().contains("load disconnected: it"), "{}", broker.log());
}
