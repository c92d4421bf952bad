//! The state of the whole fleet, and the order in which a step goes through it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cic_common::assignment::Predecessor;
use cic_common::id::{DeploymentName, FleetName, NodeId, OperationId, Term};
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use cic_common::wire::message::Hello;

use super::belief::{Belief, Freshness};
use super::brake::{Brake, BrakeRules, Census};
use super::deployment::Deployment;
use super::evidence::span;
use super::node::Node;
use super::nodes::Nodes;
use super::open::Open;
use super::orphan::Orphan;
use super::sync::SyncRecord;
use super::timing::Timing;
use super::trail::{EventRecord, Severity};
use super::view::{DeploymentView, View};
use super::xid::XidCounts;
use super::{Action, Event, Message};

/// As many nodes are gone over at each step in which one changed.
const NODES_AT_ONCE: usize = 250;

/// For each node beyond them: some ten times what going over it takes.
const REST_PER_NODE: Duration = Duration::from_micros(20);

/// A deployment and how its launches fare.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) deployment: Deployment,
    /// Nodes that never served, since one last did.
    pub(super) launch_failures: u32,
    pub(super) launch_after: Mono,
    /// Why a launch is held, as last logged.
    pub(super) held: Option<String>,
    /// When an edge last said that it reaches no replica of it.
    pub(super) missing_at: Option<Mono>,
}

/// When a provider is listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) next_at: Mono,
    pub(super) is_asked: bool,
    /// Something happened since it was asked: the answer may be too old, so ask once more.
    pub(super) again: bool,
    pub(super) is_failing: bool,
    /// It was answered in this run: what is there is known.
    pub(super) has_answered: bool,
    /// VMs of other fleets in the last one.
    pub(super) foreign_count: usize,
    /// So many VMs have no row that nothing is done about any; the words for it.
    pub(super) orphans_held: Option<String>,
    /// As last stored, and when.
    pub(super) synced: Option<(Mono, SyncRecord)>,
}

/// What is believed and wanted of every node.
#[derive(Debug)]
pub struct Fleet {
    pub(super) timing: Timing,
    pub(super) brake: Brake,
    pub(super) term: Term,
    /// Whether this controller decides, or follows another.
    pub(super) is_leading: bool,
    pub(super) nodes: Nodes,
    pub(super) deployments: BTreeMap<DeploymentName, Wanted>,
    pub(super) operations: BTreeMap<OperationId, Open>,
    pub(super) operation_last: OperationId,
    pub(super) listings: BTreeMap<String, Listing>,
    /// Whose VMs these are: what is tagged otherwise is another's.
    pub(super) name: FleetName,
    /// VMs of ours without a row.
    pub(super) unowned: BTreeMap<NodeId, Orphan>,
    /// What replicas without a row said when they connected, while they are.
    pub(super) guests: BTreeMap<NodeId, Hello>,
    /// Nodes that connected to a standby before it saw their rows.
    pub(super) unrowed: BTreeMap<NodeId, Hello>,
    /// Predecessors for whom there is no heir yet.
    pub(super) orphans: BTreeMap<DeploymentName, Vec<Predecessor>>,
    pub(super) routes: RoutingTable,
    pub(super) xids: XidCounts,
    pub(super) challenge_last: u64,
    /// Nodes whose push path is stale.
    pub(super) suspected: usize,
    /// Until when silence means nothing yet; None before the store was read.
    settle_at: Option<Mono>,
    pub(super) is_settled: bool,
    /// After a stall of our own: nothing is taken away before every node had the time to be heard again.
    pub(super) steady_at: Mono,
    /// Nodes to conclude about in this step.
    touched: BTreeSet<NodeId>,
    pub(super) wakes: BTreeSet<(Mono, NodeId)>,
    /// Something changed that the plan or the routes rest on.
    pub(super) is_dirty: bool,
    pub(super) plan_at: Option<Mono>,
    /// Not before this are all nodes gone over again.
    rested_at: Mono,
}

impl Fleet {
    #[must_use]
    pub fn new(timing: Timing, rules: BrakeRules) -> Self {
        Self {
            timing,
            brake: Brake::new(rules),
            term: Term(0),
            is_leading: false,
            nodes: Nodes::default(),
            deployments: BTreeMap::new(),
            operations: BTreeMap::new(),
            operation_last: OperationId(0),
            listings: BTreeMap::new(),
            name: FleetName::default(),
            unowned: BTreeMap::new(),
            guests: BTreeMap::new(),
            unrowed: BTreeMap::new(),
            orphans: BTreeMap::new(),
            routes: RoutingTable::default(),
            xids: XidCounts::default(),
            challenge_last: 0,
            suspected: 0,
            settle_at: None,
            is_settled: false,
            steady_at: Mono::ZERO,
            touched: BTreeSet::new(),
            wakes: BTreeSet::new(),
            is_dirty: false,
            plan_at: None,
            rested_at: Mono::ZERO,
        }
    }

    /// The same for a fleet of this name. All controllers of a fleet, and its providers, must be given the same.
    #[must_use]
    pub fn of_fleet(self, name: FleetName) -> Self {
        Self { name, ..self }
    }

    /// Takes in one event and appends what is to be done about it.
    pub fn step(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        let first = out.len();
        self.forgive_own_stall(now, out);
        self.hear(now, event, out);
        self.wake(now);
        self.settle(now, out);
        self.conclude_touched(now, out);
        self.retry_operations(now, out);
        self.is_dirty |= self.brake.turns_at().is_some_and(|at| now >= at);
        let is_due = self.is_dirty || self.plan_at.is_some_and(|at| now >= at);
        if is_due && (self.is_settled || !self.is_leading) {
            if now < self.rested_at {
                self.plan_at = Some(self.rested_at);
            } else {
                self.go_over_all(now, out);
            }
        }
        self.list_providers(now, out);
        if !self.is_leading {
            let mut index = 0;
            out.retain(|action| {
                index += 1;
                index <= first || action.is_of_a_standby()
            });
        }
    }

    /// Counts the silent, plans, and publishes the routes. A standby plans nothing; what it would publish is what it goes
    /// on from when it leads.
    fn go_over_all(&mut self, now: Mono, out: &mut Vec<Action>) {
        (self.is_dirty, self.plan_at) = (false, None);
        self.take_census(now, out);
        if self.is_leading && now < self.steady_at {
            self.plan_at = Some(self.steady_at);
        } else if self.is_leading {
            self.plan(now, out);
        }
        self.publish_routes(now, out);
        self.rested_at = now + self.pause();
    }

    /// Going over all nodes takes some microseconds for each. Where they are many and change one by one, what changed
    /// meanwhile is gone over together: ten thousand nodes five times a second, up to [`NODES_AT_ONCE`] at each step.
    fn pause(&self) -> Duration {
        let more = u32::try_from(self.nodes.len().saturating_sub(NODES_AT_ONCE)).unwrap_or(u32::MAX);
        REST_PER_NODE.saturating_mul(more)
    }

    /// When a tick is wanted if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let wake = self.wakes.first().map(|(at, _)| *at);
        let settle = self.settle_at.filter(|_| !self.is_settled);
        let listing = self.listings.values().filter(|listing| !listing.is_asked).map(|l| l.next_at).min();
        let retry = self.operations.values().filter_map(Open::turns_at).min();
        let hold = self.brake.turns_at().filter(|_| self.is_settled || !self.is_leading);
        let hold = hold.map(|at| at.max(self.rested_at));
        [wake, settle, listing, retry, self.plan_at, hold].into_iter().flatten().min()
    }

    /// A snapshot for people.
    #[must_use]
    pub fn view(&self, now: Mono) -> View {
        View {
            now,
            term: self.term,
            is_settled: self.is_settled,
            holds: self.holds(),
            blind_providers: self.blind_providers(),
            nodes: self.nodes.values().map(|node| node.view(now, &self.timing)).collect(),
            deployments: self.deployments.values().map(|wanted| self.deployment_view(wanted)).collect(),
            operations: self.operations.values().map(|open| open.operation.clone()).collect(),
            routes: self.routes.clone(),
            xids: self.xids.all(),
            orphans: self.orphan_views(now),
            foreign_count: self.listings.values().map(|listing| listing.foreign_count).sum(),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Until the settle time is over: what the provider has is not known, and names and ids may be in use there.
    pub(super) fn waits_for_listing(&self, now: Mono, provider: &str) -> bool {
        let has_answered = self.listings.get(provider).is_some_and(|listing| listing.has_answered);
        !has_answered && self.settle_at.is_some_and(|at| now < at)
    }

    /// Starts the settle time, or ends it at once when there is nobody to wait for.
    pub(super) fn begin_settling(&mut self, now: Mono) {
        self.settle_at = Some(now + self.timing.settle);
        self.is_settled = false;
    }

    pub(super) fn end_settling(&mut self) {
        self.settle_at = None;
        self.is_settled = false;
    }

    pub(super) fn touch(&mut self, node: &NodeId) {
        if !self.touched.contains(node) {
            self.touched.insert(node.clone());
        }
    }

    pub(super) fn touch_all(&mut self) {
        self.touched.extend(self.nodes.keys().cloned());
    }

    pub(super) fn note(
        &self,
        node: Option<&NodeId>,
        severity: Severity,
        kind: &str,
        text: String,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::Note(EventRecord { node: node.cloned(), severity, kind: kind.to_owned(), text }));
    }

    /// Appends to the event log and to the node's own trail.
    pub(super) fn tell(
        &mut self,
        now: Mono,
        node: &NodeId,
        severity: Severity,
        kind: &str,
        text: String,
        out: &mut Vec<Action>,
    ) {
        if let Some(known) = self.nodes.get_mut(node) {
            known.trail.push(now, format!("{kind}: {text}"));
        }
        self.note(Some(node), severity, kind, text, out);
    }

    /// A step much later than it was due says that this process did not run: nobody's silence counts.
    fn forgive_own_stall(&mut self, now: Mono, out: &mut Vec<Action>) {
        let Some(late) = self.deadline().map(|due| now.since(due)) else { return };
        if late <= self.timing.own_stall {
            return;
        }
        // Who was silent before the stall has shown nothing new by it.
        let timing = self.timing;
        for node in self.nodes.values_mut() {
            if node.push_was == Freshness::Fresh {
                node.push.forgive(now);
            }
            if node.poll.freshness(&timing) != Freshness::Stale {
                node.poll.forgive();
            }
        }
        for open in self.operations.values_mut() {
            open.grant(late);
        }
        self.steady_at = now + timing.push_fresh;
        self.touch_all();
        let text = format!("this controller did not run for {}; silence starts to count anew", span(late));
        self.note(None, Severity::Warning, "own-stall", text, out);
    }

    fn wake(&mut self, now: Mono) {
        while let Some((at, _)) = self.wakes.first()
            && *at <= now
            && let Some((_, node)) = self.wakes.pop_first()
        {
            if let Some(known) = self.nodes.get_mut(&node) {
                known.wake_at = None;
            }
            self.touched.insert(node);
        }
    }

    fn settle(&mut self, now: Mono, out: &mut Vec<Action>) {
        let Some(settle_at) = self.settle_at.filter(|_| !self.is_settled) else { return };
        let is_heard = |node: &Node| node.record.incarnation.0 == 0 || node.push.has_spoken();
        let all_heard = self.nodes.values().all(is_heard);
        if !all_heard && now < settle_at {
            return;
        }
        self.is_settled = true;
        self.is_dirty = true;
        for node in self.nodes.values_mut().filter(|node| node.record.incarnation.0 > 0) {
            node.push.miss();
        }
        self.touch_all();
        let heard = self.nodes.values().filter(|node| node.push.has_spoken()).count();
        let text = format!("settled: {heard} of {} nodes heard", self.nodes.len());
        self.note(None, Severity::Info, "settled", text, out);
    }

    fn conclude_touched(&mut self, now: Mono, out: &mut Vec<Action>) {
        let mut touched = std::mem::take(&mut self.touched);
        while let Some(node) = touched.pop_first() {
            self.conclude(now, &node, out);
        }
    }

    fn take_census(&mut self, now: Mono, out: &mut Vec<Action>) {
        let mut zones: BTreeMap<String, Census> = BTreeMap::new();
        for node in self.nodes.values().filter(|node| node.is_ours() && node.record.incarnation.0 > 0) {
            if node.belief != Belief::Gone {
                let zone = &node.record.zone;
                if !zones.contains_key(zone) {
                    zones.insert(zone.clone(), Census::default());
                }
                if let Some(census) = zones.get_mut(zone) {
                    census.total += 1;
                    census.silent += u32::from(node.belief == Belief::Silent);
                }
            }
        }
        for (began, text) in self.brake.count(now, &zones) {
            let (severity, kind) =
                if began { (Severity::Alert, "hold") } else { (Severity::Info, "hold-released") };
            self.note(None, severity, kind, text, out);
        }
    }

    fn deployment_view(&self, wanted: &Wanted) -> DeploymentView {
        let name = &wanted.deployment.name;
        let members = || self.nodes.of(name).map(|(_, node)| node);
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let staying = || members().filter(|node| node.leaving.is_none());
        DeploymentView {
            deployment: wanted.deployment.clone(),
            serving: count(staying().filter(|node| node.is_working()).count()),
            stalled: count(staying().filter(|node| node.is_serving() && node.is_stalled()).count()),
            coming: count(staying().filter(|node| !node.is_serving()).count()),
            leaving: count(members().filter(|node| node.leaving.is_some()).count()),
        }
    }

    fn blind_providers(&self) -> Vec<String> {
        let blind = self.listings.iter().filter(|(_, listing)| listing.is_failing);
        blind.map(|(provider, _)| provider.clone()).collect()
    }

    fn holds(&self) -> Vec<String> {
        let launches = self
            .deployments
            .values()
            .filter_map(|w| Some(format!("launch for {}: {}", w.deployment.name, w.held.as_ref()?)));
        let removals = self
            .nodes
            .iter()
            .filter_map(|(id, node)| Some(format!("removal of {id}: {}", node.held.as_ref()?)));
        let orphans = self.listings.values().filter_map(|listing| listing.orphans_held.clone());
        self.brake.holds().into_iter().chain(orphans).chain(launches).chain(removals).collect()
    }

    /// Asks a live node to prove itself over the push path, and doubts that path until it has.
    pub(super) fn challenge(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        self.challenge_last += 1;
        let number = self.challenge_last;
        if let Some(node) = self.nodes.get_mut(id) {
            node.push.doubt(now, number);
            out.push(Action::Send { node: id.clone(), message: Message::Challenge { number } });
        }
    }
}
