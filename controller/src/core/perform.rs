//! Operations: decided, recorded, performed, observed.

use std::time::Duration;

use cic_common::id::{NodeId, OperationId};
use cic_common::report::Phase;
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome};

use super::belief::{Belief, Cloud, Freshness};
use super::event::NodeRecord;
use super::fleet::Fleet;
use super::instance::CloudFault;
use super::node::Node;
use super::open::Open;
use super::operation::{Operation, OperationKind, OperationState};
use super::plan::Step;
use super::trail::Severity;
use super::verdict::{Cause, Leaving};
use super::{Action, Message};

/// Longest wait between tries of an operation that gets no answer.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Sends of a command that is not acknowledged; then a drain is sent less often and any other is given up.
const COMMAND_TRIES_MAX: u32 = 5;

/// Why nothing is terminated while neither the node nor the cloud answers.
pub(super) const CUT_OFF: &str = "the cloud API fails: this controller may be the one cut off";

impl Fleet {
    /// Decides an operation and asks for it to be stored. Nothing of it happens before it is.
    pub(super) fn open(
        &mut self,
        now: Mono,
        node: &NodeId,
        kind: OperationKind,
        reason: String,
        out: &mut Vec<Action>,
    ) -> OperationId {
        self.operation_last = self.operation_last.next();
        let id = self.operation_last;
        let text = format!("operation {id}: {}: {reason}", kind.as_str());
        let price_limit_usd_per_hour = match &kind {
            OperationKind::Launch { deployment, .. } => {
                let wanted = self.deployments.get(deployment);
                wanted.and_then(|wanted| wanted.deployment.price_limit_usd_per_hour)
            }
            OperationKind::Terminate
            | OperationKind::Drain { .. }
            | OperationKind::RestartAgent
            | OperationKind::RestartBySsh => None,
        };
        let operation = Operation {
            id,
            term: self.term,
            node: node.clone(),
            kind,
            state: OperationState::Intended,
            reason,
            deadline_ms: u64::try_from(self.timing.operation_deadline.as_millis()).unwrap_or(u64::MAX),
            price_limit_usd_per_hour,
        };
        out.push(Action::Record(operation.clone()));
        let name = operation.kind.as_str();
        self.operations.insert(id, Open::intended(operation));
        if let Some(known) = self.nodes.get_mut(node) {
            known.operation = Some(id);
            known.held = None;
        }
        self.tell(now, node, Severity::Info, name, text, out);
        id
    }

    pub(super) fn recorded(&mut self, now: Mono, id: OperationId, out: &mut Vec<Action>) {
        let Some(open) = self.operations.get_mut(&id) else { return };
        if open.operation.state == OperationState::Intended {
            open.operation.state = OperationState::Recorded;
            open.begin(now);
            self.perform(now, id, out);
        }
    }

    pub(super) fn retry_operations(&mut self, now: Mono, out: &mut Vec<Action>) {
        let due: Vec<OperationId> = self
            .operations
            .iter()
            .filter(|(_, open)| open.retry_at.is_some_and(|at| now >= at))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.perform(now, id, out);
        }
        let overdue = |open: &Open| open.deadline_at.is_some_and(|at| now >= at);
        let overdue: Vec<OperationId> =
            self.operations.iter().filter(|(_, open)| overdue(open)).map(|(id, _)| *id).collect();
        for id in overdue {
            self.run_out(now, id, out);
        }
    }

    /// The deadline has passed. A launch is given up: should its VM be there or come to be, it is taken in when it is
    /// listed or speaks and its place is still free, and given back otherwise. Everything else takes something away, and
    /// is asked for until it is done.
    fn run_out(&mut self, now: Mono, id: OperationId, out: &mut Vec<Action>) {
        let Some(open) = self.operations.get_mut(&id) else { return };
        open.deadline_at = None;
        let (node, span) = (open.operation.node.clone(), Duration::from_millis(open.operation.deadline_ms));
        let may_exist = open.is_performed || open.is_restored;
        if !open.is_launch() {
            let text =
                format!("operation {id} ({}) is not done after {span:?}", open.operation.kind.as_str());
            return self.tell(now, &node, Severity::Alert, "late", text, out);
        }
        if may_exist {
            return self.not_launched(now, id, format!("no answer within {span:?}"), out);
        }
        self.close(now, id, Err(format!("held for {span:?}: to be decided anew")), out);
        self.forget(&node, out);
    }

    fn perform(&mut self, now: Mono, id: OperationId, out: &mut Vec<Action>) {
        let Some(open) = self.operations.get_mut(&id) else { return };
        let takes_away = !matches!(open.operation.kind, OperationKind::Launch { .. });
        if takes_away && now < self.steady_at {
            open.retry_at = Some(self.steady_at);
            return;
        }
        open.retry_at = None;
        let node = open.operation.node.clone();
        match open.operation.kind.clone() {
            OperationKind::Launch { deployment, .. } => {
                let is_new = !open.is_performed && !open.is_restored;
                let Some(wanted) = self.deployments.get(&deployment) else {
                    return self.close(now, id, Err("its deployment is gone".to_owned()), out);
                };
                let provider = wanted.deployment.provider.clone();
                let count = self.wanted_count(&deployment);
                if !self.nodes.contains_key(&node) {
                    // A VM without a row would be nobody's.
                    return self.close(now, id, Err("its node is gone".to_owned()), out);
                }
                let is_leaving = self.nodes.get(&node).is_some_and(|node| node.leaving.is_some());
                if is_new && (is_leaving || self.staying(now, &deployment) > count) {
                    self.close(now, id, Err("it is no longer needed".to_owned()), out);
                    return self.forget(&node, out);
                }
                let zone = self.nodes.get(&node).map(|node| node.record.zone.clone()).unwrap_or_default();
                let allowed = self.may_launch(now, &deployment, &zone, 0);
                let Some(open) = self.operations.get_mut(&id) else { return };
                if !open.is_performed
                    && let Err(hold) = allowed
                {
                    if let Some(wanted) = self.deployments.get_mut(&deployment) {
                        wanted.held = Some(hold.0);
                    }
                    open.retry_at = Some(now + self.timing.retry);
                    return;
                }
                open.is_performed = true;
                open.asked_at = Some(now);
                let price_limit = open.operation.price_limit_usd_per_hour;
                if !std::mem::replace(&mut open.is_counted, true) {
                    self.brake.launched(now, &provider);
                }
                out.push(Action::Launch { operation: id, provider, node, deployment, zone, price_limit });
            }
            OperationKind::Terminate => self.perform_terminate(now, id, &node, out),
            OperationKind::Drain { within_ms } => {
                let reason = open.operation.reason.clone();
                self.perform_command(now, id, &node, Command::Drain { within_ms, reason }, out);
            }
            OperationKind::RestartAgent => {
                let reason = open.operation.reason.clone();
                self.perform_command(now, id, &node, Command::RestartAgent { reason }, out);
            }
            OperationKind::RestartBySsh => self.perform_ssh(now, id, &node, out),
        }
    }

    /// Terminates, unless the reason for it has gone since it was decided, or the brake holds.
    fn perform_terminate(&mut self, now: Mono, id: OperationId, node: &NodeId, out: &mut Vec<Action>) {
        let timing = self.timing;
        let is_settled = self.is_settled();
        let word = self.nodes.get(node).map_or(Cloud::Absent, |known| known.cloud.word(now, &timing));
        let has_deployment = self.nodes.get(node).is_some_and(|known| {
            known.record.deployment.as_ref().is_some_and(|name| self.deployments.contains_key(name))
        });
        let Some(open) = self.operations.get_mut(&id) else { return };
        if open.is_restored && !open.is_performed {
            // It may have been performed all the same. Until the cloud says, the node counts for nobody.
            let is_known = match word {
                Cloud::Running | Cloud::Stopped | Cloud::Absent => true,
                Cloud::Unknown | Cloud::Failing => false,
            };
            if !is_settled || (!is_known && has_deployment) {
                open.retry_at = Some(now + timing.retry);
                if let Some(known) = self.nodes.get_mut(node) {
                    known.held =
                        Some("the cloud has not said what became of an earlier termination".to_owned());
                }
                return;
            }
            let why = "an earlier controller decided it: to be decided anew";
            return self.close(now, id, Err(why.to_owned()), out);
        }
        if !self.still_asks_for(now, id, node, &Step::Terminate) {
            return self.close(now, id, Err("what it was decided on no longer holds".to_owned()), out);
        }
        let Some(open) = self.operations.get_mut(&id) else { return };
        let Some(known) = self.nodes.get_mut(node) else {
            return self.close(now, id, Err("its node is gone".to_owned()), out);
        };
        let Some(provider) = known
            .record
            .deployment
            .as_ref()
            .and_then(|name| self.deployments.get(name))
            .map(|wanted| wanted.deployment.provider.clone())
        else {
            return self.close(now, id, Err("its provider is not known".to_owned()), out);
        };
        if !open.is_performed {
            let may_run = match known.cloud.word(now, &timing) {
                Cloud::Stopped | Cloud::Absent => false,
                Cloud::Failing if known.belief == Belief::Silent => {
                    known.held = Some(CUT_OFF.to_owned());
                    open.retry_at = Some(now + timing.retry);
                    return;
                }
                Cloud::Running | Cloud::Unknown | Cloud::Failing => true,
            };
            if may_run {
                if let Err(hold) = self.brake.may_terminate(now, &provider, &known.record.zone) {
                    known.held = Some(hold.0);
                    open.retry_at = Some(now + timing.retry);
                    return;
                }
            } else {
                open.is_counted = true;
            }
            open.is_performed = true;
        }
        if !std::mem::replace(&mut open.is_counted, true) {
            self.brake.terminated(now, &provider);
        }
        if known.leaving.is_none() {
            // Decided by an earlier controller, whose reasons are in the operation.
            let reason = open.operation.reason.clone();
            known.leaving = Some(Leaving { cause: Cause::Stopped, reason });
        }
        known.held = None;
        out.push(Action::Terminate { operation: id, provider, node: node.clone() });
    }

    /// Whether the plan, asked anew, wants just this of the node. Recording may have taken minutes; one that was
    /// performed once is finished whatever the plan says now, since it may have happened.
    fn still_asks_for(&self, now: Mono, id: OperationId, node: &NodeId, step: &Step) -> bool {
        let is_under_way = self.operations.get(&id).is_none_or(|open| open.is_performed || open.is_restored);
        let Some(known) = self.nodes.get(node).filter(|_| !is_under_way) else { return true };
        let Some(name) = &known.record.deployment else { return true };
        self.next_step(now, known, self.standing(name, Some(node))) == *step
    }

    fn perform_command(
        &mut self,
        now: Mono,
        id: OperationId,
        node: &NodeId,
        command: Command,
        out: &mut Vec<Action>,
    ) {
        if self.operations.get(&id).is_some_and(|open| open.is_restored) {
            let why = "the controller that decided it is gone: to be decided anew";
            return self.close(now, id, Err(why.to_owned()), out);
        }
        let is_drain = matches!(command, Command::Drain { .. });
        if is_drain && !self.still_asks_for(now, id, node, &Step::Drain) {
            return self.close(now, id, Err("what it was decided on no longer holds".to_owned()), out);
        }
        let mutes = self.nodes.get(node).is_some_and(|known| known.belief == Belief::SuspectPush);
        if !is_drain && !mutes {
            return self.close(now, id, Err("it pushes again, or does not speak at all".to_owned()), out);
        }
        let Some(open) = self.operations.get_mut(&id) else { return };
        if open.tries >= COMMAND_TRIES_MAX && !is_drain {
            return self.close(now, id, Err("the node did not acknowledge it".to_owned()), out);
        }
        // A drain is asked for until the node takes it or is lost: meanwhile it stays routed out.
        let known = self.nodes.get(node);
        if is_drain && known.is_some_and(|known| known.phase() == Some(Phase::Stopped)) {
            return self.close(now, id, Ok(()), out);
        }
        if open.tries > 0 && known.is_none_or(|known| !known.belief.is_routable()) {
            return self.close(now, id, Err("the node was lost before it took it".to_owned()), out);
        }
        let is_slow = open.tries >= COMMAND_TRIES_MAX;
        open.tries = open.tries.saturating_add(1);
        open.is_performed = true;
        open.retry_at = Some(now + if is_slow { RETRY_MAX } else { self.timing.retry });
        if let Some(known) = self.nodes.get_mut(node).filter(|_| is_drain) {
            known.draining_since = Some(now);
            self.is_dirty = true;
        }
        let term = self.term;
        out.push(match self.nodes.get(node).filter(|known| known.push_was == Freshness::Stale) {
            // Its control stream is as silent as its heartbeats.
            Some(Node { record: NodeRecord { address: Some(address), .. }, .. }) => {
                let (node, address) = (node.clone(), address.clone());
                Action::CommandByPoll { node, address, operation: id, term, command }
            }
            Some(_) | None => {
                let message = Message::Command { operation: id, term, command };
                Action::Send { node: node.clone(), message }
            }
        });
    }

    pub(super) fn command_done(
        &mut self,
        now: Mono,
        node: &NodeId,
        id: OperationId,
        outcome: &CommandOutcome,
        out: &mut Vec<Action>,
    ) {
        let is_about_it = self.operations.get(&id).is_some_and(|open| {
            open.operation.node == *node
                && matches!(open.operation.kind, OperationKind::Drain { .. } | OperationKind::RestartAgent)
        });
        if !is_about_it {
            return;
        }
        let result = match outcome {
            CommandOutcome::Accepted => Ok(()),
            CommandOutcome::RefusedTerm { newest } => Err(format!("the node follows term {newest}")),
        };
        self.close(now, id, result, out);
    }

    pub(super) fn performed(
        &mut self,
        now: Mono,
        id: OperationId,
        result: Result<(), CloudFault>,
        out: &mut Vec<Action>,
    ) {
        let retry = self.timing.retry;
        let Some(open) = self.operations.get_mut(&id) else { return };
        let node = open.operation.node.clone();
        let is_launch = matches!(open.operation.kind, OperationKind::Launch { .. });
        match result {
            Ok(()) if is_launch => self.launched(now, id, out),
            Ok(()) => {
                self.close(now, id, Ok(()), out);
                self.forget(&node, out);
            }
            Err(fault @ CloudFault::NoAnswer(_)) => {
                let pause = (retry * 2u32.saturating_pow(open.tries.min(8))).min(RETRY_MAX);
                open.tries = open.tries.saturating_add(1);
                open.retry_at = Some(now + pause);
                self.tell(now, &node, Severity::Warning, "retry", format!("operation {id}: {fault}"), out);
            }
            Err(fault) if is_launch => self.not_launched(now, id, fault.to_string(), out),
            Err(fault) => {
                open.tries = open.tries.saturating_add(1);
                open.retry_at = Some(now + RETRY_MAX);
                let text = format!("operation {id} cannot be performed: {fault}");
                self.tell(now, &node, Severity::Alert, "terminate-failed", text, out);
            }
        }
    }

    pub(super) fn close(
        &mut self,
        now: Mono,
        id: OperationId,
        result: Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        let Some(open) = self.operations.remove(&id) else { return };
        let mut operation = open.operation;
        let (severity, text) = match &result {
            Ok(()) => (Severity::Info, format!("operation {id} done")),
            Err(why) => (Severity::Warning, format!("operation {id} ended: {why}")),
        };
        operation.state = match result {
            Ok(()) => OperationState::Done,
            Err(reason) => OperationState::Failed { reason },
        };
        let (node, kind) = (operation.node.clone(), operation.kind.as_str());
        let is_undrained =
            severity == Severity::Warning && matches!(operation.kind, OperationKind::Drain { .. });
        out.push(Action::Close(operation));
        if let Some(known) = self.nodes.get_mut(&node) {
            known.operation = None;
            if is_undrained {
                known.draining_since = None;
            }
        }
        self.is_dirty = true;
        self.tell(now, &node, severity, kind, text, out);
    }

    pub(super) fn forget(&mut self, node: &NodeId, out: &mut Vec<Action>) {
        self.bequeath(node, out);
        let gone = self.nodes.remove(node);
        self.suspected -= usize::from(gone.is_some_and(|node| node.push_was == Freshness::Stale));
        self.is_dirty = true;
        out.push(Action::ForgetNode(node.clone()));
    }
}
