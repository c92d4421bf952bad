//! The task that looks each ten seconds, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::TaskResult;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::check::Check;
use super::tally::{FAILURES_MAX, Severity, Tally, Turn};
use crate::core;
use crate::standing::Standing;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(10);

/// One check, as last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckState {
    pub name: String,
    pub severity: Severity,
    /// False from the third failure in a row on.
    pub is_up: bool,
    /// In a row.
    pub failures: u32,
    /// Of the last one.
    pub cause: Option<String>,
}

/// Every check, as last looked at; empty before the first round.
pub type Checks = Arc<Vec<CheckState>>;

/// The monitor of one controller.
#[derive(Debug)]
pub struct Monitor {
    checks: Vec<(Check, Tally)>,
    standing: Standing,
    states: watch::Sender<Checks>,
    wanted: watch::Sender<Option<String>>,
}

impl Monitor {
    #[must_use]
    pub fn new(checks: Vec<Check>, standing: Standing) -> Self {
        let checks = checks.into_iter().map(|check| (check, Tally::default())).collect();
        Self { checks, standing, states: watch::channel(Checks::default()).0, wanted: watch::channel(None).0 }
    }

    #[must_use]
    pub fn states(&self) -> watch::Receiver<Checks> {
        self.states.subscribe()
    }

    /// Why this leader should leave the lead to another. Changes each time that it should.
    #[must_use]
    pub fn hand_over_wanted(&self) -> watch::Receiver<Option<String>> {
        self.wanted.subscribe()
    }

    /// Looks until `token` is cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn run(mut self, token: CancellationToken) -> TaskResult {
        let mut rounds = tokio::time::interval(INTERVAL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel safe: both only wait.
            tokio::select! {
                _ = rounds.tick() => {}
                () = token.cancelled() => return Ok(()),
            }
            let looks = futures_util::future::join_all(self.checks.iter().map(|(check, _)| check.look()));
            // Cancel safe: a look that is given up has no effect.
            let found = tokio::select! {
                found = looks => found,
                () = token.cancelled() => return Ok(()),
            };
            self.conclude(found);
        }
    }

    fn conclude(&mut self, found: Vec<Result<(), String>>) {
        let mut states = Vec::new();
        for ((check, tally), outcome) in self.checks.iter_mut().zip(found) {
            let cause = outcome.err();
            let turn = tally.count(cause.is_none());
            tell(&self.standing, &self.wanted, check, turn, cause.as_deref().unwrap_or_default());
            states.push(CheckState {
                name: check.name.to_owned(),
                severity: check.severity,
                is_up: tally.is_up(),
                failures: tally.failures(),
                cause,
            });
        }
        self.states.send_replace(Arc::new(states));
    }
}

fn tell(standing: &Standing, wanted: &watch::Sender<Option<String>>, check: &Check, turn: Turn, cause: &str) {
    let name = check.name;
    match (turn, check.severity) {
        (Turn::Stays, _) | (Turn::FailsOn, Severity::Warning) => {}
        (Turn::Works, _) => standing.note(core::Severity::Info, "check-works", format!("{name} works again")),
        (Turn::Fails, Severity::Warning) => {
            let text = format!("{name} failed {FAILURES_MAX} times in a row: {cause}");
            standing.note(core::Severity::Warning, "check-failed", text);
        }
        (Turn::Fails | Turn::FailsOn, Severity::Critical) => {
            let Some(reign) = standing.reign() else { return };
            let what = if reign.has_standby {
                "asks another to lead"
            } else {
                "goes on leading: no standby is known"
            };
            if turn == Turn::Fails {
                let text =
                    format!("{name} failed {FAILURES_MAX} times in a row, this controller {what}: {cause}");
                standing.note(core::Severity::Alert, "check-failed", text);
            }
            if reign.has_standby {
                wanted.send_replace(Some(format!("{name}: {cause}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cic_common::id::Term;

    use super::super::check::Target;
    use super::*;
    use crate::standing::Reign;
    use crate::store::StoreQueue;

    fn monitor(severity: Severity, has_standby: Option<bool>) -> (Monitor, StoreQueue) {
        let queue = StoreQueue::default();
        let reign = has_standby.map(|has_standby| Reign { term: Term(1), queue: queue.clone(), has_standby });
        let target = Target::Redis("127.0.0.1:1".to_owned());
        let checks = vec![Check { name: "redis", severity, target }];
        (Monitor::new(checks, Standing::new(move || reign.clone())), queue)
    }

    #[test]
    fn only_a_leader_with_a_standby_leaves_the_lead_and_only_for_a_critical_check() {
        use Severity::{Critical, Warning};
        for (severity, has_standby, rounds, wanted, events) in [
            (Critical, Some(true), 2, false, 0),
            (Critical, Some(true), 3, true, 1),
            (Critical, Some(true), 6, true, 1),
            (Critical, Some(false), 6, false, 1),
            (Critical, None, 6, false, 0),
            (Warning, Some(true), 6, false, 1),
        ] {
            let (mut monitor, queue) = monitor(severity, has_standby);
            let asked = monitor.hand_over_wanted();
            for _ in 0..rounds {
                monitor.conclude(vec![Err("refused".to_owned())]);
            }
            let case = (severity, has_standby, rounds);
            assert_eq!(asked.borrow().is_some(), wanted, "{case:?}");
            assert_eq!(queue.counts().events_waiting, events, "{case:?}");
            let state = monitor.states().borrow()[0].clone();
            assert_eq!((state.is_up, state.failures), (rounds < 3, rounds), "{case:?}");
        }
    }

    #[test]
    fn a_check_that_works_again_is_an_event() {
        let (mut monitor, queue) = monitor(Severity::Warning, Some(false));
        for outcome in [Err("x".to_owned()), Err("x".to_owned()), Err("x".to_owned()), Ok(())] {
            monitor.conclude(vec![outcome]);
        }
        assert_eq!(queue.counts().events_waiting, 2);
        assert!(monitor.states().borrow()[0].is_up);
    }
}
