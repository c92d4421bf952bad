//! The lease protocol under a model checker: the real state machine of every controller, one row in a database with a clock of
//! its own, and all that may happen between them.
//!
//! What is explored: requests that are applied late, answers that are late or lost, requests that are given up and applied
//! all the same, controllers that do not run for any time (a pause is a step that is not taken), one that dies and starts
//! again, one that hands over, and clocks that differ by what the margin allows.

mod database;
mod model;
mod process;

use std::time::Duration;

use cic_controller::ha::LeaseTiming;
use stateright::{Checker as _, Model as _};

use model::{Bounds, Fleet};

/// Two cores are shared with other tests.
const THREADS: usize = 2;

/// One tick of the model stands for a second: only proportions count.
fn ticks(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The protocol's times in whole ticks. The margin is what the clocks of the model may differ by.
fn timing() -> LeaseTiming {
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

const TICKS: u8 = 5;

fn hostile(controllers: usize, ticks_max: u8) -> Fleet {
    let n = |name: &str, default: u8| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let bounds = Bounds { ticks_max: n("T", ticks_max), crashes_max: n("C",1), hand_overs_max: n("H",1), given_up_max: n("G",1), pauses_max: n("P",1) };
    Fleet { controllers, timing: timing(), bounds, is_prompt: false, is_skewed: n("S",1)==1 }
}

fn check(name: &str, fleet: Fleet) -> impl stateright::Checker<Fleet> {
    let checker = fleet.checker().threads(THREADS).spawn_bfs().join();
    println!("{name}: {} states, {} of them unlike any other", checker.state_count(), checker.unique_state_count());
    checker
}

#[test]
fn two_controllers_never_act_at_once_whatever_is_late_lost_paused_or_killed() {
    check("two controllers", hostile(2, TICKS)).assert_properties();
}

#[test]
fn three_controllers_never_act_at_once_whatever_is_late_lost_paused_or_killed() {
    check("three controllers", hostile(3, 4)).assert_properties();
}

#[test]
fn somebody_leads_soon_after_a_crash_and_after_a_hand_over_when_the_database_answers() {
    let bounds = Bounds { ticks_max: 14, crashes_max: 2, hand_overs_max: 1, given_up_max: 0, pauses_max: 0 };
    check("prompt", Fleet { controllers: 2, timing: timing(), bounds, is_prompt: true, is_skewed: false }).assert_properties();
}

/// That the check can fail: each line takes away one thing that the proof rests on.
#[test]
fn without_the_margin_or_with_trust_from_the_answer_two_act_at_once() {
    let no_margin = LeaseTiming { margin: Duration::ZERO, ..timing() };
    let from_answer = LeaseTiming { trust_from_sending: false, ..timing() };
    for (name, timing) in [("no margin", no_margin), ("trust from the answer", from_answer)] {
        let fleet = Fleet { timing, ..hostile(2, TICKS) };
        let checker = fleet.checker().threads(THREADS).finish_when(stateright::HasDiscoveries::AnyOf([model::ONE_ACTS].into())).spawn_bfs().join();println!("{name} {}", checker.unique_state_count());
        let path = checker.discovery(model::ONE_ACTS);
        let path = path.unwrap_or_else(|| panic!("{name}: no counterexample was found"));
        println!("{name}: {} steps to two that act: {:?}", path.clone().into_actions().len(), path.into_actions());
    }
}
