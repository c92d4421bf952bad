//! One node: what is known of it, what is believed, and whether it is to go.

use std::time::Duration;

use cic_common::id::{Incarnation, OperationId};
use cic_common::report::{EngineState, Heartbeat, NodeReport, Phase, Role};
use cic_common::time::Mono;

use super::agreement::Agreement;
use super::belief::{Belief, Freshness, judge};
use super::event::NodeRecord;
use super::evidence::{CloudWord, Poll, Push};
use super::flap::Flaps;
use super::reached::{self, SshRestart};
use super::recovery::Recovery;
use super::ssh::SshWord;
use super::suspicion::Prods;
use super::timing::Timing;
use super::trail::Trail;
use super::verdict::Leaving;
use super::view::NodeView;
use super::warning::{Advice, Standing};

/// A node under observation.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) record: NodeRecord,
    pub(super) push: Push,
    pub(super) poll: Poll,
    pub(super) cloud: CloudWord,
    pub(super) report: Option<NodeReport>,
    reported_at: Mono,
    standing: Option<Standing>,
    /// Orders reports within the incarnation of `record`.
    report_seq: u64,
    pub(super) agreement: Agreement,
    /// That it may be taken soon, by its cloud's word.
    pub(super) advice: Advice,
    /// Its report says that the driver hangs, and the event log knows.
    pub(super) is_wedge_told: bool,
    pub(super) flaps: Flaps,
    pub(super) recovery: Recovery,
    /// Over the push path, while it is silent.
    pub(super) prods: Prods,
    /// As last concluded, to notice a change.
    pub(super) push_was: Freshness,
    pub(super) belief: Belief,
    pub(super) belief_since: Mono,
    /// Since when its graces run: its launch, or this controller's start.
    pub(super) known_since: Mono,
    /// It served at some time that this controller knows of.
    pub(super) has_served: bool,
    /// It was counted as a launch that came to nothing.
    pub(super) is_counted_failed: bool,
    pub(super) is_routed: bool,
    /// Since when it has been told to finish and stop.
    pub(super) draining_since: Option<Mono>,
    pub(super) leaving: Option<Leaving>,
    /// Until then its VM may come to be although its launch failed: some call of it was never answered.
    pub(super) doubted_until: Option<Mono>,
    /// The one open operation about it.
    pub(super) operation: Option<OperationId>,
    /// Why its removal is held, as last logged.
    pub(super) held: Option<String>,
    pub(super) trail: Trail,
    /// The last word of its ssh port, asked when it was silent.
    pub(super) ssh: Option<(Mono, SshWord)>,
    /// The newest restart of its agent over ssh.
    pub(super) ssh_restart: Option<SshRestart>,
    /// Its entry in the fleet's list of wake-ups.
    pub(super) wake_at: Option<Mono>,
}

impl Node {
    pub(super) fn new(now: Mono, record: NodeRecord) -> Self {
        Self {
            record,
            push: Push::default(),
            poll: Poll::default(),
            cloud: CloudWord::default(),
            report: None,
            report_seq: 0,
            agreement: Agreement::default(),
            advice: Advice::None,
            reported_at: now,
            standing: None,
            is_wedge_told: false,
            flaps: Flaps::default(),
            recovery: Recovery::default(),
            prods: Prods::default(),
            push_was: Freshness::Never,
            belief: Belief::Unknown,
            belief_since: now,
            known_since: now,
            has_served: false,
            is_counted_failed: false,
            is_routed: false,
            draining_since: None,
            leaving: None,
            doubted_until: None,
            operation: None,
            held: None,
            trail: Trail::default(),
            ssh: None,
            ssh_restart: None,
            wake_at: None,
        }
    }

    /// Whether a provider of ours launched it, so that it may be replaced and terminated.
    pub(super) fn is_ours(&self) -> bool {
        self.record.role == Role::Replica && self.record.deployment.is_some()
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.report.as_ref().map(|report| report.phase)
    }

    /// Serving by its own word, and believed.
    pub(super) fn is_serving(&self) -> bool {
        self.phase() == Some(Phase::Serving) && self.belief.is_routable()
    }

    /// It says that it serves, and that nothing of its engine's work moves. The agent ends such an engine itself.
    pub(super) fn is_stalled(&self) -> bool {
        let serving = self.report.as_ref().filter(|report| report.phase == Phase::Serving);
        serving.is_some_and(|report| match report.engine.state {
            EngineState::Stalled => true,
            EngineState::Absent
            | EngineState::Starting
            | EngineState::Ready
            | EngineState::Unready
            | EngineState::Stopping
            | EngineState::Exited => false,
        })
    }

    /// Serving, and its work moves: only such a node is a replica that another's removal may rest on.
    pub(super) fn is_working(&self) -> bool {
        self.is_serving() && !self.is_stalled()
    }

    /// Believed, with an engine that may be at work on requests it took, whatever the phase: an agent that was started
    /// anew, or whose engine fails its probes, loads by its own word while streams run on. An engine on its first load
    /// works for nobody.
    pub(super) fn may_work(&self) -> bool {
        let Some(report) = self.report.as_ref().filter(|_| self.belief.is_routable()) else { return false };
        let engine = &report.engine;
        let was_ready = match engine.state {
            EngineState::Ready | EngineState::Unready | EngineState::Stalled => true,
            EngineState::Absent | EngineState::Starting | EngineState::Stopping | EngineState::Exited => {
                false
            }
        };
        let has_worked = was_ready || engine.is_adopted || self.has_served;
        self.is_serving() || (engine.pid.is_some() && has_worked)
    }

    /// For how long it drains by its own word, as of its last report; `None` while it does not, or is not believed.
    pub(super) fn drains_itself_for(&self) -> Option<Duration> {
        let report = self.report.as_ref().filter(|_| self.belief.is_routable())?;
        (report.phase == Phase::Draining).then(|| Duration::from_millis(report.phase_for_ms))
    }

    /// A notice that takes it leaves it time still, as of its last report.
    pub(super) fn is_given_time(&self) -> bool {
        let notice = self.report.as_ref().and_then(|report| report.notice.as_ref());
        notice.is_some_and(|notice| notice.kind.takes_the_node() && notice.left_ms > 0)
    }

    /// Whether it may be serving someone, as far as is known: it did, or it spoke only to a controller before.
    pub(super) fn may_serve(&self) -> bool {
        self.has_served || (self.report.is_none() && self.record.incarnation.0 > 0)
    }

    /// Takes a report if it is newer than the last. An older incarnation or sequence changes nothing.
    pub(super) fn take(&mut self, now: Mono, heartbeat: Heartbeat) -> bool {
        let Heartbeat { incarnation, seq, report, .. } = heartbeat;
        if self.is_overtaken(incarnation) {
            return false;
        }
        if incarnation == self.record.incarnation && self.report.is_some() && seq <= self.report_seq {
            return false;
        }
        if incarnation != self.record.incarnation {
            self.draining_since = None;
            self.keep_notice();
        }
        self.record.incarnation = incarnation;
        self.report_seq = seq;
        self.receive(now, report);
        true
    }

    /// What the run before told stands until the new one has read as much.
    fn keep_notice(&mut self) {
        let told = self.report.as_ref().and_then(|report| report.notice.as_ref());
        self.standing =
            told.and_then(|notice| Standing::of(self.reported_at, notice)).or(self.standing.take());
    }

    /// A notice that its own source took back.
    pub(super) fn lift_notice(&mut self, source: &str, id: &str) {
        self.standing.take_if(|standing| standing.is_of(source, id));
        if let Some(report) = &mut self.report {
            report.notice.take_if(|notice| notice.source == source && notice.id == id);
        }
    }

    /// Puts a report in the place of the last one.
    pub(super) fn receive(&mut self, now: Mono, report: NodeReport) {
        self.has_served |= report.phase == Phase::Serving;
        self.record.is_read &= report.phase != Phase::Serving;
        self.standing.take_if(|standing| standing.is_over(now, &report));
        self.report = Some(match &self.standing {
            Some(standing) => standing.added_to(now, report),
            None => report,
        });
        self.reported_at = now;
    }

    /// Puts its row in the place of what was known of it. What it said itself is newer than the row; what was decided about
    /// it by this controller in an earlier term is void. Returns whether this controller knows better than the row.
    pub(super) fn take_row(&mut self, row: NodeRecord) -> bool {
        let stored = row.clone();
        let heard = std::mem::replace(&mut self.record, row);
        if heard.incarnation >= self.record.incarnation {
            self.record.incarnation = heard.incarnation;
            self.record.keeps_checkpoints = heard.keeps_checkpoints;
            self.record.address = heard.address.or(self.record.address.take());
        } else {
            self.report_seq = 0;
        }
        self.leaving = self.record.asked.clone();
        (self.operation, self.draining_since, self.held) = (None, None, None);
        self.recovery.begin_anew();
        self.record != stored
    }

    /// Whether `incarnation` is one that a newer has replaced.
    pub(super) fn is_overtaken(&self, incarnation: Incarnation) -> bool {
        !cfg!(feature = "planted-incarnation-bug") && incarnation < self.record.incarnation
    }

    /// A new run of the agent counts its reports from the start, and knows nothing of a drain.
    pub(super) fn begin_incarnation(&mut self, now: Mono, incarnation: Incarnation, report: NodeReport) {
        self.draining_since = None;
        self.record.incarnation = incarnation;
        self.report_seq = 0;
        self.keep_notice();
        self.receive(now, report);
    }

    pub(super) fn push_freshness(&self, now: Mono, timing: &Timing) -> Freshness {
        self.push.freshness(now, timing)
    }

    /// One of its paths is silent, which the cloud's denial hides from the belief in a node that speaks on the other.
    pub(super) fn has_stale_path(&self, now: Mono, timing: &Timing) -> bool {
        [self.push.freshness(now, timing), self.poll.freshness(timing)].contains(&Freshness::Stale)
    }

    pub(super) fn judged(&self, now: Mono, timing: &Timing) -> Belief {
        let push = self.push.freshness(now, timing);
        judge(push, self.poll.freshness(timing), self.cloud.word(now, timing))
    }

    /// The evidence in one line.
    pub(super) fn why(&self, now: Mono, timing: &Timing) -> String {
        let mut text = format!("{}; {}", self.push.text(now), self.poll.text(now));
        if self.is_ours() {
            text.push_str("; ");
            text.push_str(&self.cloud.text(now, timing));
        }
        // It explains a silence, and tells nothing of a node that speaks.
        if let Some(word) = self.ssh.as_ref().filter(|_| self.belief != Belief::Alive) {
            text.push_str("; ");
            text.push_str(&reached::text(now, word));
        }
        text
    }

    /// When something about it may change by time alone.
    pub(super) fn next_turn(&self, now: Mono, timing: &Timing) -> Option<Mono> {
        let silent = (self.belief == Belief::Silent).then(|| self.belief_since + timing.partition_grace);
        let never = (!self.push.has_spoken()).then(|| self.known_since + timing.boot_grace);
        let slow = (!self.has_served && self.is_ours()).then(|| self.known_since + timing.serve_grace);
        let advice = self.advice_ends_at();
        let (prod, poll, flap) = (self.prods.next_at(), self.poll.next_at(), self.flaps.out_until());
        let recovery = self.recovery.next_at();
        [self.push.turns_at(now, timing), prod, poll, flap, recovery, silent, never, slow, advice]
            .into_iter()
            .flatten()
            .filter(|&at| at > now)
            .min()
    }

    pub(super) fn view(&self, now: Mono, timing: &Timing) -> NodeView {
        NodeView {
            node: self.record.node.clone(),
            role: self.record.role,
            deployment: self.record.deployment.clone(),
            zone: self.record.zone.clone(),
            address: self.record.address.clone(),
            incarnation: self.record.incarnation,
            belief: self.belief,
            belief_since: self.belief_since,
            why: self.why(now, timing),
            push: self.push.freshness(now, timing),
            poll: self.poll.freshness(timing),
            cloud: self.cloud.word(now, timing),
            is_routed: self.is_routed,
            leaving: self.leaving.as_ref().map(|leaving| leaving.reason.clone()),
            report: self.report.clone(),
            trail: self.trail.entries().map(|(at, text)| (at, text.to_owned())).collect(),
        }
    }
}
