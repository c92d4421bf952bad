//! How long a loading engine is given: a gate that opens further while there is progress, up to a hard cap.

use std::time::Duration;

use cic_common::time::Mono;
use cic_common::units::Bytes;

use super::Timing;
use super::event::Activity;

/// One engine's time to become ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gate {
    since: Mono,
    /// The last time something of it grew.
    grew_at: Mono,
    activity: Activity,
    gpu_memory: Bytes,
    look_at: Mono,
    /// Since when it answers `/health` and nothing more: a vLLM does not bind its port before it is loaded.
    answers_since: Option<Mono>,
    /// It was ready before: what is awaited is an answer, not a load.
    was_ready: bool,
}

impl Gate {
    pub(super) fn begin(now: Mono, was_ready: bool) -> Self {
        Self {
            since: now,
            grew_at: now,
            activity: Activity::default(),
            gpu_memory: Bytes(0),
            look_at: now,
            answers_since: None,
            was_ready,
        }
    }

    /// What its processes have written and read so far.
    pub(super) fn saw(&mut self, now: Mono, activity: Activity) {
        let grew =
            activity.log_bytes > self.activity.log_bytes || activity.read_bytes > self.activity.read_bytes;
        if grew {
            self.grew_at = now;
        }
        self.activity = activity;
    }

    /// What the GPUs hold, all together.
    pub(super) fn saw_gpu_memory(&mut self, now: Mono, used: Bytes) {
        if used > self.gpu_memory {
            self.grew_at = now;
        }
        self.gpu_memory = used;
    }

    /// Whether it answers on its port, though not with a token.
    pub(super) fn answers(&mut self, now: Mono, it_does: bool) {
        self.answers_since = if it_does { self.answers_since.or(Some(now)) } else { None };
    }

    /// Whether a look at it is due, which it then counts as taken.
    pub(super) fn is_look_due(&mut self, now: Mono, timing: &Timing) -> bool {
        let is_due = now >= self.look_at && !self.was_ready;
        if is_due {
            self.look_at = now + timing.look_loading;
        }
        is_due
    }

    /// When it closes, should nothing happen before.
    pub(super) fn closes_at(&self, timing: &Timing) -> Mono {
        let load = if self.was_ready {
            self.since + timing.stall_kill
        } else {
            (self.since + timing.start_gate)
                .max(self.grew_at + timing.start_quiet.min(timing.start_gate))
                .min(self.since + timing.start_gate_max)
        };
        self.answers_since.map_or(load, |at| load.min(at + timing.stall_kill))
    }

    /// When something is due: a look or the end.
    pub(super) fn due_at(&self, timing: &Timing) -> Mono {
        let closes_at = self.closes_at(timing);
        if self.was_ready { closes_at } else { closes_at.min(self.look_at) }
    }

    /// Why it closed, for people.
    pub(super) fn verdict(&self, now: Mono, pid: u32, timing: &Timing) -> String {
        let spent = now.since(self.since).as_secs();
        if self.answers_since.is_some_and(|at| now.since(at) >= timing.stall_kill) {
            let hung: Duration = timing.stall_kill;
            return format!("engine pid {pid} answers and gave no token within {} s", hung.as_secs());
        }
        if self.was_ready {
            return format!("engine pid {pid} was ready and has not answered for {spent} s");
        }
        let quiet = now.since(self.grew_at).as_secs();
        if now.since(self.since) >= timing.start_gate_max {
            return format!("engine pid {pid} was not ready within {spent} s, though it made progress");
        }
        format!(
            "engine pid {pid} was not ready within {spent} s, and for {quiet} s wrote, read and allocated nothing"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Mono {
        Mono::from_millis(s * 1000)
    }

    #[test]
    fn a_gate_without_progress_closes_at_its_time() {
        let timing = Timing::default();
        assert_eq!(Gate::begin(at(0), false).closes_at(&timing), at(600));
    }

    #[test]
    fn each_kind_of_progress_extends_the_gate_up_to_the_cap() {
        let timing = Timing::default();
        let log = Activity { log_bytes: 1, read_bytes: 0 };
        let read = Activity { log_bytes: 0, read_bytes: 1 };
        for (name, progress) in [
            ("log", Box::new(move |gate: &mut Gate, now| gate.saw(now, log)) as Box<dyn Fn(&mut Gate, Mono)>),
            ("bytes read", Box::new(move |gate, now| gate.saw(now, read))),
            ("gpu memory", Box::new(|gate, now| gate.saw_gpu_memory(now, Bytes(1)))),
        ] {
            let mut gate = Gate::begin(at(0), false);
            progress(&mut gate, at(590));
            assert_eq!(gate.closes_at(&timing), at(710), "{name}");
        }
        let mut gate = Gate::begin(at(0), false);
        for second in 1..3600 {
            gate.saw(at(second), Activity { log_bytes: second, read_bytes: 0 });
        }
        assert_eq!(gate.closes_at(&timing), at(3600));
        assert!(gate.verdict(at(3600), 7, &timing).contains("made progress"));
    }

    #[test]
    fn the_same_figures_again_are_no_progress() {
        let timing = Timing::default();
        let mut gate = Gate::begin(at(0), false);
        for second in [10, 590] {
            gate.saw(at(second), Activity { log_bytes: 5, read_bytes: 5 });
            gate.saw_gpu_memory(at(second), Bytes(9));
        }
        assert_eq!(gate.closes_at(&timing), at(600));
    }

    #[test]
    fn an_engine_that_answers_without_a_token_is_given_no_load_time() {
        let timing = Timing::default();
        let mut gate = Gate::begin(at(0), false);
        gate.answers(at(50), true);
        gate.answers(at(60), true);
        assert_eq!(gate.closes_at(&timing), at(170));
        gate.answers(at(70), false);
        assert_eq!(gate.closes_at(&timing), at(600));
        assert_eq!(Gate::begin(at(5), true).closes_at(&timing), at(125), "one that was ready has loaded");
    }
}
