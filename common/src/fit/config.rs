//! The architecture that a config.json describes.

use serde_json::{Map, Value};

use super::family::Family;
use super::layers;
use super::quantization::{Quantization, Scheme};
use super::vision::{self, Vision};

/// The file's name, in the model's directory.
pub const CONFIG_NAME: &str = "config.json";

/// Published ones have some kilobytes.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Largest value of any number that is multiplied with others, several times what any published model has: what is counted
/// then stays within 64 bits.
const NUMBER_MAX: u64 = 1 << 20;

/// For the one number that exceeds that: positions.
const POSITIONS_MAX: u64 = 1 << 30;

const LAYERS_MAX: u64 = 1_000;
const HEADS_MAX: u64 = 4_096;
const EXPERTS_MAX: u64 = 4_096;

/// Objects in which a model of several modalities keeps what describes its language model.
const TEXT_KEYS: [&str; 4] = ["text_config", "llm_config", "language_config", "thinker_config"];

/// A decoder, as far as its size goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Architecture {
    /// `model_type`.
    pub family: String,
    /// Counted by the rules of its family, not as if it were a Llama.
    pub is_known_family: bool,
    pub hidden: u64,
    pub vocabulary: u64,
    /// Tokens that a sequence may have.
    pub positions: Option<u64>,
    /// What an engine takes for it that is told nothing, where that is less.
    pub length_default: Option<u64>,
    pub ties_embeddings: bool,
    pub attention: Attention,
    pub layers: Vec<Layer>,
    /// Layers behind the last one that predict further tokens.
    pub mtp_layers: u64,
    /// Matrices of a feed-forward part: three with a gate, else two.
    pub mlp_matrices: u64,
    pub has_mlp_bias: bool,
    /// Vectors as long as the hidden state in one layer.
    pub norm_vectors: u64,
    pub experts: Option<Experts>,
    pub vision: Option<Vision>,
    pub scheme: Scheme,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Tokens that it looks back, where not all.
    pub window: Option<u64>,
    pub mlp: Mlp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    Dense {
        intermediate: u64,
    },
    /// [`Architecture::experts`].
    Experts,
}

/// What is kept of each token, and by which matrices it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Keys and values for each of `kv_heads` heads: as many as heads (MHA), one (MQA), or between (GQA).
    Grouped {
        heads: u64,
        kv_heads: u64,
        head_dim: u64,
        has_qkv_bias: bool,
        has_output_bias: bool,
        has_head_norms: bool,
        /// A number for each head that takes attention off all tokens (gpt-oss).
        has_sinks: bool,
    },
    /// One vector of `kv_rank + rope_dim` for all heads (MLA of DeepSeek-V2).
    Latent { heads: u64, query_rank: Option<u64>, kv_rank: u64, nope_dim: u64, rope_dim: u64, value_dim: u64 },
}

impl Attention {
    #[must_use]
    pub fn heads(&self) -> u64 {
        match self {
            Self::Grouped { heads, .. } | Self::Latent { heads, .. } => *heads,
        }
    }
}

/// The experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub count: u64,
    /// That one token goes through.
    pub chosen: u64,
    pub intermediate: u64,
    /// Of the experts that all tokens go through, together; 0 for none.
    pub shared_intermediate: u64,
    /// The shared ones have a gate of their own (Qwen2-MoE).
    pub has_shared_gate: bool,
    /// Experts and router have biases (gpt-oss).
    pub has_bias: bool,
}

/// Why a config.json is of no use here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    #[error("is no JSON object: {cause}")]
    Json { cause: String },
    #[error("has no key {key:?}, without which {what} cannot be counted")]
    Missing { key: &'static str, what: &'static str },
    #[error("has {value} for {key:?}, which must be {wanted}")]
    Wrong { key: String, value: String, wanted: String },
    #[error("has {what}, which cannot be counted here")]
    Unsupported { what: String },
}

impl Architecture {
    /// Reads a config.json.
    ///
    /// # Errors
    /// Which key is missing, of no use, or says something that is not known how to count.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigFault> {
        let whole: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| ConfigFault::Json { cause: error.to_string() })?;
        let text = TEXT_KEYS.iter().find_map(|key| whole.get(*key)?.as_object());
        let own = text.filter(|_| !whole.contains_key("hidden_size")).unwrap_or(&whole);
        let family_name = ["model_type"].iter().find_map(|key| own.get(*key).or(whole.get(*key))?.as_str());
        let family_name = family_name.unwrap_or("").to_owned();
        let family = Family::of(&family_name);
        let is_known_family = family.is_some();
        let family = family.unwrap_or(Family::UNKNOWN);
        let fields = Fields { own, whole: &whole, defaults: family.defaults };
        refuse_unsupported(&fields)?;

        let hidden = fields.needed(&["hidden_size", "n_embd", "d_model"], "a matrix")?;
        let layer_count = fields
            .bounded(&["num_hidden_layers", "n_layer", "num_layers"], LAYERS_MAX)?
            .ok_or(ConfigFault::Missing { key: "num_hidden_layers", what: "the layers" })?;
        let experts = experts(&fields, &family_name)?;
        Ok(Self {
            is_known_family,
            hidden,
            vocabulary: fields.needed(&["vocab_size"], "the embeddings")?,
            positions: positions(&fields)?,
            length_default: length_default(&fields),
            ties_embeddings: fields.flag("tie_word_embeddings").unwrap_or(family.ties_embeddings),
            attention: attention(&fields, &family, &family_name, hidden)?,
            layers: layers::layers(&fields, &family, &family_name, layer_count, experts.is_some())?,
            mtp_layers: fields.bounded(&["num_nextn_predict_layers"], LAYERS_MAX)?.unwrap_or(0),
            mlp_matrices: if family.is_gated { 3 } else { 2 },
            has_mlp_bias: fields
                .flag("mlp_bias")
                .or(fields.flag("use_bias"))
                .unwrap_or(family.has_other_bias),
            norm_vectors: family.norm_vectors,
            experts,
            vision: vision::parse(&whole)?,
            scheme: scheme(&fields)?,
            family: family_name,
        })
    }

    /// The same with all its matrices stored otherwise.
    #[must_use]
    pub fn requantized(&self, quantization: Quantization) -> Self {
        Self { scheme: Scheme::of(quantization), ..self.clone() }
    }
}

/// The object that describes the decoder, and the whole config around it.
pub(super) struct Fields<'a> {
    own: &'a Map<String, Value>,
    whole: &'a Map<String, Value>,
    defaults: &'static [(&'static str, u64)],
}

impl<'a> Fields<'a> {
    /// Of the decoder; `null` is nothing.
    pub(super) fn own(&self, key: &str) -> Option<&'a Value> {
        self.own.get(key).filter(|value| !value.is_null())
    }

    /// Of the decoder, or beside it.
    pub(super) fn either(&self, key: &str) -> Option<&'a Value> {
        self.own(key).or_else(|| self.whole.get(key).filter(|value| !value.is_null()))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.either(key).and_then(Value::as_bool)
    }

    /// A whole number from 1 to `max` under the first of the keys that is there.
    pub(super) fn bounded(&self, keys: &[&str], max: u64) -> Result<Option<u64>, ConfigFault> {
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, self.own(key)?))) else {
            let default = self.defaults.iter().find(|(key, _)| keys.contains(key));
            return Ok(default.map(|(_, value)| *value));
        };
        match value.as_u64() {
            Some(number) if number <= max => Ok(Some(number).filter(|number| *number > 0)),
            _ => Err(wrong(key, value, format!("a whole number up to {max}"))),
        }
    }

    pub(super) fn number(&self, keys: &[&str]) -> Result<Option<u64>, ConfigFault> {
        self.bounded(keys, NUMBER_MAX)
    }

    pub(super) fn needed(&self, keys: &[&'static str], what: &'static str) -> Result<u64, ConfigFault> {
        self.number(keys)?.ok_or(ConfigFault::Missing { key: keys[0], what })
    }
}

pub(super) fn wrong(key: &str, value: &Value, wanted: impl Into<String>) -> ConfigFault {
    let value: String = value.to_string().chars().take(40).collect();
    ConfigFault::Wrong { key: key.to_owned(), value, wanted: wanted.into() }
}

/// Keys of models that keep something else of a sequence than keys and values of each layer, or whose sizes stand elsewhere.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("index_topk", "an index of tokens beside its KV cache"),
    ("is_encoder_decoder", "an encoder"),
    ("ssm_cfg", "a state space model"),
    ("ssm_state_size", "layers with a state"),
    ("mamba_d_state", "layers with a state"),
    ("linear_num_key_heads", "layers of linear attention"),
    ("full_attention_interval", "layers of linear attention"),
    ("attn_layer_period", "layers with a state"),
    ("cross_attention_layers", "layers of cross attention"),
];

/// What would be counted wrongly without a word.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ConfigFault> {
    let is_there = |key: &str| fields.own(key).is_some_and(|value| value.as_bool() != Some(false));
    match UNSUPPORTED.iter().find(|(key, _)| is_there(key)) {
        Some((key, what)) => Err(ConfigFault::Unsupported { what: format!("{what} ({key:?})") }),
        None => Ok(()),
    }
}

fn attention(
    fields: &Fields<'_>,
    family: &Family,
    family_name: &str,
    hidden: u64,
) -> Result<Attention, ConfigFault> {
    let missing = ConfigFault::Missing { key: "num_attention_heads", what: "attention" };
    let heads = fields.bounded(&["num_attention_heads", "n_head"], HEADS_MAX)?.ok_or(missing)?;
    if let Some(kv_rank) = fields.number(&["kv_lora_rank"])? {
        return Ok(Attention::Latent {
            heads,
            query_rank: fields.number(&["q_lora_rank"])?,
            kv_rank,
            nope_dim: fields.needed(&["qk_nope_head_dim"], "latent attention")?,
            rope_dim: fields.needed(&["qk_rope_head_dim"], "latent attention")?,
            value_dim: fields.needed(&["v_head_dim"], "latent attention")?,
        });
    }
    let is_one_head =
        fields.flag("multi_query") == Some(true) && fields.flag("new_decoder_architecture") != Some(true);
    let kv_heads = if is_one_head {
        1
    } else {
        fields.bounded(&["num_key_value_heads", "num_kv_heads"], HEADS_MAX)?.unwrap_or(heads)
    };
    let head_dim =
        fields.bounded(&["head_dim"], HEADS_MAX)?.or(family.head_dim).unwrap_or((hidden / heads).max(1));
    let bias = fields.flag("attention_bias").or(fields.flag("use_bias"));
    Ok(Attention::Grouped {
        heads,
        kv_heads,
        head_dim,
        has_qkv_bias: bias.unwrap_or(family.has_qkv_bias) || family.has_qkv_bias,
        has_output_bias: bias.unwrap_or(family.has_other_bias),
        has_head_norms: fields.flag("use_qk_norm").unwrap_or(family.has_head_norms),
        has_sinks: family_name == "gpt_oss",
    })
}

fn experts(fields: &Fields<'_>, family_name: &str) -> Result<Option<Experts>, ConfigFault> {
    let keys = ["num_local_experts", "n_routed_experts", "num_experts"];
    let count = fields.bounded(&keys, EXPERTS_MAX)?;
    let Some(count) = count.filter(|count| *count > 1) else {
        let is_count = |key: &String| key.contains("expert") || key.starts_with("moe_");
        let unread = fields.own.iter().find(|(key, value)| is_count(key) && value.as_u64() > Some(1));
        return match unread {
            Some((key, _)) if count.is_none() => Err(ConfigFault::Unsupported {
                what: format!("experts whose number stands under no known key ({key:?})"),
            }),
            _ => Ok(None),
        };
    };
    let intermediate = fields.needed(&["moe_intermediate_size", "intermediate_size"], "an expert")?;
    let shared_alone = fields.number(&["shared_expert_intermediate_size"])?;
    let shared_count = fields.number(&["n_shared_experts"])?.unwrap_or(0);
    let shared_intermediate = match shared_alone {
        Some(shared) => shared,
        None if family_name == "llama4_text" => intermediate,
        None => shared_count.min(EXPERTS_MAX) * intermediate,
    };
    Ok(Some(Experts {
        count,
        // 8 is the most that is common; it counts for activations alone.
        chosen: fields.bounded(&["num_experts_per_tok", "experts_per_token"], count)?.unwrap_or(8),
        intermediate,
        shared_intermediate,
        has_shared_gate: shared_alone.is_some(),
        has_bias: family_name == "gpt_oss",
    }))
}

/// As vLLM derives the longest context: YaRN stretches what the model was trained with.
fn positions(fields: &Fields<'_>) -> Result<Option<u64>, ConfigFault> {
    let keys = ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"];
    let stated = fields.bounded(&keys, POSITIONS_MAX)?;
    let scaling = fields.own("rope_scaling").or(fields.own("rope_parameters"));
    let stretched = scaling.and_then(|scaling| {
        let kind = scaling.get("rope_type").or(scaling.get("type"))?.as_str()?;
        let original = scaling.get("original_max_position_embeddings")?.as_u64()?;
        let factor = scaling.get("factor")?.as_f64()?;
        let stretched = (original.min(POSITIONS_MAX) as f64 * factor) as u64;
        (kind == "yarn" && stretched <= POSITIONS_MAX).then_some(stretched)
    });
    Ok(stated.max(stretched))
}

/// As vLLM does with LongRoPE, whose short contexts suffer from the factors of long ones.
fn length_default(fields: &Fields<'_>) -> Option<u64> {
    let scaling = fields.own("rope_scaling").or(fields.own("rope_parameters"))?;
    let kind = scaling.get("rope_type").or(scaling.get("type"))?.as_str()?;
    let original = || fields.own("original_max_position_embeddings")?.as_u64();
    let original = original().or_else(|| scaling.get("original_max_position_embeddings")?.as_u64());
    matches!(kind, "longrope" | "su").then_some(original?)
}

fn scheme(fields: &Fields<'_>) -> Result<Scheme, ConfigFault> {
    let Some(config) = fields.either("quantization_config").or(fields.either("compression_config")) else {
        return Ok(Scheme::of(Quantization::Plain));
    };
    Scheme::parse(config)
        .map_err(|method| ConfigFault::Unsupported { what: format!("the quantization {method:?}") })
}
