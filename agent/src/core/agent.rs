//! The agent's decisions: one engine, brought up, watched, drained and reported.

use std::collections::{BTreeMap, VecDeque};

use cic_common::assignment::Assignment;
use cic_common::id::{Incarnation, NodeId, OperationId, Term};
use cic_common::notice::Notice;
use cic_common::report::{EdgeReport, EngineReport, HostReport, NodeReport, Phase, Role, StateDigest};
use cic_common::time::Mono;
use cic_common::units::Bytes;
use cic_common::wire::message::NodeEvent;
use serde::{Deserialize, Serialize};

use super::action::Depth;
use super::checkpoint::{Checkpoints, LastWord};
use super::deadman::{Deadman, DeadmanSpec};
use super::gpu::{GpuEvent, GpuTiming, Gpus};
use super::notices::Notices;
use super::restart::Restarts;
use super::search::Search;
use super::sight::Sight;
use super::stage::{After, Heal, Next, Probe, Stage};
use super::{Action, EdgeMode, Event, Timing};

/// What an agent is before anything happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    pub node: NodeId,
    pub role: Role,
    pub incarnation: Incarnation,
    pub timing: Timing,
    /// Below it is what this agent mounts.
    pub mounts: String,
    /// There is an object store for checkpoints.
    pub has_store: bool,
    /// `None`: the VM does not end itself.
    pub deadman: Option<DeadmanSpec>,
}

/// The agent's decisions.
#[derive(Debug)]
pub struct Agent {
    pub(super) spec: AgentSpec,
    pub(super) stage: Stage,
    pub(super) phase_since: Mono,
    pub(super) reason: String,
    pub(super) heartbeat_at: Mono,
    pub(super) term: Term,
    /// The newest restart that was obeyed, by this run or one before.
    pub(super) restarted_for: Option<(Term, OperationId)>,
    pub(super) assignment: Option<Assignment>,
    pub(super) attempt: u32,
    /// For the files of the current attempt.
    pub(super) search: Option<Search>,
    pub(super) restarts: Restarts,
    pub(super) restart_count: u32,
    pub(super) is_adopted: bool,
    pub(super) was_ready: bool,
    /// Its start, or its adoption.
    pub(super) engine_since: Mono,
    /// Every process seen to be the current or last engine's.
    pub(super) engine_pids: Vec<u32>,
    /// An engine has run in this boot, so that the memory in use is no baseline any more.
    pub(super) has_run_engine: bool,
    /// How the running engine differs from the wanted one.
    pub(super) drift: Option<String>,
    /// A GPU fault after which the engine has to prove that it works.
    pub(super) doubt: Option<String>,
    pub(super) oom_kills: VecDeque<(Mono, u32, String)>,
    pub(super) last_exit: Option<String>,
    pub(super) wants_replacement: Option<String>,
    pub(super) notices: Notices,
    sight: Sight,
    pub(super) host: HostReport,
    pub(super) gpus: Gpus,
    pub(super) gpus_heard: bool,
    /// Said of the paths to XIDs before it was known whether there are GPUs.
    pub(super) xids_blind: Vec<GpuEvent>,
    pub(super) baseline: Option<BTreeMap<String, Bytes>>,
    /// Why a GPU asks for another node in place of this one.
    pub(super) gpu_wish: Option<String>,
    pub(super) edge: EdgeReport,
    /// Requests that this node's edge holds in its own engine.
    pub(super) own_in_flight: u32,
    /// What is asked for in place of the running engine, for its next start.
    pub(super) wanted: Option<Assignment>,
    pub(super) checkpoints: Checkpoints,
    pub(super) deadman: Option<Deadman>,
    state: StateDigest,
}

impl Agent {
    #[must_use]
    pub fn new(spec: AgentSpec) -> Self {
        let restarts = Restarts::new(spec.timing.failure_window, &spec.node, spec.incarnation);
        let deadman = spec.deadman.map(Deadman::new);
        Self {
            spec,
            deadman,
            stage: Stage::Idle,
            phase_since: Mono::ZERO,
            reason: "agent started".to_owned(),
            heartbeat_at: Mono::ZERO,
            term: Term(0),
            restarted_for: None,
            assignment: None,
            attempt: 0,
            search: None,
            restarts,
            restart_count: 0,
            is_adopted: false,
            was_ready: false,
            engine_since: Mono::ZERO,
            engine_pids: Vec::new(),
            has_run_engine: false,
            drift: None,
            doubt: None,
            oom_kills: VecDeque::new(),
            last_exit: None,
            wants_replacement: None,
            notices: Notices::default(),
            sight: Sight::default(),
            host: HostReport::default(),
            gpus: Gpus::new(GpuTiming::default()),
            gpus_heard: false,
            xids_blind: Vec::new(),
            baseline: None,
            gpu_wish: None,
            edge: EdgeReport::default(),
            own_in_flight: 0,
            wanted: None,
            checkpoints: Checkpoints::new(),
            state: StateDigest::default(),
        }
    }

    /// Takes in one event and appends what is to be done about it.
    pub fn step(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Booted(booted) => self.booted(now, booted, out),
            Event::Assigned { term, assignment } => self.assigned(now, term, assignment, out),
            Event::Commanded { operation, term, command } => {
                self.commanded(now, operation, term, command, out)
            }
            Event::ModelMounted { attempt, result } => self.mounted(now, attempt, result, out),
            Event::ModelFetched { attempt, result } => self.fetched(now, attempt, result, out),
            Event::ModelProgress { attempt, done_bytes, all_bytes } => {
                self.model_moved(now, attempt, done_bytes, all_bytes);
            }
            Event::ModelVerified { attempt, result } => self.verified(now, attempt, result, out),
            Event::EngineChecked { attempt, result } => self.checked(now, attempt, result, out),
            Event::EngineStarted { attempt, pid } => self.started(now, attempt, pid, out),
            Event::EngineStartFailed { attempt, reason, may_heal } => {
                if self.stage == (Stage::Starting { attempt }) {
                    let heal = if may_heal { Heal::Retry } else { Heal::Never };
                    self.fail(now, Phase::Loading, reason, heal, out);
                }
            }
            Event::EngineExited { pid, end } => self.exited(now, pid, end, out),
            Event::EngineProbed { pid, reading, result } => self.probed(now, pid, &reading, result, out),
            Event::EngineSeen { pid, activity } => {
                if let Stage::Loading { pid: current, gate, .. } = &mut self.stage
                    && *current == pid
                {
                    gate.saw(now, activity);
                }
            }
            Event::OomKilled { pid, text } => self.oom_killed(now, pid, text),
            Event::HostSampled(host) => self.host = host,
            Event::Gpu(event) => self.heard_of_gpus(now, event, out),
            Event::EngineOccupied { in_flight } => self.own_in_flight = in_flight,
            Event::EdgeCounted(edge) => {
                self.edge = edge;
                if let Stage::Draining { is_counted, .. } = &mut self.stage {
                    *is_counted = true;
                }
            }
            Event::Contact { by_controller } => self.contacted(by_controller),
            Event::CloudFound { cloud, sources } => self.sight.found(cloud, sources),
            Event::NoticeSeen { kind, source, id, deadline, confidence, resources } => {
                let left_ms = millis(deadline.since(now));
                self.noticed(now, Notice { kind, source, id, left_ms, confidence, resources }, out);
            }
            Event::NoticeLifted { source, id } => self.notice_lifted(source, id, out),
            Event::SpotBlind { source, since, cause } => {
                if self.sight.lost(&source, since, &cause) {
                    out.push(Action::Tell(NodeEvent::SpotBlind { source, cause }));
                    out.push(Action::Heartbeat);
                }
            }
            Event::SpotSeen { source } => {
                if self.sight.read(&source) {
                    out.push(Action::Tell(NodeEvent::SpotSeen { source }));
                    out.push(Action::Heartbeat);
                }
            }
            Event::ModelKnown { attempt, result } => self.model_known(attempt, result, out),
            Event::Checkpointed { occasion, result } => self.checkpointed(occasion, result, out),
            Event::TakesPlaceOf { term, predecessor, is_gone } => {
                // A leader that was followed by another may have chosen another heir.
                if term >= self.term {
                    self.takes_place_of(predecessor, is_gone, out);
                }
            }
            Event::Restored { from, result } => self.restored(from, result, out),
            Event::StopAsked { with_engine, reason } => self.stop_asked(now, with_engine, reason, out),
        }
        self.pass_time(now, out);
        self.note_state(now);
    }

    /// When a tick is wanted if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let timing = &self.spec.timing;
        let stage = match &self.stage {
            Stage::Checking { is_asked: false, until, .. } => Some(*until),
            Stage::Loading { probe, gate, .. } => Some(gate.due_at(timing).min(self.probe_deadline(*probe))),
            Stage::Serving { probe, .. } => Some(self.probe_deadline(*probe)),
            Stage::Proving { ask_at, until, .. } => Some((*ask_at).min(*until)),
            Stage::Waiting { until, .. } => Some(*until),
            Stage::Draining { last_word: LastWord::Until(until), .. } => Some(*until),
            Stage::Draining { until, poll, hand_over, .. } => {
                let next = (*until).min(*poll);
                Some(hand_over.map_or(next, |at| at.min(next)))
            }
            Stage::Stopping { until, .. } => Some(*until),
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { is_asked: true, .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Exiting
            | Stage::Stopped { .. }
            | Stage::Failed { .. } => None,
        };
        let next = stage.map_or(self.heartbeat_at, |at| at.min(self.heartbeat_at));
        let next = self.checkpoint_due().map_or(next, |at| at.min(next));
        let leave = self.notices.leave().filter(|_| !self.stage.is_leaving());
        Some(leave.map_or(next, |leave| leave.drain_at.min(next)))
    }

    /// What the node says of itself at `now`.
    #[must_use]
    pub fn report(&self, now: Mono) -> NodeReport {
        NodeReport {
            phase: self.stage.phase(),
            phase_for_ms: millis(now.since(self.phase_since)),
            reason: self.reason.clone(),
            deployment: self.assignment.as_ref().map(|a| a.deployment.clone()),
            engine: EngineReport {
                state: self.stage.engine_state(self.was_ready),
                pid: self.stage.pid(),
                is_adopted: self.is_adopted && self.stage.pid().is_some(),
                restart_count: self.restart_count,
                last_exit: self.last_exit.clone(),
                drift: self.drift.clone().filter(|_| self.stage.pid().is_some()),
            },
            host: self.host.clone(),
            gpu: self.gpus.report(),
            edge: self.edge.clone(),
            notice: self.notices.first(now),
            spot: self.sight.report(now),
            model: self.model_progress(),
            wants_replacement: self.wants_replacement.clone().or_else(|| self.gpu_wish.clone()),
            state: self.state,
        }
    }

    /// Numbers the state anew when it changed.
    fn note_state(&mut self, now: Mono) {
        let digest = self.report(now).digest();
        if self.state.version == 0 || digest != self.state.digest {
            self.state = StateDigest { version: self.state.version + 1, digest };
        }
    }

    /// What is due at `now` whatever happened.
    pub(super) fn pass_time(&mut self, now: Mono, out: &mut Vec<Action>) {
        let timing = self.spec.timing;
        self.heed_notices(now, out);
        self.checkpoint_in_time(now, out);
        self.heed_silence(now, out);
        match &mut self.stage {
            Stage::Checking { attempt, is_asked, until }
                if !*is_asked && (now >= *until || self.gpus_heard) =>
            {
                *is_asked = true;
                let attempt = *attempt;
                self.ask_for_check(attempt, out);
            }
            Stage::Loading { pid, gate, .. } if now >= gate.closes_at(&timing) => {
                let pid = *pid;
                let reason = gate.verdict(now, pid, &timing);
                self.refuse(&reason, out);
                self.stop_engine(now, pid, After::Retry, true, &reason, out);
            }
            Stage::Loading { pid, probe, gate } => {
                let pid = *pid;
                if gate.is_look_due(now, &timing) {
                    out.push(Action::LookAtEngine { pid });
                }
                if is_due(probe, now, timing) {
                    self.ask(pid, Depth::Deep, out);
                }
            }
            Stage::Serving { pid, probe, progress, .. } => {
                let pid = *pid;
                let is_canary_due = progress.is_canary_due(now, timing.canary, self.own_in_flight);
                if is_due(probe, now, timing) {
                    let depth = if self.doubt.is_some() { Depth::Deep } else { Depth::Shallow };
                    self.ask(pid, depth, out);
                }
                // Beside the probes: a token may take as long as a stall may last, and they must go on meanwhile.
                if is_canary_due {
                    self.ask(pid, Depth::Canary, out);
                }
                if self.wants_replacement.is_some() && self.restarts.is_calm(now) {
                    self.wants_replacement = None;
                    decided(out, "stay after all", "it has served without a failure since");
                    out.push(Action::Heartbeat);
                }
            }
            Stage::Proving { .. } => self.look_at_proof(now, out),
            Stage::Waiting { until, .. } if now >= *until => self.begin(now, "trying again", out),
            Stage::Draining { pid, until, poll, hand_over, is_counted, then, keep_engine, last_word } => {
                if hand_over.take_if(|at| now >= *at).is_some() {
                    out.push(Action::HandOver);
                }
                let is_written = *last_word != LastWord::ToBeWritten;
                if !is_written && (self.edge.in_flight > 0 || !*is_counted) && now < *until {
                    if now >= *poll {
                        *poll = now + timing.drain_poll;
                    }
                } else {
                    let (pid, then, keep_engine, word) = (*pid, *then, *keep_engine, *last_word);
                    let word = self.last_word(now, word, then, out);
                    if let Stage::Draining { last_word, .. } = &mut self.stage {
                        *last_word = word;
                    }
                    match pid {
                        _ if word != LastWord::Done => {}
                        _ if keep_engine && then == After::Exit => {
                            let reason = self.reason.clone();
                            self.enter(now, Stage::Exiting, &reason, out);
                            out.push(Action::Exit { code: 0, reason });
                        }
                        Some(pid) => {
                            let reason = self.reason.clone();
                            self.stop_engine(now, pid, then, false, &reason, out);
                        }
                        None => self.prove(now, Next::Then(then), &[], out),
                    }
                }
            }
            Stage::Stopping { pid, then, until } if now >= *until => {
                let (pid, then) = (*pid, *then);
                self.unkillable(now, pid, then, out);
            }
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Stopping { .. }
            | Stage::Exiting
            | Stage::Stopped { .. }
            | Stage::Failed { .. } => {}
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + timing.heartbeat;
            out.push(Action::Heartbeat);
        }
    }

    pub(super) fn stop_engine(
        &mut self,
        now: Mono,
        pid: u32,
        then: After,
        autopsy: bool,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        // One that does not move will not finish its requests either.
        let grace = if autopsy { self.spec.timing.stop_grace } else { self.stop_grace(now) };
        out.push(Action::StopEngine { pid, grace_ms: millis(grace), autopsy });
        let until = now + grace + self.spec.timing.kill_grace;
        self.enter(now, Stage::Stopping { pid, then, until }, reason, out);
    }

    /// Between SIGTERM and SIGKILL: a vLLM with `--shutdown-timeout` takes that long by itself. It is known to hang for
    /// ever when its timeout runs out. A cloud that takes the node waits for neither.
    pub(super) fn stop_grace(&self, now: Mono) -> std::time::Duration {
        const BEYOND_OWN: std::time::Duration = std::time::Duration::from_secs(2);
        let args = self.assignment.as_ref().map_or(&[][..], |assignment| &assignment.engine.args);
        let own = flag_value(args, "--shutdown-timeout").and_then(|value| value.parse().ok());
        let own = own.map_or(std::time::Duration::ZERO, |s| {
            std::time::Duration::from_secs(s).saturating_add(BEYOND_OWN)
        });
        let grace = self.spec.timing.stop_grace.max(own);
        // A third of what is left: it ends at once or hangs, and the farewell needs time too.
        self.notices.due(now).map_or(grace, |leave| grace.min(leave.deadline.since(now) / 3))
    }

    /// The engine outlived SIGKILL: it hangs in the kernel, and only the VM's end frees what it holds.
    fn unkillable(&mut self, now: Mono, pid: u32, then: After, out: &mut Vec<Action>) {
        let reason = format!("engine pid {pid} survives SIGKILL: it hangs in the kernel");
        match then {
            After::Rest | After::Leave | After::Exit => {
                decided(out, "leave the engine behind", &reason);
                self.after(now, then, out);
            }
            After::Again | After::Retry => self.fail(now, Phase::Loading, reason, Heal::Never, out),
        }
    }

    pub(super) fn ask(&self, pid: u32, depth: Depth, out: &mut Vec<Action>) {
        if let Some(assignment) = &self.assignment {
            out.push(Action::ProbeEngine { pid, model: assignment.model.name.clone(), depth });
        }
    }

    fn probe_deadline(&self, probe: Probe) -> Mono {
        match probe {
            Probe::Due(at) => at,
            Probe::Asked(since) => since + self.spec.timing.probe_deadline * 2,
        }
    }

    pub(super) fn refuse(&self, reason: &str, out: &mut Vec<Action>) {
        out.push(Action::SetEdge(EdgeMode::Refuse { reason: reason.to_owned() }));
    }

    pub(super) fn enter(&mut self, now: Mono, stage: Stage, reason: &str, out: &mut Vec<Action>) {
        let from = self.stage.phase();
        // A step that is begun ends the one before it.
        let was_at_files = self.stage.is_on_files() || self.stage.is_coming_up();
        let goes_on = stage.is_on_files() || (self.stage.is_coming_up() && stage.is_coming_up());
        if was_at_files && !goes_on {
            out.push(Action::LeaveModel);
        }
        let is_news = self.reason != reason;
        self.stage = stage;
        self.reason = reason.to_owned();
        let to = self.stage.phase();
        if from != to {
            self.phase_since = now;
            self.heartbeat_at = now + self.spec.timing.heartbeat;
            out.push(Action::Tell(NodeEvent::PhaseChanged { from, to, reason: reason.to_owned() }));
        }
        if from != to || is_news {
            out.push(Action::Heartbeat);
        }
    }
}

/// The value of a flag of the engine, `--flag value` or `--flag=value`, with vLLM's other spelling `--fl_ag`.
pub(super) fn flag_value<'a>(args: &'a [String], flag: &str) -> Option<&'a str> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (name, value) =
            arg.split_once('=').map_or((arg.as_str(), None), |(name, value)| (name, Some(value)));
        if name.replace('_', "-") == flag {
            return value.or_else(|| args.next().map(String::as_str));
        }
    }
    None
}

fn is_due(probe: &mut Probe, now: Mono, timing: Timing) -> bool {
    let at = match *probe {
        Probe::Due(at) => at,
        // A shell answers every probe; one that did not is asked again rather than awaited for ever.
        Probe::Asked(since) => since + timing.probe_deadline * 2,
    };
    let is_due = now >= at;
    if is_due {
        *probe = Probe::Asked(now);
    }
    is_due
}

pub(super) fn decided(out: &mut Vec<Action>, what: &str, why: &str) {
    out.push(Action::Decided { what: what.to_owned(), why: why.to_owned() });
}

pub(super) fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
