//! The controller is killed at every step of launching and giving back, before clouds that behave badly.
//!
//! One story is played again and again: a deployment is applied, its node is replaced, the old one is given back. In the
//! nth play of a sky the controller is killed at the nth step it takes about an operation: before and after each write is
//! asked for, is durable and is heard of, each call is sent, carried out and answered. It ends when no play has so many
//! steps. After each the fleet must come to rest with one VM for each row and one row for each VM.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cic_agent::core::Timing as AgentTiming;
use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::DeploymentName;
use cic_common::name::ClusterName;
use cic_common::time::Mono;
use cic_controller::core::{BrakeRules, Deployment, Timing};

use super::run::unrest;
use crate::world::cloud::{Manners, VmState};
use crate::world::controller::Kill;
use crate::world::engine::EngineManners;
use crate::world::network::Weather;
use crate::world::trace::Trace;
use crate::world::{Fact, Fault, Setup, World};

/// When the operator asks for the replacement: the first node serves by then.
const REPLACE_AT: Mono = Mono::from_millis(150_000);

/// When faults end: the replacement is under way or done by then, however often calls were lost.
const STORY_ENDS: Mono = Mono::from_millis(300_000);

/// The fleet must be at rest this long after the story: one deadline of an operation, one grace of an orphan, and the
/// waits between them.
const REST_WITHIN: Duration = Duration::from_secs(1800);

/// At rest means unchanged for this long: longer than a listing lags.
const REST_FOR: Duration = Duration::from_secs(75);

/// How often rest and rows are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Above visibility and grace, what a VM without a row may cost: the listing that is asked each 30 s, the controller's
/// absence, its settle time, and a termination whose calls are lost several times.
const MARGIN: Duration = Duration::from_secs(150);

/// Plays for each step, which differ in the calls that go wrong and in what a crash leaves of a commit.
const DRAWS: u64 = 8;

/// Steps of one story. None has so many; one that never ends would.
const STEPS_MAX: u64 = 1000;

/// A cloud and how the controller is killed before it.
#[derive(Debug, Clone, Copy)]
pub struct Sky {
    pub name: &'static str,
    manners: Manners,
    down_for: Duration,
    loses_row: bool,
    /// How often in one play a VM may come to be without a row, or its quarantine begin anew: the crash, and what the cloud
    /// adds of itself where it carries a launch out a second time after it had refused it.
    causes: u32,
}

/// What came of all plays of one sky.
#[derive(Debug, Default, Clone)]
pub struct Crashes {
    /// Steps at which a controller was killed.
    pub points: u64,
    /// Plays in which it was.
    pub plays: u64,
    /// The most VM time without a row in one play, and the step of that.
    pub unowned_max: (Duration, u64),
    /// The first play that broke a rule.
    pub broken: Option<Broken>,
}

/// A play that broke a rule.
#[derive(Debug, Clone)]
pub struct Broken {
    pub at_step: u64,
    pub draw: u64,
    pub step: &'static str,
    pub text: String,
}

/// The skies that the controller must survive.
fn skies() -> Vec<Sky> {
    let good = Manners { visibility: Duration::from_secs(60), ..Manners::GOOD };
    let (soon, late) = (Duration::from_secs(2), Duration::from_secs(90));
    let sky = |name, manners, down_for| Sky { name, manners, down_for, loses_row: false, causes: 1 };
    vec![
        sky("listings lag", good, soon),
        sky("replies are lost", Manners { lost_reply: 0.5, ..good }, soon),
        sky("calls are carried out late", Manners { late: 0.4, ..good }, soon),
        sky("calls and replies are doubled", Manners { duplicated: 0.7, ..good }, soon),
        sky("what was done is denied", Manners { denied: 0.4, ..good }, soon),
        Sky {
            causes: 2,
            ..sky(
                "all of it, and no controller for long",
                Manners { lost_reply: 0.2, late: 0.2, duplicated: 0.3, denied: 0.2, scarce: 0.2, ..good },
                late,
            )
        },
        Sky { loses_row: true, ..sky("a row is lost with the controller", good, soon) },
    ]
}

/// One that launches anew whatever was launched under an id: the planted bug that must be found.
#[must_use]
pub fn forgetful_sky() -> Sky {
    let manners = Manners { visibility: Duration::from_secs(60), looks_up_ids: false, ..Manners::GOOD };
    let down_for = Duration::from_secs(2);
    Sky { name: "ids are not looked up", manners, down_for, loses_row: false, causes: 1 }
}

/// Kills the controller at every step before `sky`, until a rule breaks or there are no more steps.
#[must_use]
pub fn crash_everywhere(sky: &Sky) -> Crashes {
    let mut crashes = Crashes::default();
    let limit = Timing::default().visibility + Timing::default().orphan_grace + MARGIN;
    let limit = limit * sky.causes + sky.down_for;
    for at_step in 1..=STEPS_MAX {
        let before = crashes.plays;
        for draw in 0..DRAWS {
            let kill = Kill { at_step, down_for: sky.down_for, loses_row: sky.loses_row };
            let mut world = World::new(setup(sky, kill, draw), Trace::Off);
            let (unowned, result) = play(&mut world);
            let Some(step) = world.steps().killed_at else { continue };
            crashes.plays += 1;
            crashes.unowned_max = crashes.unowned_max.max((unowned, at_step));
            let (unowned_s, limit_s) = (unowned.as_secs(), limit.as_secs());
            let too_long = format!("{unowned_s} s of VMs without a row; {limit_s} are allowed");
            if let Err(text) = result.and_then(|()| if unowned > limit { Err(too_long) } else { Ok(()) }) {
                crashes.broken = Some(Broken { at_step, draw, step, text });
                return crashes;
            }
        }
        if crashes.plays == before {
            return crashes;
        }
        crashes.points += 1;
    }
    let text = "the story has no end".to_owned();
    crashes.broken = Some(Broken { at_step: STEPS_MAX, draw: 0, step: "", text });
    crashes
}

/// Kills it at every step before every sky, a thread for each.
#[must_use]
pub fn crash_all() -> Vec<(Sky, Crashes)> {
    std::thread::scope(|scope| {
        let play = |sky: Sky| scope.spawn(move || (sky, crash_everywhere(&sky)));
        let plays: Vec<_> = skies().into_iter().map(play).collect();
        plays
            .into_iter()
            .map(|play| play.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// A line for each sky.
#[must_use]
pub fn crash_table(results: &[(Sky, Crashes)]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<40} {:>8} {:>8} {:>20}",
        "controller killed, and", "points", "plays", "unowned s, worst"
    );
    for (sky, crashes) in results {
        let (worst, at) = crashes.unowned_max;
        let worst = format!("{} (point {at})", worst.as_secs());
        let _ = writeln!(text, "{:<40} {:>8} {:>8} {worst:>20}", sky.name, crashes.points, crashes.plays);
    }
    text
}

/// Plays to the fleet at rest. Returns the VM time without a row.
fn play(world: &mut World) -> (Duration, Result<(), String>) {
    let mut facts: Vec<Fact> = Vec::new();
    let (mut unowned, mut now) = (Duration::ZERO, Mono::ZERO);
    let mut rest_since: Option<Mono> = None;
    loop {
        now = now + LOOK;
        while world.next_at().is_some_and(|at| at < now) {
            world.advance();
        }
        world.take_facts(&mut facts);
        unowned += LOOK * u32::try_from(without_row(world)).unwrap_or(u32::MAX);
        if let Some(text) = twins(world) {
            return (unowned, Err(text));
        }
        if now < STORY_ENDS {
            continue;
        }
        if !world.is_quiet() {
            world.calm_down();
        }
        match (unrest(world), rest_since) {
            (None, Some(since)) if now.since(since) >= REST_FOR => return (unowned, Ok(())),
            (None, since) => rest_since = since.or(Some(now)),
            (Some(text), _) if now.since(STORY_ENDS) > REST_WITHIN => return (unowned, Err(text)),
            (Some(_), _) => rest_since = None,
        }
    }
}

/// VMs that cost money and that no row in the store knows.
fn without_row(world: &World) -> usize {
    let rows = world.store().nodes();
    world.cloud().alive().filter(|vm| !rows.contains_key(&vm.node)).count()
}

/// A node with two VMs: one act was done twice.
fn twins(world: &World) -> Option<String> {
    let vms = world.cloud().vms();
    let alive = |i: usize| vms[i].state != VmState::Ended;
    let pair = |i: usize| (0..i).find(|&j| alive(i) && alive(j) && vms[i].node == vms[j].node);
    (0..vms.len()).find(|&i| pair(i).is_some()).map(|i| format!("{} has two VMs", vms[i].node))
}

fn setup(sky: &Sky, kill: Kill, draw: u64) -> Setup {
    Setup {
        seed: kill.at_step * DRAWS + draw,
        timing: Timing::default(),
        rules: BrakeRules::default(),
        agent_timing: AgentTiming::default(),
        weather: Weather::CALM,
        manners: sky.manners,
        engine: EngineManners {
            load_ms: (2_000, 4_000),
            fails_at_start: 0.0,
            never_ready: 0.0,
            ignores_term: 0.0,
        },
        model_faults: 0.0,
        deployments: vec![deployment()],
        faults: vec![(REPLACE_AT, Fault::AskReplace)],
        kill: Some(kill),
    }
}

fn deployment() -> Deployment {
    let cluster = ClusterName::new("sim", "here", "h100", "spot", "20260101", 1);
    Deployment {
        name: DeploymentName::new("chat").expect("a label"),
        model: ModelSpec::at("model", "/models/1"),
        engine: EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: BTreeMap::new() },
        replicas: 1,
        replicas_min: 0,
        provider: "sim".to_owned(),
        zone: "zone-a".to_owned(),
        cluster: cluster.expect("the parts are lower-case labels"),
        node_next: 1,
        routing: cic_common::routing::Routing::default(),
        price_limit_usd_per_hour: None,
    }
}
