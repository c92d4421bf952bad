//! The node's GPUs: what the sources say of them, judged.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::gpu::{
    GpuAction, GpuInventory, GpuProcess, GpuSample, GpuSummary, GpuVerdict, RecoveryAction, XidSeen,
    XidSource,
};
use cic_common::report::GpuReport;
use cic_common::time::Mono;
use cic_common::units::Bytes;

use super::catalogue::{Rule, entry_of};
use super::device::Device;
use super::event::GpuEvent;
use super::history::{History, Sighting};
use super::mark::{Mark, Relief, cause_of};
use super::memory::{GpuMemory, RememberedGpu};
use super::policy::{Context, resolve};
use super::roll::{GPUS_MAX, Roll};
use super::timing::GpuTiming;

/// Something that the agent is to know of at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuFinding {
    /// A fault, once however many sources tell it.
    Xid { seen: XidSeen, action: GpuAction },
    /// A verdict, or the sight of all GPUs, is another than before; for people.
    Changed { text: String },
    /// The process that used the GPU is to be started anew; `pid` is the one the fault was charged to.
    RestartApp { pid: Option<u32>, reason: String },
    /// [`Gpus::memory`] is to be saved.
    MemoryChanged,
}

/// GPU memory in use at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VramReading {
    /// When the sample came.
    pub at: Mono,
    /// By uuid, of every GPU that is not lost.
    pub used: BTreeMap<String, Bytes>,
    /// Of all GPUs. The driver does not list processes everywhere: an empty list is no proof.
    pub processes: Vec<GpuProcess>,
}

/// The sight as people are told of it while nothing is in its way.
const SEEING: &str = "read";

/// How the driver answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sight {
    Unknown,
    Absent,
    Blind(String),
    Wedged(String),
    /// Samples come; the moment of the newest, if there is one.
    Open(Option<Mono>),
}

/// The node's GPUs.
#[derive(Debug)]
pub struct Gpus {
    timing: GpuTiming,
    sight: Sight,
    inventory: Option<GpuInventory>,
    roll: Roll,
    history: History,
    told_sight: String,
    told_memory: GpuMemory,
}

impl Default for Gpus {
    fn default() -> Self {
        Self::new(GpuTiming::default())
    }
}

impl Gpus {
    #[must_use]
    pub fn new(timing: GpuTiming) -> Self {
        Self {
            timing,
            sight: Sight::Unknown,
            inventory: None,
            roll: Roll::default(),
            history: History::default(),
            told_sight: SEEING.to_owned(),
            told_memory: GpuMemory::default(),
        }
    }

    /// Takes over what an earlier run in this same boot remembered.
    pub fn restore(&mut self, memory: GpuMemory) {
        for known in memory.gpus {
            let Some(device) = self.roll.device(known.uuid.as_deref(), known.pci.as_ref()) else { return };
            device.pci = device.pci.take().or(known.pci);
            for mark in known.marks {
                device.mark(mark);
            }
        }
        self.told_memory = self.memory();
    }

    /// What a later run in this same boot must know.
    #[must_use]
    pub fn memory(&self) -> GpuMemory {
        let remembered = |device: &Device| RememberedGpu {
            uuid: device.uuid.clone(),
            pci: device.pci.clone(),
            marks: device.marks.iter().filter(|mark| mark.is_remembered()).map(Mark::timeless).collect(),
        };
        GpuMemory { gpus: self.roll.iter().map(remembered).collect() }
    }

    /// Takes in what a source says.
    #[must_use]
    pub fn hear(&mut self, now: Mono, event: GpuEvent) -> Vec<GpuFinding> {
        let mut out = Vec::new();
        match event {
            GpuEvent::Absent => self.sight = Sight::Absent,
            GpuEvent::Blind { reason } => self.sight = Sight::Blind(reason),
            GpuEvent::Wedged { call, .. } => self.sight = Sight::Wedged(format!("{call} does not come back")),
            GpuEvent::Ready(inventory) => {
                self.inventory = Some(inventory);
                self.sight = Sight::Open(None);
            }
            GpuEvent::Sampled { is_full, device_count, samples, lost } => {
                self.sight = Sight::Open(Some(now));
                self.sampled(now, is_full, device_count, samples, &lost, &mut out);
            }
            GpuEvent::Xid(seen) => self.xid(now, seen, &mut out),
            GpuEvent::XidsBlind { source, reason } => {
                let path = match source {
                    XidSource::Nvml => "from NVML",
                    XidSource::Kmsg => "in the kernel log",
                };
                out.push(GpuFinding::Changed { text: format!("XIDs {path} may be missed: {reason}") });
            }
            GpuEvent::Cleared { gpu } => {
                let is_meant = |device: &&mut Device| gpu.is_none() || device.uuid == gpu;
                self.roll.iter_mut().filter(is_meant).for_each(Device::clear);
            }
        }
        self.roll.expire(now);
        self.tell_changes(&mut out);
        out
    }

    /// A new engine process: the way back of faults that a restart of the application ends. What changes by it is found
    /// with the next event.
    pub fn engine_started(&mut self, now: Mono) {
        for device in self.roll.iter_mut() {
            device.relieve_settled(now, Duration::ZERO, |_| Some(Relief::EngineStarted));
        }
    }

    /// An engine that a fault put in doubt made a token after it: what a restart of the application would have ended
    /// has no hold on it any more. What changes by it is found with the next event.
    pub fn engine_proved(&mut self, now: Mono) {
        for device in self.roll.iter_mut() {
            device.relieve_settled(now, Duration::ZERO, |_| Some(Relief::EngineProved));
        }
    }

    /// The GPUs as the controller is told of them, ordered by index.
    #[must_use]
    pub fn report(&self) -> GpuReport {
        match &self.sight {
            Sight::Unknown => GpuReport::Blind { reason: "not read yet".to_owned() },
            Sight::Absent => GpuReport::Absent,
            Sight::Blind(reason) => GpuReport::Blind { reason: reason.clone() },
            Sight::Wedged(reason) => GpuReport::Wedged { reason: reason.clone() },
            Sight::Open(None) => GpuReport::Blind { reason: "driver is there, no sample yet".to_owned() },
            Sight::Open(Some(_)) => {
                let driver_version =
                    self.inventory.as_ref().and_then(|inventory| inventory.driver_version.clone());
                let gpus =
                    self.roll.indexed().into_iter().map(|(index, device)| device.health(index)).collect();
                GpuReport::Seen(GpuSummary { driver_version, gpus })
            }
        }
    }

    /// The gravest action for which a GPU must not be worked with until something outside the engine was done, with the
    /// GPU and the way back. A restart of the application is told by [`GpuFinding::RestartApp`] instead.
    #[must_use]
    pub fn condemned(&self) -> Option<(GpuAction, String)> {
        let mut gravest: Option<(GpuAction, String)> = None;
        for (index, device) in self.roll.indexed() {
            let GpuVerdict::Unhealthy { action, reason } = device.verdict() else { continue };
            if action.condemns() && gravest.as_ref().is_none_or(|(other, _)| action > *other) {
                gravest = Some((action, format!("gpu {}: {reason}", device.called(index))));
            }
        }
        gravest
    }

    /// GPU memory in use; `None` unless the newest word of the driver tells it of every GPU that is not lost: what a
    /// part of them has in use proves nothing of the rest.
    #[must_use]
    pub fn memory_used(&self) -> Option<VramReading> {
        let Sight::Open(Some(at)) = self.sight else { return None };
        let used: Option<BTreeMap<String, Bytes>> = self
            .roll
            .iter()
            .filter(|device| !device.is_lost())
            // One that only the kernel's log told of is not known to be ours.
            .filter_map(|device| Some((device.uuid.clone()?, device.memory_used())))
            .map(|(uuid, used)| Some((uuid, used?)))
            .collect();
        let processes = self.samples().filter_map(|sample| sample.processes.clone()).flatten().collect();
        let used = used.filter(|used| !used.is_empty())?;
        Some(VramReading { at, used, processes })
    }

    /// XIDs seen at or after `since`, each with its last sighting and what it came to; the newest 64 at most.
    #[must_use]
    pub fn xids_since(&self, since: Mono) -> Vec<(Mono, XidSeen, GpuAction)> {
        self.history.since(since)
    }

    #[must_use]
    pub fn inventory(&self) -> Option<&GpuInventory> {
        self.inventory.as_ref()
    }

    /// The newest sample of each GPU that is not lost; slow fields are those of its last full sample. One that the
    /// newest round has nothing of has only those.
    pub fn samples(&self) -> impl Iterator<Item = &GpuSample> {
        self.roll.iter().filter(|device| !device.is_lost()).filter_map(|device| device.sample.as_ref())
    }

    fn sampled(
        &mut self,
        now: Mono,
        is_full: bool,
        count: u32,
        samples: Vec<GpuSample>,
        lost: &[String],
        out: &mut Vec<GpuFinding>,
    ) {
        let timing = self.timing;
        let uuids: Vec<String> = samples.iter().take(GPUS_MAX).map(|sample| sample.uuid.clone()).collect();
        for sample in samples.into_iter().take(GPUS_MAX) {
            self.roll.adopt(&sample);
            let Some(device) = self.roll.device(Some(&sample.uuid), sample.pci.as_ref()) else { continue };
            let asked = device.asks_for_restart().is_some();
            device.sampled(now, sample, is_full, &timing);
            if let (false, Some(reason)) = (asked, device.asks_for_restart()) {
                out.push(GpuFinding::RestartApp { pid: None, reason: reason.to_owned() });
            }
        }
        self.roll.miss(now, count, &uuids, lost);
        let is_silent = |device: &&mut Device| {
            !device.is_lost() && device.uuid.as_ref().is_some_and(|uuid| !uuids.contains(uuid))
        };
        self.roll.iter_mut().filter(is_silent).for_each(Device::fell_silent);
    }

    fn xid(&mut self, now: Mono, seen: XidSeen, out: &mut Vec<GpuFinding>) {
        let word = word_of(&seen);
        let (index, before, is_new) = match self.history.hear(now, seen, self.timing.dedupe) {
            Sighting::New(index) => (index, None, true),
            Sighting::Learnt { index, before } => (index, Some(before), false),
            // As fresh as at first, for what ends a mark with time; it is not told again.
            Sighting::Repeated(index) => (index, None, false),
        };
        let Some(entry) = self.history.entry(index) else { return };
        let (marked_at, seen, known_action) = (entry.before, entry.seen.clone(), entry.action);
        let timing = self.timing;
        let beside = self.history.beside(now, index, timing.symptom_window);
        let mut device = match &seen.pci {
            Some(pci) => self.roll.device(None, Some(pci)),
            // A source that does not say which GPU leaves no choice where there is one.
            None => self.roll.only(),
        };
        let recovery = device
            .as_ref()
            .and_then(|device| device.sample.as_ref())
            .and_then(|sample| sample.recovery_action);
        let resolution = resolve(&seen, &Context { beside: &beside, recovery });
        if let Some(device) = &mut device {
            if let Some(before) = &before {
                device.unmark(&cause_of(before), marked_at);
            }
            if let Some(mark) = Mark::of_xid(now, &seen, &resolution, timing.note_for) {
                device.mark(mark);
            }
            if let Some(word) = word {
                device.driver_says(now, word);
            }
        }
        self.history.judged(index, resolution.action);
        if is_new {
            out.push(GpuFinding::Xid { seen: seen.clone(), action: resolution.action });
        }
        let asks = resolution.action == GpuAction::RestartApp && !is_symptom(seen.code);
        if asks && (is_new || known_action != GpuAction::RestartApp) {
            out.push(GpuFinding::RestartApp { pid: seen.pid, reason: resolution.why });
        }
    }

    fn tell_changes(&mut self, out: &mut Vec<GpuFinding>) {
        let sight = match &self.sight {
            Sight::Unknown | Sight::Absent | Sight::Open(_) => SEEING.to_owned(),
            Sight::Blind(reason) => format!("blind: {reason}"),
            Sight::Wedged(reason) => format!("wedged: {reason}"),
        };
        if sight != self.told_sight {
            out.push(GpuFinding::Changed { text: format!("GPUs {sight}") });
            self.told_sight = sight;
        }
        // By the GPU and not by its index, which is another's once one before it is lost.
        for (index, device) in self.roll.indexed_mut() {
            let text = device.verdict().text();
            if device.told.as_deref().unwrap_or(GpuVerdict::Healthy.as_str()) != text {
                let name = device.called(index);
                out.push(GpuFinding::Changed { text: format!("gpu {name} {text}") });
            }
            device.told = Some(text);
        }
        let memory = self.memory();
        if memory != self.told_memory {
            out.push(GpuFinding::MemoryChanged);
            self.told_memory = memory;
        }
    }
}

/// The word that an XID brings from the driver.
fn word_of(seen: &XidSeen) -> Option<RecoveryAction> {
    let rule = entry_of(seen.code)?.rule;
    seen.recovery.filter(|_| rule == Rule::AsRecovery)
}

fn is_symptom(code: u32) -> bool {
    entry_of(code).is_some_and(|entry| entry.rule == Rule::Symptom)
}
