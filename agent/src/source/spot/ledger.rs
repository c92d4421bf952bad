//! What one source has said so far: each notice is told once, and a source that cannot be read is told as such.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::notice::{Confidence, NoticeKind};
use cic_common::time::Mono;

use crate::core::Event;

/// Reads that fail in a row before the source counts as blind. A service may be slow or restart for a second.
const BLIND_AFTER: u32 = 3;

/// Or this long without a good one: where a read may take two minutes, three take six.
const BLIND_FOR: Duration = Duration::from_secs(10);

/// Good reads in a row without a notice before it counts as withdrawn, where the source does not say so itself. Taking up
/// work again on a blip would cost more than three seconds of rest.
const LIFTED_AFTER: u32 = 3;

/// A moment that is named anew at every read drifts by the time between reads; what comes sooner by more is news.
const SOONER: Duration = Duration::from_secs(2);

/// And what comes later by more was put off, where the source lists moments that it has fixed.
const LATER: Duration = Duration::from_secs(300);

/// Of an id and of each resource so many characters are kept, and so many resources: they travel with every heartbeat.
const NAME_CHARS_MAX: usize = 128;
const RESOURCES_MAX: usize = 4;

/// A notice as a source read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: NoticeKind,
    /// The same at every read of one notice.
    pub(super) id: String,
    pub(super) deadline: Mono,
    pub(super) confidence: Confidence,
    pub(super) resources: Vec<String>,
}

/// All that a source says at one moment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) found: Vec<Found>,
    /// Notices that it says are over.
    pub(super) lifted: Vec<String>,
    /// What is not in `found` is over: the source lists all there is and is not known for blips.
    pub(super) is_complete: bool,
}

impl Reading {
    pub(super) fn of(found: Found) -> Self {
        Self { found: vec![found], ..Self::default() }
    }
}

#[derive(Debug)]
struct Open {
    deadline: Mono,
    kind: NoticeKind,
    missed_count: u32,
}

/// The state of one source.
#[derive(Debug)]
pub(super) struct Ledger {
    source: &'static str,
    open: BTreeMap<String, Open>,
    sight: Sight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Not read yet.
    New,
    Good,
    /// The last reads failed, the first of them begun at `since`. `was_new` until a first one is good.
    Failing {
        since: Mono,
        count: u32,
        was_new: bool,
    },
    Blind,
}

impl Ledger {
    pub(super) fn new(source: &'static str) -> Self {
        Self { source, open: BTreeMap::new(), sight: Sight::New }
    }

    /// Takes in a good read that said what the last one did.
    pub(super) fn unchanged(&mut self) -> Vec<Event> {
        let is_news = match std::mem::replace(&mut self.sight, Sight::Good) {
            Sight::New | Sight::Blind | Sight::Failing { was_new: true, .. } => true,
            Sight::Good | Sight::Failing { was_new: false, .. } => false,
        };
        is_news.then(|| Event::SpotSeen { source: self.source.to_owned() }).into_iter().collect()
    }

    /// Takes in a good read. What is there is told before what is gone, so that a node whose notice is replaced by another
    /// takes up no work in between, and that all was read comes last.
    pub(super) fn read(&mut self, reading: Reading) -> Vec<Event> {
        let mut gone = reading.lifted;
        for (id, open) in &mut self.open {
            if reading.found.iter().any(|found| short(&found.id) == *id) {
                open.missed_count = 0;
                continue;
            }
            open.missed_count += 1;
            if reading.is_complete || open.missed_count >= LIFTED_AFTER {
                gone.push(id.clone());
            }
        }
        let mut events = Vec::new();
        for found in reading.found {
            events.extend(self.see(found, reading.is_complete));
        }
        for id in gone {
            if self.open.remove(&id).is_some() {
                events.push(Event::NoticeLifted { source: self.source.to_owned(), id });
            }
        }
        events.extend(self.unchanged());
        events
    }

    /// Takes in a read that failed at `now` and began at `began`.
    pub(super) fn failed(&mut self, began: Mono, now: Mono, cause: &str) -> Vec<Event> {
        let (since, count, was_new) = match self.sight {
            Sight::New => (began, 0, true),
            Sight::Good => (began, 0, false),
            Sight::Failing { since, count, was_new } => (since, count, was_new),
            Sight::Blind => return Vec::new(),
        };
        let count = count + 1;
        if count < BLIND_AFTER && now.since(since) < BLIND_FOR {
            self.sight = Sight::Failing { since, count, was_new };
            return Vec::new();
        }
        self.sight = Sight::Blind;
        vec![Event::SpotBlind { source: self.source.to_owned(), since, cause: cause.to_owned() }]
    }

    fn see(&mut self, found: Found, is_complete: bool) -> Option<Event> {
        let Found { kind, id, deadline, confidence, resources } = found;
        let id = short(&id);
        let resources = resources.iter().take(RESOURCES_MAX).map(|name| short(name)).collect();
        if let Some(open) = self.open.get_mut(&id) {
            let is_sooner = deadline + SOONER < open.deadline;
            let is_fixed = is_complete && confidence == Confidence::Announced;
            let is_later = is_fixed && deadline > open.deadline + LATER;
            if open.kind == kind && !is_sooner && !is_later {
                return None;
            }
            open.kind = kind;
            open.deadline = deadline;
        } else {
            self.open.insert(id.clone(), Open { deadline, kind, missed_count: 0 });
        }
        let source = self.source.to_owned();
        Some(Event::NoticeSeen { kind, source, id, deadline, confidence, resources })
    }
}

fn short(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(id: &str, deadline_ms: u64) -> Reading {
        Reading::of(Found {
            kind: NoticeKind::Terminate,
            id: id.to_owned(),
            deadline: Mono::from_millis(deadline_ms),
            confidence: Confidence::Announced,
            resources: Vec::new(),
        })
    }

    fn names(events: &[Event]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::NoticeSeen { id, deadline, .. } => format!("seen {id} {}", deadline.as_millis()),
            Event::NoticeLifted { id, .. } => format!("lifted {id}"),
            Event::SpotBlind { since, cause, .. } => format!("blind {} {cause}", since.as_millis()),
            Event::SpotSeen { .. } => "sees".to_owned(),
            other => format!("{other:?}"),
        };
        events.iter().map(name).collect()
    }

    #[test]
    fn a_drifting_moment_is_one_notice_and_a_sooner_one_is_news() {
        let mut ledger = Ledger::new("test");
        let read = |ledger: &mut Ledger, ms| names(&ledger.read(found("a", ms)));
        assert_eq!(read(&mut ledger, 120_000), ["seen a 120000", "sees"]);
        assert!(read(&mut ledger, 121_000).is_empty());
        assert!(read(&mut ledger, 300_000).is_empty());
        assert!(read(&mut ledger, 118_000).is_empty());
        assert_eq!(read(&mut ledger, 30_000), ["seen a 30000"]);
        assert!(read(&mut ledger, 30_000).is_empty());
    }

    #[test]
    fn a_notice_is_lifted_by_three_reads_without_it_or_by_the_sources_own_word() {
        let nothing = Reading::default;
        let rows: [(Vec<Reading>, bool); 5] = [
            (vec![nothing(), nothing()], false),
            (vec![nothing(), nothing(), nothing()], true),
            (vec![nothing(), nothing(), found("a", 1), nothing(), nothing()], false),
            (vec![Reading { lifted: vec!["a".to_owned()], ..nothing() }], true),
            (vec![Reading { is_complete: true, ..nothing() }], true),
        ];
        for (readings, is_lifted) in rows {
            let mut ledger = Ledger::new("test");
            ledger.read(found("a", 1));
            let events: Vec<Event> = readings.iter().flat_map(|one| ledger.read(one.clone())).collect();
            assert_eq!(names(&events) == ["lifted a"], is_lifted, "{readings:?}: {events:?}");
        }
    }

    #[test]
    fn failed_reads_are_told_once_with_since_and_cause_and_lift_nothing() {
        let mut ledger = Ledger::new("test");
        ledger.read(found("a", 1));
        let mut told = Vec::new();
        for second in 1..=600 {
            let at = Mono::from_millis(second * 1000);
            told.extend(ledger.failed(at, at, "status 503"));
        }
        assert_eq!(names(&told), ["blind 1000 status 503"]);
        assert_eq!(names(&ledger.read(found("a", 1))), ["sees"]);
        assert!(ledger.failed(Mono::ZERO, Mono::ZERO, "blip").is_empty());
        assert!(ledger.failed(Mono::ZERO, Mono::ZERO, "blip").is_empty());
        assert!(ledger.read(Reading::default()).is_empty());
    }

    #[test]
    fn one_read_that_fails_after_two_minutes_is_enough_to_be_blind() {
        let mut ledger = Ledger::new("test");
        let told = ledger.failed(Mono::from_millis(500), Mono::from_millis(130_500), "no answer");
        assert_eq!(names(&told), ["blind 500 no answer"]);
    }

    #[test]
    fn a_first_good_read_is_told_also_where_there_is_nothing() {
        let mut ledger = Ledger::new("test");
        assert!(ledger.failed(Mono::ZERO, Mono::ZERO, "not up yet").is_empty());
        assert_eq!(names(&ledger.read(Reading::default())), ["sees"]);
        assert!(ledger.read(Reading::default()).is_empty());
    }

    #[test]
    fn of_two_the_new_one_is_told_before_the_other_is_lifted() {
        let mut ledger = Ledger::new("test");
        ledger.read(found("a", 1));
        let both = names(&ledger.read(Reading { is_complete: true, ..found("b", 1) }));
        assert_eq!(both, ["seen b 1", "lifted a"]);
    }

    #[test]
    fn what_a_list_puts_off_is_news() {
        let mut ledger = Ledger::new("test");
        let listed = |ms| Reading { is_complete: true, ..found("a", ms) };
        ledger.read(listed(1_000));
        assert!(ledger.read(listed(301_000)).is_empty());
        assert_eq!(names(&ledger.read(listed(301_001))), ["seen a 301001"]);
    }

    #[test]
    fn names_and_their_number_are_bounded() {
        let mut ledger = Ledger::new("test");
        let mut long = found(&"x".repeat(9_000), 1);
        long.found[0].resources = vec!["y".repeat(9_000); 100];
        let events = ledger.read(long.clone());
        let Some(Event::NoticeSeen { id, resources, .. }) = events.first() else { panic!("{events:?}") };
        assert_eq!(
            (id.len(), resources.len(), resources[0].len()),
            (NAME_CHARS_MAX, RESOURCES_MAX, NAME_CHARS_MAX)
        );
        assert!(ledger.read(long).is_empty(), "it is the same one");
    }
}
