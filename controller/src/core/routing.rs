//! The route-out verdict: cheap, reversible, and told to every agent at once.

use cic_common::id::NodeId;
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
        let routes: Vec<Route> = self.deployments.values().map(|wanted| self.route(wanted)).collect();
        if routes == self.routes.routes && self.routes.term == self.term {
            return;
        }
        self.routes.version += 1;
        self.routes.term = self.term;
        self.routes.routes = routes;
        out.push(Action::PublishRoutes(self.routes.clone()));
        self.tell_changes(now, out);
    }

    fn route(&self, wanted: &super::fleet::Wanted) -> Route {
        let name = &wanted.deployment.name;
        let members =
            || self.nodes.iter().filter(move |(_, node)| node.record.deployment.as_ref() == Some(name));
        let mut chosen: Vec<_> = members().filter(|(_, node)| is_usable(node)).collect();
        if chosen.is_empty() {
            // Silence alone never empties a route: the edges may reach what this controller cannot.
            chosen = members().filter(|(_, node)| node.is_routed && node.belief == Belief::Silent).collect();
        }
        let replica = |(id, node): (&NodeId, &Node)| {
            Some(Replica { node: id.clone(), address: node.record.address.clone()? })
        };
        Route {
            deployment: name.clone(),
            model: wanted.deployment.model.name.clone(),
            replicas: chosen.into_iter().filter_map(replica).collect(),
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
                (
                    id.clone(),
                    node.is_routed,
                    format!("table {}: believed {}, {phase}", self.routes.version, node.belief),
                )
            })
            .collect();
        for (id, is_in, text) in changed {
            let kind = if is_in { "route-in" } else { "route-out" };
            self.tell(now, &id, Severity::Info, kind, text, out);
        }
    }
}

fn is_usable(node: &Node) -> bool {
    node.is_serving() && node.draining_since.is_none()
}
