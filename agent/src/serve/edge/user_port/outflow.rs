//! A body on its way to a client, which frees its replica when the client takes nothing of it.
//!
//! A socket that is full is seen at the socket. A client of HTTP/2 can also take everything of the socket and open no
//! window for one stream: hyper then asks the body for nothing, and only who looks from outside sees it. What it asks
//! for is given in pieces, so that a client that takes a long answer slowly is seen to take it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cic_common::time::{Clock, Mono};
use hyper::body::{Body, Frame, SizeHint};

use super::access::{End, Entry};
use crate::serve::peer::{BodyError, PeerBody};

/// Given at a time: a DATA frame of HTTP/2 (RFC 9113, 4.2). In 30 s a client of 560 bytes/s has taken one.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// The bodies of one connection. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Flows {
    clock: Clock,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    /// With their numbers, in no order. One on HTTP/1.1, up to [`super::limits::STREAMS_MAX`] on HTTP/2.
    flows: Vec<(u64, Arc<Mutex<Flow>>)>,
}

/// What is left to send, and what is to be said when it is sent.
#[derive(Debug)]
struct Flow {
    /// What is left of the frame that is given in pieces.
    begun: Bytes,
    rest: Option<(PeerBody, Entry)>,
    /// When the client's side was given something, and has not asked for more since. `None`: it waits for us.
    given_at: Option<Mono>,
}

/// One body.
#[derive(Debug)]
pub(super) struct Outflow {
    number: u64,
    flow: Arc<Mutex<Flow>>,
    flows: Flows,
}

impl Flows {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, running: Arc::default() }
    }

    pub(super) fn begin(&self, body: PeerBody, entry: Entry) -> Outflow {
        let flow = Flow { begun: Bytes::new(), rest: Some((body, entry)), given_at: Some(self.clock.now()) };
        let flow = Arc::new(Mutex::new(flow));
        let mut running = self.lock();
        let number = running.next;
        running.next += 1;
        running.flows.push((number, Arc::clone(&flow)));
        drop(running);
        Outflow { number, flow, flows: self.clone() }
    }

    /// Frees what stands still for `stall_max` because its client takes nothing.
    pub(super) fn free_stalled(&self, stall_max: Duration) {
        let now = self.clock.now();
        let is_stalled =
            |flow: &&Arc<Mutex<Flow>>| lock(flow).given_at.is_some_and(|at| now.since(at) >= stall_max);
        let stalled: Vec<_> =
            self.lock().flows.iter().map(|(_, flow)| flow).filter(is_stalled).cloned().collect();
        for flow in stalled {
            let rest = lock(&flow).end();
            if let Some((body, mut entry)) = rest {
                entry.ends(End::Stalled);
                drop((body, entry));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for Outflow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut flow = lock(&self.flow);
        let now = self.flows.clock.now();
        let polled = flow.poll_piece(context, now);
        flow.given_at = polled.is_ready().then_some(now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.flow).is_end()
    }

    fn size_hint(&self) -> SizeHint {
        let flow = lock(&self.flow);
        let mut hint = flow.rest.as_ref().map(|(body, _)| body.size_hint()).unwrap_or_default();
        let begun = flow.begun.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + begun);
        }
        hint.set_lower(hint.lower() + begun);
        hint
    }
}

impl Flow {
    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
        now: Mono,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some((body, entry)) = &mut self.rest else {
            return Poll::Ready(Some(Err("client took nothing for too long".into())));
        };
        if self.begun.is_empty() {
            let polled = Pin::new(body).poll_frame(context);
            match polled {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.begun = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Poll::Ready(Some(Err(_))) => {
                    entry.ends(End::Cut);
                    return polled;
                }
                Poll::Ready(None) => {
                    entry.ends(End::Whole);
                    return polled;
                }
                Poll::Pending => return polled,
            }
        }
        let piece = self.begun.split_to(self.begun.len().min(PIECE_BYTES_MAX));
        entry.sends(piece.len(), now);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end(&self) -> bool {
        self.begun.is_empty() && self.rest.as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    /// Takes everything out of it.
    fn end(&mut self) -> Option<(PeerBody, Entry)> {
        self.begun = Bytes::new();
        self.rest.take()
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        let mut running = self.flows.lock();
        if let Some(at) = running.flows.iter().position(|(number, _)| *number == self.number) {
            running.flows.swap_remove(at);
        }
        drop(running);
        let mut flow = lock(&self.flow);
        let is_end = flow.is_end();
        let rest = flow.end();
        drop(flow);
        if let Some((body, mut entry)) = rest {
            if is_end {
                entry.ends(End::Whole);
            }
            drop((body, entry));
        }
    }
}

fn lock(flow: &Mutex<Flow>) -> MutexGuard<'_, Flow> {
    flow.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::access::Asked;
    use super::super::limits::Limits;
    use super::super::watched::Wire;
    use super::*;

    #[tokio::test]
    async fn a_long_answer_is_given_in_pieces_and_each_that_is_taken_is_progress() {
        let clock = Clock::start();
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let wire = Wire::new(stream, &Limits::default(), clock).unwrap();
        let flows = Flows::new(clock);
        let begin = |length: usize| {
            let asked = Asked {
                request_id: hyper::header::HeaderValue::from_static("a"),
                client: std::net::Ipv4Addr::LOCALHOST.into(),
                method: hyper::Method::POST,
                uri: hyper::Uri::default(),
                version: hyper::Version::HTTP_11,
            };
            let entry = Entry::new(false, clock, asked, wire.request(false), Arc::default());
            let body = Full::new(Bytes::from(vec![b'a'; length])).map_err(|never| match never {});
            flows.begin(body.boxed_unsync(), entry)
        };
        let given_at = |outflow: &Outflow| lock(&outflow.flow).given_at.unwrap();

        let mut outflow = begin(2 * PIECE_BYTES_MAX + 1);
        let (mut left, mut given) = (2 * PIECE_BYTES_MAX + 1, given_at(&outflow));
        for length in [PIECE_BYTES_MAX, PIECE_BYTES_MAX, 1] {
            assert!(!outflow.is_end_stream());
            assert_eq!(outflow.size_hint().exact(), Some(left as u64));
            let piece = outflow.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece.len(), length);
            assert!(given_at(&outflow) > given);
            (left, given) = (left - length, given_at(&outflow));
        }
        assert!(outflow.is_end_stream() && outflow.frame().await.is_none());

        let mut stalled = begin(2 * PIECE_BYTES_MAX);
        stalled.frame().await.unwrap().unwrap();
        flows.free_stalled(Duration::ZERO);
        assert!(stalled.frame().await.unwrap().is_err(), "nothing of it is kept");
    }
}
