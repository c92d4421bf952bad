//! The body a client reads of a stream: whole events, from as many replicas as it takes.
//!
//! A stream that cannot go on ends in `data: {"error":{"message":…,"type":"server_error","param":null,"code":…}}` and
//! `data: [DONE]`, with code `stream_not_resumable` where going on would not have been exact, and `replicas_failed`
//! where no replica took it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use cic_common::id::NodeId;
use cic_common::time::Mono;
use hyper::body::{Body, Frame, SizeHint};
use serde_json::json;
use tracing::{debug, info, warn};

use super::again::{Lost, Outcome, go_on};
use super::event::{EVENT_BYTES_MAX, Framer, Said, read, without_ids};
use super::keeper::{Heard, Keeper};
use super::rule::Terms;
use crate::serve::edge::connection::Inflow;
use crate::serve::edge::counts::InFlight;
use crate::serve::edge::errand::Found;
use crate::serve::edge::front::Edge;
use crate::serve::edge::pulse::Listening;
use crate::serve::edge::quiet::{QUIET_MAX, Quiet};
use crate::serve::edge::relay::{Cut, Guards};
use crate::serve::edge::request::Buffered;
use crate::serve::peer::BodyError;

/// Continuations of one stream after faults. A request that breaks engines must not break all of them; a fleet that loses a
/// replica every 20 s cuts a stream of a minute three times.
const CONTINUATIONS_MAX: u32 = 6;

/// Events are gathered up to this before they are passed on together.
const GATHERED_BYTES_MAX: usize = 16 << 10;

/// What a continuation needs to know of the request.
#[derive(Debug, Clone)]
pub(in crate::serve::edge) struct Ticket {
    pub(in crate::serve::edge) model: String,
    pub(in crate::serve::edge) request: Buffered,
}

/// What one replica sends.
#[derive(Debug)]
pub(in crate::serve::edge) struct Part {
    node: NodeId,
    sent_at: Mono,
    framer: Framer,
    body: Option<Inflow>,
    pulse: Option<Listening>,
    cut: Cut,
    /// Held for what its drop does.
    _guards: Guards,
}

/// Why a replica is of no more use to a stream.
#[derive(Debug)]
enum Loss {
    /// Its node drains: nothing is wrong.
    HandOver,
    /// The engine says so, perhaps because of this request.
    Failed(String),
    /// It is not to be reached.
    Fault(String),
}

/// A stream that is not kept: only how it ends is seen.
#[derive(Debug)]
struct Watched {
    /// Why it cannot be continued.
    why: String,
    /// Its request asked for one answer, so that an end is the end.
    is_single: bool,
    is_finished: bool,
    /// Token ids were asked for by this edge, not by the user.
    hides_ids: bool,
}

/// Whether the stream can be continued.
#[derive(Debug)]
enum Care {
    Keep(Box<Keeper>),
    /// It cannot.
    Watch(Watched),
    /// A continuation is under way and has the keeper.
    Away,
}

type GoingOn = Pin<Box<dyn Future<Output = Outcome> + Send>>;

enum State {
    Flows(Part),
    GoesOn(GoingOn, Mono),
    Over,
}

/// The body of one stream.
pub(in crate::serve::edge) struct Stream {
    edge: Edge,
    ticket: Ticket,
    /// The user, counted in as long as the stream lasts.
    flight: Option<InFlight>,
    care: Care,
    state: State,
    out: BytesMut,
    /// The last event was passed on; only the end of the replica's answer is awaited.
    is_done: bool,
    fault_count: u32,
    quiet: Quiet,
}

impl Part {
    pub(in crate::serve::edge) fn new(found: Found) -> Self {
        let Found { held, node, cut, guards, sent_at } = found;
        let mut framer = Framer::default();
        for frame in held.frames {
            if let Ok(data) = frame.into_data() {
                framer.push(data);
            }
        }
        let pulse = held.has_pulse.then(Listening::new);
        Self { node, sent_at, framer, body: held.rest, pulse, cut, _guards: guards }
    }
}

impl Stream {
    pub(in crate::serve::edge) fn kept(
        edge: Edge,
        ticket: Ticket,
        flight: Option<InFlight>,
        terms: Terms,
        part: Part,
    ) -> Self {
        let keeper = Keeper::new(terms, edge.fingerprint(&ticket.model), edge.rooms().empty());
        Self::new(edge, ticket, flight, Care::Keep(Box::new(keeper)), part)
    }

    /// A stream that can only be told from one that ended well.
    pub(in crate::serve::edge) fn watched(
        edge: Edge,
        ticket: Ticket,
        flight: Option<InFlight>,
        why: String,
        part: Part,
    ) -> Self {
        Self::new(
            edge,
            ticket,
            flight,
            Care::Watch(Watched { why, is_single: false, is_finished: false, hides_ids: false }),
            part,
        )
    }

    fn new(edge: Edge, ticket: Ticket, flight: Option<InFlight>, care: Care, part: Part) -> Self {
        Self {
            edge,
            ticket,
            flight,
            care,
            state: State::Flows(part),
            out: BytesMut::new(),
            is_done: false,
            fault_count: 0,
            quiet: Quiet::default(),
        }
    }

    /// Takes one event of the replica.
    fn hear(&mut self, event: Bytes) {
        // Keep-alive comments of an engine that hangs are none.
        if !event.starts_with(b":") {
            self.quiet.heard();
        }
        let heard = match &mut self.care {
            Care::Keep(keeper) => {
                let heard = keeper.hear(&event, &mut self.out);
                if let Some(flight) = &self.flight {
                    flight.has_emitted(&keeper.emitted);
                }
                heard
            }
            Care::Watch(watched) => watched.hear(&event, &mut self.out),
            Care::Away => Heard::Goes,
        };
        match heard {
            Heard::Goes => {}
            Heard::Done => {
                self.is_done = true;
                if let Care::Keep(keeper) = &self.care {
                    self.edge.note_fingerprint(&self.ticket.model, keeper.told_fingerprint());
                }
            }
            Heard::Over => self.state = State::Over,
            Heard::Moved => self.cut(Loss::HandOver),
            Heard::Cut(why) => self.cut(Loss::Failed(why)),
            Heard::Unkept(why) => {
                debug!(request_id = ?self.ticket.request.request_id, why, "stream cannot be continued");
                if let Care::Keep(keeper) = &self.care {
                    let (is_finished, hides_ids) = (keeper.is_finished(), !keeper.terms.with_ids);
                    self.care = Care::Watch(Watched { why, is_single: true, is_finished, hides_ids });
                }
                if let State::Flows(part) = &mut self.state
                    && part.node == *self.edge.node()
                {
                    // What cannot go on elsewhere is not handed over.
                    part.cut = Cut::never();
                }
            }
            Heard::Refused(why) => self.fail("stream_not_resumable", &why),
        }
    }

    /// The replica is of no use any more.
    fn cut(&mut self, loss: Loss) {
        let State::Flows(part) = std::mem::replace(&mut self.state, State::Over) else { return };
        if self.is_done {
            return;
        }
        let Part { node, sent_at, .. } = part;
        let care = match std::mem::replace(&mut self.care, Care::Away) {
            Care::Keep(mut keeper) if keeper.is_finished() => return keeper.close(&mut self.out),
            Care::Watch(Watched { is_single: true, is_finished: true, .. }) => {
                return self.out.put_slice(b"data: [DONE]\n\n");
            }
            Care::Away => return,
            care @ (Care::Keep(_) | Care::Watch(_)) => care,
        };
        let is_unreached = matches!(loss, Loss::Fault(_));
        let why = match loss {
            Loss::HandOver => "its node hands it over".to_owned(),
            Loss::Failed(why) | Loss::Fault(why) => {
                self.fault_count += 1;
                self.edge.count_cut(&node, is_unreached);
                if self.fault_count > CONTINUATIONS_MAX {
                    return self
                        .fail("replicas_failed", &format!("cut off too often, last by {node}: {why}"));
                }
                if matches!(care, Care::Keep(_)) && !self.edge.may_repeat(&node, sent_at) {
                    let why = format!("{node}: {why}; this edge's budget of retries is spent");
                    return self.fail("replicas_failed", &why);
                }
                why
            }
        };
        let request_id = &self.ticket.request.request_id;
        match care {
            Care::Keep(keeper) => {
                info!(%node, ?request_id, tokens = keeper.emitted.len(), why, "stream cut; go on elsewhere");
                let (edge, ticket, now) = (self.edge.clone(), self.ticket.clone(), self.edge.now());
                self.state = State::GoesOn(Box::pin(go_on(edge, ticket, keeper, node)), now);
            }
            Care::Watch(Watched { why: reason, .. }) => {
                let why = format!("{node}: {why}; it cannot be continued: {reason}");
                self.fail("stream_not_resumable", &why);
            }
            Care::Away => {}
        }
    }

    fn go_on(&mut self, outcome: Outcome, since: Mono) {
        let Outcome { keeper, out, next } = outcome;
        self.out.put_slice(&out);
        match next {
            Ok(part) => {
                let took = self.edge.now().since(since);
                self.edge.count_continued(took);
                self.ticket.request.visit.continues();
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                let to = part.as_ref().map(|part| part.node.as_str());
                info!(request_id = ?self.ticket.request.request_id, to, took_ms, "stream goes on");
                if let Some(flight) = &self.flight {
                    // Its last tokens may be drawn anew.
                    flight.has_emitted_only(&keeper.emitted);
                }
                self.care = Care::Keep(keeper);
                self.quiet.heard();
                self.state = part.map_or(State::Over, State::Flows);
            }
            Err(Lost::NotExact(why)) => self.fail("stream_not_resumable", &why),
            Err(Lost::NoReplica(why)) => self.fail("replicas_failed", &why),
        }
    }

    /// Ends the stream with an error event.
    fn fail(&mut self, code: &str, why: &str) {
        warn!(request_id = ?self.ticket.request.request_id, code, why, "stream failed");
        self.edge.count_failure();
        self.ticket.request.visit.is_cut();
        let message = format!("stream was cut off: {why}");
        let error =
            json!({"error": {"message": message, "type": "server_error", "param": null, "code": code}});
        self.out.put_slice(format!("data: {error}\n\ndata: [DONE]\n\n").as_bytes());
        self.state = State::Over;
    }

    /// What the replica sends next; `None` while nothing is there.
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let State::Flows(part) = &mut self.state else { return Poll::Ready(()) };
        let Some(body) = &mut part.body else {
            self.cut(Loss::Fault("stream ended early".to_owned()));
            return Poll::Ready(());
        };
        match body.poll_next(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(pulse) = &mut part.pulse {
                    pulse.heard();
                }
                if let Ok(data) = frame.into_data() {
                    part.framer.push(data);
                }
                if part.framer.waiting_bytes() > EVENT_BYTES_MAX {
                    self.fail("stream_not_resumable", "an event is too long");
                }
            }
            Poll::Ready(Some(Err(error))) => self.cut(Loss::Fault(format!("connection broke: {error}"))),
            Poll::Ready(None) => {
                part.body = None;
                self.cut(Loss::Fault("stream ended early".to_owned()));
            }
            Poll::Pending => {
                if Pin::new(&mut part.cut).poll(context).is_ready() {
                    let is_own = part.node == *self.edge.node();
                    let dead = || Loss::Fault("the replica is presumed dead".to_owned());
                    self.cut(if is_own { Loss::HandOver } else { dead() });
                    return Poll::Ready(());
                }
                let is_silent = part.pulse.as_mut().is_some_and(|pulse| pulse.is_silent(context));
                let spans = self.quiet.spans(context);
                let may_move = matches!(self.care, Care::Keep(_)) && (spans > 0 || is_silent);
                let is_lost = may_move && self.edge.has_other(&self.ticket.model, &part.node);
                if spans < QUIET_MAX && !is_lost {
                    return Poll::Pending;
                }
                let why = if is_silent {
                    "its connection is dead"
                } else {
                    "the replica sent nothing for too long"
                };
                self.cut(Loss::Fault(why.to_owned()));
            }
        }
        Poll::Ready(())
    }
}

impl Watched {
    fn hear(&mut self, event: &Bytes, out: &mut BytesMut) -> Heard {
        let said = read(event);
        match &said {
            Said::Done if self.is_finished => {}
            Said::Done => return Heard::Cut("stream ended before its answer was whole".to_owned()),
            Said::Pulse => return Heard::Goes,
            // An offer, which such a stream cannot take: its replica goes on as long as it can.
            Said::Moved => return Heard::Goes,
            Said::Chunk(chunk) => {
                if let Some(why) = chunk.failure() {
                    return Heard::Cut(why);
                }
                if chunk.is_epilogue() && !self.is_finished {
                    return Heard::Cut("engine gave the request up".to_owned());
                }
                self.is_finished |= chunk.is_last() || chunk.is_client_error();
                if self.hides_ids {
                    without_ids(event, chunk, out);
                    return Heard::Goes;
                }
            }
            Said::Other => {}
        }
        out.put_slice(event);
        if matches!(said, Said::Done) { Heard::Done } else { Heard::Goes }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if this.out.len() < GATHERED_BYTES_MAX
                && let State::Flows(part) = &mut this.state
                && let Some(event) = part.framer.next()
            {
                this.hear(event);
                continue;
            }
            if !this.out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.out.split().freeze()))));
            }
            match &mut this.state {
                State::Flows(_) => std::task::ready!(this.poll_part(context)),
                State::GoesOn(going_on, since) => {
                    let since = *since;
                    let outcome = std::task::ready!(going_on.as_mut().poll(context));
                    this.go_on(outcome, since);
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Over) && self.out.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
