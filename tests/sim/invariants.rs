//! Looks at every fact of a run and says which rule it breaks.
//!
//! Judged from the world's ground truth and from what was delivered and performed; a core's own counts are never
//! asked. The one exception is the routing rule, which compares a published table with the beliefs behind it.

use std::time::Duration;

use cic_common::id::{NodeId, OperationId};
use cic_common::report::{EngineState, Phase};
use cic_common::time::Mono;
use cic_controller::core::{Belief, Operation, OperationKind, View};

use super::ledger::{Ledger, NodeLedger, trim};
use super::rule::{Rule, Violation};
use crate::world::cloud::VmState;
use crate::world::machine::Machine;
use crate::world::{Fact, World};

/// A node last heard serving within this time counts as serving: silence takes 3 s to show and a poll or two to
/// be confirmed, and a node that answers polls alone is asked each 2 s.
const SERVING_KNOWN_FOR: Duration = Duration::from_secs(15);

/// A node unheard for this long has no place in the routes, and must have been noticed.
const ROUTED_UNHEARD_MAX: Duration = Duration::from_secs(40);

/// Nodes that may exist beyond twice the wanted ones while all of them are replaced.
const SURGE_EXTRA: usize = 3;

/// What the reason of a launch says that an edge's word hastened.
const AT_ONCE: &str = "without waiting";

/// An edge's word older than this launches nothing.
const EDGES_WORD_LASTS: Duration = Duration::from_secs(15);

/// A push this young keeps its path fresh, whatever was lost after it.
const HEARD_LATELY: Duration = Duration::from_secs(2);

/// Trail entries that a view may show of one node.
const TRAIL_MAX: usize = 64;

/// How often the slower rules look, in virtual time.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The rules at work on one run.
#[derive(Debug, Default)]
pub(super) struct Invariants {
    ledger: Ledger,
    checks: [u64; Rule::ALL.len()],
    look_at: Mono,
}

impl Invariants {
    /// Looks at what the last happening brought.
    ///
    /// # Errors
    /// The first rule found broken.
    pub(super) fn look(&mut self, world: &World, facts: &[Fact]) -> Result<(), Violation> {
        self.count(Rule::EveryQueueWithinItsBound);
        for fact in facts {
            self.judge(world, fact)?;
            self.ledger.enter(world, fact);
        }
        if world.now() >= self.look_at {
            self.look_at = world.now() + LOOK_EVERY;
            self.look_at_view(world)?;
        }
        Ok(())
    }

    /// How often each rule was checked.
    pub(super) fn checks(&self) -> impl Iterator<Item = (Rule, u64)> {
        Rule::ALL.into_iter().zip(self.checks)
    }

    pub(super) fn count(&mut self, rule: Rule) {
        self.checks[rule as usize] += 1;
    }

    fn judge(&mut self, world: &World, fact: &Fact) -> Result<(), Violation> {
        match fact {
            Fact::Intended(operation) => {
                self.intended(operation)?;
                self.edges_word(world, operation)
            }
            Fact::Launch { operation, node, deployment: _ } => {
                self.recorded_first(*operation)?;
                self.one_launch(*operation, node)?;
                if !self.ledger.performed.contains(operation) {
                    self.launch_bounds(world, *operation)?;
                }
                Ok(())
            }
            Fact::Terminate { operation, node } => {
                self.recorded_first(*operation)?;
                if !self.ledger.is_terminate(*operation) {
                    return broken(
                        Rule::HealthyNodeStays,
                        format!("operation {operation} terminates {node} and is no termination"),
                    );
                }
                if self.ledger.performed.contains(operation) {
                    return Ok(());
                }
                self.brake(world, *operation, node)?;
                self.protection(world, node)?;
                self.add_first(world, node)
            }
            Fact::Commanded { operation, node, is_drain } => {
                self.recorded_first(*operation)?;
                if *is_drain && !self.ledger.performed.contains(operation) {
                    return self.add_first(world, node);
                }
                Ok(())
            }
            Fact::StaleWord { node, kind, changed } => {
                self.count(Rule::OldIncarnationChangesNothing);
                match changed {
                    Some(text) => broken(
                        Rule::OldIncarnationChangesNothing,
                        format!("an old {kind} of {}: {text}", world.machines()[*node].node),
                    ),
                    None => Ok(()),
                }
            }
            Fact::StaleTerm { node, wrong } => {
                self.count(Rule::LowerTermChangesNothing);
                match wrong {
                    Some(text) => broken(
                        Rule::LowerTermChangesNothing,
                        format!("at {}: {text}", world.machines()[*node].node),
                    ),
                    None => Ok(()),
                }
            }
            Fact::Overfull { what, count, max } => {
                broken(Rule::EveryQueueWithinItsBound, format!("{count} {what}, and {max} are allowed"))
            }
            Fact::Routes(_) => self.routes(world),
            Fact::Discord { text } => broken(Rule::PathsAgree, text.clone()),
            Fact::Heard { .. } => {
                self.count(Rule::PathsAgree);
                Ok(())
            }
            Fact::ControllerStarted { .. }
            | Fact::ControllerDied
            | Fact::ControllerThawed
            | Fact::Warned { .. }
            | Fact::Unlisted { .. }
            | Fact::EdgeCried { .. }
            | Fact::Refused { .. }
            | Fact::Recorded { .. }
            | Fact::Closed { .. }
            | Fact::Scaled { .. }
            | Fact::OperatorAsked { .. }
            | Fact::Launched { .. }
            | Fact::Blemished { .. } => Ok(()),
        }
    }

    fn intended(&mut self, operation: &Operation) -> Result<(), Violation> {
        self.count(Rule::OneOperationPerNode);
        let other = self.ledger.open.iter().find(|(_, node)| **node == operation.node);
        match other {
            Some((id, node)) => broken(
                Rule::OneOperationPerNode,
                format!("{} of {node} begins while {id} is open", operation.id),
            ),
            None => Ok(()),
        }
    }

    /// A launch that waits out no grace needs an edge's word, and that nobody is heard serving.
    fn edges_word(&mut self, world: &World, operation: &Operation) -> Result<(), Violation> {
        let OperationKind::Launch { deployment, .. } = &operation.kind else { return Ok(()) };
        if !operation.reason.contains(AT_ONCE) {
            return Ok(());
        }
        self.count(Rule::EdgesWordIsChecked);
        let now = world.now();
        let model = world.wanted().get(deployment).map(|wanted| wanted.model.name.clone());
        let cried_at = model.and_then(|model| self.ledger.cried.get(&model));
        if cried_at.is_none_or(|at| now.since(*at) > EDGES_WORD_LASTS) {
            return broken(
                Rule::EdgesWordIsChecked,
                format!("operation {} launches at once, and no edge asked for it", operation.id),
            );
        }
        let machines = world.machines();
        let serves = (0..machines.len()).find(|&node| {
            let known = self.ledger.of(node);
            let is_heard = known.heard_at.is_some_and(|at| now.since(at) < HEARD_LATELY);
            let is_member = machines[node].deployment == *deployment && known.removed_at.is_none();
            is_member && is_heard && known.phase == Some(Phase::Serving)
        });
        match serves {
            Some(node) => broken(
                Rule::EdgesWordIsChecked,
                format!("operation {} launches at once, and {} serves", operation.id, machines[node].node),
            ),
            None => Ok(()),
        }
    }

    fn recorded_first(&mut self, operation: OperationId) -> Result<(), Violation> {
        self.count(Rule::RecordedBeforePerformed);
        if self.ledger.recorded.contains(&operation) {
            return Ok(());
        }
        broken(Rule::RecordedBeforePerformed, format!("operation {operation} is performed and not recorded"))
    }

    fn one_launch(&mut self, operation: OperationId, node: &NodeId) -> Result<(), Violation> {
        self.count(Rule::OneLaunchPerNode);
        match self.ledger.launched_by.get(node) {
            Some(first) if *first != operation => {
                broken(Rule::OneLaunchPerNode, format!("{node}: by {first} and by {operation}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Terminations of VMs that run and whose launch did not fail, of this controller run, within the window.
    fn brake(&mut self, world: &World, operation: OperationId, node: &NodeId) -> Result<(), Violation> {
        self.count(Rule::TerminationsWithinBrake);
        let rules = world.setup().rules;
        trim(&mut self.ledger.terminations, world.now(), rules.window);
        let is_braked = self.ledger.is_braked(world, node);
        let count = self.ledger.terminations.len() + 1;
        if is_braked && count > rules.terminations_max as usize {
            return broken(
                Rule::TerminationsWithinBrake,
                format!(
                    "operation {operation} is termination {count} within {} s; {} are allowed",
                    rules.window.as_secs(),
                    rules.terminations_max
                ),
            );
        }
        Ok(())
    }

    fn launch_bounds(&mut self, world: &World, operation: OperationId) -> Result<(), Violation> {
        self.count(Rule::LaunchesWithinBrake);
        let (now, rules) = (world.now(), world.setup().rules);
        trim(&mut self.ledger.launches, now, rules.window);
        let count = self.ledger.launches.len() + 1;
        if count > rules.launches_max as usize {
            return broken(
                Rule::LaunchesWithinBrake,
                format!(
                    "operation {operation} is launch {count} within {} s; {} are allowed",
                    rules.window.as_secs(),
                    rules.launches_max
                ),
            );
        }
        self.count(Rule::BoundedLaunch);
        let Some(OperationKind::Launch { deployment, .. }) =
            self.ledger.intended.get(&operation).map(|operation| operation.kind.clone())
        else {
            return broken(Rule::BoundedLaunch, format!("operation {operation} launches and is no launch"));
        };
        let (_, replicas) = self.ledger.wanted(world, &deployment);
        let is_advised = |machine: &&Machine| machine.deployment == deployment && machine.was_advised;
        let advised = world.machines().iter().filter(is_advised).count();
        // And a spare for each that may be taken soon, for half of them at most.
        let most = replicas + advised.min(replicas.div_ceil(2));
        let coming = self.ledger.launching.values().filter(|name| **name == deployment).count() + 1;
        let alive: Vec<usize> = (0..world.machines().len())
            .filter(|&node| {
                let machine = &world.machines()[node];
                machine.deployment == deployment
                    && world.cloud().vms()[machine.vm].state != VmState::Ended
                    && self.ledger.of(node).removed_at.is_none()
            })
            .collect();
        let sound = alive.iter().filter(|&&node| !self.may_be_replaced(world, node)).count();
        if coming + sound > most {
            return broken(
                Rule::BoundedLaunch,
                format!("{coming} launches beside {sound} sound nodes of {deployment}; {most} are wanted"),
            );
        }
        if coming + alive.len() > 2 * most + SURGE_EXTRA {
            return broken(
                Rule::BoundedLaunch,
                format!("{coming} launches beside {} nodes of {deployment}; {most} are wanted", alive.len()),
            );
        }
        Ok(())
    }

    /// Something happened to it that may rightly make a controller look for another.
    fn may_be_replaced(&self, world: &World, node: usize) -> bool {
        let known = self.ledger.of(node);
        let machine = &world.machines()[node];
        let age = world.now().since(known.launched_at);
        let timing = &world.setup().timing;
        let launch = self.ledger.launched_by.get(&machine.node);
        known.is_blemished
            || launch.is_some_and(|operation| self.ledger.refused.contains(operation))
            || known.was_asked_away
            || known.wanted_replacement
            || known.had_notice
            || matches!(known.phase, Some(Phase::Failed | Phase::Stopped | Phase::Draining))
            || (known.heard_at.is_none() && age >= timing.boot_grace)
            || (!known.has_served && age >= timing.serve_grace)
            || !world.store().nodes().contains_key(&machine.node)
    }

    /// Silence alone takes nobody away whom the controller just heard, and nobody who is well.
    fn protection(&mut self, world: &World, node: &NodeId) -> Result<(), Violation> {
        self.count(Rule::FreshWordProtects);
        self.count(Rule::HealthyNodeStays);
        let Some(index) = world.index(node) else { return Ok(()) };
        let (now, machine) = (world.now(), &world.machines()[index]);
        let known = self.ledger.of(index);
        let has_cause = self.has_cause(world, index, &known);
        // No link is suspected before two heartbeats are missing.
        let fresh = known.heard_at.is_some_and(|at| now.since(at) <= world.setup().timing.heartbeat * 2);
        // The cloud's later word that it has no such VM is one; a node that is well is protected from that too, below.
        let is_unlisted = known.unlisted_at > known.heard_at;
        if fresh && !has_cause && !is_unlisted {
            return broken(
                Rule::FreshWordProtects,
                format!("{node} was heard {:?} ago", now.since(known.heard_at.unwrap_or(now))),
            );
        }
        let is_well = machine.is_serving(now)
            && machine.notice.is_none()
            && !known.is_blemished
            && !world.network().is_troubled(now, index);
        if is_well && !has_cause {
            return broken(
                Rule::HealthyNodeStays,
                format!("{node} serves, is connected, and nothing befell it"),
            );
        }
        Ok(())
    }

    /// A reason other than silence to take the node away, as far as the controller was told.
    fn has_cause(&self, world: &World, node: usize, known: &NodeLedger) -> bool {
        let machine = &world.machines()[node];
        let (least, _) = self.ledger.wanted(world, &machine.deployment);
        let age = world.now().since(known.launched_at);
        known.was_asked_away
            || self.ledger.terminated.contains_key(&machine.node)
            || known.had_notice
            || known.wanted_replacement
            || matches!(known.phase, Some(Phase::Failed | Phase::Stopped | Phase::Draining))
            || (!known.has_served && age >= world.setup().timing.serve_grace)
            || !world.store().nodes().contains_key(&machine.node)
            || self.others_serving(world, node) >= least
    }

    /// Others of its deployment that the controller lately heard serving, unstalled, and does not take away.
    fn others_serving(&self, world: &World, node: usize) -> usize {
        let deployment = &world.machines()[node].deployment;
        (0..world.machines().len())
            .filter(|&other| other != node && world.machines()[other].deployment == *deployment)
            .filter(|&other| {
                let known = self.ledger.of(other);
                let lately = known.heard_at.is_some_and(|at| world.now().since(at) <= SERVING_KNOWN_FOR);
                let works = known.phase == Some(Phase::Serving) && !known.is_stalled;
                lately && works && known.removed_at.is_none()
            })
            .count()
    }

    fn add_first(&mut self, world: &World, node: &NodeId) -> Result<(), Violation> {
        self.count(Rule::AddFirst);
        let Some(index) = world.index(node) else { return Ok(()) };
        let known = self.ledger.of(index);
        let machine = &world.machines()[index];
        // It goes anyway, it went already, or nobody is served by it.
        let is_lost_anyway =
            known.had_notice || known.removed_at.is_some() || !machine.is_serving(world.now());
        let says_it_serves = known.phase == Some(Phase::Serving);
        if is_lost_anyway || !says_it_serves {
            return Ok(());
        }
        let (least, _) = self.ledger.wanted(world, &machine.deployment);
        let others = self.others_serving(world, index);
        let min = world.wanted().get(&machine.deployment).map_or(0, |wanted| wanted.replicas_min.into());
        let needed = if known.was_asked_empty { least.min(min) } else { least };
        if others < needed {
            return broken(
                Rule::AddFirst,
                format!("{node} serves and is taken away while {others} others do; {needed} are needed"),
            );
        }
        Ok(())
    }

    /// The published table against the beliefs behind it.
    fn routes(&mut self, world: &World) -> Result<(), Violation> {
        self.count(Rule::RoutesHoldNoSilentNode);
        self.count(Rule::RoutesHoldNoStalledNode);
        let Some(view) = world.controller().view(world.now()) else { return Ok(()) };
        for route in &view.routes.routes {
            let believed = |id: &NodeId| {
                view.nodes.iter().find(|node| node.node == *id).map_or(Belief::Gone, |node| node.belief)
            };
            let all_silent = route.replicas.iter().all(|replica| believed(&replica.node) == Belief::Silent);
            let bad = route.replicas.iter().find(|replica| match believed(&replica.node) {
                Belief::Gone => true,
                Belief::Silent => !all_silent,
                Belief::Unknown | Belief::Alive | Belief::SuspectPoll | Belief::SuspectPush => false,
            });
            if let Some(replica) = bad {
                let belief = believed(&replica.node);
                return broken(
                    Rule::RoutesHoldNoSilentNode,
                    format!("{} is routed and believed {belief}", replica.node),
                );
            }
            let is_stalled = |id: &NodeId| {
                let report =
                    view.nodes.iter().find(|node| node.node == *id).and_then(|node| node.report.as_ref());
                let state =
                    report.filter(|report| report.phase == Phase::Serving).map(|report| report.engine.state);
                state == Some(EngineState::Stalled) && believed(id).is_routable()
            };
            let stalled = route.replicas.iter().find(|replica| is_stalled(&replica.node));
            let working = route.replicas.iter().find(|replica| !is_stalled(&replica.node));
            if let (Some(stalled), Some(working)) = (stalled, working) {
                return broken(
                    Rule::RoutesHoldNoStalledNode,
                    format!("{} is routed and stalled, beside {}", stalled.node, working.node),
                );
            }
        }
        Ok(())
    }

    fn look_at_view(&mut self, world: &World) -> Result<(), Violation> {
        self.unheard_routes(world)?;
        let Some(view) = world.controller().view(world.now()) else { return Ok(()) };
        self.routes(world)?;
        trails(&view)
    }

    /// By what was delivered, not by what is believed: nobody unheard for long is in the table while others are
    /// heard.
    fn unheard_routes(&mut self, world: &World) -> Result<(), Violation> {
        let now = world.now();
        let awake_for = now.since(self.ledger.awake_since);
        let Some(table) = &self.ledger.routes else { return Ok(()) };
        if !world.controller().answers() || awake_for < ROUTED_UNHEARD_MAX {
            return Ok(());
        }
        self.checks[Rule::RoutesHoldNoSilentNode as usize] += 1;
        for route in &table.routes {
            let unheard = |id: &NodeId| {
                let heard_at = world.index(id).and_then(|node| self.ledger.of(node).heard_at);
                heard_at.map_or(awake_for, |at| now.since(at))
            };
            let somebody = route.replicas.iter().any(|r| unheard(&r.node) < Duration::from_secs(3));
            let lost = route.replicas.iter().find(|r| unheard(&r.node) > ROUTED_UNHEARD_MAX);
            if let (true, Some(replica)) = (somebody, lost) {
                return broken(
                    Rule::RoutesHoldNoSilentNode,
                    format!("{} is routed, unheard for {:?}", replica.node, unheard(&replica.node)),
                );
            }
        }
        Ok(())
    }
}

fn trails(view: &View) -> Result<(), Violation> {
    match view.nodes.iter().find(|node| node.trail.len() > TRAIL_MAX) {
        Some(node) => broken(
            Rule::EveryQueueWithinItsBound,
            format!("the trail of {} has {} entries", node.node, node.trail.len()),
        ),
        None => Ok(()),
    }
}

fn broken(rule: Rule, text: String) -> Result<(), Violation> {
    Err(Violation { rule, text })
}
