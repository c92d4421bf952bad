//! The part of a model that sees: an encoder of image patches, of which only the size is of interest here.

use serde_json::{Map, Value};

use super::config::{ConfigFault, wrong};
use super::quantization::PLAIN_BYTES;

/// Largest value of any of its numbers.
const NUMBER_MAX: u64 = 1 << 16;

/// A plain transformer over patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vision {
    pub hidden: u64,
    pub intermediate: u64,
    pub layers: u64,
}

impl Vision {
    /// Attention of four matrices, a feed-forward part of two, with their biases, and two norms in each layer. Patches,
    /// positions and the projection to the language model are some percent more.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let layer = 4 * hidden * (hidden + 1) + 2 * hidden * intermediate + intermediate + 5 * hidden;
        self.layers.saturating_mul(layer)
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parameters().saturating_mul(PLAIN_BYTES)
    }
}

/// `None` where the model does not see, or does not say how.
pub(super) fn parse(whole: &Map<String, Value>) -> Result<Option<Vision>, ConfigFault> {
    let Some(config) = whole.get("vision_config").and_then(Value::as_object) else { return Ok(None) };
    let number = |keys: [&str; 2]| -> Result<Option<u64>, ConfigFault> {
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, config.get(*key)?))) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number) if number <= NUMBER_MAX => Ok(Some(number)),
            _ => Err(wrong(key, value, format!("a whole number up to {NUMBER_MAX}"))),
        }
    };
    let hidden = number(["hidden_size", "embed_dim"])?;
    let intermediate = number(["intermediate_size", "mlp_dim"])?;
    let layers = number(["num_hidden_layers", "depth"])?;
    Ok(hidden.zip(layers).map(|(hidden, layers)| Vision {
        hidden,
        intermediate: intermediate.unwrap_or(hidden * 4),
        layers,
    }))
}
