//! What engines ended of, one file a crash: `crashes/TIME-PID.json` in the state directory, the newest ten.

use std::io;
use std::path::{Path, PathBuf};

use cic_common::time::{unix_ms, utc_text};
use serde::Serialize;

use crate::core::CrashRecord;
use crate::state::StateDir;

/// Records kept: three tries in half an hour ask for a replacement, so this is more than a node's last bad day.
const KEPT: usize = 10;

/// Folder in the state directory.
pub const FOLDER: &str = "crashes";

#[derive(Serialize)]
struct Dated<'a> {
    at: String,
    #[serde(flatten)]
    record: &'a CrashRecord,
}

/// Writes a record and forgets the oldest beyond ten.
///
/// # Errors
/// When the disk is full or gone: the record is lost, the node goes on.
pub async fn save(state: &StateDir, record: &CrashRecord) -> io::Result<PathBuf> {
    let folder = state.path(FOLDER);
    tokio::fs::create_dir_all(&folder).await?;
    let now = unix_ms();
    let bytes = serde_json::to_vec_pretty(&Dated { at: utc_text(now), record })?;
    // Milliseconds of 13 digits sort by name until the year 2286.
    let path = folder.join(format!("{now}-{}.json", record.pid));
    let unfinished = path.with_extension("tmp");
    tokio::fs::write(&unfinished, bytes).await?;
    tokio::fs::rename(&unfinished, &path).await?;
    forget_oldest(&folder).await?;
    Ok(path)
}

async fn forget_oldest(folder: &Path) -> io::Result<()> {
    let mut found = Vec::new();
    let mut entries = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        found.push(entry.path());
    }
    found.sort();
    for path in found.iter().take(found.len().saturating_sub(KEPT)) {
        tokio::fs::remove_file(path).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::CrashCause;

    #[tokio::test]
    async fn the_newest_ten_crashes_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let mut last = PathBuf::new();
        for pid in 100..115 {
            let record = CrashRecord {
                pid,
                deployment: None,
                how: "signal 9".to_owned(),
                cause: CrashCause::Unknown,
                reason: String::new(),
                was_ready: true,
                ran_for_ms: 5,
                oom_kills: Vec::new(),
                xids: Vec::new(),
                log_tail: vec!["boom".to_owned()],
                stacks: Vec::new(),
                left: Vec::new(),
            };
            last = save(&state, &record).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(state.path(FOLDER)).unwrap().count(), KEPT);
        let text = std::fs::read_to_string(last).unwrap();
        assert!(text.contains("\"pid\": 114") && text.contains("boom") && text.contains("\"at\""), "{text}");
    }
}
