//! The operator's command, `cic`.
//!
//! ```text
//! args (clap) -> run -> one file per command -> client (HTTP with deadlines) -> the controller's API
//!                         |                        '- endpoint: which API, and how it was found
//!                         |- table, style, span, shown, condition: what people see
//!                         |- fault: signals to the processes of local nodes
//!                         |- plan: a model's files against GPUs, with nobody asked
//!                         |- model: a model's files into object stores
//!                         '- dev/: a whole fleet on this machine
//! ```
//! Commands speak to the API as any other client; only `dev`, `fault`, `model` and `plan` touch
//! this machine.

mod apply;
mod args;
mod ask;
mod client;
mod closed;
mod condition;
mod deployments;
mod dev;
mod endpoint;
mod events;
mod failure;
mod fault;
mod health;
mod leader;
mod model;
mod nodes;
mod operations;
mod orphans;
mod plan;
mod processes;
mod run;
mod screen;
mod shown;
mod span;
mod style;
mod sync;
mod table;
mod why;

pub use args::Cli;
pub use closed::end_quietly_when_closed;
pub use run::run;
