//! `cargo xtask clients`: clients that others wrote, in `.clients/` of the repository: OpenAI's for Python.
//!
//! The stamp is written last and holds what was asked for and where: a virtual environment cannot be moved.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{engine, repository};

/// Pinned, with all that it needs.
const REQUIREMENTS: &str = "tests/edge/clients/requirements.txt";

pub(crate) fn run(args: &[String]) -> Result<()> {
    ensure!(args.is_empty(), "usage: cargo xtask clients");
    ensure_installed()
}

/// Installs what is missing; does nothing where all is there.
///
/// # Errors
/// When there is no fitting Python, or the package index is not reachable.
pub(crate) fn ensure_installed() -> Result<()> {
    let root = repository::root()?;
    let place = root.join(".clients");
    let requirements = fs::read_to_string(root.join(REQUIREMENTS)).context(REQUIREMENTS)?;
    let recipe = format!("{requirements}place {}\n", place.display());
    let python = place.join("venv/bin/python");
    if fs::read_to_string(place.join("stamp")).is_ok_and(|stamp| stamp == recipe) && python.exists() {
        println!("clients: complete in {}", place.display());
        return Ok(());
    }
    println!("clients: installing OpenAI's client for Python into {} (about 10 MB)", place.display());
    if place.exists() {
        fs::remove_dir_all(&place).context("cannot remove what an earlier run left in .clients/")?;
    }
    fs::create_dir_all(&place)?;
    quietly(Command::new(engine::find_python()?).args(["-m", "venv"]).arg(place.join("venv")))?;
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--requirement",
    ]);
    quietly(pip.arg(root.join(REQUIREMENTS)))
        .context("is the Python package index reachable from here? (PIP_INDEX_URL, HTTPS_PROXY)")?;
    quietly(Command::new(&python).args(["-c", "import openai"]))?;
    fs::write(place.join("stamp"), recipe)?;
    println!("clients: complete");
    Ok(())
}

fn quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{}`", repository::shown(command)))?;
    if output.status.success() {
        return Ok(());
    }
    let program = PathBuf::from(command.get_program());
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    bail!("{} failed ({}): {said}", program.display(), output.status)
}
