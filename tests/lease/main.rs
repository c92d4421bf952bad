//! The lease protocol under a model checker: the real state machine of every controller, one row in a database with a clock of
//! its own, and all that may happen between them.
//!
//! What is explored: requests that are applied late, answers that are late or lost, requests that are given up and applied
//! all the same, controllers that do not run for any time (a pause is a step that is not taken), one that dies and starts
//! again, one that hands over, and clocks that differ by what the margin allows. All at once are more states than a minute has
//! room for, so each line below allows some of it, and every order of that.

mod database;
mod model;
mod process;

use std::time::Duration;

use cic_controller::ha::LeaseTiming;
use stateright::{Checker as _, HasDiscoveries, Model as _};

use model::{Bounds, Fleet};

/// Two cores are shared with other tests.
const THREADS: usize = 2;

/// The protocol's times in ticks, each standing for a second: only proportions count. The margin is what the clocks of the
/// model may differ by, and the span the shortest that leaves a leader any time.
fn timing() -> LeaseTiming {
    let ticks = Duration::from_secs;
    LeaseTiming {
        span: ticks(2),
        margin: ticks(1),
        renew_every: ticks(1),
        look_every: ticks(1),
        watch_every: ticks(1),
        stand_back: ticks(2),
        trust_from_sending: true,
    }
}

fn calm(controllers: usize, ticks_max: u8) -> Fleet {
    let bounds = Bounds { ticks_max, ..Bounds::default() };
    Fleet { controllers, timing: timing(), bounds, is_prompt: false, is_skewed: false }
}

fn check(name: &str, fleet: Fleet) {
    let checker = fleet.checker().threads(THREADS).spawn_bfs().join();
    let (all, unlike) = (checker.state_count(), checker.unique_state_count());
    println!("{name}: {all} states, {unlike} of them unlike any other");
    checker.assert_properties();
}

#[test]
fn two_controllers_never_act_at_once_whatever_is_late_lost_paused_or_killed() {
    let bounds = |change: fn(&mut Bounds)| {
        let mut fleet = calm(2, 3);
        change(&mut fleet.bounds);
        fleet
    };
    let skewed = |fleet: Fleet| Fleet { is_skewed: true, ..fleet };
    check("pauses, clocks differ", skewed(bounds(|bounds| bounds.pauses_max = 1)));
    check("a hand-over, clocks differ", skewed(bounds(|bounds| bounds.hand_overs_max = 1)));
    check("a request given up, clocks differ", skewed(bounds(|bounds| bounds.given_up_max = 1)));
    check("a hand-over and a crash", bounds(|b| (b.hand_overs_max, b.crashes_max) = (1, 1)));
    check("a request given up and a hand-over", bounds(|b| (b.given_up_max, b.hand_overs_max) = (1, 1)));
}

#[test]
fn a_crash_lets_nobody_act_beside_another_while_clocks_differ() {
    let mut fleet = Fleet { is_skewed: true, ..calm(2, 3) };
    fleet.bounds.crashes_max = 1;
    check("a crash, clocks differ", fleet);
}

#[test]
fn three_controllers_never_act_at_once() {
    check("three controllers", calm(3, 3));
    let mut fleet = calm(3, 2);
    fleet.bounds.hand_overs_max = 1;
    check("three controllers and a hand-over", fleet);
}

#[test]
fn somebody_leads_soon_after_a_crash_and_after_a_hand_over_when_the_database_answers() {
    let bounds = Bounds { ticks_max: 12, crashes_max: 2, hand_overs_max: 1, ..Bounds::default() };
    check("prompt", Fleet { bounds, is_prompt: true, ..calm(2, 0) });
}

/// That the check can fail: each line takes away one thing that the proof rests on.
#[test]
fn without_the_margin_or_with_trust_from_the_answer_two_act_at_once() {
    let no_margin = LeaseTiming { margin: Duration::ZERO, ..timing() };
    let from_answer = LeaseTiming { trust_from_sending: false, ..timing() };
    for (name, timing) in [("no margin", no_margin), ("trust from the answer", from_answer)] {
        let fleet = Fleet { timing, is_skewed: true, ..calm(2, 4) };
        let found = HasDiscoveries::AnyOf([model::ONE_ACTS].into());
        let checker = fleet.checker().threads(THREADS).finish_when(found).spawn_bfs().join();
        let path = checker.discovery(model::ONE_ACTS);
        let path = path.unwrap_or_else(|| panic!("{name}: no counterexample was found"));
        let steps = path.into_actions();
        println!("{name}: two act after {} steps: {steps:?}", steps.len());
    }
}
