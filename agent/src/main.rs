//! `cic-agent`: see [`cic_agent`].

use std::process::ExitCode;

use cic_agent::effect::engine::{ExecArgs, exec};
use clap::{Parser, Subcommand};

/// Keeps one GPU VM serving: engine, model, notices, edge, heartbeats.
#[derive(Debug, Parser)]
#[command(name = "cic-agent", version)]
struct Cli {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Becomes the engine in a session of its own. Used by the agent itself.
    #[command(name = "engine-exec", hide = true)]
    EngineExec(ExecArgs),
}

fn main() -> ExitCode {
    match Cli::parse().act {
        Act::EngineExec(args) => ExitCode::from(exec(&args)),
    }
}
