//! What the controller said at one moment: every fact a condition needs comes from the same answer.

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// One answer of `/v1/view`.
#[derive(Debug, Clone)]
pub struct View {
    pub term: u64,
    pub is_settled: bool,
    /// Operations still open.
    pub operations: Vec<Value>,
    /// Nodes that belong to a deployment.
    pub replicas: Vec<Value>,
}

impl View {
    /// # Errors
    /// When a part is missing: what is not said must not read as absence.
    pub(super) fn read(answer: &Value) -> anyhow::Result<Self> {
        let list = |key: &str| answer[key].as_array().with_context(|| format!("the view has no {key}"));
        let nodes = list("nodes")?;
        ensure!(nodes.iter().all(|node| node.get("deployment").is_some()), "a node says no deployment");
        Ok(Self {
            term: answer["term"].as_u64().context("the view has no term")?,
            is_settled: answer["is_settled"].as_bool().context("the view has no is_settled")?,
            operations: list("operations")?.clone(),
            replicas: nodes.iter().filter(|node| !node["deployment"].is_null()).cloned().collect(),
        })
    }

    /// One replica.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Value> {
        self.replicas.iter().find(|node| node["node"] == name)
    }

    /// Whether the node is there and in the routing table.
    #[must_use]
    pub fn is_routed(&self, name: &str) -> bool {
        self.node(name).is_some_and(|node| node["is_routed"] == true)
    }

    /// Names of all replicas.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        names(self.replicas.iter())
    }

    /// Names of the replicas that serve and are routed.
    #[must_use]
    pub fn serving(&self) -> Vec<String> {
        let serves = |node: &&Value| node["is_routed"] == true && node["report"]["phase"] == "serving";
        names(self.replicas.iter().filter(serves))
    }
}

fn names<'a>(nodes: impl Iterator<Item = &'a Value>) -> Vec<String> {
    nodes.filter_map(|node| node["node"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_view_without_nodes_is_an_error_not_an_empty_fleet() {
        assert!(View::read(&Value::Null).is_err());
        assert!(View::read(&json!({ "error": { "message": "starting" } })).is_err());
        let none = json!({ "term": 1, "is_settled": true, "operations": [], "nodes": [] });
        assert!(View::read(&none).expect("a view").replicas.is_empty());
    }
}
