//! Whether the model fits the GPUs that are there, by the arithmetic of `cic plan`.

use std::path::Path;

use cic_common::assignment::Assignment;
use cic_common::fit::config::CONFIG_NAME;
use cic_common::fit::directory::{architecture, found};
use cic_common::fit::{Judgement, LayoutFault, PlanFault, Verdict, flags, judge_engine};
use tracing::{debug, info};

use crate::core::GpuFacts;

/// Flags under which a GPU holds less, or other things, than is reckoned with, or GPUs of other nodes count.
const UNJUDGED: [&str; 19] = [
    "--config",
    "--convert",
    "--cpu-offload-gb",
    "--data-parallel-size",
    "-dp",
    "--decode-context-parallel-size",
    "-dcp",
    "--distributed-executor-backend",
    "--enable-expert-parallel",
    "-ep",
    "--hf-overrides",
    "--kv-cache-memory-bytes",
    "--nnodes",
    "-n",
    "--num-gpu-blocks-override",
    "--prefill-context-parallel-size",
    "-pcp",
    "--runner",
    "--task",
];

/// Why the engine of `assignment` would run out of memory, or refuse its flags, once it has loaded for minutes. `None` where
/// it fits, where it might, and where it cannot be told.
pub(super) async fn misfit(assignment: &Assignment, gpus: &GpuFacts) -> Option<String> {
    let name = gpus.name.clone()?;
    let is_even = gpus.memory.iter().all(|memory| Some(memory) == gpus.memory.first());
    if gpus.memory.is_empty() || !is_even || is_unjudged(assignment) {
        return None;
    }
    let directory = assignment.model.path.clone();
    let (args, memory) =
        (assignment.engine.args.clone(), gpus.memory.iter().map(|memory| memory.0).collect());
    let judged =
        tokio::task::spawn_blocking(move || judged(Path::new(&directory), &name, memory, &args)).await;
    let judgement = match judged.ok()? {
        Ok(judgement) => judgement,
        // Nodes of more than eight GPUs are not reckoned with.
        Err(Unjudged::Fault(
            fault @ PlanFault::Layout(LayoutFault::Gpus { .. } | LayoutFault::Tensor { .. }),
        )) => {
            return Some(format!("{}: {fault}", assignment.model.path));
        }
        // vLLM may know more of it, also of how long a sequence may be.
        Err(unjudged) => {
            debug!(path = assignment.model.path, ?unjudged, "whether the model fits is not judged");
            return None;
        }
    };
    match judgement.verdict {
        Verdict::DoesNotFit => Some(format!("{}: {}", assignment.model.path, judgement.why_not())),
        Verdict::Tight => {
            info!(path = assignment.model.path, why = judgement.why_not(), "the model may not fit");
            None
        }
        Verdict::Fits => None,
    }
}

#[derive(Debug)]
enum Unjudged {
    /// Of the files, in words.
    Files(#[allow(dead_code, reason = "for the log")] String),
    Fault(PlanFault),
}

fn judged(directory: &Path, gpu: &str, memory: Vec<u64>, args: &[String]) -> Result<Judgement, Unjudged> {
    let architecture = architecture(&directory.join(CONFIG_NAME)).map_err(Unjudged::Files)?;
    if !architecture.is_known_family {
        return Err(Unjudged::Files(format!("the family {:?} is not known", architecture.family)));
    }
    // Engines divide these in their own ways.
    if architecture.vision.is_some() {
        return Err(Unjudged::Files("a part of it sees".to_owned()));
    }
    let weights = found(directory, &architecture).map_err(Unjudged::Files)?;
    judge_engine(&architecture, weights, gpu, &memory, args).map_err(Unjudged::Fault)
}

fn is_unjudged(assignment: &Assignment) -> bool {
    let name = |arg: &String| arg.split('=').next().unwrap_or(arg).replace('_', "-");
    // Then not all GPUs of the node are the engine's.
    let sees_some = assignment.engine.env.contains_key("CUDA_VISIBLE_DEVICES");
    // vLLM takes a beginning that only one flag has.
    let is_short = |name: &str| {
        let is_beginning = |flag: &&str| flag.len() > name.len() && flag.starts_with(name);
        name.starts_with("--") && UNJUDGED.iter().chain(&flags::READ).any(is_beginning)
    };
    let is_odd = |name: String| UNJUDGED.contains(&name.as_str()) || is_short(&name);
    sees_some || assignment.engine.args.iter().map(name).any(is_odd)
}

#[cfg(test)]
mod tests {
    use cic_common::assignment::{EngineSpec, ModelSpec};
    use cic_common::id::DeploymentName;
    use cic_common::units::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_model_that_cannot_fit_is_refused_with_what_would_and_one_that_may_is_not() {
        let root = tempfile::tempdir().unwrap();
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../common/src/fit/fixtures");
        let misfit_of = async |model: &str, gpus: usize, mib: u64, line: &str| {
            std::fs::copy(format!("{fixtures}/{model}.json"), root.path().join(CONFIG_NAME)).unwrap();
            let assignment = Assignment {
                deployment: DeploymentName::new("d").unwrap(),
                model: ModelSpec::at("m", &root.path().display().to_string()),
                engine: EngineSpec {
                    program: "vllm".to_owned(),
                    args: line.split_whitespace().map(str::to_owned).collect(),
                    env: std::collections::BTreeMap::new(),
                },
            };
            let facts = GpuFacts {
                count: Some(gpus as u32),
                name: Some("NVIDIA H100 80GB HBM3".to_owned()),
                memory: vec![Bytes::mib(mib); gpus],
                ..GpuFacts::default()
            };
            misfit(&assignment, &facts).await
        };
        for (model, gpus, mib, line, said) in [
            ("deepseek-v3", 8, 81_559, "-tp 8", "what would fit: --gpu NVIDIA H100 80GB HBM3:16"),
            ("llama-3.1-70b", 8, 81_559, "", "what would fit: "),
            ("llama-3.1-8b", 1, 81_559, "-tp 2", "2"),
        ] {
            let reason = misfit_of(model, gpus, mib, line)
                .await
                .unwrap_or_else(|| panic!("{model} {line} is refused"));
            assert!(reason.contains(said), "{model} {line}: {reason}");
        }
        for (model, gpus, mib, line) in [
            ("llama-3.1-8b", 1, 81_559, ""),
            ("llama-3.1-8b", 1, 37_000, ""),
            ("llama-3.1-70b", 8, 81_559, "-tp 4"),
            ("deepseek-v3", 8, 81_559, "-tp 8 --cpu-offload-gb=20"),
            ("llama-3.1-8b", 1, 81_559, "--kv-cache-dtype something-new"),
            ("llama-3.1-8b", 1, 81_559, "--max-model-len 1000000"),
            ("llama-3.1-70b", 8, 81_559, "--tensor-parallel 8"),
            ("llama-3.1-70b", 8, 81_559, "--data-parallel 2"),
            ("qwen3-30b-a3b", 8, 81_559, "-tp 8 --enable-expert-parallel"),
            ("deepseek-v3", 16, 81_559, "-tp 16"),
            ("llama-3.1-8b", 1, 24_000, "--max-model-len auto --enforce-eager"),
            ("llama-3.1-8b", 1, 81_559, "-tp 2 --distributed-executor-backend ray"),
        ] {
            assert_eq!(misfit_of(model, gpus, mib, line).await, None, "{model} {line}");
        }
    }
}
