//! What a comparison of a provider's list with the rows leaves in the store.

use std::time::Duration;

use cic_common::id::OperationId;
use cic_common::name::ClusterName;
use cic_controller::core::{ClusterRecord, ClusterStatus, Drift, SyncRecord, SyncState};
use cic_controller::store::Write;

use crate::place::{Place, lead};
use crate::rows::node;

const A_MOMENT: Duration = Duration::from_millis(1);

fn record(state: SyncState, clusters: &[u16]) -> SyncRecord {
    let cluster = |seq: &u16| ClusterRecord {
        cluster: ClusterName::new("local", "here", "none", "dev", "20261124", *seq).expect("valid"),
        deployment: None,
        zone: "here".to_owned(),
        status: ClusterStatus::Up,
        node_count: 2,
        running_count: 2,
        hash: "h".to_owned(),
        launched_by: OperationId(1),
    };
    let drift = Drift { node: node("a"), text: "not listed".to_owned(), is_expected: false };
    SyncRecord {
        provider: "local".to_owned(),
        state,
        store_hash: "s".to_owned(),
        provider_hash: "p".to_owned(),
        drift: if state == SyncState::InSync { Vec::new() } else { vec![drift] },
        clusters: clusters.iter().map(cluster).collect(),
        error: None,
    }
}

pub(crate) async fn saved(place: &Place) {
    let database = place.open().await;
    place.hold_clock().await;
    let term = lead(&database, "a").await;
    let began_ms = database.copy().await.expect("read").taken_at_ms;
    let save = async |record| {
        place.pass(A_MOMENT).await;
        database.store(term, &[Write::SaveSync(record)], &[]).await.expect("stored");
        let syncs = database.syncs().await.expect("read");
        let clusters = database.clusters().await.expect("read");
        let names: Vec<String> =
            clusters.iter().map(|row| row.cluster[row.cluster.len() - 3..].to_owned()).collect();
        (syncs.into_iter().next().expect("a row"), names)
    };
    let (first, names) = save(record(SyncState::InSync, &[1, 2])).await;
    assert_eq!((first.state.as_str(), first.in_sync_since_ms), ("in_sync", Some(began_ms + 1)));
    assert_eq!(names, ["001", "002"]);
    let (second, names) = save(record(SyncState::InSync, &[2])).await;
    assert_eq!(second.in_sync_since_ms, Some(began_ms + 1), "since the first of an unbroken row");
    assert_eq!(names, ["002"], "a cluster without a row and a VM is forgotten");
    let blind = SyncRecord { error: Some("no answer".to_owned()), ..record(SyncState::InSync, &[]) };
    let (third, names) = save(blind).await;
    assert_eq!((third.error.as_deref(), third.in_sync_since_ms), (Some("no answer"), None));
    assert_eq!(names, ["002"], "a provider that cannot be listed takes nothing away");
    let (fourth, _) = save(record(SyncState::Diverged, &[2])).await;
    assert_eq!((fourth.state.as_str(), fourth.drift.len(), fourth.error), ("diverged", 1, None));
    let last = record(SyncState::InSync, &[2]);
    assert_eq!(save(last).await.0.in_sync_since_ms, Some(began_ms + 5));
}
