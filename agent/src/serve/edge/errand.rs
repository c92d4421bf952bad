//! One request on its way: tried on replica after replica while its client has had nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::route::Class;
use cic_common::time::Mono;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use tracing::{debug, warn};

use super::answer::Refusal;
use super::attempt::{Failure, Held, attempt, is_event_stream};
use super::choice::{Turn, Wish};
use super::counts::{Flow, InFlight};
use super::front::Edge;
use super::pool::Upstream;
use super::relay::{Cut, Guards, Relay};
use super::request::{Buffered, strip};
use super::resume::{Part, Plan, Stream, Ticket};
use super::scarcity::{Patience, Slot, Waited};
use crate::serve::peer::{BodyError, PeerBody};

/// Attempts that reached an engine. A request that breaks engines must not break all of them.
const BROKEN_MAX: u32 = 4;

/// From the request to the first byte of its answer. OpenAI's clients wait 600 s by default.
pub(super) const REQUEST_MAX: Duration = Duration::from_secs(600);

/// One request on its way.
pub(super) struct Errand {
    pub(super) model: String,
    pub(super) request: Buffered,
    /// The user, who may be answered from outside; `None` for what a stream needs to go on.
    pub(super) flight: Option<InFlight>,
    pub(super) started: Mono,
    /// Tried last: the replica that this very stream was lost on.
    passed_over: Option<NodeId>,
    /// One attempt may take so long.
    answer_within: Duration,
    pub(super) broken_count: u32,
    attempt_count: u32,
    pub(super) last_why: String,
    last_answer: Option<Held>,
    /// A replica of this round is full; when it expects room.
    pub(super) full: Option<Duration>,
    /// A place at the own engine that was waited for.
    pub(super) slot: Option<Slot>,
    /// The retry budget does not pay for another attempt.
    is_spent: bool,
    /// Nobody waits for the answer now: users come first, and none of them sees it fail.
    pub(super) is_background: bool,
}

/// An answer that may go to the client, and who gives it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) held: Held,
    pub(super) node: NodeId,
    /// Resolves when nothing more is to be expected.
    pub(super) cut: Cut,
    pub(super) guards: Guards,
    pub(super) sent_at: Mono,
}

/// Why no replica's answer may go to the client.
pub(super) enum Missed {
    /// Nothing is left to try.
    Over,
    /// It was answered outside.
    Answered(Response<PeerBody>),
}

impl Errand {
    pub(super) fn new(model: String, request: Buffered, started: Mono) -> Self {
        Self {
            model,
            request,
            flight: None,
            started,
            passed_over: None,
            answer_within: REQUEST_MAX,
            broken_count: 0,
            attempt_count: 0,
            last_why: "no node serves it now".to_owned(),
            last_answer: None,
            full: None,
            slot: None,
            is_spent: false,
            is_background: false,
        }
    }

    /// On behalf of the user that `flight` counts.
    pub(super) fn for_user(self, flight: InFlight) -> Self {
        Self { flight: Some(flight), ..self }
    }

    /// For an answer that is kept for later.
    pub(super) fn in_background(self) -> Self {
        Self { is_background: true, ..self }
    }

    /// Tries `node` only when there is no other.
    pub(super) fn passing(self, node: NodeId) -> Self {
        Self { passed_over: Some(node), ..self }
    }

    pub(super) fn answered_within(self, answer_within: Duration) -> Self {
        Self { answer_within, ..self }
    }

    fn is_over(&self, now: Mono) -> bool {
        self.is_spent || self.broken_count >= BROKEN_MAX || now.since(self.started) >= REQUEST_MAX
    }

    /// A replica has no room, and expects it after `retry_after`: the soonest of a round counts.
    fn is_full_at(&mut self, node: &NodeId, why: &str, retry_after: Duration) {
        self.full = Some(self.full.map_or(retry_after, |soonest| soonest.min(retry_after)));
        self.last_why = format!("{node}: {why}");
    }
}

impl Edge {
    /// Answers a request, as long as any replica can.
    pub(super) async fn run(&self, mut errand: Box<Errand>, plan: Plan) -> Response<PeerBody> {
        let ticket = match &plan {
            Plan::Plain => None,
            Plan::Keep(_) | Plan::Watch(_) => {
                Some(Ticket { model: errand.model.clone(), request: errand.request.clone() })
            }
        };
        self.shared.scarcity.budget.request();
        let mut found = match self.find(&mut errand).await {
            Ok(found) => found,
            Err(Missed::Over) => return self.give_up(*errand),
            Err(Missed::Answered(response)) => return response,
        };
        let flight = errand.flight.take();
        let node = found.node.clone();
        if !matches!(plan, Plan::Keep(_)) && node == self.shared.spec.node {
            // What cannot go on elsewhere is not handed over.
            found.cut = Cut::never();
        }
        let (status, headers) = (found.held.head.status, std::mem::take(&mut found.held.head.headers));
        let is_stream = status == StatusCode::OK && is_event_stream(&headers);
        let mut response = match (plan, ticket) {
            (Plan::Keep(terms), Some(ticket)) if is_stream => response_of(
                status,
                headers,
                Stream::kept(self.clone(), ticket, flight, *terms, Part::new(found)),
            ),
            (Plan::Watch(why), Some(ticket)) if is_stream => response_of(
                status,
                headers,
                Stream::watched(self.clone(), ticket, flight, why, Part::new(found)),
            ),
            (Plan::Keep(_) | Plan::Watch(_) | Plan::Plain, _) => {
                let Found { held, cut, mut guards, .. } = found;
                guards.user = flight;
                let body = Relay::new(held.frames, held.rest, cut, guards, Some(self.shared.counts.clone()));
                response_of(status, headers, body)
            }
        };
        self.mark(&mut response, &node);
        response
    }

    /// Tries until an answer may go to the client, or nothing is left to try.
    pub(super) async fn find(&self, errand: &mut Errand) -> Result<Found, Missed> {
        let mut routes = self.shared.routes.subscribe();
        let mut own = self.shared.own.subscribe();
        let mut tried: BTreeSet<NodeId> = errand.passed_over.clone().into_iter().collect();
        let mut patience = Patience::new();
        loop {
            routes.mark_unchanged();
            own.mark_unchanged();
            let candidates = self.candidates(&errand.model, errand.request.is_last_resort);
            let mut excluded = tried.clone();
            let own_node = &self.shared.spec.node;
            // Who was let in goes there; a place at an engine that takes nothing any more is given back.
            match errand.slot {
                Some(_)
                    if candidates.iter().any(|one| one.node() == own_node) && !tried.contains(own_node) =>
                {
                    excluded.extend(candidates.iter().map(|one| one.node().clone()));
                    excluded.remove(own_node);
                }
                Some(_) | None => errand.slot = None,
            }
            let wish = Wish {
                candidates: &candidates,
                class: errand.request.class,
                prefix: errand.request.prompt().prefix,
                excluded: &excluded,
            };
            let Some(turn) = self.shared.choice.pick(&wish) else {
                errand.slot = None;
                // A stalled engine is for requests that nobody takes, not for those that somebody has no room for yet.
                if errand.full.is_none() && !std::mem::replace(&mut errand.request.is_last_resort, true) {
                    tried.clear();
                    continue;
                }
                // In a place of its own, like all that is rare: requests are moved about, and this is the most of one.
                match Box::pin(self.wait(errand, &mut patience, &mut routes, &mut own)).await {
                    Waited::Again => tried.clear(),
                    Waited::Over => return Err(Missed::Over),
                    Waited::Answered(response) => return Err(Missed::Answered(response)),
                }
                continue;
            };
            let upstream = turn.upstream().clone();
            match self.attempt(errand, &upstream, turn).await {
                Ok(found) => return Ok(found),
                Err(()) if errand.is_over(self.shared.clock.now()) => return Err(Missed::Over),
                Err(()) => tried.insert(upstream.node().clone()),
            };
        }
    }

    async fn attempt(&self, errand: &mut Errand, upstream: &Upstream, turn: Turn) -> Result<Found, ()> {
        let shared = &self.shared;
        let admission = &shared.scarcity.admission;
        // A stream was let in before: what it needs to go on is not shed half-way.
        let is_new = errand.flight.is_some() || errand.is_background;
        let class = if is_new { errand.request.class } else { Class::LatencyCritical };
        let own_flight = match upstream {
            Upstream::Own { .. } => {
                let Some(slot) = errand.slot.take().or_else(|| admission.enter(class)) else {
                    errand.is_full_at(upstream.node(), "full", admission.retry_after());
                    return Err(());
                };
                Some(shared.counts.enter(Flow::OwnEngine).holding(slot))
            }
            Upstream::Peer { .. } | Upstream::Outside { .. } => None,
        };
        if errand.attempt_count > 0 {
            shared.counts.retry();
        }
        errand.attempt_count += 1;
        errand.request.visit.tries(upstream.node());
        if shared.lifeline.is_dead(upstream) {
            shared.choice.failed(upstream.node());
            errand.last_why = format!("{}: presumed dead", upstream.node());
            return Err(());
        }
        let mut cut = self.until_lost(upstream);
        let sent_at = shared.clock.now();
        let left = REQUEST_MAX.saturating_sub(sent_at.since(errand.started)).min(errand.answer_within);
        // Cancel safe: an attempt that is dropped closes its connection. In this order: an answer that is there counts.
        let result = tokio::select! {
            biased;
            result = attempt(&shared.pool, &shared.choice, upstream, turn.host(), &errand.request) => result,
            () = &mut cut => Err(match upstream {
                Upstream::Own { .. } => Failure::Refused("its requests are handed over".to_owned()),
                Upstream::Peer { .. } | Upstream::Outside { .. } => {
                    Failure::Broken { why: "replica is presumed dead".to_owned(), answer: None }
                }
            }),
            () = tokio::time::sleep(left) => {
                Err(Failure::Broken { why: "no answer in time".to_owned(), answer: None })
            }
        };
        let failure = match result {
            Ok(held) => {
                let first_token =
                    is_event_stream(&held.head.headers).then(|| shared.clock.now().since(sent_at));
                shared.choice.answered(upstream.node(), first_token);
                let guards = Guards { user: None, own: own_flight, turn: Some(turn) };
                return Ok(Found { held, node: upstream.node().clone(), cut, guards, sent_at });
            }
            // It is well, only busy: its standing stays.
            Err(Failure::Full { why, retry_after }) => {
                errand.is_full_at(upstream.node(), &why, retry_after);
                return Err(());
            }
            Err(failure) => failure,
        };
        let (why, is_broken) = match failure {
            Failure::Refused(why) => {
                shared.choice.refused(upstream.node());
                (why, false)
            }
            Failure::NotTaken(why) => {
                shared.choice.failed(upstream.node());
                (why, false)
            }
            Failure::Full { why, .. } => (why, false),
            Failure::Broken { why, answer } => {
                shared.choice.erred(upstream.node());
                errand.last_answer = answer;
                errand.is_spent = !shared.scarcity.budget.withdraw(upstream.node(), sent_at);
                (why, true)
            }
        };
        errand.broken_count += u32::from(is_broken);
        debug!(node = %upstream.node(), request_id = ?errand.request.request_id, why, "attempt failed");
        errand.last_why = format!("{}: {why}", upstream.node());
        if errand.is_spent {
            shared.scarcity.figures.denied();
            errand.last_why.push_str("; no more retries: the budget of this edge is spent");
        }
        Err(())
    }

    fn give_up(&self, errand: Errand) -> Response<PeerBody> {
        // One that broke as many engines as it may, or whose retries are spent, is not turned away for want of room: to
        // come again would break more. One or two that failed under it were most likely dying anyway.
        let is_given_up = errand.is_spent || errand.broken_count >= BROKEN_MAX;
        if let (Some(retry_after), None, false) = (errand.full, &errand.last_answer, is_given_up) {
            self.shared.scarcity.figures.shed(errand.request.class);
            debug!(model = errand.model, last = errand.last_why, "request shed");
            return Refusal::Full { model: errand.model, why: errand.last_why, retry_after }.into_response();
        }
        if !errand.is_background {
            self.shared.counts.failure();
        }
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
        if let Some(Held { head, frames, rest, has_pulse: _ }) = last_answer {
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
