//! From an engine's end to what follows: its cause, the proof that nothing of it is left, and the next try.

use std::time::Duration;

use cic_common::report::{GpuReport, Phase};
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;

use super::Action;
use super::agent::{Agent, decided};
use super::crash::{self, Circumstances, CrashCause, CrashRecord};
use super::event::EngineEnd;
use super::proof::{Proof, prove};
use super::stage::{After, Heal, Next, Stage};

/// How long before an engine's end a GPU fault or an OOM kill may have caused it. A vLLM ends within 3 s of the death of
/// its core; a hung collective takes up to a minute to be given up.
const FAULT_WINDOW: Duration = Duration::from_secs(60);

impl Agent {
    pub(super) fn exited(&mut self, now: Mono, pid: u32, end: EngineEnd, out: &mut Vec<Action>) {
        if self.stage.pid() != Some(pid) {
            return;
        }
        self.engine_pids.clone_from(&end.pids);
        let circumstances = self.circumstances(now, &end);
        let (cause, quotation) = crash::classify(&end.log_tail, &circumstances);
        let was_stopped = matches!(self.stage, Stage::Stopping { .. } | Stage::Draining { .. });
        let how = match (&cause, &quotation) {
            (CrashCause::Unknown, _) | (_, None) => end.how.clone(),
            // One that was stopped may still have written what looks like a cause.
            (_, Some(_)) if was_stopped => end.how.clone(),
            (cause, Some(quotation)) => format!("{}: {cause}: {quotation}", end.how),
        };
        out.push(Action::Tell(NodeEvent::EngineExited { pid: Some(pid), how: how.clone() }));
        self.last_exit = Some(how.clone());
        let left = end.left.clone();
        match self.stage.clone() {
            Stage::Loading { .. } | Stage::Serving { .. } => {
                let last_line = end.log_tail.iter().rev().find(|line| !line.trim().is_empty());
                let reason = match (&cause, last_line) {
                    (CrashCause::Unknown, Some(line)) => {
                        format!("engine ended with {how}; its last line: {}", line.trim())
                    }
                    (CrashCause::Unknown, None) => format!("engine ended with {how}, having written nothing"),
                    (_, _) => format!("engine ended with {how}"),
                };
                let heal = cause.heal(self.was_ready);
                self.save_crash(now, pid, cause, &reason, &circumstances, end, out);
                self.refuse(&reason, out);
                self.prove(now, Next::Fail { reason, heal }, &left, out);
            }
            Stage::Draining { until, poll, hand_over, is_counted, then, keep_engine, last_word, .. } => {
                let reason = format!("engine ended with {how} while it was drained");
                self.save_crash(now, pid, cause, &reason, &circumstances, end, out);
                self.stage = Stage::Draining {
                    pid: None,
                    until,
                    poll,
                    hand_over,
                    is_counted,
                    then,
                    keep_engine,
                    last_word,
                };
            }
            Stage::Stopping { then: After::Retry, .. } => {
                let reason = self.reason.clone();
                self.save_crash(now, pid, cause, &reason, &circumstances, end, out);
                self.prove(now, Next::Fail { reason, heal: Heal::Retry }, &left, out);
            }
            Stage::Stopping { then, .. } => self.prove(now, Next::Then(then), &left, out),
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Proving { .. }
            | Stage::Exiting
            | Stage::Stopped { .. }
            | Stage::Failed { .. } => {}
        }
    }

    fn circumstances(&self, now: Mono, end: &EngineEnd) -> Circumstances {
        // A fault that the engine outlived is not what ended it.
        let since = self.engine_since.max(now - FAULT_WINDOW);
        let of_this_engine = |(at, pid, _): &&(Mono, u32, String)| *at >= since && end.pids.contains(pid);
        Circumstances {
            was_ready: self.was_ready,
            oom_kills: self
                .oom_kills
                .iter()
                .filter(of_this_engine)
                .map(|(_, _, text)| text.clone())
                .collect(),
            xids: self.gpus.xids_since(since).iter().map(|(_, seen, action)| (seen.code, *action)).collect(),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn save_crash(
        &self,
        now: Mono,
        pid: u32,
        cause: CrashCause,
        reason: &str,
        circumstances: &Circumstances,
        end: EngineEnd,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::SaveCrash(CrashRecord {
            pid,
            deployment: self.assignment.as_ref().map(|assignment| assignment.deployment.clone()),
            how: end.how,
            cause,
            reason: reason.to_owned(),
            was_ready: self.was_ready,
            ran_for_ms: super::agent::millis(now.since(self.engine_since)),
            oom_kills: circumstances.oom_kills.clone(),
            xids: circumstances.xids.iter().map(|(code, action)| format!("{code}: {action}")).collect(),
            log_tail: end.log_tail,
            stacks: end.stacks,
            left: end.left,
        }));
    }

    /// Goes on with `next` once the GPUs' memory is free; at once where no GPU can be read.
    pub(super) fn prove(&mut self, now: Mono, next: Next, left: &[u32], out: &mut Vec<Action>) {
        if !left.is_empty() {
            let reason = format!("engine_leaked: processes {left:?} of it survive SIGKILL");
            self.leaked(now, next, reason, Heal::Never, out);
            return;
        }
        let can_be_read = match self.gpus.report() {
            GpuReport::Seen(_) | GpuReport::Wedged { .. } => true,
            GpuReport::Absent | GpuReport::Blind { .. } => false,
        };
        // A cloud that takes the machine does not wait, and after the agent's own end nobody starts an engine here again.
        let leave = self.notices.due(now);
        let is_over = leave.is_some() && next == Next::Then(After::Exit);
        if !can_be_read || !self.has_run_engine || is_over {
            self.go_on(now, next, out);
            return;
        }
        out.push(Action::SampleGpus);
        let timing = self.spec.timing;
        let why = match &next {
            Next::Fail { reason, .. } => reason.clone(),
            Next::Then(_) => self.reason.clone(),
        };
        let reason = format!("{why}; waiting for the GPUs' memory to be free");
        let stage = Stage::Proving {
            ended_at: now,
            ask_at: now + timing.heartbeat,
            until: now + leave.map_or(timing.proof, |leave| timing.proof.min(leave.deadline.since(now) / 2)),
            next,
            why,
        };
        self.enter(now, stage, &reason, out);
    }

    /// Looks at the newest reading while the proof is awaited.
    pub(super) fn look_at_proof(&mut self, now: Mono, out: &mut Vec<Action>) {
        let Stage::Proving { ended_at, ask_at, until, next, why } = &mut self.stage else { return };
        let reading = self.gpus.memory_used();
        let proof = prove(self.baseline.as_ref(), reading.as_ref(), Some(*ended_at), &self.engine_pids);
        if proof != Proof::Free && now < *until {
            if now >= *ask_at {
                *ask_at = now + self.spec.timing.heartbeat;
                out.push(Action::SampleGpus);
            }
            return;
        }
        let next = next.clone();
        self.reason = std::mem::take(why);
        match proof {
            Proof::Free => self.go_on(now, next, out),
            Proof::Held(what) => {
                self.leaked(now, next, format!("gpu_leaked: {what}"), Heal::GpuFree, out);
            }
            // A driver that hangs is looked at again before the next start.
            Proof::Unread => {
                decided(out, "go on without proof", "the GPUs' memory could not be read");
                self.go_on(now, next, out);
            }
        }
    }

    fn go_on(&mut self, now: Mono, next: Next, out: &mut Vec<Action>) {
        match next {
            Next::Fail { reason, heal } => self.fail(now, Phase::Loading, reason, heal, out),
            Next::Then(then) => self.after(now, then, out),
        }
    }

    /// Something of the engine is left: nothing is started on to it, and what was to leave goes on leaving.
    fn leaked(&mut self, now: Mono, next: Next, reason: String, heal: Heal, out: &mut Vec<Action>) {
        decided(out, "start nothing on to what an engine left", &reason);
        match next {
            Next::Then(then @ (After::Rest | After::Leave | After::Exit)) => {
                self.reason = reason;
                self.after(now, then, out);
            }
            Next::Then(After::Retry | After::Again) | Next::Fail { .. } => {
                self.fail(now, Phase::Loading, reason, heal, out);
            }
        }
    }
}
