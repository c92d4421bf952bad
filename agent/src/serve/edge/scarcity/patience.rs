//! What a request does when no replica takes it: it waits, goes outside, or is turned away.

use std::time::Duration;

use cic_common::time::Mono;
use hyper::Response;
use tokio::sync::watch;

use super::super::errand::Errand;
use super::super::front::{Edge, OwnEngine};
use super::super::routes::Newest;
use super::admission::InLine;
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
    /// Since when some replica is full, as against none there.
    full_at: Option<Mono>,
    pause: Duration,
    is_counted: bool,
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
        Self {
            began_at: None,
            full_at: None,
            pause: PAUSE_INITIAL,
            is_counted: false,
            in_line: None,
            outside_count: 0,
        }
    }
}

impl Edge {
    /// Waits until every replica may be tried anew, after all of them did not take the request of `errand`.
    pub(in super::super) async fn wait(
        &self,
        errand: &mut Errand,
        patience: &mut Patience,
        routes: &mut watch::Receiver<Newest>,
        own: &mut watch::Receiver<Option<OwnEngine>>,
    ) -> Waited {
        let scarcity = &self.shared.scarcity;
        let now = self.shared.clock.now();
        let waited = now.since(*patience.began_at.get_or_insert(now));
        if !errand.is_background
            && errand.full.is_none()
            && errand.broken_count == 0
            && self.shared.routes.candidates(&errand.model).is_some()
            && scarcity.missing.seen(&errand.model)
        {
            scarcity.figures.missing();
        }
        if waited >= OUTSIDE_AFTER && patience.outside_count < OUTSIDE_TRIES_MAX {
            patience.outside_count += 1;
            if let Some(response) = self.ask_outside(errand).await {
                return Waited::Answered(response);
            }
        }
        let full_for = match errand.full {
            Some(_) => Some(now.since(*patience.full_at.get_or_insert(now))),
            None => patience.full_at.take().and(None),
        };
        let (limit, waited) = match (errand.request.wait, full_for) {
            // A stream that was let in before is not turned away half-way for want of room.
            _ if errand.flight.is_none() => (ABSENT_WAIT, waited),
            (Some(asked), _) => (asked.min(scarcity.wait_max), waited),
            (None, Some(full_for)) => (FULL_WAIT, full_for),
            (None, None) => (ABSENT_WAIT, waited),
        };
        let Some(left) = limit.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return Waited::Over;
        };
        // Held while it waits, not while it is served.
        let seat = match patience.is_counted {
            true => Some(scarcity.seats.retake()),
            false => scarcity.seats.take(errand.request.class),
        };
        if seat.is_none() && errand.flight.is_some() {
            scarcity.figures.turned_away();
            return Waited::Over;
        }
        if !std::mem::replace(&mut patience.is_counted, true) {
            scarcity.figures.waited();
        }
        if errand.full.is_some() && self.has_own(errand) {
            match &patience.in_line {
                Some(in_line) => in_line.rejoin(),
                None => patience.in_line = scarcity.admission.stand(errand.request.class),
            }
        }
        // Cancel safe: all four only wait; a place at the engine that was given is kept until it is taken.
        tokio::select! {
            _ = routes.changed() => {}
            _ = own.changed() => {}
            slot = called(&mut patience.in_line) => errand.slot = Some(slot),
            () = tokio::time::sleep(patience.pause.min(left)) => {}
        }
        match (&errand.slot, &mut patience.in_line) {
            (Some(_), _) => patience.in_line = None,
            (None, Some(in_line)) => {
                errand.slot = in_line.step_aside();
                if errand.slot.is_some() {
                    // It was called: there is nothing to go back to.
                    patience.in_line = None;
                }
            }
            (None, None) => {}
        }
        drop(seat);
        patience.pause = (patience.pause * 2).min(PAUSE_MAX);
        errand.full = None;
        Waited::Again
    }

    /// Whether the own engine would take the request, had it room.
    fn has_own(&self, errand: &Errand) -> bool {
        let own = self.shared.own.borrow();
        own.as_ref().is_some_and(|own| own.takes(errand.request.is_last_resort) && own.model == errand.model)
    }
}

async fn called(in_line: &mut Option<InLine>) -> super::admission::Slot {
    match in_line {
        Some(in_line) => in_line.called().await,
        None => std::future::pending().await,
    }
}
