//! What the tests need of this machine; what is missing is installed.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::repository;

/// Debian and Ubuntu packages, each with a command that succeeds where it is there.
const PACKAGES: [(&str, &[&str], For); 5] = [
    ("gcc", &["gcc", "--version"], For::Build),
    ("libc6-dev", &["sh", "-c", "echo '#include <stdio.h>' | gcc -E - >/dev/null"], For::Build),
    ("binutils", &["readelf", "--version"], For::Engine),
    ("python3", &["python3", "--version"], For::Engine),
    ("python3-venv", &["python3", "-c", "import venv, ensurepip"], For::Engine),
];

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Build,
    Engine,
}

/// Installs what is missing and says so.
///
/// # Errors
/// Names the first thing that is missing and cannot be installed, with the command a person can run.
pub(super) fn prepare(with_engine: bool) -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, _, purpose)| with_engine || *purpose == For::Build)
        .filter(|(_, probe, _)| !succeeds(probe))
        .map(|(package, _, _)| *package)
        .collect();
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    for (component, probe) in
        [("rustfmt", ["cargo", "fmt", "--version"]), ("clippy", ["cargo", "clippy", "--version"])]
    {
        if !succeeds(&probe) {
            println!("installing {component}");
            repository::must(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    if !succeeds(&["cargo", "nextest", "--version"]) {
        println!("installing cargo-nextest (some minutes)");
        repository::must(&mut repository::cargo(&["install", "cargo-nextest", "--locked"])?)?;
    }
    Ok(())
}

/// Whether a command starts and succeeds; its output is dropped.
pub(super) fn succeeds(words: &[&str]) -> bool {
    let [program, args @ ..] = words else { return false };
    let (null, silent) = (Stdio::null, Stdio::null);
    let status = Command::new(program).args(args).stdin(null()).stdout(silent()).stderr(silent()).status();
    status.is_ok_and(|status| status.success())
}

fn install_packages(missing: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install {}", missing.join(" "));
    if !succeeds(&["apt-get", "--version"]) {
        bail!(
            "missing: {}. Install the like of them with this system's packages (Debian: `{by_hand}`)",
            missing.join(", ")
        );
    }
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root && !succeeds(&["sudo", "-n", "true"]) {
        bail!("missing: {}. Run `sudo {by_hand}` and repeat", missing.join(", "));
    }
    println!("installing {}", missing.join(", "));
    let apt = |args: &[&str]| {
        let mut command = if is_root { Command::new("apt-get") } else { Command::new("sudo") };
        if !is_root {
            command.args(["-n", "apt-get"]);
        }
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        repository::must(&mut command)
    };
    apt(&["update", "-q"])?;
    apt(&[&["install", "-y", "-q", "--no-install-recommends"], missing].concat())
}
