//! The model step: the directory is there, and every shard its index names is there and not empty.
//!
//! vLLM finds a missing directory after 41 s and a missing shard after 85 s, with a misleading last line; this
//! finds them at once and names them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use cic_common::assignment::ModelSpec;
use serde::Deserialize;

use crate::core::ModelFault;

mod outline;

/// A file system that takes longer is stuck, and the step is tried again.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Thousands of small reads, of a network's file system beside a load; nothing but a word waits for them.
const DIGEST_DEADLINE: Duration = Duration::from_secs(180);

/// The index of the largest public model (Llama 3.1 405B, 191 shards) is under 200 KiB.
const INDEX_BYTES_MAX: u64 = 16 << 20;

const INDEX: &str = "model.safetensors.index.json";

/// Whether the model's directory is there and can be read.
///
/// # Errors
/// What is wrong with it, for the core to weigh.
pub async fn mount(model: &ModelSpec) -> Result<(), ModelFault> {
    within(&model.path, STEP_DEADLINE, mount_now(&model.path)).await
}

/// Whether the directory holds all the weights it promises.
///
/// # Errors
/// What is missing, for the core to weigh.
pub async fn verify(model: &ModelSpec) -> Result<(), ModelFault> {
    within(&model.path, STEP_DEADLINE, verify_now(&model.path)).await
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

async fn verify_now(path: &str) -> Result<(), ModelFault> {
    let directory = Path::new(path);
    let index = directory.join(INDEX);
    match tokio::fs::metadata(&index).await {
        Ok(found) if found.len() > INDEX_BYTES_MAX => {
            let cause = format!("{} bytes, more than an index can have", found.len());
            Err(ModelFault::Unreadable { path: text(&index), cause })
        }
        Ok(_) => {
            let bytes = tokio::fs::read(&index).await.map_err(|error| unreadable(&index, &error))?;
            for shard in shards_named(&index, &bytes)? {
                check_shard(&index, directory, &shard).await?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => single_file(directory).await,
        Err(error) => Err(unreadable(&index, &error)),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards_named(index: &Path, bytes: &[u8]) -> Result<BTreeSet<String>, ModelFault> {
    let parsed: Index = serde_json::from_slice(bytes)
        .map_err(|error| ModelFault::Unreadable { path: text(index), cause: error.to_string() })?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(ModelFault::NoWeights { path: text(index) });
    }
    match shards.iter().find(|shard| !is_plain_name(shard)) {
        Some(shard) => Err(ModelFault::Unreadable {
            path: text(index),
            cause: format!("shard {shard:?} is not a plain file name"),
        }),
        None => Ok(shards),
    }
}

/// An index comes from a download: it must not make the agent look outside the model's directory.
fn is_plain_name(shard: &str) -> bool {
    let mut parts = Path::new(shard).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !shard.contains('/')
}

/// The files that an engine loads: those that the index names, else every safetensors file. `None` when the directory
/// cannot be read.
pub(super) async fn weight_files(directory: &Path) -> Option<Vec<PathBuf>> {
    let index = directory.join(INDEX);
    if let Ok(bytes) = tokio::fs::read(&index).await
        && let Ok(shards) = shards_named(&index, &bytes)
    {
        return Some(shards.iter().map(|shard| directory.join(shard)).collect());
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

async fn check_shard(index: &Path, directory: &Path, shard: &str) -> Result<(), ModelFault> {
    let path: PathBuf = directory.join(shard);
    match tokio::fs::metadata(&path).await {
        Ok(found) if found.is_file() && found.len() > 0 => Ok(()),
        Ok(found) if found.is_file() => {
            Err(ModelFault::Unreadable { path: text(&path), cause: "the file is empty".to_owned() })
        }
        Ok(_) => Err(ModelFault::MissingShard { path: text(index), shard: shard.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ModelFault::MissingShard { path: text(index), shard: shard.to_owned() })
        }
        Err(error) => Err(unreadable(&path, &error)),
    }
}

async fn single_file(directory: &Path) -> Result<(), ModelFault> {
    let search = async {
        let mut entries = tokio::fs::read_dir(directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            let is_weights = entry.path().extension().is_some_and(|extension| extension == "safetensors");
            if is_weights && tokio::fs::metadata(entry.path()).await?.len() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match search.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ModelFault::NoWeights { path: text(directory) }),
        Err(error) => Err(unreadable(directory, &error)),
    }
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

    fn index(directory: &Path, shard: &str) {
        let json = format!(r#"{{"weight_map":{{"a":"{shard}","b":"model-2.safetensors"}}}}"#);
        std::fs::write(directory.join(INDEX), json).unwrap();
        std::fs::write(directory.join("model-2.safetensors"), "x").unwrap();
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
    async fn every_shard_the_index_names_must_be_there_and_hold_something() {
        let root = tempfile::tempdir().unwrap();
        let model = model(root.path());
        assert!(matches!(verify(&model).await, Err(ModelFault::NoWeights { .. })));
        index(root.path(), "model-1.safetensors");
        assert!(matches!(
            verify(&model).await,
            Err(ModelFault::MissingShard { shard, .. }) if shard == "model-1.safetensors"
        ));
        std::fs::write(root.path().join("model-1.safetensors"), "").unwrap();
        assert!(matches!(verify(&model).await, Err(ModelFault::Unreadable { .. })));
        std::fs::write(root.path().join("model-1.safetensors"), "x").unwrap();
        assert_eq!(verify(&model).await, Ok(()));
    }

    #[tokio::test]
    async fn a_shard_outside_the_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for shard in ["../secret", "/etc/passwd", "sub/model.safetensors", "..", "", "./a"] {
            index(root.path(), shard);
            let fault = verify(&model(root.path())).await.unwrap_err();
            assert!(fault.to_string().contains("not a plain file name"), "{shard}: {fault}");
        }
    }

    #[tokio::test]
    async fn one_safetensors_file_without_an_index_is_enough() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("model.safetensors"), "x").unwrap();
        assert_eq!(verify(&model(root.path())).await, Ok(()));
        std::fs::write(root.path().join(INDEX), "{").unwrap();
        assert!(matches!(verify(&model(root.path())).await, Err(ModelFault::Unreadable { .. })));
    }
}
