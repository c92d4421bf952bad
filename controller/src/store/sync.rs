//! Providers' lists against the rows, and the clusters they make, as last compared.

use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;
use sqlx::Row as _;

use super::database::{Database, StoreError, signed, unsigned};
use crate::core::{ClusterRecord, Drift, SyncRecord, SyncState};

/// The newest comparison of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSync {
    pub provider: String,
    /// `in_sync`, `syncing` or `diverged`.
    pub state: String,
    pub store_hash: String,
    pub provider_hash: String,
    pub drift: Vec<Drift>,
    pub checked_at_ms: u64,
    pub in_sync_since_ms: Option<u64>,
    /// Why the provider could not be listed.
    pub error: Option<String>,
}

/// One cluster, as last listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCluster {
    pub cluster: String,
    pub deployment: String,
    pub provider: String,
    pub zone: String,
    pub status: String,
    pub node_count: u64,
    pub last_seen_at_ms: Option<u64>,
}

impl Database {
    /// Of each provider the newest comparison.
    ///
    /// # Errors
    /// When the database fails or holds a row this program cannot read.
    pub async fn syncs(&self) -> Result<Vec<StoredSync>, StoreError> {
        let query = sqlx::query(
            "SELECT provider, state, store_hash, provider_hash, drift, checked_at_ms, in_sync_since_ms, error
             FROM skypilot_sync_status ORDER BY provider",
        );
        let read = |row: &sqlx::any::AnyRow| {
            let unreadable = |source| StoreError::Row { table: "skypilot_sync_status", source };
            Ok(StoredSync {
                provider: row.get(0),
                state: row.get(1),
                store_hash: row.get(2),
                provider_hash: row.get(3),
                drift: serde_json::from_str(row.get(4)).map_err(unreadable)?,
                checked_at_ms: unsigned(row.get(5)),
                in_sync_since_ms: row.get::<Option<i64>, _>(6).map(unsigned),
                error: row.get(7),
            })
        };
        self.fetch(query).await?.iter().map(read).collect()
    }

    /// Every cluster, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn clusters(&self) -> Result<Vec<StoredCluster>, StoreError> {
        let query = sqlx::query(
            "SELECT cluster_name, deployment, provider, zone, status, node_count, last_seen_at_ms
             FROM skypilot_clusters ORDER BY cluster_name",
        );
        let read = |row: &sqlx::any::AnyRow| StoredCluster {
            cluster: row.get(0),
            deployment: row.get(1),
            provider: row.get(2),
            zone: row.get(3),
            status: row.get(4),
            node_count: unsigned(row.get(5)),
            last_seen_at_ms: row.get::<Option<i64>, _>(6).map(unsigned),
        };
        Ok(self.fetch(query).await?.iter().map(read).collect())
    }
}

pub(super) async fn save(
    connection: &mut AnyConnection,
    record: &SyncRecord,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    let drift = serde_json::to_string(&record.drift).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let is_in_sync = record.state == SyncState::InSync && record.error.is_none();
    sqlx::query(
        "INSERT INTO skypilot_sync_status
             (provider, state, store_hash, provider_hash, drift, checked_at_ms, in_sync_since_ms, error)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (provider) DO UPDATE SET state = excluded.state, store_hash = excluded.store_hash,
             provider_hash = excluded.provider_hash, drift = excluded.drift,
             checked_at_ms = excluded.checked_at_ms, error = excluded.error,
             in_sync_since_ms = CASE WHEN excluded.in_sync_since_ms IS NULL THEN NULL
                 ELSE coalesce(skypilot_sync_status.in_sync_since_ms, excluded.in_sync_since_ms) END",
    )
    .bind(record.provider.clone())
    .bind(record.state.as_str())
    .bind(record.store_hash.clone())
    .bind(record.provider_hash.clone())
    .bind(drift)
    .bind(now_ms)
    .bind(is_in_sync.then_some(now_ms))
    .bind(record.error.clone())
    .execute(&mut *connection)
    .await?;
    if record.error.is_some() {
        return Ok(());
    }
    for cluster in &record.clusters {
        save_cluster(connection, &record.provider, cluster, now_ms).await?;
    }
    // Whatever was not written just now has neither a row nor a VM any more.
    sqlx::query("DELETE FROM skypilot_clusters WHERE provider = $1 AND updated_at_ms < $2")
        .bind(record.provider.clone())
        .bind(now_ms)
        .execute(connection)
        .await
        .map(drop)
}

async fn save_cluster(
    connection: &mut AnyConnection,
    provider: &str,
    record: &ClusterRecord,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    let ClusterRecord { cluster, deployment, zone, status, node_count, running_count, hash, launched_by } =
        record;
    sqlx::query(
        "INSERT INTO skypilot_clusters (cluster_name, deployment, provider, region, zone, gpu, pricing, status,
             node_count, cluster_hash, launched_by, launched_at_ms, last_seen_at_ms, updated_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (cluster_name) DO UPDATE SET deployment = excluded.deployment, zone = excluded.zone,
             status = excluded.status, node_count = excluded.node_count, cluster_hash = excluded.cluster_hash,
             launched_by = excluded.launched_by, updated_at_ms = excluded.updated_at_ms,
             last_seen_at_ms = coalesce(excluded.last_seen_at_ms, skypilot_clusters.last_seen_at_ms)",
    )
    .bind(cluster.to_string())
    .bind(deployment.as_ref().map_or("", |name| name.as_str()).to_owned())
    .bind(provider.to_owned())
    .bind(cluster.region.clone())
    .bind(zone.clone())
    .bind(cluster.gpu.clone())
    .bind(cluster.pricing.clone())
    .bind(status.as_str())
    .bind(i64::from(*node_count))
    .bind(hash.clone())
    .bind(signed(launched_by.0))
    .bind(now_ms)
    .bind((*running_count > 0).then_some(now_ms))
    .bind(now_ms)
    .execute(connection)
    .await
    .map(drop)
}
