//! What must hold of the parsers of a model's files for any bytes: they come from downloads.

use cic_common::model::header::{LENGTH_BYTES, header_length};
use cic_common::model::{Header, Index, Manifest};

/// By which a manifest of ours is known.
const FORMAT: &str = "cic-manifest/1";

/// A target with the inputs that it begins from.
pub(crate) type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

pub(crate) const TARGETS: [Target; 3] =
    [("header", header, headers), ("index", index, indexes), ("manifest", manifest, manifests)];

/// Writes the inputs of a target into `place`.
///
/// # Panics
/// When it cannot.
pub(crate) fn write_inputs(target: &str, place: &std::path::Path) {
    let (_, _, inputs) = TARGETS.iter().find(|(name, ..)| *name == target).expect("a target");
    for (number, input) in inputs().iter().enumerate() {
        std::fs::write(place.join(format!("input-{number}")), input).expect("written");
    }
}

/// The beginning of a safetensors file whose length is as the last eight bytes say.
///
/// # Panics
/// When a header is taken whose tensors are not the file.
pub(crate) fn header(data: &[u8]) {
    let Some((first, rest)) = data.split_first_chunk::<LENGTH_BYTES>() else { return };
    let Some((json, last)) = rest.split_last_chunk::<LENGTH_BYTES>() else { return };
    let file_length = u64::from_le_bytes(*last);
    if let Ok(length) = header_length(*first, file_length) {
        assert!(length > 0 && length <= file_length);
    }
    let Ok(header) = Header::parse(json, file_length) else { return };
    let tensors: u64 = header.tensors.values().map(|tensor| tensor.end - tensor.begin).sum();
    assert_eq!(header.tensors_at + tensors, file_length);
    let mut spans: Vec<(u64, u64)> =
        header.tensors.values().map(|tensor| (tensor.begin, tensor.end)).collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0].1 == pair[1].0), "{spans:?}");
}

/// # Panics
/// When an index is taken that leads out of its directory.
pub(crate) fn index(data: &[u8]) {
    let Ok(index) = Index::parse(data) else { return };
    assert!(!index.shards().is_empty());
    for (_, shard) in index.iter() {
        assert!(!shard.is_empty() && shard != "." && shard != ".." && !shard.contains(['/', '\\', '\0']));
    }
}

/// # Panics
/// When a manifest is taken that leads out of its directory, or is another after it was written and read again.
pub(crate) fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else { return };
    let mut count = 0;
    for (path, content) in manifest.files() {
        count += 1;
        assert!(path.split('/').all(|name| !["", ".", ".."].contains(&name)), "{path:?}");
        assert!(!path.contains(['\\', '\0', '\n']), "{path:?}");
        assert!(content.blake3.is_some() || content.sha256.is_some(), "{path:?}");
    }
    assert!(count > 0);
    if data.windows(FORMAT.len()).any(|word| word == FORMAT.as_bytes())
        && let Ok(again) = Manifest::parse(manifest.to_json().as_bytes())
    {
        assert_eq!(again, manifest);
    }
}

fn headers() -> Vec<Vec<u8>> {
    let file = |json: &str, tensors: u64| {
        let length = json.len() as u64;
        let all = LENGTH_BYTES as u64 + length + tensors;
        [&length.to_le_bytes()[..], json.as_bytes(), &all.to_le_bytes()[..]].concat()
    };
    vec![
        file(r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4),
        file(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},
               "b":{"dtype":"F8_E4M3","shape":[],"data_offsets":[12,13]},"c":{"dtype":"F4","shape":[2,2],"data_offsets":[13,15]}}"#,
            15,
        ),
        file(r#"{"w":{"dtype":"I64","shape":[18446744073709551615,2],"data_offsets":[0,16]}}"#, 16),
        [&u64::MAX.to_le_bytes()[..], b"{}", &100_u64.to_le_bytes()[..]].concat(),
        b"<!DOCTYPE html><html></html>\0\0\0\0\0\0\0\0".to_vec(),
    ]
}

fn indexes() -> Vec<Vec<u8>> {
    [
        r#"{"metadata":{"total_size":8},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#,
        r#"{"weight_map":{"a":"../model.safetensors"}}"#,
        r#"{"weight_map":{"a":"m","a":"n"}}"#,
        r#"{"weight_map":{}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn manifests() -> Vec<Vec<u8>> {
    let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let native = format!(
        r#"{{"format":"{FORMAT}","piece_bytes":4194304,"files":[
           {{"path":"config.json","size":2,"blake3":"{hash}"}},
           {{"path":"sub/model.safetensors","size":5000000,"blake3":"{hash}","pieces":"{hash}{hash}"}}]}}"#
    );
    let list = format!(r#"[{{"path":"model.safetensors","size":4,"sha256":"{hash}"}}]"#);
    let under_files = format!(r#"{{"files":{list}}}"#);
    let statement = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"name":"m","digest":{{"sha256":"{hash}"}}}}],
           "predicateType":"https://model_signing/signature/v1.0","predicate":{{"resources":[
           {{"name":"model.safetensors","algorithm":"sha256","digest":"{hash}"}}],
           "serialization":{{"method":"files","hash_type":"sha256","allow_symlinks":false,"ignore_paths":[".git"]}}}}}}"#
    );
    [native, list, under_files, statement].map(String::into_bytes).into()
}
