//! What the GPUs' condition means for the engine on them.

use cic_common::gpu::{GpuInventory, GpuSample};
use cic_common::report::GpuReport;
use cic_common::time::Mono;
use cic_common::units::Bytes;
use cic_common::wire::message::NodeEvent;

use super::Action;
use super::action::{Depth, GpuFacts};
use super::agent::{Agent, decided};
use super::gpu::{GpuEvent, GpuFinding};
use super::proof::{GpuMemo, Proof, prove};
use super::stage::{Heal, Stage};

/// The driver's events and the kernel's log.
const XID_PATHS: usize = 2;

/// OOM kills remembered: those of one engine's time at most matter.
const OOM_KILLS_MAX: usize = 16;

impl Agent {
    pub(super) fn heard_of_gpus(&mut self, now: Mono, event: GpuEvent, out: &mut Vec<Action>) {
        if matches!(event, GpuEvent::XidsBlind { .. }) {
            // Where there is no GPU nobody misses its faults; whether there is one may not be known yet.
            if !self.gpus_heard && self.xids_blind.len() < XID_PATHS {
                self.xids_blind.push(event);
                return;
            }
            if self.gpus.report() == GpuReport::Absent {
                return;
            }
        }
        // That a driver is there, or that one path to XIDs is not, says nothing of the GPUs yet.
        let is_word = match &event {
            GpuEvent::Absent
            | GpuEvent::Blind { .. }
            | GpuEvent::Wedged { .. }
            | GpuEvent::Sampled { .. } => true,
            GpuEvent::Ready(_) | GpuEvent::Xid(_) | GpuEvent::XidsBlind { .. } | GpuEvent::Cleared { .. } => {
                false
            }
        };
        if is_word && !std::mem::replace(&mut self.gpus_heard, true) {
            out.push(Action::Heartbeat);
            let is_absent = event == GpuEvent::Absent;
            for blind in std::mem::take(&mut self.xids_blind).into_iter().filter(|_| !is_absent) {
                self.heard_of_gpus(now, blind, out);
            }
        }
        for finding in self.gpus.hear(now, event) {
            match finding {
                GpuFinding::Xid { seen, action } => {
                    decided(
                        out,
                        "take note of a GPU fault",
                        &format!("XID {}: {action}: {}", seen.code, seen.text),
                    );
                    out.push(Action::Tell(NodeEvent::Xid { seen, action }));
                }
                GpuFinding::Changed { text } => {
                    out.push(Action::Tell(NodeEvent::GpuChanged { text }));
                    out.push(Action::Heartbeat);
                }
                GpuFinding::RestartApp { pid: _, reason } => self.doubt_engine(now, &reason, out),
                GpuFinding::MemoryChanged => out.push(self.memo()),
            }
        }
        self.note_baseline(out);
        self.note_load();
        self.weigh_condition(now, out);
        self.look_at_proof(now, out);
    }

    pub(super) fn oom_killed(&mut self, now: Mono, pid: u32, text: String) {
        if self.oom_kills.len() == OOM_KILLS_MAX {
            self.oom_kills.pop_front();
        }
        self.oom_kills.push_back((now, pid, text));
    }

    /// A fault that NVIDIA answers with a restart of the application: most engines die of it by themselves. One that
    /// goes on working is left alone; one that does not answer with a token is restarted. Whose process it was does not
    /// matter: the question does no harm, and a worker's pid is often not known.
    fn doubt_engine(&mut self, now: Mono, reason: &str, out: &mut Vec<Action>) {
        if let Stage::Serving { pid, probe, .. } = &mut self.stage {
            let pid = *pid;
            *probe = super::stage::Probe::Asked(now);
            self.doubt = Some(reason.to_owned());
            decided(out, "ask the engine for a token", reason);
            self.ask(pid, Depth::Deep, out);
        }
    }

    /// Memory in use before the first engine of this boot is what it must come back to.
    fn note_baseline(&mut self, out: &mut Vec<Action>) {
        if self.baseline.is_some() || self.stage.pid().is_some() || self.has_run_engine {
            return;
        }
        if let Some(reading) = self.gpus.memory_used() {
            self.baseline = Some(reading.used);
            out.push(self.memo());
        }
    }

    fn note_load(&mut self) {
        let reading = self.gpus.memory_used();
        if let (Stage::Loading { gate, .. }, Some(reading)) = (&mut self.stage, reading) {
            gate.saw_gpu_memory(reading.at, Bytes(reading.used.values().map(|used| used.0).sum()));
        }
    }

    /// A condemned GPU asks for another node; a sound one takes that back.
    pub(super) fn weigh_condition(&mut self, now: Mono, out: &mut Vec<Action>) {
        match (self.gpus.condemned(), &self.stage) {
            (Some((action, reason)), _) => {
                let reason = format!("GPU: {action}: {reason}");
                if self.gpu_wish.as_ref() != Some(&reason) {
                    out.push(Action::Tell(NodeEvent::ReplacementWanted { reason: reason.clone() }));
                    out.push(Action::Heartbeat);
                    self.gpu_wish = Some(reason);
                }
            }
            (None, Stage::Failed { heal: Heal::GpuSound }) => {
                self.gpu_wish = None;
                self.wants_replacement = None;
                self.begin(now, "the GPUs are sound again", out);
            }
            (None, Stage::Failed { heal: Heal::GpuFree }) => {
                self.gpu_wish = None;
                let reading = self.gpus.memory_used();
                let proof = prove(
                    self.baseline.as_ref(),
                    reading.as_ref(),
                    Some(self.phase_since),
                    &self.engine_pids,
                );
                if proof == Proof::Free {
                    self.wants_replacement = None;
                    self.begin(now, "the GPUs' memory is free again", out);
                }
            }
            (None, _) => {
                if self.gpu_wish.take().is_some() {
                    decided(out, "stay after all", "the GPUs are sound again");
                    out.push(Action::Heartbeat);
                }
            }
        }
    }

    /// Driver and newest samples, in full.
    #[must_use]
    pub fn gpu_figures(&self) -> (Option<GpuInventory>, Vec<GpuSample>) {
        (self.gpus.inventory().cloned(), self.gpus.samples().cloned().collect())
    }

    /// What a start check must know.
    pub(super) fn gpu_facts(&self) -> GpuFacts {
        let inventory = self.gpus.inventory();
        let summary = match self.gpus.report() {
            GpuReport::Seen(summary) => summary,
            GpuReport::Absent => return GpuFacts { count: Some(0), ..GpuFacts::default() },
            GpuReport::Blind { .. } | GpuReport::Wedged { .. } => return GpuFacts::default(),
        };
        let memory: Option<Vec<Bytes>> = summary.gpus.iter().map(|gpu| gpu.memory_total).collect();
        GpuFacts {
            count: Some(u32::try_from(summary.gpus.len()).unwrap_or(u32::MAX)),
            cuda_version: inventory.and_then(|inventory| inventory.cuda_version),
            driver_version: inventory.and_then(|inventory| inventory.driver_version.clone()),
            name: self.gpus.samples().next().map(|sample| sample.name.clone()),
            memory: memory.unwrap_or_default(),
        }
    }

    /// Whether the GPUs hold more than before the first engine, as far as is known; for people.
    pub(super) fn held_memory(&self) -> Option<String> {
        let reading = self.gpus.memory_used();
        match prove(self.baseline.as_ref(), reading.as_ref(), None, &[]) {
            Proof::Held(what) => Some(what),
            Proof::Free | Proof::Unread => None,
        }
    }

    fn memo(&self) -> Action {
        Action::RememberGpus(GpuMemo { baseline: self.baseline.clone(), marks: self.gpus.memory() })
    }
}
