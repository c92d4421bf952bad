//! Ours: the controller's own core, driven by an episode's evidence.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, FleetName, Incarnation, NodeId, OperationId, Term};
use cic_common::name::ClusterName;
use cic_common::notice::{self, SpotReport};
use cic_common::report::{EngineReport, EngineState, Heartbeat, NodeReport, Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::Hello;
use cic_controller::core::{
    Action, BrakeRules, CloudFault, Deployment, Event, Fleet, Instance, InstanceState, Message, NodeRecord,
    PollFault, Polled, Restored, Timing,
};

use super::episode::{Episode, Use};
use super::verdict::Verdict;

/// From a launch to a serving replacement: a small model from a warm image.
pub(super) const LAUNCH: Duration = Duration::from_secs(60);

/// A call to the cloud's API.
const CALL: Duration = Duration::from_millis(300);

/// The second connection of an urgent poll comes after this share of its time (controller/src/poll/ask.rs).
const SECOND_AFTER: f64 = 1.0 / 3.0;

pub(super) fn judge(episode: &Episode) -> Vec<Verdict> {
    let mut world = World::new(episode);
    world.play();
    world.verdicts
}

struct World<'a> {
    episode: &'a Episode,
    fleet: Fleet,
    now: Mono,
    queue: BinaryHeap<Reverse<(Mono, u64)>>,
    events: BTreeMap<u64, Event>,
    number: u64,
    nodes: Vec<NodeId>,
    seq: BTreeMap<NodeId, u64>,
    /// Launched here, and running.
    extra: Vec<NodeId>,
    gone: Vec<NodeId>,
    verdicts: Vec<Verdict>,
}

impl<'a> World<'a> {
    fn new(episode: &'a Episode) -> Self {
        let deployments: Vec<Deployment> = (0..2).map(|zone| deployment(episode, zone)).collect();
        let records: Vec<NodeRecord> =
            (0..episode.nodes.len()).map(|n| record(episode, &deployments, n)).collect();
        let nodes: Vec<NodeId> = records.iter().map(|record| record.node.clone()).collect();
        let mut world = Self {
            episode,
            fleet: Fleet::new(Timing::default(), BrakeRules::default()),
            now: Mono::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            number: 0,
            seq: nodes.iter().map(|node| (node.clone(), 0)).collect(),
            verdicts: vec![Verdict::default(); nodes.len()],
            nodes,
            extra: Vec::new(),
            gone: Vec::new(),
        };
        let restored = Restored {
            term: Term(1),
            operation_last: OperationId(100),
            deployments,
            nodes: records,
            operations: Vec::new(),
        };
        world.push(Mono::ZERO, Event::Restored(restored));
        for node in 0..world.nodes.len() {
            let hello = hello(&world.nodes[node]);
            world.push(Mono::from_millis(1), Event::Connected(hello));
            for arrives in episode.beats(node).filter_map(|(_, arrives)| arrives) {
                world.push(arrives, Event::Heartbeats(vec![heartbeat(&world.nodes[node])]));
            }
        }
        world
    }

    fn push(&mut self, at: Mono, event: Event) {
        self.number += 1;
        self.events.insert(self.number, event);
        self.queue.push(Reverse((self.episode.served(at), self.number)));
    }

    fn play(&mut self) {
        while self.now < self.episode.end() {
            let tick = self.fleet.deadline().map(|at| self.episode.served(at.max(self.now)));
            let next = self.queue.peek().map(|Reverse((at, _))| *at);
            let Some(at) = [tick, next].into_iter().flatten().min() else { return };
            self.now = at.max(self.now);
            let event = match next.filter(|next| *next <= at) {
                Some(_) => self.queue.pop().and_then(|Reverse((_, number))| self.events.remove(&number)),
                None => Some(Event::Tick),
            };
            let event = event.map(|event| self.numbered(event));
            let mut out = Vec::new();
            if let Some(event) = event {
                self.fleet.step(self.now, event, &mut out);
            }
            for action in out {
                self.perform(action);
            }
        }
    }

    /// Reports count up by when they are made.
    fn numbered(&mut self, mut event: Event) -> Event {
        let count = |seq: &mut BTreeMap<NodeId, u64>, beat: &mut Heartbeat| {
            let last = seq.entry(beat.node.clone()).or_default();
            *last += 1;
            beat.seq = *last;
        };
        match &mut event {
            Event::Heartbeats(beats) => beats.iter_mut().for_each(|beat| count(&mut self.seq, beat)),
            Event::Polled(Polled { result: Ok(beat), .. }) => count(&mut self.seq, beat),
            _ => {}
        }
        event
    }

    fn perform(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Record(operation) => self.push(now, Event::Recorded { operation: operation.id }),
            Action::Launch { operation, node, .. } => {
                self.push(now + CALL, Event::Performed { operation, result: Ok(()) });
                self.extra.push(node.clone());
                self.push(now + LAUNCH, Event::Connected(hello(&node)));
                let mut at = now + LAUNCH;
                while at < self.episode.end() {
                    at = at + Duration::from_secs(1);
                    self.push(at, Event::Heartbeats(vec![heartbeat(&node)]));
                }
                self.replaced();
            }
            Action::Terminate { operation, node, .. } => {
                self.push(now + CALL, Event::Performed { operation, result: Ok(()) });
                if let Some(index) = self.index(&node) {
                    self.verdicts[index].killed_at.get_or_insert(now);
                }
                self.gone.push(node);
            }
            Action::ListInstances { provider } => {
                let result = self.listing();
                self.push(now + CALL, Event::Listed { provider, result });
            }
            Action::Poll { node, urgent, within, .. } => self.poll(node, urgent, within),
            Action::Send { node, message: Message::Challenge { number } } => self.prod(&node, number),
            Action::PublishRoutes(table) => {
                let routed: Vec<&NodeId> = table
                    .routes
                    .iter()
                    .flat_map(|route| &route.replicas)
                    .map(|replica| &replica.node)
                    .collect();
                if now > Mono::from_millis(60_000) {
                    for (index, node) in self.nodes.iter().enumerate() {
                        let verdict = &mut self.verdicts[index];
                        let is_out = !routed.contains(&node);
                        verdict.was_out |= is_out;
                        verdict.out_at = is_out.then(|| verdict.out_at.unwrap_or(now));
                    }
                }
            }
            _ => {}
        }
    }

    /// The launch takes the place of whoever is to go.
    fn replaced(&mut self) {
        let view = self.fleet.view(self.now);
        for node in view.nodes.iter().filter(|node| node.leaving.is_some()) {
            if let Some(index) = self.index(&node.node) {
                self.verdicts[index].replaced_at.get_or_insert(self.now);
            }
        }
    }

    fn listing(&self) -> Result<Vec<Instance>, CloudFault> {
        let runs = |index: usize| self.episode.listed(index, self.now);
        let mut instances = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(runs) = runs(index) else { return Err(CloudFault::NoAnswer("503".to_owned())) };
            let state = if runs { InstanceState::Running } else { InstanceState::Stopped };
            instances.push(instance(node, state));
        }
        instances.extend(self.extra.iter().map(|node| instance(node, InstanceState::Running)));
        instances.retain(|instance| !self.gone.contains(&instance.node));
        Ok(instances)
    }

    fn poll(&mut self, node: NodeId, urgent: bool, within: Duration) {
        let (now, until) = (self.now, self.now + within);
        let ask = |at: Mono, until: Mono, number| match self.index(&node) {
            Some(index) => self.episode.exchange(index, Use::Poll, at, until, number),
            None => Some(at + Duration::from_millis(10)),
        };
        let second = now + within.mul_f64(SECOND_AFTER);
        let answered = match urgent {
            true => [ask(now, until, 1), ask(second, until, 2)].into_iter().flatten().min(),
            false => ask(now, until, 3),
        };
        // A deadline that passes while the controller stands still is no deadline: it asks again.
        let resumed = self.episode.served(until);
        let answered = match answered {
            None if resumed > until => ask(resumed, resumed + within, 4),
            answered => answered,
        };
        let result = if answered.is_some() { Ok(heartbeat(&node)) } else { Err(PollFault::Timeout) };
        let at = answered.unwrap_or(if resumed > until { resumed + within } else { until });
        self.push(at, Event::Polled(Polled { node, urgent, trip: Duration::from_millis(5), result }));
    }

    fn prod(&mut self, node: &NodeId, number: u64) {
        let Some(index) = self.index(node) else { return };
        if let Some(at) = self.episode.prodded(index, self.now, number) {
            let beat = Heartbeat { challenge: number, ..heartbeat(node) };
            self.push(at, Event::Heartbeats(vec![beat]));
        }
    }

    fn index(&self, node: &NodeId) -> Option<usize> {
        self.nodes.iter().position(|known| known == node)
    }
}

fn instance(node: &NodeId, state: InstanceState) -> Instance {
    Instance { node: node.clone(), operation: OperationId(1), fleet: FleetName::default(), state }
}

fn deployment(episode: &Episode, zone: usize) -> Deployment {
    let replicas = episode.nodes.iter().filter(|plan| plan.zone == zone).count();
    let seq = u16::try_from(zone + 1).unwrap_or(u16::MAX);
    Deployment {
        name: DeploymentName::new(format!("chat{zone}")).expect("a label"),
        model: ModelSpec::at(&format!("model{zone}"), "/m"),
        engine: EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: BTreeMap::new() },
        replicas: u16::try_from(replicas).unwrap_or(u16::MAX),
        replicas_min: 1,
        provider: "cloud".to_owned(),
        zone: format!("zone{zone}"),
        cluster: ClusterName::new("cloud", "here", "h100", "spot", "20260101", seq).expect("labels"),
        node_next: 100,
        routing: cic_common::routing::Routing::default(),
        price_limit_usd_per_hour: None,
    }
}

fn record(episode: &Episode, deployments: &[Deployment], index: usize) -> NodeRecord {
    let deployment = &deployments[episode.nodes[index].zone];
    let number = u16::try_from(index + 1).unwrap_or(u16::MAX);
    NodeRecord {
        node: deployment.cluster.node(number).expect("a number of three digits"),
        role: Role::Replica,
        deployment: Some(deployment.name.clone()),
        zone: deployment.zone.clone(),
        address: Some("127.0.0.1:1".to_owned()),
        incarnation: Incarnation(1),
        launched_by: Some(OperationId(1)),
        predecessors: Vec::new(),
        keeps_checkpoints: false,
        is_read: false,
        asked: None,
    }
}

fn report() -> NodeReport {
    let engine = EngineReport { state: EngineState::Ready, ..EngineReport::absent() };
    let spot = SpotReport { cloud: Some(notice::Cloud::None), ..SpotReport::default() };
    NodeReport { phase: Phase::Serving, engine, spot, ..NodeReport::booting() }.sealed(0)
}

fn hello(node: &NodeId) -> Hello {
    Hello {
        node: node.clone(),
        incarnation: Incarnation(1),
        role: Role::Replica,
        address: "127.0.0.1:1".to_owned(),
        version: "bench".to_owned(),
        keeps_checkpoints: false,
        routes: None,
        report: report(),
    }
}

fn heartbeat(node: &NodeId) -> Heartbeat {
    Heartbeat { node: node.clone(), incarnation: Incarnation(1), seq: 0, challenge: 0, report: report() }
}
