//! The route-out verdict: cheap, reversible, and told to every agent at once.
//!
//! The table holds the replicas of the best fitness that any has, so that a stalled one is out while another's work
//! moves, and no fault short of an end empties a route.

use cic_common::id::{DeploymentName, NodeId};
use cic_common::name::ClusterName;
use cic_common::report::Phase;
use cic_common::route::{Replica, Route};
use cic_common::time::Mono;

use super::Action;
use super::belief::Belief;
use super::fleet::{Fleet, Wanted};
use super::node::Node;
use super::trail::Severity;

impl Fleet {
    /// Draws the routing table from the beliefs and publishes it if it changed.
    pub(super) fn publish_routes(&mut self, now: Mono, out: &mut Vec<Action>) {
        let is_same = |(wanted, route): (&Wanted, &Route)| self.is_route_of(now, wanted, route);
        let are_same = self.deployments.len() == self.routes.routes.len()
            && self.deployments.values().zip(&self.routes.routes).all(is_same);
        if are_same && self.routes.term == self.term {
            return;
        }
        self.routes.version += 1;
        self.routes.term = self.term;
        self.routes.routes = self.deployments.values().map(|wanted| self.route(now, wanted)).collect();
        out.push(Action::PublishRoutes(self.routes.clone()));
        self.tell_changes(now, out);
    }

    fn route(&self, now: Mono, wanted: &Wanted) -> Route {
        let chosen = self.chosen(now, &wanted.deployment.name);
        Route {
            deployment: wanted.deployment.name.clone(),
            model: wanted.deployment.model.name.clone(),
            replicas: chosen.filter_map(|(id, node)| replica(id, node)).collect(),
            routing: wanted.deployment.routing.clone(),
        }
    }

    /// Whether [`Self::route`] would draw just this one: asked at each change of any belief, so nothing is drawn for it.
    fn is_route_of(&self, now: Mono, wanted: &Wanted, route: &Route) -> bool {
        let known = &wanted.deployment;
        let reached = self.chosen(now, &known.name).filter(|(_, node)| node.record.address.is_some());
        let replica = |(id, node): (&NodeId, &Node), replica: &Replica| {
            let record = &node.record;
            *id == replica.node
                && record.address.as_ref() == Some(&replica.address)
                && record.zone == replica.zone.as_deref().unwrap_or_default()
        };
        let mut replicas = route.replicas.iter();
        route.deployment == known.name
            && route.model == known.model.name
            && route.routing == known.routing
            && reached.into_iter().all(|one| replicas.next().is_some_and(|other| replica(one, other)))
            && replicas.next().is_none()
    }

    /// Those of the best fitness that any has.
    fn chosen(&self, now: Mono, name: &DeploymentName) -> impl Iterator<Item = (&NodeId, &Node)> {
        let best = self.nodes.of(name).filter_map(|(_, node)| fitness(now, node)).min();
        self.nodes.of(name).filter(move |(_, node)| best.is_some() && fitness(now, node) == best)
    }

    fn tell_changes(&mut self, now: Mono, out: &mut Vec<Action>) {
        let routed: std::collections::BTreeSet<&NodeId> =
            self.routes.routes.iter().flat_map(|route| &route.replicas).map(|r| &r.node).collect();
        let changed: Vec<(NodeId, bool, String)> = self
            .nodes
            .values_mut()
            .filter(|node| node.is_routed != routed.contains(&node.record.node))
            .map(|node| {
                node.is_routed = !node.is_routed;
                let phase = node.phase().map_or("no report", Phase::as_str);
                let stall = if node.is_stalled() { ", its engine stalled" } else { "" };
                let text = format!("table {}: believed {}, {phase}{stall}", self.routes.version, node.belief);
                (node.record.node.clone(), node.is_routed, text)
            })
            .collect();
        for (id, is_in, text) in changed {
            let kind = if is_in { "route-in" } else { "route-out" };
            self.tell(now, &id, Severity::Info, kind, text, out);
        }
    }
}

/// `None` before its agent said where it can be reached.
fn replica(id: &NodeId, node: &Node) -> Option<Replica> {
    let zone = Some(node.record.zone.clone()).filter(|zone| !zone.is_empty());
    let gpu =
        ClusterName::parse_node(id).ok().and_then(|(cluster, _)| cluster.gpu_model().map(str::to_owned));
    Some(Replica { node: id.clone(), address: node.record.address.clone()?, zone, gpu })
}

/// What a replica would do with a request, the better first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    Works,
    /// It fell silent again and again, and has just returned.
    Flaps,
    /// Nothing of its engine's work moves: still better than no replica.
    Stalls,
    /// Routed before both its paths fell silent: the edges may reach what this controller cannot.
    Silent,
}

/// `None` for a node that has no place in the table whatever the others do.
fn fitness(now: Mono, node: &Node) -> Option<Fitness> {
    if node.is_serving() && node.draining_since.is_none() {
        let flaps = if node.flaps.is_out(now) { Fitness::Flaps } else { Fitness::Works };
        return Some(if node.is_stalled() { Fitness::Stalls } else { flaps });
    }
    (node.is_routed && node.belief == Belief::Silent).then_some(Fitness::Silent)
}
