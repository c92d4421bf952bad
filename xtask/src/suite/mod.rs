//! `cargo xtask test`: everything that must hold, in numbered steps.
//!
//! ```text
//! steps (what to run, in order) -> runner (runs each, goes on after a failure) -> report (table, counts)
//!    |- machine (installs what is missing)
//!    '- counts (reads nextest's own summary)
//! ```

mod counts;
mod failures;
mod left_out;
mod machine;
mod report;
mod runner;
mod steps;

pub(crate) use runner::run;
