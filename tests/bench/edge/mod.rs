//! What the edge costs: our user port against the proxies and routers one would put in its place.
//!
//! ```text
//!   run ── rounds ──▶ load (this process) ──▶ ours, haproxy, nginx, LLM routers ──▶ upstream (the engine of an agent)
//!    │                  │  ▲ straight to the upstream: what the others are held against
//!    │ contender,       ▼
//!    │ peers          figures ──▶ metric (what is read from them) ──▶ report (grid, targets)
//! ```
//! One upstream, one client, one machine, interleaved: each cell of a round is measured with every contender in turn,
//! and what is added or compared is taken within the round, so that a slow second of the machine hits all alike. The
//! median of the rounds is shown. Before each load the run waits a while for what else the machine does. The client is our own, on hyper's client connections: foreign ones (wrk, oha) know
//! neither the time to the first chunk nor when a stream is whole. Everything shares the machine's cores, the client and
//! the upstream too: read the ratios.
//!
//! The peers are brought by `tests/bench/edge/peers.sh`; one that is not here is skipped, said and counted.

mod bodies;
mod contender;
mod figures;
mod load;
mod machine;
mod metric;
mod peers;
mod report;
mod run;
mod upstream;

pub(crate) use run::{ROUNDS, run};
pub(crate) use upstream::{COMMAND as UPSTREAM_COMMAND, run as run_upstream};
