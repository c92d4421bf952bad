//! Plays one seed from the first launch to the fleet at rest.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::time::Mono;
use cic_controller::core::BrakeRules;

use super::invariants::Invariants;
use super::rule::{Rule, Violation};
use super::scenario::Scenario;
use crate::world::cloud::VmState;
use crate::world::trace::Trace;
use crate::world::{Fact, World};

/// Faults off, the fleet must be at rest within this, and what the brake makes it wait: an engine that never
/// becomes ready holds its node for up to three start gates of 600 s and their backoffs.
const REST_WITHIN: Duration = Duration::from_secs(45 * 60);

/// At rest means unchanged for this long: longer than any listing lags.
const REST_FOR: Duration = Duration::from_secs(75);

/// How often the fleet is looked at while it comes to rest.
const REST_LOOK: Duration = Duration::from_secs(5);

/// What came of one seed.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub event_count: u64,
    pub virtual_time: Duration,
    pub vm_time: Duration,
    /// From the end of the faults to the fleet at rest.
    pub rest_after: Duration,
    pub checks: BTreeMap<Rule, u64>,
    pub injected: BTreeMap<&'static str, u64>,
    pub violation: Option<Violation>,
    pub trace: Trace,
}

/// Plays `seed`.
#[must_use]
pub fn run(seed: u64, trace: Trace) -> Outcome {
    let scenario = Scenario::new(seed);
    let faults_until = scenario.faults_until;
    let mut world = World::new(scenario.setup, trace);
    let mut invariants = Invariants::default();
    let mut event_count = 0;
    let mut rest_after = Duration::ZERO;
    let result = play(&mut world, &mut invariants, faults_until, &mut event_count).and_then(|()| {
        world.calm_down();
        rest_after = settle(&mut world, &mut invariants, &mut event_count)?;
        Ok(())
    });
    let now = world.now();
    Outcome {
        seed,
        event_count,
        virtual_time: now.since(Mono::ZERO),
        vm_time: world.cloud().cost(now),
        rest_after,
        checks: invariants.checks().collect(),
        injected: world.injected().clone(),
        violation: result.err(),
        trace: world.into_trace(),
    }
}

fn play(
    world: &mut World,
    invariants: &mut Invariants,
    until: Mono,
    event_count: &mut u64,
) -> Result<(), Violation> {
    let mut facts: Vec<Fact> = Vec::new();
    while world.next_at().is_some_and(|at| at < until) {
        world.advance();
        *event_count += 1;
        world.take_facts(&mut facts);
        invariants.look(world, &facts)?;
    }
    Ok(())
}

/// Waits for the fleet to be what is wanted, and to stay so.
fn settle(
    world: &mut World,
    invariants: &mut Invariants,
    event_count: &mut u64,
) -> Result<Duration, Violation> {
    let began = world.now();
    let allowed = REST_WITHIN + brake_time(world);
    let mut at_rest_since: Option<Mono> = None;
    let mut now = began;
    loop {
        now = now + REST_LOOK;
        play(world, invariants, now, event_count)?;
        invariants.count(Rule::Convergence);
        match (unrest(world), at_rest_since) {
            (None, Some(since)) if now.since(since) >= REST_FOR => return Ok(since.since(began)),
            (None, since) => at_rest_since = since.or(Some(now)),
            (Some(text), _) if now.since(began) > allowed => {
                let text = format!("{} s after the faults: {text}", now.since(began).as_secs());
                return Err(Violation { rule: Rule::Convergence, text });
            }
            (Some(_), _) => at_rest_since = None,
        }
    }
}

/// How long the brake may make it wait: every VM there is and every one wanted could have to pass it.
fn brake_time(world: &World) -> Duration {
    let BrakeRules { terminations_max, launches_max, window, silent_launch_after, .. } = world.setup().rules;
    let alive = world.cloud().alive().count() as u32;
    let wanted: u32 = world.wanted().values().map(|wanted| u32::from(wanted.replicas)).sum();
    let turns = alive.div_ceil(terminations_max.max(1)) + (2 * wanted).div_ceil(launches_max.max(1)) + 2;
    window * turns + silent_launch_after
}

/// Why the fleet is not at rest, if it is not.
pub(super) fn unrest(world: &World) -> Option<String> {
    if !world.controller().answers() {
        return Some("the controller does not run".to_owned());
    }
    for wanted in world.wanted().values() {
        let serving = world
            .machines()
            .iter()
            .filter(|machine| machine.deployment == wanted.name && machine.is_serving(world.now()))
            .count();
        if serving != usize::from(wanted.replicas) {
            return Some(format!("{serving} of {} serve {}", wanted.replicas, wanted.name));
        }
    }
    let rows = world.store().nodes();
    for vm in world.cloud().vms() {
        if vm.state != VmState::Ended && !rows.contains_key(&vm.node) {
            return Some(format!("the VM of {} has no row", vm.node));
        }
    }
    for node in rows.keys() {
        let vm = world.cloud().vms().iter().find(|vm| vm.node == *node);
        if vm.is_none_or(|vm| vm.state == VmState::Ended) {
            return Some(format!("the row of {node} has no VM"));
        }
    }
    let wanted: usize = world.wanted().values().map(|wanted| usize::from(wanted.replicas)).sum();
    if rows.len() != wanted {
        return Some(format!("{} nodes for {wanted} wanted", rows.len()));
    }
    world.store().open().next().map(|operation| {
        format!("operation {} ({}) of {} is open", operation.id, operation.kind.as_str(), operation.node)
    })
}
