//! A body on its way to a client, which frees its replica when the client takes nothing of it.
//!
//! A socket that is full is seen at the socket. A client of HTTP/2 can also take everything of the socket and open no
//! window for one stream: hyper then asks the body for nothing, and only who looks from outside sees it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cic_common::time::{Clock, Mono};
use hyper::body::{Body, Frame, SizeHint};

use super::access::{End, Entry};
use crate::serve::peer::{BodyError, PeerBody};

/// The bodies of one connection. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Flows {
    clock: Clock,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    flows: BTreeMap<u64, Arc<Mutex<Flow>>>,
}

/// What is left to send, and what is to be said when it is sent.
#[derive(Debug)]
struct Flow {
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
        let flow = Flow { rest: Some((body, entry)), given_at: Some(self.clock.now()) };
        let flow = Arc::new(Mutex::new(flow));
        let mut running = self.lock();
        let number = running.next;
        running.next += 1;
        running.flows.insert(number, Arc::clone(&flow));
        drop(running);
        Outflow { number, flow, flows: self.clone() }
    }

    /// Frees what stands still for `stall_max` because its client takes nothing.
    pub(super) fn free_stalled(&self, stall_max: Duration) {
        let now = self.clock.now();
        let is_stalled =
            |flow: &&Arc<Mutex<Flow>>| lock(flow).given_at.is_some_and(|at| now.since(at) >= stall_max);
        let stalled: Vec<_> = self.lock().flows.values().filter(is_stalled).cloned().collect();
        for flow in stalled {
            let rest = lock(&flow).rest.take();
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
        let Some((body, entry)) = &mut flow.rest else {
            return Poll::Ready(Some(Err("client took nothing for too long".into())));
        };
        let polled = Pin::new(body).poll_frame(context);
        let now = self.flows.clock.now();
        match &polled {
            Poll::Ready(Some(Ok(frame))) => entry.sends(frame.data_ref().map_or(0, Bytes::len), now),
            Poll::Ready(Some(Err(_))) => entry.ends(End::Cut),
            Poll::Ready(None) => entry.ends(End::Whole),
            Poll::Pending => {}
        }
        flow.given_at = polled.is_ready().then_some(now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.flow).rest.as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.flow).rest.as_ref().map(|(body, _)| body.size_hint()).unwrap_or_default()
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        self.flows.lock().flows.remove(&self.number);
        let rest = lock(&self.flow).rest.take();
        if let Some((body, mut entry)) = rest
            && body.is_end_stream()
        {
            entry.ends(End::Whole);
        }
    }
}

fn lock(flow: &Mutex<Flow>) -> MutexGuard<'_, Flow> {
    flow.lock().unwrap_or_else(PoisonError::into_inner)
}
