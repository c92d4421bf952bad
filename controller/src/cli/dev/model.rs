//! The model directory: what must be in one, and a small one for the stand-in engine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use cic_common::model::Index;
use cic_common::model::index::INDEX_NAME as INDEX;

/// What is missing in `directory` for an engine to serve it, one line each.
pub(super) fn mistakes(directory: &Path) -> Vec<String> {
    let shown = directory.display();
    if !directory.is_dir() {
        return vec![format!("--model: there is no directory {shown}")];
    }
    let mut mistakes = Vec::new();
    if !directory.join("config.json").is_file() {
        mistakes.push(format!("--model: {shown} holds no config.json; is it a model directory?"));
    }
    match fs::read(directory.join(INDEX)) {
        Ok(text) => match Index::parse(&text) {
            Ok(index) => {
                let missing = index.shards().into_iter().filter(|shard| !directory.join(shard).is_file());
                mistakes.extend(missing.map(|shard| {
                    format!("--model: {shown} lacks {shard}, which {INDEX} names; fetch or copy it again")
                }));
            }
            Err(error) => mistakes.push(format!("--model: {shown}/{INDEX} {error}; fetch or copy it again")),
        },
        // A small model comes in one file, without an index.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !has_weights(directory) {
                mistakes.push(format!("--model: {shown} holds no .safetensors file; fetch or copy it again"));
            }
        }
        Err(error) => mistakes.push(format!("--model: {shown}/{INDEX} cannot be read: {error}")),
    }
    mistakes
}

fn has_weights(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries
        .flatten()
        .any(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"))
}

/// Writes a model that has the right files and no weights, for the stand-in engine.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write_small(directory: &Path) -> io::Result<()> {
    const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    fs::create_dir_all(directory)?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048,
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    });
    fs::write(directory.join("config.json"), format!("{config:#}\n"))?;
    let mut weight_map = BTreeMap::new();
    for (index, shard) in SHARDS.iter().enumerate() {
        let tensor = format!("model.layers.{index}.weight");
        // safetensors: eight bytes with the length of the JSON header, little-endian, then the header: a tensor without elements.
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}"#);
        let length = u64::try_from(header.len()).unwrap_or(0).to_le_bytes();
        fs::write(directory.join(shard), [&length[..], header.as_bytes()].concat())?;
        weight_map.insert(tensor, *shard);
    }
    let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    fs::write(directory.join(INDEX), format!("{index:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_model_has_all_that_is_asked_for() {
        let directory = tempfile::tempdir().expect("directory");
        write_small(directory.path()).expect("writes");
        assert_eq!(mistakes(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn each_missing_part_is_named() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path();
        write_small(path).expect("writes");
        fs::remove_file(path.join("model-00002-of-00002.safetensors")).expect("removes");
        fs::remove_file(path.join("config.json")).expect("removes");
        let found = mistakes(path);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("config.json"), "{}", found[0]);
        assert!(found[1].contains("lacks model-00002-of-00002.safetensors"), "{}", found[1]);
        fs::write(path.join(INDEX), "{").expect("writes");
        assert!(mistakes(path)[1].contains("is no index of shards"));
        assert!(mistakes(Path::new("/no/such/model"))[0].contains("/no/such/model"));
    }
}
