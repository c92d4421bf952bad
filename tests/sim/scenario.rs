//! From a seed to a fleet and everything that will go wrong with it.

use std::time::Duration;

use cic_agent::core::Timing as AgentTiming;
use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::DeploymentName;
use cic_common::name::ClusterName;
use cic_common::notice::NoticeKind;
use cic_common::time::Mono;
use cic_controller::core::{BrakeRules, Deployment, Timing};

use crate::world::Setup;
use crate::world::cloud::Manners;
use crate::world::controller::CrashPoint;
use crate::world::engine::EngineManners;
use crate::world::fault::{Fault, LINKS, Scope};
use crate::world::network::{Path, Way, Weather};
use crate::world::rng::Rng;

/// Every tenth seed has no faults at all: there nothing may ever be replaced.
const FAULT_FREE_EVERY: u64 = 10;

/// Nodes above which a run is kept short, so that a few large fleets do not eat the time of many small ones.
const LARGE_FLEET: u16 = 10;

/// Kinds of faults a seed may draw from. A seed takes some of them, so that each pair meets somewhere and none
/// drowns the others.
const KINDS: u64 = 24;

/// One run's plan.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub setup: Setup,
    pub has_faults: bool,
    /// Faults happen before this; then the fleet must come to rest.
    pub faults_until: Mono,
}

impl Scenario {
    /// The plan of `seed`; the same for the same seed and build.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed_cafe);
        let has_faults = !seed.is_multiple_of(FAULT_FREE_EVERY);
        let deployments = deployments(&mut rng);
        let nodes: u16 = deployments.iter().map(|deployment| deployment.replicas).sum();
        let minutes = match rng.range(0, 9) {
            _ if nodes > LARGE_FLEET => 10,
            0..=6 => rng.range(10, 13),
            7..=8 => rng.range(13, 25),
            _ => rng.range(25, 60),
        };
        let faults_until = Mono::from_millis(minutes * 60_000);
        let mut faults = if has_faults { faults(&mut rng, &deployments, minutes) } else { Vec::new() };
        if has_faults {
            faults.extend(cries(seed, &deployments, minutes));
        }
        let setup = Setup {
            seed,
            timing: timing(&mut rng),
            rules: rules(&mut rng, has_faults),
            agent_timing: agent_timing(&mut rng),
            weather: weather(&mut rng, has_faults),
            manners: lying(seed, has_faults, manners(&mut rng, has_faults, nodes)),
            engine: engine(&mut rng, has_faults),
            model_faults: if has_faults && rng.chance(0.2) { 0.1 } else { 0.0 },
            deployments,
            faults,
            kill: None,
        };
        Self { setup, has_faults, faults_until }
    }
}

fn deployments(rng: &mut Rng) -> Vec<Deployment> {
    let count = match rng.range(0, 9) {
        0..=6 => 1,
        7..=8 => 2,
        _ => 3,
    };
    let zones = rng.range(1, 3);
    (1..=count)
        .map(|n| {
            let replicas = match rng.range(0, 19) {
                0..=12 => rng.range(1, 3),
                13..=18 => rng.range(3, 6),
                _ => rng.range(7, 12),
            };
            let zone = char::from(b'a' + rng.range(0, zones - 1) as u8);
            let cluster = ClusterName::new("sim", "here", "h100", "spot", "20260101", n);
            Deployment {
                name: DeploymentName::new(format!("chat{n}")).expect("a label"),
                model: ModelSpec::at(&format!("model{n}"), &format!("/models/{n}")),
                engine: EngineSpec {
                    program: "vllm".to_owned(),
                    args: Vec::new(),
                    env: std::collections::BTreeMap::new(),
                },
                replicas: replicas as u16,
                replicas_min: u16::from(replicas > 1),
                provider: "sim".to_owned(),
                zone: format!("zone-{zone}"),
                cluster: cluster.expect("the parts are lower-case labels"),
                node_next: 1,
                routing: cic_common::routing::Routing::default(),
                price_limit_usd_per_hour: None,
            }
        })
        .collect()
}

fn timing(rng: &mut Rng) -> Timing {
    let usual = Timing { serve_grace: Duration::from_secs(rng.range(1200, 3600)), ..Timing::default() };
    if rng.chance(0.3) { Timing { partition_grace: Duration::from_secs(20), ..usual } } else { usual }
}

fn agent_timing(rng: &mut Rng) -> AgentTiming {
    let start_gate = Duration::from_secs(if rng.chance(0.7) { 150 } else { 600 });
    AgentTiming { start_gate, ..AgentTiming::default() }
}

fn rules(rng: &mut Rng, has_faults: bool) -> BrakeRules {
    if !has_faults || rng.chance(0.4) {
        return BrakeRules::default();
    }
    BrakeRules {
        terminations_max: rng.range(1, 4) as u32,
        launches_max: rng.range(8, 30) as u32,
        window: Duration::from_secs(rng.range(60, 400)),
        silent_count_min: rng.range(2, 4) as u32,
        silent_launch_after: Duration::from_secs(rng.range(60, 300)),
        ..BrakeRules::default()
    }
}

fn weather(rng: &mut Rng, has_faults: bool) -> Weather {
    let ms = Duration::from_millis;
    let calm = Weather { delay: ms(rng.range(1, 30)), jitter: ms(rng.range(0, 20)), ..Weather::CALM };
    if !has_faults || rng.chance(0.3) {
        return calm;
    }
    Weather { loss: 0.02, duplicate: 0.02, reorder: 0.02, ..calm }
}

fn manners(rng: &mut Rng, has_faults: bool, nodes: u16) -> Manners {
    let visibility = Duration::from_secs(rng.range(1, 60));
    if !has_faults {
        return Manners { visibility, ..Manners::GOOD };
    }
    let share =
        |rng: &mut Rng, most: u64| if rng.chance(0.5) { 0.0 } else { rng.range(0, most) as f64 / 100.0 };
    Manners {
        quota: if rng.chance(0.7) { usize::MAX } else { usize::from(nodes) + rng.index(4) },
        lost_reply: share(rng, 20),
        late: share(rng, 10),
        scarce: share(rng, 30),
        slow_boot: share(rng, 15),
        visibility,
        ..Manners::GOOD
    }
}

/// Some clouds deny what they did, or do it twice. Drawn by themselves, as the cries are.
fn lying(seed: u64, has_faults: bool, manners: Manners) -> Manners {
    let mut rng = Rng::new(seed ^ 0x11e5_5eed);
    if !has_faults || rng.chance(0.7) {
        return manners;
    }
    let (denied, duplicated) = (rng.range(0, 20) as f64 / 100.0, rng.range(0, 20) as f64 / 100.0);
    Manners { denied, duplicated, ..manners }
}

fn engine(rng: &mut Rng, has_faults: bool) -> EngineManners {
    let fastest = rng.range(2_000, 20_000);
    let good = EngineManners {
        load_ms: (fastest, fastest + rng.range(0, 60_000)),
        fails_at_start: 0.0,
        never_ready: 0.0,
        ignores_term: 0.0,
    };
    if !has_faults || rng.chance(0.6) {
        return good;
    }
    EngineManners { fails_at_start: 0.15, never_ready: 0.04, ignores_term: 0.3, ..good }
}

fn faults(rng: &mut Rng, deployments: &[Deployment], minutes: u64) -> Vec<(Mono, Fault)> {
    let kinds: Vec<u64> = (0..rng.range(1, 6)).map(|_| rng.range(0, KINDS - 1)).collect();
    let (end_ms, pause_ms) = (minutes * 60_000, rng.range(5_000, 90_000));
    let mut at_ms = rng.range(0, 240_000);
    let mut faults = Vec::new();
    while at_ms < end_ms {
        let kind = kinds[rng.index(kinds.len())];
        let fault = fault(rng, kind, deployments);
        // Words of an earlier run need an earlier run.
        if matches!(fault, Fault::StaleWord) && rng.chance(0.5) {
            faults.push((Mono::from_millis(at_ms), Fault::KillAgent));
            at_ms += rng.range(500, 8_000);
        }
        faults.push((Mono::from_millis(at_ms), fault));
        at_ms += rng.range(pause_ms / 4, pause_ms * 2);
    }
    faults
}

/// Words of edges, beside whatever else befalls the fleet. Drawn by themselves, so that they change no other fault of
/// a seed.
fn cries(seed: u64, deployments: &[Deployment], minutes: u64) -> Vec<(Mono, Fault)> {
    let mut rng = Rng::new(seed ^ 0xc41e_5eed);
    if rng.chance(0.6) {
        return Vec::new();
    }
    let cry = |_| {
        let at = Mono::from_millis(rng.range(60_000, minutes * 60_000));
        let deployment = deployments[rng.index(deployments.len())].name.clone();
        let (nth, span) = (rng.index(64), Duration::from_secs(rng.range(5, 300)));
        (at, Fault::EdgeCries { deployment, nth, span })
    };
    (0..5).map(cry).collect()
}

fn fault(rng: &mut Rng, kind: u64, deployments: &[Deployment]) -> Fault {
    let s = |rng: &mut Rng, low: u64, high: u64| Duration::from_secs(rng.range(low, high));
    match kind {
        0 => Fault::KillAgent,
        1 => Fault::KillEngine,
        2 if rng.chance(0.5) => Fault::StallEngine { span: s(rng, 5, 400) },
        2 => Fault::HangEngine,
        3 => Fault::UpgradeAgent,
        4 => Fault::KillHost {
            reboots_after: rng.chance(0.4).then(|| s(rng, 20, 200)),
            found_out_after: rng.chance(0.4).then(|| s(rng, 5, 300)),
        },
        5 => Fault::Freeze { span: s(rng, 2, 200) },
        6 => Fault::Cut { scope: Scope::Node, links: LINKS.to_vec(), span: s(rng, 1, 200) },
        7 => {
            let ways = if rng.chance(0.5) { vec![Way::Up] } else { vec![Way::Down] };
            let path = if rng.chance(0.5) { Path::Push } else { Path::Poll };
            let links = ways.into_iter().map(|way| (path, way)).collect();
            Fault::Cut { scope: Scope::Node, links, span: s(rng, 1, 300) }
        }
        8 => {
            let path = if rng.chance(0.5) { Path::Push } else { Path::Poll };
            let links = vec![(path, Way::Up), (path, Way::Down)];
            Fault::Cut { scope: Scope::Node, links, span: s(rng, 1, 300) }
        }
        9 => Fault::Cut { scope: Scope::Zone, links: LINKS.to_vec(), span: s(rng, 2, 200) },
        10 => Fault::Cut { scope: Scope::Fleet, links: LINKS.to_vec(), span: s(rng, 2, 400) },
        11 => Fault::Storm { loss: rng.range(10, 70) as f64 / 100.0, span: s(rng, 5, 120) },
        12 => {
            let left = if rng.chance(0.5) { Duration::from_secs(120) } else { Duration::from_secs(30) };
            let kind = match rng.range(0, 9) {
                0..=6 => NoticeKind::Terminate,
                7 => NoticeKind::Stop,
                _ => NoticeKind::Rebalance,
            };
            Fault::Notice { kind, left, is_lifted: rng.chance(0.15) }
        }
        13 => Fault::Reclaim,
        14 => Fault::CloudOutage { span: s(rng, 5, 300) },
        15 => Fault::Drought { span: s(rng, 10, 300) },
        16 => Fault::StoreOutage { span: s(rng, 1, 180) },
        17 => Fault::KillController { down_for: rng.ms(500, 30_000) },
        18 => {
            let points = [
                CrashPoint::BeforeRecord,
                CrashPoint::AfterRecord,
                CrashPoint::BeforeLaunch,
                CrashPoint::AfterLaunch,
                CrashPoint::BeforeTerminate,
                CrashPoint::AfterTerminate,
                CrashPoint::BeforeClose,
            ];
            Fault::KillControllerAt { point: points[rng.index(points.len())], down_for: rng.ms(500, 30_000) }
        }
        19 => Fault::StallController { span: s(rng, 5, 30) },
        20 => Fault::StaleWord,
        21 => Fault::StaleTerm,
        22 => {
            let deployment = &deployments[rng.index(deployments.len())];
            let replicas = rng.range(0, u64::from(deployment.replicas) + 3) as u16;
            Fault::Scale { deployment: deployment.name.clone(), replicas }
        }
        _ => {
            if rng.chance(0.5) {
                Fault::AskReplace
            } else {
                Fault::AskDrain
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_plan() {
        for seed in 0..50 {
            let text = |seed| format!("{:?}", Scenario::new(seed));
            assert_eq!(text(seed), text(seed));
        }
        assert_ne!(format!("{:?}", Scenario::new(1)), format!("{:?}", Scenario::new(2)));
    }

    #[test]
    fn a_thousand_seeds_strike_with_every_kind_and_some_strike_not_at_all() {
        let mut kinds = std::collections::BTreeSet::new();
        let mut peaceful = 0;
        for seed in 0..1000 {
            let scenario = Scenario::new(seed);
            peaceful += u32::from(scenario.setup.faults.is_empty());
            kinds.extend(scenario.setup.faults.iter().map(|(_, fault)| fault.kind()));
        }
        assert!(peaceful >= 100);
        assert_eq!(kinds.len(), 26, "{kinds:?}");
    }
}
