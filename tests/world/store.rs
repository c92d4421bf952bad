//! The controller's durable facts: one writer, group commits, outages, and what a crash leaves.

use std::collections::{BTreeMap, VecDeque};

use cic_common::id::{DeploymentName, NodeId, OperationId, Term};
use cic_common::time::Mono;
use cic_controller::core::{Deployment, NodeRecord, Operation, OperationState, Restored};

use super::rng::Rng;

/// Writes that may wait for one commit: every node's row and operation, in an outage of minutes.
pub const WRITES_MAX: usize = 4096;

/// One write, in the order the core asked for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    Record(Operation),
    Close(Operation),
    SaveNode(NodeRecord),
    ForgetNode(NodeId),
    SaveDeployment(Deployment),
}

/// The database.
#[derive(Debug, Default)]
pub struct Store {
    term: Term,
    operation_last: OperationId,
    deployments: BTreeMap<DeploymentName, Deployment>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    operations: BTreeMap<OperationId, Operation>,
    waiting: VecDeque<Write>,
    outage_until: Mono,
}

impl Store {
    pub fn submit(&mut self, write: Write) {
        self.waiting.push_back(write);
    }

    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn fail_until(&mut self, until: Mono) {
        self.outage_until = self.outage_until.max(until);
    }

    pub fn clear(&mut self) {
        self.outage_until = Mono::ZERO;
    }

    /// When it can be written and read again.
    #[must_use]
    pub fn back_at(&self) -> Mono {
        self.outage_until
    }

    /// Makes the first `count` waiting writes durable; returns the operations that are now recorded.
    pub fn commit(&mut self, count: usize) -> Vec<OperationId> {
        let writes: Vec<Write> = self.waiting.drain(..count.min(self.waiting.len())).collect();
        writes.into_iter().filter_map(|write| self.apply(write)).collect()
    }

    /// The writer dies: some of what waited is durable without anyone having heard, the rest is lost.
    pub fn crash(&mut self, rng: &mut Rng) {
        let durable = if self.waiting.is_empty() { 0 } else { rng.index(self.waiting.len() + 1) };
        self.commit(durable);
        self.waiting.clear();
    }

    /// A row is lost, with the operation that was open about it, as when a database fails over without its last writes.
    pub fn lose(&mut self, node: &NodeId) {
        self.nodes.remove(node);
        self.operations.retain(|_, operation| operation.node != *node || !operation.state.is_open());
    }

    /// Raises the term and reads everything, as a controller does when it starts.
    pub fn restore(&mut self) -> Restored {
        self.term = self.term.next();
        Restored {
            term: self.term,
            operation_last: self.operation_last,
            deployments: self.deployments.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            operations: self.open().cloned().collect(),
        }
    }

    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.nodes
    }

    #[must_use]
    pub fn deployments(&self) -> &BTreeMap<DeploymentName, Deployment> {
        &self.deployments
    }

    /// Operations neither done nor failed.
    pub fn open(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values().filter(|operation| operation.state.is_open())
    }

    fn apply(&mut self, write: Write) -> Option<OperationId> {
        match write {
            Write::Record(operation) => {
                let id = operation.id;
                self.operation_last = self.operation_last.max(id);
                // Being in the store is what "recorded" means, whatever the row said when it was sent.
                self.operations.insert(id, Operation { state: OperationState::Recorded, ..operation });
                return Some(id);
            }
            Write::Close(operation) => {
                self.operations.insert(operation.id, operation);
            }
            Write::SaveNode(record) => {
                self.nodes.insert(record.node.clone(), record);
            }
            Write::ForgetNode(node) => {
                self.nodes.remove(&node);
            }
            Write::SaveDeployment(deployment) => {
                self.deployments.insert(deployment.name.clone(), deployment);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cic_controller::core::OperationKind;

    fn operation(id: u64, state: OperationState) -> Operation {
        Operation {
            id: OperationId(id),
            term: Term(1),
            node: NodeId::new("node1").expect("a label"),
            kind: OperationKind::Terminate,
            state,
            reason: String::new(),
            deadline_ms: 600_000,
            price_limit_usd_per_hour: None,
        }
    }

    #[test]
    fn what_was_committed_is_there_after_a_crash_and_the_term_is_higher() {
        let mut store = Store::default();
        let first = store.restore().term;
        store.submit(Write::Record(operation(3, OperationState::Intended)));
        assert_eq!(store.commit(1), [OperationId(3)]);
        store.crash(&mut Rng::new(1));
        let restored = store.restore();
        assert!(restored.term > first);
        assert_eq!(restored.operation_last, OperationId(3));
        assert_eq!(restored.operations[0].state, OperationState::Recorded);
    }

    #[test]
    fn a_crash_keeps_a_prefix_of_what_waited() {
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let mut store = Store::default();
            for id in 1..=3 {
                store.submit(Write::Record(operation(id, OperationState::Intended)));
            }
            store.crash(&mut Rng::new(seed));
            let ids: Vec<u64> = store.restore().operations.iter().map(|operation| operation.id.0).collect();
            assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
            kept.insert(ids.len());
        }
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_closed_operation_is_not_restored() {
        let mut store = Store::default();
        store.submit(Write::Record(operation(1, OperationState::Intended)));
        store.submit(Write::Close(operation(1, OperationState::Done)));
        store.commit(2);
        assert!(store.restore().operations.is_empty());
    }
}
