//! What is written down about the running engine, so that the next run of the agent can adopt it.

use std::io;
use std::path::PathBuf;

use cic_common::assignment::Assignment;
use serde::{Deserialize, Serialize};

use super::procfs;

/// One engine process. A pid alone is reused; with start time and boot id it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub pid: u32,
    pub start_ticks: u64,
    pub boot_id: String,
    /// 127.0.0.1 port it serves on.
    pub port: u16,
    pub cgroup: Option<PathBuf>,
    /// Names what it was started with; see `spec_digest`.
    #[serde(default)]
    pub spec_digest: String,
    /// Where its model was found, if that was noted.
    #[serde(default)]
    pub directory: Option<String>,
    pub assignment: Assignment,
}

/// Names a start command and everything it depends on: the first 16 hex digits of the SHA-256 of its JSON.
#[must_use]
pub(super) fn spec_digest(assignment: &Assignment) -> String {
    // Maps are sorted and fields have an order, so that equal assignments give equal text.
    let text = serde_json::to_vec(assignment).unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, &text);
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Record {
    /// Where its model's files are.
    #[must_use]
    pub fn directory(&self) -> &str {
        self.directory.as_ref().unwrap_or(&self.assignment.model.path)
    }

    /// Whether exactly this process is still running.
    ///
    /// # Errors
    /// When `/proc` cannot be read: it may run.
    pub async fn is_alive(&self) -> io::Result<bool> {
        if self.boot_id != procfs::boot_id().await? {
            return Ok(false);
        }
        let found = procfs::process(self.pid).await?;
        Ok(found.is_some_and(|found| !found.is_zombie && found.start_ticks == self.start_ticks))
    }
}
