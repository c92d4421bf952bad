//! The edge itself: takes a request, finds it a replica, and tries again where that is still possible.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cic_common::id::NodeId;
use cic_common::report::{EdgeReport, Role};
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::{Clock, Mono};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use rustls::ClientConfig;
use serde_json::json;
use tokio::sync::watch;

use super::answer::{
    LAST_RESORT_HEADER, NODE_HEADER, PULSE_HEADER, REQUEST_ID_HEADER, RESUMABLE_HEADER, Refusal, from_json,
    refuse_full, refuse_peer,
};
use super::attempt::is_event_stream;
use super::choice::{Candidate, Choice};
use super::counts::{Counts, CutStreams, Flow};
use super::errand::{Errand, response_of};
use super::journal::Journal;
use super::lifeline::Lifeline;
use super::pool::{Pool, Upstream};
use super::relay::{Cut, Guards, Relay};
use super::replicas::{OwnCandidate, Queue};
use super::request::{Buffered, class_of};
use super::resume::{MOVED, Plan, Rooms, plan};
use super::routes::Routes;
use super::scarcity::{Scarcity, ScarcitySpec};
use super::user_port::Visit;
use crate::core::EdgeMode;
use crate::effect::checkpoint::Answers;
use crate::serve::peer::PeerBody;

/// Longest name of a model that is looked up, logged or told of; file systems allow no longer component.
const MODEL_BYTES_MAX: usize = 255;

/// Of a longer one, so much is shown to whoever asked for it.
const MODEL_SHOWN_CHARS: usize = 32;

/// Models whose engines' names are remembered: more than any fleet here serves.
const FINGERPRINTS_MAX: usize = 256;

/// What an edge must know.
#[derive(Clone)]
pub struct EdgeSpec {
    pub node: NodeId,
    pub role: Role,
    /// Replicas there are asked first; `None` where all are alike.
    pub zone: Option<String>,
    /// Shows this node's certificate to peers; `None` until there is one, and then only the own engine is used.
    pub tls: Option<Arc<ClientConfig>>,
    /// Whether streams go on elsewhere when their replica is lost.
    pub continuation: bool,
    pub scarcity: ScarcitySpec,
    /// Where answers are kept for clients of lost nodes; with it the requests under way are noted.
    pub answers: Option<Answers>,
}

impl std::fmt::Debug for EdgeSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, role, zone, tls, continuation, scarcity, answers } = self;
        f.debug_struct("EdgeSpec")
            .field("node", node)
            .field("role", role)
            .field("zone", zone)
            .field("tls", &tls.is_some())
            .field("continuation", continuation)
            .field("scarcity", scarcity)
            .field("answers", answers)
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
    pub(super) fn takes(&self, is_last_resort: bool) -> bool {
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
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: EdgeSpec,
    pub(super) clock: Clock,
    pub(super) own: watch::Sender<Option<OwnEngine>>,
    pub(super) routes: Routes,
    pub(super) choice: Choice,
    pub(super) queue: Queue,
    pub(super) own_candidate: OwnCandidate,
    pub(super) counts: Counts,
    pub(super) pool: Pool,
    pub(super) lifeline: Lifeline,
    rooms: Rooms,
    /// By model.
    fingerprints: Mutex<BTreeMap<String, String>>,
    /// Counts the times that streams were to be handed over.
    hand_overs: watch::Sender<u64>,
    pub(super) scarcity: Scarcity,
    pub(super) journal: Journal,
}

impl Edge {
    #[must_use]
    pub fn new(spec: EdgeSpec, routes: Routes, clock: Clock, supervisor: &Supervisor) -> Self {
        let pool = Pool::new(clock, supervisor.clone(), spec.tls.clone());
        let lifeline = Lifeline::new();
        let (watcher, asker) = (lifeline.clone(), pool.clone());
        supervisor.spawn("replica lifeline", Kind::Vital, |token| watcher.run(asker, token));
        let scarcity = Scarcity::new(spec.scarcity.clone(), clock, supervisor);
        let swept = pool.clone();
        supervisor.spawn("replica pool", Kind::Vital, |token| swept.sweep(token));
        let own = watch::Sender::new(None);
        let (choice, counts) = (Choice::new(clock, spec.zone.clone()), Counts::default());
        let (queue, rooms, hand_overs) = (Queue::default(), Rooms::default(), watch::Sender::new(0));
        let journal = spec.answers.as_ref().map_or_else(Journal::default, |_| Journal::kept());
        let shared = Shared {
            spec,
            clock,
            own,
            routes,
            choice,
            queue,
            own_candidate: OwnCandidate::default(),
            counts,
            pool,
            lifeline,
            rooms,
            fingerprints: Mutex::default(),
            hand_overs,
            scarcity,
            journal,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Says what may be done with this node's own engine from now on.
    ///
    /// Streams of an engine that is not to be used any more move on, as from a stalled one; where no other takes them, a
    /// stalled one is asked again.
    pub fn set_own(&self, own: Option<OwnEngine>) {
        let before = self.shared.own.send_replace(own.clone());
        let was_used = before.is_some_and(|own| matches!(own.mode, EdgeMode::Admit));
        let is_unfit =
            |own: &OwnEngine| matches!(own.mode, EdgeMode::Refuse { .. } | EdgeMode::Reluctant { .. });
        if was_used && own.as_ref().is_some_and(is_unfit) {
            self.hand_over();
        }
    }

    /// Hands every stream of this node's own engine that can go on elsewhere to another replica.
    pub fn hand_over(&self) {
        self.shared.hand_overs.send_modify(|count| *count += 1);
    }

    /// What became of streams that were cut.
    #[must_use]
    pub fn cut_streams(&self) -> CutStreams {
        self.shared.counts.cut_streams()
    }

    /// Bytes kept to continue streams.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.shared.rooms.taken_bytes()
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
            shed_count: self.shared.scarcity.figures.shed_count(),
            waiting: self.shared.scarcity.waiting(),
        }
    }

    /// What scarcity did, in Prometheus's text format.
    #[must_use]
    pub fn scarcity_text(&self) -> String {
        self.shared.scarcity.text()
    }

    /// Grows with every request that comes, from users and peers.
    #[must_use]
    pub fn served_count(&self) -> u64 {
        self.shared.counts.served()
    }

    /// Requests that are with this node's own engine now.
    #[must_use]
    pub fn own_in_flight(&self) -> u32 {
        self.shared.counts.in_flight(Flow::OwnEngine)
    }

    /// Answers a user, from whichever replica can.
    pub(super) async fn answer_user(&self, request: Request<Incoming>, visit: Visit) -> Response<PeerBody> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let uri = request.uri().clone();
        let path = uri.path();
        match path {
            "/healthz" => return self.health(),
            "/v1/models" if is_read => return self.models(),
            _ if !path.starts_with("/v1/") => {
                return Refusal::UnknownPath { path: path.to_owned() }.into_response();
            }
            _ => {}
        }
        if let Some(model) = path.strip_prefix("/v1/models/").filter(|_| is_read) {
            return self.model(model);
        }
        let flight = self.shared.counts.enter(Flow::Users);
        self.shared.counts.request();
        let request = match Buffered::read(request, visit).await {
            Ok(request) => request,
            Err(refusal) => return refusal.into_response(),
        };
        let request_id = request.request_id.clone();
        let mut response = match self.model_of(&request) {
            Ok(model) => {
                // In a place of its own: it is rare, and requests are moved about.
                let kept = match self.shared.spec.answers {
                    Some(_) => Box::pin(self.kept_answer(&request)).await,
                    None => None,
                };
                if let Some(kept) = kept {
                    kept
                } else {
                    let now = self.now();
                    let flight = flight.noted(self.shared.journal.note(&model, &request, now));
                    let (request, plan) = self.planned(request);
                    let errand = Errand::new(model, request, now).for_user(flight);
                    self.run(Box::new(errand), plan).await
                }
            }
            Err(refusal) => refusal.into_response(),
        };
        response.headers_mut().insert(REQUEST_ID_HEADER, request_id);
        response
    }

    /// Answers a peer, from the own engine or not at all: a request is passed on once only.
    pub async fn answer_peer(&self, request: Request<Incoming>) -> Response<PeerBody> {
        let is_last_resort = request.headers().contains_key(LAST_RESORT_HEADER);
        let is_resumable = request.headers().contains_key(RESUMABLE_HEADER);
        // Before the mode is looked at, so that none is missed.
        let mut handed_over = self.until_handed_over();
        let upstream = match &*self.shared.own.borrow() {
            Some(own) if own.takes(is_last_resort) => self.own(own.port),
            Some(own) => return refuse_peer(own.mode.reason()),
            None => return refuse_peer("no engine runs here"),
        };
        let (class, scarcity) = (class_of(request.headers()), &self.shared.scarcity);
        let Some(slot) = scarcity.admission.enter(class) else {
            scarcity.figures.refused(class);
            let mut response = refuse_full(scarcity.admission.retry_after());
            self.own_load().put(response.headers_mut());
            return response;
        };
        let flight = self.shared.counts.enter(Flow::OwnEngine).holding(slot);
        let request = match Buffered::read(request, Visit::default()).await {
            Ok(request) => request,
            Err(refusal) => return refusal.into_response(),
        };
        let request_id = request.request_id.clone();
        let sending = self.shared.pool.send(&upstream, request.copy(&upstream.host()));
        // Cancel safe: a request that is dropped closes its connection. Its sender has had nothing of the answer.
        let sent = tokio::select! {
            sent = sending => sent,
            () = &mut handed_over => return refuse_peer("handed over"),
        };
        match sent {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let rest = Some(body);
                let guards = Guards { own: Some(flight), ..Guards::default() };
                let cut = if is_resumable { handed_over } else { Cut::never() };
                let body = Relay::new(std::collections::VecDeque::new(), rest, cut, guards, None);
                let body = if is_resumable { body.offering(Bytes::from_static(MOVED)) } else { body };
                let has_pulse = is_resumable && is_event_stream(&head.headers);
                let body = if has_pulse { body.with_pulse() } else { body };
                let mut response = response_of(head.status, head.headers, body);
                if has_pulse {
                    response.headers_mut().insert(PULSE_HEADER, HeaderValue::from_static("1"));
                }
                self.mark(&mut response, upstream.node());
                self.own_load().put(response.headers_mut());
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

    /// What is asked of replicas for `request`, and what becomes of its stream when one is lost.
    fn planned(&self, request: Buffered) -> (Buffered, Plan) {
        if !self.shared.spec.continuation || !request.prompt().is_stream {
            return (request, Plan::Plain);
        }
        match plan(request.path(), request.body()) {
            Plan::Keep(terms) => (request.resumable(terms.body.clone()), Plan::Keep(terms)),
            other => (request, other),
        }
    }

    /// Resolves when `upstream` is presumed dead, or its streams are to be handed over.
    pub(super) fn until_lost(&self, upstream: &Upstream) -> Cut {
        match upstream {
            Upstream::Own { .. } => self.until_handed_over(),
            Upstream::Outside { .. } => Cut::never(),
            Upstream::Peer { .. } => self.shared.lifeline.wait_for(upstream).until_dead(),
        }
    }

    fn until_handed_over(&self) -> Cut {
        let mut hand_overs = self.shared.hand_overs.subscribe();
        Cut::new(async move {
            if hand_overs.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    pub(super) fn now(&self) -> Mono {
        self.shared.clock.now()
    }

    /// What engines of `model` called themselves lately.
    pub(super) fn fingerprint(&self, model: &str) -> Option<String> {
        self.fingerprints().get(model).cloned()
    }

    pub(super) fn note_fingerprint(&self, model: &str, fingerprint: Option<&str>) {
        let Some(fingerprint) = fingerprint else { return };
        let mut known = self.fingerprints();
        if known.get(model).is_none_or(|before| before != fingerprint) && known.len() < FINGERPRINTS_MAX {
            known.insert(model.to_owned(), fingerprint.to_owned());
        }
    }

    fn fingerprints(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.shared.fingerprints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anyone but `node` may be asked for `model`.
    pub(super) fn has_other(&self, model: &str, node: &NodeId) -> bool {
        let is_other = |candidate: &Arc<Candidate>| {
            candidate.node() != node && !self.shared.lifeline.is_dead(candidate.upstream())
        };
        self.candidates(model, false).iter().any(is_other)
    }

    pub(super) fn rooms(&self) -> &Rooms {
        &self.shared.rooms
    }

    /// Counts a stream that was cut on `node`; requests pass that one over for a while.
    pub(super) fn count_cut(&self, node: &NodeId, is_unreached: bool) {
        self.shared.counts.cut();
        if is_unreached {
            self.shared.choice.failed(node);
        } else {
            self.shared.choice.erred(node);
        }
    }

    /// Whether the budget pays for repeating what failed at `node`, which had it since `sent_at`.
    pub(super) fn may_repeat(&self, node: &NodeId, sent_at: Mono) -> bool {
        let is_paid = self.shared.scarcity.budget.withdraw(node, sent_at);
        if !is_paid {
            self.shared.scarcity.figures.denied();
        }
        is_paid
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.shared.spec.node
    }

    pub(super) fn count_continued(&self, after: Duration) {
        self.shared.counts.continued(after);
    }

    pub(super) fn count_failure(&self) {
        self.shared.counts.failure();
    }

    pub(super) fn own(&self, port: u16) -> Upstream {
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

    fn is_known(&self, model: &str) -> bool {
        self.shared.own.borrow().as_ref().is_some_and(|own| own.model == model)
            || self.shared.routes.has(model)
    }

    /// The model a request is for: the one it names, or the only one there is.
    fn model_of(&self, request: &Buffered) -> Result<String, Refusal> {
        if let Some(model) = request.model().filter(|model| self.is_known(model)) {
            request.visit.asks_for(model).map_err(Refusal::Denied)?;
            return Ok(model.to_owned());
        }
        let known = self.known_models();
        if let Some(model) = request.model().filter(|model| model.len() > MODEL_BYTES_MAX) {
            let model = model.chars().take(MODEL_SHOWN_CHARS).chain(['…']).collect();
            return Err(Refusal::UnknownModel { model, known });
        }
        let model = match (request.model(), known.as_slice()) {
            // A gateway that has just started knows nothing yet; waiting for its first table is not for ever.
            (Some(model), []) => Ok(model.to_owned()),
            (Some(model), _) => Err(Refusal::UnknownModel { model: model.to_owned(), known }),
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(Refusal::NoModelNamed { known }),
        }?;
        request.visit.asks_for(&model).map_err(Refusal::Denied)?;
        Ok(model)
    }

    fn health(&self) -> Response<PeerBody> {
        let models = self.known_models();
        let usable = models.iter().filter(|model| !self.candidates(model, true).is_empty()).count();
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

    pub(super) fn mark(&self, response: &mut Response<PeerBody>, node: &NodeId) {
        // A node id is a DNS label.
        if let Ok(value) = HeaderValue::from_str(node.as_str()) {
            response.headers_mut().insert(NODE_HEADER, value);
        }
    }
}

fn entry(model: &str) -> serde_json::Value {
    // OpenAI's clients insist on a number; there is no date of a model's making.
    json!({"id": model, "object": "model", "created": 0, "owned_by": "cic"})
}
