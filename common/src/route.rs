//! The routing table: which nodes serve which model, as the leader last concluded.

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, NodeId, Term};

/// One replica an edge may send requests to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub node: NodeId,
    /// `host:port` of the node's mTLS port. The name to verify there is the node id, never this address.
    pub address: String,
}

/// The replicas of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub deployment: DeploymentName,
    /// Name clients ask for.
    pub model: String,
    pub replicas: Vec<Replica>,
}

/// All routes. Ordered by (term, version): an older table never replaces a newer one.
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
        (self.term, self.version) > (current.term, current.version)
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
}
