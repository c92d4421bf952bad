//! The open notices of the node, and the timetable that is computed back from the soonest deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::notice::{Confidence, Notice, NoticeKind};
use cic_common::time::Mono;

use super::agent::millis;

/// Notices remembered at once. A cloud has a handful of sources, each with few open notices.
const NOTICES_MAX: usize = 16;

/// A node that is taken begins to drain so long before its deadline: what the most generous Spot notice leaves (AWS).
/// Until then it serves, whatever a notice of days says.
const LEAD: Duration = Duration::from_secs(120);

/// Kept back from a deadline to write the checkpoint, stop the engine and say farewell, by the time that the notice left
/// when it was seen. Design table: AWS 120 - 10, GCP 120 - 10 or 30 - 5, Azure 30 - 5, RunPod 5 - 1.5.
const RESERVES: [(Duration, Duration); 3] = [
    (Duration::from_secs(90), Duration::from_secs(10)),
    // Of a shutdown's 20 s some are gone until systemd has said that it is one.
    (Duration::from_secs(18), Duration::from_secs(5)),
    (Duration::from_millis(4_500), Duration::from_millis(1_500)),
];

/// A moment that the cloud moves back by more is another one: somebody rescheduled a maintenance. Less is drift.
const POSTPONED: Duration = Duration::from_secs(300);

/// Of still shorter windows this share is kept back, in tenths.
const RESERVE_TENTHS: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    kind: NoticeKind,
    deadline: Mono,
    /// Requests may run until then.
    drain_until: Mono,
    confidence: Confidence,
    resources: Vec<String>,
}

/// What a word of a notice was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    News,
    Known,
    /// Too many are open; this one was not kept.
    Full,
}

/// When the node leaves, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leave {
    pub(super) kind: NoticeKind,
    pub(super) source: String,
    pub(super) drain_at: Mono,
    pub(super) drain_until: Mono,
    pub(super) deadline: Mono,
}

/// All open notices, by source and the source's own id.
#[derive(Debug, Default)]
pub(super) struct Notices {
    open: BTreeMap<(String, String), Open>,
}

impl Notices {
    /// Takes in what a source read at `now`. Of one notice the soonest deadline stands, unless the cloud put it off.
    pub(super) fn see(&mut self, now: Mono, notice: &Notice) -> Heard {
        let deadline = now + Duration::from_millis(notice.left_ms);
        let key = (notice.source.clone(), notice.id.clone());
        if let Some(open) = self.open.get(&key) {
            let is_postponed =
                notice.confidence == Confidence::Announced && deadline > open.deadline + POSTPONED;
            if open.kind == notice.kind && open.deadline <= deadline && !is_postponed {
                return Heard::Known;
            }
        } else if self.open.len() == NOTICES_MAX && !self.make_room(now, notice) {
            return Heard::Full;
        }
        let open = Open {
            kind: notice.kind,
            deadline,
            drain_until: deadline - reserve(deadline.since(now)),
            confidence: notice.confidence,
            resources: notice.resources.clone(),
        };
        self.open.insert(key, open);
        Heard::News
    }

    /// Forgets the least urgent notice for a more urgent one.
    fn make_room(&mut self, now: Mono, notice: &Notice) -> bool {
        let told = |(key, open): (&(String, String), &Open)| as_told(now, key, open);
        let Some(last) = self.open.iter().map(told).max_by_key(Notice::urgency) else { return true };
        let is_less = last.urgency() > notice.urgency();
        if is_less {
            self.open.remove(&(last.source, last.id));
        }
        is_less
    }

    /// Forgets a notice; returns whether it was open.
    pub(super) fn lift(&mut self, source: &str, id: &str) -> bool {
        self.open.remove(&(source.to_owned(), id.to_owned())).is_some()
    }

    /// The end of the node for which it is to leave now.
    pub(super) fn due(&self, now: Mono) -> Option<Leave> {
        self.leave().filter(|leave| now >= leave.drain_at)
    }

    /// The soonest end of the node that any of them announces.
    pub(super) fn leave(&self) -> Option<Leave> {
        let taking = self.open.iter().filter(|(_, notice)| notice.kind.takes_the_node());
        let ((source, _), notice) = taking.min_by_key(|(_, notice)| notice.deadline)?;
        Some(Leave {
            kind: notice.kind,
            source: source.clone(),
            drain_at: notice.deadline - LEAD,
            drain_until: notice.drain_until,
            deadline: notice.deadline,
        })
    }

    /// Source and id of each for which the node leaves.
    pub(super) fn taking(&self, now: Mono) -> impl Iterator<Item = (&str, &str)> {
        let is_due = move |notice: &Open| notice.kind.takes_the_node() && now >= notice.deadline - LEAD;
        let taking = self.open.iter().filter(move |(_, notice)| is_due(notice));
        taking.map(|((source, id), _)| (source.as_str(), id.as_str()))
    }

    /// The most urgent one, as it reads at `now`.
    pub(super) fn first(&self, now: Mono) -> Option<Notice> {
        self.open.iter().map(|(key, open)| as_told(now, key, open)).min_by_key(Notice::urgency)
    }
}

fn as_told(now: Mono, (source, id): &(String, String), open: &Open) -> Notice {
    Notice {
        kind: open.kind,
        source: source.clone(),
        id: id.clone(),
        left_ms: millis(open.deadline.since(now)),
        confidence: open.confidence,
        resources: open.resources.clone(),
    }
}

/// What is kept back of the time that a notice leaves.
pub(super) fn reserve(window: Duration) -> Duration {
    let row = RESERVES.iter().find(|(least, _)| window >= *least);
    row.map_or(window * RESERVE_TENTHS / 10, |(_, reserve)| *reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clouds_window_keeps_back_its_reserve() {
        for (window_ms, reserve_ms) in [
            (120_000, 10_000),
            (118_800, 10_000),
            (900_000, 10_000),
            (30_000, 5_000),
            (29_000, 5_000),
            (19_980, 5_000),
            (5_000, 1_500),
            (4_900, 1_500),
            (2_000, 600),
            (0, 0),
        ] {
            assert_eq!(
                reserve(Duration::from_millis(window_ms)),
                Duration::from_millis(reserve_ms),
                "{window_ms}"
            );
        }
    }

    fn notice(kind: NoticeKind, id: &str, left_ms: u64) -> Notice {
        Notice {
            kind,
            source: "test".to_owned(),
            id: id.to_owned(),
            left_ms,
            confidence: Confidence::Announced,
            resources: Vec::new(),
        }
    }

    #[test]
    fn the_soonest_that_takes_the_node_fixes_the_timetable_and_what_is_left_of_them_after_it() {
        let mut notices = Notices::default();
        let now = Mono::from_millis(1_000);
        assert_eq!(notices.see(now, &notice(NoticeKind::Rebalance, "r", 0)), Heard::News);
        assert_eq!(notices.leave(), None);
        assert_eq!(notices.see(now, &notice(NoticeKind::Reboot, "late", 3_600_000)), Heard::News);
        assert_eq!(notices.see(now, &notice(NoticeKind::Terminate, "soon", 30_000)), Heard::News);
        let ends = |notices: &Notices| {
            notices.leave().map(|leave| (leave.drain_at, leave.drain_until, leave.deadline))
        };
        let ms = Mono::from_millis;
        assert_eq!(ends(&notices), Some((Mono::ZERO, ms(26_000), ms(31_000))));
        assert_eq!(notices.first(now).map(|first| first.id), Some("soon".to_owned()));
        assert!(notices.lift("test", "soon"));
        assert_eq!(ends(&notices), Some((ms(3_481_000), ms(3_591_000), ms(3_601_000))));
        assert!(notices.lift("test", "late") && !notices.lift("test", "late"));
        assert!(notices.lift("test", "r"));
        assert_eq!(notices.first(now), None);
    }

    #[test]
    fn of_one_notice_the_soonest_deadline_stands_and_a_graver_kind_is_news() {
        let mut notices = Notices::default();
        let at = |ms| Mono::from_millis(ms);
        assert_eq!(notices.see(at(0), &notice(NoticeKind::Freeze, "a", 60_000)), Heard::News);
        assert_eq!(notices.see(at(1_000), &notice(NoticeKind::Freeze, "a", 60_000)), Heard::Known);
        assert_eq!(notices.see(at(1_000), &notice(NoticeKind::Freeze, "a", 20_000)), Heard::News);
        assert_eq!(notices.see(at(1_000), &notice(NoticeKind::Reboot, "a", 60_000)), Heard::News);
        assert_eq!(notices.see(at(1_000), &notice(NoticeKind::Reboot, "a", 359_000)), Heard::Known);
        assert_eq!(notices.see(at(1_000), &notice(NoticeKind::Reboot, "a", 361_000)), Heard::News);
    }

    #[test]
    fn more_notices_than_there_is_room_for_are_not_kept() {
        let mut notices = Notices::default();
        for number in 0..NOTICES_MAX {
            assert_eq!(
                notices.see(Mono::ZERO, &notice(NoticeKind::Stop, &number.to_string(), 1)),
                Heard::News
            );
        }
        assert_eq!(notices.see(Mono::ZERO, &notice(NoticeKind::Stop, "more", 1)), Heard::Full);
        // What is more urgent than one of them takes its place.
        assert_eq!(notices.see(Mono::ZERO, &notice(NoticeKind::Stop, "sooner", 0)), Heard::News);
        assert_eq!(notices.see(Mono::ZERO, &notice(NoticeKind::Stop, "sooner", 0)), Heard::Known);
    }
}
