//! Who reads what a lost node left: the node that was launched in its place, else whoever serves its deployment.
//!
//! A node is an heir of its predecessors until it has read their last checkpoints. When it is lost before, its own heir gets
//! them with what it leaves itself; while there is nobody, they wait for the next launch.

use cic_common::assignment::Predecessor;
use cic_common::id::{DeploymentName, NodeId};

use super::action::{Action, Message};
use super::fleet::Fleet;
use super::node::Node;
use super::verdict::Cause;

/// Predecessors of one node. More are lost at once only with a zone, and the oldest requests are the least asked for.
const PREDECESSORS_MAX: usize = 64;

impl Fleet {
    /// What a node that is launched now for `name` is to read.
    pub(super) fn inherited(&mut self, name: &DeploymentName, replaced: Option<&NodeId>) -> Vec<Predecessor> {
        let mut inherited = self.orphans.remove(name).unwrap_or_default();
        if let Some(id) = replaced.filter(|id| self.leaves_something(id) && !self.has_heir(id)) {
            inherited.push(Predecessor { node: id.clone(), is_gone: false });
        }
        inherited
    }

    /// Whether there is a checkpoint of it that somebody should read.
    pub(super) fn leaves_something(&self, id: &NodeId) -> bool {
        let may_leave = |node: &&Node| node.keeps_checkpoints && node.is_ours() && !node.is_read;
        let Some(node) = self.nodes.get(id).filter(may_leave) else { return false };
        match node.leaving.as_ref().map(|leaving| leaving.cause) {
            // It was drained without haste, or never was.
            Some(Cause::Surplus | Cause::NotLaunched | Cause::Unowned) => false,
            Some(
                Cause::Lost
                | Cause::Gone
                | Cause::Notice
                | Cause::Failed
                | Cause::Stopped
                | Cause::TooSlow
                | Cause::ReplaceAsked
                | Cause::DrainAsked,
            )
            | None => true,
        }
    }

    pub(super) fn has_heir(&self, id: &NodeId) -> bool {
        self.nodes.values().any(|node| node.record.predecessors.iter().any(|one| one.node == *id))
    }

    /// The VM of `id` is gone for good, and its row is to go: what it leaves gets an heir who knows that.
    pub(super) fn bequeath(&mut self, id: &NodeId, out: &mut Vec<Action>) {
        let is_left = self.leaves_something(id);
        let Some(node) = self.nodes.get_mut(id) else { return };
        let Some(name) = node.record.deployment.clone() else { return };
        let mut left = std::mem::take(&mut node.record.predecessors);
        if is_left {
            left.push(Predecessor { node: id.clone(), is_gone: true });
        }
        for predecessor in left {
            match self.heir(&name, id, &predecessor.node) {
                Some(heir) => self.inherit(&heir, predecessor, out),
                None => {
                    let waiting = self.orphans.entry(name.clone()).or_default();
                    waiting.retain(|one| one.node != predecessor.node);
                    waiting.push(predecessor);
                    let excess = waiting.len().saturating_sub(PREDECESSORS_MAX);
                    waiting.drain(..excess);
                }
            }
        }
    }

    /// Who has it already, else who serves and has least to read.
    fn heir(&self, name: &DeploymentName, gone: &NodeId, predecessor: &NodeId) -> Option<NodeId> {
        let others = || self.members(name).filter(|(id, _)| *id != gone);
        let has_it = |node: &Node| node.record.predecessors.iter().any(|one| one.node == *predecessor);
        if let Some((id, _)) = others().find(|(_, node)| has_it(node)) {
            return Some(id.clone());
        }
        let staying = others().filter(|(_, node)| node.leaving.is_none() && node.keeps_checkpoints);
        let rank = |(_, node): &(&NodeId, &Node)| (!node.is_working(), node.record.predecessors.len());
        staying.min_by_key(rank).map(|(id, _)| id.clone())
    }

    fn inherit(&mut self, heir: &NodeId, predecessor: Predecessor, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(heir) else { return };
        let list = &mut node.record.predecessors;
        match list.iter_mut().find(|one| one.node == predecessor.node) {
            Some(known) => known.is_gone |= predecessor.is_gone,
            None => {
                list.push(predecessor);
                let excess = list.len().saturating_sub(PREDECESSORS_MAX);
                list.drain(..excess);
            }
        }
        out.push(Action::SaveNode(node.record.clone()));
        let predecessors = node.record.predecessors.clone();
        let wanted = node.record.deployment.as_ref().and_then(|name| self.deployments.get(name));
        if let Some(wanted) = wanted {
            let assignment = wanted.deployment.assignment();
            let message = Message::Assign { term: self.term, assignment, predecessors };
            out.push(Action::Send { node: heir.clone(), message });
        }
    }

    /// `heir` has read the last checkpoint of `predecessor`, or there is none.
    pub(super) fn has_read(&mut self, heir: &NodeId, predecessor: &NodeId, out: &mut Vec<Action>) {
        if let Some(left) = self.nodes.get_mut(predecessor) {
            left.is_read = true;
        }
        let Some(node) = self.nodes.get_mut(heir) else { return };
        let before = node.record.predecessors.len();
        node.record.predecessors.retain(|one| one.node != *predecessor);
        if node.record.predecessors.len() < before {
            out.push(Action::SaveNode(node.record.clone()));
        }
    }
}
