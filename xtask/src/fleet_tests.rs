//! `cargo xtask sim` and `cargo xtask bench`: programs of the package `fleet-tests`.

use anyhow::{Result, ensure};

use crate::repository;

pub(crate) fn simulate(args: &[String]) -> Result<()> {
    ensure!(!args.is_empty(), "usage: cargo xtask sim --seeds N [--from S] | --seed S --trace");
    run("cic-sim", &[], args)
}

pub(crate) fn bench(args: &[String]) -> Result<()> {
    ensure!(
        args.iter().any(|arg| !arg.starts_with('-')),
        "usage: cargo xtask bench NAME [--json] [--release]"
    );
    let (profile, rest): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| arg == "--release");
    let release = !profile.is_empty();
    // A benchmark starts the programs beside its own.
    let mut build = repository::cargo(&["build", "--quiet", "--workspace", "--bins", "--lib"])?;
    if release {
        build.arg("--release");
    }
    repository::must(&mut build)?;
    run("cic-bench", if release { &["--release"] } else { &[] }, &rest)
}

fn run(program: &str, cargo_args: &[&str], args: &[String]) -> Result<()> {
    let mut cargo = repository::cargo(&["run", "--quiet", "--package", "fleet-tests", "--bin", program])?;
    cargo.args(cargo_args).arg("--").args(args);
    repository::must(&mut cargo)
}
