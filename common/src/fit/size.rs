//! A model of which only the number of parameters is known: `70B`, `685B`, `1.5T`.

use super::quantization::Quantization;
use super::weights::{Shares, Source, Weights};

/// Into so many parts the weights are thought to be divided: layers in numbers that any usual number of stages divides.
const LAYERS_THOUGHT: u64 = 48;

/// More than any model has.
const PARAMETERS_MAX: f64 = 1e15;

/// Parameters that a name says, such as `70B`; `None` for anything else.
#[must_use]
pub fn parameters(name: &str) -> Option<u64> {
    let unit = match name.chars().last()?.to_ascii_uppercase() {
        'M' => 1e6,
        'B' => 1e9,
        'T' => 1e12,
        _ => return None,
    };
    let number = &name[..name.len() - 1];
    let is_number = number.chars().all(|c| c.is_ascii_digit() || c == '.') && !number.is_empty();
    let parameters = number.parse::<f64>().ok().filter(|_| is_number)? * unit;
    (1.0..=PARAMETERS_MAX).contains(&parameters).then_some(parameters as u64)
}

/// The weights of a model of so many parameters, all of them stored alike.
pub(super) fn weights(parameters: u64, quantization: Quantization) -> Weights {
    let stored = match quantization {
        Quantization::Packed { bits, group, has_zeros, .. } => {
            Quantization::Packed { bits, group, has_zeros, has_order: false }
        }
        other => other,
    };
    let even = stored.matrix_bytes(1, parameters).div_ceil(LAYERS_THOUGHT);
    Weights {
        source: Source::Size,
        parameters,
        kv_heads: 1,
        ties_embeddings: false,
        embedding: Shares::default(),
        layers: vec![Shares { even, ..Shares::default() }; LAYERS_THOUGHT as usize],
        head: Shares::default(),
        mtp: Shares::default(),
        vision: Shares::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_its_unit() {
        for (name, wanted) in [
            ("70B", Some(70_000_000_000)),
            ("685b", Some(685_000_000_000)),
            ("1.5T", Some(1_500_000_000_000)),
            ("0.5B", Some(500_000_000)),
            ("B", None),
            ("-1B", None),
            ("1e3B", None),
            ("70", None),
            ("0B", None),
            ("llama-70B", None),
            ("", None),
            ("70é", None),
        ] {
            assert_eq!(parameters(name), wanted, "{name}");
        }
    }

    #[test]
    fn weights_of_a_size_take_their_bits_and_their_scales() {
        let bytes = |word: &str| weights(70_000_000_000, word.parse().expect(word)).total_bytes() / 1_000_000;
        assert_eq!([bytes("none"), bytes("fp8"), bytes("int4")], [140_000, 70_000, 36_093]);
    }
}
