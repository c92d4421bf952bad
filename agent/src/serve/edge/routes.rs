//! The newest routing table, kept in memory for the edge and on disk for a start without any controller.

use std::sync::Arc;

use cic_common::id::Term;
use cic_common::route::{Replica, RoutingTable};
use cic_common::supervise::TaskResult;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::state::{StateDir, name};

/// The newest table. Clones share it.
#[derive(Debug, Clone)]
pub struct Routes {
    table: Arc<watch::Sender<RoutingTable>>,
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
        Self { table: Arc::new(watch::Sender::new(table)) }
    }

    /// Takes `table` if it is newer; tells whether it was.
    pub fn offer(&self, table: RoutingTable) -> bool {
        let (term, version) = (table.term, table.version);
        let taken = self.table.send_if_modified(|current| {
            let is_newer = table.supersedes(current);
            if is_newer {
                *current = table;
            }
            is_newer
        });
        debug!(%term, version, taken, "routing table offered");
        taken
    }

    /// The table as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<RoutingTable> {
        self.table.subscribe()
    }

    /// Writes each new table to disk until cancelled. A disk that fails costs the memory, not the traffic.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn keep(self, state: StateDir, token: CancellationToken) -> TaskResult {
        let mut changes = self.table.subscribe();
        loop {
            // Cancel safe: a change not yet seen is seen by the next call. The sender lives in `self`.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                changed = changes.changed() => changed?,
            }
            let table = changes.borrow_and_update().clone();
            if let Err(error) = state.write(name::ROUTES, &table).await {
                warn!(%error, "routing table is not remembered");
            }
        }
    }

    /// Replicas of `model`; `None` when no route names it.
    pub(super) fn replicas(&self, model: &str) -> Option<Vec<Replica>> {
        let table = self.table.borrow();
        let mut routes = table.routes.iter().filter(|route| route.model == model).peekable();
        routes.peek()?;
        Some(routes.flat_map(|route| route.replicas.iter().cloned()).collect())
    }

    /// Whether requests for `model` may go outside the fleet when no replica takes them.
    pub(super) fn allows_surge(&self, model: &str) -> bool {
        self.table.borrow().routes.iter().any(|route| route.model == model && route.surge_allowed)
    }

    /// Every model that is routed, sorted.
    pub(super) fn models(&self) -> Vec<String> {
        let mut models: Vec<_> = self.table.borrow().routes.iter().map(|route| route.model.clone()).collect();
        models.sort();
        models.dedup();
        models
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
            surge_allowed: false,
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
        assert_eq!(routes.replicas("remembered"), None);
        assert_eq!(routes.replicas("spoken"), Some(Vec::new()));
    }
}
