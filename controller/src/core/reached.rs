//! What came of reaching for a node beside its two paths: through its ssh port, and with commands by poll.

use cic_common::id::{NodeId, OperationId};
use cic_common::time::Mono;
use cic_common::wire::message::CommandOutcome;

use super::event::PollFault;
use super::fleet::Fleet;
use super::ssh::SshWord;
use super::trail::Severity;
use super::{Action, evidence};

/// How the newest restart over ssh ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SshRestart {
    pub(super) at: Mono,
    pub(super) operation: OperationId,
    pub(super) result: Result<(), String>,
}

impl Fleet {
    /// It explains a silence; belief does not rest on it.
    pub(super) fn explained(&mut self, now: Mono, id: &NodeId, word: SshWord) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.trail.push(now, word.text());
        node.ssh = Some((now, word));
        self.is_dirty = true;
        self.touch(id);
    }

    /// An answer counts as the node's own word for it; without one the operation asks again.
    pub(super) fn command_answered(
        &mut self,
        now: Mono,
        id: &NodeId,
        operation: OperationId,
        result: Result<CommandOutcome, PollFault>,
        out: &mut Vec<Action>,
    ) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        match result {
            Ok(outcome) => {
                node.trail.push(now, format!("operation {operation} by poll: {outcome:?}"));
                self.command_done(now, id, operation, &outcome, out);
            }
            Err(fault) => node.trail.push(now, format!("operation {operation} by poll: {fault}")),
        }
        self.is_dirty = true;
        self.touch(id);
    }

    /// Whether the agent is back is for its own paths to say.
    pub(super) fn restarted_by_ssh(
        &mut self,
        now: Mono,
        id: &NodeId,
        operation: OperationId,
        result: Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        if self.operations.get(&operation).is_some_and(|open| open.operation.node == *id) {
            self.close(now, operation, result.clone(), out);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        let (severity, text) = match &result {
            Ok(()) => (Severity::Info, format!("operation {operation}: agent restarted over ssh")),
            Err(why) => (Severity::Warning, format!("operation {operation}: no restart over ssh: {why}")),
        };
        node.ssh_restart = Some(SshRestart { at: now, operation, result });
        self.is_dirty = true;
        self.tell(now, id, severity, "ssh-restart", text, out);
        self.touch(id);
    }
}

/// For `cic why`: `its sshd answers (SSH-2.0-OpenSSH_9.2p1): the VM runs (3.0 s ago)`.
pub(super) fn text(now: Mono, (at, word): &(Mono, SshWord)) -> String {
    format!("{} ({} ago)", word.text(), evidence::span(now.since(*at)))
}
