//! The files of a model, each once, by names that lead nowhere else.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::content::Content;
use super::{foreign, native};

/// Ours, in the model's directory.
pub const MANIFEST_NAME: &str = "cic-manifest.json";

/// That of OpenSSF model signing.
pub const SIGNATURE_NAME: &str = "model.sig";

/// A model of two terabytes has 512,000 pieces of 64 digits each.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What a model's directory holds, by paths relative to it, with `/` between folders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    files: BTreeMap<String, Content>,
    /// Paths that it says nothing of.
    ignored: Vec<String>,
}

/// Why a manifest is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    #[error("is no manifest: {cause}")]
    Json { cause: String },
    #[error(
        "is no manifest that is known here: neither `{}`, nor OpenSSF model signing, nor a list of path, size and sha256",
        native::FORMAT
    )]
    Unknown,
    #[error("is of format {format:?}, which is not known here")]
    Format { format: String },
    #[error("names no file")]
    Empty,
    #[error("path {path:?} leads out of the model's directory, or is not in its shortest form")]
    Path { path: String },
    #[error("{path} stands there twice")]
    Twice { path: String },
    #[error("{path} and {other} differ in case alone, and some file systems keep but one")]
    Case { path: String, other: String },
    #[error("{path}: {cause}")]
    File { path: String, cause: String },
    #[error(
        "its files are hashed by {method:?}, and only \"files\" is known here: sign the model anew without shards"
    )]
    Method { method: String },
    #[error("its files' hashes come to {found}, where its subject says {wanted}: one of them was changed")]
    Root { found: String, wanted: String },
}

impl Manifest {
    /// Reads one of ours, a statement or a bundle of OpenSSF model signing (whose signature is not checked), or a list of
    /// `{"path", "size", "sha256"}`.
    ///
    /// # Errors
    /// When it is none of them, contradicts itself, or names a file elsewhere.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestFault> {
        foreign::parse(json)
    }

    /// As `cic-manifest.json`: a file a line, so that two can be compared.
    #[must_use]
    pub fn to_json(&self) -> String {
        native::write(self)
    }

    /// # Errors
    /// When the name will not do, or is there already.
    pub fn add(&mut self, path: &str, content: Content) -> Result<(), ManifestFault> {
        if !is_plain_path(path) {
            return Err(ManifestFault::Path { path: path.to_owned() });
        }
        if content.blake3.is_none() && content.sha256.is_none() {
            let cause = "neither a BLAKE3 nor a SHA-256 hash is given".to_owned();
            return Err(ManifestFault::File { path: path.to_owned(), cause });
        }
        match self.files.insert(path.to_owned(), content) {
            None => Ok(()),
            Some(_) => Err(ManifestFault::Twice { path: path.to_owned() }),
        }
    }

    pub(super) fn ignore(&mut self, path: String) {
        self.ignored.push(path);
    }

    /// The rules that concern all files together.
    ///
    /// # Errors
    /// When there is none, or two differ in case alone.
    pub fn complete(self) -> Result<Self, ManifestFault> {
        if self.files.is_empty() {
            return Err(ManifestFault::Empty);
        }
        let mut folded = BTreeMap::new();
        for path in self.files.keys() {
            if let Some(other) = folded.insert(path.to_lowercase(), path) {
                return Err(ManifestFault::Case { path: path.clone(), other: other.clone() });
            }
        }
        Ok(self)
    }

    #[must_use]
    pub fn file(&self, path: &str) -> Option<&Content> {
        self.files.get(path)
    }

    /// Each file, in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Content)> {
        self.files.iter().map(|(path, content)| (path.as_str(), content))
    }

    /// Whether a file may be there that the manifest does not name: itself, what it says to ignore, and hidden files, which no
    /// engine loads.
    #[must_use]
    pub fn says_nothing_of(&self, path: &str) -> bool {
        let is_hidden = path.split('/').any(|name| name.starts_with('.'));
        let is_within = |ignored: &String| {
            path.strip_prefix(ignored.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // Whatever a manifest ignores, weights are loaded.
        let is_ignored = !path.ends_with(".safetensors") && self.ignored.iter().any(is_within);
        is_hidden || [MANIFEST_NAME, SIGNATURE_NAME].contains(&path) || is_ignored
    }
}

/// A manifest comes from a download: it must not make its reader look outside the model's directory.
fn is_plain_path(path: &str) -> bool {
    let is_name = |part: Component<'_>| matches!(part, Component::Normal(_));
    let is_shortest = !path.is_empty() && path.split('/').all(|name| !name.is_empty() && name != ".");
    is_shortest && Path::new(path).components().all(is_name) && !path.contains(['\\', '\0', '\n'])
}
