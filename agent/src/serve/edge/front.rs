//! The edge itself: takes a request, finds it a replica, and tries again where that is still possible.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::report::{EdgeReport, Role};
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::{Clock, Mono};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use rustls::ClientConfig;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answer::{LAST_RESORT_HEADER, NODE_HEADER, REQUEST_ID_HEADER, Refusal, from_json, refuse_peer};
use super::attempt::{Failure, Held, attempt};
use super::choice::{Choice, Turn};
use super::counts::{Counts, Flow, InFlight};
use super::lifeline::Lifeline;
use super::pool::{Pool, Upstream};
use super::relay::{Guards, Relay};
use super::request::{Buffered, strip};
use super::routes::Routes;
use crate::core::EdgeMode;
use crate::serve::peer::PeerBody;

/// How long a request waits for a replica to become usable. A replica that was replaced by a ready spare, or a
/// controller's next table, is there within 6 s of a loss.
const EDGE_WAIT: Duration = Duration::from_secs(10);

/// First pause before every replica is tried again, doubled up to the longest. A new table ends a pause at once.
const PAUSE_INITIAL: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Attempts that reached an engine. A request that breaks engines must not break all of them.
const BROKEN_MAX: u32 = 4;

/// From the request to the first byte of its answer. OpenAI's clients wait 600 s by default.
const REQUEST_MAX: Duration = Duration::from_secs(600);

/// What an edge must know.
#[derive(Clone)]
pub struct EdgeSpec {
    pub node: NodeId,
    pub role: Role,
    /// Shows this node's certificate to peers; `None` until there is one, and then only the own engine is used.
    pub tls: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for EdgeSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, role, tls } = self;
        f.debug_struct("EdgeSpec")
            .field("node", node)
            .field("role", role)
            .field("tls", &tls.is_some())
            .finish()
    }
}

/// This node's engine as the edge may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnEngine {
    pub model: String,
    pub port: u16,
    pub mode: EdgeMode,
}

impl OwnEngine {
    fn takes(&self, is_last_resort: bool) -> bool {
        match self.mode {
            EdgeMode::Admit => true,
            EdgeMode::Reluctant { .. } => is_last_resort,
            EdgeMode::Refuse { .. } | EdgeMode::Drain { .. } => false,
        }
    }
}

/// The edge of one node. Clones share it.
#[derive(Debug, Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: EdgeSpec,
    clock: Clock,
    own: watch::Sender<Option<OwnEngine>>,
    routes: Routes,
    choice: Choice,
    counts: Counts,
    pool: Pool,
    lifeline: Lifeline,
}

/// One request on its way.
struct Errand {
    model: String,
    request: Buffered,
    flight: InFlight,
    started: Mono,
    broken_count: u32,
    attempt_count: u32,
    last_why: String,
    last_answer: Option<Held>,
}

impl Edge {
    #[must_use]
    pub fn new(spec: EdgeSpec, routes: Routes, clock: Clock, supervisor: &Supervisor) -> Self {
        let pool = Pool::new(clock, supervisor.clone(), spec.tls.clone());
        let lifeline = Lifeline::new();
        let (watcher, asker) = (lifeline.clone(), pool.clone());
        supervisor.spawn("replica lifeline", Kind::Vital, |token| watcher.run(asker, token));
        let emptied = pool.clone();
        supervisor.spawn("replica pool", Kind::Vital, |token| empty_at_end(emptied, token));
        let own = watch::Sender::new(None);
        let (choice, counts) = (Choice::new(clock), Counts::default());
        Self { shared: Arc::new(Shared { spec, clock, own, routes, choice, counts, pool, lifeline }) }
    }

    /// Says what may be done with this node's own engine from now on.
    pub fn set_own(&self, own: Option<OwnEngine>) {
        self.shared.own.send_replace(own);
    }

    /// The counters for the node's report.
    #[must_use]
    pub fn report(&self) -> EdgeReport {
        let counts = &self.shared.counts;
        EdgeReport {
            in_flight: counts.carried(),
            request_count: counts.requests(),
            retry_count: counts.retries(),
            failure_count: counts.failures(),
        }
    }

    /// Requests that are with this node's own engine now.
    #[must_use]
    pub fn own_in_flight(&self) -> u32 {
        self.shared.counts.in_flight(Flow::OwnEngine)
    }

    /// Answers a user, from whichever replica can.
    pub async fn from_user(&self, request: Request<Incoming>) -> Response<PeerBody> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match path.as_str() {
            "/healthz" => return self.health(),
            "/v1/models" if method == Method::GET => return self.models(),
            _ if !path.starts_with("/v1/") => return Refusal::UnknownPath { path }.into_response(),
            _ => {}
        }
        if let (Some(model), &Method::GET) = (path.strip_prefix("/v1/models/"), &method) {
            return self.model(model);
        }
        let flight = self.shared.counts.enter(Flow::Users);
        self.shared.counts.request();
        let request = match Buffered::read(request).await {
            Ok(request) => request,
            Err(refusal) => return refusal.into_response(),
        };
        let request_id = request.request_id.clone();
        let mut response = match self.model_of(&request) {
            Ok(model) => self.run(Errand::new(model, request, flight, self.shared.clock.now())).await,
            Err(refusal) => refusal.into_response(),
        };
        response.headers_mut().insert(REQUEST_ID_HEADER, request_id);
        response
    }

    /// Answers a peer, from the own engine or not at all: a request is passed on once only.
    pub async fn from_peer(&self, request: Request<Incoming>) -> Response<PeerBody> {
        let is_last_resort = request.headers().contains_key(LAST_RESORT_HEADER);
        let upstream = match &*self.shared.own.borrow() {
            Some(own) if own.takes(is_last_resort) => self.own(own.port),
            Some(own) => return refuse_peer(own.mode.reason()),
            None => return refuse_peer("no engine runs here"),
        };
        let flight = self.shared.counts.enter(Flow::OwnEngine);
        let request = match Buffered::read(request).await {
            Ok(request) => request,
            Err(refusal) => return refusal.into_response(),
        };
        let request_id = request.request_id.clone();
        let sent = self.shared.pool.send(&upstream, request.copy(&upstream.host())).await;
        match sent {
            Ok((response, lease)) => {
                let (head, body) = response.into_parts();
                let rest = Some((body, lease));
                let guards = Guards { flights: vec![flight], turn: None };
                let cut = Box::pin(std::future::pending());
                let body = Relay::new(std::collections::VecDeque::new(), rest, cut, guards, None);
                let mut response = response_of(head.status, head.headers, body);
                self.mark(&mut response, upstream.node());
                response.headers_mut().insert(REQUEST_ID_HEADER, request_id);
                response
            }
            Err(error) if error.is_unsent() => refuse_peer(&format!("own engine: {error}")),
            Err(error) => {
                let why = format!("own engine: {error}");
                // The engine had it: the sender counts this as a broken attempt, not as a refusal.
                let mut response = Refusal::Broken { model: "this node".to_owned(), why }.into_response();
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
        }
    }

    /// Tries until an answer may go to the client, or nothing is left to try.
    async fn run(&self, mut errand: Errand) -> Response<PeerBody> {
        let mut routes = self.shared.routes.subscribe();
        let mut own = self.shared.own.subscribe();
        let mut tried: BTreeSet<NodeId> = BTreeSet::new();
        let mut waiting_since: Option<Mono> = None;
        let mut pause = PAUSE_INITIAL;
        loop {
            routes.mark_unchanged();
            own.mark_unchanged();
            let upstreams = self.upstreams(&errand.model, errand.request.is_last_resort);
            let untried: Vec<NodeId> =
                upstreams.iter().map(Upstream::node).filter(|node| !tried.contains(*node)).cloned().collect();
            let Some(turn) = self.shared.choice.pick(&untried) else {
                let now = self.shared.clock.now();
                if now.since(*waiting_since.get_or_insert(now)) >= EDGE_WAIT {
                    return self.give_up(errand);
                }
                if !std::mem::replace(&mut errand.request.is_last_resort, true) {
                    tried.clear();
                    continue;
                }
                // Cancel safe: all three only wait. The senders live in `self`.
                tokio::select! {
                    _ = routes.changed() => {}
                    _ = own.changed() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
                tried.clear();
                continue;
            };
            let Some(upstream) = upstreams.into_iter().find(|upstream| upstream.node() == turn.node()) else {
                continue;
            };
            tried.insert(turn.node().clone());
            match self.attempt(&mut errand, &upstream, turn).await {
                Ok(response) => return response,
                Err(()) if errand.is_over(self.shared.clock.now()) => return self.give_up(errand),
                Err(()) => {}
            }
        }
    }

    async fn attempt(
        &self,
        errand: &mut Errand,
        upstream: &Upstream,
        turn: Turn,
    ) -> Result<Response<PeerBody>, ()> {
        let shared = &self.shared;
        if errand.attempt_count > 0 {
            shared.counts.retry();
        }
        errand.attempt_count += 1;
        let own_flight = match upstream {
            Upstream::Own { .. } => Some(shared.counts.enter(Flow::OwnEngine)),
            Upstream::Peer { .. } => None,
        };
        if shared.lifeline.is_dead(upstream) {
            shared.choice.failed(upstream.node());
            errand.last_why = format!("{}: presumed dead", upstream.node());
            return Err(());
        }
        let mut cut = shared.lifeline.wait_for(upstream).until_dead();
        let left = REQUEST_MAX.saturating_sub(shared.clock.now().since(errand.started));
        // Cancel safe: an attempt that is dropped closes its connection.
        let result = tokio::select! {
            result = attempt(&shared.pool, upstream, &errand.request) => result,
            () = &mut cut => {
                Err(Failure::Broken { why: "replica is presumed dead".to_owned(), answer: None })
            }
            () = tokio::time::sleep(left) => {
                Err(Failure::Broken { why: "no answer in time".to_owned(), answer: None })
            }
        };
        let failure = match result {
            Ok(held) => {
                shared.choice.answered(upstream.node());
                let flights = std::iter::once(errand.flight.again()).chain(own_flight).collect();
                let guards = Guards { flights, turn: Some(turn) };
                let body = Relay::new(held.frames, held.rest, cut, guards, Some(shared.counts.clone()));
                let mut response = response_of(held.head.status, held.head.headers, body);
                self.mark(&mut response, upstream.node());
                return Ok(response);
            }
            Err(failure) => failure,
        };
        shared.choice.failed(upstream.node());
        let (why, is_broken) = match failure {
            Failure::NotTaken(why) => (why, false),
            Failure::Broken { why, answer } => {
                errand.last_answer = answer;
                (why, true)
            }
        };
        errand.broken_count += u32::from(is_broken);
        debug!(node = %upstream.node(), request_id = ?errand.request.request_id, why, "attempt failed");
        errand.last_why = format!("{}: {why}", upstream.node());
        Err(())
    }

    fn give_up(&self, errand: Errand) -> Response<PeerBody> {
        self.shared.counts.failure();
        let Errand { model, request, started, attempt_count, broken_count, last_why, last_answer, .. } =
            errand;
        warn!(
            model,
            attempt_count,
            broken_count,
            last = last_why,
            request_id = ?request.request_id,
            "request failed on every replica"
        );
        if let Some(Held { head, frames, rest }) = last_answer {
            let cut = Box::pin(std::future::pending());
            let body = Relay::new(frames, rest, cut, Guards::default(), None);
            return response_of(head.status, head.headers, body);
        }
        if self.shared.clock.now().since(started) >= REQUEST_MAX {
            return Refusal::Late { model }.into_response();
        }
        match broken_count {
            0 => Refusal::NoReplica { model, why: last_why }.into_response(),
            _ => Refusal::Broken { model, why: last_why }.into_response(),
        }
    }

    /// Who may be asked. A reluctant engine of this node only when all others were.
    fn upstreams(&self, model: &str, is_last_resort: bool) -> Vec<Upstream> {
        let node = &self.shared.spec.node;
        let own = self.shared.own.borrow();
        let own = own.as_ref().filter(|own| own.takes(is_last_resort) && own.model == model);
        let peers = self.shared.routes.replicas(model).unwrap_or_default();
        let peers = peers.into_iter().filter(|replica| replica.node != *node);
        let peers = peers.map(|replica| Upstream::Peer { node: replica.node, address: replica.address });
        own.map(|own| self.own(own.port)).into_iter().chain(peers).collect()
    }

    fn own(&self, port: u16) -> Upstream {
        Upstream::Own { node: self.shared.spec.node.clone(), port }
    }

    fn known_models(&self) -> Vec<String> {
        let mut models = self.shared.routes.models();
        if let Some(own) = &*self.shared.own.borrow()
            && !models.contains(&own.model)
        {
            models.push(own.model.clone());
        }
        models
    }

    /// The model a request is for: the one it names, or the only one there is.
    fn model_of(&self, request: &Buffered) -> Result<String, Refusal> {
        let known = self.known_models();
        match (request.model(), known.as_slice()) {
            // A gateway that has just started knows nothing yet; waiting for its first table is not for ever.
            (Some(model), []) => Ok(model),
            (Some(model), _) if known.contains(&model) => Ok(model),
            (Some(model), _) => Err(Refusal::UnknownModel { model, known }),
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(Refusal::NoModelNamed { known }),
        }
    }

    fn health(&self) -> Response<PeerBody> {
        let models = self.known_models();
        let usable = models.iter().filter(|model| !self.upstreams(model, true).is_empty()).count();
        let status = if usable > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let node = self.shared.spec.node.as_str();
        from_json(status, &json!({"node": node, "models_known": models.len(), "models_usable": usable}))
    }

    fn models(&self) -> Response<PeerBody> {
        let data: Vec<_> = self.known_models().iter().map(|model| entry(model)).collect();
        from_json(StatusCode::OK, &json!({"object": "list", "data": data}))
    }

    fn model(&self, model: &str) -> Response<PeerBody> {
        let known = self.known_models();
        if known.iter().any(|one| one == model) {
            return from_json(StatusCode::OK, &entry(model));
        }
        Refusal::UnknownModel { model: model.to_owned(), known }.into_response()
    }

    fn mark(&self, response: &mut Response<PeerBody>, node: &NodeId) {
        // A node id is a DNS label.
        if let Ok(value) = HeaderValue::from_str(node.as_str()) {
            response.headers_mut().insert(NODE_HEADER, value);
        }
    }
}

impl Errand {
    fn new(model: String, request: Buffered, flight: InFlight, started: Mono) -> Self {
        Self {
            model,
            request,
            flight,
            started,
            broken_count: 0,
            attempt_count: 0,
            last_why: "no node serves it now".to_owned(),
            last_answer: None,
        }
    }

    fn is_over(&self, now: Mono) -> bool {
        self.broken_count >= BROKEN_MAX || now.since(self.started) >= REQUEST_MAX
    }
}

async fn empty_at_end(pool: Pool, token: CancellationToken) -> TaskResult {
    token.cancelled().await;
    pool.clear();
    Ok(())
}

fn response_of(status: StatusCode, mut headers: HeaderMap, body: Relay) -> Response<PeerBody> {
    strip(&mut headers);
    let mut response = Response::new(http_body_util::BodyExt::boxed(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn entry(model: &str) -> serde_json::Value {
    // OpenAI's clients insist on a number; there is no date of a model's making.
    json!({"id": model, "object": "model", "created": 0, "owned_by": "cic"})
}
