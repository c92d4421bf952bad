//! The simulator itself: the rules hold on a sample of seeds, and a seed is one run.

use fleet_tests::sim::{kept_seeds, run};
use fleet_tests::world::trace::Trace;

#[test]
fn every_rule_holds_on_the_kept_seeds_and_a_sample() {
    let kept = kept_seeds();
    assert!(!kept.is_empty());
    for seed in kept.into_iter().chain(5000..5040) {
        let outcome = run(seed, Trace::Off);
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
    }
}

#[test]
fn the_same_seed_is_the_same_run_to_the_last_line() {
    let hash = |seed| match run(seed, Trace::hash()).trace {
        Trace::Hash(hash) => hash,
        other => panic!("asked for a hash, got {other:?}"),
    };
    for seed in [3, 301] {
        assert_eq!(hash(seed), hash(seed));
    }
    assert_ne!(hash(3), hash(4));
}
