//! What a node is told to run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, NodeId};
pub use crate::source::Source;

/// The model a deployment serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name clients ask for.
    pub name: String,
    /// Directory on the node that holds `config.json` and the safetensors shards, or is filled with them.
    pub path: String,
    /// Where else they are to be had, in this order, when the directory is not there or not whole.
    #[serde(default)]
    pub sources: Vec<Source>,
}

impl ModelSpec {
    /// One that is at `path` or nowhere.
    #[must_use]
    pub fn at(name: &str, path: &str) -> Self {
        Self { name: name.to_owned(), path: path.to_owned(), sources: Vec::new() }
    }
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
