//! What a model's weights take, altogether and on each GPU.

use serde::Serialize;

use super::layout::{Layout, stages};

/// Bytes, by what tensor parallelism makes of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Divided among all GPUs.
    pub even: u64,
    /// Divided among as many GPUs as there are key and value heads; the others hold copies.
    pub by_kv_head: u64,
    /// Held by every GPU.
    pub whole: u64,
}

impl Shares {
    #[must_use]
    pub fn total(&self) -> u64 {
        self.even.saturating_add(self.by_kv_head).saturating_add(self.whole)
    }

    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            even: self.even.saturating_add(other.even),
            by_kv_head: self.by_kv_head.saturating_add(other.by_kv_head),
            whole: self.whole.saturating_add(other.whole),
        }
    }

    /// On one of `tensor_parallel` GPUs.
    #[must_use]
    pub fn on_each(&self, tensor_parallel: u64, kv_heads: u64) -> u64 {
        let among_heads = tensor_parallel.min(kv_heads).max(1);
        let even = self.even.div_ceil(tensor_parallel.max(1));
        even.saturating_add(self.by_kv_head.div_ceil(among_heads)).saturating_add(self.whole)
    }
}

/// How the bytes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Each tensor of each file.
    Headers,
    /// Each tensor that the config implies.
    Config,
    /// A number of parameters, as in `70B`.
    Size,
}

/// The weights of a model, by where they lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    pub source: Source,
    /// Whatever they are stored in.
    pub parameters: u64,
    pub kv_heads: u64,
    /// The output head is the embedding: the last stage holds a copy of it where there are several.
    pub ties_embeddings: bool,
    pub embedding: Shares,
    pub layers: Vec<Shares>,
    /// The output head and the last norm.
    pub head: Shares,
    /// Layers that predict further tokens, with the last stage.
    pub mtp: Shares,
    /// With the first stage.
    pub vision: Shares,
}

impl Weights {
    /// Of the checkpoint.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let ends = [self.embedding, self.head, self.mtp, self.vision];
        self.layers.iter().chain(&ends).fold(0, |sum: u64, part| sum.saturating_add(part.total()))
    }

    /// On one GPU of each stage of `layout`.
    #[must_use]
    pub fn on_each_stage(&self, layout: Layout) -> Vec<u64> {
        let ranges = stages(self.layers.len() as u64, layout.pipeline_parallel);
        let last = ranges.len().saturating_sub(1);
        let of_stage = |(at, range): (usize, &std::ops::Range<usize>)| {
            let mut shares =
                self.layers[range.clone()].iter().fold(Shares::default(), |sum, part| sum.plus(part));
            if at == 0 {
                shares = shares.plus(&self.embedding).plus(&self.vision);
            }
            if at == last {
                shares = shares.plus(&self.head).plus(&self.mtp);
                if self.ties_embeddings && last > 0 {
                    shares = shares.plus(&self.embedding);
                }
            }
            shares.on_each(layout.tensor_parallel, self.kv_heads)
        };
        ranges.iter().enumerate().map(of_stage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(ties_embeddings: bool) -> Weights {
        let even = |even| Shares { even, ..Shares::default() };
        Weights {
            source: Source::Config,
            parameters: 0,
            kv_heads: 2,
            ties_embeddings,
            embedding: even(80),
            layers: vec![Shares { even: 800, by_kv_head: 40, whole: 7 }; 3],
            head: even(8),
            mtp: Shares::default(),
            vision: Shares { whole: 1000, ..Shares::default() },
        }
    }

    #[test]
    fn what_cannot_be_divided_is_on_every_gpu() {
        let on =
            |tensor_parallel| weights(false).on_each_stage(Layout { tensor_parallel, pipeline_parallel: 1 });
        assert_eq!(weights(false).total_bytes(), 80 + 3 * 847 + 8 + 1000);
        assert_eq!(on(1), [80 + 3 * 847 + 8 + 1000]);
        assert_eq!(on(8), [10 + 3 * (100 + 20 + 7) + 1 + 1000]);
    }

    #[test]
    fn the_ends_of_the_pipeline_hold_the_embeddings() {
        let two = Layout { tensor_parallel: 1, pipeline_parallel: 2 };
        assert_eq!(weights(false).on_each_stage(two), [80 + 2 * 847 + 1000, 847 + 8]);
        assert_eq!(weights(true).on_each_stage(two), [80 + 2 * 847 + 1000, 847 + 8 + 80]);
    }
}
