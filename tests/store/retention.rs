//! What is forgotten, and what is not.

use std::time::Duration;

use cic_controller::core::OperationState;
use cic_controller::store::{Database, StoreQueue, Write};

use crate::place::{Place, lead};
use crate::rows::{node, note, operation};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn forget_all(database: &Database, term: cic_common::id::Term) -> Vec<u64> {
    let mut batches = Vec::new();
    loop {
        match database.forget_old(term).await.expect("forgets") {
            0 => return batches,
            rows => batches.push(rows),
        }
    }
}

pub(crate) async fn ages(place: &Place) {
    let database = place.open().await;
    place.hold_clock().await;
    let term = lead(&database, "a").await;
    let write = |id, state| Write::Operation { operation: operation(id, state), is_new: false };
    let certificate = |serial: &str, expires_at_ms| Write::Certificate {
        serial: serial.to_owned(),
        node: node("a"),
        expires_at_ms,
    };
    let old = [
        write(1, OperationState::Done),
        write(2, OperationState::Intended),
        certificate("01", 1),
        certificate("02", u64::try_from(i64::MAX).expect("positive")),
    ];
    database.store(term, &old, &[]).await.expect("stores");
    let used = database.create_join_token(&node("a"), DAY).await.expect("a token");
    let open = database.create_join_token(&node("a"), DAY * 365).await.expect("a token");
    database.create_join_token(&node("b"), DAY).await.expect("a token");
    database.consume_join_token(&used.hash(), &node("a")).await.expect("good");

    place.pass(DAY * 90).await;
    database.store(term, &[write(3, OperationState::Done)], &[]).await.expect("stores");
    assert_eq!(forget_all(&database, term).await, [3], "a certificate, the used token and the expired one");
    assert_eq!(database.certificate_count(&node("a")).await.expect("counts"), 1);
    database.consume_join_token(&open.hash(), &node("a")).await.expect("still good");

    place.pass(DAY).await;
    assert_eq!(forget_all(&database, term).await, [1], "the closed operation");
    let left: Vec<_> = database.operations(10).await.expect("lists").iter().map(|found| found.id.0).collect();
    assert_eq!(left, [3, 2]);

    place.pass(DAY * 100).await;
    assert_eq!(forget_all(&database, term).await, [1], "the token that was used later");
    let restored = database.restore(term).await.expect("restores");
    assert_eq!(restored.operation_last.0, 3, "the newest stays: ids are counted from it");
}

pub(crate) async fn batches(place: &Place) {
    let database = place.open().await;
    let term = lead(&database, "a").await;
    let insert = |from: u64, count: u64| {
        format!(
            "INSERT INTO events (id, term, seq, at_ms, severity, kind, text)
             WITH RECURSIVE counted (n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM counted WHERE n + 1 < {from} + {count})
             SELECT n, 9, n, n, 'info', 'test', 'old' FROM counted"
        )
    };
    place.sql(&insert(1, 2500)).await.expect("events");
    place.sql(&insert(1_002_500, 1)).await.expect("an event");
    assert_eq!(forget_all(&database, term).await, [1000, 1000, 500]);
    let queue = StoreQueue::default();
    queue.push_event(note("next"));
    let (_, events) = queue.take();
    database.store(term, &[], &events).await.expect("stores");
    let ids: Vec<_> =
        database.events(None, 10, None).await.expect("lists").iter().map(|event| event.id).collect();
    assert_eq!(ids, [1_002_500, 1_002_501]);
}
