//! `cargo xtask fuzz`: libFuzzer on the parsers of a model's files, all at once, each for so many seconds.
//!
//! Only flags of a stable compiler are used, so that there is no sanitizer of addresses: the parsers have no unsafe code, and
//! what is looked for are panics, overflows, hangs and memory without bound.

use std::fs;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};

use crate::repository;

const TARGETS: [&str; 3] = ["header", "index", "manifest"];

const SECONDS_DEFAULT: u32 = 600;

/// What libFuzzer needs to see which way an input took.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Of one input.
const INPUT_BYTES_MAX: u32 = 16 << 10;
const INPUT_SECONDS_MAX: u32 = 5;
const MEMORY_MIB_MAX: u32 = 1024;

/// The compiler's own target.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("run rustc")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let seconds = match args {
        [] => SECONDS_DEFAULT,
        [seconds] => seconds.parse().context("usage: cargo xtask fuzz [SECONDS]")?,
        _ => anyhow::bail!("usage: cargo xtask fuzz [SECONDS]"),
    };
    let root = repository::root()?;
    let place = root.join("target/fuzz");
    let manifest = root.join("tests/fuzz/libfuzzer/Cargo.toml");
    let mut build = repository::cargo(&["build", "--release", "--manifest-path"])?;
    // With a target named, build scripts are not instrumented.
    let host = host()?;
    build.arg(manifest).arg("--target-dir").arg(&place).args(["--target", &host]).env("RUSTFLAGS", FLAGS);
    repository::must(&mut build)?;
    let start = |target: &&str| -> Result<(String, Child)> {
        let corpus = place.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let log = place.join(format!("{target}.log"));
        let output = fs::File::create(&log)?;
        let child = Command::new(place.join(&host).join("release").join(target))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/{target}-", place.display()))
            .arg(&corpus)
            .env("CIC_FUZZ_INPUTS", &corpus)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| (*target).to_owned())?;
        Ok(((*target).to_owned(), child))
    };
    let running: Vec<(String, Child)> = TARGETS.iter().map(start).collect::<Result<_>>()?;
    let mut broken = Vec::new();
    for (target, mut child) in running {
        let status = child.wait()?;
        let log = fs::read_to_string(place.join(format!("{target}.log")))?;
        let last = |word: &str| log.lines().rfind(|line| line.contains(word)).unwrap_or("").trim().to_owned();
        let inputs = last("stat::number_of_executed_units").rsplit(' ').next().unwrap_or("").to_owned();
        println!("{target}: {inputs} inputs in {seconds} s; {}", last("cov:"));
        if !status.success() {
            println!("{log}");
            broken.push(target);
        }
    }
    ensure!(broken.is_empty(), "broken: {}; the inputs lie in {}", broken.join(", "), place.display());
    Ok(())
}
