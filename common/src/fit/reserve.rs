//! What an engine keeps of a GPU's memory for itself, beside weights and KV cache.
//!
//! Estimates on the safe side of what vLLM measures when it starts: it runs one step of the most tokens and sequences that it
//! may be given, takes the peak, and leaves the rest to the KV cache. Newer versions keep context and graphs outside of
//! `gpu_memory_utilization`; here they count within it, as they did.

use super::config::{Architecture, Attention, Mlp};
use super::gpu::Gpu;

const MIB: u64 = 1 << 20;

/// What the driver keeps of what `nvidia-smi` shows: the most that was seen, on an A100 with 80 GB (81920 MiB, of which CUDA
/// offers 79.15 GiB); 440 to 730 MiB on H100 and B200.
pub(super) const DRIVER_BYTES: u64 = 896 * MIB;

/// Context, kernels and the workspaces of libraries. vLLM measured 1.8 GiB on an H100 at the end of 2024 (its pull request
/// 10511), and 0.2 GiB beside the context since (12126).
const CONTEXT_BYTES: u64 = 1024 * MIB;

/// Buffers of NCCL and of vLLM's own all-reduce, where there are several GPUs: in that pull request another 1.8 GiB with two
/// GPUs; less has been seen since.
const COLLECTIVES_BYTES: u64 = 2048 * MIB;

/// CUDA graphs: engines say 0.2 to 1.5 GiB when they have captured them, more with more sizes than layers.
const GRAPH_BYTES: u64 = 1024 * MIB;

/// Copies of the logits in 32 bits that sampling takes: themselves, sorted, their order, and probabilities.
const LOGIT_BYTES: u64 = 16;

/// Of one activation.
const ACTIVATION_BYTES: u64 = 2;

/// Tokens whose keys and values latent attention unpacks at a time (vLLM's workspace for chunks of a prompt).
const LATENT_TOKENS: u64 = 64 * 1024;

/// Activations of a model of which only the size is known: what published ones come to below, in large steps (2.9 to 6.1
/// GiB) and in small ones (0.6 to 0.8).
const UNKNOWN_LARGE_BYTES: u64 = 4096 * MIB;
const UNKNOWN_SMALL_BYTES: u64 = 1024 * MIB;

/// Of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) tokens: u64,
    pub(super) sequences: u64,
}

impl Step {
    /// What vLLM's server takes by itself on such a GPU (`EngineArgs.get_batch_defaults`).
    pub(super) fn on(gpu: &Gpu) -> Self {
        if gpu.takes_large_steps() {
            Self { tokens: 8192, sequences: 1024 }
        } else {
            Self { tokens: 2048, sequences: 256 }
        }
    }
}

/// Context, libraries and, with several GPUs, what they talk by.
pub(super) fn runtime_bytes(gpus: u64) -> u64 {
    CONTEXT_BYTES + if gpus > 1 { COLLECTIVES_BYTES } else { 0 }
}

pub(super) fn graph_bytes(is_eager: bool) -> u64 {
    if is_eager { 0 } else { GRAPH_BYTES }
}

/// Of a model whose shape is not known.
pub(super) fn unknown_activation_bytes(gpu: &Gpu) -> u64 {
    if gpu.takes_large_steps() { UNKNOWN_LARGE_BYTES } else { UNKNOWN_SMALL_BYTES }
}

/// The peak of one step on one of `tensor_parallel` GPUs: the widest layer, and the logits.
pub(super) fn activation_bytes(architecture: &Architecture, step: Step, tensor_parallel: u64) -> u64 {
    let hidden = architecture.hidden;
    let widest =
        architecture.layers.iter().map(|layer| mlp_elements(architecture, &layer.mlp, tensor_parallel));
    // The residual, the normalized, what a part returns, and what is gathered from the other GPUs.
    let token =
        4 * hidden + attention_elements(&architecture.attention, tensor_parallel) + widest.max().unwrap_or(0);
    let tokens = step.tokens.saturating_mul(token).saturating_mul(ACTIVATION_BYTES);
    // vLLM samples at most as many sequences as a step has tokens.
    let sequences = step.sequences.min(step.tokens);
    let logits = sequences.saturating_mul(architecture.vocabulary).saturating_mul(LOGIT_BYTES);
    tokens.saturating_add(logits).saturating_add(latent_bytes(architecture, tensor_parallel))
}

fn attention_elements(attention: &Attention, tensor_parallel: u64) -> u64 {
    match attention {
        Attention::Grouped { heads, kv_heads, head_dim, .. } => {
            (2 * heads.div_ceil(tensor_parallel) + 2 * kv_heads.div_ceil(tensor_parallel)) * head_dim
        }
        Attention::Latent { heads, query_rank, kv_rank, nope_dim, rope_dim, value_dim } => {
            let each = 2 * (nope_dim + rope_dim) + value_dim + kv_rank;
            query_rank.unwrap_or(0) + kv_rank + rope_dim + heads.div_ceil(tensor_parallel) * each
        }
    }
}

/// Gate and projection, their product, and for experts all that a token goes through, with what each returns.
fn mlp_elements(architecture: &Architecture, mlp: &Mlp, tensor_parallel: u64) -> u64 {
    match (mlp, architecture.experts) {
        (Mlp::Dense { intermediate }, _) => 3 * intermediate.div_ceil(tensor_parallel),
        (Mlp::Experts, Some(experts)) => {
            let each = 3 * experts.intermediate.div_ceil(tensor_parallel) + architecture.hidden;
            experts.chosen * each + 3 * experts.shared_intermediate.div_ceil(tensor_parallel)
        }
        (Mlp::Experts, None) => 0,
    }
}

/// Keys and values that are unpacked for a prompt, and the matrices that latent attention keeps a second time in 16 bits.
fn latent_bytes(architecture: &Architecture, tensor_parallel: u64) -> u64 {
    let Attention::Latent { heads, kv_rank, nope_dim, rope_dim, value_dim, .. } = architecture.attention
    else {
        return 0;
    };
    let heads = heads.div_ceil(tensor_parallel);
    let unpacked = LATENT_TOKENS.saturating_mul(heads * (2 * (nope_dim + value_dim) + rope_dim));
    let absorbed = architecture.layers.len() as u64 * heads * (nope_dim + value_dim) * kv_rank;
    unpacked.saturating_add(absorbed).saturating_mul(ACTIVATION_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_8B: &[u8] = include_bytes!("fixtures/llama-3.1-8b.json");

    #[test]
    fn no_less_is_kept_than_vllm_measured() {
        // 1.26 GiB of activations for Llama 3 8B with 8192 tokens and 256 sequences (vLLM's pull request 10511).
        let architecture = Architecture::parse(LLAMA_8B).expect("reads");
        let kept = activation_bytes(&architecture, Step { tokens: 8192, sequences: 256 }, 1);
        let measured = 1290 * MIB;
        assert!((measured..2 * measured).contains(&kept), "{} MiB", kept / MIB);
    }

    #[test]
    fn a_step_is_as_large_as_the_server_makes_it() {
        let step = |name: &str| Step::on(&Gpu::named(name).expect(name)).tokens;
        assert_eq!(["L4", "A100-80", "H100", "MI300X"].map(step), [2048, 2048, 8192, 8192]);
    }
}
