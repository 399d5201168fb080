//! The core under virtual time with seeded random clients of all versions, cut connections,
//! takeovers, slow readers, and a store that completes late, out of order and with errors, against a
//! simple model (`model.rs`): QoS 1 at least once, QoS 2 exactly once, order per topic, nothing to whom it is not
//! for, shared subscriptions, wills and retained messages, queues within their limits; on one to four shards. A failing seed is printed and replays: `LOCKGATE_SEED=7 cargo test --test simulation`.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/cluster.rs"]
mod cluster;
mod model;
#[path = "../support/recorder.rs"]
mod recorder;
mod world;

use world::{Options, Syncs, World};

/// Seeds of one run; `LOCKGATE_SEEDS` asks for more.
const SEEDS: u64 = 500;

fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("LOCKGATE_SEED") {
        return vec![seed.parse().expect("a number")];
    }
    let count = std::env::var("LOCKGATE_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number"));
    (0..count).collect()
}

/// In memory, on one to four shards.
fn in_memory(seed: u64) -> Options {
    let shards = 1 + (seed % 4) as u16;
    Options {
        seed,
        shards,
        durable: false,
        late: false,
        failing: false,
        tight: false,
        crashing: None,
        disk_fails: false,
    }
}

fn run(name: &str, options: fn(u64) -> Options) {
    run_seeds(name, seeds(), options);
}

fn run_seeds(name: &str, seeds: Vec<u64>, options: fn(u64) -> Options) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(options(seed));
            world.run();
        });
        if let Err(cause) = outcome {
            eprintln!("{name} fails with LOCKGATE_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order_in_memory() {
    run("in memory", in_memory);
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order_with_a_store_that_completes_late() {
    run("late", |seed| Options { durable: true, late: true, ..in_memory(seed) });
}

#[test]
fn nothing_that_was_acknowledged_is_lost_with_a_store_that_fails() {
    run("failing", |seed| Options { durable: true, late: true, failing: true, ..in_memory(seed) });
}

#[test]
fn queues_stay_within_their_limits_and_nothing_is_doubled() {
    run("tight", |seed| Options { durable: seed % 2 == 0, late: seed % 3 == 0, tight: true, ..in_memory(seed) });
}

/// design.md's promise in one line: what was acknowledged is there after a power cut.
#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_power_is_cut() {
    run_seeds("power cuts", crash_seeds(), |seed| crashing(seed, Syncs::Honest));
}

/// What the test before is worth: with a disk that does not sync it has to find a loss.
#[test]
fn a_disk_that_lies_about_syncing_is_found_out() {
    let loses = |seed: &u64| {
        let outcome = std::panic::catch_unwind(|| World::new(crashing(*seed, Syncs::Lies)).run());
        outcome.is_err()
    };
    assert!((0..SEEDS).any(|seed| loses(&seed)), "nothing was lost without a single sync");
}

/// On one shard, as `serve` runs a durable broker.
fn crashing(seed: u64, syncs: Syncs) -> Options {
    Options { shards: 1, durable: true, crashing: Some(syncs), ..in_memory(seed) }
}

/// A fifth of what the others run, each with several cuts.
fn crash_seeds() -> Vec<u64> {
    let mut seeds = seeds();
    seeds.truncate((seeds.len() / 5).max(1));
    seeds
}

/// Any call to the disk fails, once or for a while, and in every second run the power goes too.
#[test]
fn nothing_that_was_acknowledged_is_lost_with_a_disk_that_fails() {
    run_seeds("disk faults", crash_seeds(), |seed| {
        let goes = (seed % 2 == 0).then_some(Syncs::Honest);
        Options { failing: true, disk_fails: true, crashing: goes, ..crashing(seed, Syncs::Honest) }
    });
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in 0..20 {
        let digest = || {
            let options = Options { durable: seed % 2 == 0, late: true, failing: seed % 3 == 0, ..in_memory(seed) };
            let mut world = World::new(options);
            world.run();
            world.digest()
        };
        assert_eq!(digest(), digest(), "LOCKGATE_SEED={seed}");
    }
}
