//! What each layer of a model looks back on and goes through, by the several keys in which configurations say so.

use serde_json::Value;

use super::config::{ConfigFault, Fields, Layer, Mlp, wrong};
use super::family::Family;

/// More than any window has.
const TOKENS_MAX: u64 = 1 << 30;

/// One after the other.
///
/// # Errors
/// When a list has not one entry a layer, or names a kind of layer that is not known.
pub(super) fn layers(
    fields: &Fields<'_>,
    family: &Family,
    family_name: &str,
    count: u64,
    has_experts: bool,
) -> Result<Vec<Layer>, ConfigFault> {
    let windows = Windows::of(fields, family, family_name, count)?;
    let dense = Dense::of(fields, family_name, count, has_experts)?;
    (0..count).map(|at| Ok(Layer { window: windows.at(at)?, mlp: dense.at(at)? })).collect()
}

struct Windows<'a> {
    window: Option<u64>,
    kinds: Option<&'a [Value]>,
    /// Each such layer sees everything.
    period: Option<u64>,
    /// So many at the beginning see everything.
    full: u64,
}

impl<'a> Windows<'a> {
    fn of(fields: &Fields<'a>, family: &Family, family_name: &str, count: u64) -> Result<Self, ConfigFault> {
        let is_off = fields.flag("use_sliding_window") == Some(false);
        // Of a family that is not known, which layers have the window is not known either.
        let is_known = Family::of(family_name).is_some() || fields.own("layer_types").is_some();
        let window = fields.bounded(&["sliding_window"], TOKENS_MAX)?.filter(|_| is_known && !is_off);
        let kinds = list(fields, "layer_types", count)?;
        if family_name == "llama4_text" {
            // The layers without rotary positions see all, the others their chunk.
            let window = fields.bounded(&["attention_chunk_size"], TOKENS_MAX)?;
            return Ok(Self { window, kinds, period: Some(4), full: 0 });
        }
        let keys = ["sliding_window_pattern", "_sliding_window_pattern"];
        let written = fields.own(keys[0]).filter(|pattern| pattern.is_string());
        let period = match (written, kinds) {
            (Some(pattern), None) => {
                return Err(wrong(keys[0], pattern, "a number, or stand beside \"layer_types\""));
            }
            (Some(_), Some(_)) => None,
            (None, _) => fields.number(&keys)?.or(family.window_period),
        };
        let is_on = fields.flag("use_sliding_window") == Some(true);
        let full = if is_on { fields.number(&["max_window_layers"])?.unwrap_or(0) } else { 0 };
        Ok(Self { window, kinds, period, full })
    }

    fn at(&self, layer: u64) -> Result<Option<u64>, ConfigFault> {
        let kind = self.kinds.and_then(|kinds| kinds.get(layer as usize));
        match kind.and_then(Value::as_str) {
            Some("full_attention" | "attention") => Ok(None),
            Some("sliding_attention" | "chunked_attention" | "local_attention") => Ok(self.window),
            Some(kind) => Err(ConfigFault::Unsupported {
                what: format!("layers of the kind {kind:?} (\"layer_types\")"),
            }),
            None if layer < self.full => Ok(None),
            None if self.period.is_some_and(|period| (layer + 1).is_multiple_of(period.max(1))) => Ok(None),
            None => Ok(self.window),
        }
    }
}

struct Dense<'a> {
    has_experts: bool,
    intermediate: Option<u64>,
    /// So many at the beginning are dense.
    first: u64,
    /// Of the others each such one has experts, where `offset` counts from.
    period: u64,
    offset: u64,
    alone: Vec<u64>,
    kinds: Option<&'a [Value]>,
}

impl<'a> Dense<'a> {
    fn of(
        fields: &Fields<'a>,
        family_name: &str,
        count: u64,
        has_experts: bool,
    ) -> Result<Self, ConfigFault> {
        let keys: &[&str] = match family_name {
            "llama4_text" => &["intermediate_size_mlp", "intermediate_size"],
            _ => &["intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"],
        };
        let hidden = fields.number(&["hidden_size", "n_embd"])?;
        // GPT-2 and its kin leave four times the hidden size unsaid.
        let unsaid = matches!(family_name, "falcon" | "gpt2" | "gpt_bigcode" | "gptj").then_some(4);
        let unsaid = unsaid.zip(hidden).map(|(times, hidden)| times * hidden);
        let alone = fields.own("mlp_only_layers").and_then(Value::as_array);
        let every_other = fields.own("moe_layer_freq").is_some_and(Value::is_array);
        let (period, offset) = match family_name {
            "llama4_text" => (fields.number(&["interleave_moe_layer_step"])?, 1),
            _ if every_other => (None, 0),
            _ => match fields.number(&["decoder_sparse_step"])? {
                Some(step) => (Some(step), 1),
                None => (fields.number(&["moe_layer_freq"])?, 0),
            },
        };
        let named = if every_other { "moe_layer_freq" } else { "mlp_layer_types" };
        Ok(Self {
            has_experts,
            intermediate: fields.number(keys)?.or(unsaid),
            first: fields.number(&["first_k_dense_replace"])?.unwrap_or(0),
            period: period.unwrap_or(1).max(1),
            offset,
            alone: alone.into_iter().flatten().filter_map(Value::as_u64).collect(),
            kinds: list(fields, named, count)?,
        })
    }

    fn at(&self, layer: u64) -> Result<Mlp, ConfigFault> {
        let by_rule = layer >= self.first
            && (layer + self.offset).is_multiple_of(self.period)
            && !self.alone.contains(&layer);
        let by_name = self
            .kinds
            .and_then(|kinds| kinds.get(layer as usize))
            .map(|kind| kind.as_str().map_or_else(|| kind.as_u64() != Some(0), |kind| kind != "dense"));
        if self.has_experts && by_name.unwrap_or(by_rule) {
            return Ok(Mlp::Experts);
        }
        let missing = ConfigFault::Missing { key: "intermediate_size", what: "a dense layer" };
        self.intermediate.map(|intermediate| Mlp::Dense { intermediate }).ok_or(missing)
    }
}

/// The list under `key`, which must have an entry for each layer.
fn list<'a>(fields: &Fields<'a>, key: &str, count: u64) -> Result<Option<&'a [Value]>, ConfigFault> {
    let Some(value) = fields.own(key) else { return Ok(None) };
    match value.as_array() {
        Some(entries) if entries.len() as u64 >= count => Ok(Some(entries)),
        _ => Err(wrong(key, value, format!("a list with an entry for each of {count} layers"))),
    }
}
