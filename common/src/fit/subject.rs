//! What is to run: a model that is described, or one of which only the size is known.

use super::config::Architecture;
use super::count::count;
use super::quantization::{NoQuantization, Quantization};
use super::size;
use super::weights::Weights;

/// Words of vLLM that say: as the checkpoint does.
const AS_STORED: [&str; 6] =
    ["compressed-tensors", "modelopt", "modelopt_fp4", "quark", "awq_marlin", "gptq_marlin"];

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A model that is described, and its weights where they were found.
    Model { architecture: Architecture, found: Option<Weights> },
    /// So many parameters, of which only the weights can be judged.
    Size { parameters: u64, quantization: Quantization },
}

impl Subject {
    #[must_use]
    pub fn architecture(&self) -> Option<&Architecture> {
        match self {
            Self::Model { architecture, .. } => Some(architecture),
            Self::Size { .. } => None,
        }
    }

    #[must_use]
    pub fn quantization(&self) -> Quantization {
        match self {
            Self::Model { architecture, .. } => architecture.scheme.quantization,
            Self::Size { quantization, .. } => *quantization,
        }
    }

    #[must_use]
    pub fn weights(&self) -> Weights {
        match self {
            Self::Model { found: Some(weights), .. } => weights.clone(),
            Self::Model { architecture, found: None } => count(architecture),
            Self::Size { parameters, quantization } => size::weights(*parameters, *quantization),
        }
    }

    /// The same, its weights stored otherwise; its files, if there were any, then say nothing.
    #[must_use]
    pub fn requantized(&self, quantization: Quantization) -> Self {
        match self {
            Self::Model { architecture, .. } => {
                Self::Model { architecture: architecture.requantized(quantization), found: None }
            }
            Self::Size { parameters, .. } => Self::Size { parameters: *parameters, quantization },
        }
    }

    /// The same under `--quantization WORD`: itself where it is stored so already.
    ///
    /// # Errors
    /// When the word names nothing that can be counted.
    pub fn under(&self, word: &str) -> Result<Self, NoQuantization> {
        let is_quantized = self.quantization() != Quantization::Plain;
        if is_quantized && AS_STORED.contains(&word) {
            return Ok(self.clone());
        }
        let wanted: Quantization = word.parse()?;
        Ok(if self.quantization().is_like(wanted) { self.clone() } else { self.requantized(wanted) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(config: &[u8]) -> Subject {
        Subject::Model { architecture: Architecture::parse(config).expect("reads"), found: None }
    }

    #[test]
    fn what_is_stored_so_already_stays_as_it_is() {
        let plain = model(include_bytes!("fixtures/llama-3.1-70b.json"));
        let packed = model(include_bytes!("fixtures/llama-3.1-70b-awq.json"));
        for word in ["awq", "int4", "awq_marlin", "compressed-tensors"] {
            assert_eq!(packed.under(word).as_ref(), Ok(&packed), "{word}");
        }
        assert!(plain.under("compressed-tensors").is_err());
        assert_eq!(plain.under("none").as_ref(), Ok(&plain));
        let halved = plain.under("fp8").expect("known").weights().total_bytes();
        assert!(halved < plain.weights().total_bytes() * 52 / 100, "{halved}");
    }
}
