//! The weights that an architecture has, tensor by tensor, as its config.json implies them.

use super::config::{Architecture, Attention, Experts, Mlp};
use super::quantization::PLAIN_BYTES;
use super::weights::{Shares, Source, Weights};

/// How tensor parallelism divides a tensor.
#[derive(Clone, Copy)]
enum Divided {
    Evenly,
    ByKvHead,
    Not,
}

/// Counts the weights of a model.
pub(super) fn count(architecture: &Architecture) -> Weights {
    let Architecture { hidden, vocabulary, layers, .. } = architecture;
    let mut parameters = Sum::default();
    let mut part = |count: &dyn Fn(&mut Counter<'_>)| {
        let mut counter = Counter { architecture, shares: Shares::default(), parameters: 0 };
        count(&mut counter);
        parameters.add(counter.parameters);
        counter.shares
    };
    let embedding = part(&|counter| counter.plain(vocabulary * hidden, Divided::Evenly));
    let each = layers.iter().enumerate();
    let counted = each.map(|(at, layer)| part(&|counter| counter.layer(at as u64, &layer.mlp))).collect();
    let head = part(&|counter| {
        counter.plain(*hidden, Divided::Not);
        if !architecture.ties_embeddings {
            counter.plain(vocabulary * hidden, Divided::Evenly);
        }
    });
    let mtp = part(&|counter| counter.further_layers());
    let vision = part(&|counter| {
        counter.plain(architecture.vision.map_or(0, |vision| vision.parameters()), Divided::Not);
    });
    Weights {
        source: Source::Config,
        parameters: parameters.0,
        kv_heads: kv_heads(&architecture.attention),
        ties_embeddings: architecture.ties_embeddings,
        embedding,
        layers: counted,
        head,
        mtp,
        vision,
    }
}

/// Among how many GPUs keys and values divide; latent attention has none that do.
pub(super) fn kv_heads(attention: &Attention) -> u64 {
    match attention {
        Attention::Grouped { kv_heads, .. } => *kv_heads,
        Attention::Latent { .. } => 1,
    }
}

#[derive(Default)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, more: u64) {
        self.0 = self.0.saturating_add(more);
    }
}

struct Counter<'a> {
    architecture: &'a Architecture,
    shares: Shares,
    parameters: u64,
}

impl Counter<'_> {
    /// `times` matrices of module `name`, stored as the checkpoint's scheme says.
    fn matrices(&mut self, times: u64, name: &str, outputs: u64, inputs: u64, divided: Divided) {
        let bytes = self.architecture.scheme.of_module(name).matrix_bytes(outputs, inputs);
        self.take(times.saturating_mul(outputs * inputs), times.saturating_mul(bytes), divided);
    }

    fn matrix(&mut self, name: &str, outputs: u64, inputs: u64, divided: Divided) {
        self.matrices(1, name, outputs, inputs, divided);
    }

    /// What is never quantized.
    fn plain(&mut self, elements: u64, divided: Divided) {
        self.take(elements, elements.saturating_mul(PLAIN_BYTES), divided);
    }

    fn take(&mut self, elements: u64, bytes: u64, divided: Divided) {
        self.parameters = self.parameters.saturating_add(elements);
        let more = match divided {
            Divided::Evenly => Shares { even: bytes, ..Shares::default() },
            Divided::ByKvHead => Shares { by_kv_head: bytes, ..Shares::default() },
            Divided::Not => Shares { whole: bytes, ..Shares::default() },
        };
        self.shares = self.shares.plus(&more);
    }

    fn layer(&mut self, at: u64, mlp: &Mlp) {
        let architecture = self.architecture;
        self.plain(architecture.norm_vectors * architecture.hidden, Divided::Not);
        self.attention(&format!("model.layers.{at}.self_attn"));
        match (mlp, &architecture.experts) {
            (Mlp::Dense { intermediate }, _) => self.dense(&format!("model.layers.{at}.mlp"), *intermediate),
            (Mlp::Experts, Some(experts)) => self.experts(&format!("model.layers.{at}.mlp"), experts),
            (Mlp::Experts, None) => {}
        }
    }

    fn attention(&mut self, name: &str) {
        let hidden = self.architecture.hidden;
        match self.architecture.attention {
            Attention::Grouped {
                heads,
                kv_heads,
                head_dim,
                has_qkv_bias,
                has_output_bias,
                has_head_norms,
                has_sinks,
            } => {
                let (query, kv) = (heads * head_dim, kv_heads * head_dim);
                self.matrix(&format!("{name}.q_proj"), query, hidden, Divided::Evenly);
                self.matrix(&format!("{name}.k_proj"), kv, hidden, Divided::ByKvHead);
                self.matrix(&format!("{name}.v_proj"), kv, hidden, Divided::ByKvHead);
                self.matrix(&format!("{name}.o_proj"), hidden, query, Divided::Evenly);
                if has_qkv_bias {
                    self.plain(query + 2 * kv, Divided::Not);
                }
                if has_output_bias {
                    self.plain(hidden, Divided::Not);
                }
                if has_head_norms {
                    self.plain(2 * head_dim, Divided::Not);
                }
                if has_sinks {
                    self.plain(heads, Divided::Not);
                }
            }
            Attention::Latent { heads, query_rank, kv_rank, nope_dim, rope_dim, value_dim } => {
                let query = heads * (nope_dim + rope_dim);
                match query_rank {
                    None => self.matrix(&format!("{name}.q_proj"), query, hidden, Divided::Evenly),
                    Some(rank) => {
                        self.matrix(&format!("{name}.q_a_proj"), rank, hidden, Divided::Not);
                        self.plain(rank, Divided::Not);
                        self.matrix(&format!("{name}.q_b_proj"), query, rank, Divided::Evenly);
                    }
                }
                let latent = kv_rank + rope_dim;
                self.matrix(&format!("{name}.kv_a_proj_with_mqa"), latent, hidden, Divided::Not);
                self.plain(kv_rank, Divided::Not);
                let key_value = heads * (nope_dim + value_dim);
                self.matrix(&format!("{name}.kv_b_proj"), key_value, kv_rank, Divided::Evenly);
                self.matrix(&format!("{name}.o_proj"), hidden, heads * value_dim, Divided::Evenly);
            }
        }
    }

    fn dense(&mut self, name: &str, intermediate: u64) {
        let hidden = self.architecture.hidden;
        let inward = self.architecture.mlp_matrices - 1;
        self.matrices(inward, &format!("{name}.up_proj"), intermediate, hidden, Divided::Evenly);
        self.matrix(&format!("{name}.down_proj"), hidden, intermediate, Divided::Evenly);
        if self.architecture.has_mlp_bias {
            self.plain(inward * intermediate + hidden, Divided::Not);
        }
    }

    fn experts(&mut self, name: &str, experts: &Experts) {
        let (hidden, count) = (self.architecture.hidden, experts.count);
        let inward = self.architecture.mlp_matrices - 1;
        let each = format!("{name}.experts.0");
        self.plain(count * hidden, Divided::Not);
        self.matrices(
            count * inward,
            &format!("{each}.up_proj"),
            experts.intermediate,
            hidden,
            Divided::Evenly,
        );
        self.matrices(count, &format!("{each}.down_proj"), hidden, experts.intermediate, Divided::Evenly);
        if experts.has_bias {
            self.plain(count * (inward * experts.intermediate + hidden + 1), Divided::Not);
        }
        if experts.shared_intermediate > 0 {
            self.dense(&format!("{name}.shared_experts"), experts.shared_intermediate);
        }
        if experts.has_shared_gate {
            self.plain(hidden, Divided::Not);
        }
    }

    /// A layer as the last one, behind a matrix that joins two hidden states, each with embeddings and an output head of
    /// its own (DeepSeek-V3).
    fn further_layers(&mut self) {
        let architecture = self.architecture;
        let (hidden, vocabulary) = (architecture.hidden, architecture.vocabulary);
        let count = architecture.layers.len() as u64;
        let Some(last) = architecture.layers.last() else { return };
        for further in 0..architecture.mtp_layers {
            self.layer(count + further, &last.mlp);
            self.plain(2 * hidden * hidden, Divided::Not);
            self.plain(3 * hidden, Divided::Not);
            self.plain(2 * vocabulary * hidden, Divided::Evenly);
        }
    }
}
