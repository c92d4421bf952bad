//! The task that stores what waits in the queue, in order, however long the database is away.

use std::time::Duration;

use cic_common::backoff::Backoff;
use cic_common::id::{OperationId, Term};
use cic_common::supervise::TaskResult;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::database::Database;
use super::events::PendingEvent;
use super::queue::StoreQueue;
use super::write::Write;

/// First wait after a failed attempt: a lock held by a backup is gone by then.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Longest wait: the core learns of a database that is back within this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Stores until `token` is cancelled and the queue is empty, or one last attempt failed. Each new operation that
/// is safely stored is told to `recorded`.
///
/// # Errors
/// Never: a database that fails is waited for.
pub async fn run(
    database: Database,
    term: Term,
    queue: StoreQueue,
    recorded: mpsc::Sender<OperationId>,
    token: CancellationToken,
) -> TaskResult {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let (writes, events) = queue.take();
        if writes.is_empty() && events.is_empty() {
            // Cancel safe: both only wait.
            tokio::select! {
                () = queue.arrived() => continue,
                () = token.cancelled() => return Ok(()),
            }
        }
        while !attempt(&database, term, &queue, &writes, &events).await {
            if token.is_cancelled() {
                return Ok(());
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

async fn attempt(
    database: &Database,
    term: Term,
    queue: &StoreQueue,
    writes: &[Write],
    events: &[PendingEvent],
) -> bool {
    let failed_before = queue.counts().failures_in_row > 0;
    match database.store(term, writes, events).await {
        Ok(()) => {
            queue.attempted(true);
            if failed_before {
                info!("store answers again");
            }
            true
        }
        Err(error) => {
            queue.attempted(false);
            if !failed_before {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, ?cause, "store fails; launches and terminations wait for it");
            }
            false
        }
    }
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
            | Write::Certificate { .. } => {}
        }
    }
}
