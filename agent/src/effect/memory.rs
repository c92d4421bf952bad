//! What the next run of the agent must know, each memo in a file of its own.

use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::TaskResult;
use cic_common::time::uptime;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::state::{StateDir, boot_id};

#[derive(Debug, Serialize, Deserialize)]
struct Noted<M> {
    boot_id: Option<String>,
    /// Of the machine, when it was noted.
    uptime: Option<Duration>,
    memo: M,
}

/// What an earlier run noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<M> {
    pub memo: M,
    /// `None` when the machine was booted since, or it cannot be told.
    pub in_this_boot: Option<Duration>,
}

/// Writes the newest memo to its file. Clones share it.
#[derive(Debug, Clone)]
pub struct Memory<M> {
    file: &'static str,
    newest: Arc<watch::Sender<Option<M>>>,
}

impl<M: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Memory<M> {
    #[must_use]
    pub fn of(file: &'static str) -> Self {
        Self { file, newest: Arc::new(watch::Sender::new(None)) }
    }

    /// What an earlier run noted last, if anything.
    #[must_use]
    pub fn found(&self, state: &StateDir) -> Option<Found<M>> {
        let Noted { boot_id: of_boot, uptime: then, memo } = state.read(self.file)?;
        let is_same_boot = of_boot.is_some() && of_boot == boot_id();
        let ago = uptime().zip(then).map_or(Duration::ZERO, |(now, then)| now.saturating_sub(then));
        Some(Found { memo, in_this_boot: is_same_boot.then_some(ago) })
    }

    pub fn remember(&self, memo: M) {
        self.newest.send_replace(Some(memo));
    }

    /// Writes each new memo until cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn keep(self, state: StateDir, token: CancellationToken) -> TaskResult {
        let mut changes = self.newest.subscribe();
        // One may have been remembered before this began.
        changes.mark_changed();
        loop {
            // Cancel safe: a change not yet seen is seen by the next call. The sender lives in `self`.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                changed = changes.changed() => changed?,
            }
            let Some(memo) = changes.borrow_and_update().clone() else { continue };
            let noted = Noted { boot_id: boot_id(), uptime: uptime(), memo };
            if let Err(error) = state.write(self.file, &noted).await {
                warn!(file = self.file, %error, "not remembered");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "memo.json";

    #[tokio::test]
    async fn what_is_noted_is_found_again_and_its_age_is_that_in_this_boot() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let memory = Memory::<u32>::of(FILE);
        assert_eq!(memory.found(&state), None);
        let hour = Duration::from_secs(3600);
        let then = |ago: Duration| uptime().map(|now| now.saturating_sub(ago));
        let recently = Some((Duration::from_secs(1), Duration::from_secs(60)));
        for (boot_id, uptime, expected) in [
            (boot_id(), then(Duration::from_secs(1)), recently),
            (boot_id(), uptime().map(|now| now + hour), Some((Duration::ZERO, Duration::ZERO))),
            (Some("another".to_owned()), then(hour), None),
            (None, then(hour), None),
        ] {
            state.write(FILE, &Noted { boot_id: boot_id.clone(), uptime, memo: 7_u32 }).await.unwrap();
            let found = memory.found(&state).unwrap();
            assert_eq!(found.memo, 7);
            let is_within = |ago| expected.is_some_and(|(least, most)| (least..=most).contains(&ago));
            assert_eq!(found.in_this_boot.is_some(), expected.is_some(), "{boot_id:?}: {found:?}");
            assert!(found.in_this_boot.is_none_or(is_within), "{boot_id:?}: {found:?}");
        }
    }

    #[tokio::test]
    async fn each_newest_memo_is_written_also_one_of_before() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let (memory, token) = (Memory::<u32>::of(FILE), CancellationToken::new());
        memory.remember(8);
        let keeping = tokio::spawn(memory.clone().keep(state.clone(), token.clone()));
        for expected in [8, 9] {
            memory.remember(expected);
            let written = async {
                while memory.found(&state).map(|found| found.memo) != Some(expected) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), written).await.expect("written");
        }
        token.cancel();
        keeping.await.unwrap().unwrap();
    }
}
