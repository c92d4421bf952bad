//! `cic-agent preflight`: what would keep `run` from working here, all of it at once.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use cic_common::assignment::{Assignment, EngineSpec, ModelSpec, Source};
use cic_common::id::{DeploymentName, Term};
use cic_common::name::ClusterName;
use cic_common::source::without_options;

use crate::config::Config;
use crate::core::GpuFacts;
use crate::effect::engine::Checker;
use crate::state::name;

/// An engine to look at in place of the one that the last assignment named.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct EngineArgs {
    /// Program of the engine, such as `vllm`. In an image this also keeps its flags for the agent's first start
    #[arg(long, value_name = "PROGRAM")]
    pub engine: Option<String>,
    /// Model directory
    #[arg(long, value_name = "DIR", requires = "engine")]
    pub model: Option<PathBuf>,
    /// Flags the engine is to be started with
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// Prints every problem, or that there is none. Returns the exit code.
///
/// # Errors
/// Never; the signature is that of a command.
pub async fn preflight(config: &Config, engine: &EngineArgs) -> anyhow::Result<u8> {
    let mut problems = Vec::new();
    let ports = [
        ("[peer] listen", config.peer.listen),
        ("[edge] listen", config.edge.listen),
        ("[metrics] listen", config.metrics.listen),
        ("[engine] host_port", SocketAddr::from(([127, 0, 0, 1], config.engine.host_port))),
    ];
    for (key, address) in ports {
        if let Err(error) = TcpListener::bind(address) {
            problems.push(format!("{key} = {address} cannot be bound: {error}"));
        }
    }
    if let Some(assignment) = assignment(&config.node.state_dir, engine)? {
        // An engine may be looked at without a model.
        if !assignment.model.path.is_empty() {
            problems.extend(model_problem(config, &assignment.model).await);
        }
        // What the driver says is known once the agent runs, which checks it before each start.
        let checked = Checker::new(config.flags_dir()).check(&assignment, &GpuFacts::default()).await;
        problems.extend(checked.err().map(|fault| fault.reason));
    }
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("nothing found that would keep the agent of {} from running", config.node.id);
    }
    Ok(u8::from(!problems.is_empty()))
}

/// Why the model is not to be had here. What is mounted or fetched by the agent is not looked at.
async fn model_problem(config: &Config, model: &ModelSpec) -> Option<String> {
    let models = config.model.looker(&config.node, config.controller.ca_file.as_deref());
    let (mut faults, mut elsewhere) = (Vec::new(), Vec::new());
    let cluster = ClusterName::parse_node(&config.node.id).ok();
    for place in Source::places(model) {
        let place = match &cluster {
            Some((cluster, _)) => place.in_region(&cluster.region),
            None => place,
        };
        let Source::Directory(path) = place else {
            elsewhere.push(without_options(place.as_str()).to_owned());
            continue;
        };
        let there = ModelSpec::at(&model.name, &path);
        let checked = async {
            models.mount(&there).await?;
            models.verify(&there, |_, _| {}).await
        };
        match checked.await {
            Ok(()) => return None,
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    let faults = faults.join("; ");
    if elsewhere.is_empty() {
        return Some(faults);
    }
    println!("{faults}; the agent will try {}", elsewhere.join(", "));
    None
}

/// The engine that was asked about, or the one that this node was last told to run.
fn assignment(state_dir: &Path, engine: &EngineArgs) -> anyhow::Result<Option<Assignment>> {
    let Some(program) = engine.engine.clone() else {
        let remembered = std::fs::read(state_dir.join(name::ASSIGNMENT)).ok();
        let remembered =
            remembered.and_then(|bytes| serde_json::from_slice::<(Term, Assignment)>(&bytes).ok());
        return Ok(remembered.map(|(_, assignment)| assignment));
    };
    let path = engine.model.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    Ok(Some(Assignment {
        deployment: DeploymentName::new("preflight")?,
        model: ModelSpec::at("preflight", &path),
        engine: EngineSpec { program, args: engine.args.clone(), env: BTreeMap::new() },
    }))
}
