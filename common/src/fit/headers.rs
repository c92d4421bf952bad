//! The weights that a model's files have, by the names in their headers.

use super::config::Architecture;
use super::count::{count, kv_heads};
use super::quantization::{PLAIN_BYTES, Quantization};
use super::weights::{Shares, Source, Weights};
use crate::model::{Dtype, Tensor};

/// Sums up the tensors of all files of a model.
///
/// What cannot be told by its name is taken to be divided evenly; a name that no part of the model is known by counts
/// among the layers' first.
#[must_use]
pub fn weights<'a>(
    architecture: &Architecture,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Weights {
    let layer_count = architecture.layers.len();
    let mut weights = Weights {
        source: Source::Headers,
        parameters: count(architecture).parameters,
        kv_heads: kv_heads(&architecture.attention),
        ties_embeddings: architecture.ties_embeddings,
        embedding: Shares::default(),
        layers: vec![Shares::default(); layer_count],
        head: Shares::default(),
        mtp: Shares::default(),
        vision: Shares::default(),
    };
    let is_plain = architecture.scheme.quantization == Quantization::Plain;
    for (name, tensor) in tensors {
        let mut bytes = tensor.end.saturating_sub(tensor.begin);
        if is_plain && tensor.dtype == Dtype::F32 {
            bytes = bytes / 4 * PLAIN_BYTES;
        }
        let shares = shares(name, bytes);
        let place = match (is_of_vision(name), layer_of(name)) {
            (true, _) => &mut weights.vision,
            (false, Some(layer)) if layer < layer_count => &mut weights.layers[layer],
            (false, Some(_)) => &mut weights.mtp,
            (false, None) => match end_of(name) {
                End::Embedding => &mut weights.embedding,
                // A checkpoint may hold the tied head all the same; an engine loads it once.
                End::Head if architecture.ties_embeddings && name.contains("lm_head") => continue,
                End::Head => &mut weights.head,
            },
        };
        *place = place.plus(&shares);
    }
    weights
}

enum End {
    Embedding,
    Head,
}

fn end_of(name: &str) -> End {
    let is_embedding = ["embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings"];
    if is_embedding.iter().any(|word| name.contains(word)) { End::Embedding } else { End::Head }
}

fn is_of_vision(name: &str) -> bool {
    ["vision", "visual", "multi_modal", "mm_projector"].iter().any(|word| name.contains(word))
}

/// The number behind `layers` or `h`.
fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.').peekable();
    while let Some(part) = parts.next() {
        if matches!(part, "layers" | "h" | "blocks") {
            return parts.peek().and_then(|number| number.parse().ok());
        }
    }
    None
}

fn shares(name: &str, bytes: u64) -> Shares {
    let is_of = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let is_whole = is_of(&["norm", "router", ".gate.", "q_a_proj", "kv_a_proj", "eh_proj", "sinks"])
        || name.ends_with("bias")
        || is_of_vision(name);
    if is_whole {
        Shares { whole: bytes, ..Shares::default() }
    } else if is_of(&["k_proj", "v_proj"]) {
        Shares { by_kv_head: bytes, ..Shares::default() }
    } else {
        Shares { even: bytes, ..Shares::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tensor;

    const CONFIG: &str = r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"intermediate_size":128,"vocab_size":100,"tie_word_embeddings":true,
        "num_nextn_predict_layers":1}"#;

    fn tensor(dtype: Dtype, elements: u64) -> Tensor {
        Tensor { dtype, shape: vec![elements], begin: 0, end: elements * dtype.bits() / 8 }
    }

    #[test]
    fn a_tensor_counts_where_its_name_says() {
        let architecture = Architecture::parse(CONFIG.as_bytes()).expect("reads");
        let held = [
            ("model.embed_tokens.weight", tensor(Dtype::BF16, 6400)),
            ("lm_head.weight", tensor(Dtype::BF16, 6400)),
            ("model.norm.weight", tensor(Dtype::BF16, 64)),
            ("model.layers.1.self_attn.q_proj.weight", tensor(Dtype::BF16, 4096)),
            ("model.layers.1.self_attn.k_proj.weight", tensor(Dtype::BF16, 2048)),
            ("model.layers.1.input_layernorm.weight", tensor(Dtype::F32, 64)),
            ("model.layers.2.eh_proj.weight", tensor(Dtype::BF16, 10)),
            ("vision_tower.encoder.layers.0.mlp.fc1.weight", tensor(Dtype::BF16, 9)),
        ];
        let counted = weights(&architecture, held.iter().map(|(name, tensor)| (*name, tensor)));
        assert_eq!(counted.embedding, Shares { even: 12_800, ..Shares::default() });
        assert_eq!(counted.head, Shares { whole: 128, ..Shares::default() });
        assert_eq!(counted.layers[0], Shares::default());
        assert_eq!(counted.layers[1], Shares { even: 8192, by_kv_head: 4096, whole: 128 });
        assert_eq!(counted.mtp.whole, 20);
        assert_eq!(counted.vision.whole, 18);
    }
}
