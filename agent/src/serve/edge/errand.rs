//! One request on its way: tried on replica after replica while its client has had nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::Mono;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use tracing::{debug, warn};

use super::answer::Refusal;
use super::attempt::{Failure, Held, attempt, is_event_stream};
use super::choice::Turn;
use super::counts::{Flow, InFlight};
use super::front::Edge;
use super::pool::Upstream;
use super::relay::{Cut, Guards, Relay};
use super::request::{Buffered, strip};
use super::resume::{Part, Plan, Stream, Ticket};
use crate::serve::peer::{BodyError, PeerBody};

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

/// One request on its way.
pub(super) struct Errand {
    model: String,
    request: Buffered,
    started: Mono,
    /// Tried last: the replica that this very stream was lost on.
    passed_over: Option<NodeId>,
    broken_count: u32,
    attempt_count: u32,
    pub(super) last_why: String,
    last_answer: Option<Held>,
}

/// An answer that may go to the client, and who gives it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) held: Held,
    pub(super) node: NodeId,
    /// Resolves when nothing more is to be expected.
    pub(super) cut: Cut,
    pub(super) guards: Guards,
}

impl Errand {
    pub(super) fn new(model: String, request: Buffered, started: Mono) -> Self {
        Self {
            model,
            request,
            started,
            passed_over: None,
            broken_count: 0,
            attempt_count: 0,
            last_why: "no node serves it now".to_owned(),
            last_answer: None,
        }
    }

    /// Tries `node` only when there is no other.
    pub(super) fn passing(self, node: NodeId) -> Self {
        Self { passed_over: Some(node), ..self }
    }

    fn is_over(&self, now: Mono) -> bool {
        self.broken_count >= BROKEN_MAX || now.since(self.started) >= REQUEST_MAX
    }
}

impl Edge {
    /// Answers a request, as long as any replica can.
    pub(super) async fn run(
        &self,
        model: String,
        request: Buffered,
        flight: InFlight,
        plan: Plan,
    ) -> Response<PeerBody> {
        let ticket = Ticket { model: model.clone(), request: request.clone() };
        let found = match self.find(Errand::new(model, request, self.now())).await {
            Ok(found) => found,
            Err(errand) => return self.give_up(*errand),
        };
        let node = found.node.clone();
        let (status, headers) = (found.held.head.status, found.held.head.headers.clone());
        let is_stream = status == StatusCode::OK && is_event_stream(&headers);
        let mut response = match plan {
            Plan::Keep(terms) if is_stream => response_of(
                status,
                headers,
                Stream::kept(self.clone(), ticket, flight, *terms, Part::new(found)),
            ),
            Plan::Watch(why) if is_stream => response_of(
                status,
                headers,
                Stream::watched(self.clone(), ticket, flight, why, Part::new(found)),
            ),
            Plan::Keep(_) | Plan::Watch(_) | Plan::Plain => {
                let Found { held, cut, mut guards, .. } = found;
                guards.flights.push(flight);
                let body = Relay::new(held.frames, held.rest, cut, guards, Some(self.shared.counts.clone()));
                response_of(status, headers, body)
            }
        };
        self.mark(&mut response, &node);
        response
    }

    /// Tries until an answer may go to the client, or nothing is left to try.
    pub(super) async fn find(&self, mut errand: Errand) -> Result<Found, Box<Errand>> {
        let mut routes = self.shared.routes.subscribe();
        let mut own = self.shared.own.subscribe();
        let mut tried: BTreeSet<NodeId> = errand.passed_over.clone().into_iter().collect();
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
                    return Err(Box::new(errand));
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
                Ok(found) => return Ok(found),
                Err(()) if errand.is_over(self.shared.clock.now()) => return Err(Box::new(errand)),
                Err(()) => {}
            }
        }
    }

    async fn attempt(&self, errand: &mut Errand, upstream: &Upstream, turn: Turn) -> Result<Found, ()> {
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
        let mut cut = self.until_lost(upstream);
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
                let guards = Guards { flights: own_flight.into_iter().collect(), turn: Some(turn) };
                return Ok(Found { held, node: upstream.node().clone(), cut, guards });
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
            let body = Relay::new(frames, rest, Cut::never(), Guards::default(), None);
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
}

pub(super) fn response_of<B>(status: StatusCode, mut headers: HeaderMap, body: B) -> Response<PeerBody>
where
    B: hyper::body::Body<Data = bytes::Bytes, Error = BodyError> + Send + 'static,
{
    strip(&mut headers);
    let mut response = Response::new(http_body_util::BodyExt::boxed_unsync(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
