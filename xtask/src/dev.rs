//! `cargo xtask dev`: builds the real binaries, fetches the engine and becomes `cic dev`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{engine, repository};

/// The programs that a fleet on this machine consists of, the stand-in engine included.
const PROGRAMS: [&str; 5] = ["cic-agent", "cic-controller", "cic", "cic-standin-engine", "cic-fake-metadata"];

pub(crate) fn run(args: &[String]) -> Result<()> {
    build()?;
    if !uses_the_stand_in(args) && !asks_for_help(args) {
        engine::run(&[])?;
    }
    let mut dev = command(args)?;
    // Becoming it leaves no process between the terminal and the program that Ctrl-C must reach.
    Err(dev.exec()).with_context(|| format!("cannot start {}", dev.get_program().to_string_lossy()))
}

/// Builds [`PROGRAMS`].
pub(crate) fn build() -> Result<()> {
    let mut build = repository::cargo(&["build", "--workspace"])?;
    for program in PROGRAMS {
        build.args(["--bin", program]);
    }
    repository::must(&mut build)
}

/// `cic dev args…` with the engine of this repository.
pub(crate) fn command(args: &[String]) -> Result<Command> {
    let mut dev = Command::new(repository::builds("debug")?.join("cic"));
    dev.arg("dev").args(args);
    if !args.iter().any(|arg| arg == "--engine-dir" || arg.starts_with("--engine-dir=")) {
        dev.arg("--engine-dir").arg(repository::root()?.join(".engine"));
    }
    Ok(dev)
}

fn uses_the_stand_in(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--engine=standin")
        || args.windows(2).any(|pair| pair[0] == "--engine" && pair[1] == "standin")
}

fn asks_for_help(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--help" || arg == "-h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_needs_no_download() {
        let args = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(uses_the_stand_in(&args("--once --engine standin")));
        assert!(uses_the_stand_in(&args("--engine=standin")));
        assert!(!uses_the_stand_in(&args("--once --engine vllm")));
        assert!(!uses_the_stand_in(&args("")));
    }
}
