//! The second witness: polls over the peer port, and what its warm connection tells.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cic_agent::effect::link::Pulse;
use cic_agent::serve::order::OrderDesk;
use cic_agent::serve::peer::{PeerBody, PeerPort};
use cic_common::id::Incarnation;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use cic_common::tls::config::{tcp_client, tcp_server};
use cic_common::tls::{Identity, Peer};
use cic_controller::core::{Event, PollFault, Polled};
use cic_controller::poll::Poller;
use http_body_util::{BodyExt as _, Full};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use crate::parties::{Fleet, HOUR, in_own_runtime, loopback, node_id, within};

struct Asking {
    poller: Poller,
    events: mpsc::Receiver<Event>,
    _supervisor: Supervisor,
}

impl Asking {
    fn start(fleet: &Fleet) -> Self {
        let supervisor = Supervisor::new();
        let (sender, events) = mpsc::channel(64);
        let poller = Poller::start(&supervisor, &fleet.controller_identity(), &fleet.trust, sender).unwrap();
        Self { poller, events, _supervisor: supervisor }
    }

    async fn poll(&mut self, node: &str, address: SocketAddr, urgent: bool) -> Polled {
        self.poller.poll(node_id(node), address.to_string(), urgent, Duration::from_secs(1));
        loop {
            if let Event::Polled(polled) = self.event().await {
                return polled;
            }
        }
    }

    async fn event(&mut self) -> Event {
        within("event of the poller", self.events.recv()).await.unwrap()
    }
}

/// A peer port in a runtime of its own, to be killed like a process.
fn agent(fleet: &Fleet, node: &str) -> (Runtime, SocketAddr) {
    let identity = fleet.identity(node, HOUR);
    let pulse = Arc::new(Pulse::new(node_id(node), Incarnation(3), Clock::start()));
    let port = PeerPort {
        tls: tcp_server(&identity, &fleet.trust).unwrap(),
        pulse,
        edge: Arc::new(|request, caller| {
            let said = format!("{} for {caller}", request.uri().path());
            let body: PeerBody = Full::new(Bytes::from(said)).map_err(|never| match never {}).boxed_unsync();
            Box::pin(async move { Response::new(body) })
        }),
        orders: OrderDesk::open().0,
        files: None,
    };
    in_own_runtime(async || {
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let supervisor = Supervisor::new();
        let inner = supervisor.clone();
        supervisor.spawn("peer port", Kind::Vital, |token| port.run(listener, inner, token));
        address
    })
}

async fn get(
    fleet: &Fleet,
    identity: &Identity,
    server: &str,
    address: SocketAddr,
    path: &str,
) -> (StatusCode, String) {
    send(fleet, identity, server, address, Request::get(path).body(Full::default()).unwrap()).await
}

/// One request by hand.
pub(crate) async fn send(
    fleet: &Fleet,
    identity: &Identity,
    server: &str,
    address: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> (StatusCode, String) {
    let name = Peer::Node(node_id(server)).server_name();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(tcp_client(identity, &fleet.trust).unwrap());
    let stream = within("handshake", connector.connect(name, stream)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    request.headers_mut().insert("host", HeaderValue::from_static("agent"));
    let exchange = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = within("answer", exchange) => answer,
        () = driven => unreachable!("pending"),
    }
}

#[test]
fn an_agent_answers_polls_over_one_warm_connection() {
    let fleet = Fleet::new();
    let (agents, address) = agent(&fleet, "n1");
    let (asks, ()) = in_own_runtime(async || {
        let mut asking = Asking::start(&fleet);
        let first = asking.poll("n1", address, false).await;
        let second = asking.poll("n1", address, false).await;
        let seq = |polled: Polled| polled.result.map(|beat| (beat.incarnation, beat.seq));
        assert_eq!(seq(first), Ok((Incarnation(3), 1)));
        assert_eq!(seq(second), Ok((Incarnation(3), 2)));
    });
    drop((agents, asks));
}

#[test]
fn the_death_of_an_agent_is_told_at_once_by_its_warm_connection() {
    let fleet = Fleet::new();
    let (agents, address) = agent(&fleet, "n1");
    let (asks, mut asking) = in_own_runtime(async || {
        let mut asking = Asking::start(&fleet);
        assert!(asking.poll("n1", address, false).await.result.is_ok());
        asking
    });
    let killed_at = Instant::now();
    agents.shutdown_background();
    let lost = asks.block_on(asking.event());
    assert_eq!(lost, Event::PollChannelLost { node: node_id("n1") });
    assert!(killed_at.elapsed() < Duration::from_millis(500), "{:?}", killed_at.elapsed());

    let urgent = asks.block_on(asking.poll("n1", address, true));
    assert_eq!((urgent.urgent, urgent.result), (true, Err(PollFault::Refused)));
    assert!(killed_at.elapsed() < Duration::from_secs(1), "{:?}", killed_at.elapsed());
    drop(asking);
    asks.shutdown_background();
}

#[test]
fn the_fault_of_a_poll_says_what_went_wrong() {
    let fleet = Fleet::new();
    let (agents, address) = agent(&fleet, "n1");
    let (asks, ()) = in_own_runtime(async || {
        let mut asking = Asking::start(&fleet);
        // Accepts and never says a word, as a stopped process does.
        let silent = TcpListener::bind(loopback(0)).await.unwrap();
        let at = silent.local_addr().unwrap();
        assert_eq!(asking.poll("n1", at, true).await.result, Err(PollFault::Timeout));
        // Another node answers at the address.
        assert_eq!(asking.poll("n2", address, true).await.result, Err(PollFault::Tls));
        assert!(asking.poll("n1", address, true).await.result.is_ok());
    });
    drop((agents, asks));
}

/// More than there are places for urgent polls.
const SILENT: usize = 300;

#[test]
fn nodes_that_stay_silent_keep_nobody_waiting_about_whom_nothing_is_decided() {
    let fleet = Fleet::new();
    let (agents, address) = agent(&fleet, "n1");
    let (asks, ()) = in_own_runtime(async || {
        let mut asking = Asking::start(&fleet);
        let silent = TcpListener::bind(loopback(0)).await.unwrap();
        let at = silent.local_addr().unwrap().to_string();
        let brief = Duration::from_millis(100);
        for (is_urgent, span) in [(false, brief), (true, brief), (true, Duration::from_secs(5))] {
            for number in 0..SILENT {
                asking.poller.poll(node_id(&format!("silent{number}")), at.clone(), is_urgent, span);
            }
            if span == brief {
                let mut unanswered = 0;
                while unanswered < SILENT {
                    unanswered += usize::from(matches!(asking.event().await, Event::Polled(_)));
                }
            }
        }
        assert!(
            asking.poll("n1", address, true).await.result.is_ok(),
            "it is the first that is answered for"
        );
    });
    drop((agents, asks));
}

#[test]
fn a_controller_of_another_authority_is_not_answered() {
    let fleet = Fleet::new();
    let foreign = Fleet::new();
    let (agents, address) = agent(&fleet, "n1");
    let (asks, ()) = in_own_runtime(async || {
        let supervisor = Supervisor::new();
        let (sender, mut events) = mpsc::channel(4);
        let identity = foreign.controller_identity();
        let poller = Poller::start(&supervisor, &identity, &fleet.trust, sender).unwrap();
        poller.poll(node_id("n1"), address.to_string(), true, Duration::from_secs(1));
        let Some(Event::Polled(polled)) = within("answer", events.recv()).await else { panic!("no answer") };
        assert_eq!(polled.result, Err(PollFault::Tls));
    });
    drop((agents, asks));
}

#[test]
fn nodes_reach_the_edge_and_only_controllers_may_poll() {
    let fleet = Fleet::new();
    let (agents, address) = agent(&fleet, "n1");
    let (asks, ()) = in_own_runtime(async || {
        let (node, controller) = (fleet.identity("n2", HOUR), fleet.controller_identity());
        for (identity, path, expected) in [
            (&node, "/v1/models", StatusCode::OK),
            (&node, "/v1/poll", StatusCode::FORBIDDEN),
            (&node, "/metrics", StatusCode::NOT_FOUND),
            (&controller, "/v1/poll", StatusCode::OK),
            (&controller, "/v1/models", StatusCode::NOT_FOUND),
        ] {
            let (status, body) = get(&fleet, identity, "n1", address, path).await;
            assert_eq!(status, expected, "{path}: {body}");
        }
        let (_, body) = get(&fleet, &node, "n1", address, "/v1/models").await;
        assert_eq!(body, "/v1/models for node n2");
    });
    drop((agents, asks));
}
