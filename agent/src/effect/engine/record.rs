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
    pub assignment: Assignment,
}

impl Record {
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
