//! What the invariants remember of a run, taken from facts alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use cic_common::id::{DeploymentName, NodeId, OperationId};
use cic_common::report::Phase;
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use cic_controller::core::{Operation, OperationKind};

use crate::world::cloud::VmState;
use crate::world::{Fact, World};

/// A scale order counts as known to the controller, or as not yet known, for this long.
const ORDER_BLUR: Duration = Duration::from_secs(60);

/// A drained node that says this much later that it serves was started anew: its words of before are in by then.
const BACK_AFTER: Duration = Duration::from_secs(10);

/// A node that serves this much later than its termination was last asked for has survived it: the calls got lost. A
/// call that its caller gave up is carried out within 20 s.
const TERMINATION_BLUR: Duration = Duration::from_secs(60);

/// What is remembered of one node.
#[derive(Debug, Default, Clone)]
pub(super) struct NodeLedger {
    pub(super) heard_at: Option<Mono>,
    /// When the controller was told last that the cloud does not have it.
    pub(super) unlisted_at: Option<Mono>,
    pub(super) phase: Option<Phase>,
    pub(super) is_stalled: bool,
    pub(super) has_served: bool,
    pub(super) had_notice: bool,
    pub(super) wanted_replacement: bool,
    pub(super) is_blemished: bool,
    pub(super) was_asked_away: bool,
    pub(super) was_asked_empty: bool,
    /// The first command or call that takes it away.
    pub(super) removed_at: Option<Mono>,
    pub(super) launched_at: Mono,
}

/// The run so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) nodes: Vec<NodeLedger>,
    /// Recorded for certain: the store said so to this controller run, or gave it back at its start.
    pub(super) recorded: BTreeSet<OperationId>,
    /// Nodes of which a termination was performed, whether they were there or not, and when it was last asked for.
    pub(super) terminated: BTreeMap<NodeId, Mono>,
    /// Those of which the controller was told that they failed for good.
    pub(super) refused: BTreeSet<OperationId>,
    pub(super) intended: BTreeMap<OperationId, Operation>,
    /// Calls and commands that left, ever.
    pub(super) performed: BTreeSet<OperationId>,
    /// Open by this controller run's own acts.
    pub(super) open: BTreeMap<OperationId, NodeId>,
    /// Launches asked for whose VM is not there yet.
    pub(super) launching: BTreeMap<OperationId, DeploymentName>,
    pub(super) launched_by: BTreeMap<NodeId, OperationId>,
    /// First calls of this controller run.
    pub(super) terminations: VecDeque<Mono>,
    pub(super) launches: VecDeque<Mono>,
    pub(super) routes: Option<RoutingTable>,
    /// When an edge last told this controller run that it reaches no replica of a model.
    pub(super) cried: BTreeMap<String, Mono>,
    /// When the controller last started or was woken.
    pub(super) awake_since: Mono,
    orders: BTreeMap<DeploymentName, Vec<(Mono, u16)>>,
}

impl Ledger {
    /// Whether giving this VM back counts against the brake: it runs, and it is more than what a failed launch left
    /// behind, whose cleaning up nothing may hold up.
    pub(super) fn is_braked(&self, world: &World, node: &NodeId) -> bool {
        let Some(index) = world.machines().iter().position(|machine| machine.node == *node) else {
            return false;
        };
        let is_left_behind = self.launched_by.get(node).is_some_and(|launch| self.refused.contains(launch))
            && self.nodes.get(index).is_none_or(|known| known.heard_at.is_none());
        world.cloud().vms()[world.machines()[index].vm].state == VmState::Running && !is_left_behind
    }

    /// Takes in a fact, after the rules have looked at it.
    pub(super) fn enter(&mut self, world: &World, fact: &Fact) {
        let now = world.now();
        match fact {
            Fact::ControllerStarted { open, .. } => {
                self.recorded = open.iter().copied().collect();
                self.open.clear();
                self.terminations.clear();
                self.launches.clear();
                self.routes = None;
                self.cried.clear();
                self.awake_since = now;
            }
            Fact::ControllerDied => self.open.clear(),
            Fact::ControllerThawed => self.awake_since = now,
            Fact::Heard { node, phase, is_stalled, has_notice, wants_replacement, is_newest, is_poll } => {
                let asked = self.terminated.get(&world.machines()[*node].node);
                let is_terminated = asked.is_some_and(|&at| now.since(at) <= TERMINATION_BLUR);
                let known = self.node(*node);
                // An overtaken heartbeat is of an earlier time; an answer to a poll is of now.
                if *is_newest || *is_poll {
                    known.heard_at = Some(now);
                }
                if *is_newest {
                    (known.phase, known.is_stalled) = (Some(*phase), *is_stalled);
                    // An agent that was started anew knows nothing of the drain before.
                    let is_back = known.removed_at.is_some_and(|at| now.since(at) > BACK_AFTER);
                    if *phase == Phase::Serving && is_back && !is_terminated {
                        known.removed_at = None;
                    }
                }
                known.has_served |= *phase == Phase::Serving;
                known.had_notice |= *has_notice;
                known.wanted_replacement |= *wants_replacement;
            }
            Fact::Warned { node, has_notice, wants_replacement } => {
                let known = self.node(*node);
                known.had_notice |= *has_notice;
                known.wanted_replacement |= *wants_replacement;
            }
            Fact::Unlisted { nodes } => {
                for node in nodes {
                    self.node(*node).unlisted_at = Some(now);
                }
            }
            Fact::EdgeCried { model } => {
                self.cried.insert(model.clone(), now);
            }
            Fact::Refused { operation } => {
                self.refused.insert(*operation);
            }
            Fact::Recorded { operation } => {
                self.recorded.insert(*operation);
            }
            Fact::Intended(operation) => {
                self.open.insert(operation.id, operation.node.clone());
                self.intended.insert(operation.id, operation.clone());
            }
            Fact::Closed { operation } => {
                self.open.remove(operation);
                self.launching.remove(operation);
            }
            Fact::Launch { operation, node, deployment } => {
                if self.performed.insert(*operation) {
                    self.launches.push_back(now);
                    self.launching.insert(*operation, deployment.clone());
                }
                self.launched_by.entry(node.clone()).or_insert(*operation);
            }
            Fact::Terminate { operation, node } => {
                if self.performed.insert(*operation) {
                    if self.is_braked(world, node) {
                        self.terminations.push_back(now);
                    }
                    self.remove(world, node);
                }
                self.terminated.insert(node.clone(), now);
            }
            Fact::Commanded { operation, node, is_drain } => {
                self.performed.insert(*operation);
                if *is_drain {
                    self.remove(world, node);
                }
            }
            Fact::Routes(table) => self.routes = Some(table.clone()),
            Fact::Scaled { deployment, replicas } => {
                let orders = self.orders.entry(deployment.clone()).or_default();
                orders.push((now, *replicas));
            }
            Fact::OperatorAsked { node, is_drain } => {
                let known = self.node(*node);
                known.was_asked_away = true;
                known.was_asked_empty |= *is_drain;
            }
            Fact::Launched { node } => {
                let operation = self.launched_by.get(&world.machines()[*node].node).copied();
                self.node(*node).launched_at = now;
                if let Some(operation) = operation {
                    self.launching.remove(&operation);
                }
            }
            Fact::Blemished { node } => self.node(*node).is_blemished = true,
            Fact::StaleWord { .. }
            | Fact::StaleTerm { .. }
            | Fact::Overfull { .. }
            | Fact::Discord { .. } => {}
        }
    }

    pub(super) fn of(&self, node: usize) -> NodeLedger {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    /// The least and the most replicas that the controller may rightly think wanted now.
    pub(super) fn wanted(&self, world: &World, deployment: &DeploymentName) -> (usize, usize) {
        let first = world.setup().deployments.iter().find(|known| known.name == *deployment);
        let first = first.map_or(0, |known| known.replicas);
        let none = Vec::new();
        let orders = self.orders.get(deployment).unwrap_or(&none);
        let now = world.now();
        // An order may come to the controller late: it was down, frozen, or its store away.
        let late = world.now().since(self.awake_since) < ORDER_BLUR;
        let mut current = first;
        let (mut least, mut most) = (None, None);
        for &(at, replicas) in orders {
            if now.since(at) <= ORDER_BLUR || late {
                least = Some(least.unwrap_or(current).min(current).min(replicas));
                most = Some(most.unwrap_or(current).max(current).max(replicas));
            }
            current = replicas;
        }
        let (least, most) = (least.unwrap_or(current), most.unwrap_or(current));
        (usize::from(least.min(current)), usize::from(most.max(current)))
    }

    /// The launch that this operation is, if it is one.
    pub(super) fn is_terminate(&self, operation: OperationId) -> bool {
        self.intended.get(&operation).is_some_and(|operation| operation.kind == OperationKind::Terminate)
    }

    fn remove(&mut self, world: &World, node: &NodeId) {
        if let Some(node) = world.index(node) {
            self.node(node).removed_at.get_or_insert(world.now());
        }
    }

    fn node(&mut self, node: usize) -> &mut NodeLedger {
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, NodeLedger::default);
        }
        &mut self.nodes[node]
    }
}

/// Drops moments older than the window.
pub(super) fn trim(moments: &mut VecDeque<Mono>, now: Mono, window: Duration) {
    while moments.front().is_some_and(|&at| now.since(at) > window) {
        moments.pop_front();
    }
}
