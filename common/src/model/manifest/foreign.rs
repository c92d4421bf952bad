//! Which manifest a text is, and those of others.
//!
//! OpenSSF model signing (OMS 1.0): a Sigstore bundle, or the in-toto statement in it, whose predicate lists each file with
//! its hash; <https://github.com/sigstore/model-transparency>. A plain list: `[{"path", "size", "sha256"}]`, or that under
//! `"files"`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::content::{Blake3, Content, Sha256};
use super::list::{Manifest, ManifestFault};
use super::native::{self, FORMAT, read_blake3, read_sha256};
use crate::model::tree::PIECE_BYTES;

const OMS: &str = "https://model_signing/signature/v1.0";

/// The keys by which one manifest is told from another.
#[derive(Deserialize)]
struct Top<'a> {
    format: Option<String>,
    piece_bytes: Option<u64>,
    #[serde(borrow)]
    files: Option<&'a RawValue>,
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
    #[serde(rename = "predicateType")]
    predicate_type: Option<String>,
    predicate: Option<Predicate>,
    subject: Option<Vec<Subject>>,
}

/// Of the bundle; the signature beside it is for who has the signer's key.
#[derive(Deserialize)]
struct Envelope {
    payload: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct Predicate {
    resources: Vec<Resource>,
    serialization: Serialization,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    digest: String,
    algorithm: String,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

pub(super) fn parse(json: &[u8]) -> Result<Manifest, ManifestFault> {
    if json.trim_ascii_start().starts_with(b"[") {
        return native::read(read(json)?);
    }
    let top: Top<'_> = read(json)?;
    if let Some(Envelope { payload }) = top.envelope {
        let statement = STANDARD.decode(payload).map_err(json_fault)?;
        let statement: Top<'_> = read(&statement)?;
        // One within another is nobody's.
        return statement_of(statement);
    }
    match (&top.format, top.files) {
        (Some(format), _) if format != FORMAT => Err(ManifestFault::Format { format: format.clone() }),
        (format, Some(files)) => {
            if let Some(bytes) = top.piece_bytes.filter(|bytes| format.is_some() && *bytes != PIECE_BYTES) {
                let cause = format!("pieces of {bytes} bytes, where {PIECE_BYTES} are known here");
                return Err(ManifestFault::Json { cause });
            }
            native::read(read(files.get().as_bytes())?)
        }
        _ => statement_of(top),
    }
}

fn statement_of(top: Top<'_>) -> Result<Manifest, ManifestFault> {
    let Some(predicate) = top.predicate.filter(|_| top.predicate_type.as_deref() == Some(OMS)) else {
        return Err(ManifestFault::Unknown);
    };
    let Predicate { resources, serialization: Serialization { method, ignore_paths } } = predicate;
    if method != "files" {
        return Err(ManifestFault::Method { method });
    }
    let mut manifest = Manifest::default();
    ignore_paths.into_iter().for_each(|path| manifest.ignore(path));
    let mut hashes = Vec::new();
    for Resource { name, digest, algorithm } in resources {
        let content = hashed(&digest, &algorithm, &mut hashes)
            .map_err(|cause| ManifestFault::File { path: name.clone(), cause })?;
        manifest.add(&name, content)?;
    }
    let subjects = top.subject.unwrap_or_default();
    if let Some(wanted) = subjects.into_iter().next().and_then(|subject| subject.digest.sha256) {
        let found = Sha256::of(&hashes).to_string();
        if !found.eq_ignore_ascii_case(&wanted) {
            return Err(ManifestFault::Root { found, wanted });
        }
    }
    manifest.complete()
}

/// A file by the one hash that a statement has of it, which also goes into `all`.
fn hashed(digest: &str, algorithm: &str, all: &mut Vec<u8>) -> Result<Content, String> {
    let nothing = Content { size: None, blake3: None, sha256: None };
    match algorithm {
        "sha256" => {
            let sha256 = read_sha256(digest)?;
            all.extend(sha256.0);
            Ok(Content { sha256: Some(sha256), ..nothing })
        }
        "blake3" => {
            let root = read_blake3(digest)?;
            all.extend(root.as_bytes());
            Ok(Content { blake3: Some(Blake3::Whole(root)), ..nothing })
        }
        other => Err(format!("hashed by {other:?}; only sha256 and blake3 are known here")),
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, ManifestFault> {
    serde_json::from_slice(json).map_err(json_fault)
}

fn json_fault(error: impl std::fmt::Display) -> ManifestFault {
    ManifestFault::Json { cause: error.to_string() }
}
