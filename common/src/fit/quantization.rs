//! In how many bytes a matrix of weights is stored.

use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

/// Of a weight that is not quantized: vLLM loads 32-bit checkpoints in 16 bits too (`--dtype auto`).
pub const PLAIN_BYTES: u64 = 2;

/// Of a scale in 32 bits.
const SCALE_BYTES: u64 = 4;

/// What AWQ and GPTQ checkpoints are published with, almost all of them.
const GROUP_USUAL: u64 = 128;

/// Stars in the name of modules that are kept: each multiplies the work of a comparison.
const STARS_MAX: usize = 4;

/// How the elements of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "method")]
pub enum Quantization {
    /// 16 bits.
    Plain,
    /// 8-bit floats, with a scale for each block, or for each row where there are no blocks.
    Fp8 { block: Option<(u64, u64)> },
    /// 8-bit integers, with a scale for each row.
    Int8,
    /// Integers of a few bits; each group of inputs of an output has a scale of 16 bits and, where `has_zeros`, a zero.
    /// `has_order`: each input has an index of 32 bits (GPTQ).
    Packed { bits: u64, group: Option<u64>, has_zeros: bool, has_order: bool },
    /// 4-bit floats with a scale of 8 bits for each 32.
    Mxfp4,
    /// 4-bit floats with a scale of 8 bits for each 16.
    Nvfp4,
}

impl Quantization {
    /// Bytes of a matrix from `inputs` to `outputs`, its scales with it.
    #[must_use]
    pub fn matrix_bytes(self, outputs: u64, inputs: u64) -> u64 {
        let elements = outputs * inputs;
        match self {
            Self::Plain => elements * PLAIN_BYTES,
            Self::Fp8 { block: None } | Self::Int8 => elements + outputs * SCALE_BYTES,
            Self::Fp8 { block: Some((rows, columns)) } => {
                elements + outputs.div_ceil(rows) * inputs.div_ceil(columns) * SCALE_BYTES
            }
            Self::Packed { bits, group, has_zeros, has_order } => {
                let groups = outputs * group.map_or(1, |group| inputs.div_ceil(group));
                let zeros = if has_zeros { (groups * bits).div_ceil(8) } else { 0 };
                let order = if has_order { inputs * 4 } else { 0 };
                (elements * bits).div_ceil(8) + groups * 2 + zeros + order
            }
            Self::Mxfp4 => elements / 2 + elements / 32,
            Self::Nvfp4 => elements / 2 + elements / 16 + SCALE_BYTES * 2,
        }
    }

    /// Side of the blocks that a part of a matrix must consist of.
    #[must_use]
    pub fn block_rows(self) -> Option<u64> {
        match self {
            Self::Fp8 { block: Some((rows, _)) } => Some(rows),
            Self::Plain
            | Self::Fp8 { block: None }
            | Self::Int8
            | Self::Packed { .. }
            | Self::Mxfp4
            | Self::Nvfp4 => None,
        }
    }

    /// Whether both store elements alike, whatever their groups.
    #[must_use]
    pub fn is_like(self, other: Self) -> bool {
        match (self, other) {
            (Self::Packed { bits, .. }, Self::Packed { bits: others, .. }) => bits == others,
            _ => std::mem::discriminant(&self) == std::mem::discriminant(&other),
        }
    }

    /// For people: `fp8 in blocks of 128 x 128`.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Plain => "16 bits".to_owned(),
            Self::Fp8 { block: None } => "fp8".to_owned(),
            Self::Fp8 { block: Some((rows, columns)) } => format!("fp8 in blocks of {rows} x {columns}"),
            Self::Int8 => "int8".to_owned(),
            Self::Packed { bits, group: Some(group), .. } => format!("int{bits} in groups of {group}"),
            Self::Packed { bits, group: None, .. } => format!("int{bits}"),
            Self::Mxfp4 => "mxfp4".to_owned(),
            Self::Nvfp4 => "nvfp4".to_owned(),
        }
    }
}

/// A word that names no way to store weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no quantization that is known here; known are fp8, int8, int4, awq, gptq, mxfp4, nvfp4, bitsandbytes, none"
)]
pub struct NoQuantization(String);

impl FromStr for Quantization {
    type Err = NoQuantization;

    /// A word of ours or of vLLM's `--quantization`, without what only the checkpoint knows.
    fn from_str(word: &str) -> Result<Self, NoQuantization> {
        let packed =
            |has_zeros, has_order| Self::Packed { bits: 4, group: Some(GROUP_USUAL), has_zeros, has_order };
        Ok(match word {
            "none" | "bf16" | "bfloat16" | "fp16" | "float16" => Self::Plain,
            "fp8" | "fbgemm_fp8" | "ptpc_fp8" => Self::Fp8 { block: None },
            "int8" | "w8a8" | "experts_int8" | "tpu_int8" => Self::Int8,
            "int4" | "w4a16" => packed(false, false),
            "awq" | "awq_marlin" => packed(true, false),
            "gptq" | "gptq_marlin" => packed(true, true),
            "bitsandbytes" => Self::Packed { bits: 4, group: Some(64), has_zeros: false, has_order: false },
            "mxfp4" => Self::Mxfp4,
            "nvfp4" | "modelopt_fp4" => Self::Nvfp4,
            _ => return Err(NoQuantization(word.to_owned())),
        })
    }
}

/// How a model is quantized, and which of its modules are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    pub quantization: Quantization,
    /// Only the experts, whatever `kept` says: all that vLLM and transformers know of MXFP4.
    pub experts_only: bool,
    /// Names of modules that are not quantized, `*` for anything, matched from any dot on.
    pub kept: Vec<String>,
    /// Patterns that were given and could not be read.
    pub unread: Vec<String>,
}

impl Scheme {
    #[must_use]
    pub fn of(quantization: Quantization) -> Self {
        let experts_only = quantization == Quantization::Mxfp4;
        Self { quantization, experts_only, kept: Vec::new(), unread: Vec::new() }
    }

    /// How the matrix of module `name` is stored.
    #[must_use]
    pub fn of_module(&self, name: &str) -> Quantization {
        let is_kept = (self.experts_only && !name.contains(".experts"))
            || self.kept.iter().any(|pattern| names_module(pattern, name));
        if is_kept { Quantization::Plain } else { self.quantization }
    }

    /// Rows of which each part of a matrix must have a multiple.
    #[must_use]
    pub fn block_rows_or_one(&self) -> u64 {
        self.quantization.block_rows().unwrap_or(1)
    }

    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// The method, when it is none that can be counted.
    pub fn parse(config: &Value) -> Result<Self, String> {
        let number = |key: &str| config.get(key).and_then(Value::as_i64);
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or("").to_lowercase();
        let method = text("quant_method");
        let packed = |has_zeros, has_order| Quantization::Packed {
            bits: number("bits").or(number("w_bit")).and_then(|bits| u64::try_from(bits).ok()).unwrap_or(4),
            group: group(number("group_size").or(number("q_group_size")).unwrap_or(128)),
            has_zeros,
            has_order,
        };
        let quantization = match method.as_str() {
            "fp8" | "fbgemm_fp8" => Quantization::Fp8 { block: block(config.get("weight_block_size")) },
            "awq" => packed(true, false),
            "gptq" => packed(true, true),
            "mxfp4" => Quantization::Mxfp4,
            "bitsandbytes" if config.get("load_in_8bit").and_then(Value::as_bool) == Some(true) => {
                Quantization::Int8
            }
            "bitsandbytes" => "bitsandbytes".parse().map_err(|_| method.clone())?,
            "compressed-tensors" => compressed(config).ok_or(method)?,
            "modelopt" | "modelopt_fp4" => match text("quant_algo").as_str() {
                "fp8" => Quantization::Fp8 { block: None },
                "nvfp4" => Quantization::Nvfp4,
                algorithm => return Err(format!("modelopt {algorithm}")),
            },
            _ => return Err(method),
        };
        let mut scheme = Self::of(quantization);
        for key in ["modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules"] {
            for pattern in config.get(key).and_then(Value::as_array).into_iter().flatten() {
                // One that is no text is told as one that is not understood.
                let text = pattern.as_str().map_or_else(|| format!("[{pattern}]"), str::to_owned);
                scheme.keep(&text);
            }
        }
        Ok(scheme)
    }

    fn keep(&mut self, pattern: &str) {
        let plain = match pattern.strip_prefix("re:") {
            None => pattern.to_owned(),
            Some(expression) => expression.replace("\\.", ".").replace(".*", "*").replace(['^', '$'], ""),
        };
        let star_count = plain.matches('*').count();
        if star_count > STARS_MAX || plain.contains(['(', '[', '|', '\\', '+', '?']) {
            self.unread.push(pattern.to_owned());
        } else if !plain.is_empty() {
            self.kept.push(plain);
        }
    }
}

/// `None` for one group, which is written as -1.
fn group(size: i64) -> Option<u64> {
    u64::try_from(size).ok().filter(|size| *size > 0)
}

fn block(size: Option<&Value>) -> Option<(u64, u64)> {
    let sides = size?.as_array()?;
    match (sides.first()?.as_u64()?, sides.get(1)?.as_u64()?) {
        (0, _) | (_, 0) => None,
        sides => Some(sides),
    }
}

/// The first group of a `compressed-tensors` configuration.
fn compressed(config: &Value) -> Option<Quantization> {
    let weights = config.get("config_groups")?.as_object()?.values().next()?.get("weights")?;
    let bits = weights.get("num_bits")?.as_u64()?;
    let is_float = weights.get("type").and_then(Value::as_str) == Some("float");
    let is_symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    let size = weights.get("group_size").and_then(Value::as_i64).unwrap_or(-1);
    match (is_float, bits) {
        (true, 8) => Some(Quantization::Fp8 { block: block(weights.get("block_structure")) }),
        (true, 4) => Some(if size == 32 { Quantization::Mxfp4 } else { Quantization::Nvfp4 }),
        (false, 8) if group(size).is_none() => Some(Quantization::Int8),
        (false, 2..=8) => Some(Quantization::Packed {
            bits,
            group: group(size),
            has_zeros: !is_symmetric,
            has_order: false,
        }),
        _ => None,
    }
}

/// Whether `pattern` names the module, one that it is part of, or, from any dot on, a piece of its name.
fn names_module(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_end_matches(".weight").trim_end_matches('*').trim_end_matches('.');
    let starts = name.match_indices('.').map(|(at, _)| at + 1);
    std::iter::once(0).chain(starts).any(|at| begins_with(pattern.as_bytes(), &name.as_bytes()[at..]))
}

/// Whether `pattern` fits a beginning of `name` that ends at a dot or at its end. Linear but for the stars, of which a
/// pattern has a few.
fn begins_with(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.first().is_none_or(|next| *next == b'.'),
        Some((b'*', rest)) => (0..=name.len()).any(|skipped| begins_with(rest, &name[skipped..])),
        Some((wanted, rest)) => {
            name.split_first().is_some_and(|(first, name)| first == wanted && begins_with(rest, name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_matrix_takes_its_elements_and_their_scales() {
        let bytes = |quantization: Quantization| quantization.matrix_bytes(256, 512);
        let elements = 256 * 512;
        assert_eq!(bytes(Quantization::Plain), elements * 2);
        assert_eq!(bytes(Quantization::Fp8 { block: Some((128, 128)) }), elements + 2 * 4 * 4);
        assert_eq!(bytes("fp8".parse().expect("known")), elements + 256 * 4);
        assert_eq!(bytes("awq".parse().expect("known")), elements / 2 + 256 * 4 * 2 + 256 * 4 / 2);
        assert_eq!(bytes(Quantization::Mxfp4), elements / 2 + elements / 32);
        assert_eq!(bytes(Quantization::Nvfp4), elements / 2 + elements / 16 + 8);
    }

    #[test]
    fn a_checkpoint_says_how_it_is_quantized() {
        let packed =
            |bits, group, has_zeros| Quantization::Packed { bits, group, has_zeros, has_order: false };
        for (config, wanted) in [
            (
                json!({ "quant_method": "fp8", "weight_block_size": [128, 128] }),
                Quantization::Fp8 { block: Some((128, 128)) },
            ),
            (json!({ "quant_method": "fbgemm_fp8" }), Quantization::Fp8 { block: None }),
            (json!({ "quant_method": "awq", "bits": 4, "group_size": 64 }), packed(4, Some(64), true)),
            (json!({ "quant_method": "awq", "bits": 4, "group_size": -1 }), packed(4, None, true)),
            (json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" }), Quantization::Nvfp4),
            (
                json!({ "quant_method": "compressed-tensors", "config_groups": { "group_0": { "weights": {
                    "num_bits": 4, "type": "int", "group_size": 128, "symmetric": true } } } }),
                packed(4, Some(128), false),
            ),
            (
                json!({ "quant_method": "compressed-tensors", "config_groups": { "group_0": { "weights": {
                    "num_bits": 8, "type": "float", "strategy": "channel" } } } }),
                Quantization::Fp8 { block: None },
            ),
        ] {
            assert_eq!(Scheme::parse(&config).map(|scheme| scheme.quantization), Ok(wanted), "{config}");
        }
        assert_eq!(Scheme::parse(&json!({ "quant_method": "aqlm" })), Err("aqlm".to_owned()));
    }

    #[test]
    fn modules_that_are_kept_take_16_bits() {
        let config = json!({ "quant_method": "fp8", "modules_to_not_convert": [
            "lm_head", "model.layers.0.mlp.down_proj", "model.layers.*.self_attn", "re:.*mlp\\.gate$", "re:a|b"] });
        let scheme = Scheme::parse(&config).expect("reads");
        assert_eq!(scheme.unread, ["re:a|b"]);
        for (name, is_kept) in [
            ("lm_head", true),
            ("model.layers.0.mlp.down_proj", true),
            ("model.layers.0.mlp.down_proj_x", false),
            ("model.layers.10.mlp.down_proj", false),
            ("language_model.model.layers.7.self_attn.q_proj", true),
            ("model.layers.3.mlp.gate", true),
            ("model.layers.3.mlp.gate_proj", false),
        ] {
            assert_eq!(scheme.of_module(name) == Quantization::Plain, is_kept, "{name}");
        }
    }
}
