//! One test for each way to lose a leader.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fleet_tests::process::{Duo, Load};
use nix::sys::signal::Signal;

use super::checks::{FOLLOWED_WITHIN, launches_are_single, nobody_noticed, terms_only_rise};

const REPLICAS: u16 = 2;

/// Leaders lost in one test: few in the suite, 20 for the figures of SPEC.md.
fn runs() -> usize {
    std::env::var("CIC_FAILOVER_RUNS").ok().and_then(|count| count.parse().ok()).unwrap_or(2)
}

/// Loses the leader again and again, each time as `strike` does; `heal` puts it back as a standby.
fn lose(
    name: &str,
    within: Duration,
    strike: fn(&mut Duo, usize) -> anyhow::Result<()>,
    heal: fn(&mut Duo, usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(mut duo) = Duo::start(REPLICAS)? else { return Ok(()) };
    let load = Load::paced(&duo.edge, "tiny", 2, Duration::from_millis(20));
    let mut spans = Vec::new();
    for _ in 0..runs() {
        let leader = duo.wait_well()?;
        let term = duo.controllers[leader].term().context("no term")?;
        let began = Instant::now();
        strike(&mut duo, leader)?;
        let other = 1 - leader;
        duo.wait_for("another leader", Duration::from_secs(30), |duo| {
            duo.controllers[other].leads().then_some(())
        })?;
        spans.push(began.elapsed());
        ensure!(duo.controllers[other].term() > Some(term), "the next leader has no higher term");
        heal(&mut duo, leader)?;
        duo.wait_well()?;
        terms_only_rise(&duo)?;
    }
    spans.sort();
    let (median, max) = (spans[spans.len() / 2], spans[spans.len() - 1]);
    println!("{name}: {} times, to the next leader median {median:?}, max {max:?}", spans.len());
    duo.wait_for("serving replicas", Duration::from_secs(30), |duo| {
        (duo.serving(duo.leader()?)? == usize::from(REPLICAS)).then_some(())
    })?;
    nobody_noticed(&load.stop())?;
    launches_are_single(&duo, usize::from(REPLICAS))?;
    ensure!(max <= within, "{max:?} to the next leader, {within:?} at most is promised");
    Ok(())
}

#[test]
fn a_killed_leader_is_followed_within_its_lease() -> anyhow::Result<()> {
    let kill = |duo: &mut Duo, leader: usize| {
        duo.controllers[leader].signal(Signal::SIGKILL)?;
        duo.controllers[leader].wait_end().map(drop)
    };
    lose("SIGKILL", FOLLOWED_WITHIN, kill, Duo::start_controller)
}

#[test]
fn a_leader_stopped_past_its_lease_follows_when_it_goes_on() -> anyhow::Result<()> {
    let stop = |duo: &mut Duo, leader: usize| duo.controllers[leader].signal(Signal::SIGSTOP);
    let go_on = |duo: &mut Duo, leader: usize| {
        duo.controllers[leader].signal(Signal::SIGCONT)?;
        // It may not say for one moment that it leads: the other does.
        ensure!(!duo.controllers[leader].leads(), "it leads still");
        Ok(())
    };
    lose("SIGSTOP", FOLLOWED_WITHIN, stop, go_on)
}

#[test]
fn a_leader_cut_off_from_the_database_is_followed_and_acts_no_more() -> anyhow::Result<()> {
    let cut = |duo: &mut Duo, leader: usize| {
        duo.controllers[leader].line.cut();
        Ok(())
    };
    let mend = |duo: &mut Duo, leader: usize| {
        ensure!(!duo.controllers[leader].leads(), "two say that they lead");
        duo.controllers[leader].line.mend();
        Ok(())
    };
    lose("cut off from the database", FOLLOWED_WITHIN, cut, mend)
}

#[test]
fn a_leader_told_to_end_hands_over_within_a_second() -> anyhow::Result<()> {
    let end = |duo: &mut Duo, leader: usize| duo.controllers[leader].signal(Signal::SIGTERM);
    let start = |duo: &mut Duo, leader: usize| {
        let code = duo.controllers[leader].wait_end()?;
        ensure!(code == Some(0), "it ended with {code:?}");
        duo.start_controller(leader)
    };
    lose("SIGTERM", Duration::from_secs(1), end, start)
}

#[test]
fn a_leader_told_to_hand_over_stands_back_and_a_standby_sends_changes_to_it() -> anyhow::Result<()> {
    let Some(duo) = Duo::start(REPLICAS)? else { return Ok(()) };
    let leader = duo.wait_well()?;
    // The agents were welcomed by both, and go by the leader's word.
    let all = usize::from(REPLICAS) + 1;
    duo.wait_for("a standby that hears every node", Duration::from_secs(20), |duo| {
        (duo.alive(1 - leader)? == all).then_some(())
    })?;
    // Asked of the standby, and sent on.
    let answer = duo.controllers[1 - leader].ask("POST", "/v1/failover", Some("{}"))?;
    let target = answer.header("location").context("no location")?;
    ensure!(answer.status == 307, "{}: {}", answer.status, answer.body);
    ensure!(target == format!("http://{}/v1/failover", duo.controllers[leader].api), "{target}");
    let began = Instant::now();
    let answer = duo.controllers[leader].ask("POST", "/v1/failover", Some("{}"))?;
    ensure!(answer.status == 202, "{}: {}", answer.status, answer.body);
    duo.wait_for("another leader", Duration::from_secs(30), |duo| {
        duo.controllers[1 - leader].leads().then_some(())
    })?;
    println!("POST /v1/failover: another leads after {:?}", began.elapsed());
    ensure!(began.elapsed() < Duration::from_secs(1), "{:?} to the next leader", began.elapsed());
    ensure!(duo.controllers[leader].ask("GET", "/v1/nodes", None)?.status == 200, "a standby answers reads");
    terms_only_rise(&duo)
}

#[test]
fn a_replacement_that_the_leader_began_is_finished_once_by_the_next() -> anyhow::Result<()> {
    let Some(mut duo) = Duo::start(REPLICAS)? else { return Ok(()) };
    let load = Load::paced(&duo.edge, "tiny", 2, Duration::from_millis(20));
    let replicas = usize::from(REPLICAS);
    for lost in 1..=runs() {
        let leader = duo.wait_well()?;
        let known = duo.machines()?;
        let victim = known.first().context("no machine")?.clone();
        duo.kill_machine(&victim)?;
        // As soon as the launch of its successor is in the store, whether or not it was performed.
        duo.wait_for("a launch", Duration::from_secs(30), |duo| {
            let operations =
                duo.controllers[leader].ask("GET", "/v1/operations?limit=1000", None).ok()?.json().ok()?;
            let launches = operations["operations"].as_array()?.iter();
            let launches = launches.filter(|operation| operation["kind"].get("launch").is_some()).count();
            (launches >= replicas + lost).then_some(())
        })?;
        duo.controllers[leader].signal(Signal::SIGKILL)?;
        duo.controllers[leader].wait_end()?;
        let other = 1 - leader;
        duo.wait_for("another leader", Duration::from_secs(30), |duo| {
            duo.controllers[other].leads().then_some(())
        })?;
        duo.start_controller(leader)?;
        duo.wait_for("the replacement", Duration::from_secs(60), |duo| {
            let machines = duo.machines().ok()?;
            let is_done = machines.len() == replicas && !machines.contains(&victim);
            (is_done && duo.serving(duo.leader()?)? == replicas).then_some(())
        })?;
        terms_only_rise(&duo)?;
        launches_are_single(&duo, replicas + lost)?;
    }
    nobody_noticed(&load.stop())
}
