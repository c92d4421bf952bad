//! The leader's task: a snapshot whenever one is due.

use std::error::Error as _;
use std::time::Duration;

use cic_common::supervise::TaskResult;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::save::{Backup, BackupError};
use crate::core::Severity;
use crate::standing::Standing;

/// A tenth of the interval, and no longer than this: also how soon a failed one is tried again.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Takes a snapshot when the newest is older than `every`, while this controller leads, until `token` is cancelled. How old
/// it is, the database says: a change of leaders neither skips one nor doubles it.
///
/// # Errors
/// Never; a snapshot that fails is an event, and is tried again.
pub async fn run(
    backup: Backup,
    every: Duration,
    standing: Standing,
    token: CancellationToken,
) -> TaskResult {
    let mut was_failing = false;
    loop {
        // Cancel safe: both only wait.
        tokio::select! {
            () = tokio::time::sleep((every / 10).min(LOOK_MAX)) => {}
            () = token.cancelled() => return Ok(()),
        }
        if standing.reign().is_none() {
            continue;
        }
        // Cancel safe: an object that was put without a row is found and removed like any other.
        let failure = tokio::select! {
            outcome = take_if_due(&backup, every) => outcome.err(),
            () = token.cancelled() => return Ok(()),
        };
        match &failure {
            Some(error) if !was_failing => {
                let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
                standing.note(Severity::Warning, "backup-failed", format!("no snapshot: {error}{cause}"));
            }
            None if was_failing => {
                standing.note(
                    Severity::Info,
                    "backup-works",
                    format!("snapshots go to {} again", backup.place()),
                );
            }
            Some(_) | None => {}
        }
        was_failing = failure.is_some();
    }
}

async fn take_if_due(backup: &Backup, every: Duration) -> Result<(), BackupError> {
    if backup.database.snapshot_age().await?.is_some_and(|age| age < every) {
        return Ok(());
    }
    let Some(saved) = backup.take().await? else { return Ok(()) };
    debug!(name = %saved.name, bytes = saved.row.bytes, "snapshot taken");
    match saved.not_removed {
        None => Ok(()),
        Some(cause) => Err(BackupError::Object { object: backup.place(), cause }),
    }
}
