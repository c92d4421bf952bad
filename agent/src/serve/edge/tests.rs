//! The whole edge between a real client and fake engines: plain HTTP for the own one, mutual TLS for peers'.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cic_common::id::{DeploymentName, Incarnation, NodeId, Term};
use cic_common::report::Role;
use cic_common::route::{Replica, Route, RoutingTable};
use cic_common::supervise::{Kind, Supervisor, TaskHandle};
use cic_common::time::{Clock, unix_ms};
use cic_common::tls::config::{tcp_client, tcp_server};
use cic_common::tls::{CertificateAuthority, Identity, Peer, Trust};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::RETRY_AFTER;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::answer::Refusal;
use super::lifeline::is_silent;
use super::pool::{Pool, Upstream};
use super::request::EDGE_BODY_BYTES_MAX;
use super::{Edge, EdgeSpec, NODE_HEADER, OwnEngine, REFUSED_HEADER, Routes, UserPort};
use crate::core::EdgeMode;
use crate::effect::link::Pulse;
use crate::serve::peer::PeerPort;
use crate::state::StateDir;

/// Everything here takes milliseconds on an idle machine; a loaded one gets time, a broken build still ends.
const DEADLINE: Duration = Duration::from_secs(20);

const MODEL: &str = "tiny";
const ASKING: &str = r#"{"model":"tiny","messages":[]}"#;
const GOOD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"choices\":[]}";
const GOOD_BODY: &str = r#"{"choices":[]}"#;
const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"choic";
const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Where a fake stands: behind the edge's own port, or as the engine of node `n1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Own,
    Peer,
}

/// What a fake does with a request.
#[derive(Clone)]
enum Act {
    /// Refuses the connection.
    Refuse,
    /// Sends this and keeps the connection.
    Say(String),
    /// Sends this and closes the connection.
    Break(String),
    /// Sends what it is fed, as it is fed, and then closes the connection.
    Feed(Arc<Mutex<mpsc::Receiver<String>>>),
}

struct Fake {
    side: Side,
    port: u16,
    /// Requests that came.
    asked: watch::Receiver<u32>,
    /// Connections that the edge closed during an answer.
    left: watch::Receiver<u32>,
    /// A bound socket that does not listen refuses, and nobody else gets its port.
    _refusing: Option<TcpSocket>,
}

/// Node `n0` with its edge and user port, and the authority of its fleet.
struct Stand {
    directory: TempDir,
    authority: CertificateAuthority,
    trust: Trust,
    supervisor: Supervisor,
    routes: Routes,
    table_version: AtomicU64,
    edge: Edge,
    user_port: u16,
}

impl Stand {
    async fn start(role: Role) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), unix_ms()).unwrap();
        let trust = authority.trust().unwrap();
        let routes = Routes::remembered(&StateDir::open(&directory.path().join("state")).unwrap());
        let supervisor = Supervisor::new();
        let identity = identity(&directory, &authority, "n0");
        let tls = Some(tcp_client(&identity, &trust).unwrap());
        let spec = EdgeSpec { node: node("n0"), role, tls };
        let edge = Edge::new(spec, routes.clone(), Clock::start(), &supervisor);
        let listener = listen().await;
        let user_port = listener.local_addr().unwrap().port();
        let (users, inner) = (UserPort { edge: edge.clone() }, supervisor.clone());
        supervisor.spawn("user port", Kind::Vital, |token| users.run(listener, inner, token));
        let table_version = AtomicU64::new(0);
        Self { directory, authority, trust, supervisor, routes, table_version, edge, user_port }
    }

    fn identity(&self, name: &str) -> Identity {
        identity(&self.directory, &self.authority, name)
    }

    async fn fake(&self, side: Side, act: Act) -> Fake {
        let (asks, asked) = watch::channel(0);
        let (leaves, left) = watch::channel(0);
        if let Act::Refuse = act {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let port = socket.local_addr().unwrap().port();
            return Fake { side, port, asked, left, _refusing: Some(socket) };
        }
        let tls = tcp_server(&self.identity("n1"), &self.trust).unwrap();
        let listener = listen().await;
        let port = listener.local_addr().unwrap().port();
        let connections = self.supervisor.clone();
        self.supervisor.spawn("fake", Kind::Passing, |_| async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let (act, asks, leaves, tls) = (act.clone(), asks.clone(), leaves.clone(), Arc::clone(&tls));
                connections.spawn("fake connection", Kind::Passing, |_| async move {
                    match side {
                        Side::Own => play(stream, act, asks, leaves).await?,
                        Side::Peer => {
                            play(TlsAcceptor::from(tls).accept(stream).await?, act, asks, leaves).await?;
                        }
                    }
                    Ok(())
                });
            }
        });
        Fake { side, port, asked, left, _refusing: None }
    }

    /// Lets the edge use `fake`.
    fn admit(&self, fake: &Fake) {
        match fake.side {
            Side::Own => self.own(fake.port, EdgeMode::Admit),
            Side::Peer => self.route(vec![Replica { node: node("n1"), address: address(fake.port) }]),
        }
    }

    fn own(&self, port: u16, mode: EdgeMode) {
        self.edge.set_own(Some(OwnEngine { model: MODEL.to_owned(), port, mode }));
    }

    fn route(&self, replicas: Vec<Replica>) {
        let version = self.table_version.fetch_add(1, Ordering::Relaxed) + 1;
        let deployment = DeploymentName::new("d").unwrap();
        let routes = vec![Route { deployment, model: MODEL.to_owned(), replicas }];
        assert!(self.routes.offer(RoutingTable { term: Term(1), version, routes }));
    }

    async fn client(&self) -> Client {
        let stream = TcpStream::connect(address(self.user_port)).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let task = self.supervisor.spawn("client", Kind::Passing, |token| async move {
            tokio::select! {
                result = connection => Ok(result?),
                () = token.cancelled() => Ok(()),
            }
        });
        Client { sender, task }
    }

    async fn ask(&self, body: impl Into<Bytes>) -> Response<Incoming> {
        let mut client = self.client().await;
        within("answer", client.sender.send_request(request(body))).await.unwrap()
    }

    /// (requests, retries, failures) so far.
    fn counted(&self) -> (u64, u64, u64) {
        let report = self.edge.report();
        (report.request_count, report.retry_count, report.failure_count)
    }

    async fn until_in_flight(&self, count: u32) {
        within("requests in flight", async {
            while self.edge.report().in_flight != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    task: TaskHandle,
}

/// Answers requests on one connection as `act` says, until the edge closes it.
async fn play(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    act: Act,
    asks: watch::Sender<u32>,
    leaves: watch::Sender<u32>,
) -> std::io::Result<()> {
    loop {
        if read_request(&mut stream).await?.starts_with("GET /healthz") {
            say(&mut stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        asks.send_modify(|count| *count += 1);
        match &act {
            Act::Refuse => return Ok(()),
            Act::Say(text) => say(&mut stream, text).await?,
            Act::Break(text) => return say(&mut stream, text).await,
            Act::Feed(food) => {
                let mut food = food.lock().await;
                loop {
                    let fed = tokio::select! {
                        fed = food.recv() => fed,
                        _ = stream.read_u8() => {
                            leaves.send_modify(|count| *count += 1);
                            return Ok(());
                        }
                    };
                    let Some(text) = fed else { return Ok(()) };
                    say(&mut stream, &text).await?;
                }
            }
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await?;
    Ok(head)
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

fn identity(directory: &TempDir, authority: &CertificateAuthority, name: &str) -> Identity {
    let path = directory.path().join(format!("{name}.pem"));
    authority.issue(&path, &Peer::Node(node(name)), Duration::from_secs(3600), unix_ms()).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

async fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

fn request(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions").header("host", "edge");
    request.body(Full::new(body.into())).unwrap()
}

/// A fake's food, and its end in the test's hand.
fn feed() -> (mpsc::Sender<String>, Act) {
    let (feeder, food) = mpsc::channel(8);
    (feeder, Act::Feed(Arc::new(Mutex::new(food))))
}

fn chunk(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n", event.len())
}

async fn text(response: Response<Incoming>) -> String {
    let body = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn frame(body: &mut Incoming) -> Result<Bytes, hyper::Error> {
    within("frame", body.frame()).await.unwrap().map(|frame| frame.into_data().unwrap())
}

async fn reaches(watched: &watch::Receiver<u32>, count: u32) {
    let mut watched = watched.clone();
    within("count", watched.wait_for(|now| *now == count)).await.unwrap();
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
    }
}

/// Asks with a replica that acts as `act` before a good one: the client must see nothing but the good answer.
async fn assert_hidden(act: &Act) {
    for (bad_side, good_side, good_name) in [(Side::Own, Side::Peer, "n1"), (Side::Peer, Side::Own, "n0")] {
        let stand = Stand::start(Role::Replica).await;
        let good = stand.fake(good_side, Act::Say(GOOD.to_owned())).await;
        let bad = stand.fake(bad_side, act.clone()).await;
        // The good one has its turn first, so that the bad one has the next.
        stand.admit(&good);
        assert_eq!(text(stand.ask(ASKING).await).await, GOOD_BODY);
        stand.admit(&bad);

        let answer = stand.ask(ASKING).await;
        assert_eq!(answer.headers()[NODE_HEADER], good_name);
        assert_eq!(text(answer).await, GOOD_BODY);
        let bad_count = u32::from(!matches!(act, Act::Refuse));
        assert_eq!((*bad.asked.borrow(), *good.asked.borrow()), (bad_count, 2), "{bad_side:?}");
        assert_eq!(stand.counted(), (2, 1, 0), "{bad_side:?}");
        stand.until_in_flight(0).await;
    }
}

#[tokio::test]
async fn a_replica_that_refuses_connections_is_passed_over() {
    assert_hidden(&Act::Refuse).await;
}

#[tokio::test]
async fn a_connection_closed_before_the_first_body_byte_is_retried() {
    for sent in ["", HALF.split_inclusive("\r\n\r\n").next().unwrap(), STREAM] {
        assert_hidden(&Act::Break(sent.to_owned())).await;
    }
}

#[tokio::test]
async fn a_refusal_by_a_peer_is_retried() {
    let refusal = "HTTP/1.1 503 Busy\r\nx-cic-refused: draining\r\ncontent-length: 0\r\n\r\n";
    assert_hidden(&Act::Say(refusal.to_owned())).await;
}

#[tokio::test]
async fn an_answer_cut_half_way_is_run_again_as_a_whole() {
    assert_hidden(&Act::Break(HALF.to_owned())).await;
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_retried() {
    let error = chunk("data: {\"error\":{\"message\":\"EngineCore died\"}}\n\n");
    assert_hidden(&Act::Say(format!("{STREAM}{error}0\r\n\r\n"))).await;
}

#[tokio::test]
async fn a_stream_that_has_begun_is_passed_on_unbuffered_and_never_retried() {
    for side in [Side::Own, Side::Peer] {
        let stand = Stand::start(Role::Gateway).await;
        let (feeder, act) = feed();
        let dying = stand.fake(side, act).await;
        stand.admit(&dying);
        let first = "data: {\"choices\":[]}\n\n";
        feeder.send(format!("{STREAM}{}", chunk(first))).await.unwrap();
        let answer = stand.ask(ASKING).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let other = if side == Side::Own { Side::Peer } else { Side::Own };
        let other = stand.fake(other, Act::Say(GOOD.to_owned())).await;
        stand.admit(&other);

        let mut body = answer.into_body();
        assert_eq!(frame(&mut body).await.unwrap(), first);
        // Each is fed only once the one before has arrived.
        for event in ["data: 2\n\n", "data: 3\n\n"] {
            feeder.send(chunk(event)).await.unwrap();
            assert_eq!(frame(&mut body).await.unwrap(), event);
        }
        drop(feeder);
        assert!(frame(&mut body).await.is_err());
        stand.until_in_flight(0).await;
        assert_eq!((*dying.asked.borrow(), *other.asked.borrow()), (1, 0));
        assert_eq!(stand.counted(), (1, 0, 1));
    }
}

#[tokio::test]
async fn what_the_client_did_wrong_is_passed_on_and_never_retried() {
    for status in [400, 404, 422, 429] {
        let stand = Stand::start(Role::Replica).await;
        let wrong = format!("HTTP/1.1 {status} No\r\ncontent-length: 5\r\n\r\nwrong");
        let (own, peer) = (
            stand.fake(Side::Own, Act::Say(wrong.clone())).await,
            stand.fake(Side::Peer, Act::Say(wrong)).await,
        );
        stand.admit(&own);
        stand.admit(&peer);
        let answer = stand.ask(ASKING).await;
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(text(answer).await, "wrong");
        assert_eq!(*own.asked.borrow() + *peer.asked.borrow(), 1);
        assert_eq!(stand.counted(), (1, 0, 0));
    }
}

#[tokio::test]
async fn a_request_that_breaks_engines_does_not_break_all_of_them_for_ever() {
    let stand = Stand::start(Role::Replica).await;
    let (own, peer) = (
        stand.fake(Side::Own, Act::Break(String::new())).await,
        stand.fake(Side::Peer, Act::Break(String::new())).await,
    );
    stand.admit(&own);
    stand.admit(&peer);
    assert_eq!(stand.ask(ASKING).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(*own.asked.borrow() + *peer.asked.borrow(), 4);
    assert_eq!(stand.counted(), (1, 3, 1));
}

#[tokio::test]
async fn what_no_replica_could_answer_is_answered_by_the_edge() {
    let stand = Stand::start(Role::Gateway).await;
    let good = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
    stand.admit(&good);
    for (length, status) in [(EDGE_BODY_BYTES_MAX, 200), (EDGE_BODY_BYTES_MAX + 1, 413)] {
        assert_eq!(stand.ask(vec![b' '; length]).await.status(), status, "{length}");
    }
    let answer = stand.ask(r#"{"model":"huge"}"#).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let error: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
    assert_eq!(error["error"]["code"], "model_not_found");
    assert!(error["error"]["message"].as_str().unwrap().contains(MODEL), "{error}");
    assert_eq!((*good.asked.borrow(), stand.counted()), (1, (3, 0, 0)));

    // That it is answered so after the wait is not waited for.
    let none = Refusal::NoReplica { model: MODEL.to_owned(), why: String::new() }.into_response();
    assert_eq!(none.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(none.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn a_request_of_a_peer_is_answered_by_the_own_engine_or_refused_and_never_passed_on() {
    let stand = Stand::start(Role::Replica).await;
    let own = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
    let other = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    stand.admit(&other);
    let edge = stand.edge.clone();
    let port = PeerPort {
        tls: tcp_server(&stand.identity("n0"), &stand.trust).unwrap(),
        pulse: Arc::new(Pulse::new(node("n0"), Incarnation(1), Clock::start())),
        edge: Arc::new(move |request, _| {
            let edge = edge.clone();
            Box::pin(async move { edge.from_peer(request).await })
        }),
    };
    let listener = listen().await;
    let upstream =
        Upstream::Peer { node: node("n0"), address: address(listener.local_addr().unwrap().port()) };
    let inner = stand.supervisor.clone();
    stand.supervisor.spawn("peer port", Kind::Vital, |token| port.run(listener, inner, token));
    let tls = tcp_client(&stand.identity("n2"), &stand.trust).unwrap();
    let sender = Pool::new(Clock::start(), stand.supervisor.clone(), Some(tls));
    let ask = || within("answer", sender.send_afresh(&upstream, request(ASKING)));

    let refuse = |reason: &str| EdgeMode::Refuse { reason: reason.to_owned() };
    let drain = EdgeMode::Drain { reason: "leaving".to_owned() };
    for (mode, reason) in
        [(None, "no engine runs here"), (Some(refuse("loading")), "loading"), (Some(drain), "leaving")]
    {
        stand.edge.set_own(mode.map(|mode| OwnEngine { model: MODEL.to_owned(), port: own.port, mode }));
        let answer = ask().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()[REFUSED_HEADER], reason);
    }
    assert_eq!((*own.asked.borrow(), *other.asked.borrow()), (0, 0));

    stand.admit(&own);
    let answer = ask().await.unwrap();
    assert_eq!(answer.headers()[NODE_HEADER], "n0");
    assert_eq!(text(answer).await, GOOD_BODY);
    assert_eq!((*own.asked.borrow(), *other.asked.borrow()), (1, 0));
    stand.until_in_flight(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_and_its_replica() {
    for (side, role) in [(Side::Own, Role::Replica), (Side::Own, Role::Gateway), (Side::Peer, Role::Gateway)]
    {
        for has_begun in [false, true] {
            let stand = Stand::start(role).await;
            let (feeder, act) = feed();
            let fake = stand.fake(side, act).await;
            stand.admit(&fake);
            let mut client = stand.client().await;
            let answer = client.sender.send_request(request(ASKING));
            if has_begun {
                feeder.send(format!("{STREAM}{}", chunk("data: 1\n\n"))).await.unwrap();
                let mut body = within("answer", answer).await.unwrap().into_body();
                assert_eq!(frame(&mut body).await.unwrap(), "data: 1\n\n");
                assert_eq!(stand.edge.report().in_flight, 1);
                client.task.cancel();
            } else {
                reaches(&fake.asked, 1).await;
                assert_eq!(stand.edge.report().in_flight, 1);
                client.task.cancel();
                assert!(within("end", answer).await.is_err());
            }
            reaches(&fake.left, 1).await;
            stand.until_in_flight(0).await;
        }
    }
}

#[tokio::test]
async fn only_a_peer_that_gives_no_answer_of_any_kind_is_silent() {
    let stand = Stand::start(Role::Gateway).await;
    let tls = tcp_client(&stand.identity("n2"), &stand.trust).unwrap();
    let pool = Pool::new(Clock::start(), stand.supervisor.clone(), Some(tls));
    let peer = |port| Upstream::Peer { node: node("n1"), address: address(port) };

    let answering = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    let refusing = stand.fake(Side::Peer, Act::Refuse).await;
    // Takes a connection and closes it: an agent whose places are all taken.
    let full = listen().await;
    let full_port = full.local_addr().unwrap().port();
    stand.supervisor.spawn("full peer", Kind::Passing, |_| async move {
        loop {
            drop(full.accept().await?);
        }
    });
    // The kernel takes the connection, nobody ever reads from it: a frozen machine.
    let frozen = listen().await;
    for (port, expected) in [
        (answering.port, false),
        (refusing.port, false),
        (full_port, false),
        (frozen.local_addr().unwrap().port(), true),
    ] {
        assert_eq!(within("verdict", is_silent(&pool, &peer(port))).await, expected);
    }
}
