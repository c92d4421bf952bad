//! The text files of the repository, read once.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::source::{Source, test_modules};

/// Larger files are data; no rule is about them.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One Rust file, lexed.
#[derive(Debug)]
pub(super) struct RustFile {
    pub(super) path: String,
    pub(super) source: Source,
    /// The whole file exists for tests only.
    pub(super) is_test: bool,
}

impl RustFile {
    /// Whether line `number` (from 1) is compiled for tests only.
    pub(super) fn is_test_line(&self, number: usize) -> bool {
        self.is_test || self.source.is_test_line(number)
    }

    pub(super) fn is_under(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Path from the root and text, sorted by path.
    pub(super) texts: Vec<(String, String)>,
    pub(super) rust: Vec<RustFile>,
    /// Every path, those of binary files included.
    pub(super) paths: BTreeSet<String>,
}

impl Tree {
    /// What git tracks or would track below `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("cannot start git")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        let mut paths = Vec::new();
        let mut texts = Vec::new();
        for path in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|path| !path.is_empty()) {
            let file = root.join(path);
            // A file deleted and not yet committed is still listed.
            let Ok(metadata) = file.metadata() else { continue };
            paths.push(path.to_owned());
            if metadata.len() <= FILE_BYTES_MAX
                && let Ok(text) = String::from_utf8(std::fs::read(&file)?)
            {
                texts.push((path.to_owned(), text));
            }
        }
        Ok(Self::new(texts, paths))
    }

    fn new(mut texts: Vec<(String, String)>, paths: Vec<String>) -> Self {
        texts.sort();
        texts.dedup();
        let sources: Vec<(String, Source)> = texts
            .iter()
            .filter(|(path, _)| path.ends_with(".rs"))
            .map(|(path, text)| (path.clone(), Source::new(text)))
            .collect();
        let test_paths: BTreeSet<String> =
            sources.iter().flat_map(|(path, source)| test_modules(path, source)).collect();
        let rust = sources
            .into_iter()
            .map(|(path, source)| {
                let is_test = path.starts_with("tests/")
                    || path.contains("/tests/")
                    || test_paths.iter().any(|test| path == *test || is_below(&path, test));
                RustFile { path, source, is_test }
            })
            .collect();
        Self { texts, rust, paths: paths.into_iter().collect() }
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let texts: Vec<_> = files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        let paths = texts.iter().map(|(path, _)| path.clone()).collect();
        Self::new(texts, paths)
    }
}

/// Whether `path` lies in the folder that belongs to module file `module` (`a/b.rs` or `a/b/mod.rs`).
fn is_below(path: &str, module: &str) -> bool {
    let folder = module.strip_suffix("/mod.rs").or_else(|| module.strip_suffix(".rs")).unwrap_or(module);
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}
