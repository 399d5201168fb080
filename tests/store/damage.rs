use lockgate::auth::{Acl, Methods};
use lockgate::broker::{Limits, Wanted};
use lockgate::store::{Answer, Clocks, MemoryStore, OpenError, RamDisk, Sizes, Store};
use lockgate::types::ClientId;

use crate::rig::{Rig, client};

const SIZES: Sizes =
    Sizes { segment: 4096, reserve: 1024, frame_max: 512, checkpoint_every: 2048, copied_max: 64 * 1024 };
const WALL: u64 = 1_780_000_000;
const MESSAGES: u16 = 40;

fn clocks() -> Clocks {
    Clocks::new(std::time::Instant::now(), WALL, None)
}

/// A disk with one session that many messages wait for, two retained ones, segments and a checkpoint.
fn filled() -> RamDisk {
    let mut rig = Rig::on(1, Limits::default(), Acl::open(), true, Methods::default());
    rig.out.store = MemoryStore::new(clocks(), SIZES);
    let s = rig.join(client("s").kept());
    rig.subscribe(s, "t", 1);
    rig.lose(s);
    let p = rig.join(client("p"));
    for number in 1..=MESSAGES {
        rig.publish(p, "t", &format!("message {number:04} {}", "x".repeat(60)), 1, number);
    }
    rig.publish_with(p, "r/1", "kept", 0b11, 100, &[]);
    rig.publish_with(p, "r/2", "kept", 0b11, 101, &[]);
    rig.out.store.disk().copy()
}

/// Everything that a store opened on `disk` gives: payloads of the session's queue, retained topics, and
/// whether it reported anything.
fn read(disk: &RamDisk) -> (Vec<String>, Vec<String>, bool) {
    let (mut store, restored, recovery) = MemoryStore::open(disk.clone(), SIZES, clocks()).unwrap();
    let session = restored.sessions.iter().any(|session| session.client.as_str() == "s" && session.is_session);
    let mut payloads = Vec::new();
    store.fetch(&ClientId::new("s").unwrap(), 1, Wanted::Next(1000));
    while let Some(answer) = store.poll_answer() {
        if let Answer::Fetched(_, _, found) = answer {
            let bodies = found.into_iter().filter_map(|fetched| fetched.message);
            payloads.extend(bodies.map(|message| String::from_utf8(message.payload.to_vec()).unwrap()));
        }
    }
    let retained = restored.retained.iter().map(|message| message.topic().as_str().to_owned()).collect();
    let damaged = !recovery.damages.is_empty() || recovery.messages_lost > 0 || recovery.commits_missing > 0;
    (payloads, retained, damaged || recovery.torn.is_some() || !session)
}

fn expected() -> Vec<String> {
    (1..=MESSAGES).map(|number| format!("message {number:04} {}", "x".repeat(60))).collect()
}

#[test]
fn a_sound_store_gives_back_everything_and_reports_nothing() {
    let disk = filled();
    let names = disk.names();
    assert!(names.iter().filter(|name| name.starts_with("segment-")).count() > 1, "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("checkpoint-")), "{names:?}");
    assert_eq!(read(&disk), (expected(), vec!["r/1".to_owned(), "r/2".to_owned()], false));
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_nothing_false_comes_of_it() {
    let disk = filled();
    let all = expected();
    for name in disk.names().iter().filter(|name| *name != "reserve") {
        let mut len = 0;
        disk.damage(name, |bytes| len = bytes.len());
        for at in 0..len {
            let copy = disk.copy();
            let mut used = false;
            copy.damage(name, |bytes| {
                // Room that was never used holds nothing.
                used = bytes[at..].iter().any(|byte| *byte != 0);
                bytes[at] ^= 1 << (at % 8);
            });
            if !used {
                continue;
            }
            // A format that is newer by a bit is refused, like any newer one.
            let opened = MemoryStore::open(copy.clone(), SIZES, clocks());
            if let Err(OpenError::Newer { .. }) = opened {
                continue;
            }
            let (payloads, _, _) = read(&copy);
            // What comes is what was published, in its order; nothing else, and nothing twice.
            let mut rest = all.iter();
            for payload in &payloads {
                assert!(rest.any(|known| known == payload), "{name} byte {at}: {payload:?}");
            }
        }
    }
}

#[test]
fn what_is_damaged_is_set_aside_with_its_name_and_what_it_held() {
    let disk = filled();
    let name = disk.names().into_iter().rfind(|name| name.starts_with("segment-")).unwrap();
    disk.damage(&name, |bytes| {
        // In the middle of the first frame.
        bytes[100] ^= 0xFF;
    });
    let (_, _, recovery) = MemoryStore::open(disk.clone(), SIZES, clocks()).unwrap();
    assert_eq!(recovery.damages.len(), 1, "{recovery:?}");
    let text = recovery.damages[0].to_string();
    assert!(text.starts_with(&format!("{name} is damaged at byte 32 (")), "{text}");
    assert!(text.contains("message"), "{text}");
    assert!(text.ends_with(&format!("that piece is kept as damaged/{name}-32")), "{text}");
    assert_eq!(disk.aside(), [format!("{name}-32")]);
    // Of the others all are there.
    let (payloads, ..) = read(&disk);
    assert!(payloads.len() < usize::from(MESSAGES) && payloads.len() > usize::from(MESSAGES) / 2, "{}", payloads.len());
}

#[test]
fn a_torn_end_loses_nothing_that_was_whole() {
    let disk = filled();
    let name = disk.names().into_iter().rfind(|name| name.starts_with("segment-")).unwrap();
    let mut used = 0;
    disk.damage(&name, |bytes| used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    let mut last = 0;
    for len in 32..used {
        let copy = disk.copy();
        copy.damage(&name, |bytes| bytes[len..].fill(0));
        let (_, restored, recovery) = MemoryStore::open(copy.clone(), SIZES, clocks()).unwrap();
        assert!(recovery.damages.is_empty(), "{len}: {recovery:?}");
        let count =
            restored.sessions.iter().map(|session| session.waiting.len()).sum::<usize>() + restored.retained.len();
        // The more is there, the more comes back.
        assert!(count >= last, "{len}: {count} after {last}");
        last = count;
        // What was cut off does not come back with what is written next.
        let (payloads, ..) = read(&copy);
        assert_eq!(payloads, expected()[..payloads.len()]);
    }
}

#[test]
fn a_newer_format_is_refused_with_its_number() {
    for wanted in ["segment-", "checkpoint-"] {
        let disk = filled();
        let name = disk.names().into_iter().rfind(|name| name.starts_with(wanted)).unwrap();
        disk.damage(&name, |bytes| {
            bytes[8] = 2;
            let crc = crc32fast::hash(&bytes[..28]);
            bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        });
        let error = MemoryStore::open(disk, SIZES, clocks()).map(drop).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{name} was written by a newer Lockgate (format 2; this one reads up to 1): start that version, or \
                 restore a backup"
            )
        );
    }
}
