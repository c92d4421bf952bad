//! The steps, in order: cheap verdicts first, the whole fleet last.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use super::counts::Counts;
use super::failures::Failures;
use super::left_out;
use super::machine;
use super::report::Outcome;
use super::runner::Wanted;
use crate::{clients, dev, engine, repository, tidy};

/// The number of the promise in SPEC.md: a planted bug is found within so many seeds.
const SEEDS: &str = "2000";

/// What a step cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// A network to fetch the engine from, and minutes.
    Network,
    /// The engine, and minutes.
    Engine,
    /// Minutes.
    Patience,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) needs: Needs,
    pub(super) run: fn(&mut Wanted) -> Result<Outcome>,
}

impl Step {
    pub(super) fn skip_reason(&self, wanted: Wanted) -> Option<&'static str> {
        match self.needs {
            Needs::Nothing => None,
            Needs::Network | Needs::Engine | Needs::Patience if wanted.quick => Some("--quick leaves it out"),
            Needs::Network | Needs::Engine if wanted.skip_engine => Some("--skip-engine was given"),
            Needs::Engine if !wanted.has_engine => Some("the engine step did not pass"),
            Needs::Network | Needs::Engine | Needs::Patience => None,
        }
    }
}

pub(super) const STEPS: [Step; 16] = [
    Step { name: "what this machine needs", needs: Needs::Nothing, run: prepare },
    Step { name: "format", needs: Needs::Nothing, run: |_| cargo(&["fmt", "--all", "--check"]) },
    Step { name: "tidy", needs: Needs::Nothing, run: tidy },
    Step { name: "clippy", needs: Needs::Nothing, run: clippy },
    Step { name: "engine", needs: Needs::Network, run: fetch_engine },
    Step { name: "clients of others", needs: Needs::Network, run: fetch_clients },
    Step {
        name: "build",
        needs: Needs::Nothing,
        run: |_| cargo(&["build", "--workspace", "--bins", "--lib"]),
    },
    Step { name: "tests", needs: Needs::Nothing, run: nextest },
    Step {
        name: "doc tests",
        needs: Needs::Nothing,
        run: |_| cargo(&["test", "--quiet", "--workspace", "--doc"]),
    },
    Step { name: "simulator", needs: Needs::Nothing, run: |_| simulate(&[], &["--seeds", SEEDS]) },
    Step { name: "planted bug in the brake", needs: Needs::Nothing, run: |_| planted("planted-brake-bug") },
    Step {
        name: "planted bug in the incarnation fence",
        needs: Needs::Nothing,
        run: |_| planted("planted-incarnation-bug"),
    },
    Step { name: "documentation", needs: Needs::Patience, run: document },
    Step {
        name: "licences, bans, sources",
        needs: Needs::Nothing,
        run: |_| deny(&["bans", "licenses", "sources"]),
    },
    Step { name: "advisories", needs: Needs::Nothing, run: |_| deny(&["advisories"]) },
    Step { name: "a fleet of real engines", needs: Needs::Engine, run: dev_once },
];

fn prepare(wanted: &mut Wanted) -> Result<Outcome> {
    machine::prepare(!wanted.quick && !wanted.skip_engine)?;
    Ok(Outcome::Passed)
}

fn tidy(_: &mut Wanted) -> Result<Outcome> {
    tidy::run(&[])?;
    Ok(Outcome::Passed)
}

fn clippy(_: &mut Wanted) -> Result<Outcome> {
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn fetch_engine(wanted: &mut Wanted) -> Result<Outcome> {
    engine::run(&[])?;
    wanted.has_engine = true;
    Ok(Outcome::Passed)
}

/// The tests can do without them, and then say so.
fn fetch_clients(wanted: &mut Wanted) -> Result<Outcome> {
    if let Err(error) = clients::ensure_installed() {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    wanted.has_clients = true;
    Ok(Outcome::Passed)
}

/// Runs every test, shows what nextest says as it says it, and reads its summary.
fn nextest(wanted: &mut Wanted) -> Result<Outcome> {
    let mut command = repository::cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])?;
    if wanted.has_engine {
        command.env("CIC_REQUIRE_ENGINE", "1");
    }
    if wanted.has_clients {
        command.env("CIC_REQUIRE_CLIENTS", "1");
    }
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start cargo nextest")?;
    let lines = BufReader::new(child.stderr.take().context("its stderr is piped")?);
    let mut counts = None;
    let mut failures = Failures::default();
    for line in lines.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        eprintln!("{line}");
        failures.read(&line);
        counts = Counts::of_nextest(&line).or(counts);
    }
    let status = child.wait()?;
    for (test, reason) in left_out::tests()? {
        eprintln!("skipped: {test}: {reason}");
    }
    Ok(match counts {
        Some(counts) => Outcome::Tested { counts, ended_well: status.success(), failures: failures.text() },
        None => Outcome::Failed(format!("nextest ran no test: {status}")),
    })
}

fn simulate(features: &[&str], args: &[&str]) -> Result<Outcome> {
    let program = ["run", "--quiet", "--package", "fleet-tests", "--bin", "cic-sim"];
    cargo(&[&program, features, &["--"], args].concat())
}

/// A build with a known bug: the simulator must find it.
fn planted(feature: &str) -> Result<Outcome> {
    simulate(&["--features", feature], &["--seeds", SEEDS, "--expect-failure"])
}

fn document(_: &mut Wanted) -> Result<Outcome> {
    let mut doc = repository::cargo(&["doc", "--quiet", "--workspace", "--no-deps"])?;
    repository::must(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Outcome::Passed)
}

fn deny(checks: &[&str]) -> Result<Outcome> {
    if !machine::succeeds(&["cargo", "deny", "--version"]) {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed: `cargo install cargo-deny --locked`".into(),
        ));
    }
    let mut command = repository::cargo(&["deny", "check"])?;
    let output = command.args(checks).output().context("cannot start cargo deny")?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    if !output.status.success() && said.contains("failed to fetch advisory database") {
        return Ok(Outcome::Skipped("the advisory database cannot be reached from here".into()));
    }
    Ok(if output.status.success() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("cargo deny ended with {}", output.status))
    })
}

fn dev_once(_: &mut Wanted) -> Result<Outcome> {
    repository::must(&mut dev::command(&["--once".to_owned(), "--engine".to_owned(), "vllm".to_owned()])?)?;
    let left = users_of(&repository::root()?.join(".engine"))?;
    Ok(if left.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("engine processes are left: {left:?}"))
    })
}

/// Processes that have a file below `directory` in memory: a vLLM hides its command line and environment, not that.
fn users_of(directory: &Path) -> Result<Vec<u32>> {
    let directory = directory.to_string_lossy().into_owned();
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let uses = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(&directory))
    };
    Ok(pids.filter(uses).collect())
}

fn cargo(args: &[&str]) -> Result<Outcome> {
    repository::must(&mut repository::cargo(args)?)?;
    Ok(Outcome::Passed)
}
