//! What a node costs a controller: a real one, and a thousand to ten thousand agents in processes of their own.
//!
//! ```text
//! run ── site (authority, rows, records of VMs, configuration) ──▶ cic-controller
//!  │                                                                ▲ QUIC: hello, heartbeats      │ HTTPS: polls
//!  └──── swarm ──▶ cic-bench agents (one process, or two)  agent ───┘            answers ◀──────────┘
//!        page ◀── /metrics of the controller, before and after each span
//! ```
//! The agents are as light as they can be: no engine, no edge, one process. What they say is what a node with eight GPUs
//! says, over the connections that a node has: one over QUIC and one for polls, both with certificates of the fleet's own
//! authority. Those that are to fall silent are a process by themselves, which is stopped: its kernel closes nothing and
//! answers nothing, as a zone without power.
//!
//! Everything shares the machine's cores; the controller's own processor time is read, not the time on the clock.

mod agent;
mod answers;
mod page;
mod run;
mod silence;
mod site;
mod swarm;

pub(crate) use run::{SIZES, run};
pub(crate) use swarm::{COMMAND as AGENTS_COMMAND, run as run_agents};
