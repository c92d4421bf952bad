//! What a launch comes to: a VM that is there, one that may still come to be, or none.

use std::time::Duration;

use cic_common::id::{NodeId, OperationId};
use cic_common::time::Mono;

use super::Action;
use super::belief::Cloud;
use super::fleet::Fleet;
use super::trail::Severity;
use super::verdict::{Cause, Leaving};

/// Wait after the first launch that came to nothing; doubled for each further one.
const LAUNCH_BACKOFF: Duration = Duration::from_secs(10);
const LAUNCH_BACKOFF_MAX: Duration = Duration::from_secs(300);

impl Fleet {
    /// A launch has failed, as far as was said. Where a call of it was never answered, its VM may still come to be:
    /// nothing is given back until that would be seen.
    pub(super) fn not_launched(&mut self, now: Mono, id: OperationId, why: String, out: &mut Vec<Action>) {
        let Some(open) = self.operations.get(&id) else { return };
        let node = open.operation.node.clone();
        let asked_at = open.asked_at.filter(|_| open.is_in_doubt());
        if self.is_there(now, &node) {
            return self.launched(now, id, out);
        }
        let doubted_until = asked_at.map(|at| at + self.timing.visibility);
        self.close(now, id, Err(why.clone()), out);
        let reason = format!("its launch failed: {why}");
        self.set_leaving(&node, Some(Leaving { cause: Cause::NotLaunched, reason }));
        if let Some(known) = self.nodes.get_mut(&node) {
            known.doubted_until = doubted_until;
        }
        if doubted_until.is_some() {
            self.list_soon(now, &node);
        }
        self.count_launch_failure(now, &node, out);
    }

    /// Whether its VM is known to exist: its cloud lists it, or its agent has spoken.
    fn is_there(&self, now: Mono, node: &NodeId) -> bool {
        let Some(known) = self.nodes.get(node) else { return false };
        match known.cloud.word(now, &self.timing) {
            Cloud::Running => true,
            Cloud::Stopped | Cloud::Absent | Cloud::Unknown | Cloud::Failing => known.report.is_some(),
        }
    }

    /// The VM of a launch is there.
    pub(super) fn launched(&mut self, now: Mono, id: OperationId, out: &mut Vec<Action>) {
        let Some(node) = self.operations.get(&id).map(|open| open.operation.node.clone()) else { return };
        self.close(now, id, Ok(()), out);
        if let Some(known) = self.nodes.get_mut(&node) {
            known.known_since = now;
        }
        self.touch(&node);
    }

    /// The provider lists the VM of `id`, or its agent speaks: a launch of it that is still open has its answer, and one
    /// that was said to have failed did not. The node stays if its place is still free.
    pub(super) fn adopt_launched(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get(id) else { return };
        let open = node.operation.and_then(|operation| Some((operation, self.operations.get(&operation)?)));
        if let Some((operation, open)) = open
            && open.is_launch()
        {
            if open.is_performed || open.is_restored {
                self.launched(now, operation, out);
            }
            return;
        }
        let is_denied = node.leaving.as_ref().is_some_and(|leaving| leaving.cause == Cause::NotLaunched);
        let Some(name) = node.record.deployment.clone().filter(|_| is_denied) else { return };
        if self.is_being_terminated(id) || self.staying(now, &name) >= self.wanted_count(&name) {
            return;
        }
        self.reprieve(now, id, "it was launched after all".to_owned(), out);
        if let Some(known) = self.nodes.get_mut(id) {
            (known.known_since, known.doubted_until) = (now, None);
        }
    }

    /// A node that never served counts against its deployment, once however often it is given up: the next launch
    /// waits longer each time.
    pub(super) fn count_launch_failure(&mut self, now: Mono, node: &NodeId, out: &mut Vec<Action>) {
        let Some(known) = self.nodes.get_mut(node).filter(|node| !node.has_served) else { return };
        if std::mem::replace(&mut known.is_counted_failed, true) {
            return;
        }
        let name = known.record.deployment.clone();
        let Some(wanted) = name.and_then(|name| self.deployments.get_mut(&name)) else { return };
        let pause = LAUNCH_BACKOFF * 2u32.saturating_pow(wanted.launch_failures.min(8));
        wanted.launch_failures = wanted.launch_failures.saturating_add(1);
        let pause = pause.min(LAUNCH_BACKOFF_MAX);
        wanted.launch_after = now + pause;
        let text = format!(
            "{} nodes of {} in a row never served; next launch in {} s",
            wanted.launch_failures,
            wanted.deployment.name,
            pause.as_secs()
        );
        self.note(None, Severity::Warning, "launch-backoff", text, out);
    }
}
