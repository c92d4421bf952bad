//! The newest routing table, kept in memory for the edge and on disk for a start without any controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use cic_common::id::{NodeId, Term};
use cic_common::route::{Replica, RoutingTable};
use cic_common::routing::Routing;
use cic_common::supervise::TaskResult;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::choice::Candidate;
use crate::state::{StateDir, name};

/// The newest table. Clones share it.
#[derive(Debug, Clone)]
pub struct Routes {
    newest: Arc<watch::Sender<Newest>>,
}

/// A table, and what is drawn from it once instead of with each request.
#[derive(Debug)]
pub(super) struct Newest {
    table: Arc<RoutingTable>,
    candidates: BTreeMap<String, Vec<Arc<Candidate>>>,
}

impl From<Arc<RoutingTable>> for Newest {
    fn from(table: Arc<RoutingTable>) -> Self {
        let mut candidates: BTreeMap<String, Vec<Arc<Candidate>>> = BTreeMap::new();
        for route in &table.routes {
            let replicas =
                route.replicas.iter().map(|replica| Arc::new(Candidate::peer(replica, &route.routing)));
            candidates.entry(route.model.clone()).or_default().extend(replicas);
        }
        Self { table, candidates }
    }
}

impl Routes {
    /// Begins with what the last run left on disk. Any table of a live controller replaces that: after a
    /// controller was rebuilt from nothing, its first table must win over the memory of its predecessor.
    #[must_use]
    pub fn remembered(state: &StateDir) -> Self {
        let mut table: RoutingTable = state.read(name::ROUTES).unwrap_or_default();
        if !table.routes.is_empty() {
            info!(term = %table.term, version = table.version, "use the remembered routing table for now");
        }
        (table.term, table.version) = (Term(0), 0);
        Self { newest: Arc::new(watch::Sender::new(Arc::new(table).into())) }
    }

    /// Takes `table` if it is newer; tells whether it was.
    pub fn offer(&self, table: impl Into<Arc<RoutingTable>>) -> bool {
        let table = table.into();
        let (term, version) = (table.term, table.version);
        let taken = self.newest.send_if_modified(|current| {
            let is_newer = table.supersedes(&current.table);
            if is_newer {
                *current = table.into();
            }
            is_newer
        });
        debug!(%term, version, taken, "routing table offered");
        taken
    }

    /// The table as it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Newest> {
        self.newest.subscribe()
    }

    /// Writes each new table to disk until cancelled. A disk that fails costs the memory, not the traffic.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn keep(self, state: StateDir, token: CancellationToken) -> TaskResult {
        let mut changes = self.newest.subscribe();
        loop {
            // Cancel safe: a change not yet seen is seen by the next call. The sender lives in `self`.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                changed = changes.changed() => changed?,
            }
            let table = Arc::clone(&changes.borrow_and_update().table);
            if let Err(error) = state.write(name::ROUTES, &*table).await {
                warn!(%error, "routing table is not remembered");
            }
        }
    }

    /// Which table it is.
    pub(super) fn stamp(&self) -> (Term, u64) {
        let newest = self.newest.borrow();
        (newest.table.term, newest.table.version)
    }

    /// Replicas of `model`; `None` when no route names it.
    pub(super) fn candidates(&self, model: &str) -> Option<Vec<Arc<Candidate>>> {
        self.newest.borrow().candidates.get(model).cloned()
    }

    /// Other nodes than `node` that serve `model`, `count_max` at most, in no order; none that is known to be in another zone than
    /// `zone`, from where bytes cost more than from a store.
    pub fn neighbours(
        &self,
        model: &str,
        node: &NodeId,
        zone: Option<&str>,
        count_max: usize,
    ) -> Vec<Replica> {
        let newest = self.newest.borrow();
        let routes = newest.table.routes.iter().filter(|route| route.model == model);
        let replicas = routes.flat_map(|route| &route.replicas);
        let is_near = |replica: &&Replica| match (zone, &replica.zone) {
            (Some(here), Some(there)) => here == there,
            _ => true,
        };
        let near = replicas.filter(|replica| replica.node != *node).filter(is_near);
        let mut near: Vec<Replica> = near.cloned().collect();
        // Many nodes that come up at once do not all ask the same.
        fastrand::shuffle(&mut near);
        near.truncate(count_max);
        near
    }

    /// What the deployment of `model` that `node` serves wishes; without one, what any deployment of the model does.
    pub(super) fn routing(&self, model: &str, node: &NodeId) -> Routing {
        let newest = self.newest.borrow();
        let routes = || newest.table.routes.iter().filter(|route| route.model == model);
        let its = routes().find(|route| route.replicas.iter().any(|replica| replica.node == *node));
        its.or_else(|| routes().next()).map(|route| route.routing.clone()).unwrap_or_default()
    }

    /// Whether requests for `model` may go outside the fleet when no replica takes them.
    pub(super) fn allows_surge(&self, model: &str) -> bool {
        let newest = self.newest.borrow();
        newest.table.routes.iter().any(|route| route.model == model && route.routing.surge_allowed)
    }

    /// Whether a route names `model`.
    pub(super) fn has(&self, model: &str) -> bool {
        self.newest.borrow().candidates.contains_key(model)
    }

    /// Every model that is routed, sorted.
    pub(super) fn models(&self) -> Vec<String> {
        self.newest.borrow().candidates.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use cic_common::id::DeploymentName;
    use cic_common::route::Route;

    use super::*;

    fn table(term: u64, version: u64, model: &str) -> RoutingTable {
        let route = Route {
            deployment: DeploymentName::new("d").unwrap(),
            model: model.to_owned(),
            replicas: Vec::new(),
            routing: Routing::default(),
        };
        RoutingTable { term: Term(term), version, routes: vec![route] }
    }

    #[test]
    fn an_older_table_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let routes = Routes::remembered(&StateDir::open(root.path()).unwrap());
        assert!(routes.offer(table(2, 5, "new")));
        assert!(!routes.offer(table(2, 5, "same")));
        assert!(!routes.offer(table(1, 9, "old")));
        assert_eq!(routes.models(), ["new"]);
    }

    #[tokio::test]
    async fn the_remembered_table_serves_until_any_controller_speaks() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        state.write(name::ROUTES, &table(9, 9, "remembered")).await.unwrap();
        let routes = Routes::remembered(&state);
        assert_eq!(routes.models(), ["remembered"]);
        assert!(routes.offer(table(1, 1, "spoken")));
        assert_eq!(routes.models(), ["spoken"]);
        assert_eq!(routes.candidates("remembered"), None);
        assert_eq!(routes.candidates("spoken"), Some(Vec::new()));
    }

    #[test]
    fn neighbours_are_other_replicas_of_the_model_that_are_not_known_to_be_in_another_zone() {
        let replica = |node: &str, zone: Option<&str>| Replica {
            node: NodeId::new(node).unwrap(),
            address: format!("{node}:7444"),
            zone: zone.map(str::to_owned),
            gpu: None,
        };
        let mut table = table(1, 1, "m");
        table.routes[0].replicas = vec![
            replica("here", Some("a")),
            replica("near", Some("a")),
            replica("far", Some("b")),
            replica("somewhere", None),
        ];
        let mut other = table.routes[0].clone();
        (other.model, other.replicas) = ("other".to_owned(), vec![replica("stranger", Some("a"))]);
        table.routes.push(other);
        let root = tempfile::tempdir().unwrap();
        let routes = Routes::remembered(&StateDir::open(root.path()).unwrap());
        routes.offer(table);
        let of = |zone: Option<&str>, count_max: usize| {
            let near = routes.neighbours("m", &NodeId::new("here").unwrap(), zone, count_max);
            near.into_iter()
                .map(|replica| replica.node.to_string())
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(of(Some("a"), 16), ["near", "somewhere"].map(str::to_owned).into());
        assert_eq!(of(None, 16), ["far", "near", "somewhere"].map(str::to_owned).into());
        assert_eq!(of(None, 2).len(), 2);
        assert_eq!(routes.neighbours("unknown", &NodeId::new("here").unwrap(), None, 16), []);
    }
}
