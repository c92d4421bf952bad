//! What an operator wants: a model with a number of replicas.

use cic_common::assignment::{Assignment, EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, NodeId};
use cic_common::name::{ClusterName, NameError};
use serde::{Deserialize, Serialize};

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
}

impl Deployment {
    /// The node id after the last one handed out; opens the next cluster number after 999 nodes.
    ///
    /// # Errors
    /// When both the node and the cluster numbers of the day are used up.
    pub fn next_node(&mut self) -> Result<NodeId, NameError> {
        if self.node_next > 999 {
            let ClusterName { provider, region, gpu, pricing, date, seq } = &self.cluster;
            self.cluster = ClusterName::new(provider, region, gpu, pricing, date, seq.saturating_add(1))?;
            self.node_next = 1;
        }
        let node = self.cluster.node(self.node_next.max(1))?;
        self.node_next = self.node_next.max(1) + 1;
        Ok(node)
    }

    /// What each of its nodes is told to run.
    #[must_use]
    pub fn assignment(&self) -> Assignment {
        Assignment { deployment: self.name.clone(), model: self.model.clone(), engine: self.engine.clone() }
    }
}
