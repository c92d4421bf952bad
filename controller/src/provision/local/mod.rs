//! Provider `local`: each VM is a process on this machine, with its own directory, ports and network cable.
//!
//! ```text
//! DIR/nodes/NODE/  launch.json   the intent, written first: operation, programs, addresses
//!                  machine.json  written by the machine once it runs: pid, start time, cable
//!                  agent.toml  ca.pem  join-token  agent.pid  state/  notice.json  *.log
//!                  metadata.addr  where the fake metadata service of its cloud listens
//!                  power-off      made from inside to end the machine
//!                  taking.json    when the cloud takes it, once that was announced
//! DIR/graveyard/NODE/*.log       of the last few that were given back
//!
//! Local (in the controller) --spawns--> machine (one process per VM, outlives the controller)
//!                                          |- agent (restarted as systemd would) -> engine
//!                                          |- metadata service of the cloud that it plays
//!                                          '- cable: UDP to the controller, TCP to the agent; can be cut
//! ```
//! A VM's processes are found by [`process::Tag`] in their environment and as kin of those that carry it: a real vLLM
//! overwrites its workers' environment.

mod agent_config;
mod cable;
mod cable_tcp;
mod cable_udp;
mod machine;
pub mod process;
mod provider;
mod record;

pub use machine::{MachineError, run as run_machine};
pub use provider::{Local, LocalSpec, NAME};
pub use record::{Cable, Checkpoints, Hardware, Home, LaunchRecord, MachineRecord, Taking, homes};
