//! Benchmarks on real processes: `cargo xtask bench NAME [--json]`.

mod agent;
mod chaos;
mod compare;
mod controller;
mod detect;
mod edge;
mod grid;
mod model;
mod model_fetch;
mod notice;
mod rig;
mod soak;
mod table;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Measures, prints a table, and exits with 1 when a target was missed.
#[derive(Debug, Parser)]
#[command(name = "cic-bench")]
struct Args {
    name: Bench,
    /// The table once more, as one line of JSON
    #[arg(long)]
    json: bool,
    /// Runs of `detect` (with `--compare`, of each scenario), and of `notice` for each cloud
    #[arg(long)]
    runs: Option<NonZeroUsize>,
    /// `detect`: failure detectors side by side in virtual time, rather than ours on real processes
    #[arg(long)]
    compare: bool,
    /// Rounds of `edge`
    #[arg(long, default_value_t = edge::ROUNDS)]
    rounds: NonZeroUsize,
    /// Length of `soak` and `chaos`
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// Gibibytes of the set of `model`
    #[arg(long, default_value_t = model::GIB)]
    gib: NonZeroUsize,
    /// Sizes of the fleets of `controller`
    #[arg(long, value_delimiter = ',', default_values_t = controller::SIZES)]
    nodes: Vec<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bench {
    /// From power loss of a node to its replacement
    Detect,
    /// From each cloud's notice to the launch of the replacement
    Notice,
    /// What an idle agent costs, how soon it speaks, how fast it tells of a GPU fault
    Agent,
    /// What the edge adds to a request, beside proxies and LLM routers
    Edge,
    /// Ten minutes of faults: whether the agent keeps what it once took
    Soak,
    /// Ten minutes of replicas killed and connections reset: whether anybody who listens at an edge notices
    Chaos,
    /// How fast a model's files are known to be whole, beside b3sum, sha256sum and cat
    Model,
    /// What a node costs the controller, in fleets of a thousand to ten thousand
    Controller,
}

fn main() -> anyhow::Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some(edge::UPSTREAM_COMMAND) => return edge::run_upstream(),
        Some(controller::AGENTS_COMMAND) => return controller::run_agents(),
        Some(_) | None => {}
    }
    let args = Args::parse();
    let (name, table) = match args.name {
        Bench::Detect if args.compare => ("detect-compare", compare::run(args.runs.unwrap_or(compare::RUNS))),
        Bench::Detect => ("detect", detect::run(args.runs.unwrap_or(detect::RUNS))?),
        Bench::Notice => ("notice", notice::run(args.runs.unwrap_or(notice::RUNS))?),
        Bench::Agent => ("agent", agent::run()?),
        Bench::Edge => ("edge", edge::run(args.rounds)?),
        Bench::Soak => ("soak", soak::run(args.minutes)?),
        Bench::Chaos => ("chaos", chaos::run(args.minutes)?),
        Bench::Model => ("model", model::run(args.gib)?),
        Bench::Controller => ("controller", controller::run(&args.nodes)?),
    };
    print!("{}", table.text());
    if args.json {
        println!("{}", table.json(name));
    }
    Ok(if table.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
