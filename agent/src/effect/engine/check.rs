//! What would make an engine fail after minutes, found in seconds: flags, memory, and the pair of driver and CUDA.
//!
//! A real vLLM finds an unknown flag after 10 to 25 s, a model too large for the memory or a driver too old for its CUDA
//! only when it loads. What cannot be found out (a help text that does not come) is no reason not to start.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, UNIX_EPOCH};

use cic_common::assignment::Assignment;
use cic_common::memory::memory_available;
use cic_common::units::Bytes;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

use super::flags::{FLAGS_MIN, Flags};
use super::launch::{DEFAULT_PATH, find_program};
use super::{fit, installed};
use crate::core::{CheckFault, GpuFacts};
use crate::effect::model::weight_files;

/// `vllm serve --help=all` imports torch: 8 to 12 s on a quiet machine with two cores, more beside a loading engine.
const HELP_WITHIN: Duration = Duration::from_secs(120);

/// That of vLLM 0.32 has 151 KiB.
const HELP_BYTES_MAX: u64 = 4 << 20;

/// A look at files or `/proc`.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// Looks at what a start needs.
#[derive(Debug, Clone)]
pub struct Checker {
    /// Where the flags of installed engines are kept, so that each is asked for its help once.
    flags_dir: PathBuf,
}

/// The flags of one installation of the engine.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    installation: Installation,
    flags: Flags,
}

/// Tells one installation from the next: pip writes the program anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Installation {
    program: PathBuf,
    modified_ns: u64,
    length: u64,
}

impl Checker {
    #[must_use]
    pub fn new(flags_dir: PathBuf) -> Self {
        Self { flags_dir }
    }

    /// Whether the engine of `assignment` can start here, as far as can be told without starting it.
    ///
    /// # Errors
    /// Every mistake at once, each with the way out.
    pub async fn check(&self, assignment: &Assignment, gpus: &GpuFacts) -> Result<(), CheckFault> {
        let engine = &assignment.engine;
        let path = engine.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
        let program = find_program(&engine.program, path.as_deref().unwrap_or(DEFAULT_PATH))
            .map_err(|error| CheckFault { reason: error.to_string(), may_heal: error.may_heal() })?;
        let mut mistakes = self.flag_mistakes(&program, assignment).await;
        mistakes.extend(cuda_mistake(&program, gpus).await);
        let format = timeout(LOOK_WITHIN, installed::format_mistake(&program, &assignment.engine.args)).await;
        mistakes.extend(format.ok().flatten());
        if !mistakes.is_empty() {
            return Err(CheckFault { reason: mistakes.join("; "), may_heal: false });
        }
        memory(assignment, gpus).await?;
        match timeout(LOOK_WITHIN, fit::misfit(assignment, gpus)).await {
            Ok(Some(reason)) => Err(CheckFault { reason, may_heal: false }),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    async fn flag_mistakes(&self, program: &Path, assignment: &Assignment) -> Vec<String> {
        let args = &assignment.engine.args;
        match self.flags_of(program, assignment, false).await {
            Ok((flags, is_kept)) => {
                let mistakes = flags.mistakes(args);
                if mistakes.is_empty() || !is_kept {
                    return mistakes;
                }
                // A program of the same look may start another vLLM by now: what is kept refuses nothing.
                let fresh = self.flags_of(program, assignment, true).await;
                fresh.map_or(mistakes, |(flags, _)| flags.mistakes(args))
            }
            Err(why) => {
                warn!(program = %program.display(), why, "flags of the engine are not checked");
                Vec::new()
            }
        }
    }

    /// From the file if it is of this installation, else (or when `anew`) from the program's own help; says which.
    async fn flags_of(
        &self,
        program: &Path,
        assignment: &Assignment,
        anew: bool,
    ) -> Result<(Flags, bool), String> {
        let installation = installation(program).await.map_err(|error| error.to_string())?;
        let file = self.file_of(&installation);
        let kept = tokio::fs::read(&file).await.ok();
        let kept: Option<Kept> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(kept) = kept.filter(|kept| !anew && kept.installation == installation) {
            return Ok((kept.flags, true));
        }
        info!(program = %program.display(), anew, "asking the engine for its flags");
        let flags = ask(program, assignment).await?;
        let kept = Kept { installation, flags };
        if let Err(error) = self.keep(&kept, &file).await {
            warn!(path = %file.display(), %error, "flags of the engine are not kept");
        }
        Ok((kept.flags, false))
    }

    /// One file a program; a newer installation in the same place overwrites it.
    fn file_of(&self, installation: &Installation) -> PathBuf {
        let path = installation.program.as_os_str().as_encoded_bytes();
        let digest = ring::digest::digest(&ring::digest::SHA256, path);
        let name: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.flags_dir.join(format!("engine-flags-{name}.json"))
    }

    async fn keep(&self, kept: &Kept, file: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(kept)?;
        tokio::fs::create_dir_all(&self.flags_dir).await?;
        // Two agents of one machine may share the file: each writes its own and renames it.
        let unfinished = file.with_extension(format!("{}.tmp", std::process::id()));
        tokio::fs::write(&unfinished, bytes).await?;
        tokio::fs::rename(unfinished, file).await
    }
}

async fn installation(program: &Path) -> std::io::Result<Installation> {
    let look = async {
        let program = tokio::fs::canonicalize(program).await?;
        let found = tokio::fs::metadata(&program).await?;
        let modified = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified_ns = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
        Ok(Installation { program, modified_ns, length: found.len() })
    };
    timeout(LOOK_WITHIN, look).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

async fn ask(program: &Path, assignment: &Assignment) -> Result<Flags, String> {
    let mut command = Command::new(program);
    command.args(["serve", "--help=all"]).envs(&assignment.engine.env);
    // A pager would wait for a person; argparse breaks lines at the width of the terminal.
    command.env("PAGER", "cat").env("COLUMNS", "80").env("HF_HUB_OFFLINE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    // A program that takes this for a start is ended with all that it started.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let group = child.id();
    let mut text = Vec::new();
    let reading = async {
        let Some(output) = child.stdout.take() else { return Ok(()) };
        output.take(HELP_BYTES_MAX).read_to_end(&mut text).await.map(|_| ())
    };
    let read = timeout(HELP_WITHIN, reading).await;
    if let Some(group) = group.and_then(|group| i32::try_from(group).ok()) {
        let _gone_already = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    match read {
        Err(_) => return Err(format!("no help within {} s", HELP_WITHIN.as_secs())),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(())) => {}
    }
    let flags = Flags::parse(&String::from_utf8_lossy(&text));
    match flags.count() {
        count if count >= FLAGS_MIN => Ok(flags),
        count => Err(format!("its help names {count} flags")),
    }
}

/// A driver runs programs for every CUDA of its own major version and those before (CUDA compatibility guide of NVIDIA).
async fn cuda_mistake(program: &Path, gpus: &GpuFacts) -> Option<String> {
    let (driver_cuda, true) = (gpus.cuda_version?, gpus.count > Some(0)) else { return None };
    let wanted = timeout(LOOK_WITHIN, installed::cuda_of(program)).await.ok()??;
    let (major, _) = wanted.split_once('.').unwrap_or((&wanted, ""));
    let supported = driver_cuda / 1000;
    if major.parse::<u32>().ok()? <= supported {
        return None;
    }
    let driver = gpus.driver_version.as_deref().unwrap_or("?");
    let newest = format!("{supported}.{}", driver_cuda % 1000 / 10);
    Some(format!(
        "driver {driver} supports CUDA up to {newest} and this vLLM is built for CUDA {wanted}: install a newer driver, \
         or a vLLM built for CUDA {supported}"
    ))
}

/// Whether the weights fit: into the GPUs' memory together, or without GPUs into the host's.
async fn memory(assignment: &Assignment, gpus: &GpuFacts) -> Result<(), CheckFault> {
    let sizes = timeout(LOOK_WITHIN, weights(Path::new(&assignment.model.path))).await.unwrap_or(None);
    let Some((all, largest)) = sizes else { return Ok(()) };
    let args = &assignment.engine.args;
    // Weights that are quantised while loading, or left to the host, take less of the GPU than their files.
    let shrinks = args.iter().any(|arg| {
        let name = arg.split('=').next().unwrap_or(arg).replace('_', "-");
        [
            "--quantization",
            "-q",
            "--cpu-offload-gb",
            "--data-parallel-size",
            "-dp",
            "--pipeline-parallel-size",
            "-pp",
        ]
        .contains(&name.as_str())
    });
    let total = Bytes(gpus.memory.iter().map(|memory| memory.0).sum());
    if !gpus.memory.is_empty() && total < all && !shrinks {
        return Err(CheckFault {
            reason: format!(
                "the weights in {} are {all} and the GPUs of this node have {total} together: use a larger node, or a \
                 smaller or quantised model",
                assignment.model.path
            ),
            may_heal: false,
        });
    }
    let needed = match gpus.count {
        Some(0) => all,
        Some(_) => largest,
        // Whether the host has to hold them is not known.
        None => return Ok(()),
    };
    match memory_available() {
        Some(free) if free < needed => Err(CheckFault {
            reason: format!(
                "loading {} takes {needed} of host memory and {free} is available",
                assignment.model.path
            ),
            may_heal: true,
        }),
        Some(_) | None => Ok(()),
    }
}

/// Bytes of all weight files and of the largest; `None` when there are none.
async fn weights(directory: &Path) -> Option<(Bytes, Bytes)> {
    let (mut all, mut largest) = (0, 0);
    for path in weight_files(directory).await? {
        let length = tokio::fs::metadata(path).await.ok()?.len();
        all += length;
        largest = largest.max(length);
    }
    (all > 0).then_some((Bytes(all), Bytes(largest)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use cic_common::assignment::{EngineSpec, ModelSpec};
    use cic_common::id::DeploymentName;

    use super::*;

    struct Place {
        root: tempfile::TempDir,
    }

    impl Place {
        /// An engine whose help is that of the real one, and which counts how often it was asked.
        fn new(script: &str) -> Self {
            let root = tempfile::tempdir().unwrap();
            let help = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vllm-0.32.0-cpu/help-all.txt");
            std::fs::create_dir_all(root.path().join("bin")).unwrap();
            let program = root.path().join("bin/vllm");
            let asked = root.path().join("asked");
            let text = script.replace("HELP", help).replace("ASKED", &asked.display().to_string());
            std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            Self { root }
        }

        fn assignment(&self, args: &str) -> Assignment {
            Assignment {
                deployment: DeploymentName::new("d").unwrap(),
                model: ModelSpec::at("m", &self.root.path().display().to_string()),
                engine: EngineSpec {
                    program: self.root.path().join("bin/vllm").display().to_string(),
                    args: args.split_whitespace().map(str::to_owned).collect(),
                    env: std::collections::BTreeMap::new(),
                },
            }
        }

        fn checker(&self) -> Checker {
            Checker::new(self.root.path().join("flags"))
        }

        fn asked(&self) -> usize {
            std::fs::read_to_string(self.root.path().join("asked")).unwrap_or_default().lines().count()
        }
    }

    const REAL: &str = "echo \"$@\" >> ASKED; cat HELP";

    #[tokio::test]
    async fn the_help_is_asked_for_once_an_installation_and_again_before_anything_is_refused() {
        let place = Place::new(REAL);
        let good = place.assignment("--max-model-len 512");
        for _ in 0..2 {
            assert_eq!(place.checker().check(&good, &GpuFacts::default()).await, Ok(()));
        }
        assert_eq!(place.asked(), 1);
        let assignment = place.assignment("--engine-use-ray --dtype float99 --max-model-len 512");
        let fault = place.checker().check(&assignment, &GpuFacts::default()).await.unwrap_err();
        assert!(!fault.may_heal);
        assert!(fault.reason.contains("--engine-use-ray") && fault.reason.contains("--dtype"), "{fault:?}");
        assert!(!fault.reason.contains("--max-model-len"), "{fault:?}");
        assert_eq!(place.asked(), 2, "what was kept refuses nothing");
        let program = place.root.path().join("bin/vllm");
        std::fs::write(&program, std::fs::read_to_string(&program).unwrap() + "\n# newer\n").unwrap();
        assert_eq!(place.checker().check(&good, &GpuFacts::default()).await, Ok(()));
        assert_eq!(place.asked(), 3, "another installation");
    }

    #[tokio::test]
    async fn an_engine_that_tells_no_flags_is_started_all_the_same() {
        let place = Place::new("exit 3");
        let assignment = place.assignment("--whatever");
        assert_eq!(place.checker().check(&assignment, &GpuFacts::default()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_driver_older_than_the_engines_cuda_is_named_with_the_way_out() {
        let place = Place::new(REAL);
        let torch = place.root.path().join("lib/python3.12/site-packages/torch");
        std::fs::create_dir_all(&torch).unwrap();
        std::fs::write(torch.join("version.py"), "cuda: Optional[str] = '13.0'\n").unwrap();
        let facts = |cuda_version, count| GpuFacts {
            count: Some(count),
            cuda_version: Some(cuda_version),
            driver_version: Some("550.54.15".to_owned()),
            ..GpuFacts::default()
        };
        let assignment = place.assignment("");
        let fault = place.checker().check(&assignment, &facts(12_040, 1)).await.unwrap_err();
        assert!(fault.reason.contains("550.54.15") && fault.reason.contains("CUDA up to 12.4"), "{fault:?}");
        assert_eq!(place.checker().check(&assignment, &facts(13_000, 1)).await, Ok(()));
        assert_eq!(place.checker().check(&assignment, &facts(12_040, 0)).await, Ok(()), "no GPU to use it");
    }

    #[tokio::test]
    async fn weights_that_cannot_fit_are_found_before_they_are_loaded() {
        let place = Place::new(REAL);
        let shard = std::fs::File::create(place.root.path().join("model-1.safetensors")).unwrap();
        shard.set_len(200 << 30).unwrap();
        let facts = GpuFacts { count: Some(2), memory: vec![Bytes::mib(81_559); 2], ..GpuFacts::default() };
        let fault = place.checker().check(&place.assignment(""), &facts).await.unwrap_err();
        assert!(fault.reason.contains("200.0 GiB") && fault.reason.contains("159.3 GiB"), "{fault:?}");
        assert!(!fault.may_heal);
        let no_gpu = GpuFacts { count: Some(0), ..GpuFacts::default() };
        let fault = place.checker().check(&place.assignment(""), &no_gpu).await.unwrap_err();
        assert!(fault.may_heal && fault.reason.contains("host memory"), "{fault:?}");
        let unknown = place.checker().check(&place.assignment(""), &GpuFacts::default()).await;
        assert_eq!(unknown, Ok(()), "what is not known forbids nothing");
        // Some repositories carry the weights twice; the index names those that are loaded.
        let index = r#"{"weight_map": {"a": "model-0.safetensors"}}"#;
        std::fs::write(place.root.path().join("model.safetensors.index.json"), index).unwrap();
        std::fs::write(place.root.path().join("model-0.safetensors"), "x").unwrap();
        assert_eq!(place.checker().check(&place.assignment(""), &facts).await, Ok(()));
    }
}
