//! What the shards of one broker have to agree on.

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{ConnectionId, Limits};
use lockgate::shard::{self, Start};
use lockgate::store::{NoStore, Store};

use crate::rig::{Rig, client};

fn on(shards: u16, limits: Limits) -> Rig {
    Rig::on(shards, limits, Acl::open(), false, Methods::default())
}

/// A client for each of two shards at least.
fn two_clients(rig: &mut Rig) -> [ConnectionId; 2] {
    let names: Vec<String> = (0..20).map(|at| format!("c{at}")).collect();
    let first = rig.join(client(&names[0]));
    let home = rig.core.home(first);
    for name in &names[1..] {
        let second = rig.join(client(name));
        if rig.core.home(second) != home {
            return [first, second];
        }
    }
    panic!("twenty clients have one home");
}

#[test]
fn more_first_levels_than_have_names_are_forwarded_all_the_same() {
    let mut rig = on(2, Limits { subscriptions_max: 10_000, ..Limits::default() });
    let [publisher, subscriber] = two_clients(&mut rig);
    for at in 0..4_200 {
        rig.subscribe(subscriber, &format!("level{at}/x"), 0);
    }
    // One that had a name goes; one that had none stays, and what takes its place comes and goes.
    rig.unsubscribe(subscriber, "level0/x");
    rig.take(subscriber);
    rig.subscribe(subscriber, "level4199/y", 0);
    rig.subscribe(subscriber, "another/x", 0);
    rig.unsubscribe(subscriber, "level4199/y");
    rig.unsubscribe(subscriber, "another/x");
    rig.take(subscriber);
    for at in [1, 4_095, 4_096, 4_097, 4_199] {
        let topic = format!("level{at}/x");
        rig.publish(publisher, &topic, "1", 0, 0);
        assert_eq!(rig.take(subscriber), [format!("PUBLISH {topic} 1")]);
    }
    for at in 1..4_200 {
        rig.unsubscribe(subscriber, &format!("level{at}/x"));
    }
    rig.take(subscriber);
    rig.subscribe(subscriber, "level7/x", 0);
    rig.take(subscriber);
    rig.publish(publisher, "level7/x", "2", 0, 0);
    assert_eq!(rig.take(subscriber), ["PUBLISH level7/x 2"]);
}

#[test]
fn a_second_filter_of_a_level_waits_until_the_other_shards_know_the_level() {
    let mut rig = on(2, Limits::default());
    let [publisher, subscriber] = two_clients(&mut rig);
    rig.deaf = true;
    rig.subscribe_with(subscriber, &[("t/1", 0)], &[]);
    rig.subscribe_with(subscriber, &[("t/2", 0)], &[]);
    rig.subscribe_with(subscriber, &[("t/2", 1)], &[]);
    assert!(rig.take(subscriber).is_empty(), "SUBACK says that messages come");
    rig.deaf = false;
    rig.settle();
    assert_eq!(rig.take(subscriber), ["SUBACK #1 0", "SUBACK #1 0", "SUBACK #1 1"]);
    rig.publish(publisher, "t/2", "x", 0, 0);
    assert_eq!(rig.take(subscriber), ["PUBLISH t/2 x"]);
}

#[test]
fn messages_that_nobody_else_takes_come_back_in_their_order() {
    for durable in [false, true] {
        let limits = Limits { inflight_max: 1, ..Limits::default() };
        let mut rig = Rig::on(4, limits, Acl::open(), durable, Methods::default());
        let publisher = rig.join(client("p"));
        let first = rig.join(client("m1").kept());
        rig.subscribe(first, "$share/g/t", 1);
        for at in 1..=6 {
            rig.publish(publisher, "t", &at.to_string(), 1, at);
        }
        assert_eq!(rig.take(first), ["PUBLISH t 1 q1 #1"]);
        // Another that is not there: its shard knows no better than to ask.
        rig.lose(first);
        let mut first = rig.connect(client("m1").kept());
        let mut got = Vec::new();
        for _ in 0..20 {
            for text in rig.take(first).into_iter().filter(|text| text.starts_with("PUBLISH")) {
                let parts: Vec<&str> = text.split(' ').collect();
                got.push(parts[2].to_owned());
                let id = parts.iter().find_map(|part| part.strip_prefix('#')).unwrap().parse().unwrap();
                rig.puback(first, id);
                if parts[2] == "3" {
                    rig.lose(first);
                    first = rig.connect(client("m1").kept());
                }
            }
        }
        got.dedup();
        assert_eq!(got, ["1", "2", "3", "4", "5", "6"], "durable: {durable}");
    }
}

#[test]
fn shards_end_when_nobody_holds_them_any_more() {
    for shards in [1, 3] {
        let stores = (0..shards).map(|_| Box::new(NoStore::default()) as Box<dyn Store + Send>).collect();
        let (handle, threads) = shard::spawn(Start {
            limits: Limits::default(),
            acl: Acl::open().into(),
            durable: false,
            stores,
            restored: None,
            methods: Methods::default(),
            questions: None,
            faults: lockgate::config::Faults::default(),
        })
        .unwrap();
        drop(handle);
        // One that went on would hang here.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
