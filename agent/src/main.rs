//! `cic-agent`: see [`cic_agent`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use cic_agent::config::{Config, DEFAULT_PATH};
use cic_agent::effect::engine::{ExecArgs, exec};
use cic_agent::effect::model::{STEP_COMMAND, StepArgs, step};
use cic_agent::model_files::{FetchArgs, ManifestArgs, VerifyArgs, fetch, manifest, verify};
use cic_agent::preflight::EngineArgs;
use cic_agent::serve::edge::new_key;
use cic_agent::source::gpu::write_clear;
use cic_agent::{checkpoints, preflight, run, status};
use cic_common::config::EXIT_CONFIG;
use cic_common::id::NodeId;
use cic_common::telemetry;
use clap::{Parser, Subcommand};

/// All of the agent's memory. With the C library's a seventh of the edge's time went there (decision 0020).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps one GPU VM serving: engine, model, notices, edge, heartbeats.
#[derive(Debug, Parser)]
#[command(name = "cic-agent", version)]
struct Cli {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Keep this node until told to stop
    Run {
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Write every event the core hears to this file
        #[arg(long)]
        record: Option<PathBuf>,
    },
    /// Say what would keep `run` from working here: ports, model, and the engine's flags, memory and driver
    Preflight {
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// Say whether a model's directory is whole: by lengths and headers, or, with --deep, by every byte
    Verify(VerifyArgs),
    /// Write the manifest of a model's directory that is known to be good: what `verify --deep` compares with
    Manifest(ManifestArgs),
    /// Make a directory what the manifest of a model in an object store says: only what is missing or wrong is fetched
    Fetch(FetchArgs),
    /// Take GPUs for sound again that were condemned; the agent that runs here heeds it within a second
    GpuClear {
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Only this one, by its uuid (`cic-gpu-probe --once` shows it)
        #[arg(long, value_name = "UUID")]
        gpu: Option<String>,
    },
    /// Show a node's checkpoints in the configured stores, which of them its successor would take, and why not others
    Checkpoints {
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// This node unless given
        node: Option<NodeId>,
    },
    /// API keys for users of the edge
    Key {
        #[command(subcommand)]
        act: KeyAct,
    },
    /// Print what the running agent says of itself
    Status {
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// One step on a model's directory. Used by the agent itself.
    #[command(name = STEP_COMMAND, hide = true)]
    ModelStep(StepArgs),
    /// Becomes the engine in a session of its own. Used by the agent itself.
    #[command(name = "engine-exec", hide = true)]
    EngineExec(ExecArgs),
}

#[derive(Debug, Subcommand)]
enum KeyAct {
    /// Print a new key, which is kept nowhere, and the entry for `[edge] keys_file` that takes it
    New { name: String },
}

fn main() -> ExitCode {
    match Cli::parse().act {
        Act::EngineExec(args) => ExitCode::from(exec(&args)),
        Act::ModelStep(args) => ExitCode::from(step(args)),
        Act::Run { config, record } => with(&config, |config| {
            telemetry::begin(config.log.format, &config.log.filter)?;
            let runtime = runtime()?;
            let code = runtime.block_on(run::run(config, record.as_deref()));
            // A thread that a dead file system holds is not waited for.
            runtime.shutdown_background();
            code
        }),
        Act::Preflight { config, engine } => {
            with(&config, |config| runtime()?.block_on(preflight::preflight(&config, &engine)))
        }
        Act::Verify(args) => finish(verify(&args)),
        Act::Manifest(args) => finish(manifest(&args)),
        Act::Fetch(args) => finish(fetch(&args)),
        Act::GpuClear { config, gpu } => with(&config, |config| clear(&config, gpu)),
        Act::Checkpoints { config, node } => {
            with(&config, |config| runtime()?.block_on(checkpoints::show(&config, node)))
        }
        Act::Key { act: KeyAct::New { name } } => finish(print_key(&name)),
        Act::Status { config } => with(&config, |config| runtime()?.block_on(status::status(&config))),
    }
}

fn clear(config: &Config, gpu: Option<String>) -> anyhow::Result<u8> {
    let state_dir = &config.node.state_dir;
    write_clear(state_dir, gpu).with_context(|| format!("{} cannot be written", state_dir.display()))?;
    println!("left for the agent of {}; `cic-agent status` shows what became of it", config.node.id);
    Ok(0)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn with(path: &Path, act: impl FnOnce(Config) -> anyhow::Result<u8>) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    finish(act(config))
}

fn print_key(name: &str) -> anyhow::Result<u8> {
    let (key, entry) = new_key(name)?;
    println!("# give this key to {name}; it is shown only now:\n# {key}\n{entry}");
    Ok(0)
}

fn finish(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cic-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
