//! An operator's word that a GPU is good again: `gpu-clear.json` in the state directory, `{"gpu":"GPU-…"}` or
//! `{"gpu":null}` for all.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::supervise::TaskResult;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::core::Event;
use crate::core::gpu::GpuEvent;

/// Name of the file.
const FILE: &str = "gpu-clear.json";

/// How long a word can lie unread. A person waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file system that takes longer is looked at again at the next turn.
const DISK_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClearFile {
    /// By uuid; null means every GPU, a missing key nothing at all.
    #[serde(deserialize_with = "Option::deserialize")]
    gpu: Option<String>,
}

/// Leaves the word for the agent of `state_dir`, which takes it within about a second.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_clear(state_dir: &Path, gpu: Option<String>) -> io::Result<()> {
    let unfinished = state_dir.join(format!("{FILE}.tmp"));
    std::fs::write(&unfinished, serde_json::to_vec(&ClearFile { gpu })?)?;
    std::fs::rename(unfinished, state_dir.join(FILE))
}

/// Looks into `state_dir` until cancelled.
///
/// # Errors
/// Never; the signature is that of a task.
pub async fn watch(state_dir: PathBuf, events: mpsc::Sender<Event>, token: CancellationToken) -> TaskResult {
    let path = state_dir.join(FILE);
    let mut desk = Desk::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        // Both arms are cancel safe: a tick that is dropped comes again.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let Ok(content) = timeout(DISK_DEADLINE, tokio::fs::read(&path)).await else { continue };
        let Some(word) = desk.read(content) else { continue };
        info!(gpu = word.gpu.as_deref().unwrap_or("all"), "an operator clears");
        if events.send(Event::Gpu(GpuEvent::Cleared { gpu: word.gpu })).await.is_err() {
            return Ok(());
        }
        // Told first: a word that is told twice does no harm, one that is lost does.
        if let Ok(Err(error)) = timeout(DISK_DEADLINE, tokio::fs::remove_file(&path)).await {
            warn!(path = %path.display(), %error, "the operator's word cannot be removed");
        }
    }
}

/// What lies there, so that each word is told once and each mistake is complained of once.
#[derive(Debug, Default)]
struct Desk {
    last: Option<Vec<u8>>,
}

impl Desk {
    fn read(&mut self, content: io::Result<Vec<u8>>) -> Option<ClearFile> {
        let content = match content {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.last = None;
                return None;
            }
            // As any other content that makes no sense.
            Err(error) => error.to_string().into_bytes(),
        };
        if self.last.as_ref() == Some(&content) {
            return None;
        }
        let word = serde_json::from_slice(&content);
        self.last = Some(content);
        word.inspect_err(|error| warn!(%error, r#"{FILE} is no word of ours: expected {{"gpu":"GPU-…"}} or {{"gpu":null}}"#))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_told_once_however_long_it_lies_and_again_when_it_comes_again() {
        let mut desk = Desk::default();
        let word = || Ok(br#"{"gpu":"GPU-1"}"#.to_vec());
        let told = Some(ClearFile { gpu: Some("GPU-1".to_owned()) });
        assert_eq!(desk.read(word()), told);
        assert_eq!(desk.read(word()), None);
        assert_eq!(desk.read(Ok(br#"{"gpu":null}"#.to_vec())), Some(ClearFile { gpu: None }));
        assert_eq!(desk.read(Err(io::ErrorKind::NotFound.into())), None);
        assert_eq!(desk.read(word()), told);
    }

    #[test]
    fn what_is_no_word_clears_nothing() {
        for bad in ["", "{", "{}", "{}x", r#"{"gpu":7}"#, r#"{"gpus":null}"#] {
            let mut desk = Desk::default();
            assert_eq!(desk.read(Ok(bad.as_bytes().to_vec())), None, "{bad}");
        }
        assert_eq!(Desk::default().read(Err(io::ErrorKind::PermissionDenied.into())), None);
    }
}
