//! Who reads what a lost node left: the node that was launched in its place, else whoever serves its deployment.
//!
//! A node is an heir of its predecessors until it has read their last checkpoints. When it is lost before, its own heir gets
//! them with what it leaves itself; while there is nobody, they wait for the next launch.

use cic_common::assignment::Predecessor;
use cic_common::id::{DeploymentName, NodeId};
use cic_common::report::Phase;

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
        let may_leave =
            |node: &&Node| node.record.keeps_checkpoints && node.is_ours() && !node.record.is_read;
        let Some(node) = self.nodes.get(id).filter(may_leave) else { return false };
        match node.leaving.as_ref().map(|leaving| leaving.cause) {
            Some(Cause::NotLaunched | Cause::Unowned) => false,
            // It was drained without haste, if it came to rest.
            Some(Cause::Surplus) => node.has_served && node.phase() != Some(Phase::Stopped),
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
        let mut left = self.unread_of(id);
        if self.leaves_something(id) {
            left.push(Predecessor { node: id.clone(), is_gone: true });
        }
        self.hand_on(id, left, out);
    }

    /// A node has connected and says whether it has a store: who waits for an heir gets it, or it gives up what it cannot
    /// read.
    pub(super) fn settle_heir(&mut self, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get(id).filter(|node| node.is_ours()) else { return };
        let Some(name) = node.record.deployment.clone() else { return };
        if !node.record.keeps_checkpoints {
            let left = self.unread_of(id);
            if !left.is_empty() {
                out.extend(self.nodes.get(id).map(|node| Action::SaveNode(node.record.clone())));
                self.hand_on(id, left, out);
            }
        } else if node.leaving.is_none() {
            for predecessor in self.orphans.remove(&name).unwrap_or_default() {
                self.inherit(id, predecessor, out);
            }
        }
    }

    /// It stays after all: nobody is to read what it writes. Should it be lost later, it gets an heir then.
    pub(super) fn disinherit(&mut self, id: &NodeId, out: &mut Vec<Action>) {
        for node in self.nodes.values_mut() {
            let before = node.record.predecessors.len();
            node.record.predecessors.retain(|one| one.node != *id);
            if node.record.predecessors.len() < before {
                out.push(Action::SaveNode(node.record.clone()));
            }
        }
    }

    /// Takes its list of predecessors from a node, less those who stay.
    fn unread_of(&mut self, id: &NodeId) -> Vec<Predecessor> {
        let Some(node) = self.nodes.get_mut(id) else { return Vec::new() };
        let mut unread = std::mem::take(&mut node.record.predecessors);
        let is_leaving = |one: &NodeId| self.nodes.get(one).is_some_and(|node| node.leaving.is_some());
        unread.retain(|one| one.is_gone || is_leaving(&one.node));
        unread
    }

    /// Gives `left` to others than `id`, or keeps it for who comes.
    fn hand_on(&mut self, id: &NodeId, left: Vec<Predecessor>, out: &mut Vec<Action>) {
        let name = self.nodes.get(id).and_then(|node| node.record.deployment.clone());
        let Some(name) = name else { return };
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
        let others = || self.members(name).filter(|(id, _)| *id != gone && *id != predecessor);
        let has_it = |node: &Node| node.record.predecessors.iter().any(|one| one.node == *predecessor);
        if let Some((id, _)) = others().find(|(_, node)| has_it(node)) {
            return Some(id.clone());
        }
        let staying = others().filter(|(_, node)| node.leaving.is_none() && node.record.keeps_checkpoints);
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

    /// `heir` is done with `predecessor`: it has read its last checkpoint, or could not.
    pub(super) fn has_read(
        &mut self,
        heir: &NodeId,
        predecessor: &NodeId,
        could: bool,
        out: &mut Vec<Action>,
    ) {
        if let Some(left) = self.nodes.get_mut(predecessor).filter(|_| could) {
            left.record.is_read = true;
            out.push(Action::SaveNode(left.record.clone()));
        }
        let Some(node) = self.nodes.get_mut(heir) else { return };
        let before = node.record.predecessors.len();
        node.record.predecessors.retain(|one| one.node != *predecessor);
        if node.record.predecessors.len() < before {
            out.push(Action::SaveNode(node.record.clone()));
        }
    }
}
