//! Whether the model fits the GPUs that are there, by the arithmetic of `cic plan`.

use std::path::Path;

use cic_common::assignment::Assignment;
use cic_common::fit::config::CONFIG_NAME;
use cic_common::fit::directory::{architecture, found};
use cic_common::fit::{Judgement, PlanFault, Verdict, judge_engine};
use tracing::{debug, info};

use crate::core::GpuFacts;

/// Flags under which a GPU holds less, or other things, than is reckoned with.
const UNJUDGED: [&str; 14] = [
    "--config",
    "--convert",
    "--cpu-offload-gb",
    "--data-parallel-size",
    "-dp",
    "--decode-context-parallel-size",
    "-dcp",
    "--hf-overrides",
    "--kv-cache-memory-bytes",
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
    if gpus.memory.is_empty() || is_unjudged(assignment) {
        return None;
    }
    let directory = assignment.model.path.clone();
    let (args, memory) =
        (assignment.engine.args.clone(), gpus.memory.iter().map(|memory| memory.0).collect());
    let judged =
        tokio::task::spawn_blocking(move || judged(Path::new(&directory), &name, memory, &args)).await;
    let judgement = match judged.ok()? {
        Ok(judgement) => judgement,
        Err(Unjudged::Fault(fault @ (PlanFault::Layout(_) | PlanFault::Long { .. }))) => {
            return Some(format!("{}: {fault}", assignment.model.path));
        }
        // vLLM may know more of it.
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
    let weights = found(directory, &architecture).map_err(Unjudged::Files)?;
    judge_engine(&architecture, weights, gpu, &memory, args).map_err(Unjudged::Fault)
}

fn is_unjudged(assignment: &Assignment) -> bool {
    let name = |arg: &String| arg.split('=').next().unwrap_or(arg).replace('_', "-");
    // Then not all GPUs of the node are the engine's.
    let sees_some = assignment.engine.env.contains_key("CUDA_VISIBLE_DEVICES");
    sees_some || assignment.engine.args.iter().any(|arg| UNJUDGED.contains(&name(arg).as_str()))
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
            ("llama-3.1-8b", 1, 81_559, "--max-model-len 1000000", "more than the 131072 positions"),
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
        ] {
            assert_eq!(misfit_of(model, gpus, mib, line).await, None, "{model} {line}");
        }
    }
}
