//! The route-out verdict: cheap, reversible, and told to every agent at once.
//!
//! The table holds the replicas of the best fitness that any has, so that a stalled one is out while another's work
//! moves, and no fault short of an end empties a route.

use cic_common::id::NodeId;
use cic_common::name::ClusterName;
use cic_common::report::Phase;
use cic_common::route::{Replica, Route};
use cic_common::time::Mono;

use super::Action;
use super::belief::Belief;
use super::fleet::Fleet;
use super::node::Node;
use super::trail::Severity;

impl Fleet {
    /// Draws the routing table from the beliefs and publishes it if it changed.
    pub(super) fn publish_routes(&mut self, now: Mono, out: &mut Vec<Action>) {
        let routes: Vec<Route> = self.deployments.values().map(|wanted| self.route(now, wanted)).collect();
        if routes == self.routes.routes && self.routes.term == self.term {
            return;
        }
        self.routes.version += 1;
        self.routes.term = self.term;
        self.routes.routes = routes;
        out.push(Action::PublishRoutes(self.routes.clone()));
        self.tell_changes(now, out);
    }

    fn route(&self, now: Mono, wanted: &super::fleet::Wanted) -> Route {
        let name = &wanted.deployment.name;
        let members =
            || self.nodes.iter().filter(move |(_, node)| node.record.deployment.as_ref() == Some(name));
        let best = members().filter_map(|(_, node)| fitness(now, node)).min();
        let chosen = members().filter(|(_, node)| best.is_some() && fitness(now, node) == best);
        Route {
            deployment: name.clone(),
            model: wanted.deployment.model.name.clone(),
            replicas: chosen.filter_map(|(id, node)| replica(id, node)).collect(),
            routing: wanted.deployment.routing.clone(),
        }
    }

    fn tell_changes(&mut self, now: Mono, out: &mut Vec<Action>) {
        let routed: std::collections::BTreeSet<NodeId> =
            self.routes.routes.iter().flat_map(|route| &route.replicas).map(|r| r.node.clone()).collect();
        let changed: Vec<(NodeId, bool, String)> = self
            .nodes
            .iter_mut()
            .filter(|(id, node)| node.is_routed != routed.contains(*id))
            .map(|(id, node)| {
                node.is_routed = !node.is_routed;
                let phase = node.phase().map_or("no report", Phase::as_str);
                let stall = if node.is_stalled() { ", its engine stalled" } else { "" };
                let text = format!("table {}: believed {}, {phase}{stall}", self.routes.version, node.belief);
                (id.clone(), node.is_routed, text)
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
