//! The nodes, by id and by deployment: what asks for the nodes of one deployment looks at no other.

use std::collections::BTreeMap;

use cic_common::id::{DeploymentName, NodeId};

use super::node::Node;

/// The nodes. A node's deployment is that of the record it was inserted with.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    slots: Vec<Option<Node>>,
    free: Vec<usize>,
    by_id: BTreeMap<NodeId, usize>,
    by_deployment: BTreeMap<DeploymentName, BTreeMap<NodeId, usize>>,
}

impl Nodes {
    /// Puts a node in the place of the one with its id.
    pub(super) fn insert(&mut self, id: NodeId, node: Node) {
        self.remove(&id);
        let name = node.record.deployment.clone();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(node);
        if let Some(name) = name {
            self.by_deployment.entry(name).or_default().insert(id.clone(), slot);
        }
        self.by_id.insert(id, slot);
    }

    pub(super) fn remove(&mut self, id: &NodeId) -> Option<Node> {
        let slot = self.by_id.remove(id)?;
        self.free.push(slot);
        for members in self.by_deployment.values_mut() {
            members.remove(id);
        }
        self.slots[slot].take()
    }

    pub(super) fn get(&self, id: &NodeId) -> Option<&Node> {
        self.slots[*self.by_id.get(id)?].as_ref()
    }

    pub(super) fn get_mut(&mut self, id: &NodeId) -> Option<&mut Node> {
        self.slots[*self.by_id.get(id)?].as_mut()
    }

    pub(super) fn contains_key(&self, id: &NodeId) -> bool {
        self.by_id.contains_key(id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &NodeId> {
        self.by_id.keys()
    }

    /// In order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.by_id.iter().filter_map(|(id, slot)| Some((id, self.slots[*slot].as_ref()?)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Node> {
        self.iter().map(|(_, node)| node)
    }

    /// In order of their ids.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        let mut slots: Vec<Option<&mut Node>> = self.slots.iter_mut().map(Option::as_mut).collect();
        self.by_id.values().filter_map(move |slot| slots[*slot].take())
    }

    /// Those of one deployment, in order of their ids.
    pub(super) fn of(&self, name: &DeploymentName) -> impl Iterator<Item = (&NodeId, &Node)> {
        let members = self.by_deployment.get(name).into_iter().flatten();
        members.filter_map(|(id, slot)| Some((id, self.slots[*slot].as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use cic_common::id::Incarnation;
    use cic_common::report::Role;
    use cic_common::time::Mono;

    use super::super::event::NodeRecord;
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("a label")
    }

    fn node(name: &str, deployment: Option<&str>) -> Node {
        let record = NodeRecord {
            node: id(name),
            role: Role::Replica,
            deployment: deployment.map(|name| DeploymentName::new(name).expect("a label")),
            zone: "here".to_owned(),
            address: None,
            incarnation: Incarnation(0),
            launched_by: None,
            predecessors: Vec::new(),
            keeps_checkpoints: false,
            is_read: false,
            asked: None,
        };
        Node::new(Mono::ZERO, record)
    }

    fn filled(list: &[(&str, Option<&str>)]) -> Nodes {
        let mut nodes = Nodes::default();
        for (name, deployment) in list {
            nodes.insert(id(name), node(name, *deployment));
        }
        nodes
    }

    fn names<'a>(nodes: impl Iterator<Item = (&'a NodeId, &'a Node)>) -> Vec<String> {
        nodes
            .map(|(id, node)| {
                assert_eq!(*id, node.record.node);
                id.to_string()
            })
            .collect()
    }

    #[test]
    fn every_walk_is_in_order_of_ids_and_a_deployment_holds_its_own() {
        let mut nodes = filled(&[("c", Some("x")), ("a", Some("y")), ("b", Some("x")), ("g", None)]);
        assert_eq!(names(nodes.iter()), ["a", "b", "c", "g"]);
        let mutable: Vec<String> = nodes.values_mut().map(|node| node.record.node.to_string()).collect();
        assert_eq!(mutable, ["a", "b", "c", "g"]);
        let x = DeploymentName::new("x").expect("a label");
        assert_eq!(names(nodes.of(&x)), ["b", "c"]);
        assert_eq!(names(nodes.of(&DeploymentName::new("z").expect("a label"))), [""; 0]);
    }

    #[test]
    fn what_is_removed_is_nowhere_and_its_place_is_used_again() {
        let mut nodes = filled(&[("a", Some("x")), ("b", Some("x"))]);
        let x = DeploymentName::new("x").expect("a label");
        assert!(nodes.remove(&id("a")).is_some() && nodes.remove(&id("a")).is_none());
        nodes.insert(id("c"), node("c", None));
        assert_eq!((nodes.len(), nodes.slots.len()), (2, 2));
        assert_eq!(names(nodes.of(&x)), ["b"]);
        nodes.insert(id("b"), node("b", Some("y")));
        assert_eq!(names(nodes.of(&x)), [""; 0], "a node that moved");
        assert_eq!(names(nodes.iter()), ["b", "c"]);
        assert!(nodes.get(&id("a")).is_none() && nodes.contains_key(&id("b")));
    }
}
