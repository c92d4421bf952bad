//! An operator's word that a GPU is good again: a file in the state directory, `{"gpu":"GPU-…"}` or `{"gpu":null}` for
//! all.
//!
//! ```text
//! write_clear: gpu-clear-<unix ms>-<pid>-<n>.json ─┐
//! by hand:     gpu-clear.json ─────────────────────┴─renamed─▶ gpu-clear.taken-<n> ──read──▶ told ──▶ removed
//! ```
//! Each word has a file of its own, and only a name that no writer uses is read and removed: none overwrites another,
//! and none is removed unread. What an earlier run took and did not tell is told by the next.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cic_common::supervise::TaskResult;
use cic_common::time::unix_ms;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::core::Event;
use crate::core::gpu::GpuEvent;

/// The name that a person gives it.
const BY_HAND: &str = "gpu-clear.json";

/// Around the rest of a name that [`write_clear`] gives it.
const PREFIX: &str = "gpu-clear-";
const SUFFIX: &str = ".json";

/// Before the number of one that was taken.
const TAKEN: &str = "gpu-clear.taken-";

/// Words dealt with at one look; the others wait for the next.
const WORDS_MAX: usize = 64;

/// How long a word can lie unread. A person waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file system that takes longer is looked at again at the next turn.
const DISK_DEADLINE: Duration = Duration::from_secs(2);

/// Words of this process, so that two within a millisecond are two.
static WRITTEN_COUNT: AtomicU32 = AtomicU32::new(0);

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
    let number = WRITTEN_COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{}-{number}{SUFFIX}", unix_ms(), std::process::id());
    let unfinished = state_dir.join(format!("{name}.tmp"));
    std::fs::write(&unfinished, serde_json::to_vec(&ClearFile { gpu })?)?;
    std::fs::rename(unfinished, state_dir.join(name))
}

/// Looks into `state_dir` until cancelled.
///
/// # Errors
/// Never; the signature is that of a task.
pub async fn watch(state_dir: PathBuf, events: mpsc::Sender<Event>, token: CancellationToken) -> TaskResult {
    let mut desk = Desk { state_dir, lying: BTreeMap::new() };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        // Both arms are cancel safe: a tick that is dropped comes again.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        for name in desk.take().await {
            let Some(word) = desk.read(&name).await else { continue };
            info!(gpu = word.gpu.as_deref().unwrap_or("all"), "an operator clears");
            if events.send(Event::Gpu(GpuEvent::Cleared { gpu: word.gpu })).await.is_err() {
                return Ok(());
            }
            // Told first: a word that is told twice does no harm, one that is lost does.
            desk.remove(name).await;
        }
    }
}

/// What became of a file that still lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lying {
    /// It cannot be moved; complained of.
    Stuck,
    /// It is no word, or half of one that is being written: what it said at the last look.
    Unclear(Vec<u8>),
    /// It was dealt with and cannot be removed; complained of.
    Done,
}

/// The state directory with the words in it.
#[derive(Debug)]
struct Desk {
    state_dir: PathBuf,
    /// By name; only of files that were there at the last look.
    lying: BTreeMap<String, Lying>,
}

impl Desk {
    /// Gives each new word a name of ours. Returns those that are to be read, oldest first.
    async fn take(&mut self) -> Vec<String> {
        let Ok(names) = within(names(&self.state_dir)).await else { return Vec::new() };
        self.lying.retain(|name, _| names.contains(name));
        let mut taken: BTreeMap<u64, String> =
            names.iter().filter_map(|name| Some((number_in(name)?, name.clone()))).collect();
        for name in names.into_iter().filter(|name| is_new(name)).take(WORDS_MAX) {
            let number = taken.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
            let own = format!("{TAKEN}{number}");
            let (from, to) = (self.state_dir.join(&name), self.state_dir.join(&own));
            match within(tokio::fs::rename(&from, to)).await {
                Ok(()) => drop(taken.insert(number, own)),
                Err(error) => {
                    if self.lying.insert(name, Lying::Stuck).is_none() {
                        warn!(path = %from.display(), %error, "the operator's word cannot be taken");
                    }
                }
            }
        }
        let is_open = |name: &String| self.lying.get(name) != Some(&Lying::Done);
        taken.into_values().filter(is_open).take(WORDS_MAX).collect()
    }

    /// What it says. One that makes no sense may be half written: it is judged when it says the same at the next look,
    /// and removed then.
    async fn read(&mut self, name: &str) -> Option<ClearFile> {
        let content = match within(tokio::fs::read(self.state_dir.join(name))).await {
            Ok(content) => content,
            // As any other content that makes no sense.
            Err(error) => error.to_string().into_bytes(),
        };
        let error = match serde_json::from_slice(&content) {
            Ok(word) => return Some(word),
            Err(error) => error,
        };
        let said = Lying::Unclear(content);
        if self.lying.get(name) == Some(&said) {
            warn!(%error, r#"no word of ours in {BY_HAND}: expected {{"gpu":"GPU-…"}} or {{"gpu":null}}"#);
            self.remove(name.to_owned()).await;
        } else {
            self.lying.insert(name.to_owned(), said);
        }
        None
    }

    async fn remove(&mut self, name: String) {
        let path = self.state_dir.join(&name);
        match within(tokio::fs::remove_file(&path)).await {
            Ok(()) => drop(self.lying.remove(&name)),
            Err(error) => {
                warn!(path = %path.display(), %error, "the operator's word cannot be removed");
                self.lying.insert(name, Lying::Done);
            }
        }
    }
}

/// The names of ours in `state_dir`, in order: the one by hand first, then those of the command by their time.
async fn names(state_dir: &Path) -> io::Result<Vec<String>> {
    let mut entries = tokio::fs::read_dir(state_dir).await?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_new(&name) || number_in(&name).is_some() {
            names.push(name);
        }
    }
    names.sort_by_key(|name| (name != BY_HAND, name.clone()));
    Ok(names)
}

fn is_new(name: &str) -> bool {
    name == BY_HAND || (name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// The number of one that was taken.
fn number_in(name: &str) -> Option<u64> {
    name.strip_prefix(TAKEN)?.parse().ok()
}

async fn within<T>(act: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(DISK_DEADLINE, act).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one look finds.
    async fn look(desk: &mut Desk) -> Vec<Option<String>> {
        let mut words = Vec::new();
        for name in desk.take().await {
            if let Some(word) = desk.read(&name).await {
                words.push(word.gpu);
                desk.remove(name).await;
            }
        }
        words
    }

    fn desk() -> (tempfile::TempDir, Desk) {
        let state = tempfile::tempdir().unwrap();
        let desk = Desk { state_dir: state.path().to_owned(), lying: BTreeMap::new() };
        (state, desk)
    }

    fn left(desk: &Desk) -> usize {
        std::fs::read_dir(&desk.state_dir).unwrap().count()
    }

    #[tokio::test]
    async fn each_word_is_told_once_in_order_however_many_come_within_a_look() {
        let (state, mut desk) = desk();
        let one = Some("GPU-1".to_owned());
        let words = [one.clone(), None, one.clone(), one.clone()];
        for word in &words {
            write_clear(state.path(), word.clone()).unwrap();
        }
        assert_eq!(look(&mut desk).await, words);
        assert_eq!((look(&mut desk).await, left(&desk)), (vec![], 0));
        write_clear(state.path(), one.clone()).unwrap();
        assert_eq!(look(&mut desk).await, [one], "the same again is another");
    }

    #[tokio::test]
    async fn a_word_by_hand_is_a_word_also_while_another_is_read() {
        let (state, mut desk) = desk();
        let by_hand = |text: &str| std::fs::write(state.path().join(BY_HAND), text).unwrap();
        by_hand(r#"{"gpu":"GPU-1"}"#);
        let [name] = desk.take().await.try_into().unwrap();
        by_hand(r#"{"gpu":null}"#);
        assert_eq!(desk.read(&name).await, Some(ClearFile { gpu: Some("GPU-1".to_owned()) }));
        desk.remove(name).await;
        assert_eq!((look(&mut desk).await, left(&desk)), (vec![None], 0));
    }

    #[tokio::test]
    async fn what_an_earlier_run_took_and_did_not_tell_is_told() {
        let (state, mut desk) = desk();
        write_clear(state.path(), Some("GPU-1".to_owned())).unwrap();
        desk.take().await;
        let mut next = Desk { state_dir: state.path().to_owned(), lying: BTreeMap::new() };
        write_clear(state.path(), None).unwrap();
        assert_eq!(look(&mut next).await, [Some("GPU-1".to_owned()), None]);
    }

    #[tokio::test]
    async fn a_word_that_is_still_being_written_is_waited_for_and_what_is_none_clears_nothing() {
        let (state, mut desk) = desk();
        let path = state.path().join(BY_HAND);
        std::fs::write(&path, r#"{"gpu""#).unwrap();
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        assert_eq!(look(&mut desk).await, []);
        io::Write::write_all(&mut writer, br#":"GPU-1"}"#).unwrap();
        assert_eq!(look(&mut desk).await, [Some("GPU-1".to_owned())]);
        for bad in ["", "{", "{}", "{}x", r#"{"gpu":7}"#, r#"{"gpus":null}"#] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!((look(&mut desk).await, left(&desk)), (vec![], 1), "{bad}");
            assert_eq!((look(&mut desk).await, left(&desk)), (vec![], 0), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_dealt_with_once() {
        let (state, mut desk) = desk();
        std::fs::create_dir(state.path().join(BY_HAND)).unwrap();
        for _ in 0..4 {
            assert_eq!((look(&mut desk).await, left(&desk)), (vec![], 1));
        }
        assert_eq!(desk.lying.values().collect::<Vec<_>>(), [&Lying::Done]);
        write_clear(state.path(), None).unwrap();
        assert_eq!(look(&mut desk).await, [None]);
    }
}
