//! What the next run of the agent must know of the dead-man switch: `deadman.json`.

use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::TaskResult;
use cic_common::time::uptime;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::core::DeadmanMemo;
use crate::state::{StateDir, boot_id, name};

/// The most that counts between the last note of one run and the start of the next. A crash loop waits for seconds; an
/// agent that was stopped for hours was stopped by a person.
const GAP_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    boot_id: Option<String>,
    /// Of the machine, when it was noted.
    uptime: Option<Duration>,
    memo: DeadmanMemo,
}

/// Writes the newest memo. Clones share it.
#[derive(Debug, Clone)]
pub struct DeadmanMemory {
    newest: Arc<watch::Sender<DeadmanMemo>>,
}

impl Default for DeadmanMemory {
    fn default() -> Self {
        Self { newest: Arc::new(watch::Sender::new(DeadmanMemo::default())) }
    }
}

impl DeadmanMemory {
    /// What an earlier run noted, with the time between it and this run. While the machine is off nothing is added.
    #[must_use]
    pub fn restored(state: &StateDir) -> Option<DeadmanMemo> {
        let noted: Noted = state.read(name::DEADMAN)?;
        let is_same_boot = noted.boot_id.is_some() && noted.boot_id == boot_id();
        Some(noted.after(uptime().filter(|_| is_same_boot)))
    }

    pub fn remember(&self, memo: DeadmanMemo) {
        self.newest.send_replace(memo);
    }

    /// Writes each new memo until cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn keep(self, state: StateDir, token: CancellationToken) -> TaskResult {
        let mut changes = self.newest.subscribe();
        loop {
            // Cancel safe: a change not yet seen is seen by the next call. The sender lives in `self`.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                changed = changes.changed() => changed?,
            }
            let memo = *changes.borrow_and_update();
            let noted = Noted { boot_id: boot_id(), uptime: uptime(), memo };
            if let Err(error) = state.write(name::DEADMAN, &noted).await {
                warn!(%error, "the state of the dead-man switch is not remembered");
            }
        }
    }
}

impl Noted {
    /// At `uptime` of the same boot, or after a reboot.
    fn after(&self, uptime: Option<Duration>) -> DeadmanMemo {
        let gap = uptime.zip(self.uptime).map_or(Duration::ZERO, |(now, then)| now.saturating_sub(then));
        let gap = gap.min(GAP_MAX);
        let DeadmanMemo { is_confirmed, unconfirmed_for, quiet_for } = self.memo;
        let unconfirmed_for = if is_confirmed { unconfirmed_for } else { unconfirmed_for + gap };
        DeadmanMemo { is_confirmed, unconfirmed_for, quiet_for: quiet_for + gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_runs_of_a_boot_time_goes_on_and_over_a_reboot_it_does_not() {
        let s = Duration::from_secs;
        let memo = |is_confirmed, unconfirmed_s, quiet_s| DeadmanMemo {
            is_confirmed,
            unconfirmed_for: s(unconfirmed_s),
            quiet_for: s(quiet_s),
        };
        let noted = |memo| Noted { boot_id: boot_id(), uptime: Some(s(1000)), memo };
        for (before, uptime, after) in [
            (memo(false, 10, 20), Some(s(1005)), memo(false, 15, 25)),
            (memo(true, 0, 20), Some(s(1005)), memo(true, 0, 25)),
            // Stopped for hours: the controllers get time to speak first.
            (memo(false, 10, 20), Some(s(90_000)), memo(false, 130, 140)),
            (memo(false, 10, 20), None, memo(false, 10, 20)),
            (memo(false, 10, 20), Some(s(3)), memo(false, 10, 20)),
        ] {
            assert_eq!(noted(before).after(uptime), after, "{uptime:?}");
        }
    }

    #[tokio::test]
    async fn what_is_noted_is_found_again() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        assert_eq!(DeadmanMemory::restored(&state), None);
        let memo =
            DeadmanMemo { is_confirmed: true, quiet_for: Duration::from_secs(5), ..Default::default() };
        let noted = Noted { boot_id: Some("another".to_owned()), uptime: uptime(), memo };
        state.write(name::DEADMAN, &noted).await.unwrap();
        assert_eq!(DeadmanMemory::restored(&state), Some(memo));
    }
}
