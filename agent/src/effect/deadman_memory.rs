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
    /// What an earlier run noted, and how long ago in this boot: over a reboot no time passes.
    #[must_use]
    pub fn restored(state: &StateDir) -> Option<(DeadmanMemo, Duration)> {
        let noted: Noted = state.read(name::DEADMAN)?;
        let is_same_boot = noted.boot_id.is_some() && noted.boot_id == boot_id();
        let ago = uptime().filter(|_| is_same_boot).zip(noted.uptime);
        let ago = ago.map_or(Duration::ZERO, |(now, then)| now.saturating_sub(then));
        Some((noted.memo, ago))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_noted_is_found_again_and_its_age_is_that_in_this_boot() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        assert_eq!(DeadmanMemory::restored(&state), None);
        let memo =
            DeadmanMemo { is_confirmed: true, quiet_for: Duration::from_secs(5), ..Default::default() };
        let hour = Duration::from_secs(3600);
        let then = |ago: Duration| uptime().map(|now| now.saturating_sub(ago));
        for (boot_id, at, at_least, at_most) in [
            (boot_id(), then(Duration::from_secs(1)), Duration::from_secs(1), Duration::from_secs(60)),
            (boot_id(), uptime().map(|now| now + hour), Duration::ZERO, Duration::ZERO),
            (Some("another".to_owned()), then(hour), Duration::ZERO, Duration::ZERO),
            (None, then(hour), Duration::ZERO, Duration::ZERO),
        ] {
            state.write(name::DEADMAN, &Noted { boot_id, uptime: at, memo }).await.unwrap();
            let (found, ago) = DeadmanMemory::restored(&state).unwrap();
            assert_eq!(found, memo);
            assert!((at_least..=at_most).contains(&ago), "{ago:?}");
        }
    }
}
