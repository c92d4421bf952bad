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
    let mut forgetting = tokio::time::interval(FORGET_EVERY);
    forgetting.reset_after(FORGET_FIRST);
    forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if forgetting.tick().now_or_never().is_some()
            && let Err(newest) = forget(&database, term, &mut forgetting).await
        {
            return fenced(term, newest, queue.discard());
        }
        let (writes, events) = queue.take();
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
        loop {
            match attempt(&database, term, &queue, &writes, &events).await {
                Attempt::Stored => break,
                Attempt::Fenced { newest } => {
                    return fenced(term, newest, queue.discard() + writes.len() + events.len());
                }
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
        backoff.reset();
        answer(writes, &recorded, &token).await;
    }
}

fn fenced(term: Term, newest: Term, discarded: usize) -> Ended {
    warn!(%term, %newest, discarded, "another controller leads; nothing more is stored");
    Ended::Fenced { newest }
}

enum Attempt {
    Stored,
    Failed,
    Fenced { newest: Term },
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
            Attempt::Failed
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

async fn answer(writes: Vec<Write>, recorded: &mpsc::Sender<OperationId>, token: &CancellationToken) {
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
