//! The second process of an engine, which dies and survives as vLLM's engine core does.
//!
//! The real one overwrites the environment that `/proc` shows with its title, and lives on for ever when the API server
//! is killed. Whoever looks for an engine's processes by their environment alone leaves it behind.

use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// First argument by which the program knows that it is the core.
pub(crate) const COMMAND: &str = "engine-core";

/// Starts the core. Ends with the returned value; a server that is killed leaves it behind.
pub(crate) fn start(model: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(COMMAND).arg(model).env_clear().stdin(Stdio::null()).kill_on_drop(true).spawn()
}

/// Is the core: there, and idle, until it is killed.
pub(crate) fn run() -> ! {
    loop {
        std::thread::park();
    }
}
