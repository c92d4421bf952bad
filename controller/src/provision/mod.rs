//! Where VMs come from.
//!
//! ```text
//! driver -> Provision (bounded tasks, deadlines) -> local/ (processes on this machine)
//!    ^            |
//!    '- Performed, Listed
//! ```
//! A provider looks an operation up by its id before it acts, so repeating one is harmless.

pub mod local;
mod shell;

pub use shell::{LaunchOrder, Provision};
