//! The task that stores what waits in the queue, in order, however long the database is away.

use std::time::Duration;

use cic_common::backoff::Backoff;
use cic_common::id::{OperationId, Term};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::database::{Database, StoreError};
use super::events::PendingEvent;
use super::queue::StoreQueue;
use super::write::Write;

/// First wait after a failed attempt: a lock held by a backup is gone by then.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Longest wait: the core learns of a database that is back within this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Between two looks for what is too old: nobody misses an hour of ninety days.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// A controller that has just begun to lead has more urgent writes.
const FORGET_FIRST: Duration = Duration::from_secs(60);

/// Between two batches of what is too old, so that writes come first.
const FORGET_NEXT: Duration = Duration::from_millis(200);

/// Why a writer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Another controller leads under the term `newest`. What waited was discarded, and nobody is told that it is
    /// recorded: this process must stop acting.
    Fenced { newest: Term },
}

/// Stores until `token` is cancelled and the queue is empty, or one last attempt failed, or `term` is over. Each new
/// operation that is safely stored is told to `recorded`. A database that fails is waited for.
pub async fn run(
    database: Database,
    term: Term,
    queue: StoreQueue,
    recorded: mpsc::Sender<OperationId>,
    token: CancellationToken,
) -> Ended {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut portion = Portion::default();
    let mut forgetting = tokio::time::interval(FORGET_EVERY);
    forgetting.reset_after(FORGET_FIRST);
    forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if forgetting.tick().now_or_never().is_some()
            && let Err(newest) = forget(&database, term, &mut forgetting).await
        {
            return fenced(term, newest, queue.discard());
        }
        let (mut writes, mut events) = queue.take();
        if writes.is_empty() && events.is_empty() {
            // Cancel safe: all only wait.
            tokio::select! {
                () = queue.arrived() => continue,
                () = token.cancelled() => return Ended::Stopped,
                _ = forgetting.tick() => {
                    forgetting.reset_immediately();
                    continue;
                }
            }
        }
        while !(writes.is_empty() && events.is_empty()) {
            let (first, then) = portion.of(writes.len(), events.len());
            match attempt(&database, term, &queue, &writes[..first], &events[..then]).await {
                Attempt::Stored => {
                    backoff.reset();
                    portion.stored();
                    events.drain(..then);
                    answer(writes.drain(..first), &recorded, &token).await;
                    continue;
                }
                Attempt::Fenced { newest } => {
                    return fenced(term, newest, queue.discard() + writes.len() + events.len());
                }
                Attempt::Late => portion.late(first + then),
                Attempt::Failed => {}
            }
            if token.is_cancelled() {
                return Ended::Stopped;
            }
            // Cancel safe: both only wait.
            tokio::select! {
                () = tokio::time::sleep(backoff.next_wait()) => {}
                () = token.cancelled() => {}
            }
        }
    }
}

/// How much of a batch is tried at once: all of it, and less where the database did not answer in time for as much.
#[derive(Debug)]
struct Portion {
    most: usize,
    /// Stored in a row since the last that was late.
    stored: u32,
}

/// As many in a row are stored before more is tried again: each try that is late costs a statement's whole time.
const STORED_BEFORE_MORE: u32 = 8;

impl Default for Portion {
    fn default() -> Self {
        Self { most: usize::MAX, stored: 0 }
    }
}

impl Portion {
    /// As many writes, and as many events once all writes are in.
    fn of(&self, writes: usize, events: usize) -> (usize, usize) {
        let first = writes.min(self.most);
        (first, if first < writes { 0 } else { events.min(self.most - first) })
    }

    fn late(&mut self, tried: usize) {
        (self.most, self.stored) = ((tried / 2).max(1), 0);
    }

    fn stored(&mut self) {
        self.stored += 1;
        if self.stored >= STORED_BEFORE_MORE {
            (self.most, self.stored) = (self.most.saturating_mul(2), 0);
        }
    }
}

fn fenced(term: Term, newest: Term, discarded: usize) -> Ended {
    warn!(%term, %newest, discarded, "another controller leads; nothing more is stored");
    Ended::Fenced { newest }
}

enum Attempt {
    Stored,
    Failed,
    /// No answer in time: it may have been too much at once.
    Late,
    Fenced {
        newest: Term,
    },
}

async fn attempt(
    database: &Database,
    term: Term,
    queue: &StoreQueue,
    writes: &[Write],
    events: &[PendingEvent],
) -> Attempt {
    let failed_before = queue.counts().failures_in_row > 0;
    match database.store(term, writes, events).await {
        Ok(()) => {
            queue.attempted(true);
            if failed_before {
                info!("store answers again");
            }
            Attempt::Stored
        }
        Err(StoreError::Fenced { newest, .. }) => Attempt::Fenced { newest },
        Err(error) => {
            queue.attempted(false);
            if !failed_before {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, ?cause, "store fails; launches and terminations wait for it");
            }
            if matches!(error, StoreError::Timeout(_)) { Attempt::Late } else { Attempt::Failed }
        }
    }
}

/// One batch of what is too old.
///
/// # Errors
/// The newest term, when it is another.
async fn forget(database: &Database, term: Term, forgetting: &mut Interval) -> Result<(), Term> {
    match database.forget_old(term).await {
        Ok(0) => {}
        Ok(rows) => {
            info!(rows, "forgot what is too old");
            forgetting.reset_after(FORGET_NEXT);
        }
        Err(StoreError::Fenced { newest, .. }) => return Err(newest),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            warn!(%error, ?cause, "what is too old is kept for another hour");
        }
    }
    Ok(())
}

async fn answer(
    writes: impl Iterator<Item = Write>,
    recorded: &mpsc::Sender<OperationId>,
    token: &CancellationToken,
) {
    for write in writes {
        match write {
            Write::Operation { operation, is_new: true } => {
                // Cancel safe: a lost answer only delays an operation until the next start.
                tokio::select! {
                    _ = recorded.send(operation.id) => {}
                    () = token.cancelled() => {}
                }
            }
            Write::Barrier(done) => drop(done.send(())),
            Write::Operation { is_new: false, .. }
            | Write::SaveNode(_)
            | Write::ForgetNode(_)
            | Write::SaveDeployment(_)
            | Write::Certificate { .. }
            | Write::SaveSync(_)
            | Write::SaveSnapshot(_)
            | Write::ForgetSnapshot { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_does_not_take_in_time_is_tried_in_halves_down_to_one() {
        let mut portion = Portion::default();
        assert_eq!(portion.of(200, 56), (200, 56));
        portion.late(256);
        assert_eq!(portion.of(200, 56), (128, 0), "writes come first, and events after all of them");
        for _ in 1..STORED_BEFORE_MORE {
            portion.stored();
            assert_eq!(portion.of(200, 56), (128, 0));
        }
        portion.stored();
        assert_eq!(portion.of(200, 56), (200, 56));
        for tried in [128, 64, 32, 16, 8, 4, 2, 1] {
            portion.late(tried);
        }
        assert_eq!(portion.of(72, 56), (1, 0));
        assert_eq!(portion.of(0, 56), (0, 1));
    }
}
