//! What the store holds, taken in: by a leader once, by a standby again and again.
//!
//! ```text
//!             Restored (it leads)
//!  following --------------------> leading
//!      ^  <----------------------------'
//!      |     SteppedDown, Followed
//!  Followed, each second
//! ```
//! A standby hears and polls as a leader does, so that it knows every node when its turn comes. What it would do is
//! dropped: it tells a node nothing but that it listens, and opens, saves and notes nothing. Evidence of a node outlasts both
//! ways; what was decided about it is that of the rows.

use std::collections::BTreeSet;

use cic_common::id::NodeId;
use cic_common::time::Mono;
use cic_common::wire::message::Hello;

use super::belief::Freshness;
use super::event::Restored;
use super::fleet::Fleet;
use super::hear::spread;
use super::node::Node;
use super::open::Open;
use super::{Action, Event, Message};

/// Between the polls of nodes that are all known at once.
const FIRST_POLL_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Nodes that a standby remembers before their rows come. Rows come each second, and a brake bounds launches; one that is
/// not remembered gets no welcome and connects again.
const UNROWED_MAX: usize = 1024;

impl Fleet {
    /// From now on this controller decides, by the rows of its term and by what it has heard.
    pub(super) fn lead(&mut self, now: Mono, restored: Restored, out: &mut Vec<Action>) {
        self.is_leading = true;
        self.plan_at = None;
        self.take_rows(now, restored, out);
        self.tell_anew(now);
        for hello in std::mem::take(&mut self.unrowed).into_values() {
            self.connected(now, hello, out);
        }
        self.begin_settling(now);
        // They were welcomed by a standby, or by another leader: now they hear of this term.
        let heard: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| node.push.has_spoken()).map(|(id, _)| id.clone()).collect();
        for id in heard {
            self.assign(&id, out);
        }
    }

    /// What a standby noticed it told nobody, and its listings were not asked for a leader's acts.
    fn tell_anew(&mut self, now: Mono) {
        for listing in self.listings.values_mut() {
            (listing.has_answered, listing.is_failing, listing.synced) = (false, false, None);
            (listing.next_at, listing.again) = (now, listing.is_asked);
        }
        for node in self.nodes.values_mut() {
            node.is_wedge_told = false;
        }
        self.brake.begin_anew(now);
    }

    /// Another leads, or none: these are the rows now.
    pub(super) fn follow(&mut self, now: Mono, restored: Restored, out: &mut Vec<Action>) {
        self.step_down();
        self.take_rows(now, restored, out);
        self.rest();
    }

    pub(super) fn step_down(&mut self) {
        self.is_leading = false;
        self.end_settling();
        // Of the term that is over: their clocks run anew, and others may have been given what waits for an heir.
        self.unowned.clear();
        self.orphans.clear();
        for listing in self.listings.values_mut() {
            listing.orphans_held = None;
        }
        self.rest();
    }

    /// Nothing is due that only a leader does.
    fn rest(&mut self) {
        self.plan_at = None;
        for open in self.operations.values_mut() {
            open.rest();
        }
    }

    fn take_rows(&mut self, now: Mono, restored: Restored, out: &mut Vec<Action>) {
        let Restored { term, operation_last, deployments, nodes, operations } = restored;
        // Ids seen in the cloud's tags are used, whatever the store remembers.
        (self.term, self.operation_last) = (term, operation_last.max(self.operation_last));
        let is_launch = |open: &&Open| open.is_launch();
        let launching: BTreeSet<NodeId> =
            self.operations.values().filter(is_launch).map(|open| open.operation.node.clone()).collect();
        let names: BTreeSet<_> = deployments.iter().map(|deployment| &deployment.name).collect();
        self.deployments.retain(|name, _| names.contains(name));
        for deployment in deployments {
            let known = self.deployments.get(&deployment.name);
            if known.is_none_or(|known| known.deployment != deployment) {
                self.want(now, deployment);
            }
        }
        let ids: BTreeSet<&NodeId> = nodes.iter().map(|record| &record.node).collect();
        let gone: Vec<NodeId> = self.nodes.keys().filter(|id| !ids.contains(id)).cloned().collect();
        for id in gone {
            let gone = self.nodes.remove(&id);
            self.suspected -= usize::from(gone.is_some_and(|node| node.push_was == Freshness::Stale));
            out.push(Action::ForgetNode(id));
            self.is_dirty = true;
        }
        for record in nodes {
            let id = record.node.clone();
            match self.nodes.get_mut(&id) {
                // Found by its deployment too.
                Some(node) if node.record.deployment != record.deployment => {
                    if let Some(mut node) = self.nodes.remove(&id) {
                        if node.take_row(record) {
                            out.push(Action::SaveNode(node.record.clone()));
                        }
                        self.nodes.insert(id.clone(), node);
                        self.is_dirty = true;
                    }
                }
                // What it heard as a standby is stored when it leads.
                Some(node) => {
                    if node.take_row(record) {
                        out.push(Action::SaveNode(node.record.clone()));
                    }
                }
                None => {
                    let mut node = Node::new(now, record);
                    node.leaving = node.record.asked.clone();
                    node.poll.schedule(now + spread(&id, FIRST_POLL_WITHIN));
                    self.nodes.insert(id.clone(), node);
                    self.is_dirty = true;
                }
            }
            self.touch(&id);
            if let Some(hello) = self.unrowed.remove(&id) {
                self.connected(now, hello, out);
            }
        }
        self.operations.clear();
        let still: BTreeSet<&NodeId> = operations.iter().map(|operation| &operation.node).collect();
        // Its launch was answered between two readings: its graces run from now, as they do where it was.
        for id in launching.iter().filter(|id| !still.contains(id)) {
            if let Some(node) = self.nodes.get_mut(id) {
                node.known_since = now;
            }
        }
        for operation in operations {
            if let Some(node) = self.nodes.get_mut(&operation.node) {
                node.operation = Some(operation.id);
            }
            self.operations.insert(operation.id, Open::restored(now, operation));
        }
    }

    /// A node whose row has not come yet is welcomed, so that its link stays, and taken in with its row.
    pub(super) fn await_row(&mut self, hello: Hello, out: &mut Vec<Action>) {
        let id = hello.node.clone();
        if self.unrowed.len() >= UNROWED_MAX && !self.unrowed.contains_key(&id) {
            return;
        }
        self.unrowed.insert(id.clone(), hello);
        let message = Message::Welcome { term: self.term, assignment: None, predecessors: Vec::new() };
        out.push(Action::Send { node: id, message });
    }

    /// Tells a node that stays what it is to run, and under which term.
    pub(super) fn assign(&self, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get(id).filter(|node| node.leaving.is_none()) else { return };
        let wanted = node.record.deployment.as_ref().and_then(|name| self.deployments.get(name));
        if let Some(wanted) = wanted {
            let (assignment, predecessors) =
                (wanted.deployment.assignment(), node.record.predecessors.clone());
            let message = Message::Assign { term: self.term, assignment, predecessors };
            out.push(Action::Send { node: id.clone(), message });
        }
    }
}

impl Event {
    /// Whether it is about an act or a wish that only a leader has.
    pub(super) fn is_for_a_leader(&self) -> bool {
        match self {
            Self::Recorded { .. }
            | Self::Performed { .. }
            | Self::Deployed(_)
            | Self::ReplaceAsked { .. }
            | Self::DrainAsked { .. }
            | Self::OrphanAsked { .. }
            | Self::CommandAnswered { .. }
            | Self::RestartedBySsh { .. } => true,
            Self::Tick
            | Self::Restored(_)
            | Self::Followed(_)
            | Self::SteppedDown
            | Self::Connected(_)
            | Self::Disconnected { .. }
            | Self::Heartbeats(_)
            | Self::Told { .. }
            | Self::Polled(_)
            | Self::PollChannelLost { .. }
            | Self::Explained { .. }
            | Self::Listed { .. } => false,
        }
    }
}

impl Action {
    /// Whether a standby does it too: it looks, and keeps its links to the nodes.
    #[must_use]
    pub fn is_of_a_standby(&self) -> bool {
        match self {
            // Of its links only: the row is the leader's to delete.
            Self::ForgetNode(_) | Self::ListInstances { .. } | Self::Poll { .. } => true,
            Self::Send { message, .. } => match message {
                Message::Welcome { .. } | Message::Challenge { .. } => true,
                Message::Assign { .. } | Message::Command { .. } => false,
            },
            Self::Record(_)
            | Self::Close(_)
            | Self::SaveNode(_)
            | Self::SaveDeployment(_)
            | Self::SaveSync(_)
            | Self::Launch { .. }
            | Self::Terminate { .. }
            | Self::Explain { .. }
            | Self::CommandByPoll { .. }
            | Self::RestartBySsh { .. }
            | Self::PublishRoutes(_)
            | Self::Note(_) => false,
        }
    }
}
