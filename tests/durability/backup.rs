use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::site::{Site, lockgate};
use crate::{ALL, mosquitto, read_messages, with_messages};

#[test]
fn a_backup_of_a_running_broker_is_put_back_elsewhere() {
    let site = Site::new(&["--client", "device1"]);
    let broker = site.serve();
    with_messages(&site, &broker);
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    // Others publish meanwhile.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                mosquitto("mosquitto_pub", &site, &broker, &["-q", "1", "-r", "-t", "noise", "-m", "x"]);
            }
        });
        let printed = site.ok(&["store", "backup", copy.to_str().unwrap()]);
        stop.store(true, Ordering::Relaxed);
        assert!(printed.contains("1 sessions, 5 queued and"), "{printed}");
        assert!(printed.contains("without configuration and keys"), "{printed}");
    });
    // It is not made twice in one place.
    let complaint = site.fails(1, &["store", "backup", copy.to_str().unwrap()]);
    assert!(complaint.contains("is not empty"), "{complaint}");
    let other = Site::new(&["--client", "device1"]);
    other.ok(&["store", "restore", copy.to_str().unwrap()]);
    let running = other.serve();
    assert_eq!(read_messages(&other, &running), ALL);
    // Not over what is there, and not under a broker.
    let complaint = other.fails(1, &["store", "restore", copy.to_str().unwrap()]);
    assert!(complaint.contains("another broker runs on the data folder"), "{complaint}");
    drop(running);
    let complaint = other.fails(1, &["store", "restore", copy.to_str().unwrap()]);
    assert!(complaint.contains("move it away first"), "{complaint}");
}

/// A site whose broker has stopped, with messages kept.
fn stopped_with_messages() -> Site {
    let site = Site::new(&["--client", "device1"]);
    let mut broker = site.serve();
    with_messages(&site, &broker);
    broker.signal("TERM");
    broker.wait();
    site
}

fn with_passphrase(site: &Site, arguments: &[&str], passphrase: &str) -> (Option<i32>, String) {
    let mut command = lockgate();
    command.args(arguments).arg("--passphrase-stdin").arg("--dir").arg(site.path("")).stdin(Stdio::piped());
    crate::run_with(&mut command, passphrase.as_bytes())
}

#[test]
fn a_whole_site_comes_back_from_its_backup_with_the_passphrase_alone() {
    let site = stopped_with_messages();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    let path = copy.to_str().unwrap();
    let (code, text) = with_passphrase(&site, &["store", "backup", path, "--site"], "correct horse\n");
    assert_eq!(code, Some(0), "{text}");
    // Nothing secret is readable in it.
    let key = site.text("pki/ca.key");
    let secret = key.lines().nth(1).unwrap();
    for entry in std::fs::read_dir(&copy).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{}", path.display());
        }
    }
    let empty = Site::empty();
    let (code, text) = with_passphrase(&empty, &["store", "restore", path, "--site"], "wrong\n");
    assert_eq!(code, Some(1));
    assert!(text.contains("the passphrase is wrong, or the sealed site is damaged"), "{text}");
    assert!(!empty.path("config").exists());
    let (code, text) = with_passphrase(&empty, &["store", "restore", path, "--site"], "correct horse\n");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(empty.text("pki/ca.key"), key);
    let broker = empty.serve();
    assert_eq!(read_messages(&empty, &broker), ALL);
    let (code, text) = with_passphrase(&empty, &["store", "restore", path, "--site"], "correct horse\n");
    assert_eq!(code, Some(1));
    assert!(text.contains("config is there"), "{text}");
}

#[test]
fn a_damaged_or_foreign_backup_is_refused_and_nothing_is_left_of_it() {
    let site = stopped_with_messages();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    site.ok(&["store", "backup", copy.to_str().unwrap()]);
    let segment = copy.join("store/segment-00000001");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let other = Site::new(&["--client", "device1"]);
    let complaint = other.fails(1, &["store", "restore", copy.to_str().unwrap()]);
    assert!(complaint.contains("segment-00000001 is damaged"), "{complaint}");
    assert!(!other.path("data/store").exists() && !other.path("data/store.new").exists());
    let complaint = other.fails(1, &["store", "restore", copies.path().to_str().unwrap()]);
    assert!(complaint.contains("is no backup: it has no backup.json"), "{complaint}");
    let manifest = std::fs::read_to_string(copy.join("backup.json")).unwrap();
    std::fs::write(copy.join("backup.json"), manifest.replace("segment-00000001", "../../escape")).unwrap();
    let complaint = other.fails(1, &["store", "restore", copy.to_str().unwrap()]);
    assert!(complaint.contains("../../escape is damaged"), "{complaint}");
}
