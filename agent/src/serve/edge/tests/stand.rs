//! A node with its edge, a client before it, and fake engines behind it: one of its own, or a peer's over mutual TLS.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cic_common::id::{DeploymentName, NodeId, Term};
use cic_common::report::Role;
use cic_common::route::{Replica, Route, RoutingTable};
use cic_common::routing::Routing;
use cic_common::supervise::{Kind, Supervisor, TaskHandle};
use cic_common::time::{Clock, unix_ms};
use cic_common::tls::config::{tcp_client, tcp_server};
use cic_common::tls::{CertificateAuthority, Identity, Peer, Trust};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::super::{Edge, EdgeSpec, OwnEngine, Routes, ScarcitySpec, UserPort, UserPortSpec};
use crate::core::EdgeMode;
use crate::state::StateDir;

/// Everything here takes milliseconds on an idle machine; a loaded one gets time, a broken build still ends.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) const MODEL: &str = "tiny";
pub(super) const ASKING: &str = r#"{"model":"tiny","messages":[]}"#;
pub(super) const GOOD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"choices\":[]}";
pub(super) const GOOD_BODY: &str = r#"{"choices":[]}"#;
pub(super) const HALF: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"choic";
pub(super) const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Where a fake stands: behind the edge's own port, or as the engine of node `n1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Own,
    Peer,
}

/// What a fake does with a request.
#[derive(Clone)]
pub(super) enum Act {
    /// Refuses the connection.
    Refuse,
    /// Sends this and keeps the connection.
    Say(String),
    /// Sends this and closes the connection.
    Break(String),
    /// Sends what it is fed, as it is fed, and then closes the connection.
    Feed(Arc<Mutex<mpsc::Receiver<String>>>),
}

pub(super) struct Fake {
    pub(super) side: Side,
    pub(super) port: u16,
    /// Requests that came.
    pub(super) asked: watch::Receiver<u32>,
    /// Connections that the edge closed during an answer.
    pub(super) left: watch::Receiver<u32>,
    /// A bound socket that does not listen refuses, and nobody else gets its port.
    _refusing: Option<TcpSocket>,
}

/// Node `n0` with its edge and user port, and the authority of its fleet.
pub(super) struct Stand {
    pub(super) directory: TempDir,
    pub(super) authority: CertificateAuthority,
    pub(super) trust: Trust,
    pub(super) supervisor: Supervisor,
    pub(super) routes: Routes,
    pub(super) table_version: AtomicU64,
    pub(super) edge: Edge,
    pub(super) user_port: u16,
}

impl Stand {
    pub(super) async fn start(role: Role) -> Self {
        Self::scarce(role, ScarcitySpec::default()).await
    }

    /// The same with less to go round.
    pub(super) async fn scarce(role: Role, scarcity: ScarcitySpec) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), unix_ms()).unwrap();
        let trust = authority.trust().unwrap();
        let routes = Routes::remembered(&StateDir::open(&directory.path().join("state")).unwrap());
        let supervisor = Supervisor::new();
        let identity = identity(&directory, &authority, "n0");
        let tls = Some(tcp_client(&identity, &trust).unwrap());
        let spec =
            EdgeSpec { node: node("n0"), role, zone: None, tls, scarcity, continuation: true, answers: None };
        let edge = Edge::new(spec, routes.clone(), Clock::start(), &supervisor);
        let listener = listen().await;
        let user_port = listener.local_addr().unwrap().port();
        let (users, _) = UserPort::open(edge.clone(), &UserPortSpec::default(), Clock::start()).unwrap();
        let inner = supervisor.clone();
        supervisor.spawn("user port", Kind::Vital, |token| users.run(listener, inner, token));
        let table_version = AtomicU64::new(0);
        Self { directory, authority, trust, supervisor, routes, table_version, edge, user_port }
    }

    pub(super) fn identity(&self, name: &str) -> Identity {
        identity(&self.directory, &self.authority, name)
    }

    pub(super) async fn fake(&self, side: Side, act: Act) -> Fake {
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
    pub(super) fn admit(&self, fake: &Fake) {
        match fake.side {
            Side::Own => self.own(fake.port, EdgeMode::Admit),
            Side::Peer => self.route(vec![replica("n1", fake.port)]),
        }
    }

    pub(super) fn own(&self, port: u16, mode: EdgeMode) {
        self.edge.set_own(Some(OwnEngine { model: MODEL.to_owned(), port, mode }));
    }

    pub(super) fn route(&self, replicas: Vec<Replica>) {
        self.route_as(replicas, false);
    }

    pub(super) fn route_as(&self, replicas: Vec<Replica>, surge_allowed: bool) {
        let version = self.table_version.fetch_add(1, Ordering::Relaxed) + 1;
        let deployment = DeploymentName::new("d").unwrap();
        let routing = Routing { surge_allowed, ..Routing::default() };
        let routes = vec![Route { deployment, model: MODEL.to_owned(), replicas, routing }];
        assert!(self.routes.offer(RoutingTable { term: Term(1), version, routes }));
    }

    pub(super) async fn client(&self) -> Client {
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

    pub(super) async fn ask(&self, body: impl Into<Bytes>) -> Response<Incoming> {
        let mut client = self.client().await;
        within("answer", client.sender.send_request(request(body))).await.unwrap()
    }

    /// (requests, retries, failures) so far.
    pub(super) fn counted(&self) -> (u64, u64, u64) {
        let report = self.edge.report();
        (report.request_count, report.retry_count, report.failure_count)
    }

    pub(super) async fn until_in_flight(&self, count: u32) {
        within("requests in flight", async {
            while self.edge.report().in_flight != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

pub(super) struct Client {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) task: TaskHandle,
}

/// Answers requests on one connection as `act` says, until the edge closes it.
pub(super) async fn play(
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

pub(super) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
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

pub(super) async fn say(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

pub(super) fn identity(directory: &TempDir, authority: &CertificateAuthority, name: &str) -> Identity {
    let path = directory.path().join(format!("{name}.pem"));
    authority.issue(&path, &Peer::Node(node(name)), Duration::from_secs(3600), unix_ms()).unwrap()
}

pub(super) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(super) fn replica(name: &str, port: u16) -> Replica {
    Replica { node: node(name), address: address(port), zone: None, gpu: None }
}

pub(super) fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

pub(super) async fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

pub(super) fn request(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions").header("host", "edge");
    request.body(Full::new(body.into())).unwrap()
}

/// A fake's food, and its end in the test's hand.
pub(super) fn feed() -> (mpsc::Sender<String>, Act) {
    let (feeder, food) = mpsc::channel(8);
    (feeder, Act::Feed(Arc::new(Mutex::new(food))))
}

pub(super) fn chunk(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n", event.len())
}

pub(super) async fn text(response: Response<impl Body<Data = Bytes, Error = hyper::Error>>) -> String {
    let body = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

pub(super) async fn frame(body: &mut Incoming) -> Result<Bytes, hyper::Error> {
    within("frame", body.frame()).await.unwrap().map(|frame| frame.into_data().unwrap())
}

pub(super) async fn reaches(watched: &watch::Receiver<u32>, count: u32) {
    let mut watched = watched.clone();
    within("count", watched.wait_for(|now| *now == count)).await.unwrap();
}

pub(super) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
    }
}
