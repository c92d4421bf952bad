//! What a fleet will be made of, checked as a whole before anything is started.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cic_common::assignment::EngineSpec;
use cic_common::memory::memory_available;
use cic_common::notice::Cloud;
use cic_common::ports::lasting_port;
use cic_common::units::Bytes;

use super::super::args::{DevArgs, EngineKind};
use super::super::endpoint::DevRecord;
use super::model;
use crate::provision::local::{Checkpoints, Hardware};

/// One vLLM on the CPU, all its processes; measured at 2.5 GB.
const VLLM_MEMORY: Bytes = Bytes(2_500_000_000);

const API_DEFAULT: &str = "127.0.0.1:7480";

/// Environment of vLLM: no network, no telemetry, a small cache.
const VLLM_ENVIRONMENT: [(&str, &str); 5] = [
    ("HF_HUB_OFFLINE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("DO_NOT_TRACK", "1"),
    ("VLLM_CPU_KVCACHE_SPACE", "1"),
];

/// float32 makes a resumed stream exact; eager mode saves a minute of compiling.
const VLLM_ARGS: [&str; 5] = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"];

/// The programs and places of one fleet.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) agent: PathBuf,
    pub(super) controller: PathBuf,
    pub(super) engine: EngineSpec,
    /// None: a small one is written for the stand-in.
    pub(super) model: Option<PathBuf>,
    pub(super) model_name: String,
    pub(super) replicas: u16,
    pub(super) api: SocketAddr,
    pub(super) edge: SocketAddr,
    pub(super) hardware: Hardware,
    /// Said once at the start.
    pub(super) remarks: Vec<String>,
}

impl Plan {
    /// `api` is what `--api` says, if anything; `beside` is the folder of the fleet's programs.
    ///
    /// # Errors
    /// Every mistake, one line each.
    pub(super) fn check(args: &DevArgs, api: Option<&str>, beside: &Path) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let api = parse_api(api, &mut mistakes).map(with_port);
        let edge = with_port(args.edge);
        for (option, address) in [("--api", api), ("--edge", Some(edge))] {
            mistakes.extend(address.and_then(|address| port_mistake(option, address)));
        }
        if api == Some(edge) {
            mistakes.push(format!("--edge: {edge} is the address of --api too"));
        }
        let program = |name: &str, mistakes: &mut Vec<String>| {
            let path = beside.join(name);
            if !is_executable(&path) {
                mistakes.push(format!("there is no program {}; `cargo xtask dev` builds it", path.display()));
            }
            path
        };
        let agent = program("cic-agent", &mut mistakes);
        let controller = program("cic-controller", &mut mistakes);
        let mut remarks = Vec::new();
        let kind = choose_engine(args, &mut mistakes, &mut remarks);
        let (engine, model) = match kind {
            EngineKind::Vllm => {
                (vllm(args), Some(args.model.clone().unwrap_or_else(|| args.engine_dir.join("tiny-llama"))))
            }
            EngineKind::Standin => {
                (standin(args, program("cic-standin-engine", &mut mistakes)), args.model.clone())
            }
        };
        let hardware = Hardware {
            checkpoints: Checkpoints {
                url: args.checkpoints.clone(),
                second_url: args.checkpoints_second.clone(),
                every_s: args.checkpoint_every,
            },
            ..hardware(&args.cloud, beside.join("cic-fake-metadata"), &mut remarks)
        };
        let model = model.map(|path| std::path::absolute(&path).unwrap_or(path));
        mistakes.extend(model.as_deref().map(model::mistakes).unwrap_or_default());
        if kind == EngineKind::Vllm {
            mistakes.extend(memory_mistake(args.replicas, memory_available()));
        }
        let (true, Some(api)) = (mistakes.is_empty(), api) else { return Err(mistakes) };
        let model_name = match &args.model {
            Some(path) => {
                path.file_name().map(|name| name.to_string_lossy().replace(char::is_whitespace, "-"))
            }
            None => None,
        };
        Ok(Self {
            agent,
            controller,
            engine,
            model,
            model_name: model_name.unwrap_or_else(|| "tiny".to_owned()),
            replicas: args.replicas,
            api,
            edge,
            hardware,
            remarks,
        })
    }
}

/// Port 0 asks for any free one.
fn with_port(address: SocketAddr) -> SocketAddr {
    match (address.port(), lasting_port()) {
        (0, Ok(port)) => SocketAddr::new(address.ip(), port),
        _ => address,
    }
}

fn parse_api(given: Option<&str>, mistakes: &mut Vec<String>) -> Option<SocketAddr> {
    let text = given.unwrap_or(API_DEFAULT);
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    match address.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Some(address),
        Ok(_) | Err(_) => {
            let what = "expected an address of this machine's loopback and a port";
            mistakes.push(format!("--api: {what}, such as {API_DEFAULT}; found {text:?}"));
            None
        }
    }
}

fn port_mistake(option: &str, address: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    let owner = DevRecord::running()
        .filter(|dev| [&dev.api, &dev.edge].contains(&&address.to_string()))
        .map(|dev| format!(" (by the `cic dev` in {})", dev.dir.display()));
    Some(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{option}: {address} is in use{}; name another with {option}", owner.unwrap_or_default())
        }
        _ => format!("{option}: cannot listen on {address}: {error}"),
    })
}

fn choose_engine(args: &DevArgs, mistakes: &mut Vec<String>, remarks: &mut Vec<String>) -> EngineKind {
    let vllm = vllm_program(args);
    match args.engine {
        Some(EngineKind::Standin) => EngineKind::Standin,
        Some(EngineKind::Vllm) => {
            if !is_executable(&vllm) {
                let way_out = "`cargo xtask engine` installs it, --engine standin does without";
                mistakes.push(format!("--engine: there is no vLLM at {}; {way_out}", vllm.display()));
            }
            EngineKind::Vllm
        }
        None if is_executable(&vllm) => EngineKind::Vllm,
        None => {
            let way_out = "`cargo xtask engine` gets the real one";
            remarks.push(format!(
                "no vLLM in {}: using the stand-in engine; {way_out}",
                args.engine_dir.display()
            ));
            EngineKind::Standin
        }
    }
}

/// What the nodes seem to be. Where no metadata service was built they are nobody's machines.
fn hardware(cloud: &str, program: PathBuf, remarks: &mut Vec<String>) -> Hardware {
    let cloud = Cloud::ALL.into_iter().find(|one| one.as_str() == cloud).unwrap_or(Cloud::None);
    match cloud {
        Cloud::Runpod | Cloud::None => Hardware { cloud, ..Hardware::default() },
        Cloud::Aws | Cloud::Gcp | Cloud::Azure if is_executable(&program) => {
            Hardware { cloud, metadata_program: Some(program), ..Hardware::default() }
        }
        Cloud::Aws | Cloud::Gcp | Cloud::Azure => {
            let what = "so the nodes have no cloud; `cargo xtask dev` builds it";
            remarks.push(format!("there is no program {}, {what}", program.display()));
            Hardware::default()
        }
    }
}

fn vllm_program(args: &DevArgs) -> PathBuf {
    let path = args.engine_dir.join("venv/bin/vllm");
    std::path::absolute(&path).unwrap_or(path)
}

fn vllm(args: &DevArgs) -> EngineSpec {
    let own = VLLM_ARGS.iter().map(|arg| (*arg).to_owned());
    EngineSpec {
        program: vllm_program(args).display().to_string(),
        args: own.chain(args.engine_args.iter().cloned()).collect(),
        env: VLLM_ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

fn standin(args: &DevArgs, program: PathBuf) -> EngineSpec {
    EngineSpec {
        program: program.display().to_string(),
        args: args.engine_args.clone(),
        env: BTreeMap::new(),
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn memory_mistake(replicas: u16, available: Option<Bytes>) -> Option<String> {
    let needed = Bytes(VLLM_MEMORY.0.saturating_mul(u64::from(replicas)));
    let available = available.filter(|available| *available < needed)?;
    Some(format!(
        "--replicas: {replicas} of vLLM need {needed} of memory, {available} are free; ask for fewer, or --engine standin"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser as _;

    fn args(words: &str) -> DevArgs {
        let words = ["cic", "dev"].into_iter().chain(words.split_whitespace());
        match Cli::try_parse_from(words).expect("parses").command {
            Command::Dev(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn programs() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("directory");
        for name in ["cic-agent", "cic-controller", "cic-standin-engine", "cic-fake-metadata"] {
            let path = folder.path().join(name);
            fs::write(&path, "").expect("writes");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("sets");
        }
        folder
    }

    #[test]
    fn every_mistake_is_told_before_anything_starts() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = taken.local_addr().expect("bound");
        let nowhere = tempfile::tempdir().expect("directory");
        let args = args(&format!("--edge {address} --engine vllm --engine-dir /no/engine --model /no/model"));
        let mistakes = Plan::check(&args, Some("10.0.0.1:7480"), nowhere.path()).expect_err("mistakes");
        let expected = [
            "--api: expected an address of this machine's loopback",
            &format!("--edge: {address} is in use; name another with --edge"),
            "cic-agent; `cargo xtask dev` builds it",
            "cic-controller; `cargo xtask dev` builds it",
            "--engine: there is no vLLM at /no/engine/venv/bin/vllm; `cargo xtask engine` installs it",
            "--model: there is no directory /no/model",
        ];
        for (mistake, part) in mistakes.iter().zip(expected) {
            assert!(mistake.contains(part), "{mistake} lacks {part}");
        }
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    }

    #[test]
    fn without_vllm_the_stand_in_serves_and_that_is_said() {
        let free = [lasting_port(), lasting_port()].map(|port| port.expect("a port"));
        let args = args(&format!("--edge 127.0.0.1:{} --engine-dir /no/engine", free[0]));
        let api = format!("http://127.0.0.1:{}", free[1]);
        let plan = Plan::check(&args, Some(&api), programs().path()).expect("no mistakes");
        assert!(plan.engine.program.ends_with("cic-standin-engine"));
        assert_eq!((plan.model, plan.model_name.as_str(), plan.replicas), (None, "tiny", 2));
        assert!(plan.remarks[0].contains("cargo xtask engine"), "{:?}", plan.remarks);
    }

    #[test]
    fn a_machine_too_small_for_the_replicas_is_named() {
        let mistake = memory_mistake(4, Some(Bytes(6_000_000_000))).expect("too small");
        assert!(mistake.contains("--replicas: 4"), "{mistake}");
        assert_eq!(memory_mistake(2, Some(Bytes(6_000_000_000))), None);
        assert_eq!(memory_mistake(64, None), None, "an unknown amount is no mistake");
    }
}
