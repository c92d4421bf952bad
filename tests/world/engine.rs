//! The engine process of one machine: it loads, serves, hangs, crashes and ends.

use std::time::Duration;

use cic_agent::core::{Depth, ProbeFault, Reading, Work};
use cic_common::assignment::Assignment;
use cic_common::time::Mono;

use super::rng::Rng;

/// How engines of this fleet behave. Shares are 0.0 to 1.0 of the starts.
#[derive(Debug, Clone, Copy)]
pub struct EngineManners {
    /// From start to ready.
    pub load_ms: (u64, u64),
    /// Starts that end at once with an exit code.
    pub fails_at_start: f64,
    /// Starts that never become ready.
    pub never_ready: f64,
    /// Engines that ignore SIGTERM.
    pub ignores_term: f64,
}

/// Time from SIGTERM to the end of a real vLLM.
const TERM_MS: (u64, u64) = (300, 900);

/// How long a probe takes that is answered.
const PROBE_MS: (u64, u64) = (5, 60);

/// An engine that cannot start says so within this time.
const START_FAILURE_MS: (u64, u64) = (200, 4000);

/// One engine process.
#[derive(Debug, Clone)]
pub struct Engine {
    pub pid: u32,
    pub assignment: Assignment,
    ready_at: Option<Mono>,
    /// It ends by itself then.
    pub fails_at: Option<Mono>,
    pub is_hung: bool,
    /// It answers, has work, and nothing of that moves.
    pub is_stalled: bool,
    ignores_term: bool,
}

impl Engine {
    pub fn start(
        now: Mono,
        pid: u32,
        assignment: Assignment,
        manners: &EngineManners,
        rng: &mut Rng,
    ) -> Self {
        let fails_at =
            rng.chance(manners.fails_at_start).then(|| now + rng.ms(START_FAILURE_MS.0, START_FAILURE_MS.1));
        let never = rng.chance(manners.never_ready);
        let load = rng.ms(manners.load_ms.0, manners.load_ms.1);
        let ignores_term = rng.chance(manners.ignores_term);
        let ready_at = (!never && fails_at.is_none()).then_some(now + load);
        Self { pid, assignment, ready_at, fails_at, is_hung: false, is_stalled: false, ignores_term }
    }

    #[must_use]
    pub fn is_ready(&self, now: Mono) -> bool {
        !self.is_hung && self.ready_at.is_some_and(|at| at <= now)
    }

    pub fn never_ready(&self) -> bool {
        self.ready_at.is_none()
    }

    /// When a probe sent now is answered and with what; a hung engine lets it run into `deadline`.
    pub fn probe(
        &self,
        now: Mono,
        depth: Depth,
        deadline: Duration,
        rng: &mut Rng,
    ) -> (Mono, Reading, Result<(), ProbeFault>) {
        let late = || "no answer in time".to_owned();
        if self.is_hung {
            return (now + deadline, Reading::default(), Err(ProbeFault::Health(late())));
        }
        let soon = now + rng.ms(PROBE_MS.0, PROBE_MS.1);
        if !self.is_ready(now) {
            return (soon, Reading::default(), Err(ProbeFault::Health("connection refused".to_owned())));
        }
        let wants_token = depth != Depth::Shallow;
        if self.is_stalled {
            let work = Some(Work { running: 1, iterations: Some(7), ..Work::default() });
            let reading = Reading { before: work, after: work, is_completed: false };
            let result = if wants_token { Err(ProbeFault::Completion(late())) } else { Ok(()) };
            return (if wants_token { now + deadline } else { soon }, reading, result);
        }
        let work = |iterations| Some(Work { running: 1, iterations: Some(iterations), ..Work::default() });
        let after = work(now.as_millis());
        (soon, Reading { before: work(0), after, is_completed: wants_token }, Ok(()))
    }

    /// When and how it ends if asked now: SIGTERM, then SIGKILL after `grace`.
    pub fn stop(&self, now: Mono, grace: Duration, rng: &mut Rng) -> (Mono, &'static str) {
        if self.ignores_term || self.is_hung {
            return (now + grace, "signal 9");
        }
        (now + rng.ms(TERM_MS.0, TERM_MS.1).min(grace), "exit code 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cic_common::assignment::{EngineSpec, ModelSpec};
    use cic_common::id::DeploymentName;

    const MANNERS: EngineManners =
        EngineManners { load_ms: (10_000, 10_000), fails_at_start: 0.0, never_ready: 0.0, ignores_term: 0.0 };

    fn start(manners: EngineManners) -> Engine {
        let assignment = Assignment {
            deployment: DeploymentName::new("chat").expect("a label"),
            model: ModelSpec::at("m", "/m"),
            engine: EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: Default::default() },
        };
        Engine::start(Mono::ZERO, 7, assignment, &manners, &mut Rng::new(2))
    }

    #[test]
    fn an_engine_is_ready_after_its_load_and_not_while_hung() {
        let mut engine = start(MANNERS);
        assert!(!engine.is_ready(Mono::from_millis(9_999)));
        assert!(engine.is_ready(Mono::from_millis(10_000)));
        engine.is_hung = true;
        assert!(!engine.is_ready(Mono::from_millis(10_000)));
    }

    #[test]
    fn a_hung_engine_answers_a_probe_only_by_its_deadline() {
        let engine = Engine { is_hung: true, ..start(MANNERS) };
        let (at, _, answer) =
            engine.probe(Mono::ZERO, Depth::Deep, Duration::from_secs(10), &mut Rng::new(1));
        assert_eq!((at, answer.is_err()), (Mono::from_millis(10_000), true));
    }

    #[test]
    fn an_engine_that_ignores_sigterm_is_killed_after_the_grace() {
        let engine = start(EngineManners { ignores_term: 1.0, ..MANNERS });
        let (at, how) = engine.stop(Mono::ZERO, Duration::from_secs(10), &mut Rng::new(1));
        assert_eq!((at, how), (Mono::from_millis(10_000), "signal 9"));
    }
}
