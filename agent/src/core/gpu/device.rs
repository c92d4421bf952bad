//! One GPU as the agent knows it: its newest sample and its marks.

use std::time::Duration;

use cic_common::gpu::{GpuAction, GpuHealth, GpuSample, GpuVerdict, PciAddress, RecoveryAction};
use cic_common::time::Mono;
use cic_common::units::Bytes;

use super::condition::{carried, conditions};
use super::mark::{Cause, Mark, Relief, WayBack};
use super::policy::recovery_text;
use super::timing::GpuTiming;

/// Marks kept on one GPU; the mildest goes first.
const MARKS_MAX: usize = 16;

/// One GPU. It is known by its uuid once it was sampled, and by its PCI address alone before.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) uuid: Option<String>,
    pub(super) pci: Option<PciAddress>,
    pub(super) sample: Option<GpuSample>,
    pub(super) marks: Vec<Mark>,
    presence: Presence,
    /// What people were told of it last; `None`: nothing yet, as if healthy.
    pub(super) told: Option<String>,
}

/// What the newest round of samples has of a GPU.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// A sample: its index is the driver's of now.
    Sampled,
    /// Nothing.
    #[default]
    Silent,
    /// The driver's word, or its count, that it is gone.
    Lost,
}

impl Device {
    pub(super) fn at(pci: Option<PciAddress>) -> Self {
        Self { pci, ..Self::default() }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.presence == Presence::Lost
    }

    pub(super) fn presence(&self) -> Presence {
        self.presence
    }

    /// The driver's index when it was sampled last. Another GPU may have it since.
    pub(super) fn index(&self) -> Option<u32> {
        self.sample.as_ref().map(|sample| sample.index)
    }

    /// The index that people know it by, where it is now at `index`: of a lost one that is the index it had.
    pub(super) fn called(&self, index: u32) -> u32 {
        self.index().filter(|_| self.is_lost()).unwrap_or(index)
    }

    /// The driver's word that asks for the application to be restarted, if that is its word.
    pub(super) fn asks_for_restart(&self) -> Option<&str> {
        let asks = |mark: &&Mark| mark.cause == Cause::Recovery && mark.action == GpuAction::RestartApp;
        self.marks.iter().find(asks).map(|mark| mark.why.as_str())
    }

    /// Adds `mark`; a graver one of the same cause stays, and so does an operator's word on it.
    pub(super) fn mark(&mut self, mark: Mark) {
        if let Some(old) = self.marks.iter_mut().find(|old| old.cause == mark.cause) {
            let is_waived = old.is_waived && mark.action <= old.action;
            if old.action == mark.action && (old.is_waived || old.cause == Cause::Recovery) {
                (old.why, old.at) = (mark.why, mark.at);
            } else if old.action <= mark.action {
                *old = Mark { is_waived, ..mark };
            }
            return;
        }
        self.marks.push(mark);
        if self.marks.len() > MARKS_MAX {
            let mildest = self
                .marks
                .iter()
                .enumerate()
                .min_by_key(|(_, mark)| (mark.is_unhealthy(), mark.action, mark.at));
            if let Some(index) = mildest.map(|(index, _)| index) {
                self.marks.remove(index);
            }
        }
    }

    /// Takes back the mark of `cause` if it was made at `at`.
    pub(super) fn unmark(&mut self, cause: &Cause, at: Mono) {
        self.marks.retain(|mark| mark.cause != *cause || mark.at != at);
    }

    pub(super) fn sampled(&mut self, now: Mono, sample: GpuSample, is_full: bool, timing: &GpuTiming) {
        if self.is_lost() {
            self.relieve(Relief::CameBack);
            self.marks.retain(|mark| mark.cause != Cause::Lost);
        }
        self.presence = Presence::Sampled;
        self.pci = sample.pci.clone().or(self.pci.take());
        self.uuid = Some(sample.uuid.clone());
        for condition in conditions(now, &sample, timing) {
            match condition {
                Ok(mark) => self.mark(mark),
                Err(cause) => {
                    self.marks.retain(|mark| mark.cause != cause || mark.way_back != WayBack::NotReported);
                }
            }
        }
        self.weigh_word(now, &sample, timing);
        if let Some(processes) = &sample.processes {
            let is_gone = |pid: u32| !processes.iter().any(|process| process.pid == pid);
            self.relieve_settled(now, timing.driver_settle, |mark| {
                let pid = mark.way_back.pid().filter(|pid| is_gone(*pid))?;
                Some(Relief::ProcessGone(pid))
            });
        }
        self.sample = Some(match &self.sample {
            Some(old) if !is_full => carried(sample, old),
            Some(_) | None => sample,
        });
    }

    /// The newest round has no sample of it, and it is not lost: its figures are those of the past.
    pub(super) fn fell_silent(&mut self) {
        self.presence = Presence::Silent;
        self.sample = self.sample.take().map(|old| {
            let blank = GpuSample::unknown(old.index, old.uuid.clone());
            carried(blank, &old)
        });
    }

    /// Memory in use, where the newest round tells it.
    pub(super) fn memory_used(&self) -> Option<Bytes> {
        self.sample.as_ref().filter(|_| !self.is_lost())?.memory_used
    }

    /// The driver shows the GPU no more.
    pub(super) fn vanished(&mut self, now: Mono) {
        self.presence = Presence::Lost;
        // The indices of those after it move down: a person can tell which one it is by what it was.
        let why = ["lost: shown no more".to_owned()]
            .into_iter()
            .chain(self.index().map(|index| format!("was gpu {index}")))
            .chain(self.uuid.clone())
            .collect::<Vec<_>>()
            .join(", ");
        self.mark(Mark::new(now, Cause::Lost, GpuAction::ReplaceNode, why, WayBack::GpuBack));
    }

    /// The driver's word at this moment, from the text of XID 154. "None" ends what the table condemned; another word
    /// is a mark of its own, so that the graver of the two counts.
    ///
    /// Source: NVIDIA GPU Memory Error Management, "Recovery action flag": with none, a new process can use the GPU.
    pub(super) fn driver_says(&mut self, now: Mono, word: RecoveryAction) {
        match word.action() {
            None => {
                self.marks.retain(|mark| mark.cause != Cause::Recovery);
                self.relieve(Relief::DriverSaidNone);
            }
            Some(action) => {
                self.marks
                    .retain(|mark| mark.cause != Cause::Recovery || mark.is_waived || mark.action == action);
                let why = format!("the driver asks for {}", recovery_text(word));
                self.mark(Mark::new(now, Cause::Recovery, action, why, WayBack::DriverSaysNone));
            }
        }
    }

    /// A sampled word; a "none" may be older than a mark that was just made.
    fn weigh_word(&mut self, now: Mono, sample: &GpuSample, timing: &GpuTiming) {
        let Some(word) = sample.recovery_action else { return };
        if word.action().is_some() {
            self.driver_says(now, word);
            return;
        }
        let before = self.sample.as_ref().and_then(|old| old.recovery_action);
        if before.is_some_and(|before| before.action().is_some()) {
            self.marks.retain(|mark| mark.cause != Cause::Recovery);
        }
        self.relieve_settled(now, timing.driver_settle, |_| Some(Relief::DriverSaidNone));
    }

    pub(super) fn relieve(&mut self, relief: Relief) {
        self.marks.retain(|mark| !mark.way_back.is_met_by(relief));
    }

    /// The same for marks that are at least `settle` old.
    pub(super) fn relieve_settled(
        &mut self,
        now: Mono,
        settle: Duration,
        relief: impl Fn(&Mark) -> Option<Relief>,
    ) {
        self.marks.retain(|mark| {
            let is_old = now.since(mark.at) >= settle;
            !(is_old && relief(mark).is_some_and(|relief| mark.way_back.is_met_by(relief)))
        });
    }

    pub(super) fn clear(&mut self) {
        self.marks.retain(|mark| !mark.can_be_cleared());
        for mark in &mut self.marks {
            mark.is_waived = true;
        }
    }

    /// Drops notes that were quiet long enough.
    pub(super) fn expire(&mut self, now: Mono) {
        self.marks.retain(|mark| match mark.way_back {
            WayBack::Quiet { for_ms } => now.since(mark.at) < Duration::from_millis(for_ms),
            WayBack::AppRestarted { .. }
            | WayBack::GpuReset
            | WayBack::VmRebooted
            | WayBack::GpuBack
            | WayBack::DriverSaysNone
            | WayBack::NotReported
            | WayBack::Operator => true,
        });
    }

    /// The gravest mark, unhealthy ones first.
    pub(super) fn gravest(&self) -> Option<&Mark> {
        self.marks.iter().max_by_key(|mark| (mark.is_unhealthy(), !mark.is_waived, mark.action))
    }

    pub(super) fn verdict(&self) -> GpuVerdict {
        let Some(mark) = self.gravest() else { return GpuVerdict::Healthy };
        let others =
            self.marks.iter().filter(|other| other.is_unhealthy() == mark.is_unhealthy()).count() - 1;
        let mut reason = mark.text();
        if others > 0 {
            reason.push_str(&format!(" (and {others} more)"));
        }
        if mark.is_unhealthy() {
            GpuVerdict::Unhealthy { action: mark.action, reason }
        } else {
            GpuVerdict::Degraded { reason }
        }
    }

    pub(super) fn health(&self, index: u32) -> GpuHealth {
        let sample = self.sample.as_ref();
        // Figures of a lost GPU are those of the past; its size is not.
        let now = sample.filter(|_| !self.is_lost());
        GpuHealth {
            index,
            verdict: self.verdict(),
            memory_used: now.and_then(|sample| sample.memory_used),
            memory_total: sample.and_then(|sample| sample.memory_total),
            utilization_percent: now.and_then(|sample| sample.utilization_percent),
            temperature_c: now.and_then(|sample| sample.temperature_c),
        }
    }
}
