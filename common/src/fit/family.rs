//! What a family of models has that its config.json does not say.

/// Of one `model_type`, where it differs from a Llama.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Family {
    /// The feed-forward part has a gate: three matrices, else two.
    pub(super) is_gated: bool,
    /// Biases of the query, key and value projections, where the config names no `attention_bias`.
    pub(super) has_qkv_bias: bool,
    /// Biases of the feed-forward part and of the output projection, likewise.
    pub(super) has_other_bias: bool,
    /// Queries and keys are normalized head by head.
    pub(super) has_head_norms: bool,
    /// Where the config names no `tie_word_embeddings`.
    pub(super) ties_embeddings: bool,
    /// Vectors as long as the hidden state in one layer: weights and biases of its norms.
    pub(super) norm_vectors: u64,
    /// Where the config names no `head_dim`; else the hidden size divided among the heads.
    pub(super) head_dim: Option<u64>,
    /// Each such layer sees everything, those between them a window, where the config does not say.
    pub(super) window_period: Option<u64>,
    /// What else the defaults of its configuration class say.
    pub(super) defaults: &'static [(&'static str, u64)],
}

const LLAMA: Family = Family {
    is_gated: true,
    has_qkv_bias: false,
    has_other_bias: false,
    has_head_norms: false,
    ties_embeddings: false,
    norm_vectors: 2,
    head_dim: None,
    window_period: None,
    defaults: &[],
};

const QWEN2: Family = Family { has_qkv_bias: true, ..LLAMA };
const QWEN3: Family = Family { has_head_norms: true, head_dim: Some(128), ..LLAMA };
const GEMMA: Family = Family { ties_embeddings: true, head_dim: Some(256), ..LLAMA };
const GEMMA2: Family = Family { norm_vectors: 4, window_period: Some(2), ..GEMMA };
/// Gemma 3 is published with few of its numbers; the others are those of `Gemma3TextConfig`.
const GEMMA3: Family = Family {
    has_head_norms: true,
    window_period: Some(6),
    defaults: &[
        ("vocab_size", 262_208),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 131_072),
    ],
    ..GEMMA2
};
/// Two matrices and, with one norm for both halves of a layer, its weight and its bias.
const FALCON: Family = Family {
    is_gated: false,
    ties_embeddings: true,
    defaults: &[("max_position_embeddings", 2048)],
    ..LLAMA
};
const BIASED: Family =
    Family { is_gated: false, has_qkv_bias: true, has_other_bias: true, norm_vectors: 4, ..LLAMA };
const COHERE: Family = Family { ties_embeddings: true, norm_vectors: 1, window_period: Some(4), ..LLAMA };

impl Family {
    /// Of a `model_type`; `None` for one that is not known, which is best counted as a Llama.
    pub(super) fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" | "mistral" | "mixtral" | "ministral" | "phi3" | "deepseek" | "deepseek_v2"
            | "deepseek_v3" | "kimi_k2" | "gpt_oss" | "llama4_text" | "granite" | "olmo" | "olmo2"
            | "olmoe" | "glm4_moe" | "smollm3" => LLAMA,
            "qwen2" | "qwen2_moe" | "qwen2_vl" | "qwen2_5_vl" | "qwen2_5_vl_text" | "qwen2_vl_text" => QWEN2,
            "glm" | "glm4" => Family { norm_vectors: 4, has_qkv_bias: true, ..LLAMA },
            "qwen3" | "qwen3_moe" | "qwen3_vl_text" | "qwen3_vl_moe_text" => QWEN3,
            "gemma" => GEMMA,
            "gemma2" => GEMMA2,
            "gemma3" | "gemma3_text" => GEMMA3,
            "falcon" => FALCON,
            "phi" => Family { norm_vectors: 2, ..BIASED },
            "starcoder2" | "gpt_neox" => BIASED,
            "nemotron" => Family { is_gated: false, norm_vectors: 4, ..LLAMA },
            "cohere" => Family { window_period: None, ..COHERE },
            "cohere2" => COHERE,
            _ => return None,
        })
    }

    /// What a family is counted as that is not known.
    pub(super) const UNKNOWN: Self = LLAMA;
}
