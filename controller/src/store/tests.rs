//! The store against real files.

use std::sync::Arc;
use std::time::Duration;

use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::{ControllerId, DeploymentName, Incarnation, NodeId, OperationId, Term};
use cic_common::name::ClusterName;
use cic_common::report::Role;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::tls::JoinToken;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::core::{Deployment, EventRecord, NodeRecord, Operation, OperationKind, OperationState, Severity};

const SOON: Duration = Duration::from_secs(20);

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

fn row(name: &str) -> NodeRecord {
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

fn operation(id: u64, state: OperationState) -> Operation {
    Operation {
        id: OperationId(id),
        term: Term(1),
        node: node("a"),
        kind: OperationKind::Terminate,
        state,
        reason: "test".to_owned(),
    }
}

fn deployment() -> Deployment {
    Deployment {
        name: DeploymentName::new("chat").expect("valid"),
        model: ModelSpec { name: "tiny".to_owned(), path: "/models/tiny".to_owned() },
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
    }
}

fn note(text: &str) -> EventRecord {
    EventRecord {
        node: Some(node("a")),
        severity: Severity::Info,
        kind: "test".to_owned(),
        text: text.to_owned(),
    }
}

async fn opened(directory: &std::path::Path) -> Database {
    let database = Database::open_file(&directory.join("cic.db")).await.expect("opens");
    database.migrate().await.expect("migrates");
    database
}

/// A term of the lease, under which a writer stores.
pub(crate) async fn taken(database: &Database) -> Term {
    let holder = Holder { controller: ControllerId::new("a").expect("valid"), api: String::new() };
    match database.take_lease(&holder, SOON).await.expect("answers") {
        Taken::Yes(term) => term,
        Taken::No(lease) => panic!("taken: {lease:?}"),
    }
}

/// A writer over `database`, its queue, and what it says is recorded.
fn writer(database: &Database, term: Term) -> (Supervisor, StoreQueue, mpsc::Receiver<OperationId>) {
    let (supervisor, queue) = (Supervisor::new(), StoreQueue::default());
    let (tell, told) = mpsc::channel(16);
    let (database, shared) = (database.clone(), queue.clone());
    supervisor.spawn("store", Kind::Vital, move |token| async move {
        assert_eq!(run_writer(database, term, shared, tell, token).await, Ended::Stopped);
        Ok(())
    });
    (supervisor, queue, told)
}

async fn stored(queue: &StoreQueue) {
    let (done, stored) = oneshot::channel();
    assert!(queue.push(Write::Barrier(done)));
    tokio::time::timeout(SOON, stored).await.expect("in time").expect("answered");
}

#[tokio::test]
async fn a_restart_finds_what_was_recorded_under_a_higher_term() {
    let directory = tempfile::tempdir().expect("directory");
    let database = opened(directory.path()).await;
    let first = taken(&database).await;
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

    let database = opened(directory.path()).await;
    let second = taken(&database).await;
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

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let database = opened(directory.path()).await;
    let term = taken(&database).await;
    database.store(term, &[Write::SaveNode(row("a"))], &[]).await.expect("stores");
    database.migrate().await.expect("migrates again");
    assert_eq!(database.restore(Term(2)).await.expect("restores").nodes.len(), 1);
}

#[tokio::test]
async fn a_batch_stored_twice_is_stored_once() {
    let directory = tempfile::tempdir().expect("directory");
    let database = opened(directory.path()).await;
    let (term, queue) = (taken(&database).await, StoreQueue::default());
    queue.push_event(note("one"));
    queue.push_event(note("two"));
    let (_, events) = queue.take();
    for _ in 0..2 {
        database.store(term, &[], &events).await.expect("stores");
    }
    let listed = database.events(None, 10, None).await.expect("lists");
    assert_eq!(listed.iter().map(|event| event.text.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let later = database.events(Some(listed[0].id), 10, Some(&node("a"))).await.expect("lists");
    assert_eq!(later, listed[1..]);
    assert!(database.events(Some(0), 10, Some(&node("b"))).await.expect("lists").is_empty());
}

#[tokio::test]
async fn a_database_that_comes_back_gets_everything_in_order() {
    let directory = tempfile::tempdir().expect("directory");
    let database = opened(directory.path()).await;
    let term = taken(&database).await;
    let lock = database.lock_for_test().await;
    let (supervisor, queue, mut recorded) = writer(&database, term);
    for id in 1..=2 {
        queue.push(Write::Operation { operation: operation(id, OperationState::Intended), is_new: true });
    }
    queue.push_event(note("while away"));
    tokio::time::timeout(SOON, async {
        while queue.counts().failures_in_row == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("an attempt fails");
    assert!(recorded.try_recv().is_err(), "nothing is recorded that is not stored");
    lock.release().await;
    for id in 1..=2 {
        let next = tokio::time::timeout(SOON, recorded.recv()).await.expect("in time");
        assert_eq!(next, Some(OperationId(id)));
    }
    stored(&queue).await;
    assert_eq!(database.events(None, 10, None).await.expect("lists").len(), 1);
    supervisor.stop(SOON).await.expect("stops");
}

#[tokio::test]
async fn of_simultaneous_uses_of_a_token_one_succeeds() {
    let directory = tempfile::tempdir().expect("directory");
    let database = opened(directory.path()).await;
    let token = Arc::new(database.create_join_token(&node("a"), SOON).await.expect("token"));
    let uses = (0..16).map(|_| {
        let (database, token) = (database.clone(), token.clone());
        async move { database.consume_join_token(&token.hash(), &node("a")).await.is_ok() }
    });
    let uses = futures_util::future::join_all(uses).await;
    assert_eq!(uses.into_iter().filter(|used| *used).count(), 1);
}

#[tokio::test]
async fn a_token_says_why_it_is_no_good() {
    let directory = tempfile::tempdir().expect("directory");
    let database = opened(directory.path()).await;
    let token = database.create_join_token(&node("a"), SOON).await.expect("token");
    let stale = database.create_join_token(&node("a"), Duration::ZERO).await.expect("token");
    let unknown = JoinToken::generate().expect("token");
    let [a, b] = [node("a"), node("b")];
    assert!(matches!(database.consume_join_token(&unknown.hash(), &a).await, Err(TokenError::Unknown)));
    assert!(matches!(database.consume_join_token(&stale.hash(), &a).await, Err(TokenError::Expired)));
    assert!(matches!(database.consume_join_token(&token.hash(), &b).await, Err(TokenError::OtherNode)));
    assert!(database.consume_join_token(&token.hash(), &a).await.is_ok());
    assert!(matches!(database.consume_join_token(&token.hash(), &a).await, Err(TokenError::Used)));
    let certificate = || Write::Certificate { serial: "01".to_owned(), node: a.clone(), expires_at_ms: 1 };
    let term = taken(&database).await;
    database.store(term, &[certificate(), certificate()], &[]).await.expect("stores");
    assert_eq!(database.certificate_count(&a).await.expect("counts"), 1);
}

/// Holds the database's write lock, so that every write fails until it is released.
pub(crate) struct WriteLock(sqlx::Transaction<'static, sqlx::Any>);

impl WriteLock {
    pub(crate) async fn release(self) {
        self.0.rollback().await.expect("rolls back");
    }
}

impl Database {
    pub(crate) async fn lock_for_test(&self) -> WriteLock {
        let transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.expect("locks");
        WriteLock(transaction)
    }
}
