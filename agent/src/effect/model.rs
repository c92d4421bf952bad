//! The model step: the directory is there, every shard its index names is there and whole by its header, and every byte is
//! as the manifest has it.
//!
//! vLLM finds a missing directory after 41 s and a missing shard after 85 s, with a misleading last line, and a flipped byte
//! never; this finds them and names them.
//!
//! ```text
//! models (agent) -> child (a process for each step) -> structure: headers | content: every byte | outline: a digest
//!                                                  | attach: a mount | fetch: from a store | warm: into the page cache
//! ```

use std::io;
use std::path::{Path, PathBuf};

use cic_common::model::Index;
use cic_common::model::index::INDEX_NAME;

use crate::core::ModelFault;

mod attach;
mod child;
pub mod content;
mod desk;
pub mod fetch;
mod models;
mod outline;
pub mod structure;
mod warm;

pub use child::{STEP_COMMAND, StepArgs, step};
pub use desk::{Desk, KnownModel, NeighboursOf};
pub use models::{Badge, Depth, Models, Quiet};

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

fn damaged(path: &Path, cause: String) -> ModelFault {
    ModelFault::Damaged { path: text(path), cause }
}

fn unreadable(path: &Path, error: &io::Error) -> ModelFault {
    ModelFault::Unreadable { path: text(path), cause: error.to_string() }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::child::{mount, worst};
    use super::content::{Finding, Wrong};
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_named_and_may_heal() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        let fault = mount(&path).unwrap_err();
        assert_eq!(fault, ModelFault::NoDirectory { path: text(&path) });
        assert!(fault.may_heal());
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(mount(&path), Err(fault));
        assert!(mount(root.path()).is_ok());
    }

    #[test]
    fn a_model_that_is_not_whole_is_refused_for_good_and_one_that_cannot_be_read_for_now() {
        let root = tempfile::tempdir().unwrap();
        let fault = structure::check(root.path()).unwrap_err();
        assert!(matches!(fault, ModelFault::NoWeights { .. }) && !fault.may_heal(), "{fault}");
        std::fs::write(root.path().join("model.safetensors"), "x").unwrap();
        let fault = structure::check(root.path()).unwrap_err();
        assert!(matches!(fault, ModelFault::Damaged { .. }) && !fault.may_heal(), "{fault}");
        std::fs::write(root.path().join("model.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ").unwrap();
        assert!(structure::check(root.path()).is_ok());
        let gone = root.path().to_owned();
        drop(root);
        assert!(structure::check(&gone).unwrap_err().may_heal());
    }

    #[test]
    fn a_wrong_byte_outweighs_a_failed_reading() {
        let finding = |path: &str, wrong| Finding { path: path.to_owned(), wrong };
        let unread = || finding("a", Wrong::Unreadable { at: 0, cause: "EIO".to_owned() });
        let wrong = || finding("b", Wrong::Bytes { ranges: None });
        let directory = Path::new("/m");
        assert_eq!(worst(directory, &[]), None);
        let fault = worst(directory, &[unread()]).unwrap();
        assert!(fault.may_heal() && fault.to_string().contains("/m/a"), "{fault}");
        let fault = worst(directory, &[unread(), wrong()]).unwrap();
        let said = fault.to_string();
        assert!(!fault.may_heal() && said.contains("/m/b") && said.contains("1 files more"), "{fault}");
    }
}
