//! What would fit, where something does not: the least change of each kind.

use serde::Serialize;

use super::gpu::{NODE_GPUS, Rack};
use super::kv::KvDtype;
use super::layout::Layout;
use super::plan::{Judgement, Wanted, judge_alone};
use super::quantization::Quantization;
use super::subject::Subject;

/// More nodes of one replica than are proposed.
const NODES_MAX: u64 = 4;

/// A shorter context is rounded down to these, and not proposed below.
const LENGTH_STEP: u64 = 1024;

/// A step that is as small as servers of few users make it: tokens and sequences.
const SMALL_STEP: (u64, u64) = (2048, 64);

/// A change after which it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alternative {
    /// The flags that say so: `--gpu H200:8`.
    pub change: String,
    pub layout: Layout,
    /// Sequences of the wanted length that fit then; None where only the weights are judged.
    pub sequences: Option<u64>,
}

/// In this order: other layouts, fewest GPUs of the same kind, the same number of the next larger kind, a smaller KV cache,
/// smaller weights, smaller steps, a shorter context.
pub(super) fn nearest(
    subject: &Subject,
    rack: &Rack,
    wanted: &Wanted,
    refused: &Judgement,
) -> Vec<Alternative> {
    let free = Wanted { tensor_parallel: None, pipeline_parallel: None, ..wanted.clone() };
    let mut found = Vec::new();
    if free != *wanted {
        found.extend(fitting(subject, rack, &free, |layout| layout_flags(&layout)));
    }
    let more = [1, 2, 4].into_iter().chain((1..=NODES_MAX).map(|nodes| nodes * NODE_GPUS));
    let more = more.filter(|count| *count > rack.count);
    let more: Vec<Rack> = more.map(|count| Rack { gpu: rack.gpu.clone(), count }).collect();
    let larger: Vec<Rack> =
        rack.gpu.larger().into_iter().map(|gpu| Rack { gpu, count: rack.count }).collect();
    for racks in [more, larger] {
        let first =
            racks.iter().find_map(|rack| fitting(subject, rack, &free, |_| format!("--gpu {}", rack.text())));
        found.extend(first);
    }
    if wanted.kv.bytes() > 1 && subject.architecture().is_some() {
        let smaller = Wanted { kv: KvDtype::Fp8, ..wanted.clone() };
        found.extend(fitting(subject, rack, &smaller, |_| "--kv-cache-dtype fp8".to_owned()));
    }
    found.extend(smaller_weights(subject.quantization()).iter().find_map(|word| {
        let subject = subject.under(word).ok()?;
        fitting(&subject, rack, wanted, |_| format!("--quantization {word}"))
    }));
    let (tokens, sequences) = SMALL_STEP;
    if tokens < refused.step_tokens && sequences < refused.step_sequences && subject.architecture().is_some()
    {
        let small = Wanted { step_tokens: Some(tokens), sequences: Some(sequences), ..wanted.clone() };
        let flags = format!("--max-num-batched-tokens {tokens} --max-num-seqs {sequences}");
        found.extend(fitting(subject, rack, &small, |_| flags.clone()));
    }
    found.extend(refused.context.and_then(|context| {
        let length = context.length_max / LENGTH_STEP * LENGTH_STEP;
        let shorter = Wanted { length: Some(length), ..wanted.clone() };
        (length > 0).then(|| fitting(subject, rack, &shorter, |_| format!("--max-model-len {length}")))?
    }));
    found
}

fn fitting(
    subject: &Subject,
    rack: &Rack,
    wanted: &Wanted,
    change: impl Fn(Layout) -> String,
) -> Option<Alternative> {
    let judgement = judge_alone(subject, rack, wanted).ok().filter(Judgement::fits)?;
    Some(Alternative {
        change: change(judgement.layout),
        layout: judgement.layout,
        sequences: judgement.context.map(|context| context.sequences),
    })
}

fn layout_flags(layout: &Layout) -> String {
    format!("--tp {} --pp {}", layout.tensor_parallel, layout.pipeline_parallel)
}

/// Words that take less than `now`, the most first.
fn smaller_weights(now: Quantization) -> &'static [&'static str] {
    match now {
        Quantization::Plain => &["fp8", "int4"],
        Quantization::Fp8 { .. } | Quantization::Int8 => &["int4"],
        Quantization::Packed { bits, .. } if bits > 4 => &["int4"],
        Quantization::Packed { .. } | Quantization::Mxfp4 | Quantization::Nvfp4 => &[],
    }
}
