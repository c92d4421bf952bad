//! The two sides of the wire as a test holds them: a controller without a core, a node without an engine.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cic_agent::effect::link::{LinkEvent, LinkSpec, Links, Pulse};
use cic_common::id::{ControllerId, Incarnation, NodeId, Term};
use cic_common::report::Role;
use cic_common::supervise::Supervisor;
use cic_common::time::{Clock, unix_ms};
use cic_common::tls::{CertificateAuthority, Identity, JoinToken, Peer, TokenHash, Trust};
use cic_controller::core::{Event, Message};
use cic_controller::ingest::{Ingest, IngestSpec, JoinRefusal, Refusal};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Everything here takes milliseconds on an idle machine; a loaded one gets time, a broken build still ends.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

const EVENTS_MAX: usize = 64;

/// What a fleet shares: an authority, and the files of both sides.
pub(crate) struct Fleet {
    directory: TempDir,
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) trust: Trust,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), unix_ms()).unwrap();
        let trust = authority.trust().unwrap();
        Self { directory, authority: Arc::new(authority), trust }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An identity as if the node had enrolled before.
    pub(crate) fn identity(&self, node: &str, span: Duration) -> Identity {
        let path = self.path(&format!("{node}.pem"));
        self.authority.issue(&path, &Peer::Node(node_id(node)), span, unix_ms()).unwrap()
    }

    pub(crate) fn controller_identity(&self) -> Identity {
        let id = ControllerId::new("c1").unwrap();
        let path = self.path("controller.pem");
        self.authority.issue(&path, &Peer::Controller(id), HOUR, unix_ms()).unwrap()
    }
}

pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The agents' port of a controller, and what would reach its core.
pub(crate) struct Controller {
    pub(crate) ingest: Ingest,
    supervisor: Supervisor,
    events: mpsc::Receiver<Event>,
    tokens: Arc<Mutex<BTreeSet<TokenHash>>>,
}

impl Controller {
    pub(crate) fn start(fleet: &Fleet) -> Self {
        Self::start_on(fleet, 0, HOUR)
    }

    /// On a port that must be free. `span` is the life of the certificates it signs.
    pub(crate) fn start_on(fleet: &Fleet, port: u16, span: Duration) -> Self {
        let supervisor = Supervisor::new();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let tokens: Arc<Mutex<BTreeSet<TokenHash>>> = Arc::default();
        let known = Arc::clone(&tokens);
        let spec = IngestSpec {
            controller: ControllerId::new("c1").unwrap(),
            heartbeat_ms: 1000,
            identity: fleet.controller_identity(),
            trust: fleet.trust.clone(),
            authority: Arc::clone(&fleet.authority),
            certificate_span: span,
            reset_key_path: fleet.path("reset.key"),
            desk: Arc::new(move |hash, _node| {
                let was_known = known.lock().unwrap().remove(&hash);
                let refusal = || JoinRefusal::Token("join token was already used".to_owned());
                Box::pin(async move { was_known.then_some(()).ok_or_else(refusal) })
            }),
            issue_log: Arc::new(|_, _| {}),
        };
        let socket = UdpSocket::bind(loopback(port)).unwrap();
        let ingest = Ingest::start(&supervisor, socket, spec, sender).unwrap();
        Self { ingest, supervisor, events, tokens }
    }

    /// On a port that another run may still be letting go.
    pub(crate) async fn start_when_free(fleet: &Fleet, port: u16) -> Self {
        eventually("free port", || UdpSocket::bind(loopback(port)).is_ok()).await;
        Self::start_on(fleet, port, HOUR)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.ingest.local_address()
    }

    /// Ends in order, as on SIGTERM.
    pub(crate) async fn stop(self) {
        assert_eq!(self.supervisor.stop(DEADLINE).await, Ok(()));
    }

    pub(crate) fn join_token(&self) -> JoinToken {
        let token = JoinToken::generate().unwrap();
        self.tokens.lock().unwrap().insert(token.hash());
        token
    }

    /// The next event for the core; nodes that connect are welcomed, as the core would.
    pub(crate) async fn event(&mut self) -> Event {
        let event = within("event of the controller", self.events.recv()).await.unwrap();
        if let Event::Connected(hello) = &event {
            let message = Message::Welcome { term: Term(1), assignment: None, predecessors: Vec::new() };
            self.ingest.send(&hello.node, message);
        }
        event
    }

    /// The first event from now on that `find` finds something in.
    pub(crate) async fn find<T>(&mut self, mut find: impl FnMut(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = find(self.event().await) {
                    return found;
                }
            }
        };
        within("awaited event of the controller", search).await
    }

    pub(crate) async fn connected(&mut self, node: &str) -> Incarnation {
        self.find(|event| match event {
            Event::Connected(hello) if hello.node.as_str() == node => Some(hello.incarnation),
            _ => None,
        })
        .await
    }

    pub(crate) async fn disconnected(&mut self, node: &str) -> Incarnation {
        self.find(|event| match event {
            Event::Disconnected { node: gone, incarnation } if gone.as_str() == node => Some(incarnation),
            _ => None,
        })
        .await
    }

    /// Waits until a heartbeat of `node` numbered above `after` reaches the core.
    pub(crate) async fn beaten(&mut self, node: &str, after: u64) -> u64 {
        self.find(|event| match event {
            Event::Heartbeats(beats) => beats
                .iter()
                .map(|beat| (beat.node.as_str(), beat.seq))
                .find(|(of, seq)| *of == node && *seq > after)
                .map(|(_, seq)| seq),
            _ => None,
        })
        .await
    }

    pub(crate) async fn refused(&self, kind: Refusal, count: u64) {
        eventually(&format!("{count} refusals as {kind}"), || self.ingest.refusals().count(kind) == count)
            .await;
    }

    pub(crate) fn refusals_in_all(&self) -> u64 {
        self.ingest.refusals().counts().map(|(_, count)| count).sum()
    }
}

/// The links of one node, and what they bring in.
pub(crate) struct Node {
    pub(crate) links: Links,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) supervisor: Supervisor,
    events: mpsc::Receiver<LinkEvent>,
}

impl Node {
    pub(crate) fn start(
        fleet: &Fleet,
        identity: &Identity,
        incarnation: u64,
        controller: SocketAddr,
    ) -> Self {
        let Peer::Node(node) = identity.peer().clone() else { panic!("not a node's identity") };
        let supervisor = Supervisor::new();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let spec = LinkSpec {
            controllers: vec![controller.to_string()],
            role: Role::Replica,
            advertise: "127.0.0.1:1".to_owned(),
            version: "test".to_owned(),
            keeps_checkpoints: false,
        };
        let pulse = Arc::new(Pulse::new(node, Incarnation(incarnation), Clock::start()));
        let links = Links::start(&supervisor, spec, identity, &fleet.trust, &pulse, &sender).unwrap();
        Self { links, pulse, supervisor, events }
    }

    /// The first thing from now on that `find` finds something in.
    pub(crate) async fn find<T>(&mut self, mut find: impl FnMut(LinkEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = find(self.events.recv().await.unwrap()) {
                    return found;
                }
            }
        };
        within("awaited event of the node", search).await
    }

    pub(crate) async fn up(&mut self) {
        self.find(|event| matches!(event, LinkEvent::Up { .. }).then_some(())).await;
    }

    pub(crate) async fn down(&mut self) -> String {
        self.find(|event| match event {
            LinkEvent::Down { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }
}

/// A controller as a process of its own, that can be killed.
pub(crate) fn in_own_runtime<T>(work: impl AsyncFnOnce() -> T) -> (Runtime, T) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // A runtime may not block inside another, so the caller is no async function.
    let made = runtime.block_on(work());
    (runtime, made)
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
    }
}

pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
