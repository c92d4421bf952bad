//! VMs of this fleet that no row knows, and what becomes of them.
//!
//! ```text
//! listed, no row -> quarantined (since) -> told (after `visibility`) -> taken over (after `orphan_grace`) -> given back
//!                        |                        |- held: too many at once, or while an operator looks
//!                        |                        '- an operator: adopt | terminate
//!                        '- its agent speaks, and the deployment that launched it lacks a node: adopted
//! ```
//! A row can be lost: with the last writes of a database that failed over, or with the whole of one that was restored
//! from nothing. Such a VM costs money and may serve users. Nothing is done before a listing could no longer be
//! mistaken; then one at a time passes the brake like any other removal, is drained if it serves, and given back. When
//! the rows themselves are what is missing, nothing is done at all until a person says what. A VM that carries another
//! fleet's tag is counted and never touched. The time of each runs anew with each controller: none of it is stored.

use cic_common::id::{DeploymentName, Incarnation, NodeId, OperationId};
use cic_common::name::ClusterName;
use cic_common::report::Role;
use cic_common::time::Mono;
use cic_common::wire::message::Hello;
use serde::{Deserialize, Serialize};

use super::Action;
use super::belief::Cloud;
use super::event::NodeRecord;
use super::evidence::span;
use super::fleet::Fleet;
use super::instance::{Instance, InstanceState};
use super::node::Node;
use super::trail::Severity;
use super::verdict::{Cause, Leaving};

/// So many orphans at least are a sign that rows were lost, if they are half as many as the rows or more. The brake's
/// `silent_count_min`, for the same reason: one or two may be an accident.
const HELD_FROM: usize = 3;

/// Replicas without a row whose greeting is remembered; others are met when they connect again.
const GUESTS_MAX: usize = 256;

/// An operation's number in a tag further than this above the highest known is not one of ours.
const OPERATION_LEAP_MAX: u64 = 1_000_000;

/// A VM of ours without a row.
#[derive(Debug)]
pub(super) struct Orphan {
    provider: String,
    operation: OperationId,
    state: InstanceState,
    since: Mono,
    /// In a listing.
    seen_at: Mono,
    is_told: bool,
    /// An operator wants it gone: it waits for no grace and no hold.
    is_condemned: bool,
}

/// What an operator wants done with one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanWish {
    /// It becomes a node of this deployment; one too many goes as always.
    Adopt { deployment: DeploymentName },
    /// It is drained if it serves, and given back.
    Terminate,
}

/// An orphan for people. One is shown when it can no longer be the shadow of a VM that just ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanView {
    pub node: NodeId,
    pub provider: String,
    /// The launch that made it, from its tag.
    pub operation: OperationId,
    pub since: Mono,
    /// When it is taken over to be given back; `None` while it is held.
    pub terminate_at: Option<Mono>,
    /// The deployment that would take it in, if that can be known.
    pub deployment: Option<DeploymentName>,
    /// Its agent is connected.
    pub is_speaking: bool,
    pub reason: String,
}

impl Fleet {
    /// A replica without a row has connected. It is told nothing to run, and remembered for as long as it is there.
    pub(super) fn receive_guest(&mut self, hello: Hello, out: &mut Vec<Action>) {
        let text = format!("{} at {} connected and no row says that it is ours", hello.node, hello.address);
        self.note(None, Severity::Alert, "stranger", text, out);
        let is_newer =
            self.guests.get(&hello.node).is_none_or(|known| known.incarnation <= hello.incarnation);
        let has_room = self.guests.len() < GUESTS_MAX || self.guests.contains_key(&hello.node);
        if is_newer && has_room {
            self.guests.insert(hello.node.clone(), hello);
        }
    }

    /// Those of a listing that are this fleet's. Operations are numbered on above all of theirs, so that after a restore
    /// from before no number means two acts.
    pub(super) fn own(&mut self, provider: &str, mut instances: Vec<Instance>) -> Vec<Instance> {
        let all = instances.len();
        instances.retain(|instance| instance.fleet == self.name);
        if let Some(listing) = self.listings.get_mut(provider) {
            listing.foreign_count = all - instances.len();
        }
        let last = self.operation_last;
        let is_ours = |id: &OperationId| id.0.saturating_sub(last.0) <= OPERATION_LEAP_MAX;
        let seen = instances.iter().map(|instance| instance.operation).filter(is_ours).max();
        self.operation_last = last.max(seen.unwrap_or(last));
        instances
    }

    /// Looks at a listing of `provider`, less what is another fleet's.
    pub(super) fn watch_orphans(
        &mut self,
        now: Mono,
        provider: &str,
        instances: &[Instance],
        out: &mut Vec<Action>,
    ) {
        let visibility = self.timing.visibility;
        let unknown: Vec<&Instance> =
            instances.iter().filter(|one| !self.nodes.contains_key(&one.node)).collect();
        // A hold does not end by one listing that lags.
        let is_held = self.listings.get(provider).is_some_and(|listing| listing.orphans_held.is_some());
        let nodes = &self.nodes;
        self.unowned.retain(|id, orphan| {
            let may_lag = is_held && now.since(orphan.seen_at) < visibility && !nodes.contains_key(id);
            orphan.provider != provider || may_lag || unknown.iter().any(|instance| instance.node == *id)
        });
        for Instance { node, operation, state, fleet: _ } in unknown {
            let orphan = self.unowned.entry(node.clone()).or_insert_with(|| Orphan {
                provider: provider.to_owned(),
                operation: *operation,
                state: *state,
                since: now,
                seen_at: now,
                is_told: false,
                is_condemned: false,
            });
            (orphan.state, orphan.seen_at) = (*state, now);
        }
        self.tell_orphans(now, provider, out);
        self.hold_orphans(provider, out);
        if self.is_settled() {
            self.adopt_speaking(now, provider, out);
            self.take_over_one(now, provider, out);
        }
    }

    pub(super) fn orphan_asked(
        &mut self,
        now: Mono,
        id: &NodeId,
        wish: OrphanWish,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        let Some(orphan) = self.unowned.get_mut(id) else { return };
        let provider = orphan.provider.clone();
        match wish {
            OrphanWish::Adopt { deployment } => {
                let is_known = self.deployments.get(&deployment);
                if is_known.is_some_and(|wanted| wanted.deployment.provider == provider) {
                    self.adopt(now, id, deployment, &format!("asked for: {reason}"), out);
                }
            }
            OrphanWish::Terminate => {
                orphan.is_condemned = true;
                self.note(Some(id), Severity::Info, "asked", format!("to be given back: {reason}"), out);
            }
        }
        self.hold_orphans(&provider, out);
        if let Some(listing) = self.listings.get_mut(&provider) {
            listing.next_at = now;
        }
    }

    pub(super) fn orphan_views(&self, now: Mono) -> Vec<OrphanView> {
        let view = |(id, orphan): (&NodeId, &Orphan)| {
            let hold = self.listings.get(&orphan.provider).and_then(|listing| listing.orphans_held.clone());
            let is_held = hold.is_some() && !orphan.is_condemned;
            let due = if orphan.is_condemned { now } else { orphan.since + self.timing.orphan_grace };
            let reason = match hold {
                _ if orphan.is_condemned => "an operator wants it gone".to_owned(),
                Some(hold) => hold,
                None => "no row and no open operation knows it".to_owned(),
            };
            OrphanView {
                node: id.clone(),
                provider: orphan.provider.clone(),
                operation: orphan.operation,
                since: orphan.since,
                terminate_at: (!is_held).then_some(due),
                deployment: self.home_of(id, &orphan.provider),
                is_speaking: self.guests.contains_key(id),
                reason,
            }
        };
        self.unowned.iter().filter(|(_, orphan)| orphan.is_told).map(view).collect()
    }

    fn tell_orphans(&mut self, now: Mono, provider: &str, out: &mut Vec<Action>) {
        let (visibility, grace) = (self.timing.visibility, self.timing.orphan_grace);
        let mut told = Vec::new();
        for (id, orphan) in self.unowned.iter_mut().filter(|(_, orphan)| orphan.provider == provider) {
            if now.since(orphan.since) >= visibility && !std::mem::replace(&mut orphan.is_told, true) {
                let text = format!(
                    "a VM at {provider}, of operation {}, has no row; it is given back {} after it was first seen",
                    orphan.operation,
                    span(grace)
                );
                told.push((id.clone(), text));
            }
        }
        for (id, text) in told {
            self.note(Some(&id), Severity::Alert, "orphan", text, out);
        }
    }

    /// Begins or ends the hold. Once begun it lasts until every orphan was decided about or is gone: rows that are
    /// launched anew meanwhile say nothing about the old ones.
    fn hold_orphans(&mut self, provider: &str, out: &mut Vec<Action>) {
        let is_counted =
            |orphan: &&Orphan| orphan.provider == provider && orphan.is_told && !orphan.is_condemned;
        let count = self.unowned.values().filter(is_counted).count();
        let rows = self.nodes_of(provider).len();
        let Some(listing) = self.listings.get_mut(provider) else { return };
        match &listing.orphans_held {
            None if count >= HELD_FROM && 2 * count >= rows => {
                let text = format!(
                    "{count} VMs at {provider} have no row, beside {rows} that have one: rows may be lost, so none is \
                     given back until `cic orphans adopt` or `cic orphans terminate` says so, or the store is restored"
                );
                listing.orphans_held = Some(text.clone());
                self.note(None, Severity::Alert, "orphans-held", text, out);
            }
            Some(text) if count == 0 => {
                let text = text.clone();
                listing.orphans_held = None;
                self.note(None, Severity::Info, "hold-released", text, out);
            }
            None | Some(_) => {}
        }
    }

    /// An orphan whose agent speaks, under a certificate of this fleet, is taken in where the deployment that launched
    /// it lacks a node: both its cloud and its key say that it is ours, and launching another would be dearer.
    fn adopt_speaking(&mut self, now: Mono, provider: &str, out: &mut Vec<Action>) {
        let speaks = |(id, orphan): &(&NodeId, &Orphan)| {
            let is_whole = orphan.provider == provider && orphan.is_told && !orphan.is_condemned;
            is_whole && orphan.state == InstanceState::Running && self.guests.contains_key(*id)
        };
        let speaking: Vec<NodeId> = self.unowned.iter().filter(speaks).map(|(id, _)| id.clone()).collect();
        for id in speaking {
            let Some(name) = self.birthplace(&id, provider) else { continue };
            if self.staying(now, &name) < self.wanted_count(&name) {
                self.adopt(now, &id, name, "it speaks, and a node is wanted", out);
            }
        }
    }

    fn adopt(&mut self, now: Mono, id: &NodeId, name: DeploymentName, why: &str, out: &mut Vec<Action>) {
        if self.take_in(now, id, name.clone(), None, out) {
            self.tell(now, id, Severity::Info, "adopted", format!("a node of {name} again: {why}"), out);
            self.greet(now, id, out);
        }
    }

    /// One at a time becomes a node that is to go, and passes the plan and its brake.
    fn take_over_one(&mut self, now: Mono, provider: &str, out: &mut Vec<Action>) {
        let is_unowned = |node: &Node| node.leaving.as_ref().is_some_and(|it| it.cause == Cause::Unowned);
        if self.nodes_of(provider).iter().filter_map(|id| self.nodes.get(id)).any(is_unowned) {
            return;
        }
        let is_held = self.listings.get(provider).is_some_and(|listing| listing.orphans_held.is_some());
        let is_due = |(_, orphan): &(&NodeId, &Orphan)| {
            let is_over = now.since(orphan.since) >= self.timing.orphan_grace && !is_held;
            orphan.provider == provider && (orphan.is_condemned || is_over)
        };
        let Some((id, orphan)) = self.unowned.iter().find(is_due) else { return };
        let (id, operation, seen_for) = (id.clone(), orphan.operation, now.since(orphan.since));
        let any = self.deployments.values().find(|wanted| wanted.deployment.provider == provider);
        let any = any.map(|wanted| wanted.deployment.name.clone());
        let Some(name) = self.birthplace(&id, provider).or(any) else { return };
        let reason = format!("a VM of operation {operation} without a row, seen for {}", span(seen_for));
        let leaving = Leaving { cause: Cause::Unowned, reason: reason.clone() };
        if self.take_in(now, &id, name, Some(leaving), out) {
            self.tell(now, &id, Severity::Alert, "unowned", reason, out);
            self.greet(now, &id, out);
        }
    }

    /// Gives an orphan a row. The cloud has just shown it.
    fn take_in(
        &mut self,
        now: Mono,
        id: &NodeId,
        name: DeploymentName,
        leaving: Option<Leaving>,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(wanted) = self.deployments.get(&name) else { return false };
        let zone = wanted.deployment.zone.clone();
        if self.nodes.contains_key(id) {
            return false;
        }
        let Some(orphan) = self.unowned.remove(id) else { return false };
        let record = NodeRecord {
            node: id.clone(),
            role: Role::Replica,
            deployment: Some(name),
            zone,
            address: None,
            incarnation: Incarnation(0),
            launched_by: Some(orphan.operation),
            predecessors: Vec::new(),
            keeps_checkpoints: false,
            is_read: false,
            asked: None,
        };
        out.push(Action::SaveNode(record.clone()));
        let mut node = Node::new(now, record);
        node.leaving = leaving;
        node.cloud.said(
            now,
            match orphan.state {
                InstanceState::Running => Cloud::Running,
                InstanceState::Stopped => Cloud::Stopped,
            },
        );
        self.nodes.insert(id.clone(), node);
        self.is_dirty = true;
        self.touch(id);
        true
    }

    /// Its agent, if it is connected, is heard as if it had connected now.
    fn greet(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        if let Some(hello) = self.guests.remove(id) {
            self.connected(now, hello, out);
        }
    }

    /// The deployment in whose cluster it is named.
    fn birthplace(&self, id: &NodeId, provider: &str) -> Option<DeploymentName> {
        let (cluster, _) = ClusterName::parse_node(id).ok()?;
        let is_its =
            |deployment: &super::Deployment| deployment.provider == provider && deployment.cluster == cluster;
        let mut all = self.deployments.values().map(|wanted| &wanted.deployment);
        all.find(|deployment| is_its(deployment)).map(|deployment| deployment.name.clone())
    }

    /// The same, or the only one there is at this provider.
    fn home_of(&self, id: &NodeId, provider: &str) -> Option<DeploymentName> {
        let mut all = self.deployments.values().filter(|wanted| wanted.deployment.provider == provider);
        let only = all.next().filter(|_| all.next().is_none());
        self.birthplace(id, provider).or_else(|| only.map(|wanted| wanted.deployment.name.clone()))
    }
}
