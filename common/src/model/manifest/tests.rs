use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::model::tree::{PIECE_BYTES, PieceHasher, Tree, piece_count, piece_span};

const OMS: &str = "https://model_signing/signature/v1.0";

fn content_of(bytes: &[u8]) -> Content {
    let size = bytes.len() as u64;
    let hash = |index| {
        let (begin, length) = piece_span(index, size);
        let mut hasher = PieceHasher::new(index, size);
        hasher.update(&bytes[begin as usize..(begin + length) as usize]);
        hasher.finish()
    };
    let tree = Tree::new((0..piece_count(size)).map(hash).collect()).expect("a piece");
    Content { size: Some(size), blake3: Some(Blake3::Pieces(tree)), sha256: Some(Sha256::of(bytes)) }
}

fn refused(json: &serde_json::Value) -> String {
    Manifest::parse(json.to_string().as_bytes()).expect_err("refused").to_string()
}

#[test]
fn what_was_written_is_read_again() {
    let mut manifest = Manifest::default();
    let large = vec![3; PIECE_BYTES as usize * 2 + 1];
    for (path, bytes) in
        [("config.json", &b"{}"[..]), ("original/m \"1\".safetensors", &large), ("none", b"")]
    {
        manifest.add(path, content_of(bytes)).expect(path);
    }
    let text = manifest.to_json();
    assert_eq!(Manifest::parse(text.as_bytes()), Ok(manifest), "{text}");
    assert_eq!(text.lines().count(), 5, "a line for each file: {text}");
    assert_eq!(text.matches("pieces\":\"").count(), 1, "only what has several pieces lists them");
    // What `b3sum` and `sha256sum` print.
    assert!(text.contains("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"), "{text}");
    assert!(text.contains("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), "{text}");
}

#[test]
fn a_plain_list_is_a_manifest() {
    let entry = json!({"path": "a", "size": 2, "sha256": "ab".repeat(32)});
    for json in [json!([entry]), json!({"files": [entry]})] {
        let manifest = Manifest::parse(json.to_string().as_bytes()).expect("a list");
        let wanted = Content { size: Some(2), blake3: None, sha256: Some(Sha256([0xab; 32])) };
        assert_eq!(manifest.files().collect::<Vec<_>>(), [("a", &wanted)]);
    }
}

#[test]
fn a_signed_model_is_a_manifest_as_statement_and_as_bundle() {
    let resources = json!([
        {"name": "a", "algorithm": "sha256", "digest": "01".repeat(32), "uri": "ignored"},
        {"name": "b/c", "algorithm": "blake3", "digest": "02".repeat(32)},
    ]);
    let root = Sha256::of(&[[1; 32], [2; 32]].concat()).to_string();
    let statement = |root: &str| {
        json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "model", "digest": {"sha256": root}}],
            "predicateType": OMS,
            "predicate": {
                "resources": resources,
                "serialization": {
                    "method": "files", "hash_type": "sha256", "allow_symlinks": false,
                    "ignore_paths": ["my.sig", "cache"]
                }
            }
        })
    };
    let whole = statement(&root);
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "dsseEnvelope": {"payload": STANDARD.encode(whole.to_string()), "signatures": []}
    });
    for json in [&whole, &bundle] {
        let manifest = Manifest::parse(json.to_string().as_bytes()).expect("a signed model");
        assert_eq!(manifest.file("a").and_then(|content| content.sha256), Some(Sha256([1; 32])));
        assert!(matches!(manifest.file("b/c"), Some(Content { blake3: Some(Blake3::Whole(_)), .. })));
        for (path, may_be) in [
            ("my.sig", true),
            ("cache/x", true),
            ("cached", false),
            ("cache/model.safetensors", false),
            (MANIFEST_NAME, true),
            (SIGNATURE_NAME, true),
            (".git/config", true),
            ("sub/my.sig", false),
            ("extra.safetensors", false),
        ] {
            assert_eq!(manifest.says_nothing_of(path), may_be, "{path}");
        }
    }
    assert!(refused(&statement(&"0".repeat(64))).contains("one of them was changed"));
}

#[test]
fn a_manifest_that_contradicts_itself_or_points_elsewhere_is_refused() {
    let hash = "ab".repeat(32);
    let file = |path: &str| json!({"path": path, "size": 1, "blake3": hash});
    let with = |more: serde_json::Value| {
        let mut entry = json!({"path": "a", "size": PIECE_BYTES + 1, "blake3": hash});
        entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"format": "cic-manifest/1", "files": [entry]})
    };
    let files = |files: &[serde_json::Value]| json!({"format": "cic-manifest/1", "files": files});
    for path in ["../a", "/a", "a/../b", "./a", "a//b", "a/", "", ".", "..", "a\\b", "a\nb"] {
        let said = refused(&files(&[file(path)]));
        assert!(said.contains("leads out of the model's directory"), "{path:?}: {said}");
    }
    for (json, said) in [
        (files(&[]), "names no file"),
        (files(&[file("a"), file("a")]), "a stands there twice"),
        (files(&[file("a"), file("A")]), "differ in case alone"),
        (json!({"format": "cic-manifest/2", "files": []}), "\"cic-manifest/2\", which is not known"),
        (json!({"format": "cic-manifest/1", "piece_bytes": 7, "files": [file("a")]}), "pieces of 7 bytes"),
        (json!({}), "is no manifest that is known"),
        (json!("text"), "is no manifest"),
        (
            json!({"predicateType": "https://slsa.dev/provenance/v1", "predicate": null}),
            "is no manifest that",
        ),
        (json!([{"path": "a", "size": 1}]), "neither a BLAKE3 nor a SHA-256"),
        (json!([{"path": "a", "size": -1, "sha256": hash}]), "is no manifest"),
        (json!([{"path": "a", "size": 1, "sha256": "ab"}]), "sha256 \"ab\""),
        (with(json!({"blake3": "xy"})), "blake3 \"xy\""),
        (with(json!({"pieces": hash})), "1 hashes of pieces, where 4194305 bytes have 2"),
        (with(json!({"pieces": "ab".repeat(33)})), "no multiple of 64 digits"),
        (with(json!({"pieces": "ab".repeat(64)})), "do not come to its own"),
        (with(json!({"blake3": null, "sha256": hash, "pieces": hash})), "without the one of the file"),
        (json!({"dsseEnvelope": {"payload": "%"}}), "is no manifest"),
        (
            json!({"predicateType": OMS, "predicate": {"resources": [], "serialization": {"method": "file-shard-9"}}}),
            "file-shard-9",
        ),
        (
            json!({"predicateType": OMS, "predicate": {"serialization": {"method": "files"}, "resources":
                [{"name": "a", "algorithm": "md5", "digest": "00"}]}}),
            "hashed by \"md5\"",
        ),
    ] {
        let found = refused(&json);
        assert!(found.contains(said), "{json}: {found}");
    }
}
