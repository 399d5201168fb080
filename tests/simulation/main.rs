//! The core under virtual time with seeded random clients of all versions, cut connections,
//! takeovers, slow readers, and a store that completes late, out of order and with errors, against a
//! simple model: QoS 1 at least once, QoS 2 exactly once, order per topic, nothing to whom it is not
//! for. A failing seed is printed and replays: `LOCKGATE_SEED=7 cargo test --test simulation`.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/recorder.rs"]
mod recorder;
mod world;

use world::{Options, World};

/// Seeds of one run; `LOCKGATE_SEEDS` asks for more.
const SEEDS: u64 = 500;

fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("LOCKGATE_SEED") {
        return vec![seed.parse().expect("a number")];
    }
    let count = std::env::var("LOCKGATE_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number"));
    (0..count).collect()
}

fn run(name: &str, options: fn(u64) -> Options) {
    for seed in seeds() {
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
    run("in memory", |seed| Options { seed, durable: false, late: false, failing: false });
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order_with_a_store_that_completes_late() {
    run("late", |seed| Options { seed, durable: true, late: true, failing: false });
}

#[test]
fn nothing_that_was_acknowledged_is_lost_with_a_store_that_fails() {
    run("failing", |seed| Options { seed, durable: true, late: true, failing: true });
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in 0..20 {
        let digest = || {
            let mut world = World::new(Options { seed, durable: seed % 2 == 0, late: true, failing: seed % 3 == 0 });
            world.run();
            world.digest()
        };
        assert_eq!(digest(), digest(), "LOCKGATE_SEED={seed}");
    }
}
