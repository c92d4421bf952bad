//! The routing table: which nodes serve which model, as the leader last concluded; and what turns one into the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, NodeId, Term};
use crate::routing::Routing;

mod packed;

/// How a request is to be treated where not all can be treated alike. Later ones are shed first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A person waits for each token.
    LatencyCritical,
    #[default]
    Standard,
    /// Nobody waits: may be put off, and goes where it is cheap.
    Batch,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::LatencyCritical, Self::Standard, Self::Batch];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LatencyCritical => "latency_critical",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }

    /// The class of that name; `-` counts as `_`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.replace('-', "_");
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }
}

/// One replica an edge may send requests to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub node: NodeId,
    /// `host:port` of the node's mTLS port. The name to verify there is the node id, never this address.
    pub address: String,
    /// Where it is, as far as the controller knows.
    #[serde(default)]
    pub zone: Option<String>,
    /// The GPU in its cluster's name (`h100`); `None` also for a node without one.
    #[serde(default)]
    pub gpu: Option<String>,
}

/// The replicas of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub deployment: DeploymentName,
    /// Name clients ask for.
    pub model: String,
    #[serde(with = "packed")]
    pub replicas: Vec<Replica>,
    #[serde(default)]
    pub routing: Routing,
}

/// Which table it is: a newer one is greater.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edition {
    pub term: Term,
    pub version: u64,
}

/// All routes, ordered by deployment, and the replicas of each by node. An older edition never replaces a newer one.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingTable {
    pub term: Term,
    pub version: u64,
    pub routes: Vec<Route>,
}

impl RoutingTable {
    /// Whether this table may replace `current`.
    #[must_use]
    pub fn supersedes(&self, current: &Self) -> bool {
        self.edition() > current.edition()
    }

    #[must_use]
    pub fn edition(&self) -> Edition {
        Edition { term: self.term, version: self.version }
    }
}

/// What turns one edition into a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingChanges {
    pub from: Edition,
    pub to: Edition,
    /// Deployments that have no route any more.
    pub removed: Vec<DeploymentName>,
    /// Routes that are new or differ.
    pub changed: Vec<RouteChange>,
}

/// What of one route differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteChange {
    pub deployment: DeploymentName,
    pub model: String,
    pub routing: Routing,
    /// Nodes that serve it no more.
    #[serde(with = "packed::names")]
    pub removed: Vec<NodeId>,
    /// Replicas that are new or differ.
    #[serde(with = "packed")]
    pub set: Vec<Replica>,
}

/// The changes begin with another table than the one at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes from table {from:?} cannot be made to table {at_hand:?}")]
pub struct OutOfStep {
    pub from: Edition,
    pub at_hand: Edition,
}

impl RoutingChanges {
    #[must_use]
    pub fn between(old: &RoutingTable, new: &RoutingTable) -> Self {
        let known: BTreeMap<&DeploymentName, &Route> =
            old.routes.iter().map(|route| (&route.deployment, route)).collect();
        let wanted: BTreeMap<&DeploymentName, &Route> =
            new.routes.iter().map(|route| (&route.deployment, route)).collect();
        let changed =
            wanted.values().filter_map(|route| RouteChange::of(known.get(&route.deployment), route));
        let removed = known.keys().filter(|name| !wanted.contains_key(*name)).map(|name| (*name).clone());
        Self {
            from: old.edition(),
            to: new.edition(),
            removed: removed.collect(),
            changed: changed.collect(),
        }
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// When `table` is not the one that they begin with; it stays as it is.
    pub fn apply_to(self, table: &mut RoutingTable) -> Result<(), OutOfStep> {
        if table.edition() != self.from {
            return Err(OutOfStep { from: self.from, at_hand: table.edition() });
        }
        table.routes.retain(|route| !self.removed.contains(&route.deployment));
        for change in self.changed {
            match table.routes.binary_search_by(|route| route.deployment.cmp(&change.deployment)) {
                Ok(at) => change.apply_to(&mut table.routes[at]),
                Err(at) => table.routes.insert(at, change.into_route()),
            }
        }
        (table.term, table.version) = (self.to.term, self.to.version);
        Ok(())
    }
}

impl RouteChange {
    /// `None` where nothing differs.
    fn of(old: Option<&&Route>, new: &Route) -> Option<Self> {
        let old_replicas = old.map_or(&[][..], |route| &route.replicas);
        let known: BTreeMap<&NodeId, &Replica> =
            old_replicas.iter().map(|replica| (&replica.node, replica)).collect();
        let is_new = |replica: &&Replica| known.get(&replica.node).is_none_or(|known| known != replica);
        let set: Vec<Replica> = new.replicas.iter().filter(is_new).cloned().collect();
        let mut removed = Vec::new();
        if old_replicas.len() + set.len() > new.replicas.len() {
            let stay: std::collections::BTreeSet<&NodeId> =
                new.replicas.iter().map(|replica| &replica.node).collect();
            removed.extend(known.keys().filter(|node| !stay.contains(*node)).map(|node| (*node).clone()));
        }
        let is_same = old.is_some_and(|old| old.model == new.model && old.routing == new.routing);
        if is_same && removed.is_empty() && set.is_empty() {
            return None;
        }
        let (deployment, model, routing) = (new.deployment.clone(), new.model.clone(), new.routing.clone());
        Some(Self { deployment, model, routing, removed, set })
    }

    fn apply_to(self, route: &mut Route) {
        (route.model, route.routing) = (self.model, self.routing);
        if self.removed.is_empty() && self.set.is_empty() {
            return;
        }
        let mut replicas: BTreeMap<NodeId, Replica> =
            route.replicas.drain(..).map(|replica| (replica.node.clone(), replica)).collect();
        for node in &self.removed {
            replicas.remove(node);
        }
        replicas.extend(self.set.into_iter().map(|replica| (replica.node.clone(), replica)));
        route.replicas = replicas.into_values().collect();
    }

    fn into_route(self) -> Route {
        let Self { deployment, model, routing, removed: _, set: replicas } = self;
        Route { deployment, model, replicas, routing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_table_never_replaces_a_newer_one() {
        let table = |term, version| RoutingTable { term: Term(term), version, routes: Vec::new() };
        for (new, current, wins) in [
            (table(1, 2), table(1, 1), true),
            (table(1, 1), table(1, 1), false),
            (table(2, 1), table(1, 9), true),
            (table(1, 9), table(2, 1), false),
        ] {
            assert_eq!(new.supersedes(&current), wins);
        }
    }

    /// Deployment, model, and each replica's node and address.
    type Known<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

    fn table_of(version: u64, routes: &[Known<'_>]) -> RoutingTable {
        let route = |(deployment, model, replicas): &Known<'_>| Route {
            deployment: DeploymentName::new(*deployment).expect("a label"),
            model: (*model).to_owned(),
            replicas: replicas
                .iter()
                .map(|(node, address)| Replica {
                    node: NodeId::new(*node).expect("a label"),
                    address: (*address).to_owned(),
                    zone: None,
                    gpu: None,
                })
                .collect(),
            routing: Routing::default(),
        };
        RoutingTable { term: Term(1), version, routes: routes.iter().map(route).collect() }
    }

    #[test]
    fn changes_turn_any_table_into_any_other_and_name_only_what_differs() {
        let full: &[Known<'_>] = &[("a", "m", &[("n1", "x"), ("n2", "x")]), ("b", "m2", &[("n3", "x")])];
        let tables: [&[Known<'_>]; 7] = [
            &[],
            full,
            &[("a", "m", &[("n2", "x")]), ("b", "m2", &[("n3", "x")])],
            &[("a", "m", &[("n0", "x"), ("n1", "x"), ("n2", "y")]), ("b", "m2", &[])],
            &[("b", "other", &[("n3", "x")])],
            &[("a", "m", &[("n1", "x"), ("n2", "x")]), ("aa", "m", &[]), ("b", "m2", &[("n3", "x")])],
            &[("c", "m", &[("n9", "x")])],
        ];
        for old in tables {
            for new in tables {
                let (old, new) = (table_of(1, old), table_of(2, new));
                let changes = RoutingChanges::between(&old, &new);
                let mut changed = old.clone();
                assert_eq!(changes.apply_to(&mut changed), Ok(()));
                assert_eq!(changed, new);
            }
        }
        let without_one = table_of(2, &[("a", "m", &[("n2", "x")]), ("b", "m2", &[("n3", "x")])]);
        let changes = RoutingChanges::between(&table_of(1, full), &without_one);
        let named = |change: &RouteChange| (change.removed.len(), change.set.len());
        assert_eq!(changes.changed.iter().map(named).collect::<Vec<_>>(), [(1, 0)]);
    }

    #[test]
    fn changes_of_another_table_are_refused_and_leave_it_alone() {
        let (old, new) = (table_of(4, &[]), table_of(5, &[("a", "m", &[])]));
        let mut other = table_of(3, &[("z", "m", &[])]);
        let refused = RoutingChanges::between(&old, &new).apply_to(&mut other);
        assert_eq!(refused, Err(OutOfStep { from: old.edition(), at_hand: other.edition() }));
        assert_eq!(other, table_of(3, &[("z", "m", &[])]));
    }
}
