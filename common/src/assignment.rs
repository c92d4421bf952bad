//! What a node is told to run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, NodeId};

/// The model a deployment serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name clients ask for.
    pub name: String,
    /// Directory on the node that holds `config.json` and the safetensors shards.
    pub path: String,
}

/// How the engine is started: `PROGRAM serve MODEL --served-model-name NAME --host … --port … ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSpec {
    /// `vllm`, or an absolute path.
    pub program: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A node in whose place another one stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    pub node: NodeId,
    /// Its VM is no more: it will write no other checkpoint.
    pub is_gone: bool,
}

/// One node's part in one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub deployment: DeploymentName,
    pub model: ModelSpec,
    pub engine: EngineSpec,
}
