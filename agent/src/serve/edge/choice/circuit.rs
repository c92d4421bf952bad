//! Whether a replica that failed may be asked again.

use std::time::Duration;

use cic_common::time::Mono;

/// First time out after a failure; doubled with each failure in a row.
const OUT_INITIAL: Duration = Duration::from_secs(1);

/// Longest time out. The controller routes a silent node out within 6 s; this holds when there is none.
const OUT_MAX: Duration = Duration::from_secs(10);

/// A trial without a verdict for so long makes room for another: a long completion says nothing until its end.
const TRIAL_MAX: Duration = Duration::from_secs(2);

/// What a failure was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It could not be reached, or broke off in the middle of a stream.
    Lost,
    /// Its engine had the request and failed, perhaps because of the request.
    Erred,
}

/// ```text
/// Closed --failed--> Open --its time is over and it is picked--> Trial --answered--> Closed
///                     ^                                           | |
///                     |<---------- failed: out for longer --------' |
///                     '<---------- left: no verdict, no change -----'
/// ```
/// Whatever it is in, an answer closes it. A failure while it is out adds nothing: ten streams that a dead replica
/// took with it are one failure.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Circuit {
    #[default]
    Closed,
    Open {
        until: Mono,
        failures: u32,
        fault: Fault,
    },
    /// One request tries whether it is well again.
    Trial {
        since: Mono,
        failures: u32,
    },
}

/// What a circuit says to one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    In,
    /// Out for a single bad answer.
    Doubted {
        until: Mono,
    },
    Out {
        until: Mono,
    },
}

impl Circuit {
    pub(super) fn gate(self, now: Mono) -> Gate {
        match self {
            Self::Closed => Gate::In,
            Self::Open { until, .. } if until <= now => Gate::In,
            Self::Open { until, failures: 1, fault: Fault::Erred } => Gate::Doubted { until },
            Self::Open { until, .. } => Gate::Out { until },
            Self::Trial { since, .. } if since + TRIAL_MAX <= now => Gate::In,
            Self::Trial { since, .. } => Gate::Out { until: since },
        }
    }

    /// It is picked. Returns the trial's moment when this request is one.
    pub(super) fn enter(&mut self, now: Mono) -> Option<Mono> {
        let failures = match *self {
            Self::Closed => return None,
            // Picked because all are out: that is no trial, others may be picked so too.
            Self::Open { until, .. } if until > now => return None,
            Self::Trial { since, .. } if since + TRIAL_MAX > now => return None,
            Self::Open { failures, .. } | Self::Trial { failures, .. } => failures,
        };
        *self = Self::Trial { since: now, failures };
        Some(now)
    }

    pub(super) fn failed(&mut self, now: Mono, fault: Fault) {
        let failures = match *self {
            Self::Closed => 0,
            Self::Open { until, failures, fault: earlier } if until > now => {
                let is_lost = fault == Fault::Lost || earlier == Fault::Lost;
                let fault = if is_lost { Fault::Lost } else { Fault::Erred };
                *self = Self::Open { until, failures, fault };
                return;
            }
            Self::Open { failures, .. } | Self::Trial { failures, .. } => failures,
        };
        let failures = failures.saturating_add(1);
        *self = Self::Open { until: now + out_for(failures), failures, fault };
    }

    pub(super) fn answered(&mut self) {
        *self = Self::Closed;
    }

    /// The trial that began then ended without a verdict, as when its client left.
    pub(super) fn left(&mut self, trial: Mono) {
        match *self {
            Self::Trial { since, failures } if since == trial => {
                *self = Self::Open { until: since, failures, fault: Fault::Lost };
            }
            Self::Closed | Self::Open { .. } | Self::Trial { .. } => {}
        }
    }

    pub(super) fn is_closed(self) -> bool {
        match self {
            Self::Closed => true,
            Self::Open { .. } | Self::Trial { .. } => false,
        }
    }
}

fn out_for(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (OUT_INITIAL * (1 << doublings)).min(OUT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    #[test]
    fn each_failure_in_a_row_puts_it_out_for_longer_and_an_answer_forgets_them() {
        let mut circuit = Circuit::default();
        for (failed_at, back_at) in
            [(0, 1000), (1000, 3000), (3000, 7000), (7000, 15_000), (15_000, 25_000), (25_000, 35_000)]
        {
            assert_eq!(circuit.gate(at(failed_at)), Gate::In);
            circuit.failed(at(failed_at), Fault::Lost);
            assert_eq!(circuit.gate(at(back_at - 1)), Gate::Out { until: at(back_at) });
        }
        circuit.answered();
        circuit.failed(at(40_000), Fault::Lost);
        assert_eq!(circuit.gate(at(40_999)), Gate::Out { until: at(41_000) });
    }

    #[test]
    fn what_a_dead_replica_took_with_it_is_one_failure() {
        let mut circuit = Circuit::default();
        circuit.failed(at(0), Fault::Erred);
        assert_eq!(circuit.gate(at(1)), Gate::Doubted { until: at(1000) });
        for ms in 1..10 {
            circuit.failed(at(ms), Fault::Lost);
        }
        assert_eq!(circuit.gate(at(10)), Gate::Out { until: at(1000) }, "lost, and no longer for it");
    }

    #[test]
    fn one_request_at_a_time_tries_one_that_was_out() {
        let mut circuit = Circuit::default();
        circuit.failed(at(0), Fault::Lost);
        assert_eq!(circuit.enter(at(999)), None, "picked because all are out");
        let trial = circuit.enter(at(1000));
        assert_eq!(trial, Some(at(1000)));
        assert_ne!(circuit.gate(at(1001)), Gate::In);
        assert_eq!(circuit.enter(at(1001)), None);
        for (what, then, gate) in [
            ("answers", Circuit::answered as fn(&mut Circuit), Gate::In),
            ("fails", |circuit| circuit.failed(at(1500), Fault::Erred), Gate::Out { until: at(3500) }),
            ("leaves", |circuit| circuit.left(at(1000)), Gate::In),
            ("is not the trial", |circuit| circuit.left(at(7)), Gate::Out { until: at(1000) }),
        ] {
            let mut after = circuit;
            then(&mut after);
            assert_eq!(after.gate(at(1500)), gate, "{what}");
        }
        assert_eq!(circuit.gate(at(3000)), Gate::In, "a long one makes room for the next");
    }
}
