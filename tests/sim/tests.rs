//! The simulator itself: the rules hold on a sample of seeds, and a seed is one run.

use fleet_tests::sim::{crash_all, crash_everywhere, crash_table, forgetful_sky, kept_seeds, run};
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
fn killed_at_every_step_before_every_cloud_the_controller_leaves_one_vm_for_each_row() {
    let results = crash_all();
    println!("{}", crash_table(&results));
    for (sky, crashes) in &results {
        assert!(crashes.broken.is_none(), "{}: {:?}", sky.name, crashes.broken);
        assert!(crashes.points >= 40, "{}: {} crash points", sky.name, crashes.points);
    }
}

#[test]
fn a_cloud_that_launches_again_under_the_same_id_is_found_out() {
    let found = crash_everywhere(&forgetful_sky()).broken;
    assert!(found.is_some_and(|broken| broken.text.contains("two VMs")));
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
