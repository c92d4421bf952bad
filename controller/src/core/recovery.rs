//! What is tried on a node whose agent is ill, before its place is taken by another: one small plan an illness.
//!
//! | illness | seen as | plan |
//! |---|---|---|
//! | mute | it answers polls and pushes nothing | the agent restarts itself, by the poll path; then over ssh; then people are told |
//! | down | nobody speaks and its kernel refuses the poll | its ssh port is asked, the agent is restarted over ssh; the grace runs on |
//! | cut off | nobody speaks and nothing answers | its ssh port is asked, again and again: it explains, and decides nothing |
//!
//! What takes a node away is elsewhere (`verdict.rs`, `plan.rs`): a mute one is never, the others when the grace is over.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::Mono;

use super::Action;
use super::belief::Belief;
use super::event::PollFault;
use super::fleet::Fleet;
use super::node::Node;
use super::open::Open;
use super::operation::OperationKind;
use super::trail::Severity;

/// What ails it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Illness {
    #[default]
    None,
    Mute,
    Down,
    CutOff,
}

/// One act of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    AskSsh,
    RestartByPoll,
    RestartBySsh,
    TellPeople,
}

/// Acts with their time since the illness began, in order.
type Plan = &'static [(Duration, Act)];

/// A link that loses its pushes for a moment heals in less; an agent that hangs does not. A restart and the first push
/// after it take some 3 s, an engine is adopted, so half a minute says that it did not help.
const MUTE: Plan = &[
    (Duration::from_secs(15), Act::RestartByPoll),
    (Duration::from_secs(45), Act::RestartBySsh),
    (Duration::from_secs(90), Act::TellPeople),
];

/// Its init has restarted it by then, if it can (systemd: 2 s). A login and a restart fit into the grace of 60 s.
const DOWN: Plan = &[(Duration::ZERO, Act::AskSsh), (Duration::from_secs(10), Act::RestartBySsh)];

/// Once for the event log, and before the grace is over.
const CUT_OFF: Plan = &[(Duration::ZERO, Act::AskSsh), (Duration::from_secs(45), Act::AskSsh)];

/// A node's agent is not restarted more often: each restart cuts the streams of its edge.
const RESTART_EVERY: Duration = Duration::from_secs(600);

/// A restart over ssh that comes this long after one by poll is not of the same treatment.
const SSH_AFTER_POLL: Duration = Duration::from_secs(60);

/// Restarts under way at once: a firewall before a part of the fleet must not restart that part together.
const RESTARTS_MAX: usize = 2;

/// While an act cannot be done yet, it is looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// How far the plan for one node has come.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Recovery {
    illness: Illness,
    since: Mono,
    done: usize,
    next_at: Option<Mono>,
    restarted_at: Option<Mono>,
    /// The same over ssh.
    ssh_restarted_at: Option<Mono>,
}

impl Recovery {
    /// Forgets how far the plan came, and not when its agent was restarted.
    pub(super) fn begin_anew(&mut self) {
        let (restarted_at, ssh_restarted_at) = (self.restarted_at, self.ssh_restarted_at);
        *self = Self { restarted_at, ssh_restarted_at, ..Self::default() };
    }

    pub(super) fn next_at(&self) -> Option<Mono> {
        self.next_at
    }
}

impl Illness {
    fn of(node: &Node) -> Self {
        match node.belief {
            Belief::SuspectPush => Self::Mute,
            Belief::Silent if node.poll.fault() == Some(PollFault::Refused) => Self::Down,
            Belief::Silent => Self::CutOff,
            Belief::Unknown | Belief::Alive | Belief::SuspectPoll | Belief::Gone => Self::None,
        }
    }

    fn plan(self) -> Plan {
        match self {
            Self::None => &[],
            Self::Mute => MUTE,
            Self::Down => DOWN,
            Self::CutOff => CUT_OFF,
        }
    }
}

impl Fleet {
    /// Goes on with the plan for what ails the node now.
    pub(super) fn recover(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        if !self.is_leading {
            return;
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        let illness = Illness::of(node);
        if illness != node.recovery.illness {
            node.recovery.begin_anew();
            (node.recovery.illness, node.recovery.since) = (illness, now);
        }
        let plan = illness.plan();
        while let Some(node) = self.nodes.get(id)
            && let Some((after, act)) = plan.get(node.recovery.done)
            && now.since(node.recovery.since) >= *after
        {
            let is_done = self.treat(now, id, *act, out);
            let Some(node) = self.nodes.get_mut(id) else { return };
            if !is_done {
                node.recovery.next_at = Some(now + AGAIN);
                return;
            }
            node.recovery.done += 1;
            // One that had to wait puts off those after it.
            node.recovery.since = node.recovery.since.max(now - *after);
        }
        if let Some(node) = self.nodes.get_mut(id) {
            let next = plan.get(node.recovery.done);
            node.recovery.next_at = next.map(|(after, _)| node.recovery.since + *after);
        }
    }

    /// Does one act. False when it has to wait.
    fn treat(&mut self, now: Mono, id: &NodeId, act: Act, out: &mut Vec<Action>) -> bool {
        match act {
            Act::AskSsh => {
                let address = self.nodes.get(id).and_then(|node| node.record.address.clone());
                out.extend(address.map(|address| Action::Explain { node: id.clone(), address }));
                true
            }
            Act::RestartByPoll => {
                let reason = "it answers polls and pushes nothing".to_owned();
                self.restart(now, id, OperationKind::RestartAgent, reason, out)
            }
            Act::RestartBySsh => {
                let mute = self.nodes.get(id).is_some_and(|node| node.belief == Belief::SuspectPush);
                let what = if mute { "its restart by poll did not help" } else { "its host refuses polls" };
                self.restart(now, id, OperationKind::RestartBySsh, what.to_owned(), out)
            }
            Act::TellPeople => {
                let text = "it answers polls, serves, and pushes nothing though it was restarted: is UDP let \
                            through to the controller's port?";
                self.tell(now, id, Severity::Alert, "mute", text.to_owned(), out);
                true
            }
        }
    }

    /// Restarts the agent, unless so many are ill that the fault is more likely here or in between.
    fn restart(
        &mut self,
        now: Mono,
        id: &NodeId,
        kind: OperationKind,
        reason: String,
        out: &mut Vec<Action>,
    ) -> bool {
        let is_crowd = self.is_crowd();
        let (is_settled, is_unsteady) = (self.is_settled(), now < self.steady_at);
        let is_restart = |open: &&Open| match open.operation.kind {
            OperationKind::RestartAgent | OperationKind::RestartBySsh => true,
            OperationKind::Launch { .. } | OperationKind::Terminate | OperationKind::Drain { .. } => false,
        };
        let restarting = self.operations.values().filter(is_restart).count();
        let Some(node) = self.nodes.get_mut(id) else { return true };
        let is_recent = |at: Option<Mono>| at.is_some_and(|at| now.since(at) < RESTART_EVERY);
        let Recovery { illness, restarted_at, ssh_restarted_at, .. } = node.recovery;
        // By poll and then over ssh is one treatment; each of them alone is not repeated soon.
        let is_repeated = match (&kind, illness) {
            (OperationKind::RestartBySsh, Illness::Mute) => {
                is_recent(ssh_restarted_at) || restarted_at.is_none_or(|at| now.since(at) > SSH_AFTER_POLL)
            }
            (OperationKind::RestartBySsh, Illness::None | Illness::Down | Illness::CutOff) => {
                is_recent(ssh_restarted_at)
            }
            (
                OperationKind::RestartAgent
                | OperationKind::Launch { .. }
                | OperationKind::Terminate
                | OperationKind::Drain { .. },
                _,
            ) => is_recent(restarted_at),
        };
        if !node.is_ours() || node.leaving.is_some() || is_repeated {
            return true;
        }
        if !is_settled || is_crowd || restarting >= RESTARTS_MAX || node.operation.is_some() || is_unsteady {
            return false;
        }
        if kind == OperationKind::RestartBySsh {
            node.recovery.ssh_restarted_at = Some(now);
        } else {
            node.recovery.restarted_at = Some(now);
        }
        self.open(now, id, kind, reason, out);
        true
    }

    /// A restart over ssh is asked for once: its answer closes it, and the next plan may ask anew.
    pub(super) fn perform_ssh(
        &mut self,
        now: Mono,
        id: cic_common::id::OperationId,
        node: &NodeId,
        out: &mut Vec<Action>,
    ) {
        let Some(open) = self.operations.get_mut(&id) else { return };
        if open.is_restored {
            let why = "the controller that decided it is gone: to be decided anew";
            return self.close(now, id, Err(why.to_owned()), out);
        }
        let Some(known) = self.nodes.get(node).filter(|node| Illness::of(node) != Illness::None) else {
            return self.close(now, id, Err("it speaks again".to_owned()), out);
        };
        let Some(address) = known.record.address.clone() else {
            return self.close(now, id, Err("its address is not known".to_owned()), out);
        };
        open.is_performed = true;
        out.push(Action::RestartBySsh { node: node.clone(), address, operation: id });
    }
}
