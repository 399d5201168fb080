use crate::site::{Site, lockgate, run_with};
use crate::{ALL, read_messages, with_messages};

#[test]
fn sessions_queues_and_retained_messages_survive_kill_9() {
    // [MQTT-3.1.2-5], [MQTT-4.1.0-2]
    let site = Site::new(&["--client", "device1"]);
    let mut broker = site.serve();
    with_messages(&site, &broker);
    for _ in 0..3 {
        broker.signal("KILL");
        broker.wait();
        broker = site.serve();
        broker.wait_for("1 sessions with 5 messages and 1 retained messages are there again");
    }
    assert_eq!(read_messages(&site, &broker), ALL);
}

#[test]
fn a_broker_that_is_stopped_comes_back_with_everything() {
    let site = Site::new(&["--client", "device1"]);
    let mut broker = site.serve();
    with_messages(&site, &broker);
    broker.signal("TERM");
    assert_eq!(broker.wait(), Some(0));
    assert_eq!(read_messages(&site, &site.serve()), ALL);
}

#[test]
fn with_durability_off_nothing_is_written() {
    let site = Site::new(&["--client", "device1"]);
    site.edit("config/lockgate.yaml", "durability: fsync", "durability: off");
    let mut broker = site.serve();
    with_messages(&site, &broker);
    broker.signal("TERM");
    assert_eq!(broker.wait(), Some(0));
    assert!(!site.path("data/store").exists());
    let complaint = site.fails(1, &["store", "check"]);
    assert!(complaint.contains("nothing is kept in"), "{complaint}");
}

fn torture(arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = lockgate();
    command.args(["torture", "--json", "--folder"]).arg(folder.path()).args(arguments);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    // What there is to look into stays; else it leaves nothing behind.
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, usize::from(output.status.code() != Some(0)));
    (output.status.code(), report)
}

#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_broker_is_killed() {
    // QoS 1 at least once, QoS 2 exactly once [MQTT-4.3.2-1], [MQTT-4.3.3-1], in order [MQTT-4.6.0-6].
    let rounds = if std::env::var_os("LOCKGATE_FULL").is_some() { "200" } else { "20" };
    let (code, report) = torture(&["--rounds", rounds]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!((&report["lost"], &report["twice"], &report["out-of-order"]), (&0.into(), &0.into(), &0.into()));
    assert_eq!(report["kills"].to_string(), rounds);
    assert!(report["acknowledged"].as_u64().unwrap() > 500, "{report:#}");
}

#[test]
fn written_and_not_synced_survives_the_end_of_the_process_alone() {
    let (code, report) = torture(&["--rounds", "4", "--durability", "process"]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn torture_finds_out_a_broker_that_keeps_nothing() {
    let (code, report) = torture(&["--rounds", "3", "--durability", "off"]);
    assert_eq!(code, Some(1), "{report:#}");
    assert!(report["lost"].as_u64().unwrap() > 0, "{report:#}");
    let mut command = lockgate();
    let (code, text) = run_with(command.args(["torture", "--folder", "/dev/null"]), b"");
    assert_eq!(code, Some(1));
    assert!(text.contains("/dev/null/"), "{text}");
}
