//! The API over a socket, with a real core and store behind it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use cic_common::id::{ControllerId, NodeId};
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{AUTHORIZATION, ORIGIN};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Api, serve};
use crate::core::{Action, BrakeRules, EventRecord, Fleet, Severity, Timing};
use crate::driver::{Driver, Inlets, Network, Shells};
use crate::ha::{Keeper, KeeperSpec, Leadership, LeaseTiming};
use crate::identity;
use crate::provision::Provision;
use crate::reach::{Reach, ReachSpec};
use crate::record::{Recorder, replay};
use crate::store::{Database, Holder};

const SOON: Duration = Duration::from_secs(20);

/// No way to any node.
struct Deaf;

impl Network for Deaf {
    fn perform(&mut self, _action: Action) {}
}

/// A controller without nodes.
struct World {
    directory: tempfile::TempDir,
    tasks: Supervisor,
    database: Database,
    leadership: Leadership,
    address: SocketAddr,
}

impl World {
    async fn new(token: Option<&str>) -> Self {
        Self::beside(token, None).await
    }

    /// `leader`: another controller, that has the lease.
    async fn beside(token: Option<&str>, leader: Option<&Holder>) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let database = Database::open_file(&directory.path().join("cic.db")).await.expect("opens");
        database.migrate().await.expect("migrates");
        if let Some(leader) = leader {
            database.take_lease(leader, SOON * 10).await.expect("taken");
        }
        let (tasks, clock) = (Supervisor::new(), Clock::start());
        let (told, events) = mpsc::channel(16);
        let own =
            Holder { controller: ControllerId::new("c1").expect("a label"), api: "http://c1:1".to_owned() };
        let (keeping, writers) = (database.clone(), tasks.clone());
        let timing = LeaseTiming::default();
        let spec = KeeperSpec { database: keeping, own, clock, timing, tasks: writers };
        let (keeper, leadership, turns) = Keeper::begin(spec).await.expect("begins");
        tasks.spawn("lease", Kind::Vital, move |token| keeper.run(token));
        let provision = Provision::new(None, tasks.clone(), told);
        let reach = ReachSpec { ssh_port: 22, ssh: None };
        let id = ControllerId::new("c1").expect("label");
        let (authority, identity) = identity::open(&directory.path().join("tls"), &id).expect("identity");
        let trust = authority.trust().expect("trust");
        let (tell, _) = mpsc::channel(1);
        let reach = Reach::new(reach, &identity, &trust, tasks.clone(), tell).expect("TLS");
        let shells = Shells { leadership: leadership.clone(), provision, network: Box::new(Deaf), reach };
        let (timing, brake) = (Timing::default(), BrakeRules::default());
        let recorder =
            Recorder::create(&directory.path().join("record"), timing, brake, &Default::default(), &tasks)
                .expect("creates");
        let fleet = Fleet::new(timing, brake);
        let (driver, outlets) = Driver::new(fleet, clock, Inlets { events, turns }, shells, Some(recorder));
        tasks.spawn("driver", Kind::Vital, move |token| driver.run(token));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let api = Api::new(outlets, database.clone(), leadership.clone(), clock, token, None);
        let inner = tasks.clone();
        tasks.spawn("api", Kind::Vital, move |token| serve(listener, api, inner, token));
        Self { directory, tasks, database, leadership, address }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let (status, text) = self.send(method, path, body, &[]).await;
        (status, serde_json::from_str(&text).expect("JSON"))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(hyper::header::HeaderName, &str)],
    ) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).expect("valid");
        let client = Client::builder(TokioExecutor::new()).build_http();
        let exchange = async {
            let response = client.request(request).await.expect("answers");
            let status = response.status();
            let body = response.into_body().collect().await.expect("whole").to_bytes();
            (status, String::from_utf8(body.to_vec()).expect("text"))
        };
        tokio::time::timeout(SOON, exchange).await.expect("in time")
    }

    fn wish(&self) -> Value {
        std::fs::write(self.directory.path().join("config.json"), "{}").expect("writes");
        wish(self.directory.path())
    }
}

fn wish(model: &Path) -> Value {
    json!({"model": {"name": "tiny", "path": model}, "engine": {"program": "sh"}, "replicas": 2})
}

#[tokio::test]
async fn a_deployment_is_answered_once_it_is_stored_and_seen_at_once() {
    let world = World::new(None).await;
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&world.wish())).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let restored = world.database.restore(cic_common::id::Term(9)).await.expect("restores");
    assert_eq!(restored.deployments.len(), 1);
    assert_eq!(restored.deployments[0].name.as_str(), "chat");
    let (_, body) = world.call(Method::GET, "/v1/deployments", None).await;
    assert_eq!(body["deployments"][0]["deployment"]["replicas"], 2, "{body}");
    let (_, view) = world.call(Method::GET, "/v1/view", None).await;
    assert!(view["now_unix_ms"].as_u64().is_some_and(|ms| ms > 0) && view["nodes"].is_array(), "{view}");
    world.tasks.stop(SOON).await.expect("stops");
}

#[tokio::test]
async fn a_wrong_deployment_is_refused_with_every_mistake() {
    let world = World::new(None).await;
    let mut wish = wish(Path::new("/no/such/model"));
    wish["engine"]["program"] = json!("no-such-engine");
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&wish)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body["error"]["mistakes"].as_array().map(Vec::len), Some(2), "{body}");
    assert!(body["error"]["hint"].is_string());
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&json!({"replica": 1}))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let (status, _) = world.call(Method::GET, "/v1/nodes/n9", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, body) = world.call(Method::POST, "/v1/nodes/n9/drain", None).await;
    assert_eq!((status, body["error"]["message"].as_str()), (StatusCode::NOT_FOUND, Some("no node \"n9\"")));
}

#[tokio::test]
async fn only_a_vm_without_a_row_is_adopted_or_given_back_as_an_orphan() {
    let world = World::new(None).await;
    let (status, body) = world.call(Method::GET, "/v1/orphans", None).await;
    assert_eq!((status, &body["orphans"], &body["foreign_count"]), (StatusCode::OK, &json!([]), &json!(0)));
    for act in ["adopt", "terminate"] {
        let (status, body) = world.call(Method::POST, &format!("/v1/orphans/n9/{act}"), None).await;
        assert_eq!((status, &body["error"]["message"]), (StatusCode::NOT_FOUND, &json!("no orphan \"n9\"")));
    }
}

#[tokio::test]
async fn what_a_deployment_is_cannot_change_under_its_nodes() {
    let world = World::new(None).await;
    let mut wish = world.wish();
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&wish)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    wish["replicas"] = json!(3);
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&wish)).await;
    assert_eq!((status, &body["replicas"]), (StatusCode::OK, &json!(3)), "{body}");
    wish["model"]["name"] = json!("other");
    wish["zone"] = json!("there");
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&wish)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body["error"]["mistakes"].as_array().map(Vec::len), Some(2), "{body}");
}

#[tokio::test]
async fn a_change_waits_for_the_store_and_says_so_when_it_is_away() {
    let world = World::new(None).await;
    let lock = world.database.lock_for_test().await;
    let began = Clock::start();
    let (status, body) = world.call(Method::PUT, "/v1/deployments/chat", Some(&world.wish())).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(began.now().as_millis() >= 1000, "it waited");
    lock.release().await;
    let (status, _) = world.call(Method::PUT, "/v1/deployments/chat", Some(&world.wish())).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn changes_need_the_token_when_there_is_one_and_reads_do_not() {
    let world = World::new(Some("secret")).await;
    let wish = world.wish();
    let put = |headers: Vec<(hyper::header::HeaderName, &'static str)>| {
        let (world, wish) = (&world, &wish);
        async move { world.send(Method::PUT, "/v1/deployments/chat", Some(wish), &headers).await.0 }
    };
    assert_eq!(put(Vec::new()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(put(vec![(AUTHORIZATION, "Bearer wrong")]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(put(vec![(AUTHORIZATION, "Bearer secret")]).await, StatusCode::OK);
    assert_eq!(world.call(Method::GET, "/v1/nodes", None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_page_from_elsewhere_changes_nothing() {
    let world = World::new(None).await;
    let body = json!({"node": "gateway"});
    let evil = [(ORIGIN, "http://evil.example")];
    let (status, _) = world.send(Method::POST, "/v1/tokens", Some(&body), &evil).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, answer) = world.call(Method::POST, "/v1/tokens", Some(&body)).await;
    assert_eq!(status, StatusCode::CREATED);
    let token = cic_common::tls::JoinToken::parse(answer["token"].as_str().expect("text")).expect("a token");
    let node = NodeId::new("gateway").expect("valid");
    world.database.consume_join_token(&token.hash(), &node).await.expect("good once");
}

#[tokio::test]
async fn events_health_and_metrics_are_there_to_read() {
    let world = World::new(None).await;
    for text in ["one", "two"] {
        let (severity, kind) = (Severity::Warning, "test".to_owned());
        world.leadership.queue().expect("leads").push_event(EventRecord {
            node: None,
            severity,
            kind,
            text: text.to_owned(),
        });
    }
    let read = || async { world.call(Method::GET, "/v1/events?limit=1000", None).await.1 };
    let found = tokio::time::timeout(SOON, async {
        loop {
            let events = read().await["events"].as_array().cloned().unwrap_or_default();
            let ours: Vec<_> = events.into_iter().filter(|event| event["kind"] == "test").collect();
            if ours.len() == 2 {
                return ours;
            }
        }
    });
    let ours = found.await.expect("stored soon");
    let after = format!("/v1/events?after={}", ours[0]["id"]);
    let (_, later) = world.call(Method::GET, &after, None).await;
    assert_eq!(later["events"][0]["text"], "two");
    assert_eq!(world.call(Method::GET, "/v1/events?aftr=1", None).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(world.call(Method::GET, "/healthz", None).await.1["store_answers"], true);
    let (status, page) = world.send(Method::GET, "/metrics", None, &[]).await;
    assert_eq!(status, StatusCode::OK);
    for name in ["cic_nodes{belief=\"alive\"} 0", "cic_step_seconds_count", "cic_store_writes_waiting 0"] {
        assert!(page.contains(name), "{name} in {page}");
    }
}

#[tokio::test]
async fn what_was_recorded_replays_to_the_same_decisions() {
    let world = World::new(None).await;
    world.call(Method::PUT, "/v1/deployments/chat", Some(&world.wish())).await;
    world.tasks.stop(SOON).await.expect("stops");
    let print = || {
        let mut text = Vec::new();
        replay(&world.directory.path().join("record"), &mut text).expect("replays");
        String::from_utf8(text).expect("text")
    };
    let first = print();
    assert!(first.contains("save_deployment"), "{first}");
    assert_eq!(first, print());
}

#[tokio::test]
async fn half_a_request_does_not_keep_the_program_from_ending() {
    use tokio::io::AsyncWriteExt as _;
    let world = World::new(None).await;
    let mut client = tokio::net::TcpStream::connect(world.address).await.expect("connects");
    client
        .write_all(b"PUT /v1/deployments/chat HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf")
        .await
        .expect("writes");
    // Answered on a second connection, so the first was accepted before.
    let (status, _) = world.call(Method::GET, "/v1/nodes", None).await;
    assert_eq!(status, StatusCode::OK);
    world.tasks.stop(SOON).await.expect("stops");
}

fn other() -> Holder {
    Holder { controller: ControllerId::new("c2").expect("a label"), api: "http://c2:7480".to_owned() }
}

#[tokio::test]
async fn a_standby_answers_reads_and_sends_changes_to_the_leader() {
    let world = World::beside(Some("secret"), Some(&other())).await;
    for path in ["/v1/deployments/chat", "/v1/failover?x=1", "/v1/tokens"] {
        let method = if path.contains("deployments") { Method::PUT } else { Method::POST };
        let request = Request::builder().method(method).uri(format!("http://{}{path}", world.address));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer =
            client.request(request.body(Full::<Bytes>::default()).expect("valid")).await.expect("answers");
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{path}");
        assert_eq!(answer.headers()["location"], format!("http://c2:7480{path}"));
    }
    let (status, word) = world.call(Method::GET, "/v1/leader", None).await;
    assert_eq!((status, &word["role"]), (StatusCode::OK, &json!("standby")));
    assert_eq!((&word["controller"], &word["term"]), (&json!("c1"), &json!(1)));
    assert_eq!(word["leader"], json!({ "controller": "c2", "api": "http://c2:7480" }));
    assert_eq!(world.call(Method::GET, "/v1/nodes", None).await.0, StatusCode::OK);
    assert_eq!(world.call(Method::GET, "/healthz/ready", None).await.0, StatusCode::OK);
    assert_eq!(world.call(Method::GET, "/healthz/leader", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_leader_that_hands_over_stores_what_it_took_and_takes_nothing_more() {
    let world = World::new(None).await;
    assert_eq!(world.call(Method::GET, "/healthz/leader", None).await.0, StatusCode::OK);
    let wish = world.wish();
    assert_eq!(world.call(Method::PUT, "/v1/deployments/chat", Some(&wish)).await.0, StatusCode::OK);
    let (status, answer) = world.call(Method::POST, "/v1/failover", None).await;
    assert_eq!((status, &answer["term"]), (StatusCode::ACCEPTED, &json!(1)), "{answer}");
    let lease = world.database.lease().await.expect("answers").expect("was taken");
    assert!(lease.left.is_zero(), "{lease:?}");
    let restored = world.database.restore(lease.term).await.expect("restores");
    assert_eq!(restored.deployments.len(), 1);
    let (status, _) = world.call(Method::PUT, "/v1/deployments/more", Some(&wish)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "nobody leads");
    assert_eq!(world.call(Method::GET, "/healthz/leader", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (_, deployments) = world.call(Method::GET, "/v1/deployments", None).await;
    assert_eq!(deployments["deployments"][0]["deployment"]["name"], "chat", "it answers reads");
}

#[tokio::test]
async fn a_leader_whose_term_another_took_follows_it() {
    let world = World::new(None).await;
    assert_eq!(world.call(Method::GET, "/healthz/leader", None).await.0, StatusCode::OK);
    // As if this one had been stopped past its lease.
    world.database.release_lease(cic_common::id::Term(1)).await.expect("released");
    let taken = world.database.take_lease(&other(), SOON * 10).await.expect("answers");
    assert_eq!(taken, crate::store::Taken::Yes(cic_common::id::Term(2)));
    let (status, _) = world.call(Method::PUT, "/v1/deployments/chat", Some(&world.wish())).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "the store takes nothing of term 1");
    assert!(world.database.restore(cic_common::id::Term(2)).await.expect("reads").deployments.is_empty());
    let followed = async {
        while world.call(Method::GET, "/v1/leader", None).await.1["leader"]["controller"] != "c2" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, followed).await.expect("follows");
    let forgotten = async {
        while world.call(Method::GET, "/v1/deployments", None).await.1["deployments"] != json!([]) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, forgotten).await.expect("what was not stored is gone");
}
