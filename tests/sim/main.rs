//! `cic-sim`: plays seeds and says which one breaks a rule.

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cic_common::time::Clock;
use clap::Parser;
use fleet_tests::sim::{Broken, Summary, crash_all, crash_table, failure_text, kept_seeds, run};
use fleet_tests::world::trace::Trace;

#[derive(Debug, Parser)]
#[command(
    about = "Plays seeds of a simulated fleet with both real cores and checks every rule after every event"
)]
struct Options {
    /// How many seeds to play.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Play this one seed only.
    #[arg(long, conflicts_with_all = ["seeds", "from", "expect_failure"])]
    seed: Option<u64>,
    /// Kill the controller at every step of launching and giving back instead, before every cloud.
    #[arg(long, conflicts_with_all = ["seeds", "from", "seed", "expect_failure"])]
    crashes: bool,
    /// Print every event and action of that seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Succeed only if some seed fails: for builds with a planted bug.
    #[arg(long)]
    expect_failure: bool,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.crashes {
        return crash();
    }
    let clock = Clock::start();
    let summary = match options.seed {
        Some(seed) => play_one(seed, options.trace),
        None => play_many(&options),
    };
    println!("{}", summary.text(clock.now().since(cic_common::time::Mono::ZERO)));
    match (summary.failed, options.expect_failure) {
        (Some(seed), true) => {
            println!("seed {seed} fails, as it should");
            ExitCode::SUCCESS
        }
        (None, true) => {
            println!("no seed fails, and one should");
            ExitCode::FAILURE
        }
        (Some(seed), false) => {
            print!("{}", failure_text(seed, &commit()));
            ExitCode::FAILURE
        }
        (None, false) => {
            println!("every rule held");
            ExitCode::SUCCESS
        }
    }
}

fn crash() -> ExitCode {
    let results = crash_all();
    print!("{}", crash_table(&results));
    let broken: Vec<String> = results
        .iter()
        .filter_map(|(sky, crashes)| {
            let Broken { at_step, draw, step, text } = crashes.broken.as_ref()?;
            Some(format!("{}: killed at point {at_step}, {step}, draw {draw}: {text}", sky.name))
        })
        .collect();
    for text in &broken {
        println!("{text}");
    }
    if broken.is_empty() {
        println!("one VM for each row after each");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

fn play_one(seed: u64, is_traced: bool) -> Summary {
    let mut summary = Summary::default();
    summary.add(&run(seed, if is_traced { Trace::Print } else { Trace::Off }));
    summary
}

/// Plays the kept seeds, then the range, on several threads, until one fails.
fn play_many(options: &Options) -> Summary {
    let mut seeds = kept_seeds();
    seeds.extend(options.from..options.from.saturating_add(options.seeds));
    let (next, has_failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut summary = Summary::default();
        while !has_failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&seed) = usize::try_from(index).ok().and_then(|index| seeds.get(index)) else { break };
            summary.add(&run(seed, Trace::Off));
            if summary.failed.is_some() {
                has_failed.store(true, Ordering::Relaxed);
            }
        }
        summary
    };
    let mut sum = Summary::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(summary) => sum.merge(&summary),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    sum
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output().ok();
    let output = output.filter(|output| output.status.success());
    output.map_or_else(
        || "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
