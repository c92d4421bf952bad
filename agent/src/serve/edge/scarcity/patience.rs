//! What a request does when no replica takes it: it waits, goes outside, or is turned away.

use std::time::Duration;

use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use hyper::Response;
use tokio::sync::watch;

use super::super::errand::Errand;
use super::super::front::{Edge, OwnEngine};
use super::super::pool::Upstream;
use super::admission::InLine;
use super::seats::Seat;
use crate::serve::peer::PeerBody;

/// How long a request waits for a replica to come to be. A replica that was replaced by a ready spare, or a
/// controller's next table, is there within 6 s of a loss.
const ABSENT_WAIT: Duration = Duration::from_secs(10);

/// How long a request waits for room at a replica. A burst is over by then; in an overload that lasts, those who wait
/// longer only hold the line for others, and 429 with Retry-After spreads them better.
const FULL_WAIT: Duration = Duration::from_secs(2);

/// First pause before every replica is tried again, doubled up to the longest. A new table ends a pause at once.
const PAUSE_INITIAL: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A request that waited so long may go outside: an agent that is started anew refuses for less, and a burst is let in
/// by then. It costs money, so that a blip is not paid for.
const OUTSIDE_AFTER: Duration = Duration::from_secs(1);

/// Times that one request is tried outside.
const OUTSIDE_TRIES_MAX: u32 = 2;

/// One request's waiting so far.
#[derive(Debug)]
pub(in super::super) struct Patience {
    began_at: Option<Mono>,
    pause: Duration,
    seat: Option<Seat>,
    in_line: Option<InLine>,
    outside_count: u32,
}

/// What came of a wait.
pub(in super::super) enum Waited {
    /// Something may have changed: every replica is to be tried anew.
    Again,
    /// It has waited long enough.
    Over,
    /// It was answered outside.
    Answered(Response<PeerBody>),
}

impl Patience {
    pub(in super::super) fn new() -> Self {
        Self { began_at: None, pause: PAUSE_INITIAL, seat: None, in_line: None, outside_count: 0 }
    }
}

impl Edge {
    /// Waits until every replica may be tried anew, after all of them did not take the request of `errand`.
    pub(in super::super) async fn wait(
        &self,
        errand: &mut Errand,
        patience: &mut Patience,
        routes: &mut watch::Receiver<RoutingTable>,
        own: &mut watch::Receiver<Option<OwnEngine>>,
    ) -> Waited {
        let scarcity = &self.shared.scarcity;
        let now = self.shared.clock.now();
        let waited = now.since(*patience.began_at.get_or_insert(now));
        if errand.full.is_none() && errand.broken_count == 0 && scarcity.missing.seen(&errand.model) {
            scarcity.figures.missing();
        }
        if waited >= OUTSIDE_AFTER && patience.outside_count < OUTSIDE_TRIES_MAX {
            patience.outside_count += 1;
            if let Some(response) = self.ask_outside(errand).await {
                return Waited::Answered(response);
            }
        }
        let usual = if errand.full.is_some() { FULL_WAIT } else { ABSENT_WAIT };
        let limit = errand.request.wait.map_or(usual, |asked| asked.min(scarcity.wait_max));
        let Some(left) = limit.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return Waited::Over;
        };
        if patience.seat.is_none() {
            let Some(seat) = scarcity.seats.take() else {
                scarcity.figures.turned_away();
                return Waited::Over;
            };
            scarcity.figures.waited();
            patience.seat = Some(seat);
        }
        if errand.full.is_some() && patience.in_line.is_none() && self.has_own(&errand.model) {
            patience.in_line = scarcity.admission.stand(errand.request.class);
        }
        // Cancel safe: all four only wait; a place at the engine that was given is kept until it is taken.
        tokio::select! {
            _ = routes.changed() => {}
            _ = own.changed() => {}
            slot = called(&mut patience.in_line) => {
                patience.in_line = None;
                errand.slot = Some(slot);
            }
            () = tokio::time::sleep(patience.pause.min(left)) => {}
        }
        patience.pause = (patience.pause * 2).min(PAUSE_MAX);
        errand.full = None;
        Waited::Again
    }

    fn has_own(&self, model: &str) -> bool {
        self.upstreams(model, true).iter().any(|upstream| matches!(upstream, Upstream::Own { .. }))
    }
}

async fn called(in_line: &mut Option<InLine>) -> super::admission::Slot {
    match in_line {
        Some(in_line) => in_line.called().await,
        None => std::future::pending().await,
    }
}
