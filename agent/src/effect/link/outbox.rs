//! Events that one controller has not acknowledged yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cic_common::notice::Notice;
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;
use tokio::sync::Notify;
use tracing::warn;

use super::pulse::as_ms;

/// Events kept while a controller is away. The next heartbeat carries the whole state anyway, so what is lost
/// beyond this is history.
const EVENTS_MAX: usize = 256;

/// What an edge missed longer ago than this, it says again if it still does (every 5 s).
const PASSES_AFTER: Duration = Duration::from_secs(15);

/// The order of sending: notices before anything else, then by number.
type Place = (bool, u64);

/// A bounded queue that forgets an event only when it is acknowledged or the queue overflows.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    events: Mutex<BTreeMap<Place, Waiting>>,
    changed: Notify,
}

#[derive(Debug)]
struct Waiting {
    event: NodeEvent,
    told_at: Mono,
}

impl Outbox {
    /// Puts an event in. When full the oldest that is no notice makes room.
    pub(super) fn put(&self, seq: u64, event: NodeEvent, now: Mono) {
        let mut events = self.lock();
        if is_passing(&event) {
            events.retain(|_, waiting| waiting.event != event);
        }
        // A notice that nobody has heard of, and that is over, would order a node that nobody needs.
        if let NodeEvent::NoticeLifted { source, id } = &event {
            let is_it = |notice: &Notice| notice.source == *source && notice.id == *id;
            events.retain(
                |_, waiting| !matches!(&waiting.event, NodeEvent::NoticeSeen { notice } if is_it(notice)),
            );
        }
        if events.len() >= EVENTS_MAX {
            let oldest = events.keys().find(|(later, _)| *later).or_else(|| events.keys().next()).copied();
            if let Some(place) = oldest {
                events.remove(&place);
                warn!(seq = place.1, "event dropped: too many are unacknowledged");
            }
        }
        events.insert((is_later(&event), seq), Waiting { event, told_at: now });
        drop(events);
        self.changed.notify_waiters();
    }

    pub(super) fn acknowledge(&self, seq: u64) {
        let mut events = self.lock();
        events.remove(&(false, seq));
        events.remove(&(true, seq));
        drop(events);
        self.changed.notify_waiters();
    }

    /// All that waits, in the order to send it, as it reads at `now`.
    pub(super) fn waiting(&self, now: Mono) -> Vec<(u64, NodeEvent)> {
        let mut events = self.lock();
        events.retain(|_, waiting| !is_passing(&waiting.event) || now.since(waiting.told_at) < PASSES_AFTER);
        events.iter().map(|((_, seq), waiting)| (*seq, waiting.at(now))).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Resolves at the next change after the call; make the future before looking at the content.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Waiting>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// A notice's time left counts from the moment of sending, and it may have waited.
    fn at(&self, now: Mono) -> NodeEvent {
        let mut event = self.event.clone();
        if let NodeEvent::NoticeSeen { notice } = &mut event {
            notice.left_ms = notice.left_ms.saturating_sub(as_ms(now.since(self.told_at)));
        }
        event
    }
}

/// Whether it is said of a moment, and worth nothing when that is over.
fn is_passing(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::ReplicasMissing { .. })
}

/// That a notice is lifted stays behind it.
fn is_later(event: &NodeEvent) -> bool {
    !matches!(event, NodeEvent::NoticeSeen { .. } | NodeEvent::NoticeLifted { .. })
}

#[cfg(test)]
mod tests {
    use cic_common::notice::{Confidence, NoticeKind};

    use super::*;

    fn farewell() -> NodeEvent {
        NodeEvent::Farewell { reason: "test".to_owned() }
    }

    fn notice(left_ms: u64) -> NodeEvent {
        let notice = Notice {
            kind: NoticeKind::Terminate,
            source: "file".to_owned(),
            id: "1".to_owned(),
            left_ms,
            confidence: Confidence::Announced,
            resources: Vec::new(),
        };
        NodeEvent::NoticeSeen { notice }
    }

    fn numbers(outbox: &Outbox) -> Vec<u64> {
        outbox.waiting(Mono::ZERO).into_iter().map(|(seq, _)| seq).collect()
    }

    #[test]
    fn a_notice_overtakes_and_counts_its_wait() {
        let outbox = Outbox::default();
        outbox.put(1, farewell(), Mono::ZERO);
        outbox.put(2, notice(30_000), Mono::ZERO);
        let waiting = outbox.waiting(Mono::from_millis(10_000));
        assert_eq!(waiting[0], (2, notice(20_000)));
        outbox.acknowledge(2);
        assert_eq!(numbers(&outbox), [1]);
    }

    #[test]
    fn a_notice_that_is_lifted_before_anybody_heard_of_it_is_told_no_more() {
        let outbox = Outbox::default();
        outbox.put(1, notice(30_000), Mono::ZERO);
        let lifted = NodeEvent::NoticeLifted { source: "file".to_owned(), id: "1".to_owned() };
        outbox.put(2, lifted, Mono::ZERO);
        assert_eq!(numbers(&outbox), [2]);
    }

    #[test]
    fn a_full_outbox_drops_the_oldest_that_is_no_notice() {
        let outbox = Outbox::default();
        outbox.put(1, notice(1), Mono::ZERO);
        for seq in 2..=EVENTS_MAX as u64 + 1 {
            outbox.put(seq, farewell(), Mono::ZERO);
        }
        let kept = numbers(&outbox);
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[..2], [1, 3]);
    }
}
