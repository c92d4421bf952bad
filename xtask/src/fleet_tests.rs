//! `cargo xtask sim` and `cargo xtask bench`: programs of the package `fleet-tests`.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::repository;

pub(crate) fn simulate(args: &[String]) -> Result<()> {
    ensure!(!args.is_empty(), "usage: cargo xtask sim --seeds N [--from S] | --seed S --trace | --crashes");
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
    if !release {
        repository::must(&mut build)?;
        return run("cic-bench", &[], &rest);
    }
    repository::must(build.arg("--release"))?;
    // Where an agent is measured by itself, in the profile in which it is shipped.
    repository::must(&mut repository::cargo(&[
        "build",
        "--quiet",
        "--package",
        "cic-agent",
        "--bins",
        "--profile",
        "dist",
    ])?)?;
    let mut cargo = program("cic-bench", &["--release"], &rest)?;
    repository::must(cargo.env("CIC_BENCH_SHIPPED", repository::builds("dist")?))
}

fn run(name: &str, cargo_args: &[&str], args: &[String]) -> Result<()> {
    repository::must(&mut program(name, cargo_args, args)?)
}

fn program(name: &str, cargo_args: &[&str], args: &[String]) -> Result<Command> {
    let mut cargo = repository::cargo(&["run", "--quiet", "--package", "fleet-tests", "--bin", name])?;
    cargo.args(cargo_args).arg("--").args(args);
    Ok(cargo)
}
