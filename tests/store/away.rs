//! A PostgreSQL server that does not answer, goes away and comes back; and a controller that does.

use std::time::{Duration, Instant};

use cic_common::id::OperationId;
use cic_controller::core::OperationState;
use cic_controller::store::{Database, StoreError, Taken, Write};
use fleet_tests::process::Postgres;
use futures_util::{FutureExt as _, poll};
use sqlx::Row as _;

use crate::place::{Place, SOON, holder, lead};
use crate::rows::{note, operation, row, stored, wait_failed, writer};

/// A statement's deadline in the store.
const STATEMENT_WITHIN: Duration = Duration::from_secs(5);

/// What a deadline may be late on a loaded machine.
const LATE_MAX: Duration = Duration::from_secs(2);

fn server(place: &mut Place) -> &mut Postgres {
    match place {
        Place::Postgres(server) => server,
        Place::Sqlite(_) => panic!("a server"),
    }
}

#[tokio::test]
async fn a_frozen_server_holds_nobody_past_the_deadline_and_is_used_again_once_it_goes_on() {
    let Some(mut place) = Place::postgres() else { return };
    let database = place.open().await;
    let term = lead(&database, "a").await;
    // More than there are connections, so that some of them wait for one.
    let ask = || async {
        let reads = (0..8).map(|_| database.operations(1).map(|result| result.map(drop)));
        let writes = [Write::SaveNode(row("a"))];
        let all = tokio::join!(
            futures_util::future::join_all(reads),
            database.store(term, &writes, &[]),
            database.renew_lease(term, SOON),
        );
        all.0.into_iter().chain([all.1, all.2.map(drop)]).collect::<Vec<_>>()
    };
    for answer in ask().await {
        answer.expect("answers");
    }
    server(&mut place).freeze().expect("frozen");
    let began = Instant::now();
    for answer in ask().await {
        let error = answer.expect_err("no answer");
        let is_late =
            matches!(error, StoreError::Timeout(_) | StoreError::Statement(sqlx::Error::PoolTimedOut));
        assert!(is_late, "{error:?}");
    }
    let took = began.elapsed();
    assert!(took < STATEMENT_WITHIN + LATE_MAX, "{took:?}");
    server(&mut place).thaw().expect("goes on");
    let began = Instant::now();
    for answer in ask().await {
        answer.expect("answers again");
    }
    println!("frozen: refused after {took:?}; gone on: answered after {:?}", began.elapsed());
    assert!(began.elapsed() < LATE_MAX, "{:?}: no connection was held back", began.elapsed());
}

#[tokio::test]
async fn a_server_that_was_away_gets_everything_in_order_when_it_is_back() {
    let Some(mut place) = Place::postgres() else { return };
    let database = place.open().await;
    let term = lead(&database, "a").await;
    let (supervisor, queue, mut recorded) = writer(&database, term);
    queue.push(Write::Operation { operation: operation(1, OperationState::Intended), is_new: true });
    stored(&queue).await;
    server(&mut place).stop().expect("stopped");
    for id in 2..=4 {
        queue.push(Write::Operation { operation: operation(id, OperationState::Intended), is_new: true });
    }
    queue.push_event(note("while away"));
    wait_failed(&queue).await;
    server(&mut place).start_again().expect("started");
    for id in 1..=4 {
        let next = tokio::time::timeout(SOON, recorded.recv()).await.expect("in time");
        assert_eq!(next, Some(OperationId(id)));
    }
    stored(&queue).await;
    assert_eq!(database.operations(10).await.expect("lists").len(), 4);
    assert_eq!(database.events(None, 10, None).await.expect("lists").len(), 1);
    supervisor.stop(SOON).await.expect("stops");
}

/// A leader that is stopped in the middle of a transaction has the lease's row locked.
#[tokio::test]
async fn a_leader_stopped_inside_a_transaction_keeps_nobody_from_the_lease_and_stores_nothing_of_it() {
    const LEASE: Duration = Duration::from_millis(1500);
    let Some(place) = Place::postgres() else { return };
    let (old, new) = (place.open().await, place.open().await);
    let Taken::Yes(first) = old.take_lease(&holder("a"), LEASE).await.expect("answers") else {
        panic!("it is free")
    };
    let mut watcher = place.connect().await;
    let writes: Vec<_> = (0..200).map(|number| Write::SaveNode(row(&format!("n{number}")))).collect();
    let mut stopped = Box::pin(old.store(first, &writes, &[]));
    let is_inside = async {
        loop {
            assert!(poll!(&mut stopped).is_pending(), "it was over before it could be stopped");
            let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'
                        AND query LIKE '%nodes%'";
            if sqlx::query(open).fetch_one(&mut watcher).await.expect("counts").get::<i64, _>(0) == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, is_inside).await.expect("it writes");
    let began = Instant::now();
    let taken = async {
        loop {
            match new.take_lease(&holder("b"), LEASE * 9).await {
                Ok(Taken::Yes(term)) => return term,
                Ok(Taken::No(lease)) => tokio::time::sleep(lease.left).await, // bounded wait: LEASE
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let second = tokio::time::timeout(SOON, taken).await.expect("taken");
    let took = began.elapsed();
    println!("stopped inside a transaction: its lease of {LEASE:?} was another's after {took:?}");
    assert!(took < LEASE + LATE_MAX, "{took:?}");
    assert!(second > first);
    let error = stopped.await.expect_err("not stored");
    assert!(matches!(error, StoreError::Statement(_)), "{error:?}");
    assert!(new.restore(second).await.expect("restores").nodes.is_empty());
    let error = old.store(first, &writes, &[]).await.expect_err("not stored");
    assert!(matches!(error, StoreError::Fenced { newest, .. } if newest == second), "{error:?}");
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_does_not_name_it() {
    let Some(place) = Place::postgres() else { return };
    let error = Database::open(&place.url(), Some("guess")).await.expect_err("refused");
    let text = format!("{error:?} {error}");
    assert!(matches!(error, StoreError::Open { .. }) && !text.contains("guess"), "{text}");
    assert!(text.contains("password authentication failed"), "{text}");
}

/// Its processes end and its directory goes, though nothing of the test's is left to do it.
#[test]
fn a_test_that_is_killed_leaves_no_server_behind() {
    const INNER: &str = "CIC_KILLED_TEST";
    if std::env::var_os(INNER).is_some() {
        let Some(server) = Postgres::start() else { return };
        println!("{}", server.password_file().display());
        std::thread::park();
    }
    if Postgres::start().is_none() {
        return;
    }
    let name = "away::a_test_that_is_killed_leaves_no_server_behind";
    let mut test = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(INNER, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("this test once more");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(test.stdout.take().expect("piped")));
    let file = lines.map_while(Result::ok).find(|line| line.ends_with("/password")).expect("a server");
    let place = std::path::Path::new(&file).parent().expect("a directory");
    let state = std::fs::read_to_string(place.join("data/postmaster.pid")).expect("it runs");
    let pid = state.lines().next().and_then(|line| line.parse().ok()).expect("a pid");
    assert!(cic_common::process::Process::read(pid).is_some());
    test.kill().expect("killed");
    test.wait().expect("ended");
    wait_gone(place, pid);
}

fn wait_gone(place: &std::path::Path, pid: u32) {
    let began = Instant::now();
    while place.exists() || cic_common::process::Process::read(pid).is_some() {
        assert!(began.elapsed() < SOON, "{} and {pid} are left", place.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_waited_for_and_one_that_refuses_is_not() {
    let Some(mut place) = Place::postgres() else { return };
    let (url, password) = (place.url(), server(&mut place).password());
    let open = |url: String, password: &'static str| async move {
        tokio::time::timeout(SOON, Database::wait_until_there(&url, Some(password))).await
    };
    let unknown = url.replace("/fleet", "/unknown");
    assert_ne!(unknown, url);
    for (url, password) in [(url.clone(), "wrong"), (unknown, password)] {
        let refused = open(url.clone(), password).await.expect("it is told at once");
        assert!(matches!(refused, Err(StoreError::Open { .. })), "{url}: {refused:?}");
    }
    server(&mut place).stop().expect("stops");
    let opening = open(url, password);
    tokio::pin!(opening);
    assert!(poll!(&mut opening).is_pending());
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut opening).await.is_err(), "nobody is there");
    server(&mut place).start_again().expect("starts");
    opening.await.expect("soon").expect("it answers");
}
