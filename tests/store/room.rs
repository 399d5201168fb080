//! Full disks, failing disks, and room that is given back.

use std::time::Duration;

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{Change, ConnectionId, Limits, MessageId, Ticket};
use lockgate::store::{Answer, Clocks, MemoryStore, Sizes, Store};
use lockgate::types::{ClientId, PacketId};

use crate::rig::{Rig, client};

const SIZES: Sizes = Sizes {
    segment: 64 * 1024,
    reserve: 16 * 1024,
    frame_max: 16 * 1024,
    checkpoint_every: 256 * 1024,
    copied_max: 256 * 1024,
};
const WALL: u64 = 1_780_000_000;

fn rig() -> Rig {
    let mut rig = Rig::on(1, Limits::default(), Acl::open(), true, Methods::default());
    rig.out.store = MemoryStore::new(Clocks::new(rig.now, WALL, None), SIZES);
    rig.out.store.be_lazy();
    rig
}

/// The store's thread has its turn, and the core hears of it.
fn work(rig: &mut Rig) {
    rig.set_wall(WALL, None);
    rig.out.store.work();
    rig.settle();
}

/// Some seconds, with the store's thread trying every now and then.
fn wait(rig: &mut Rig, secs: u64) {
    for _ in 0..secs * 5 {
        rig.advance(Duration::from_millis(200));
        work(rig);
    }
}

fn join(rig: &mut Rig, id: &str) -> ConnectionId {
    let id = rig.connect(client(id).kept());
    work(rig);
    assert!(rig.take(id)[0].starts_with("CONNACK"));
    id
}

/// An absent session of "s" that subscribes to `t`, and a publisher.
fn absent_and_publisher(rig: &mut Rig) -> ConnectionId {
    let s = join(rig, "s");
    rig.subscribe_with(s, &[("t", 1)], &[]);
    work(rig);
    rig.lose(s);
    work(rig);
    join(rig, "p")
}

#[test]
fn on_a_full_disk_publishers_are_told_and_acknowledgements_are_still_written() {
    let mut rig = rig();
    let p = absent_and_publisher(&mut rig);
    let s = join(&mut rig, "s");
    rig.publish(p, "t", "delivered", 1, 1);
    work(&mut rig);
    assert_eq!(rig.take(p), ["PUBACK #1"]);
    let used = rig.out.store.disk().used();
    rig.out.store.disk().set_capacity(Some(used));
    let mut packet_id = 1;
    // Large ones find no room before small ones do.
    for size in [1024, 128, 1] {
        let mut answer: Vec<String> = Vec::new();
        while answer.is_empty() || !answer[0].contains("0x97") {
            packet_id += 1;
            assert!(packet_id < 500, "there is room without end");
            rig.publish(p, "t", &"x".repeat(size), 1, packet_id);
            work(&mut rig);
            answer = rig.take(p);
            if answer.is_empty() {
                // MQTT 5 section 3.4.2.1: 0x97, after some patience.
                wait(&mut rig, 7);
                answer = rig.take(p);
                assert_eq!(answer, [format!("PUBACK #{packet_id} 0x97")]);
            }
        }
    }
    // What is not durable runs on.
    let other = rig.join(client("plain"));
    rig.subscribe(other, "q", 0);
    rig.publish(other, "q", "runs on", 0, 0);
    assert_eq!(rig.take(other), ["PUBLISH q runs on"]);
    // A new durable session is refused: 0x97, and before MQTT 5 with 3, which is called 0x88 here.
    // The first of them may find the last bytes.
    for (is_old, refusal) in [(false, "CONNACK 0x97"), (true, "CONNACK 0x88")] {
        let mut refused = Vec::new();
        for name in ["1", "2", "3", "4", "5", "6", "7", "8", "9"].map(|number| format!("new{number}{is_old}")) {
            let id = rig.connect(if is_old { client(&name).kept().v311() } else { client(&name).kept() });
            wait(&mut rig, 7);
            refused = rig.take(id);
            if refused != ["CONNACK"] {
                break;
            }
        }
        assert!(refused.len() == 1 && refused[0].starts_with(refusal), "{refused:?}");
    }
    // An acknowledgement goes to the room that was kept for it: a restart does not bring its message again.
    rig.puback(s, 1);
    wait(&mut rig, 2);
    rig.restart();
    let s = rig.connect(client("s").kept());
    work(&mut rig);
    let got = rig.take(s);
    assert!(got.iter().all(|packet| !packet.contains("delivered")), "{got:?}");
}

#[test]
fn when_there_is_room_again_everything_goes_on_by_itself() {
    let mut rig = rig();
    let p = absent_and_publisher(&mut rig);
    let used = rig.out.store.disk().used();
    rig.out.store.disk().set_capacity(Some(used));
    let payload = "x".repeat(8 * 1024);
    for packet_id in 1..=20 {
        rig.publish(p, "t", &payload, 1, packet_id);
        work(&mut rig);
    }
    let accepted = rig.take(p).len();
    assert!(accepted < 20);
    // Less than the patience: those that wait are not refused but written late.
    rig.out.store.disk().set_capacity(None);
    wait(&mut rig, 1);
    let acks = rig.take(p);
    assert_eq!(acks.len(), 20 - accepted, "{acks:?}");
    assert!(acks.iter().all(|ack| !ack.contains("0x97")), "{acks:?}");
    rig.restart();
    let s = rig.connect(client("s").kept());
    work(&mut rig);
    assert_eq!(rig.take(s).len(), 21);
}

#[test]
fn a_disk_that_the_store_has_filled_is_usable_again_once_everything_is_taken() {
    let mut rig = rig();
    let p = absent_and_publisher(&mut rig);
    let used = rig.out.store.disk().used();
    rig.out.store.disk().set_capacity(Some(used + 128 * 1024));
    let payload = "x".repeat(8 * 1024);
    let mut packet_id = 0;
    loop {
        packet_id += 1;
        assert!(packet_id < 100);
        rig.publish(p, "t", &payload, 1, packet_id);
        work(&mut rig);
        if rig.take(p).is_empty() {
            break;
        }
    }
    wait(&mut rig, 7);
    assert_eq!(rig.take(p), [format!("PUBACK #{packet_id} 0x97")]);
    // Nobody frees room but who takes what waits: a session that was there before.
    let s = rig.connect(client("s").kept());
    wait(&mut rig, 7);
    for _ in 0..200 {
        work(&mut rig);
        for packet in rig.take(s) {
            let Some(id) = packet.split('#').nth(1).and_then(|rest| rest.split(' ').next()) else { continue };
            rig.puback(s, id.parse().unwrap());
        }
    }
    wait(&mut rig, 7);
    rig.publish(p, "t", &payload, 1, 200);
    wait(&mut rig, 2);
    assert_eq!(rig.take(p), ["PUBACK #200"]);
}

#[test]
fn room_is_given_back_when_what_lay_in_it_is_gone() {
    let mut rig = rig();
    let p = absent_and_publisher(&mut rig);
    let payload = "x".repeat(8 * 1024);
    let empty = rig.out.store.disk().used();
    for number in 0..200 {
        rig.publish(p, "t", &payload, 1, number % 50 + 1);
        work(&mut rig);
    }
    let full = rig.out.store.disk().used();
    assert!(full > 200 * 8 * 1024, "{full}");
    let s = rig.connect(client("s").kept());
    for _ in 0..400 {
        work(&mut rig);
        for packet in rig.take(s) {
            let Some(id) = packet.split('#').nth(1).and_then(|rest| rest.split(' ').next()) else { continue };
            rig.puback(s, id.parse().unwrap());
        }
    }
    assert_eq!(rig.out.store.engine().stats().queued, 0);
    // Nothing more comes: it tidies up.
    let clocks = Clocks::new(rig.now, WALL, None);
    rig.out.store.engine().tidy(clocks);
    let left = rig.out.store.disk().used();
    assert!(left <= 2 * empty, "{left} of {full} bytes are left; empty it was {empty}");
}

#[test]
fn a_few_messages_do_not_hold_the_room_of_many() {
    let mut rig = rig();
    let p = absent_and_publisher(&mut rig);
    let payload = "x".repeat(8 * 1024);
    // One in ten stays: retained, each under its own topic.
    for number in 0..300 {
        match number % 10 {
            0 => rig.publish_with(p, &format!("r/{number}"), &payload, 0b11, 1, &[]),
            _ => rig.publish_with(p, "r/same", &payload, 0b11, 1, &[]),
        }
        work(&mut rig);
    }
    let clocks = Clocks::new(rig.now, WALL, None);
    for _ in 0..3 {
        rig.out.store.engine().checkpoint(clocks);
    }
    let stats = rig.out.store.engine().stats();
    assert!(stats.disk_bytes < 3 * stats.live_bytes, "{stats:?}");
    rig.restart();
    let s = rig.join(client("reader"));
    rig.subscribe_with(s, &[("r/#", 0)], &[]);
    rig.advance(Duration::ZERO);
    for _ in 0..10 {
        rig.handle_timer();
    }
    assert_eq!(rig.take(s).len(), 1 + 31);
}

#[test]
fn whoever_waits_on_a_full_disk_is_told_in_time_however_much_is_pending() {
    let now = std::time::Instant::now();
    let clocks = |secs: u64| Clocks::new(now + Duration::from_secs(secs), WALL + secs, None);
    let mut store = MemoryStore::new(clocks(0), SIZES);
    store.be_lazy();
    let used = store.disk().used();
    store.disk().set_capacity(Some(used));
    let done = |number: u64| Change::Done {
        client: ClientId::new("s").unwrap(),
        message: MessageId(number),
        packet_id: PacketId::new(1),
    };
    (0..300_000).for_each(|number| store.append(None, &[done(number)]));
    let subscribed = Change::Unsubscribed { client: ClientId::new("s").unwrap(), filter: "t".into() };
    store.append(Some(Ticket(7)), &[subscribed]);
    let began = std::time::Instant::now();
    for secs in 0..8 {
        store.set_clocks(clocks(secs));
        store.work();
    }
    let answers: Vec<Answer> = std::iter::from_fn(|| store.poll_answer()).collect();
    assert!(matches!(answers[..], [Answer::Failed(Ticket(7))]), "{answers:?}");
    // Promised: within five seconds, and they have passed in the store's time already.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // What must be kept is kept, in its order, once there is room.
    store.disk().set_capacity(None);
    store.set_clocks(clocks(20));
    store.append(Some(Ticket(8)), &[done(300_000)]);
    store.work();
    assert!(matches!(store.poll_answer(), Some(Answer::Committed(Ticket(8)))));
    store.reopen().expect("what was written can be read");
}
