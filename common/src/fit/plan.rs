//! The judgement: whether a model fits GPUs, with the arithmetic.

use serde::Serialize;

use super::config::{Architecture, Layer};
use super::flags::{EngineFlags, FlagFault};
use super::gpu::{Gpu, Rack};
use super::kv::{KvDtype, layer_token_bytes, sequence_bytes, step_bytes, token_bytes};
use super::layout::{Layout, LayoutFault, candidates, stages};
use super::nearest::{Alternative, nearest};
use super::quantization::NoQuantization;
use super::reserve::{
    DRIVER_BYTES, Step, activation_bytes, graph_bytes, runtime_bytes, unknown_activation_bytes,
};
use super::subject::Subject;
use super::weights::{Shares, Source, Weights};
use crate::units::Bytes;

/// The change that no flag makes alone.
const NEEDS_CHECKPOINT: &str = "--quantization int4";

/// Further than any sequence goes whose model knows no bound.
const LENGTH_MAX: u64 = 1 << 24;

/// How it is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Chosen where it is not given.
    pub tensor_parallel: Option<u64>,
    pub pipeline_parallel: Option<u64>,
    /// Tokens of the longest sequence; by default all that the model knows positions for, as vLLM does.
    pub length: Option<u64>,
    pub kv: KvDtype,
    /// Part of the memory that the engine may take.
    pub utilization: f64,
    /// Sequences and tokens of one step; by default what vLLM's server takes on such a GPU.
    pub sequences: Option<u64>,
    pub step_tokens: Option<u64>,
    /// Without CUDA graphs.
    pub is_eager: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            tensor_parallel: None,
            pipeline_parallel: None,
            length: None,
            kv: KvDtype::Auto,
            utilization: 0.9,
            sequences: None,
            step_tokens: None,
            is_eager: false,
        }
    }
}

/// Why nothing can be judged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanFault {
    #[error(transparent)]
    Layout(#[from] LayoutFault),
    #[error(transparent)]
    Flag(#[from] FlagFault),
    #[error(transparent)]
    Quantization(#[from] NoQuantization),
    #[error(
        "{asked} tokens are more than the {positions} positions that the model knows (max_position_embeddings)"
    )]
    Long { asked: u64, positions: u64 },
    #[error(
        "the model does not say how long a sequence may be (max_position_embeddings); give --max-model-len"
    )]
    NoLength,
    #[error("{0} is no part of a GPU's memory; give more than 0 and at most 1")]
    Utilization(f64),
    #[error("no GPU is there")]
    NoGpu,
}

/// Whether it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Weights and one sequence exceed the budget, whatever else the engine keeps.
    DoesNotFit,
    /// They fit only if the engine keeps less for itself than is reckoned with here. Nothing to pay for, and nothing to
    /// refuse an engine for that is installed.
    Tight,
    Fits,
}

/// Memory of one GPU, in bytes; of the stage that has the least room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PerGpu {
    pub memory_bytes: u64,
    pub driver_bytes: u64,
    /// Left to the engine by `gpu_memory_utilization`.
    pub budget_bytes: u64,
    pub weights_bytes: u64,
    pub activation_bytes: u64,
    pub graph_bytes: u64,
    pub runtime_bytes: u64,
    /// For the tokens of one step, in layers with a window.
    pub window_step_bytes: u64,
    /// Left for the KV cache.
    pub kv_bytes: u64,
    /// By which the budget is exceeded before there is any KV cache.
    pub short_bytes: u64,
}

/// What the KV cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Context {
    pub bytes_per_token: u64,
    pub bytes_per_token_per_gpu: u64,
    /// Of the sequences wanted, in tokens.
    pub length: u64,
    /// Of one such sequence on one GPU.
    pub sequence_bytes_per_gpu: u64,
    /// Such sequences at once.
    pub sequences: u64,
    /// Of the longest sequence that fits alone, in tokens.
    pub length_max: u64,
    /// That the model knows.
    pub positions: Option<u64>,
}

/// Whether it fits, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    pub verdict: Verdict,
    pub gpu: String,
    pub gpus: u64,
    pub layout: Layout,
    pub parameters: u64,
    pub weights_bytes: u64,
    pub weights_from: Source,
    pub quantization: String,
    pub kv: KvDtype,
    pub utilization: f64,
    pub step_tokens: u64,
    pub step_sequences: u64,
    pub per_gpu: PerGpu,
    /// None where only the weights are judged.
    pub context: Option<Context>,
    /// What would fit, where this does not.
    pub nearest: Vec<Alternative>,
    /// What one should know of these figures.
    pub notes: Vec<String>,
}

impl Judgement {
    #[must_use]
    pub fn fits(&self) -> bool {
        self.verdict == Verdict::Fits
    }

    /// Why it does not fit and what would, in one sentence.
    #[must_use]
    pub fn why_not(&self) -> String {
        let per_gpu = &self.per_gpu;
        let what = match (&self.context, per_gpu.short_bytes) {
            (Some(context), 0) => format!(
                "and a sequence of {} tokens {}, of which {} are left",
                context.length,
                Bytes(context.sequence_bytes_per_gpu),
                Bytes(per_gpu.kv_bytes)
            ),
            (_, short) => format!("which is {} too much", Bytes(short)),
        };
        let ways: Vec<&str> = self.nearest.iter().map(|way| way.change.as_str()).collect();
        let ways = if ways.is_empty() { "a smaller model".to_owned() } else { ways.join(", or ") };
        format!(
            "it does not fit on {} x {} ({}): of the {} that the engine may take of each GPU the weights take {}, {what}; \
             what would fit: {ways}",
            self.gpus,
            self.gpu,
            self.layout.text(),
            Bytes(per_gpu.budget_bytes),
            Bytes(per_gpu.weights_bytes),
        )
    }
}

/// Judges `subject` on `rack`, in the first layout that fits of those that its size suggests.
///
/// # Errors
/// When what is wanted contradicts the model or the GPUs.
pub fn judge(subject: &Subject, rack: &Rack, wanted: &Wanted) -> Result<Judgement, PlanFault> {
    let mut judgement = judge_alone(subject, rack, wanted)?;
    if !judgement.fits() {
        judgement.nearest = nearest(subject, rack, wanted, &judgement);
        if judgement.nearest.iter().any(|alternative| alternative.change == NEEDS_CHECKPOINT) {
            let note = "int4 takes a checkpoint that was quantized so; fp8 vLLM makes itself of a 16-bit one";
            judgement.notes.push(note.to_owned());
        }
    }
    Ok(judgement)
}

/// Judges a model on the GPUs that are there, under the flags that vLLM will be started with.
///
/// `memory_bytes` is what the driver says each GPU of this node has; the least counts. Stages beyond those of this node are
/// taken to have GPUs alike.
///
/// # Errors
/// When the flags contradict the model or the GPUs, which vLLM would refuse too; or, as [`PlanFault::Quantization`],
/// [`PlanFault::Flag`] and [`PlanFault::NoLength`], when they say something that is not known here, of which vLLM may know
/// more.
pub fn judge_engine(
    architecture: &Architecture,
    found: Option<Weights>,
    gpu_name: &str,
    memory_bytes: &[u64],
    args: &[String],
) -> Result<Judgement, PlanFault> {
    let EngineFlags { wanted, quantization } = EngineFlags::parse(args)?;
    let least = *memory_bytes.iter().min().ok_or(PlanFault::NoGpu)?;
    let gpu = Gpu { name: gpu_name.to_owned(), memory_bytes: least };
    let here = memory_bytes.len() as u64;
    let stages = wanted.pipeline_parallel.unwrap_or(1);
    let elsewhere = if stages > 1 { wanted.tensor_parallel.unwrap_or(1).saturating_mul(stages) } else { 0 };
    let rack = Rack { gpu, count: here.max(elsewhere) };
    let subject = Subject::Model { architecture: architecture.clone(), found };
    let subject = match quantization {
        Some(word) => subject.under(&word)?,
        None => subject,
    };
    judge(&subject, &rack, &wanted)
}

/// [`judge`] without looking for what else would fit.
pub(super) fn judge_alone(subject: &Subject, rack: &Rack, wanted: &Wanted) -> Result<Judgement, PlanFault> {
    if !(wanted.utilization > 0.0 && wanted.utilization <= 1.0) {
        return Err(PlanFault::Utilization(wanted.utilization));
    }
    let weights = subject.weights();
    let length = length(subject, wanted)?;
    let mut best: Option<Judgement> = None;
    for layout in layouts(subject, &weights, rack, wanted)? {
        let judgement = Trial { subject, weights: &weights, rack, wanted, layout, length }.judgement();
        if judgement.fits() {
            return Ok(judgement);
        }
        // Of those that come equally close the one with the most GPUs says what is missing at least.
        let closeness = |judgement: &Judgement| (judgement.verdict, judgement.layout.gpus());
        if best.as_ref().is_none_or(|best| closeness(best) <= closeness(&judgement)) {
            best = Some(judgement);
        }
    }
    best.ok_or(PlanFault::NoGpu)
}

fn length(subject: &Subject, wanted: &Wanted) -> Result<u64, PlanFault> {
    let Some(architecture) = subject.architecture() else { return Ok(0) };
    match (wanted.length, architecture.positions) {
        (Some(asked), Some(positions)) if asked > positions => Err(PlanFault::Long { asked, positions }),
        (asked, positions) => asked
            .or(architecture.length_default)
            .or(positions)
            .map(|length| length.min(LENGTH_MAX))
            .ok_or(PlanFault::NoLength),
    }
}

/// Those that are tried, the preferred first.
fn layouts(
    subject: &Subject,
    weights: &Weights,
    rack: &Rack,
    wanted: &Wanted,
) -> Result<Vec<Layout>, PlanFault> {
    let architecture = subject.architecture();
    let layout = |tensor_parallel, pipeline_parallel| Layout { tensor_parallel, pipeline_parallel };
    let given: Vec<Layout> = match (wanted.tensor_parallel, wanted.pipeline_parallel) {
        (None, None) => return Ok(candidates(weights.parameters, architecture, rack)),
        (Some(tensor), Some(pipeline)) => vec![layout(tensor, pipeline)],
        (Some(tensor), None) => {
            (1..=(rack.count / tensor.max(1)).max(1)).map(|pipeline| layout(tensor, pipeline)).collect()
        }
        (None, Some(pipeline)) => (1..=rack.node_gpus()).map(|tensor| layout(tensor, pipeline)).collect(),
    };
    let (possible, faults): (Vec<_>, Vec<_>) = given
        .into_iter()
        .map(|layout| layout.check(architecture, rack).map(|()| layout))
        .partition(Result::is_ok);
    let possible: Vec<Layout> = possible.into_iter().flatten().collect();
    match faults.into_iter().find_map(Result::err) {
        Some(fault) if possible.is_empty() => Err(fault.into()),
        _ => Ok(possible),
    }
}

/// One way to run it.
struct Trial<'a> {
    subject: &'a Subject,
    weights: &'a Weights,
    rack: &'a Rack,
    wanted: &'a Wanted,
    layout: Layout,
    length: u64,
}

impl Trial<'_> {
    fn judgement(&self) -> Judgement {
        let on_stages = self.weights.on_each_stage(self.layout).into_iter().enumerate();
        let tried = on_stages.map(|(stage, weights_bytes)| self.stage(stage, weights_bytes));
        let room = |tried: &(PerGpu, Option<Context>)| {
            let (per_gpu, context) = tried;
            (
                context.map_or(0, |context| context.length_max),
                per_gpu.kv_bytes,
                u64::MAX - per_gpu.short_bytes,
            )
        };
        let (per_gpu, context) = tried.min_by_key(room).unwrap_or_else(|| self.stage(0, 0));
        let step = self.step();
        Judgement {
            verdict: match per_gpu.short_bytes == 0 && context.is_none_or(|context| context.sequences > 0) {
                true => Verdict::Fits,
                false if self.could_fit() => Verdict::Tight,
                false => Verdict::DoesNotFit,
            },
            gpu: self.rack.gpu.name.clone(),
            gpus: self.rack.count,
            layout: self.layout,
            parameters: self.weights.parameters,
            weights_bytes: self.weights.total_bytes(),
            weights_from: self.weights.source,
            quantization: self.subject.quantization().text(),
            kv: self.wanted.kv,
            utilization: self.wanted.utilization,
            step_tokens: step.tokens,
            step_sequences: step.sequences,
            per_gpu,
            context,
            nearest: Vec::new(),
            notes: self.notes(),
        }
    }

    /// Whether every stage would hold what is needed from the first request on, and one sequence, with nothing else.
    fn could_fit(&self) -> bool {
        let needed = Weights { mtp: Shares::default(), ..self.weights.clone() };
        let most = (self.rack.gpu.memory_bytes as f64 * self.wanted.utilization) as u64;
        let mut on_stages = needed.on_each_stage(self.layout).into_iter().enumerate();
        on_stages.all(|(stage, bytes)| {
            let sequence = self.described(stage).map_or(0, |(architecture, layers)| {
                let tensor = self.layout.tensor_parallel;
                sequence_bytes(architecture, layers, self.wanted.kv, tensor, self.length)
            });
            bytes.saturating_add(sequence) <= most
        })
    }

    /// The model, and the layers of one stage.
    fn described(&self, stage: usize) -> Option<(&Architecture, &[Layer])> {
        let architecture = self.subject.architecture()?;
        let ranges = stages(architecture.layers.len() as u64, self.layout.pipeline_parallel);
        Some((architecture, architecture.layers.get(ranges.get(stage)?.clone())?))
    }

    fn step(&self) -> Step {
        let usual = Step::on(&self.rack.gpu);
        Step {
            tokens: self.wanted.step_tokens.unwrap_or(usual.tokens),
            sequences: self.wanted.sequences.unwrap_or(usual.sequences),
        }
    }

    fn stage(&self, stage: usize, weights_bytes: u64) -> (PerGpu, Option<Context>) {
        let memory_bytes = self.rack.gpu.memory_bytes;
        let usable = memory_bytes.saturating_sub(DRIVER_BYTES);
        let budget_bytes = (usable as f64 * self.wanted.utilization) as u64;
        let (tensor, step) = (self.layout.tensor_parallel, self.step());
        let described = self.described(stage);
        let activation_bytes = match described {
            Some((architecture, _)) => activation_bytes(architecture, step, tensor),
            None => unknown_activation_bytes(&self.rack.gpu),
        };
        let window_step_bytes = described.map_or(0, |(architecture, layers)| {
            step_bytes(architecture, layers, self.wanted.kv, tensor, step.tokens.min(self.length))
        });
        let (graph_bytes, runtime_bytes) =
            (graph_bytes(self.wanted.is_eager), runtime_bytes(self.layout.gpus()));
        let taken = [activation_bytes, window_step_bytes, graph_bytes, runtime_bytes]
            .into_iter()
            .fold(weights_bytes, u64::saturating_add);
        let kv_bytes = budget_bytes.saturating_sub(taken);
        let per_gpu = PerGpu {
            memory_bytes,
            driver_bytes: memory_bytes - usable,
            budget_bytes,
            weights_bytes,
            activation_bytes,
            graph_bytes,
            runtime_bytes,
            window_step_bytes,
            kv_bytes,
            short_bytes: taken.saturating_sub(budget_bytes),
        };
        let context = described.map(|(architecture, layers)| {
            let kept = |tokens| sequence_bytes(architecture, layers, self.wanted.kv, tensor, tokens);
            let each = layer_token_bytes(&architecture.attention, self.wanted.kv, tensor);
            let sequence_bytes_per_gpu = kept(self.length);
            Context {
                bytes_per_token: token_bytes(architecture, self.wanted.kv),
                bytes_per_token_per_gpu: layers.len() as u64 * each,
                length: self.length,
                sequence_bytes_per_gpu,
                sequences: kv_bytes / sequence_bytes_per_gpu.max(1),
                length_max: longest(architecture.positions.unwrap_or(LENGTH_MAX).min(LENGTH_MAX), |tokens| {
                    kept(tokens) <= kv_bytes
                }),
                positions: architecture.positions,
            }
        });
        (per_gpu, context)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(architecture) = self.subject.architecture() else {
            notes.push("only the weights are judged, since nothing but the size is known".to_owned());
            return notes;
        };
        if !architecture.is_known_family {
            let family = &architecture.family;
            notes.push(format!("model_type {family:?} is not known here and is counted as a Llama"));
        }
        if self.weights.mtp.total() > 0 {
            let billions = self.weights.mtp.total() as f64 / 1e9;
            notes.push(format!(
                "{billions:.1} GB of the weights are layers that predict further tokens; vLLM loads them only with \
                 speculative decoding"
            ));
        }
        if architecture.vision.is_some() {
            notes.push("what images take while they are encoded is not counted".to_owned());
        }
        for pattern in &architecture.scheme.unread {
            notes.push(format!("{pattern:?} in quantization_config could not be read and keeps no module"));
        }
        notes
    }
}

/// The most tokens up to `most` that fit; what fits must go on fitting when there is less of it.
fn longest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut fitting, mut beyond) = (0, most + 1);
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    fitting
}
