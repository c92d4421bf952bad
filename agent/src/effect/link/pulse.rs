//! The newest report of this node, ready to be sent as a heartbeat by any link or as the answer to a poll.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cic_common::id::{Incarnation, NodeId};
use cic_common::report::{Heartbeat, NodeReport};
use cic_common::time::{Clock, Mono};
use tokio::sync::watch;

/// Shared by the driver, which sets the report, and all who send it.
#[derive(Debug)]
pub struct Pulse {
    node: NodeId,
    incarnation: Incarnation,
    clock: Clock,
    /// One row of numbers for all links and polls, so that the newest is known however it travelled.
    seq: AtomicU64,
    /// A controller has polled since this was last asked.
    is_polled: AtomicBool,
    report: watch::Sender<(Mono, NodeReport)>,
}

impl Pulse {
    #[must_use]
    pub fn new(node: NodeId, incarnation: Incarnation, clock: Clock) -> Self {
        let report = watch::Sender::new((clock.now(), NodeReport::booting()));
        Self { node, incarnation, clock, seq: AtomicU64::new(0), is_polled: AtomicBool::new(false), report }
    }

    /// Sets the report; every link sends it at once.
    pub fn set(&self, report: NodeReport) {
        self.report.send_replace((self.clock.now(), report));
    }

    /// The next heartbeat: the newest report, its spans counted up to now.
    #[must_use]
    pub fn beat(&self, challenge: u64) -> Heartbeat {
        Heartbeat {
            node: self.node.clone(),
            incarnation: self.incarnation,
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            challenge,
            report: self.report(),
        }
    }

    /// The newest report, its spans counted up to now.
    #[must_use]
    pub fn report(&self) -> NodeReport {
        let (made_at, mut report) = self.report.borrow().clone();
        let age_ms = as_ms(self.clock.now().since(made_at));
        report.phase_for_ms = report.phase_for_ms.saturating_add(age_ms);
        if let Some(notice) = &mut report.notice {
            notice.left_ms = notice.left_ms.saturating_sub(age_ms);
        }
        for blind in &mut report.spot.blind {
            blind.for_ms = blind.for_ms.saturating_add(age_ms);
        }
        report
    }

    /// A controller speaks by the poll path.
    pub fn polled(&self) {
        self.is_polled.store(true, Ordering::Relaxed);
    }

    /// Whether one has since this was last asked.
    #[must_use]
    pub fn take_polled(&self) -> bool {
        self.is_polled.swap(false, Ordering::Relaxed)
    }

    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Says when a report was set.
    pub(super) fn changes(&self) -> watch::Receiver<(Mono, NodeReport)> {
        self.report.subscribe()
    }
}

pub(super) fn as_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_numbered_in_one_row() {
        let pulse = Pulse::new(NodeId::new("n1").unwrap(), Incarnation(2), Clock::start());
        assert_eq!([pulse.beat(0).seq, pulse.beat(7).seq], [1, 2]);
        assert_eq!(pulse.beat(7).challenge, 7);
    }
}
