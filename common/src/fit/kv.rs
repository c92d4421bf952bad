//! What the KV cache keeps of each token, and of a whole sequence.

use std::str::FromStr;

use serde::Serialize;

use super::config::{Architecture, Attention, Layer};

/// Tokens that vLLM hands out memory for at a time (`--block-size`).
const BLOCK_TOKENS: u64 = 16;

/// What keys and values are stored in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvDtype {
    /// As the model computes, in 16 bits.
    #[default]
    Auto,
    Bits16,
    Fp8,
}

impl KvDtype {
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Auto | Self::Bits16 => 2,
            Self::Fp8 => 1,
        }
    }

    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Auto | Self::Bits16 => "16 bits",
            Self::Fp8 => "fp8",
        }
    }
}

/// A word that is no type of a KV cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no type of a KV cache that is known here; known are auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2"
)]
pub struct NoKvDtype(String);

impl FromStr for KvDtype {
    type Err = NoKvDtype;

    fn from_str(word: &str) -> Result<Self, NoKvDtype> {
        match word {
            "auto" => Ok(Self::Auto),
            "bfloat16" | "bf16" | "float16" | "fp16" | "half" => Ok(Self::Bits16),
            "fp8" | "fp8_e4m3" | "fp8_e5m2" | "fp8_inc" => Ok(Self::Fp8),
            _ => Err(NoKvDtype(word.to_owned())),
        }
    }
}

/// Bytes that one layer keeps of one token on each of `tensor_parallel` GPUs.
///
/// Keys and values: `2 x heads x head_dim`, where heads are divided as far as there are any. Latent attention: `kv_rank +
/// rope_dim`, which every GPU keeps.
#[must_use]
pub fn layer_token_bytes(attention: &Attention, dtype: KvDtype, tensor_parallel: u64) -> u64 {
    let elements = match attention {
        Attention::Grouped { kv_heads, head_dim, .. } => {
            2 * kv_heads.div_ceil(tensor_parallel.max(1)) * head_dim
        }
        Attention::Latent { kv_rank, rope_dim, .. } => kv_rank + rope_dim,
    };
    elements * dtype.bytes()
}

/// Bytes that the whole model keeps of one token within every window, before it is divided.
#[must_use]
pub fn token_bytes(architecture: &Architecture, dtype: KvDtype) -> u64 {
    architecture.layers.len() as u64 * layer_token_bytes(&architecture.attention, dtype, 1)
}

/// Bytes that `layers` keep of a sequence of `tokens` on each of `tensor_parallel` GPUs. A layer with a window keeps no more
/// than that.
#[must_use]
pub fn sequence_bytes(
    architecture: &Architecture,
    layers: &[Layer],
    dtype: KvDtype,
    tensor_parallel: u64,
    tokens: u64,
) -> u64 {
    let each = layer_token_bytes(&architecture.attention, dtype, tensor_parallel);
    let kept =
        layers.iter().map(|layer| whole_blocks(layer.window.map_or(tokens, |window| window.min(tokens))));
    kept.fold(0, |sum: u64, tokens| sum.saturating_add(tokens.saturating_mul(each)))
}

/// Bytes that the layers with a window need beyond it, for the tokens of one step: these are written before older ones are
/// dropped.
#[must_use]
pub fn step_bytes(
    architecture: &Architecture,
    layers: &[Layer],
    dtype: KvDtype,
    tensor_parallel: u64,
    step_tokens: u64,
) -> u64 {
    let each = layer_token_bytes(&architecture.attention, dtype, tensor_parallel);
    let windowed = layers.iter().filter(|layer| layer.window.is_some()).count() as u64;
    windowed.saturating_mul(each).saturating_mul(whole_blocks(step_tokens))
}

fn whole_blocks(tokens: u64) -> u64 {
    tokens.div_ceil(BLOCK_TOKENS).saturating_mul(BLOCK_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(text: &str) -> Architecture {
        Architecture::parse(text.as_bytes()).expect("reads")
    }

    fn grouped(more: &str) -> Architecture {
        architecture(&format!(
            r#"{{"model_type":"llama","hidden_size":512,"num_hidden_layers":6,"num_attention_heads":8,
            "num_key_value_heads":2,"intermediate_size":128,"vocab_size":100{more}}}"#
        ))
    }

    #[test]
    fn heads_are_divided_as_far_as_there_are_any() {
        let attention = grouped("").attention;
        let on = |parts| layer_token_bytes(&attention, KvDtype::Auto, parts);
        assert_eq!([on(1), on(2), on(4), on(8)], [2 * 2 * 64 * 2, 2 * 64 * 2, 2 * 64 * 2, 2 * 64 * 2]);
        assert_eq!(layer_token_bytes(&attention, KvDtype::Fp8, 1), 2 * 2 * 64);
    }

    #[test]
    fn a_latent_vector_is_kept_by_every_gpu() {
        let latent = Attention::Latent {
            heads: 16,
            query_rank: None,
            kv_rank: 512,
            nope_dim: 128,
            rope_dim: 64,
            value_dim: 128,
        };
        assert_eq!(layer_token_bytes(&latent, KvDtype::Auto, 1), 1152);
        assert_eq!(layer_token_bytes(&latent, KvDtype::Auto, 8), 1152);
    }

    #[test]
    fn a_layer_keeps_no_more_than_its_window() {
        let windowed = grouped(r#","sliding_window":64,"sliding_window_pattern":3"#);
        let each = layer_token_bytes(&windowed.attention, KvDtype::Auto, 1);
        let kept = |tokens| sequence_bytes(&windowed, &windowed.layers, KvDtype::Auto, 1, tokens) / each;
        assert_eq!(kept(1), 6 * 16);
        assert_eq!(kept(64), 6 * 64);
        assert_eq!(kept(1024), 4 * 64 + 2 * 1024);
        assert_eq!(step_bytes(&windowed, &windowed.layers, KvDtype::Auto, 1, 100) / each, 4 * 112);
        let all = grouped("");
        assert_eq!(step_bytes(&all, &all.layers, KvDtype::Auto, 1, 100), 0);
    }

    #[test]
    fn only_known_words_name_a_type() {
        assert_eq!("fp8_e5m2".parse(), Ok(KvDtype::Fp8));
        assert!("int3".parse::<KvDtype>().expect_err("none").to_string().contains("known are auto"));
    }
}
