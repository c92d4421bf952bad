//! What the probe owes, and since when.
//!
//! ```text
//! Idle ──3 intervals──▶ Suspect ──deadline──▶ Stuck ──tells again and again──▶ (killed, once)
//! Calling ──deadline──────▲  │                  │
//!    ▲────────────────── any message of the sampling thread
//! ```
//! A message about an XID answers nothing: the probe waits for those on a thread of its own.

use std::time::Duration;

use cic_common::gpu::ProbeMessage;
use cic_common::time::Mono;

use super::spec::GpuSpans;

/// Cheap samples that may be missing before the silence is suspected.
const INTERVALS_MISSING_MAX: u32 = 3;

/// What is said to be stuck when no call was announced.
const NO_SAMPLE: &str = "no sample";

/// Watches over one probe from its start to its end.
#[derive(Debug)]
pub(super) struct Vigil {
    spans: GpuSpans,
    owed: Owed,
}

/// What the probe owes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owed {
    /// The next round.
    Idle { since: Mono },
    /// The end of a call.
    Calling { call: String, since: Mono },
    /// It is late. Judged at `judge_at`, which is counted from when it was noticed.
    Suspect { call: String, since: Mono, judge_at: Mono },
    /// It is stuck; told next at `tell_at`, killed at `kill_at` if it is not yet.
    Stuck { call: String, since: Mono, tell_at: Mono, kill_at: Option<Mono> },
}

/// What is to be done about a probe that is stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Alarm {
    Tell { call: String, for_ms: u64 },
    Kill,
}

impl Vigil {
    /// The probe was started now.
    pub(super) fn begin(now: Mono, spans: GpuSpans) -> Self {
        Self { spans, owed: Owed::Idle { since: now } }
    }

    /// The probe said something.
    pub(super) fn hear(&mut self, now: Mono, message: &ProbeMessage) {
        match message {
            ProbeMessage::Calling { call } => {
                self.owed = Owed::Calling { call: call.clone(), since: now };
            }
            ProbeMessage::Started { .. }
            | ProbeMessage::Ready { .. }
            | ProbeMessage::Sampled { .. }
            | ProbeMessage::Failed { .. } => self.owed = Owed::Idle { since: now },
            ProbeMessage::Xid(_) | ProbeMessage::EventsBlind { .. } => {}
        }
    }

    /// When to call [`Self::wake`].
    pub(super) fn due(&self) -> Mono {
        match &self.owed {
            Owed::Idle { since } => *since + self.spans.cheap_every * INTERVALS_MISSING_MAX,
            Owed::Calling { since, .. } => *since + self.spans.call_deadline,
            Owed::Suspect { judge_at, .. } => *judge_at,
            Owed::Stuck { tell_at, kill_at, .. } => kill_at.map_or(*tell_at, |at| at.min(*tell_at)),
        }
    }

    /// What is to be done now; to be asked again until there is nothing.
    pub(super) fn wake(&mut self, now: Mono) -> Option<Alarm> {
        if now < self.due() {
            return None;
        }
        let spans = self.spans;
        match self.owed.clone() {
            Owed::Idle { since } => {
                let judge_at = now + spans.call_deadline;
                self.owed = Owed::Suspect { call: NO_SAMPLE.to_owned(), since, judge_at };
                None
            }
            Owed::Calling { call, since } => {
                let judge_at = now + spans.stuck_after.saturating_sub(spans.call_deadline);
                self.owed = Owed::Suspect { call, since, judge_at };
                None
            }
            Owed::Suspect { call, since, .. } => {
                let (tell_at, kill_at) = (now + spans.retell_every, Some(now + spans.kill_after));
                self.owed = Owed::Stuck { call: call.clone(), since, tell_at, kill_at };
                Some(Alarm::Tell { call, for_ms: millis(now.since(since)) })
            }
            Owed::Stuck { call, since, tell_at, kill_at } => {
                if kill_at.is_some_and(|at| now >= at) {
                    self.owed = Owed::Stuck { call, since, tell_at, kill_at: None };
                    return Some(Alarm::Kill);
                }
                let tell_at = now + spans.retell_every;
                self.owed = Owed::Stuck { call: call.clone(), since, tell_at, kill_at };
                Some(Alarm::Tell { call, for_ms: millis(now.since(since)) })
            }
        }
    }

    /// Whether the probe was killed for being stuck.
    pub(super) fn has_killed(&self) -> bool {
        matches!(self.owed, Owed::Stuck { kill_at: None, .. })
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::{XidSeen, XidSource};

    use super::*;

    fn at(s: u64) -> Mono {
        Mono::from_millis(s * 1000)
    }

    fn calling(call: &str) -> ProbeMessage {
        ProbeMessage::Calling { call: call.to_owned() }
    }

    fn sampled() -> ProbeMessage {
        ProbeMessage::Sampled { is_full: true, device_count: 0, samples: Vec::new(), lost: Vec::new() }
    }

    fn xid() -> ProbeMessage {
        ProbeMessage::Xid(XidSeen {
            source: XidSource::Nvml,
            pci: None,
            code: 79,
            pid: None,
            interrupt_info: None,
            recovery: None,
            text: String::new(),
        })
    }

    fn tell(call: &str, for_ms: u64) -> Option<Alarm> {
        Some(Alarm::Tell { call: call.to_owned(), for_ms })
    }

    /// Wakes at every due moment until `end`, as the watcher does.
    fn alarms(vigil: &mut Vigil, end: Mono) -> Vec<(u64, Alarm)> {
        let mut heard = Vec::new();
        while vigil.due() <= end {
            let now = vigil.due();
            heard.extend(vigil.wake(now).map(|alarm| (now.as_millis() / 1000, alarm)));
        }
        heard
    }

    #[test]
    fn a_call_that_does_not_come_back_is_told_by_15_s_again_each_5_s_and_killed_once() {
        let mut vigil = Vigil::begin(at(0), GpuSpans::default());
        vigil.hear(at(0), &calling("nvmlInit"));
        let heard = alarms(&mut vigil, at(74));
        let told: Vec<u64> =
            heard.iter().filter(|(_, alarm)| *alarm != Alarm::Kill).map(|(s, _)| *s).collect();
        assert_eq!(told, (14..=74).step_by(5).collect::<Vec<_>>());
        assert_eq!(heard.first(), Some(&(14, tell("nvmlInit", 14_000).unwrap())));
        let kills: Vec<u64> =
            heard.iter().filter(|(_, alarm)| *alarm == Alarm::Kill).map(|(s, _)| *s).collect();
        assert_eq!(kills, [59]);
        assert!(vigil.has_killed());
    }

    #[test]
    fn a_call_that_comes_back_late_is_no_alarm() {
        for answer in [calling("sample gpu 1"), sampled()] {
            let mut vigil = Vigil::begin(at(0), GpuSpans::default());
            vigil.hear(at(0), &calling("sample gpu 0"));
            assert_eq!(vigil.wake(at(5)), None);
            vigil.hear(at(13), &answer);
            assert_eq!(alarms(&mut vigil, at(17)), []);
        }
    }

    #[test]
    fn a_stuck_call_that_comes_back_ends_the_alarm() {
        let mut vigil = Vigil::begin(at(0), GpuSpans::default());
        vigil.hear(at(0), &calling("nvmlInit"));
        assert_eq!(alarms(&mut vigil, at(20)).len(), 2);
        vigil.hear(at(21), &sampled());
        assert_eq!(alarms(&mut vigil, at(40)), []);
    }

    #[test]
    fn an_xid_does_not_answer_for_the_sampling_thread() {
        let mut vigil = Vigil::begin(at(0), GpuSpans::default());
        vigil.hear(at(0), &calling("sample gpu 3"));
        assert_eq!(vigil.wake(at(5)), None);
        vigil.hear(at(6), &xid());
        assert_eq!(vigil.wake(at(14)), tell("sample gpu 3", 14_000));
    }

    #[test]
    fn silence_of_three_intervals_and_a_deadline_is_as_bad_as_a_call() {
        let mut vigil = Vigil::begin(at(0), GpuSpans::default());
        vigil.hear(at(1), &sampled());
        assert_eq!(alarms(&mut vigil, at(36)), [(36, tell("no sample", 35_000).unwrap())]);
    }

    #[test]
    fn a_gap_in_the_agents_own_time_accuses_nobody() {
        let mut vigil = Vigil::begin(at(0), GpuSpans::default());
        vigil.hear(at(0), &calling("sample gpu 0"));
        // Nothing of this machine ran for an hour; the probe's answer comes a moment after.
        assert_eq!(vigil.wake(at(3600)), None);
        assert_eq!(vigil.wake(at(3601)), None);
        vigil.hear(at(3601), &sampled());
        assert_eq!(alarms(&mut vigil, at(3630)), []);
    }
}
