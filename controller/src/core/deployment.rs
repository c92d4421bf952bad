//! What an operator wants: a model with a number of replicas.

use cic_common::assignment::{Assignment, EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, NodeId};
use cic_common::name::{ClusterName, NameError};
use cic_common::routing::Routing;
use serde::{Deserialize, Serialize};

use super::price::UsdPerHour;

/// A named model with wanted replicas, and the cluster its nodes are launched in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub name: DeploymentName,
    pub model: ModelSpec,
    pub engine: EngineSpec,
    /// Replicas that should serve. Zero empties the deployment.
    pub replicas: u16,
    /// The brake never lets a removal take the serving count below this while more exist to keep.
    pub replicas_min: u16,
    /// Provider that launches its nodes: `local`.
    pub provider: String,
    pub zone: String,
    pub cluster: ClusterName,
    /// Number of the next node in `cluster`, 1 to 999.
    pub node_next: u16,
    /// What the edges are told about choosing among its replicas. A change needs no other node.
    #[serde(default)]
    pub routing: Routing,
    /// The most that one of its VMs may cost; a launch carries it to the provider.
    #[serde(default)]
    pub price_limit_usd_per_hour: Option<UsdPerHour>,
}

impl Deployment {
    /// The node id after the last one handed out; after 999 nodes the first of the cluster that follows `seq_last`,
    /// the highest number any deployment uses.
    ///
    /// # Errors
    /// When both the node and the cluster numbers of the day are used up.
    pub fn next_node(&mut self, seq_last: u16) -> Result<NodeId, NameError> {
        if self.node_next > 999 {
            let ClusterName { provider, region, gpu, pricing, date, seq } = &self.cluster;
            let seq = seq_last.max(*seq).saturating_add(1);
            self.cluster = ClusterName::new(provider, region, gpu, pricing, date, seq)?;
            self.node_next = 1;
        }
        let node = self.cluster.node(self.node_next.max(1))?;
        self.node_next = self.node_next.max(1) + 1;
        Ok(node)
    }

    /// The same, past the names that some VM has: a store that was restored from before knows less than the provider.
    ///
    /// # Errors
    /// As [`Self::next_node`].
    pub(super) fn next_unused(
        &mut self,
        seq_last: u16,
        is_used: impl Fn(&NodeId) -> bool,
    ) -> Result<NodeId, NameError> {
        loop {
            let node = self.next_node(seq_last)?;
            if !is_used(&node) {
                return Ok(node);
            }
        }
    }

    /// What each of its nodes is told to run.
    #[must_use]
    pub fn assignment(&self) -> Assignment {
        Assignment { deployment: self.name.clone(), model: self.model.clone(), engine: self.engine.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn one_that_was_stored_before_there_was_a_routing_section_loads_with_its_defaults() {
        let stored = r#"{"name":"a","model":{"name":"m","path":"/m"},"engine":{"program":"vllm","args":[],"env":{}},
            "replicas":1,"replicas_min":0,"provider":"local","zone":"here",
            "cluster":"cic-local-here-none-dev-20261124-001","node_next":1}"#;
        let loaded: Deployment = serde_json::from_str(stored).unwrap();
        assert_eq!((&loaded.routing, loaded.price_limit_usd_per_hour), (&Routing::default(), None));
        let mut newer = serde_json::to_value(&loaded).unwrap();
        newer["routing"] = serde_json::json!({ "weight": 7, "of_a_later_version": 1 });
        let loaded: Deployment = serde_json::from_value(newer).unwrap();
        assert_eq!(loaded.routing, Routing { weight: 7, ..Routing::default() });
    }

    #[test]
    fn after_999_nodes_no_other_deployments_names_are_handed_out() {
        let mut deployment = Deployment {
            name: DeploymentName::new("a").unwrap(),
            model: ModelSpec::at("m", "/m"),
            engine: EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: BTreeMap::new() },
            replicas: 1,
            replicas_min: 0,
            provider: "local".to_owned(),
            zone: "here".to_owned(),
            cluster: ClusterName::new("local", "here", "none", "dev", "20261124", 1).unwrap(),
            node_next: 999,
            routing: Routing::default(),
            price_limit_usd_per_hour: None,
        };
        let name = |node: Result<NodeId, NameError>| node.unwrap().to_string();
        assert_eq!(name(deployment.next_node(4)), "cic-local-here-none-dev-20261124-001-node999");
        assert_eq!(name(deployment.next_node(4)), "cic-local-here-none-dev-20261124-005-node001");
        assert_eq!(name(deployment.next_node(5)), "cic-local-here-none-dev-20261124-005-node002");
    }
}
