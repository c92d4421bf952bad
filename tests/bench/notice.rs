//! From a cloud's notice to the recorded launch of the replacement, on real processes.
//!
//! For each cloud a fleet of two replicas on the stand-in engine runs under `cic dev`, its nodes before fake metadata
//! services. Each run has one serving node's service publish a notice, or sends its agent SIGTERM, and reads from the event
//! log when the controller had it, which it acknowledges in the same step, and when the launch of the replacement was
//! recorded. Time zero is before the publication.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context as _;
use cic_common::time::unix_ms;
use fleet_tests::process::{DevFleet, Fault, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::detect::{after, is};
use crate::table::Table;

/// Runs for each cloud unless told otherwise.
pub(crate) const RUNS: NonZeroUsize = NonZeroUsize::new(50).expect("50 is not zero");

const WITHIN: Duration = Duration::from_secs(60);

/// Cloud, what its notice leaves, and the target for the launch: half of a poll and more, or nearly nothing.
const CLOUDS: [(&str, Duration, f64); 4] = [
    ("aws", Duration::from_secs(120), 1.2),
    ("gcp", Duration::from_secs(30), 0.3),
    ("azure", Duration::from_secs(30), 1.3),
    ("runpod", Duration::from_secs(5), 0.05),
];

pub(crate) fn run(runs: NonZeroUsize) -> anyhow::Result<Table> {
    let mut table = Table::default();
    for (cloud, left, target) in CLOUDS {
        let (mut told, mut launched) = spans(cloud, left, runs)?;
        for (what, list) in [("controller has it", &mut told), ("launch recorded", &mut launched)] {
            list.sort_by(f64::total_cmp);
            table.row(&format!("{cloud}: notice to {what}, p50 of {runs}"), share(list, 0.5), "s", None);
            table.row(
                &format!("{cloud}: notice to {what}, p99 of {runs}"),
                share(list, 0.99),
                "s",
                Some(target),
            );
        }
    }
    Ok(table)
}

fn spans(cloud: &'static str, left: Duration, runs: NonZeroUsize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    // The brake would stop the benchmark half-way.
    let brake = [("CIC_BRAKE_LAUNCHES_MAX", "1000"), ("CIC_BRAKE_TERMINATIONS_MAX", "1000")];
    let env = brake.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let mut fleet = DevFleet::start(&Options { env, cloud, ..Options::default() })?;
    let (mut told, mut launched) = (Vec::new(), Vec::new());
    for round in 1..=runs.get() {
        let serving = fleet.wait_serving(2, WITHIN)?;
        let victim = serving.first().context("a serving node")?.clone();
        let known = fleet.view()?.names();
        let agent = fleet.agent_pid(&victim)?;
        wait_part_of_a_second();
        let zero = unix_ms();
        match cloud {
            "runpod" => kill(Pid::from_raw(agent.cast_signed()), Signal::SIGTERM)?,
            _ => fleet.publish_notice(&victim, cloud, left)?,
        }
        let heard = after(&mut fleet, zero, |event| is(event, "notice", |node| node == victim))?;
        let is_new = |node: &str| !known.iter().any(|name| name == node);
        let launch = after(&mut fleet, zero, |event| is(event, "launch", is_new))?;
        eprintln!("{cloud} run {round}: told {heard} ms, launch {launch} ms");
        #[allow(clippy::cast_precision_loss)]
        for (list, span) in [(&mut told, heard), (&mut launched, launch)] {
            list.push(span as f64 / 1000.0);
        }
        if cloud == "runpod" {
            fleet.fault(&victim, Fault::Kill)?;
        }
        // The next run begins with a node that has not been given notice.
        fleet.wait_for("the victim's end", WITHIN, |fleet| {
            (!fleet.view().ok()?.names().contains(&victim)).then_some(())
        })?;
    }
    fleet.stop()?;
    Ok((told, launched))
}

/// Services are read once a second, and each run begins at the end of the one before: spreads the runs over that second.
fn wait_part_of_a_second() {
    std::thread::sleep(Duration::from_millis(fastrand::u64(0..1000)));
}

/// The value below which so large a part of a sorted list lies.
fn share(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (part * last as f64).ceil();
    // A place within the list.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    sorted.get(place as usize).copied().unwrap_or(f64::NAN)
}
