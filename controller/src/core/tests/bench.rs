//! A fleet with obedient surroundings: store, cloud and nodes do at once what the core asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, FleetName, Incarnation, NodeId, OperationId, Term};
use cic_common::name::ClusterName;
use cic_common::notice::{Confidence, Notice, NoticeKind, SpotReport};
use cic_common::report::{EngineReport, EngineState, Heartbeat, NodeReport, Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome, Hello};

use super::super::*;

/// A fleet whose store and cloud answer at once, and whose healthy nodes push and answer polls.
pub(super) struct Bench {
    pub(super) fleet: Fleet,
    pub(super) now: Mono,
    pub(super) beats: BTreeMap<NodeId, (Incarnation, u64, NodeReport)>,
    /// Nodes that push nothing.
    pub(super) mute: BTreeSet<NodeId>,
    /// Nodes that answer no poll, and how.
    pub(super) deaf: BTreeMap<NodeId, PollFault>,
    pub(super) instances: BTreeMap<NodeId, InstanceState>,
    pub(super) cloud_fails: bool,
    /// Instances of other fleets.
    pub(super) foreign: BTreeMap<NodeId, FleetName>,
    /// What the cloud answers to launches instead of doing them, in order; then it does them.
    pub(super) refusals: VecDeque<CloudFault>,
    /// What a launch that is refused makes all the same.
    pub(super) launches_in_secret: bool,
    /// Whether agents that connect have an object store.
    pub(super) keeps_checkpoints: bool,
    pub(super) launched: Vec<NodeId>,
    pub(super) terminated: Vec<NodeId>,
    pub(super) routed: BTreeSet<NodeId>,
    pub(super) notes: Vec<EventRecord>,
    /// Rows of nodes, as last stored.
    pub(super) rows: BTreeMap<NodeId, NodeRecord>,
    /// Nodes that take no command.
    pub(super) stubborn: BTreeSet<NodeId>,
    pub(super) drains_sent: u32,
    /// Nodes that were told what to run, by welcome or later.
    pub(super) assigned: Vec<NodeId>,
    /// Ways beside the two paths that were taken, in order.
    pub(super) reached: Vec<(&'static str, NodeId)>,
    pub(super) store_is_away: bool,
    unrecorded: Vec<OperationId>,
}

impl Bench {
    pub(super) fn new(replicas: u16) -> Self {
        Self::with(replicas, Restored { term: Term(1), ..Restored::default() })
    }

    pub(super) fn with(replicas: u16, restored: Restored) -> Self {
        Self::refusing(replicas, restored, VecDeque::new())
    }

    /// The same before a cloud that first answers launches so.
    pub(super) fn refusing(replicas: u16, restored: Restored, refusals: VecDeque<CloudFault>) -> Self {
        let mut bench = Self {
            fleet: Fleet::new(Timing::default(), BrakeRules::default()),
            now: Mono::ZERO,
            beats: BTreeMap::new(),
            mute: BTreeSet::new(),
            deaf: BTreeMap::new(),
            instances: BTreeMap::new(),
            cloud_fails: false,
            foreign: BTreeMap::new(),
            refusals,
            launches_in_secret: false,
            keeps_checkpoints: true,
            launched: Vec::new(),
            terminated: Vec::new(),
            routed: BTreeSet::new(),
            notes: Vec::new(),
            rows: BTreeMap::new(),
            stubborn: BTreeSet::new(),
            drains_sent: 0,
            assigned: Vec::new(),
            reached: Vec::new(),
            store_is_away: false,
            unrecorded: Vec::new(),
        };
        bench.give(Event::Restored(restored));
        bench.give(Event::Deployed(deployment(replicas)));
        bench
    }

    /// A fleet of `replicas` serving nodes.
    pub(super) fn serving(replicas: u16) -> Self {
        let mut bench = Self::new(replicas);
        bench.run(Duration::from_millis(100));
        for node in bench.launched.clone() {
            bench.serve(&node, 1);
        }
        bench.run(Duration::from_secs(12));
        assert_eq!(bench.routed.len(), usize::from(replicas));
        bench
    }

    pub(super) fn serve(&mut self, node: &NodeId, incarnation: u64) {
        self.serve_as(node, incarnation, EngineState::Ready);
    }

    pub(super) fn serve_as(&mut self, node: &NodeId, incarnation: u64, state: EngineState) {
        let engine = EngineReport { state, ..EngineReport::absent() };
        self.connect(
            node,
            incarnation,
            NodeReport { phase: Phase::Serving, engine, spot: whole(), ..NodeReport::booting() },
        );
    }

    /// Connects with this report, and goes on saying so on both paths.
    pub(super) fn connect(&mut self, node: &NodeId, incarnation: u64, report: NodeReport) {
        let report = report.sealed(0);
        let hello = Hello {
            node: node.clone(),
            incarnation: Incarnation(incarnation),
            role: Role::Replica,
            address: "127.0.0.1:1".to_owned(),
            version: "test".to_owned(),
            keeps_checkpoints: self.keeps_checkpoints,
            routes: None,
            report: report.clone(),
        };
        self.beats.insert(node.clone(), (Incarnation(incarnation), 0, report));
        self.mute.remove(node);
        self.deaf.remove(node);
        self.give(Event::Connected(hello));
    }

    /// From the next report on, its engine is in this state.
    pub(super) fn engine(&mut self, node: &NodeId, state: EngineState) {
        self.change(node, |report| report.engine.state = state);
    }

    /// From the next report on, it says this.
    pub(super) fn change(&mut self, node: &NodeId, change: impl FnOnce(&mut NodeReport)) {
        if let Some((_, _, report)) = self.beats.get_mut(node) {
            change(report);
        }
    }

    pub(super) fn beat(&mut self, node: &NodeId, challenge: u64) -> Option<Heartbeat> {
        let (incarnation, seq, report) = self.beats.get_mut(node)?;
        *seq += 1;
        let (incarnation, seq, report) = (*incarnation, *seq, report.clone().sealed(0));
        Some(Heartbeat { node: node.clone(), incarnation, seq, challenge, report })
    }

    pub(super) fn give(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut out = Vec::new();
            self.fleet.step(self.now, event, &mut out);
            for action in out {
                self.perform(action, &mut events);
            }
        }
    }

    pub(super) fn perform(&mut self, action: Action, events: &mut Vec<Event>) {
        match action {
            Action::Record(operation) if self.store_is_away => self.unrecorded.push(operation.id),
            Action::Record(operation) => events.push(Event::Recorded { operation: operation.id }),
            Action::Launch { operation, node, .. } if !self.refusals.is_empty() => {
                if self.launches_in_secret {
                    self.instances.insert(node, InstanceState::Running);
                }
                let result = self.refusals.pop_front().map_or(Ok(()), Err);
                events.push(Event::Performed { operation, result });
            }
            Action::Launch { operation, node, .. } => {
                self.launched.push(node.clone());
                self.instances.insert(node, InstanceState::Running);
                events.push(Event::Performed { operation, result: Ok(()) });
            }
            Action::Terminate { operation, node, .. } => {
                self.instances.remove(&node);
                self.terminated.push(node);
                events.push(Event::Performed { operation, result: Ok(()) });
            }
            Action::ListInstances { provider } => {
                let instance = |(node, state): (&NodeId, &InstanceState)| Instance {
                    fleet: self.foreign.get(node).cloned().unwrap_or_default(),
                    node: node.clone(),
                    operation: OperationId(1),
                    state: *state,
                };
                let listed = Ok(self.instances.iter().map(instance).collect());
                let result =
                    if self.cloud_fails { Err(CloudFault::NoAnswer("503".to_owned())) } else { listed };
                events.push(Event::Listed { provider, result });
            }
            Action::Poll { node, urgent, .. } => {
                let result = match self.deaf.get(&node) {
                    Some(fault) => Err(*fault),
                    None => self.beat(&node, 0).ok_or(PollFault::Refused),
                };
                events.push(Event::Polled(Polled { node, urgent, trip: Duration::from_millis(2), result }));
            }
            Action::Send { node, message: Message::Challenge { number } } if !self.mute.contains(&node) => {
                events.extend(self.beat(&node, number).map(|beat| Event::Heartbeats(vec![beat])));
            }
            Action::Send { node, message: Message::Command { command: Command::Drain { .. }, .. } } => {
                self.drains_sent += 1;
                if self.stubborn.contains(&node) {
                    return;
                }
                if let Some((_, _, report)) = self.beats.get_mut(&node) {
                    report.phase = Phase::Stopped;
                }
            }
            Action::Send {
                node,
                message: Message::Assign { .. } | Message::Welcome { assignment: Some(_), .. },
            } => self.assigned.push(node),
            Action::PublishRoutes(table) => {
                self.routed = table.routes.iter().flat_map(|r| &r.replicas).map(|r| r.node.clone()).collect();
            }
            Action::Note(note) => self.notes.push(note),
            Action::SaveNode(record) => {
                self.rows.insert(record.node.clone(), record);
            }
            Action::Explain { node, .. } => self.reached.push(("asked over ssh", node)),
            Action::CommandByPoll { node, operation, .. } => {
                let result = match self.deaf.get(&node) {
                    Some(fault) => Err(*fault),
                    None => Ok(CommandOutcome::Accepted),
                };
                self.reached.push(("ordered by poll", node.clone()));
                events.push(Event::CommandAnswered { node, operation, result });
            }
            Action::RestartBySsh { node, operation, .. } => {
                self.reached.push(("restarted over ssh", node.clone()));
                events.push(Event::RestartedBySsh { node, operation, result: Ok(()) });
            }
            Action::Send { .. }
            | Action::Close(_)
            | Action::ForgetNode(_)
            | Action::SaveDeployment(_)
            | Action::SaveSync(_) => {}
        }
    }

    /// Lets time pass: every node that is not mute pushes once a second, ticks come when they are wanted.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut beat_at = self.now;
        while self.now < end {
            let tick = self.fleet.deadline().unwrap_or(end);
            self.now = tick.min(beat_at).min(end).max(self.now);
            if self.now >= beat_at {
                beat_at = self.now + Duration::from_secs(1);
                let speakers: Vec<NodeId> =
                    self.beats.keys().filter(|node| !self.mute.contains(*node)).cloned().collect();
                let batch = speakers.iter().filter_map(|node| self.beat(node, 0)).collect();
                self.give(Event::Heartbeats(batch));
            }
            self.give(Event::Tick);
        }
    }

    /// The store answers again, and has all that it was given meanwhile.
    pub(super) fn store_returns(&mut self) {
        self.store_is_away = false;
        for operation in std::mem::take(&mut self.unrecorded) {
            self.give(Event::Recorded { operation });
        }
    }

    pub(super) fn silence(&mut self, node: &NodeId, fault: PollFault) {
        self.mute.insert(node.clone());
        self.deaf.insert(node.clone(), fault);
    }

    pub(super) fn belief(&self, node: &NodeId) -> Option<Belief> {
        self.fleet.view(self.now).nodes.iter().find(|view| view.node == *node).map(|view| view.belief)
    }

    pub(super) fn node(&self, i: usize) -> NodeId {
        self.launched[i].clone()
    }

    /// The state a store would hold now.
    pub(super) fn stored(&self, term: u64) -> Restored {
        let view = self.fleet.view(self.now);
        let record = |node: &NodeView| NodeRecord {
            node: node.node.clone(),
            role: node.role,
            deployment: node.deployment.clone(),
            zone: node.zone.clone(),
            address: node.address.clone(),
            incarnation: node.incarnation,
            launched_by: Some(OperationId(1)),
            predecessors: self.rows.get(&node.node).map(|row| row.predecessors.clone()).unwrap_or_default(),
            keeps_checkpoints: self.rows.get(&node.node).is_some_and(|row| row.keeps_checkpoints),
            is_read: self.rows.get(&node.node).is_some_and(|row| row.is_read),
            asked: self.rows.get(&node.node).and_then(|row| row.asked.clone()),
        };
        Restored {
            term: Term(term),
            operation_last: OperationId(100),
            deployments: view.deployments.iter().map(|d| d.deployment.clone()).collect(),
            nodes: view.nodes.iter().map(record).collect(),
            operations: view.operations,
        }
    }
}

pub(super) fn deployment(replicas: u16) -> Deployment {
    Deployment {
        name: DeploymentName::new("tiny").expect("label"),
        model: ModelSpec::at("tiny", "/m"),
        engine: EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: BTreeMap::new() },
        replicas,
        replicas_min: 0,
        provider: "local".to_owned(),
        zone: "here".to_owned(),
        cluster: ClusterName::new("local", "here", "none", "dev", "20261124", 1).expect("name"),
        node_next: 1,
        routing: cic_common::routing::Routing::default(),
        price_limit_usd_per_hour: None,
    }
}

/// Every source of notices was read.
pub(super) fn whole() -> SpotReport {
    SpotReport { cloud: Some(cic_common::notice::Cloud::None), ..SpotReport::default() }
}

pub(super) fn notice(kind: NoticeKind, id: &str, left_ms: u64) -> Notice {
    let (source, id) = ("file".to_owned(), id.to_owned());
    Notice { kind, source, id, left_ms, confidence: Confidence::Announced, resources: Vec::new() }
}
