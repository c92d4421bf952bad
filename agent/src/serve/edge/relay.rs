//! The body a client reads: what was held back first, then the replica's frames as they come.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::choice::Turn;
use super::connection::Inflow;
use super::counts::{Counts, InFlight};
use super::pulse::{PULSE, Saying};
use super::quiet::{QUIET_MAX, Quiet};
use crate::serve::peer::BodyError;

/// What is counted in until the body ends.
#[derive(Debug, Default)]
#[expect(dead_code, reason = "held for what their drop does")]
pub(super) struct Guards {
    pub(super) user: Option<InFlight>,
    pub(super) own: Option<InFlight>,
    pub(super) turn: Option<Turn>,
}

/// Resolves when nothing more is to be expected of a replica, or wanted.
pub(super) struct Cut(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Cut {
    pub(super) fn new(end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(end))
    }

    pub(super) fn never() -> Self {
        Self::new(std::future::pending())
    }
}

impl Future for Cut {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.as_mut().poll(context)
    }
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cut")
    }
}

/// A body that frees connection, counters and turn when it ends, however it ends.
pub(super) struct Relay {
    held: VecDeque<Frame<Bytes>>,
    rest: Option<Inflow>,
    quiet: Quiet,
    cut: Cut,
    guards: Guards,
    /// Counts a stream that breaks; `None` where the receiver can still hide that.
    counts: Option<Counts>,
    /// Said when it is to be cut, instead of breaking off: a reader that can go on elsewhere does.
    offer: Option<Bytes>,
    pulse: Option<Saying>,
}

impl Relay {
    pub(super) fn new(
        held: VecDeque<Frame<Bytes>>,
        rest: Option<Inflow>,
        cut: Cut,
        guards: Guards,
        counts: Option<Counts>,
    ) -> Self {
        Self { held, rest, quiet: Quiet::default(), cut, guards, counts, offer: None, pulse: None }
    }

    /// Says `offer` when it is to be cut, and goes on as long as its reader does.
    pub(super) fn offering(self, offer: Bytes) -> Self {
        Self { offer: Some(offer), ..self }
    }

    /// Says that it lives while the replica says nothing.
    pub(super) fn with_pulse(self) -> Self {
        Self { pulse: Some(Saying::new()), ..self }
    }

    fn end(&mut self) {
        self.rest = None;
        self.guards = Guards::default();
    }

    fn broken(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(counts) = &self.counts {
            counts.failure();
        }
        self.end();
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.held.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(body) = &mut this.rest else {
            this.end();
            return Poll::Ready(None);
        };
        match body.poll_next(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.quiet.heard();
                if let (Some(pulse), Some(data)) = (&mut this.pulse, frame.data_ref()) {
                    pulse.heard(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => this.broken(error.into()),
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if Pin::new(&mut this.cut).poll(context).is_ready() {
                    if let Some(offer) = this.offer.take() {
                        this.cut = Cut::never();
                        return Poll::Ready(Some(Ok(Frame::data(offer))));
                    }
                    return this.broken("replica is presumed dead".into());
                }
                if this.quiet.spans(context) < QUIET_MAX {
                    if this.pulse.as_mut().is_some_and(|pulse| pulse.is_due(context)) {
                        return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PULSE)))));
                    }
                    return Poll::Pending;
                }
                this.broken("replica sent nothing for too long".into())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_some() {
            return SizeHint::default();
        }
        let length = self.held.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        SizeHint::with_exact(length)
    }
}
