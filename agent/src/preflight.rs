//! `cic-agent preflight`: what would keep `run` from working here, all of it at once.

use std::net::{SocketAddr, TcpListener};

use cic_common::assignment::Assignment;
use cic_common::id::Term;

use crate::config::Config;
use crate::state::name;

/// Prints every problem, or that there is none. Returns the exit code.
///
/// # Errors
/// Never; the signature is that of a command.
pub fn preflight(config: &Config) -> anyhow::Result<u8> {
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
    let remembered = std::fs::read(config.node.state_dir.join(name::ASSIGNMENT)).ok();
    if let Some((_, assignment)) =
        remembered.and_then(|bytes| serde_json::from_slice::<(Term, Assignment)>(&bytes).ok())
    {
        let path = &assignment.model.path;
        if !std::path::Path::new(path).is_dir() {
            problems.push(format!("model directory {path} of the remembered assignment is not there"));
        }
        let program = &assignment.engine.program;
        if program.contains('/') && !std::path::Path::new(program).is_file() {
            problems.push(format!("engine program {program} of the remembered assignment is not there"));
        }
    }
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("nothing found that would keep the agent of {} from running", config.node.id);
    }
    Ok(u8::from(!problems.is_empty()))
}
