//! How a model may be divided among GPUs: tensor parallel within a node, pipeline parallel across nodes.

use std::ops::Range;

use serde::Serialize;

use super::config::{Architecture, Attention, Mlp};
use super::gpu::Rack;

/// Parameters from which on a model is divided even where one GPU would hold it.
const MEDIUM_PARAMETERS: u64 = 70_000_000_000;

/// Parameters above which a model takes whole nodes.
const LARGE_PARAMETERS: u64 = 200_000_000_000;

/// Into so many parts the weights of one layer are divided, and into so many stages the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    pub tensor_parallel: u64,
    pub pipeline_parallel: u64,
}

/// Why a model cannot be divided as wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutFault {
    #[error("tensor parallel {asked} does not divide {what}; {possible}")]
    Tensor { asked: u64, what: String, possible: String },
    #[error("pipeline parallel {asked} is more than the model's {layers} layers")]
    Pipeline { asked: u64, layers: u64 },
    #[error("tensor parallel {tensor} x pipeline parallel {pipeline} takes {} GPUs, of {count}", tensor.saturating_mul(*pipeline))]
    Gpus { tensor: u64, pipeline: u64, count: u64 },
    #[error("tensor parallel {tensor} spans nodes of {node_gpus} GPUs; use pipeline parallel across nodes")]
    Node { tensor: u64, node_gpus: u64 },
}

impl Layout {
    #[must_use]
    pub fn gpus(&self) -> u64 {
        self.tensor_parallel.saturating_mul(self.pipeline_parallel)
    }

    /// For people: `tensor parallel 8, pipeline parallel 2`.
    #[must_use]
    pub fn text(&self) -> String {
        match (self.tensor_parallel, self.pipeline_parallel) {
            (1, 1) => "one GPU".to_owned(),
            (tensor, 1) => format!("tensor parallel {tensor}"),
            (tensor, pipeline) => format!("tensor parallel {tensor}, pipeline parallel {pipeline}"),
        }
    }

    /// # Errors
    /// When the model or the GPUs cannot be divided so.
    pub fn check(&self, architecture: Option<&Architecture>, rack: &Rack) -> Result<(), LayoutFault> {
        let Self { tensor_parallel: tensor, pipeline_parallel: pipeline } = *self;
        if self.gpus() > rack.count || self.gpus() == 0 {
            return Err(LayoutFault::Gpus { tensor, pipeline, count: rack.count });
        }
        if tensor > rack.node_gpus() {
            return Err(LayoutFault::Node { tensor, node_gpus: rack.node_gpus() });
        }
        let Some(architecture) = architecture else { return Ok(()) };
        if let Some(what) = undivided(architecture, tensor) {
            let fitting = (1..=rack.node_gpus()).filter(|other| undivided(architecture, *other).is_none());
            let fitting: Vec<_> = fitting.map(|other| other.to_string()).collect();
            let possible = format!("{} would do", fitting.join(", "));
            return Err(LayoutFault::Tensor { asked: tensor, what, possible });
        }
        let layers = architecture.layers.len() as u64;
        if pipeline > layers {
            return Err(LayoutFault::Pipeline { asked: pipeline, layers });
        }
        Ok(())
    }
}

/// What of a model cannot be divided into `parts`.
fn undivided(architecture: &Architecture, parts: u64) -> Option<String> {
    let heads = architecture.attention.heads();
    if !heads.is_multiple_of(parts) {
        return Some(format!("the model's {heads} attention heads"));
    }
    if let Attention::Grouped { kv_heads, .. } = architecture.attention
        && !kv_heads.is_multiple_of(parts)
        && !parts.is_multiple_of(kv_heads)
    {
        return Some(format!("the model's {kv_heads} key-value heads, nor they it"));
    }
    let of_layers = architecture.layers.iter().filter_map(|layer| match layer.mlp {
        Mlp::Dense { intermediate } => Some(intermediate),
        Mlp::Experts => architecture.experts.map(|experts| experts.intermediate),
    });
    let block = architecture.scheme.block_rows_or_one();
    let uneven = of_layers.into_iter().find(|width| !width.is_multiple_of(parts * block))?;
    Some(if block > 1 && uneven.is_multiple_of(parts) {
        format!("the feed-forward width {uneven} into whole blocks of {block}")
    } else {
        format!("the feed-forward width {uneven}")
    })
}

/// Layouts to try on `rack`, the preferred first. Never empty.
pub(super) fn candidates(parameters: u64, architecture: Option<&Architecture>, rack: &Rack) -> Vec<Layout> {
    let node = rack.node_gpus();
    let nodes = rack.count.div_ceil(node);
    let within: Vec<u64> = match (1..=node).collect::<Vec<_>>() {
        all if architecture.is_some() => all,
        // Of a model of which only the size is known, heads come in powers of two.
        all => all.into_iter().filter(|parts| parts.is_power_of_two()).collect(),
    };
    let layout = |tensor_parallel, pipeline_parallel| Layout { tensor_parallel, pipeline_parallel };
    let is_possible = |layout: &Layout| layout.check(architecture, rack).is_ok();
    let single: Vec<Layout> = within.iter().map(|parts| layout(*parts, 1)).filter(is_possible).collect();
    let widest = single.last().copied().unwrap_or(layout(1, 1));
    let mut order: Vec<Layout> = if parameters > LARGE_PARAMETERS {
        vec![widest]
    } else if parameters >= MEDIUM_PARAMETERS {
        let (divided, whole): (Vec<_>, Vec<_>) = single.iter().partition(|layout| layout.tensor_parallel > 1);
        divided.into_iter().chain(whole).collect()
    } else {
        single
    };
    order.extend((2..=nodes).map(|stages| layout(widest.tensor_parallel, stages)).filter(is_possible));
    if order.is_empty() {
        order.push(layout(1, 1));
    }
    order
}

/// Which layers each of `pipeline_parallel` stages has: alike, and what is left over one each to the stages before the
/// last, which has the output head (as vLLM divides them).
pub(super) fn stages(layers: u64, pipeline_parallel: u64) -> Vec<Range<usize>> {
    let count = pipeline_parallel.clamp(1, layers.max(1));
    let (each, left) = (layers / count, layers % count);
    let mut sizes = vec![each; count as usize];
    for at in 0..left {
        sizes[(count - 2 - at) as usize] += 1;
    }
    let mut at = 0;
    let mut range = |size: u64| {
        let from = at;
        at += size as usize;
        from..at
    };
    sizes.into_iter().map(&mut range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_goes_before_the_last_stage() {
        let sizes = |layers, stages_wanted| {
            stages(layers, stages_wanted).iter().map(ExactSizeIterator::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(61, 2), [31, 30]);
        assert_eq!(sizes(61, 4), [15, 15, 16, 15]);
        assert_eq!(sizes(7, 4), [2, 2, 2, 1]);
        assert_eq!(sizes(80, 1), [80]);
        assert_eq!(stages(3, 2), [0..2, 2..3]);
    }

    #[test]
    fn the_class_of_a_size_says_what_is_tried_first() {
        let order = |parameters, rack: &str| {
            let rack = Rack::parse(rack).expect(rack);
            let tried = candidates(parameters, None, &rack).into_iter();
            tried.map(|layout| (layout.tensor_parallel, layout.pipeline_parallel)).collect::<Vec<_>>()
        };
        assert_eq!(order(8_000_000_000, "H100:8"), [(1, 1), (2, 1), (4, 1), (8, 1)]);
        assert_eq!(order(70_000_000_000, "H100:8"), [(2, 1), (4, 1), (8, 1), (1, 1)]);
        assert_eq!(order(70_000_000_000, "H100:1"), [(1, 1)]);
        assert_eq!(order(671_000_000_000, "H100:8"), [(8, 1)]);
        assert_eq!(order(671_000_000_000, "H100:24"), [(8, 1), (8, 2), (8, 3)]);
    }
}
