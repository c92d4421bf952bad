//! Who leads, and what becomes of those who do no longer.

use std::time::Duration;

use cic_common::id::Term;
use cic_controller::store::{Ended, Lease, Renewed, StoreError, StoreQueue, Taken, Write, run_writer};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::place::{Place, SOON, SPAN, holder, lead};
use crate::rows::{node, note, operation, row};

const A_MOMENT: Duration = Duration::from_millis(1);

const HOUR_MS: i64 = 3_600_000;

pub(crate) async fn race(place: &Place) {
    const TAKERS: usize = 8;
    let mut databases = Vec::new();
    for _ in 0..TAKERS {
        databases.push(place.open().await);
    }
    for round in 1..=3_u64 {
        let takes = databases.iter().enumerate().map(|(number, database)| async move {
            database.take_lease(&holder(&format!("c{number}")), SPAN).await.expect("answers")
        });
        let takes = futures_util::future::join_all(takes).await;
        let terms: Vec<_> = takes
            .iter()
            .filter_map(|taken| match taken {
                Taken::Yes(term) => Some(*term),
                Taken::No(_) => None,
            })
            .collect();
        assert_eq!(terms, [Term(round)], "{takes:?}");
        databases[0].release_lease(Term(round)).await.expect("released");
    }
}

pub(crate) async fn expiry(place: &Place) {
    let database = place.open().await;
    place.hold_clock().await;
    assert_eq!(database.lease().await.expect("answers"), None);
    let first = lead(&database, "a").await;
    place.pass(SPAN - A_MOMENT).await;
    let held = Lease { term: first, holder: holder("a"), left: A_MOMENT };
    let taken = database.take_lease(&holder("b"), SPAN).await.expect("answers");
    assert_eq!(taken, Taken::No(held), "a moment before its end");
    place.pass(A_MOMENT).await;
    let over = Lease { term: first, holder: holder("a"), left: Duration::ZERO };
    assert_eq!(database.lease().await.expect("answers"), Some(over));
    let second = lead(&database, "b").await;
    assert!(second > first);
    let held = Lease { term: second, holder: holder("b"), left: SPAN };
    assert_eq!(database.lease().await.expect("answers"), Some(held));
}

pub(crate) async fn restart(place: &Place) {
    let database = place.open().await;
    let first = lead(&database, "a").await;
    let second = lead(&place.open().await, "a").await;
    assert!(second > first);
    let renewed = database.renew_lease(first, SPAN).await.expect("answers");
    assert!(matches!(renewed, Renewed::Lost(lease) if lease.term == second), "the run before it is fenced");
}

pub(crate) async fn release(place: &Place) {
    let database = place.open().await;
    let first = lead(&database, "a").await;
    let other = place.open().await;
    let taken = other.take_lease(&holder("b"), SPAN).await.expect("answers");
    assert!(matches!(taken, Taken::No(_)), "{taken:?}");
    database.release_lease(first).await.expect("released");
    let second = lead(&other, "b").await;
    database.release_lease(first).await.expect("is nobody's loss");
    let left = other.lease().await.expect("answers").map(|lease| (lease.term, lease.left > Duration::ZERO));
    assert_eq!(left, Some((second, true)), "only a term of one's own is released");
}

pub(crate) async fn renewal(place: &Place) {
    let database = place.open().await;
    place.hold_clock().await;
    let first = lead(&database, "a").await;
    for late in [SPAN / 4, SPAN * 2] {
        place.pass(late).await;
        assert_eq!(database.renew_lease(first, SPAN).await.expect("answers"), Renewed::Yes, "{late:?}");
        let left = database.lease().await.expect("answers").map(|lease| lease.left);
        assert_eq!(left, Some(SPAN), "from the renewal on");
    }
    place.pass(SPAN).await;
    let second = lead(&database, "b").await;
    let lease = Lease { term: second, holder: holder("b"), left: SPAN };
    assert_eq!(database.renew_lease(first, SPAN * 9).await.expect("answers"), Renewed::Lost(lease.clone()));
    assert_eq!(database.lease().await.expect("answers"), Some(lease), "and nothing is renewed");
}

/// Controllers whose clocks are hours apart from the database's agree on every span.
pub(crate) async fn skew(place: &Place) {
    let database = place.open().await;
    place.hold_clock().await;
    for ms in [HOUR_MS, -2 * HOUR_MS] {
        place.turn(ms).await;
        let term = lead(&database, "a").await;
        let left = database.lease().await.expect("answers").map(|lease| lease.left);
        assert_eq!(left, Some(SPAN), "{ms}");
        let taken = database.take_lease(&holder("b"), SPAN).await.expect("answers");
        assert!(matches!(taken, Taken::No(_)), "{ms}: {taken:?}");
        let token = database.create_join_token(&node("a"), SPAN).await.expect("a token");
        let late = database.create_join_token(&node("a"), SPAN).await.expect("a token");
        database.consume_join_token(&token.hash(), &node("a")).await.expect("good for its span");
        place.pass(SPAN).await;
        assert!(database.consume_join_token(&late.hash(), &node("a")).await.is_err(), "{ms}");
        assert!(lead(&database, "b").await > term);
        database.release_lease(Term(term.0 + 1)).await.expect("released");
    }
}

pub(crate) async fn fence(place: &Place) {
    let (old, new) = (place.open().await, place.open().await);
    let fenced = |result| match result {
        Err(StoreError::Fenced { term, newest }) => (term, newest),
        other => panic!("not fenced: {other:?}"),
    };
    let writes = [Write::SaveNode(row("a"))];
    assert_eq!(fenced(old.store(Term(1), &writes, &[]).await), (Term(1), Term(0)), "nobody ever led");
    let first = lead(&old, "a").await;
    old.store(first, &writes, &[]).await.expect("stores");
    old.release_lease(first).await.expect("released");
    let second = lead(&new, "b").await;

    let queue = StoreQueue::default();
    queue.push_event(note("of another time"));
    let (_, events) = queue.take();
    let writes = [Write::ForgetNode(node("a")), Write::SaveNode(row("b"))];
    assert_eq!(fenced(old.store(first, &writes, &events).await), (first, second));
    assert_eq!(fenced(old.forget_old(first).await.map(drop)), (first, second));
    let restored = new.restore(second).await.expect("restores");
    assert_eq!(restored.nodes, [row("a")]);
    assert!(new.events(None, 10, None).await.expect("lists").is_empty());
    new.store(second, &writes, &events).await.expect("stores");
    assert_eq!(new.restore(second).await.expect("restores").nodes, [row("b")]);
}

pub(crate) async fn writer(place: &Place) {
    let (old, new) = (place.open().await, place.open().await);
    let first = lead(&old, "a").await;
    let (tell, mut told) = mpsc::channel(16);
    let (done, stored) = oneshot::channel();
    let queue = StoreQueue::default();
    old.release_lease(first).await.expect("released");
    let second = lead(&new, "b").await;
    let state = cic_controller::core::OperationState::Intended;
    queue.push(Write::Operation { operation: operation(1, state), is_new: true });
    queue.push(Write::Barrier(done));
    queue.push_event(note("too late"));
    let writer = run_writer(old, first, queue.clone(), tell, CancellationToken::new());
    let ended = tokio::time::timeout(SOON, writer).await.expect("in time");
    assert_eq!(ended, Ended::Fenced { newest: second });
    assert!(stored.await.is_err(), "whoever waits learns that it was not stored");
    assert_eq!(told.recv().await, None, "nothing is recorded");
    assert!(new.operations(10).await.expect("lists").is_empty());
    assert_eq!(queue.counts().writes_waiting + queue.counts().events_waiting, 0);
}
