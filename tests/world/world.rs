//! The world: one fleet, its clouds and its network, moved on by one happening at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_agent::core::{Action as AgentAction, Timing as AgentTiming};
use cic_common::id::{DeploymentName, NodeId};
use cic_common::time::Mono;
use cic_controller::core::{Action as FleetAction, BrakeRules, Deployment, Event, Timing};

use super::clock::Clock;
use super::cloud::{Cloud, Manners};
use super::controller::{Controller, Kill, Steps};
use super::engine::EngineManners;
use super::fact::Fact;
use super::fault::Fault;
use super::happening::Happening;
use super::machine::{Host, Machine};
use super::network::{Network, Weather};
use super::queue::Queue;
use super::rng::Rng;
use super::session::Session;
use super::store::Store;
use super::trace::Trace;

/// Happenings that may be scheduled for each node, on the average: a handful of timers, a second of heartbeats,
/// a poll, and the stream's packets.
const SCHEDULED_PER_NODE_MAX: usize = 200;

/// Happenings scheduled for the controller and the faults.
const SCHEDULED_BASE_MAX: usize = 4000;

/// All that is fixed about a world before it starts.
#[derive(Debug, Clone)]
pub struct Setup {
    pub seed: u64,
    pub timing: Timing,
    pub rules: BrakeRules,
    pub agent_timing: AgentTiming,
    pub weather: Weather,
    pub manners: Manners,
    pub engine: EngineManners,
    /// Mounts and verifications that fail in a way that may heal.
    pub model_faults: f64,
    pub deployments: Vec<Deployment>,
    pub faults: Vec<(Mono, Fault)>,
    pub kill: Option<Kill>,
}

/// The world.
#[derive(Debug)]
pub struct World {
    pub(super) clock: Clock,
    pub(super) queue: Queue<Happening>,
    pub(super) setup: Setup,
    pub(super) rng: Rng,
    pub(super) network: Network,
    pub(super) cloud: Cloud,
    pub(super) store: Store,
    pub(super) machines: Vec<Machine>,
    pub(super) by_node: BTreeMap<NodeId, usize>,
    pub(super) sessions: Vec<Session>,
    pub(super) controller: Controller,
    /// What the operator wants, whatever the controller knows of it.
    pub(super) wanted: BTreeMap<DeploymentName, Deployment>,
    pub(super) facts: Vec<Fact>,
    pub(super) trace: Trace,
    pub(super) injected: BTreeMap<&'static str, u64>,
    pub(super) steps: Steps,
    /// Faults are over: what breaks now would be of the cores' making.
    pub(super) is_quiet: bool,
    pub(super) agent_out: Vec<AgentAction>,
    pub(super) fleet_out: Vec<FleetAction>,
}

impl World {
    #[must_use]
    pub fn new(setup: Setup, trace: Trace) -> Self {
        let mut rng = Rng::new(setup.seed);
        let network = Network::new(setup.weather, rng.fork());
        let cloud = Cloud::new(setup.manners, rng.fork());
        let mut queue = Queue::default();
        queue.push(Mono::ZERO, Happening::ControllerStarts);
        for (at, fault) in &setup.faults {
            queue.push(*at, Happening::Strikes(fault.clone()));
        }
        let wanted = setup.deployments.iter().map(|d| (d.name.clone(), d.clone())).collect();
        Self {
            clock: Clock::default(),
            queue,
            setup,
            rng,
            network,
            cloud,
            store: Store::default(),
            machines: Vec::new(),
            by_node: BTreeMap::new(),
            sessions: Vec::new(),
            controller: Controller::default(),
            wanted,
            facts: Vec::new(),
            trace,
            injected: BTreeMap::new(),
            steps: Steps::default(),
            is_quiet: false,
            agent_out: Vec::new(),
            fleet_out: Vec::new(),
        }
    }

    /// Lets the next happening happen. False when nothing is left to come.
    pub fn advance(&mut self) -> bool {
        let Some((at, happening)) = self.queue.pop() else { return false };
        self.clock.advance(at);
        self.happen(happening);
        let max = SCHEDULED_BASE_MAX + SCHEDULED_PER_NODE_MAX * self.machines.len();
        if self.queue.len() > max {
            self.facts.push(Fact::Overfull { what: "scheduled happenings", count: self.queue.len(), max });
        }
        true
    }

    /// Ends all faults and everything that only a person could mend: dead hosts are found out by their cloud,
    /// frozen processes go on.
    pub fn calm_down(&mut self) {
        self.is_quiet = true;
        self.network.clear();
        self.cloud.clear();
        self.store.clear();
        self.controller.armed = None;
        self.setup.model_faults = 0.0;
        self.setup.engine = EngineManners { fails_at_start: 0.0, never_ready: 0.0, ..self.setup.engine };
        for node in 0..self.machines.len() {
            if self.machines[node].is_frozen {
                self.later(Duration::from_secs(1), Happening::NodeThaws { node });
            }
            if self.machines[node].host == Host::Down {
                let vm = self.machines[node].vm;
                self.later(Duration::from_secs(1), Happening::VmStops { vm });
            }
        }
        self.later(Duration::from_secs(1), Happening::OperatorLooks);
    }

    #[must_use]
    pub fn now(&self) -> Mono {
        self.clock.now()
    }

    /// When the next happening is due.
    #[must_use]
    pub fn next_at(&self) -> Option<Mono> {
        self.queue.next_at()
    }

    /// Takes what was seen since the last call.
    pub fn take_facts(&mut self, into: &mut Vec<Fact>) {
        into.clear();
        std::mem::swap(&mut self.facts, into);
    }

    #[must_use]
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    #[must_use]
    pub fn machine(&self, node: &NodeId) -> Option<&Machine> {
        self.by_node.get(node).map(|&index| &self.machines[index])
    }

    #[must_use]
    pub fn index(&self, node: &NodeId) -> Option<usize> {
        self.by_node.get(node).copied()
    }

    #[must_use]
    pub fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    #[must_use]
    pub fn wanted(&self) -> &BTreeMap<DeploymentName, Deployment> {
        &self.wanted
    }

    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Steps of operations that the controller passed so far.
    #[must_use]
    pub fn steps(&self) -> Steps {
        self.steps
    }

    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Faults injected so far, by kind.
    #[must_use]
    pub fn injected(&self) -> &BTreeMap<&'static str, u64> {
        &self.injected
    }

    #[must_use]
    pub fn into_trace(self) -> Trace {
        self.trace
    }

    pub(super) fn later(&mut self, after: Duration, happening: Happening) {
        let at = self.clock.now() + after;
        self.queue.push(at, happening);
    }

    pub(super) fn count(&mut self, kind: &'static str) {
        *self.injected.entry(kind).or_default() += 1;
    }

    /// Lets `happening` happen now, or keeps it for a process that is stopped by a signal.
    pub(super) fn happen(&mut self, happening: Happening) {
        if let Some(run) = happening.needs_controller() {
            if !self.controller.is_running(run) {
                return;
            }
            if self.controller.is_frozen {
                self.controller.pile.push(happening);
                return;
            }
        }
        if let Some(node) = happening.needs_node()
            && self.machines[node].is_frozen
        {
            self.machines[node].pile.push(happening);
            return;
        }
        match happening {
            Happening::HostBoots { node } => self.host_boots(node),
            Happening::VmEnds { vm } => self.vm_ends(vm),
            Happening::VmStops { vm } => self.vm_stops(vm),
            Happening::AgentStarts { node } => self.agent_starts(node),
            Happening::AgentWakes { node, run, at } => self.agent_wakes(node, run, at),
            Happening::AgentHears { node, run, event } => self.agent_hears(node, run, *event),
            Happening::EdgeCounts { node, run } => self.edge_counts(node, run),
            Happening::EngineEnds { node, pid, how } => self.engine_ends(node, pid, how),
            Happening::EngineMoves { node, pid } => {
                if let Some(engine) = self.machines[node].engine.as_mut().filter(|engine| engine.pid == pid) {
                    engine.is_stalled = false;
                }
            }
            Happening::NodeThaws { node } => self.node_thaws(node),
            Happening::AgentConnects { node, run } => self.agent_connects(node, run),
            Happening::Established { node, run, controller_run } => {
                self.established(node, run, controller_run);
            }
            Happening::Delivered { session, way, packet } => self.delivered(session, way, *packet),
            Happening::Datagram { session, heartbeat } => self.datagram(session, heartbeat),
            Happening::Pulse { session } => self.pulse(session),
            Happening::PollArrives(asked) => self.poll_arrives(asked),
            Happening::PollRunsOut(asked) => self.poll_runs_out(asked),
            Happening::OrderArrives(ordered) => self.order_arrives(*ordered),
            Happening::SshRestarts { node, run, operation } => self.ssh_restarts(node, run, operation),
            Happening::CloudActs { run, act, reply_at } => self.cloud_acts(run, *act, reply_at),
            Happening::ControllerStarts => self.controller_starts(),
            Happening::ControllerWakes { run, at } => self.controller_wakes(run, at),
            Happening::ControllerHears { run, event } => {
                let is_answer = matches!(*event, Event::Performed { .. });
                if !is_answer || !self.passes(run, "an answer before the core hears it") {
                    self.fleet_step(*event);
                }
            }
            Happening::MailboxEmpties { run: _ } => self.mailbox_empties(),
            Happening::StoreCommits { run: _, count } => self.store_commits(count),
            Happening::ControllerThaws { run } => self.controller_thaws(run),
            Happening::OperatorLooks => self.operator_looks(),
            Happening::Strikes(fault) => self.strike(fault),
        }
    }
}
