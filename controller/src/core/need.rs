//! A deployment in need: users ask an edge for it, the edge reaches no replica, and none is known to serve here.
//!
//! Silence alone is waited out, since this controller may be the one cut off. An edge is a second witness on another
//! path: while its word lasts and nobody is believed to serve, what is silent no longer counts as there, so that the
//! plan launches in its place at once. An edge may be wrong, or lie. Its word therefore changes nothing beside a node
//! that serves, launches no more than is wanted, passes the brake's limit of launches like any other, and takes no part in
//! any removal (docs/decisions/0018-what-an-edges-word-buys.md).

use std::time::Duration;

use cic_common::id::{DeploymentName, NodeId};
use cic_common::time::Mono;

use super::Action;
use super::Hold;
use super::belief::Belief;
use super::fleet::Fleet;
use super::node::Node;
use super::trail::Severity;

/// How long an edge's word counts. An edge repeats it each 5 s while requests go unserved, so that two may be lost.
const WORD_LASTS: Duration = Duration::from_secs(15);

/// How long everything must be silent before an edge's word hastens a launch: an agent that is killed or upgraded is
/// refused at once, and speaks again within 3 s. The edge's next word looks again.
const SILENT_FOR: Duration = Duration::from_secs(5);

impl Fleet {
    /// Takes in an edge's word. It is logged when it begins, not each time it is repeated.
    pub(super) fn replicas_missing(
        &mut self,
        now: Mono,
        edge: &NodeId,
        model: &str,
        text: &str,
        out: &mut Vec<Action>,
    ) {
        let is_of = |name: &&DeploymentName| {
            self.deployments.get(*name).is_some_and(|wanted| wanted.deployment.model.name == model)
        };
        let names: Vec<DeploymentName> = self.deployments.keys().filter(is_of).cloned().collect();
        for name in names {
            let serving = self.members(&name).filter(|(_, node)| node.is_serving()).count();
            let Some(wanted) = self.deployments.get_mut(&name) else { continue };
            let is_news = wanted.missing_at.is_none_or(|at| now.since(at) >= WORD_LASTS);
            wanted.missing_at = Some(now);
            if is_news {
                let belief = match serving {
                    0 => "nobody is believed to serve: what is silent is replaced at once".to_owned(),
                    some => format!("{some} are believed to serve: nothing is done about it"),
                };
                let text = format!("{text}; of {name}, {belief}");
                self.tell(now, edge, Severity::Warning, "replicas-missing", text, out);
            }
        }
    }

    /// Whether an edge lately said that the deployment's replicas are missing, and none serves, or did a moment ago, by
    /// what is believed.
    pub(super) fn is_in_need(&self, now: Mono, name: &DeploymentName) -> bool {
        let said_at = self.deployments.get(name).and_then(|wanted| wanted.missing_at);
        let is_said = said_at.is_some_and(|at| now.since(at) < WORD_LASTS);
        let serves = |node: &Node| node.is_serving() || is_fresh_silence(now, node);
        let model = |name| self.deployments.get(name).map(|wanted| &wanted.deployment.model.name);
        // Whoever serves the model under another name, as a canary's elder, serves it.
        let mut alike = self.deployments.keys().filter(|other| model(*other) == model(name));
        is_said && !alike.any(|other| self.members(other).any(|(_, node)| serves(node)))
    }

    /// Nodes of the deployment that are there or coming, as far as launches go by them.
    pub(super) fn staying(&self, now: Mono, name: &DeploymentName) -> usize {
        let is_in_need = self.is_in_need(now, name);
        let counts = |node: &Node| node.leaving.is_none() && !(is_in_need && is_unheard(node));
        self.members(name).filter(|(_, node)| counts(node)).count()
    }

    /// A silent node that a launch decided now replaces without waiting; `None` where launches need no such reason.
    pub(super) fn replaced_at_once(&self, now: Mono, name: &DeploymentName) -> Option<NodeId> {
        if !self.is_in_need(now, name) {
            return None;
        }
        let is_open = |id: &NodeId| !self.is_taken(id);
        let unheard =
            |(id, node): &(&NodeId, &Node)| node.leaving.is_none() && is_unheard(node) && is_open(id);
        self.members(name).find(unheard).map(|(id, _)| id.clone())
    }

    /// The brake's word on one more launch for the deployment.
    pub(super) fn may_launch(
        &mut self,
        now: Mono,
        name: &DeploymentName,
        zone: &str,
        pending: usize,
    ) -> Result<(), Hold> {
        let is_in_need = self.is_in_need(now, name);
        let Some(wanted) = self.deployments.get(name) else { return Ok(()) };
        let provider = wanted.deployment.provider.clone();
        if is_in_need {
            return self.brake.may_launch_in_need(now, &provider, pending);
        }
        self.brake.may_launch(now, &provider, zone, pending)
    }
}

fn is_fresh_silence(now: Mono, node: &Node) -> bool {
    node.belief == Belief::Silent && node.may_serve() && now.since(node.belief_since) < SILENT_FOR
}

/// Neither heard nor on its first way: one that was just launched is coming, however quiet it is.
fn is_unheard(node: &Node) -> bool {
    match node.belief {
        Belief::Silent => true,
        Belief::Unknown => node.record.incarnation.0 > 0,
        Belief::Alive | Belief::SuspectPoll | Belief::SuspectPush | Belief::Gone => false,
    }
}
