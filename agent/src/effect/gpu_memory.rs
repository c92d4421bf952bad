//! What the next run of the agent must know of the GPUs: `gpu.json`, good for one boot.

use std::sync::Arc;

use cic_common::supervise::TaskResult;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::core::GpuMemo;
use crate::state::{StateDir, boot_id, name};

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    memo: GpuMemo,
}

/// Writes the newest memo. Clones share it.
#[derive(Debug, Clone)]
pub struct GpuMemory {
    newest: Arc<watch::Sender<GpuMemo>>,
}

impl Default for GpuMemory {
    fn default() -> Self {
        Self { newest: Arc::new(watch::Sender::new(GpuMemo::default())) }
    }
}

impl GpuMemory {
    /// What an earlier run of this boot remembered. A reboot resets the GPUs, and with them what was known.
    #[must_use]
    pub fn restored(state: &StateDir) -> Option<GpuMemo> {
        let remembered: Remembered = state.read(name::GPU)?;
        (Some(remembered.boot_id) == boot_id()).then_some(remembered.memo)
    }

    pub fn remember(&self, memo: GpuMemo) {
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
            let memo = changes.borrow_and_update().clone();
            let Some(boot_id) = boot_id() else { continue };
            if let Err(error) = state.write(name::GPU, &Remembered { boot_id, memo }).await {
                warn!(%error, "the state of the GPUs is not remembered");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_remembered_is_good_for_this_boot_only() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let memo = GpuMemo { baseline: Some(std::collections::BTreeMap::new()), ..GpuMemo::default() };
        let mut remembered = Remembered { boot_id: boot_id().unwrap(), memo: memo.clone() };
        state.write(name::GPU, &remembered).await.unwrap();
        assert_eq!(GpuMemory::restored(&state), Some(memo));
        remembered.boot_id = "another".to_owned();
        state.write(name::GPU, &remembered).await.unwrap();
        assert_eq!(GpuMemory::restored(&state), None);
    }
}
