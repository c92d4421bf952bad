//! The routing table: which nodes serve which model, as the leader last concluded.

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, NodeId, Term};

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
