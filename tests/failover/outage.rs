//! Every controller and the database gone for minutes, while users ask.

use std::time::{Duration, Instant};

use anyhow::ensure;
use fleet_tests::process::{Duo, Load, Streams};
use nix::sys::signal::Signal;

use super::checks::{nobody_noticed, terms_only_rise};

const REPLICAS: u16 = 2;

/// How long a return is watched: the grace before a replacement is a minute, after the nodes were listened for.
const WATCHED_FOR: Duration = Duration::from_secs(90);

/// How long all of them are away: seconds in the suite, ten minutes for the figure of SPEC.md.
fn span() -> Duration {
    let seconds = std::env::var("CIC_OUTAGE_S").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

/// Looks each second for as long as `span` that `holds` does.
fn wait_while(span: Duration, mut holds: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < span {
        holds()?;
        std::thread::sleep(Duration::from_secs(1)); // bounded wait: `span`
    }
    Ok(())
}

#[test]
fn without_any_controller_or_database_no_request_fails_and_their_return_replaces_nobody() -> anyhow::Result<()>
{
    let Some(mut duo) = Duo::start(REPLICAS)? else { return Ok(()) };
    let load = Load::paced(&duo.edge, "tiny", 4, Duration::from_millis(50));
    let streams = Streams::start(&duo.edge, "tiny", 2, 32);
    let (operations, mut machines) = (duo.operations()?, duo.machines()?);
    machines.sort();

    for one in &mut duo.controllers {
        one.signal(Signal::SIGKILL)?;
        one.wait_end()?;
    }
    duo.postgres.stop()?;
    wait_while(span(), || {
        ensure!(duo.answers(), "an edge answers nobody");
        Ok(())
    })?;
    // The controllers come first, and have nothing to read from.
    for index in [0, 1] {
        duo.start_controller(index)?;
    }
    wait_while(Duration::from_secs(5), || {
        ensure!(duo.leader().is_none(), "one leads without a database");
        Ok(())
    })?;
    duo.postgres.start_again()?;
    let back = Instant::now();
    duo.wait_well()?;
    let replicas = usize::from(REPLICAS);
    duo.wait_for("serving replicas", Duration::from_secs(30), |duo| {
        (duo.serving(duo.leader()?)? == replicas).then_some(())
    })?;
    let known_after = back.elapsed();
    wait_while(WATCHED_FOR, || {
        let mut now = duo.machines()?;
        now.sort();
        ensure!(now == machines, "{machines:?} before, {now:?} after");
        Ok(())
    })?;
    let ordered: Vec<_> = duo.operations()?.into_iter().skip(operations.len()).collect();
    ensure!(ordered.is_empty(), "ordered after the return: {ordered:#?}");
    terms_only_rise(&duo)?;
    let seen = streams.stop();
    println!(
        "away for {:?}; both replicas known {known_after:?} after the database was back; {} streams whole, \
         {} refused, {} broken; operations ordered after the return: {}",
        span(),
        seen.whole,
        seen.refused.len(),
        seen.broken.len(),
        ordered.len(),
    );
    ensure!(seen.refused.is_empty() && seen.broken.is_empty() && seen.whole > 0, "{seen:?}");
    nobody_noticed(&load.stop())
}
