//! A lost database comes back from the object store; a damaged snapshot does not.

use std::time::Duration;

use cic_common::id::OperationId;
use cic_common::time::Clock;
use cic_controller::core::OperationState;
use cic_controller::store::{Database, PendingEvent, StoreQueue, Write};
use serde_json::Value;

use crate::place::{Place, SOON, lead};
use crate::rows::{deployment, node, note, operation, row};
use crate::site::{Site, name_of};

const LOOK: Duration = Duration::from_millis(20);

/// A fleet with something in every table that a controller writes. Nobody leads it.
async fn seed(database: &Database) {
    let term = lead(database, "a").await;
    let queue = StoreQueue::default();
    for text in ["first", "with a ' and a \" and ünïcode"] {
        queue.push_event(note(text));
    }
    let (_, events): (_, Vec<PendingEvent>) = queue.take();
    let certificate = Write::Certificate { serial: "01".to_owned(), node: node("a"), expires_at_ms: 2 };
    let writes = [
        Write::SaveDeployment(deployment()),
        Write::SaveNode(row("a")),
        Write::SaveNode(row("b")),
        Write::Operation { operation: operation(1, OperationState::Done), is_new: true },
        Write::Operation { operation: operation(7, OperationState::Intended), is_new: true },
        certificate,
    ];
    database.store(term, &writes, &events).await.expect("stored");
    let used = database.create_join_token(&node("a"), SOON).await.expect("a token");
    database.consume_join_token(&used.hash(), &node("a")).await.expect("used");
    database.create_join_token(&node("b"), SOON).await.expect("a token");
    database.release_lease(term).await.expect("released");
}

/// All rows, without the lease.
async fn rows(database: &Database) -> Value {
    let copy = serde_json::to_value(database.copy().await.expect("read")).expect("JSON");
    copy["tables"].clone()
}

pub(crate) async fn same_rows(place: &Place) {
    let site = Site::new(place, "");
    let database = place.open().await;
    seed(&database).await;
    let (before, term) = (rows(&database).await, database.copy().await.expect("read").term);
    let said = site.does(&["backup"]);
    assert!(said.contains("/test/snapshots/") && said.contains("2 nodes, 2 operations"), "{said}");
    let known = database.snapshots().await.expect("read");
    assert!(said.contains(&known[0].url) && known.len() == 1, "{known:?}");
    database.close().await;

    place.lose().await;
    let said = site.does(&["restore"]);
    assert!(
        said.contains("deployments 1, nodes 2, operations 2, events 2, join_tokens 2, certificates 1"),
        "{said}"
    );
    let database = place.open().await;
    assert_eq!(rows(&database).await, before);
    let next = lead(&database, "b").await;
    assert!(next.0 > term.0 + 1, "agents that saw a term after the snapshot still obey: {next}");
    let restored = database.restore(next).await.expect("read");
    assert!(restored.operation_last > OperationId(1000), "no id is given out twice: {restored:?}");
    assert_eq!((restored.nodes.len(), restored.operations.len()), (2, 1));
    database.release_lease(next).await.expect("released");
    database.close().await;

    // Lost again before the next snapshot, with whatever ids were given out since.
    place.lose().await;
    site.does(&["restore"]);
    let database = place.open().await;
    let again = lead(&database, "b").await;
    assert!(again > next, "agents obeyed {next} of the first life");
    let floor = database.restore(again).await.expect("read").operation_last;
    assert!(floor > restored.operation_last, "{floor:?} is above {:?}", restored.operation_last);
}

pub(crate) async fn damaged(place: &Place) {
    let site = Site::new(place, "");
    let database = place.open().await;
    seed(&database).await;
    site.does(&["backup"]);
    let back = site.leave_fleet();
    site.does(&["backup"]);
    let foreign = std::fs::read(&site.s3.objects("snapshots")[1]).expect("read");
    back();
    site.does(&["backup"]);
    // The one of the other fleet is not a candidate for what follows.
    std::fs::remove_file(&site.s3.objects("snapshots")[1]).expect("removed");
    database.close().await;

    let newest = site.s3.objects("snapshots")[1].clone();
    let whole = std::fs::read(&newest).expect("read");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let (newest_name, older) = (name_of(&newest), site.snapshots()[0].clone());
    for (bytes, cause) in [
        (Vec::new(), "it is no cic-snapshot"),
        (whole[..whole.len() - 1].to_vec(), "bytes of"),
        (flipped, "its checksum is wrong"),
        (b"<html>\n<body>503 Service Unavailable</body></html>".to_vec(), "it is no cic-snapshot"),
        (foreign, "it is of another fleet"),
    ] {
        std::fs::write(&newest, bytes).expect("damaged");
        let refused = site.refuses(&["restore", "--force", "--from", &newest_name]);
        assert!(refused.contains(&newest_name) && refused.contains(cause), "{cause}: {refused}");
        place.lose().await;
        let said = site.does(&["restore"]);
        let skipped = said.lines().find(|line| line.starts_with("skipped ")).unwrap_or_default();
        assert!(skipped.contains(&newest_name) && skipped.contains(cause), "{cause}: {said}");
        let restored = said.lines().find(|line| line.starts_with("restored ")).unwrap_or_default();
        assert!(restored.contains(&older), "{cause}: {said}");
    }
    std::fs::write(&newest, whole).expect("mended");
    place.lose().await;
    let said = site.does(&["restore"]);
    assert!(said.contains(&newest_name) && !said.contains("skipped"), "{said}");
}

pub(crate) async fn kept(place: &Place) {
    let site = Site::new(place, "");
    let database = place.open().await;
    seed(&database).await;
    let mut first = String::new();
    for count in 1..=11 {
        site.does(&["backup"]);
        if count == 1 {
            first = site.snapshots()[0].clone();
        }
    }
    let there = site.snapshots();
    assert!(there.len() == 10 && !there.contains(&first), "{there:?}");
    let known = database.snapshots().await.expect("read");
    let known: Vec<&str> = known.iter().filter_map(|row| row.url.rsplit('/').next()).collect();
    assert_eq!(known, there, "and the store knows of the same");
}

pub(crate) async fn not_empty(place: &Place) {
    let site = Site::new(place, "");
    let database = place.open().await;
    let said = site.refuses(&["backup"]);
    assert!(said.contains("the store is empty"), "{said}");
    seed(&database).await;
    site.does(&["backup"]);
    let before = rows(&database).await;
    let said = site.refuses(&["restore"]);
    assert!(said.contains("it would lose: deployments 1, nodes 2, operations 2, events 2"), "{said}");
    assert!(said.contains("--force"), "{said}");

    let term = lead(&database, "a").await;
    let said = site.refuses(&["restore", "--force"]);
    assert!(said.contains("controller a leads this database"), "{said}");
    let writes = [Write::ForgetNode(node("a")), Write::SaveNode(row("c"))];
    database.store(term, &writes, &[]).await.expect("stored");
    database.release_lease(term).await.expect("released");
    let said = site.does(&["restore", "--force"]);
    assert!(said.contains("the event log was not touched"), "{said}");
    let after = rows(&database).await;
    for table in ["nodes", "operations", "events", "deployments", "join_tokens"] {
        assert_eq!(after[table], before[table], "{table}");
    }
}

pub(crate) async fn regular(place: &Place) {
    let site = Site::new(place, "every_s = 1\nkeep = 3");
    let database = place.open().await;
    let serving = site.serve();
    let clock = Clock::start();
    // Nobody's: an empty fleet is not worth a snapshot.
    wait_until(&clock, "a leader", async || database.lease().await.expect("read").is_some()).await;
    assert_eq!(site.snapshots(), [""; 0]);
    let term = database.lease().await.expect("read").expect("taken").term;
    database.store(term, &[Write::SaveNode(row("a"))], &[]).await.expect("stored");
    let mut seen = std::collections::BTreeSet::new();
    wait_until(&clock, "five snapshots", async || {
        let there = site.snapshots();
        assert!(there.len() <= 4, "three, and one that is written before the oldest is removed: {there:?}");
        seen.extend(there);
        seen.len() >= 5
    })
    .await;
    drop(serving);
}

async fn wait_until(clock: &Clock, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = clock.now();
    while !is_so().await {
        assert!(clock.now().since(began) < SOON, "no {what} within {SOON:?}");
        tokio::time::sleep(LOOK).await;
    }
}
