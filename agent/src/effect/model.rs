//! The model step: the directory is there, and every shard its index names is there and whole by its header.
//!
//! vLLM finds a missing directory after 41 s and a missing shard after 85 s, with a misleading last line; this
//! finds them at once and names them.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::assignment::ModelSpec;
use cic_common::model::Index;
use cic_common::model::index::INDEX_NAME;

use crate::core::ModelFault;

mod outline;
pub mod structure;

/// A file system that takes longer is stuck, and the step is tried again.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Thousands of small reads, of a network's file system beside a load; nothing but a word waits for them.
const DIGEST_DEADLINE: Duration = Duration::from_secs(180);

/// Hundreds of headers of a network's file system, beside other loads.
const VERIFY_DEADLINE: Duration = Duration::from_secs(60);

/// Whether the model's directory is there and can be read.
///
/// # Errors
/// What is wrong with it, for the core to weigh.
pub async fn mount(model: &ModelSpec) -> Result<(), ModelFault> {
    within(&model.path, STEP_DEADLINE, mount_now(&model.path)).await
}

/// Whether the directory holds all the weights it promises, as far as lengths and headers tell.
///
/// # Errors
/// What is wrong, for the core to weigh.
pub async fn verify(model: &ModelSpec) -> Result<(), ModelFault> {
    let path = PathBuf::from(&model.path);
    within(&model.path, VERIFY_DEADLINE, async {
        let checking = tokio::task::spawn_blocking(move || structure::check(&path)).await;
        checking
            .map_err(|error| unreadable(Path::new(&model.path), &io::Error::other(error.to_string())))??;
        Ok(())
    })
    .await
}

/// Names what the directory holds: SHA-256 over each file's name and length, over small files whole, and over the header of
/// each safetensors file, which lists its tensors, and a megabyte of its weights. To read them all takes minutes.
///
/// # Errors
/// When a file cannot be read in time.
pub async fn digest(model: &ModelSpec) -> Result<String, ModelFault> {
    let path = PathBuf::from(&model.path);
    within(&model.path, DIGEST_DEADLINE, async {
        let reading = tokio::task::spawn_blocking(move || outline::digest(&path));
        let read = reading.await.map_err(|error| io::Error::other(error.to_string()));
        read.flatten().map_err(|error| unreadable(Path::new(&model.path), &error))
    })
    .await
}

async fn within<T>(
    path: &str,
    limit: Duration,
    step: impl Future<Output = Result<T, ModelFault>>,
) -> Result<T, ModelFault> {
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| {
        let cause = format!("no answer from the file system within {} s", limit.as_secs());
        Err(ModelFault::Unreadable { path: path.to_owned(), cause })
    })
}

async fn mount_now(path: &str) -> Result<(), ModelFault> {
    match tokio::fs::metadata(path).await {
        Ok(found) if !found.is_dir() => return Err(ModelFault::NoDirectory { path: path.to_owned() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ModelFault::NoDirectory { path: path.to_owned() });
        }
        Err(error) => return Err(unreadable(Path::new(path), &error)),
    }
    let read = async { tokio::fs::read_dir(path).await?.next_entry().await };
    read.await.map(|_| ()).map_err(|error| unreadable(Path::new(path), &error))
}

/// The files that an engine loads: those that the index names, else every safetensors file. `None` when the directory
/// cannot be read.
pub(super) async fn weight_files(directory: &Path) -> Option<Vec<PathBuf>> {
    let index = directory.join(INDEX_NAME);
    if let Ok(bytes) = tokio::fs::read(&index).await
        && let Ok(index) = Index::parse(&bytes)
    {
        return Some(index.shards().iter().map(|shard| directory.join(shard)).collect());
    }
    let mut found = Vec::new();
    let mut entries = tokio::fs::read_dir(directory).await.ok()?;
    while let Some(entry) = entries.next_entry().await.ok()? {
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            found.push(entry.path());
        }
    }
    Some(found)
}

fn unreadable(path: &Path, error: &io::Error) -> ModelFault {
    ModelFault::Unreadable { path: text(path), cause: error.to_string() }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(path: &Path) -> ModelSpec {
        ModelSpec { name: "tiny".to_owned(), path: text(path) }
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_named_and_may_heal() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        let fault = mount(&model(&path)).await.unwrap_err();
        assert_eq!(fault, ModelFault::NoDirectory { path: text(&path) });
        assert!(fault.may_heal());
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(mount(&model(&path)).await, Err(fault));
        assert_eq!(mount(&model(root.path())).await, Ok(()));
    }

    #[tokio::test]
    async fn a_model_that_is_not_whole_is_refused_for_good_and_one_that_cannot_be_read_for_now() {
        let root = tempfile::tempdir().unwrap();
        let model = model(root.path());
        let fault = verify(&model).await.unwrap_err();
        assert!(matches!(fault, ModelFault::NoWeights { .. }) && !fault.may_heal(), "{fault}");
        std::fs::write(root.path().join("model.safetensors"), "x").unwrap();
        let fault = verify(&model).await.unwrap_err();
        assert!(matches!(fault, ModelFault::Damaged { .. }) && !fault.may_heal(), "{fault}");
        std::fs::write(root.path().join("model.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ").unwrap();
        assert_eq!(verify(&model).await, Ok(()));
        drop(root);
        assert!(verify(&model).await.unwrap_err().may_heal());
    }
}
