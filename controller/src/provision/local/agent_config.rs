//! The `agent.toml` of a VM.

use std::path::PathBuf;

use cic_common::id::NodeId;
use cic_common::notice::Cloud;
use cic_common::report::Role;
use serde::Serialize;

use super::record::{Cable, Checkpoints, Home, LaunchRecord, POWER_OFF};

/// An address that asks for any free port of the loopback; the agent writes what it got to `ports.json`.
const ANY_PORT: &str = "127.0.0.1:0";

/// The agent's configuration, as its own `config.rs` reads it.
#[derive(Debug, Serialize)]
struct AgentConfig<'a> {
    node: Node<'a>,
    controller: Controller<'a>,
    peer: Peer<'a>,
    edge: Listen,
    metrics: Listen,
    engine: Engine,
    spot: Spot,
    checkpoint: Checkpoints,
    deadman: Deadman,
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    timing: &'a toml::Table,
}

#[derive(Debug, Serialize)]
struct Node<'a> {
    id: &'a NodeId,
    role: Role,
    zone: &'a str,
    state_dir: PathBuf,
    launched_by_cic: bool,
}

#[derive(Debug, Serialize)]
struct Controller<'a> {
    addresses: &'a [String],
    ca_file: PathBuf,
    join_token_file: PathBuf,
}

#[derive(Debug, Serialize)]
struct Peer<'a> {
    listen: &'static str,
    advertise: &'a str,
}

#[derive(Debug, Serialize)]
struct Listen {
    listen: &'static str,
}

#[derive(Debug, Serialize)]
struct Engine {
    host_port: u16,
}

/// Seen by the machine, which then shuts down in order: unlike a signal it ends nothing else when the machine is gone.
#[derive(Debug, Serialize)]
struct Deadman {
    command: [PathBuf; 2],
}

#[derive(Debug, Serialize)]
struct Spot {
    cloud: Cloud,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    notice_file: PathBuf,
}

/// The file's text. Everything listens on a free port, and both directions lead through the cable.
pub(super) fn render(home: &Home, launch: &LaunchRecord, cable: &Cable) -> Result<String, toml::ser::Error> {
    toml::to_string(&AgentConfig {
        node: Node {
            id: &launch.node,
            role: Role::Replica,
            zone: &launch.zone,
            state_dir: home.state(),
            launched_by_cic: true,
        },
        controller: Controller {
            addresses: &cable.controllers,
            ca_file: home.file("ca.pem"),
            join_token_file: home.file("join-token"),
        },
        peer: Peer { listen: ANY_PORT, advertise: &cable.peer },
        edge: Listen { listen: ANY_PORT },
        metrics: Listen { listen: ANY_PORT },
        engine: Engine { host_port: 0 },
        spot: Spot {
            cloud: launch.hardware.cloud,
            metadata: home.metadata(),
            notice_file: home.file("notice.json"),
        },
        deadman: Deadman { command: [PathBuf::from("touch"), home.file(POWER_OFF)] },
        checkpoint: launch.hardware.checkpoints.below(home.provider()),
        timing: &launch.agent_timing,
    })
}
