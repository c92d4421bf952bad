//! What people are shown: a snapshot taken after a step, read by the API and the tables.

use cic_common::id::{DeploymentName, Incarnation, NodeId, Term};
use cic_common::report::{NodeReport, Role};
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

use super::belief::{Belief, Cloud, Freshness};
use super::deployment::Deployment;
use super::operation::Operation;
use super::orphan::OrphanView;
use super::xid::XidCount;

/// One node as the controller sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: NodeId,
    pub role: Role,
    pub deployment: Option<DeploymentName>,
    pub zone: String,
    pub address: Option<String>,
    pub incarnation: Incarnation,
    pub belief: Belief,
    pub belief_since: Mono,
    /// The evidence behind the belief, in one line.
    pub why: String,
    pub push: Freshness,
    pub poll: Freshness,
    pub cloud: Cloud,
    pub is_routed: bool,
    /// Why this node is to go, when it is.
    pub leaving: Option<String>,
    pub report: Option<NodeReport>,
    /// What was seen and concluded, oldest first.
    pub trail: Vec<(Mono, String)>,
}

/// One deployment and how it fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentView {
    pub deployment: Deployment,
    pub serving: u16,
    /// They say that they serve, and nothing of their engines' work moves.
    #[serde(default)]
    pub stalled: u16,
    /// On their way to serving, launches not yet answered included.
    pub coming: u16,
    pub leaving: u16,
}

/// The whole fleet at one moment.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub now: Mono,
    pub term: Term,
    /// False until the settle time after a start has passed.
    pub is_settled: bool,
    /// Why irreversible acts are held, when they are.
    pub holds: Vec<String>,
    /// Providers whose newest listing failed.
    #[serde(default)]
    pub blind_providers: Vec<String>,
    pub nodes: Vec<NodeView>,
    pub deployments: Vec<DeploymentView>,
    /// Those still open.
    pub operations: Vec<Operation>,
    pub routes: RoutingTable,
    /// XIDs that nodes told of since this controller started.
    #[serde(default)]
    pub xids: Vec<XidCount>,
    /// VMs of this fleet that no row knows.
    #[serde(default)]
    pub orphans: Vec<OrphanView>,
    /// VMs of other fleets in the last listings. Nothing is done about them.
    #[serde(default)]
    pub foreign_count: usize,
}

#[cfg(test)]
impl NodeView {
    /// A replica that is alive and routed, without a report.
    pub(crate) fn sample(name: &str) -> Self {
        Self {
            node: NodeId::new(name).expect("a label"),
            role: Role::Replica,
            deployment: None,
            zone: "here".to_owned(),
            address: None,
            incarnation: Incarnation(1),
            belief: Belief::Alive,
            belief_since: Mono::from_millis(3_000),
            why: "pushes and answers".to_owned(),
            push: Freshness::Fresh,
            poll: Freshness::Fresh,
            cloud: Cloud::Running,
            is_routed: true,
            leaving: None,
            report: None,
            trail: Vec::new(),
        }
    }
}
