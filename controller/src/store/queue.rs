//! What waits to be stored. The driver pushes and never waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cic_common::id::NodeId;
use cic_common::time::unix_ms;
use tokio::sync::Notify;

use super::events::PendingEvent;
use super::write::Write;
use crate::core::{EventRecord, Severity};

/// Entries of the event log that wait while the database is away: hours of a quiet fleet, minutes of a bad day. Four for
/// each node of the largest fleet foreseen, which may all come, or fall silent, within one write of the store.
pub const EVENTS_WAITING_MAX: usize = 40_960;

/// Rows and operations that wait. The core decides nothing new about a node while an operation of it is not
/// recorded, and later rows of a node replace earlier ones here, so this is some four per node of the largest
/// fleet foreseen (10,000 nodes). Beyond it a write is refused and counted: an operation that is never recorded
/// is never performed, and one that is not closed is performed again under its id, which is harmless.
pub const WRITES_WAITING_MAX: usize = 40_960;

/// Writes and events in one transaction: bounds how long a commit holds the write lock.
const BATCH_MAX: usize = 256;

/// The queue in figures.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct QueueCounts {
    pub writes_waiting: usize,
    pub events_waiting: usize,
    /// Most that ever waited.
    pub writes_waiting_max: usize,
    pub events_waiting_max: usize,
    pub events_dropped: u64,
    pub writes_refused: u64,
    /// Failed attempts since the last that succeeded; 0 while the database answers.
    pub failures_in_row: u64,
}

/// The queue. Clones share it.
#[derive(Debug, Default, Clone)]
pub struct StoreQueue {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    writes: VecDeque<Write>,
    events: VecDeque<PendingEvent>,
    seq: u64,
    counts: QueueCounts,
}

impl StoreQueue {
    /// Queues a write; false when the queue is full and it was refused.
    pub fn push(&self, write: Write) -> bool {
        let mut waiting = self.lock();
        let waiting = &mut *waiting;
        if let Write::SaveNode(row) = &write
            && let Some(earlier) = last_of_node(&mut waiting.writes, &row.node)
        {
            *earlier = write;
            return true;
        }
        // Nothing rests on one, and only the newest is shown: a database that was away is not given them all.
        if let Write::SaveSync(sync) = &write {
            waiting.writes.retain(
                |other| !matches!(other, Write::SaveSync(earlier) if earlier.provider == sync.provider),
            );
        }
        if waiting.writes.len() >= WRITES_WAITING_MAX {
            waiting.counts.writes_refused += 1;
            return false;
        }
        waiting.writes.push_back(write);
        waiting.counts.writes_waiting_max = waiting.counts.writes_waiting_max.max(waiting.writes.len());
        self.inner.arrived.notify_one();
        true
    }

    /// Queues an entry of the event log under the present wall-clock time. When full, the oldest entry of the
    /// least severity makes room.
    pub fn push_event(&self, record: EventRecord) {
        let mut waiting = self.lock();
        let waiting = &mut *waiting;
        if waiting.events.len() >= EVENTS_WAITING_MAX {
            let oldest_info = waiting.events.iter().position(|event| event.record.severity == Severity::Info);
            waiting.events.remove(oldest_info.unwrap_or(0));
            waiting.counts.events_dropped += 1;
        }
        waiting.seq += 1;
        waiting.events.push_back(PendingEvent { seq: waiting.seq, at_ms: unix_ms(), record });
        waiting.counts.events_waiting_max = waiting.counts.events_waiting_max.max(waiting.events.len());
        self.inner.arrived.notify_one();
    }

    #[must_use]
    pub fn counts(&self) -> QueueCounts {
        let waiting = self.lock();
        QueueCounts {
            writes_waiting: waiting.writes.len(),
            events_waiting: waiting.events.len(),
            ..waiting.counts
        }
    }

    /// Waits until something is queued. Cancel safe: a missed notice is kept.
    pub(super) async fn arrived(&self) {
        self.inner.arrived.notified().await;
    }

    /// Takes the oldest entries out. They are the taker's to store, however long that takes.
    pub fn take(&self) -> (Vec<Write>, Vec<PendingEvent>) {
        let mut waiting = self.lock();
        let writes = waiting.writes.len().min(BATCH_MAX);
        let events = waiting.events.len().min(BATCH_MAX);
        (waiting.writes.drain(..writes).collect(), waiting.events.drain(..events).collect())
    }

    /// Forgets all that waits: the term under which it was decided is over. Tells how much it was.
    pub fn discard(&self) -> usize {
        let mut waiting = self.lock();
        let count = waiting.writes.len() + waiting.events.len();
        waiting.writes.clear();
        waiting.events.clear();
        count
    }

    pub(super) fn attempted(&self, succeeded: bool) {
        let counts = &mut self.lock().counts;
        counts.failures_in_row = if succeeded { 0 } else { counts.failures_in_row + 1 };
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waiting row of `node`, when nothing that must stay ordered with it came after.
fn last_of_node<'a>(writes: &'a mut VecDeque<Write>, node: &NodeId) -> Option<&'a mut Write> {
    for write in writes.iter_mut().rev() {
        match write {
            Write::SaveNode(row) if row.node == *node => return Some(write),
            Write::ForgetNode(forgotten) if forgotten == node => return None,
            Write::Barrier(_) => return None,
            Write::SaveNode(_)
            | Write::ForgetNode(_)
            | Write::Operation { .. }
            | Write::SaveDeployment(_)
            | Write::Certificate { .. }
            | Write::SaveSync(_)
            | Write::SaveSnapshot(_)
            | Write::ForgetSnapshot { .. } => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(severity: Severity, text: &str) -> EventRecord {
        EventRecord { node: None, severity, kind: "test".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_full_queue_drops_the_oldest_information_and_keeps_alerts() {
        let queue = StoreQueue::default();
        queue.push_event(note(Severity::Alert, "first"));
        for number in 0..EVENTS_WAITING_MAX + 5 {
            queue.push_event(note(Severity::Info, &number.to_string()));
        }
        assert_eq!(queue.counts().events_waiting, EVENTS_WAITING_MAX);
        assert_eq!(queue.counts().events_dropped, 6);
        let (_, events) = queue.take();
        assert_eq!(events[0].record.text, "first");
        assert_eq!(events[1].record.text, "6");
    }

    #[test]
    fn a_later_row_of_a_node_takes_the_place_of_the_waiting_one() {
        use crate::core::NodeRecord;
        use cic_common::id::Incarnation;
        use cic_common::report::Role;
        let queue = StoreQueue::default();
        let node = NodeId::new("a").expect("valid");
        for incarnation in 1..=3 {
            queue.push(Write::SaveNode(NodeRecord {
                node: node.clone(),
                role: Role::Replica,
                deployment: None,
                zone: "here".to_owned(),
                address: None,
                incarnation: Incarnation(incarnation),
                launched_by: None,
                predecessors: Vec::new(),
                keeps_checkpoints: false,
                is_read: false,
                asked: None,
            }));
        }
        let (writes, _) = queue.take();
        assert!(matches!(&writes[..], [Write::SaveNode(row)] if row.incarnation == Incarnation(3)));
    }
}
