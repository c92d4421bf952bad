//! What is written is read again, in order, once.

use std::time::Duration;

use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, Incarnation, NodeId, OperationId, Term};
use cic_common::name::ClusterName;
use cic_common::report::Role;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::tls::JoinToken;
use cic_controller::core::{
    Deployment, EventRecord, NodeRecord, Operation, OperationKind, OperationState, Severity, UsdPerHour,
};
use cic_controller::store::{Database, Ended, StoreError, StoreQueue, TokenError, Write, run_writer};
use tokio::sync::{mpsc, oneshot};

use crate::place::{Place, SOON, lead};

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

pub(crate) fn row(name: &str) -> NodeRecord {
    NodeRecord {
        node: node(name),
        role: Role::Replica,
        deployment: Some(DeploymentName::new("chat").expect("valid")),
        zone: "here".to_owned(),
        address: Some("127.0.0.1:1".to_owned()),
        incarnation: Incarnation(2),
        launched_by: Some(OperationId(1)),
        predecessors: Vec::new(),
        keeps_checkpoints: false,
        is_read: false,
        asked: None,
    }
}

pub(crate) fn operation(id: u64, state: OperationState) -> Operation {
    Operation {
        id: OperationId(id),
        term: Term(1),
        node: node("a"),
        kind: OperationKind::Terminate,
        state,
        reason: "test".to_owned(),
        deadline_ms: 1000,
        price_limit_usd_per_hour: UsdPerHour::try_from(2.5).ok(),
    }
}

pub(crate) fn deployment() -> Deployment {
    Deployment {
        name: DeploymentName::new("chat").expect("valid"),
        model: ModelSpec::at("tiny", "/models/tiny"),
        engine: EngineSpec {
            program: "vllm".to_owned(),
            args: vec!["--x".to_owned()],
            env: Default::default(),
        },
        replicas: 2,
        replicas_min: 1,
        provider: "local".to_owned(),
        zone: "here".to_owned(),
        cluster: ClusterName::new("local", "here", "none", "dev", "20261124", 1).expect("valid"),
        node_next: 3,
        routing: cic_common::routing::Routing::default(),
        price_limit_usd_per_hour: UsdPerHour::try_from(0.75).ok(),
    }
}

pub(crate) fn note(text: &str) -> EventRecord {
    EventRecord {
        node: Some(node("a")),
        severity: Severity::Info,
        kind: "test".to_owned(),
        text: text.to_owned(),
    }
}

/// A writer over `database`, its queue, and what it says is recorded.
pub(crate) fn writer(
    database: &Database,
    term: Term,
) -> (Supervisor, StoreQueue, mpsc::Receiver<OperationId>) {
    let (supervisor, queue) = (Supervisor::new(), StoreQueue::default());
    let (tell, told) = mpsc::channel(16);
    let (database, shared) = (database.clone(), queue.clone());
    supervisor.spawn("store", Kind::Vital, move |token| async move {
        assert_eq!(run_writer(database, term, shared, tell, token).await, Ended::Stopped);
        Ok(())
    });
    (supervisor, queue, told)
}

pub(crate) async fn stored(queue: &StoreQueue) {
    let (done, stored) = oneshot::channel();
    assert!(queue.push(Write::Barrier(done)));
    tokio::time::timeout(SOON, stored).await.expect("in time").expect("answered");
}

/// Waits until an attempt to store has failed.
pub(crate) async fn wait_failed(queue: &StoreQueue) {
    let failed = async {
        while queue.counts().failures_in_row == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, failed).await.expect("an attempt fails");
}

pub(crate) async fn restart(place: &Place) {
    let database = place.open().await;
    let first = lead(&database, "a").await;
    let (supervisor, queue, mut recorded) = writer(&database, first);
    for id in 1..=3 {
        queue.push(Write::Operation { operation: operation(id, OperationState::Intended), is_new: true });
    }
    queue.push(Write::Operation { operation: operation(2, OperationState::Done), is_new: false });
    for name in ["a", "b"] {
        queue.push(Write::SaveNode(row(name)));
    }
    queue.push(Write::ForgetNode(node("b")));
    queue.push(Write::SaveDeployment(deployment()));
    stored(&queue).await;
    for id in 1..=3 {
        assert_eq!(recorded.recv().await, Some(OperationId(id)));
    }
    supervisor.stop(SOON).await.expect("stops");
    database.close().await;

    let database = place.open().await;
    let second = lead(&database, "a").await;
    assert!(second > first);
    let restored = database.restore(second).await.expect("restores");
    assert_eq!(restored.term, second);
    assert_eq!(restored.operation_last, OperationId(3));
    assert_eq!(restored.nodes, [row("a")]);
    assert_eq!(restored.deployments, [deployment()]);
    let open = [operation(1, OperationState::Recorded), operation(3, OperationState::Recorded)];
    assert_eq!(restored.operations, open);
    assert_eq!(database.operations(10).await.expect("lists").len(), 3);
}

pub(crate) async fn migrate_again(place: &Place) {
    let mut databases = Vec::new();
    for _ in 0..3 {
        databases.push(place.open_bare().await);
    }
    match place {
        // The lock file of its state directory keeps others away.
        Place::Sqlite(_) => databases[0].migrate().await.expect("migrates"),
        Place::Postgres(_) => {
            for migrated in futures_util::future::join_all(databases.iter().map(Database::migrate)).await {
                migrated.expect("migrates");
            }
        }
    }
    let term = lead(&databases[0], "a").await;
    databases[0].store(term, &[Write::SaveNode(row("a"))], &[]).await.expect("stores");
    for database in &databases {
        database.migrate().await.expect("migrates again");
        assert_eq!(database.restore(term).await.expect("restores").nodes.len(), 1);
    }
}

pub(crate) async fn newer(place: &Place) {
    let database = place.open().await;
    place
        .sql(
            "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
             SELECT 9999, 'of tomorrow', installed_on, success, checksum, execution_time
             FROM _sqlx_migrations WHERE version = 1",
        )
        .await
        .expect("a newer migration");
    let error = database.migrate().await.expect_err("refused");
    assert!(matches!(error, StoreError::Newer(9999)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the database is of a newer program: migration 9999 is unknown to this one"
    );
}

pub(crate) async fn repeat(place: &Place) {
    let database = place.open().await;
    let (term, queue) = (lead(&database, "a").await, StoreQueue::default());
    queue.push_event(note("one"));
    queue.push_event(note("two"));
    let (_, events) = queue.take();
    for _ in 0..2 {
        database.store(term, &[], &events).await.expect("stores");
    }
    let listed = database.events(None, 10, None).await.expect("lists");
    assert_eq!(listed.iter().map(|event| event.text.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(listed.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2]);
    let later = database.events(Some(listed[0].id), 10, Some(&node("a"))).await.expect("lists");
    assert_eq!(later, listed[1..]);
    assert!(database.events(Some(0), 10, Some(&node("b"))).await.expect("lists").is_empty());
    assert!(database.events(None, 10, Some(&node("b"))).await.expect("lists").is_empty());
}

pub(crate) async fn wait(place: &Place) {
    let database = place.open().await;
    let term = lead(&database, "a").await;
    let mut other = place.connect().await;
    sqlx::raw_sql("BEGIN; UPDATE controller_lease SET term = term")
        .execute(&mut other)
        .await
        .expect("locked");
    let (supervisor, queue, mut recorded) = writer(&database, term);
    for id in 1..=2 {
        queue.push(Write::Operation { operation: operation(id, OperationState::Intended), is_new: true });
    }
    queue.push_event(note("while away"));
    wait_failed(&queue).await;
    assert!(recorded.try_recv().is_err(), "nothing is recorded that is not stored");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("unlocked");
    for id in 1..=2 {
        let next = tokio::time::timeout(SOON, recorded.recv()).await.expect("in time");
        assert_eq!(next, Some(OperationId(id)));
    }
    stored(&queue).await;
    assert_eq!(database.events(None, 10, None).await.expect("lists").len(), 1);
    supervisor.stop(SOON).await.expect("stops");
}

pub(crate) async fn append_only(place: &Place) {
    let database = place.open().await;
    let (term, queue) = (lead(&database, "a").await, StoreQueue::default());
    queue.push_event(note("what happened"));
    let (_, events) = queue.take();
    database.store(term, &[], &events).await.expect("stores");
    let mut changes = vec!["UPDATE events SET text = 'nothing happened'", "DELETE FROM events"];
    match place {
        Place::Sqlite(_) => {}
        Place::Postgres(_) => changes.push("TRUNCATE events"),
    }
    for change in changes {
        let error = place.sql(change).await.expect_err("refused");
        assert!(error.to_string().contains("the event log is append-only"), "{change}: {error}");
    }
    let listed = database.events(None, 10, None).await.expect("lists");
    assert_eq!(listed.iter().map(|event| event.text.as_str()).collect::<Vec<_>>(), ["what happened"]);
}

pub(crate) async fn zero(place: &Place) {
    let database = place.open().await;
    let (term, queue) = (lead(&database, "a").await, StoreQueue::default());
    queue.push_event(note("a\0b"));
    let (_, events) = queue.take();
    let reason = Operation { reason: "c\0d".to_owned(), ..operation(1, OperationState::Intended) };
    let writes = [Write::Operation { operation: reason, is_new: true }];
    database.store(term, &writes, &events).await.expect("stores");
    assert_eq!(database.events(None, 10, None).await.expect("lists")[0].text, "a\u{fffd}b");
    assert_eq!(
        database.operations(1).await.expect("lists")[0].reason,
        "c\0d",
        "a body is JSON, which escapes it"
    );
}

pub(crate) async fn token_race(place: &Place) {
    let database = place.open().await;
    let token = database.create_join_token(&node("a"), SOON).await.expect("token");
    let uses = (0..16).map(|_| {
        let (database, token) = (&database, &token);
        async move { database.consume_join_token(&token.hash(), &node("a")).await.is_ok() }
    });
    let uses = futures_util::future::join_all(uses).await;
    assert_eq!(uses.into_iter().filter(|used| *used).count(), 1);
}

pub(crate) async fn token_refusal(place: &Place) {
    let database = place.open().await;
    let token = database.create_join_token(&node("a"), Duration::MAX).await.expect("token");
    let stale = database.create_join_token(&node("a"), Duration::ZERO).await.expect("token");
    let unknown = JoinToken::generate().expect("token");
    let [a, b] = [node("a"), node("b")];
    assert!(matches!(database.consume_join_token(&unknown.hash(), &a).await, Err(TokenError::Unknown)));
    assert!(matches!(database.consume_join_token(&stale.hash(), &a).await, Err(TokenError::Expired)));
    assert!(matches!(database.consume_join_token(&token.hash(), &b).await, Err(TokenError::OtherNode)));
    assert!(database.consume_join_token(&token.hash(), &a).await.is_ok());
    assert!(matches!(database.consume_join_token(&token.hash(), &a).await, Err(TokenError::Used)));
    let certificate = || Write::Certificate { serial: "01".to_owned(), node: a.clone(), expires_at_ms: 1 };
    let term = lead(&database, "a").await;
    database.store(term, &[certificate(), certificate()], &[]).await.expect("stores");
    assert_eq!(database.certificate_count(&a).await.expect("counts"), 1);
}
