//! Runs the steps, all of them, whatever fails.

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::report::{Outcome, Report};
use super::steps::{STEPS, Step};

/// Which steps are wanted, and what earlier steps found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    /// Leave out what takes long: engine, `dev --once`, documentation.
    pub(super) quick: bool,
    /// For machines without a network.
    pub(super) skip_engine: bool,
    /// The engine step passed: tests that use it must not skip.
    pub(super) has_engine: bool,
    /// As `has_engine`, for the clients that others wrote.
    pub(super) has_clients: bool,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut wanted = Wanted::default();
    for arg in args {
        match arg.as_str() {
            "--quick" => wanted.quick = true,
            "--skip-engine" => wanted.skip_engine = true,
            other => bail!("unknown argument `{other}`; usage: cargo xtask test [--quick] [--skip-engine]"),
        }
    }
    let report = run_steps(&STEPS, &mut wanted);
    println!("\n{}", report.text());
    ensure!(report.counts().failed == 0, "not everything passed");
    Ok(())
}

fn run_steps(steps: &[Step], wanted: &mut Wanted) -> Report {
    let began = Instant::now();
    let mut report = Report::default();
    for (index, step) in steps.iter().enumerate() {
        println!("\n[{}/{}] {:>4} s  {}", index + 1, steps.len(), began.elapsed().as_secs(), step.name);
        let step_began = Instant::now();
        let outcome = match step.skip_reason(*wanted) {
            Some(why) => Outcome::Skipped(why.to_owned()),
            None => (step.run)(wanted).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}"))),
        };
        println!("[{}/{}] {}: {}", index + 1, steps.len(), step.name, outcome.text());
        report.add(step.name, outcome, step_began.elapsed());
    }
    report
}

#[cfg(test)]
mod tests {
    use super::super::counts::Counts;
    use super::super::steps::Needs;
    use super::*;

    #[test]
    fn a_failure_does_not_hide_what_comes_after_it() {
        let steps = [
            Step { name: "breaks", needs: Needs::Nothing, run: |_| bail!("no") },
            Step { name: "engine", needs: Needs::Network, run: |_| Ok(Outcome::Passed) },
            Step { name: "works", needs: Needs::Nothing, run: |_| Ok(Outcome::Passed) },
        ];
        let mut wanted = Wanted { skip_engine: true, ..Wanted::default() };
        let report = run_steps(&steps, &mut wanted);
        assert_eq!(report.counts(), Counts { passed: 1, failed: 1, skipped: 1 });
    }
}
