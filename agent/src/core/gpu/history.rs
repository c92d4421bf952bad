//! The XIDs of the recent past, each counted once however many sources tell it.

use std::collections::VecDeque;
use std::time::Duration;

use cic_common::gpu::{GpuAction, XidSeen};
use cic_common::time::Mono;

use super::catalogue::{Rule, entry_of};

/// XIDs kept: enough for the story of one crash on eight GPUs.
const XIDS_MAX: usize = 64;

/// One XID with what it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) last: Mono,
    /// The sighting before that, at which its mark was made last.
    pub(super) before: Mono,
    pub(super) seen: XidSeen,
    pub(super) action: GpuAction,
}

/// What a sighting adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sighting {
    /// A fault of its own. `usize` is its place in the history.
    New(usize),
    /// A known one, of which something was learnt; `before` is what was known.
    Learnt { index: usize, before: XidSeen },
    /// A known one, which goes on.
    Repeated(usize),
}

#[derive(Debug, Default)]
pub(super) struct History {
    /// Oldest first.
    entries: VecDeque<Entry>,
}

impl History {
    /// Takes a sighting in; `action` is what a new one is filed under until it is judged.
    pub(super) fn hear(&mut self, now: Mono, seen: XidSeen, dedupe: Duration) -> Sighting {
        let same = self
            .entries
            .iter_mut()
            .enumerate()
            .rev()
            .find(|(_, entry)| now.since(entry.last) <= dedupe && is_same(&entry.seen, &seen));
        if let Some((index, entry)) = same {
            entry.before = entry.last;
            entry.last = now;
            let before = entry.seen.clone();
            learn(&mut entry.seen, seen);
            return if entry.seen == before {
                Sighting::Repeated(index)
            } else {
                Sighting::Learnt { index, before }
            };
        }
        if self.entries.len() == XIDS_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { last: now, before: now, seen, action: GpuAction::Report });
        Sighting::New(self.entries.len() - 1)
    }

    pub(super) fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    pub(super) fn judged(&mut self, index: usize, action: GpuAction) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.action = action;
        }
    }

    /// The other codes on the same GPU as entry `index`, seen within `window` of `now`.
    pub(super) fn beside(&self, now: Mono, index: usize, window: Duration) -> Vec<(u32, GpuAction)> {
        let Some(own) = self.entries.get(index) else { return Vec::new() };
        self.entries
            .iter()
            .filter(|other| other.seen.pci == own.seen.pci && other.seen.code != own.seen.code)
            .filter(|other| now.since(other.last) <= window)
            .map(|other| (other.seen.code, other.action))
            .collect()
    }

    /// Those seen at or after `since`, with the moment of their last sighting.
    pub(super) fn since(&self, since: Mono) -> Vec<(Mono, XidSeen, GpuAction)> {
        let entries = self.entries.iter().filter(|entry| entry.last >= since);
        entries.map(|entry| (entry.last, entry.seen.clone(), entry.action)).collect()
    }
}

/// Whether two sightings can be of one fault: nothing that both say differs. Of an NVLink fault the text tells which
/// link and what; of any other a storm of texts is one fault.
fn is_same(one: &XidSeen, other: &XidSeen) -> bool {
    fn agree<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
        one.zip(other).is_none_or(|(one, other)| one == other)
    }
    let is_told_by_text = match entry_of(one.code).map(|entry| entry.rule) {
        Some(Rule::NvlinkRegisters | Rule::Nvlink5) => true,
        Some(
            Rule::Always(_)
            | Rule::Symptom
            | Rule::DoubleBitError
            | Rule::AsRecovery
            | Rule::Person(_)
            | Rule::NoneGiven,
        )
        | None => false,
    };
    let have_text = !one.text.is_empty() && !other.text.is_empty();
    one.code == other.code
        && !(is_told_by_text && have_text && one.text != other.text)
        && agree(one.pci.as_ref(), other.pci.as_ref())
        && agree(one.pid.as_ref(), other.pid.as_ref())
        && agree(one.interrupt_info.as_ref(), other.interrupt_info.as_ref())
        && agree(one.recovery.as_ref(), other.recovery.as_ref())
}

/// Fills in what `known` lacks.
fn learn(known: &mut XidSeen, other: XidSeen) {
    known.pci = known.pci.take().or(other.pci);
    known.pid = known.pid.or(other.pid);
    known.interrupt_info = known.interrupt_info.or(other.interrupt_info);
    known.recovery = known.recovery.or(other.recovery);
    if known.text.is_empty() {
        known.text = other.text;
    }
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::{RecoveryAction, XidSource};

    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn xid(code: u32, pid: Option<u32>) -> XidSeen {
        XidSeen {
            source: XidSource::Nvml,
            pci: "0000:3b:00".parse().ok(),
            code,
            pid,
            interrupt_info: None,
            recovery: None,
            text: String::new(),
        }
    }

    #[test]
    fn sightings_that_do_not_contradict_each_other_are_one_fault() {
        let text = XidSeen { text: "79, …".to_owned(), ..xid(79, Some(7)) };
        for (other, is_one) in [
            (text, true),
            (XidSeen { source: XidSource::Kmsg, ..xid(79, None) }, true),
            (XidSeen { pci: None, ..xid(79, None) }, true),
            (XidSeen { pci: "0000:86:00".parse().ok(), ..xid(79, None) }, false),
            (xid(80, None), false),
        ] {
            let mut history = History::default();
            assert_eq!(history.hear(Mono::ZERO, xid(79, None), WINDOW), Sighting::New(0));
            let again = history.hear(Mono::from_millis(4000), other.clone(), WINDOW);
            assert_eq!(again != Sighting::New(1), is_one, "{other:?}");
        }
        let mut history = History::default();
        let to = |recovery| XidSeen { recovery: Some(recovery), ..xid(154, None) };
        history.hear(Mono::ZERO, to(RecoveryAction::GpuReset), WINDOW);
        let back = history.hear(Mono::ZERO, to(RecoveryAction::None), WINDOW);
        assert_eq!(back, Sighting::New(1), "there and back are two");
        assert_eq!(history.hear(Mono::ZERO, xid(13, Some(7)), WINDOW), Sighting::New(2));
        assert_eq!(history.hear(Mono::ZERO, xid(13, Some(8)), WINDOW), Sighting::New(3), "two processes");
        let link = |text: &str| XidSeen { text: text.to_owned(), ..xid(145, None) };
        assert_eq!(history.hear(Mono::ZERO, link("Link 01 (0x4 0x100)"), WINDOW), Sighting::New(4));
        assert_eq!(history.hear(Mono::ZERO, link("Link 01 (0x4 0x40)"), WINDOW), Sighting::New(5));
        let sm = |text: &str| XidSeen { text: text.to_owned(), ..xid(13, Some(7)) };
        assert!(matches!(history.hear(Mono::ZERO, sm("SM 0"), WINDOW), Sighting::Learnt { index: 2, .. }));
        assert_eq!(history.hear(Mono::ZERO, sm("SM 1"), WINDOW), Sighting::Repeated(2));
    }

    #[test]
    fn the_richer_text_is_kept() {
        let mut history = History::default();
        history.hear(Mono::ZERO, xid(79, None), WINDOW);
        let rich = XidSeen { text: "79, pid=7".to_owned(), ..xid(79, Some(7)) };
        let learnt = history.hear(Mono::ZERO, rich.clone(), WINDOW);
        assert_eq!(learnt, Sighting::Learnt { index: 0, before: xid(79, None) });
        assert_eq!(history.hear(Mono::ZERO, xid(79, None), WINDOW), Sighting::Repeated(0));
        assert_eq!(history.since(Mono::ZERO)[0].1, rich);
    }

    #[test]
    fn a_storm_is_one_entry_and_the_history_is_bounded() {
        let mut history = History::default();
        for ms in 0..100 {
            history.hear(Mono::from_millis(ms * 1000), xid(13, Some(7)), WINDOW);
        }
        assert_eq!(history.since(Mono::from_millis(99_000)).len(), 1);
        assert_eq!(history.since(Mono::from_millis(99_001)).len(), 0);
        for pid in 0..1000 {
            history.hear(Mono::from_millis(99_000), xid(31, Some(pid)), WINDOW);
        }
        assert_eq!(history.since(Mono::ZERO).len(), XIDS_MAX);
    }
}
