//! From what is wanted and believed to operations: add first, remove later.

use cic_common::id::{DeploymentName, Incarnation, NodeId};
use cic_common::report::{Phase, Role};
use cic_common::time::Mono;

use super::belief::{Belief, Cloud};
use super::event::NodeRecord;
use super::fleet::Fleet;
use super::node::Node;
use super::operation::OperationKind;
use super::perform::CUT_OFF;
use super::trail::Severity;
use super::verdict::{Cause, Leaving, Removal};
use super::{Action, Hold};

/// Nodes of one deployment that may exist at once, leaving ones included: twice the wanted and this many.
/// Above it something is wrong that more launches would only make dearer.
const SURGE_EXTRA: usize = 3;

/// What is to be done about one leaving node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Drain,
    Terminate,
    Hold(String),
}

/// How a deployment stands, for the rules that ask before a node goes.
///
/// A stalled node counts for nobody: it is no replacement, and no reason to call another one too many. It is not lost
/// either: nothing is launched for it, since its agent starts the engine anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    wanted: usize,
    min: usize,
    /// Staying nodes that serve and whose work moves.
    serving: usize,
    /// All others of that kind that nothing takes away yet, leaving ones included.
    others: usize,
}

impl Standing {
    /// The same beside a node of the deployment, where it stands for the whole of it.
    fn without(&self, fleet: &Fleet, id: &NodeId) -> Self {
        let counts = fleet.nodes.get(id).is_some_and(|node| node.is_working() && !fleet.is_going(node));
        Self { others: self.others - usize::from(counts), ..*self }
    }
}

impl Fleet {
    pub(super) fn plan(&mut self, now: Mono, out: &mut Vec<Action>) {
        let names: Vec<DeploymentName> = self.deployments.keys().cloned().collect();
        for name in &names {
            self.forgive_launch_failures(name);
            self.remove_leaving(now, name, out);
            self.launch_missing(now, name, out);
            self.mark_surplus(now, name, out);
        }
    }

    pub(super) fn members(&self, name: &DeploymentName) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.of(name)
    }

    /// How the deployment stands beside the node `about`.
    pub(super) fn standing(&self, name: &DeploymentName, about: Option<&NodeId>) -> Standing {
        let wanted = self.deployments.get(name);
        let serving = |(_, node): &(&NodeId, &Node)| node.is_working();
        Standing {
            wanted: wanted.map_or(0, |wanted| wanted.deployment.replicas.into()),
            min: wanted.map_or(0, |wanted| wanted.deployment.replicas_min.into()),
            serving: self.members(name).filter(serving).filter(|(_, node)| node.leaving.is_none()).count(),
            others: self
                .members(name)
                .filter(serving)
                .filter(|(id, node)| Some(*id) != about && !self.is_going(node))
                .count(),
        }
    }

    /// Whether something takes the node away, so that no other's removal may rest on it.
    fn is_going(&self, node: &Node) -> bool {
        let open = node.operation.and_then(|id| self.operations.get(&id));
        let is_removed = open.is_some_and(|open| {
            matches!(open.operation.kind, OperationKind::Terminate | OperationKind::Drain { .. })
        });
        // One that waits for its own replacement counts; one that is taken or breaks anyway does not.
        let is_lost = node.leaving.as_ref().is_some_and(|leaving| match leaving.cause {
            Cause::ReplaceAsked | Cause::DrainAsked | Cause::Surplus => false,
            Cause::Lost
            | Cause::Gone
            | Cause::Notice
            | Cause::Failed
            | Cause::Stopped
            | Cause::TooSlow
            | Cause::NotLaunched
            | Cause::Unowned => true,
        });
        is_removed || is_lost || node.draining_since.is_some()
    }

    fn forgive_launch_failures(&mut self, name: &DeploymentName) {
        let serves = self.members(name).any(|(_, node)| node.is_serving() && node.leaving.is_none());
        if let Some(wanted) = self.deployments.get_mut(name).filter(|_| serves) {
            wanted.launch_failures = 0;
        }
    }

    fn remove_leaving(&mut self, now: Mono, name: &DeploymentName, out: &mut Vec<Action>) {
        let leaving: Vec<NodeId> = self
            .members(name)
            .filter(|(_, node)| node.leaving.is_some() && node.operation.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        // Each sees the deployment without itself, and what was decided about those before it.
        let mut whole = None;
        for id in leaving {
            let standing = whole.get_or_insert_with(|| self.standing(name, None)).without(self, &id);
            let Some(node) = self.nodes.get(&id) else { continue };
            let Some(reason) = node.leaving.as_ref().map(|leaving| leaving.reason.clone()) else { continue };
            match self.next_step(now, node, standing) {
                // A wait may be ended by time alone.
                Step::Wait => self.plan_again(now),
                Step::Drain => {
                    let within_ms = u64::try_from(self.timing.drain.as_millis()).unwrap_or(u64::MAX);
                    self.open(now, &id, OperationKind::Drain { within_ms }, reason, out);
                    whole = None;
                }
                Step::Terminate => match self.may_terminate(now, &id) {
                    Ok(()) => {
                        self.open(now, &id, OperationKind::Terminate, reason, out);
                        whole = None;
                    }
                    Err(Hold(why)) => self.hold_removal(now, &id, why, out),
                },
                Step::Hold(why) => self.hold_removal(now, &id, why, out),
            }
        }
    }

    /// What the removal of a leaving node asks for now.
    pub(super) fn next_step(&self, now: Mono, node: &Node, standing: Standing) -> Step {
        let Some(leaving) = &node.leaving else { return Step::Wait };
        let enough = standing.others >= standing.wanted;
        // Given back now, its VM could still come to be after that.
        if leaving.cause == Cause::NotLaunched && node.doubted_until.is_some_and(|until| now < until) {
            return Step::Wait;
        }
        if node.belief == Belief::Gone || node.phase() == Some(Phase::Stopped) && node.belief.is_routable() {
            return Step::Terminate;
        }
        if node.belief == Belief::Silent && node.may_serve() {
            return match (leaving.cause, enough) {
                (_, false) => Step::Hold("it may still serve, and its replacement does not yet".to_owned()),
                (Cause::Lost, true) => Step::Terminate,
                (_, true) if now.since(node.belief_since) >= self.timing.partition_grace => Step::Terminate,
                (_, true) => Step::Wait,
            };
        }
        let drain_max = self.timing.drain * 2 + self.timing.partition_grace;
        if let Some(since) = node.draining_since {
            let overdue = now.since(since) > drain_max;
            return if overdue { Step::Terminate } else { Step::Wait };
        }
        // A drain that nobody here asked for finishes the same requests; a notice sets its own time for it.
        if let Some(draining) = node.drains_itself_for() {
            let overdue = draining > drain_max && !node.is_given_time() && leaving.cause != Cause::Notice;
            return if overdue { Step::Terminate } else { Step::Wait };
        }
        let may_work = node.may_work();
        let removal = match leaving.cause.removal() {
            Removal::Now if may_work => Removal::DrainAfterReplacement,
            removal => removal,
        };
        match removal {
            Removal::Now => Step::Terminate,
            Removal::WhenStopped => Step::Wait,
            Removal::AfterReplacement if enough => Step::Terminate,
            // One too many is so only while enough others serve.
            Removal::DrainAfterReplacement if !may_work && (enough || leaving.cause != Cause::Surplus) => {
                Step::Terminate
            }
            // One whose engine does not serve is drained too: what it took before may still run.
            Removal::DrainAfterReplacement if enough => Step::Drain,
            Removal::AfterReplacement | Removal::DrainAfterReplacement => {
                Step::Hold("its replacement does not serve yet".to_owned())
            }
            Removal::DrainNow if !may_work => Step::Terminate,
            Removal::DrainNow if !node.is_serving() || standing.others >= standing.min => Step::Drain,
            Removal::DrainNow => Step::Hold(format!(
                "only {} others serve and the deployment's minimum is {}",
                standing.others, standing.min
            )),
        }
    }

    /// The brake's word on a VM that may still run; one that the cloud denies costs nothing to give back.
    fn may_terminate(&mut self, now: Mono, id: &NodeId) -> Result<(), Hold> {
        let timing = self.timing;
        let Some(node) = self.nodes.get(id) else { return Ok(()) };
        let word = node.cloud.word(now, &timing);
        match word {
            Cloud::Stopped | Cloud::Absent => return Ok(()),
            Cloud::Failing if node.belief == Belief::Silent => {
                return Err(Hold(CUT_OFF.to_owned()));
            }
            Cloud::Running | Cloud::Unknown | Cloud::Failing => {}
        }
        let zone = node.record.zone.clone();
        let provider = node
            .record
            .deployment
            .as_ref()
            .and_then(|name| self.deployments.get(name))
            .map(|wanted| wanted.deployment.provider.clone())
            .unwrap_or_default();
        self.brake.may_terminate(now, &provider, &zone)
    }

    fn hold_removal(&mut self, now: Mono, id: &NodeId, why: String, out: &mut Vec<Action>) {
        self.plan_again(now);
        let Some(node) = self.nodes.get_mut(id) else { return };
        // The counts in a reason change; only a new kind of reason is news.
        let is_news = node.held.as_deref().map(kind_of) != Some(kind_of(&why));
        node.held = Some(why.clone());
        if is_news {
            self.tell(now, id, Severity::Info, "held", format!("removal held: {why}"), out);
        }
    }

    fn launch_missing(&mut self, now: Mono, name: &DeploymentName, out: &mut Vec<Action>) {
        loop {
            let staying = self.staying(now, name);
            let all = self.members(name).count();
            let count = self.wanted_count(name);
            let Some(wanted) = self.deployments.get_mut(name) else { return };
            let is_spare = staying >= usize::from(wanted.deployment.replicas);
            if staying >= count {
                wanted.held = None;
                return;
            }
            if let Some(id) = self.spare(name) {
                self.reprieve(now, &id, "needed after all".to_owned(), out);
                continue;
            }
            let pending = self.operations.values().filter(|open| open.is_pending_launch()).count();
            let Some(wanted) = self.deployments.get_mut(name) else { return };
            let (zone, launch_after) = (wanted.deployment.zone.clone(), wanted.launch_after);
            let provider = wanted.deployment.provider.clone();
            let hold = if all >= 2 * count + SURGE_EXTRA {
                Some(format!("{all} nodes exist for {count} wanted; the leaving ones must go first"))
            } else if self.waits_for_listing(now, &provider) {
                Some(format!("waiting for the first listing of {provider}"))
            } else if now < launch_after {
                Some("the last launches came to nothing; waiting before the next".to_owned())
            } else {
                let allowed = self.may_launch(now, name, &zone, pending);
                allowed
                    .and_then(|()| self.may_launch_spare(now, name, is_spare, pending))
                    .err()
                    .map(|hold| hold.0)
            };
            let Some(wanted) = self.deployments.get_mut(name) else { return };
            if let Some(why) = hold {
                let is_news = wanted.held.as_deref().map(kind_of) != Some(kind_of(&why));
                wanted.held = Some(why.clone());
                self.plan_again(now);
                if is_news {
                    let text = format!("launch for {name} held: {why}");
                    self.note(None, Severity::Warning, "held", text, out);
                }
                return;
            }
            self.launch_one(now, name, zone, is_spare, out);
        }
    }

    /// Spares leave half of what the brake allows to nodes that take a lost one's place.
    fn may_launch_spare(
        &mut self,
        now: Mono,
        name: &DeploymentName,
        is_spare: bool,
        pending: usize,
    ) -> Result<(), Hold> {
        let provider = self.deployments.get(name).map(|wanted| wanted.deployment.provider.clone());
        match provider.filter(|_| is_spare) {
            Some(provider) => self.brake.may_launch_spare(now, &provider, pending),
            None => Ok(()),
        }
    }

    /// A node that was one too many and of which nothing has been taken away yet.
    fn spare(&self, name: &DeploymentName) -> Option<NodeId> {
        // A removal that is not performed yet ends by itself when its node is to stay.
        let is_whole = |node: &Node| {
            let open = node.operation.and_then(|id| self.operations.get(&id));
            open.is_none_or(|open| match open.operation.kind {
                OperationKind::Launch { .. } => true,
                OperationKind::Terminate | OperationKind::Drain { .. } => !open.is_performed,
                OperationKind::RestartAgent | OperationKind::RestartBySsh => false,
            })
        };
        self.members(name)
            .find(|(_, node)| {
                // One that fell silent takes nobody's place.
                let may_speak = match node.belief {
                    Belief::Unknown | Belief::Alive | Belief::SuspectPoll | Belief::SuspectPush => true,
                    Belief::Silent | Belief::Gone => false,
                };
                node.leaving.as_ref().is_some_and(|leaving| leaving.cause == Cause::Surplus)
                    && may_speak
                    && node.draining_since.is_none()
                    && is_whole(node)
            })
            .map(|(id, _)| id.clone())
    }

    fn launch_one(
        &mut self,
        now: Mono,
        name: &DeploymentName,
        zone: String,
        is_spare: bool,
        out: &mut Vec<Action>,
    ) {
        let at_once = self.replaced_at_once(now, name);
        let replaces = at_once.clone().or_else(|| self.unreplaced(name));
        let seq_last =
            self.deployments.values().map(|wanted| wanted.deployment.cluster.seq).max().unwrap_or(0);
        let Some(wanted) = self.deployments.get_mut(name) else { return };
        let is_used = |node: &NodeId| self.nodes.contains_key(node) || self.unowned.contains_key(node);
        let node = match wanted.deployment.next_unused(seq_last, is_used) {
            Ok(node) => node,
            Err(error) => {
                wanted.launch_after = now + self.timing.list_interval;
                let text = format!("no name left for a node of {name}: {error}");
                self.note(None, Severity::Alert, "held", text, out);
                return;
            }
        };
        out.push(Action::SaveDeployment(wanted.deployment.clone()));
        let predecessors = self.inherited(name, replaces.as_ref());
        let record = NodeRecord {
            node: node.clone(),
            role: Role::Replica,
            deployment: Some(name.clone()),
            zone,
            address: None,
            incarnation: Incarnation(0),
            launched_by: Some(self.operation_last.next()),
            predecessors,
            keeps_checkpoints: false,
            is_read: false,
            asked: None,
        };
        out.push(Action::SaveNode(record.clone()));
        self.nodes.insert(node.clone(), Node::new(now, record));
        let reason = match &replaces {
            Some(old) if at_once.is_some() => {
                format!("takes the place of {old} without waiting: an edge reaches no replica of {name}")
            }
            Some(old) => format!("takes the place of {old}"),
            None if is_spare => format!("a spare for {name}: a node of it may be taken soon"),
            None => format!("{name} wants more replicas than it has"),
        };
        let kind = OperationKind::Launch { deployment: name.clone(), replaces };
        self.open(now, &node, kind, reason, out);
        self.touch(&node);
        if let Some(old) = at_once {
            let text = format!(
                "{node} is launched in its place: it is silent, nobody serves {name}, an edge says so"
            );
            self.tell(now, &old, Severity::Warning, "replaced-at-once", text, out);
        }
    }

    /// Whether an open launch takes the place of this node.
    pub(super) fn is_taken(&self, id: &NodeId) -> bool {
        self.operations.values().any(|open| {
            matches!(&open.operation.kind, OperationKind::Launch { replaces, .. } if replaces.as_ref() == Some(id))
        })
    }

    /// A leaving node whose place no open launch takes yet; first one of which something is left that nobody reads.
    fn unreplaced(&self, name: &DeploymentName) -> Option<NodeId> {
        let unreplaced = |(id, node): &(&NodeId, &Node)| node.leaving.is_some() && !self.is_taken(id);
        let needs_heir = |(id, _): &(&NodeId, &Node)| self.leaves_something(id) && !self.has_heir(id);
        let first = self.members(name).filter(unreplaced).find(needs_heir);
        first.or_else(|| self.members(name).find(unreplaced)).map(|(id, _)| id.clone())
    }

    /// Once enough serve, those beyond the wanted count are to go: first what does not serve, then what is stalled,
    /// then the youngest.
    fn mark_surplus(&mut self, now: Mono, name: &DeploymentName, out: &mut Vec<Action>) {
        let standing = self.standing(name, None);
        if standing.serving < standing.wanted {
            return;
        }
        let mut staying: Vec<(bool, bool, Mono, NodeId)> = self
            .members(name)
            .filter(|(_, node)| node.leaving.is_none())
            .map(|(id, node)| (!node.is_serving(), node.is_stalled(), node.known_since, id.clone()))
            .collect();
        staying.sort();
        for (_, _, _, id) in staying.into_iter().skip(self.wanted_count(name)) {
            let reason = format!("{} serve and {} are wanted", standing.serving, standing.wanted);
            self.set_leaving(&id, Some(Leaving { cause: Cause::Surplus, reason: reason.clone() }));
            self.tell(now, &id, Severity::Info, "surplus", reason, out);
            self.plan_again(now);
        }
    }

    fn plan_again(&mut self, now: Mono) {
        let at = now + self.timing.retry;
        self.plan_at = Some(self.plan_at.map_or(at, |planned| planned.min(at)));
    }
}

/// A reason without its numbers.
fn kind_of(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}
