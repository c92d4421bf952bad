//! Ten minutes of faults: whether the agent keeps what it once took.
//!
//! An agent with the stand-in engine and eight stand-in GPUs serves requests while, in turn, its engine is killed, stands
//! still or floods its log, the driver hangs, a GPU is lost and comes back, faults are told, the probe is killed and
//! `/metrics` is scraped. Memory and descriptors are compared between the end of the first fifth and the end.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use cic_common::process::Process;
use fleet_tests::process::Load;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::rig::{Bins, Rig, Usage};
use crate::table::Table;

/// Between two faults.
const FAULT_EVERY: Duration = Duration::from_secs(5);

const SOON: Duration = Duration::from_secs(60);

const MIB: f64 = (1 << 20) as f64;

/// An allocator keeps some of what it got; a leak of one report a heartbeat would be ten times this.
const GROWTH_MIB_MAX: f64 = 2.0;

pub(crate) fn run(minutes: u32) -> anyhow::Result<Table> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(soak(Duration::from_secs(u64::from(minutes) * 60)))
}

async fn soak(span: Duration) -> anyhow::Result<Table> {
    let mut rig = Rig::new(Bins::built()?)?;
    rig.with_engine(&[("CIC_STANDIN_TOKEN_MS", "2")])?;
    for (key, value) in [
        ("CIC_ENGINE_STALL_SUSPECT_MS", "1000"),
        ("CIC_ENGINE_STALL_KILL_MS", "3000"),
        ("CIC_ENGINE_STOP_GRACE_MS", "500"),
        ("CIC_TIMING_PROBE_SERVING_MS", "250"),
    ] {
        rig.set(key, value);
    }
    rig.start()?;
    let serving = wait_serving(&rig).await?;
    eprintln!("engine pid {serving} serves");
    let load = Load::start(&rig.address("edge")?, "tiny", 2);
    let (began, agent) = (Instant::now(), rig.agent_pid()?);
    let mut table = Table::default();
    let mut early = None;
    let (mut fault_count, mut peak_files) = (0_usize, 0);
    let mut minute = 0;
    while began.elapsed() < span {
        strike(&mut rig, fault_count)?;
        fault_count += 1;
        tokio::time::sleep(FAULT_EVERY).await; // bounded wait: one pause
        // Nobody listens to what the agent tells here.
        rig.forget();
        let now = Usage::of(agent)?;
        peak_files = now.file_count.max(peak_files);
        if early.is_none() && began.elapsed() >= span / 5 {
            early = Some(now);
        }
        if began.elapsed().as_secs() / 60 > minute {
            minute = began.elapsed().as_secs() / 60;
            #[allow(clippy::cast_precision_loss)]
            let rss = now.rss_bytes as f64 / MIB;
            eprintln!(
                "minute {minute}: {fault_count} faults, RSS {rss:.1} MiB, {} descriptors",
                now.file_count
            );
        }
    }
    // As at the beginning: no fault under way.
    rig.gpus.script(&json!({}))?;
    wait_serving(&rig).await?;
    let seen = load.stop();
    let (early, late) = (early.context("too short")?, Usage::of(agent)?);
    #[allow(clippy::cast_precision_loss)]
    for (name, value, unit, target) in [
        ("faults injected", fault_count as f64, "", None),
        ("requests answered", seen.good as f64, "", None),
        ("RSS after the first fifth", early.rss_bytes as f64 / MIB, "MiB", None),
        ("RSS at the end", late.rss_bytes as f64 / MIB, "MiB", None),
        (
            "growth of RSS",
            (late.rss_bytes as f64 - early.rss_bytes as f64) / MIB,
            "MiB",
            Some(GROWTH_MIB_MAX),
        ),
        ("descriptors after the first fifth", early.file_count as f64, "", None),
        ("descriptors at the end", late.file_count as f64, "", None),
        ("descriptors at most", peak_files as f64, "", None),
        ("growth of descriptors", late.file_count as f64 - early.file_count as f64, "", Some(4.0)),
    ] {
        table.row(name, value, unit, target);
    }
    Ok(table)
}

async fn wait_serving(rig: &Rig) -> anyhow::Result<u64> {
    let began = Instant::now();
    loop {
        let report = rig.report().unwrap_or_default();
        if report["phase"] == "serving" && report["engine"]["state"] == "ready" {
            return report["engine"]["pid"].as_u64().context("no pid");
        }
        anyhow::ensure!(began.elapsed() < SOON, "not serving: {report:#}\n{}", rig.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One fault after the other, each at its turn.
fn strike(rig: &mut Rig, number: usize) -> anyhow::Result<()> {
    let report = rig.report().unwrap_or_default();
    let engine = report["engine"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let signal = |pid: Option<u32>, signal: Signal| {
        if let Some(pid) = pid {
            let _gone_already = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    };
    match number % 8 {
        0 => signal(engine, Signal::SIGKILL),
        1 => {
            rig.gpus.script(&json!({ "hang": ["nvmlDeviceGetUtilizationRates"] }))?;
        }
        // Requests run, so that it stands still with work.
        2 => signal(engine, Signal::SIGUSR1),
        3 => {
            rig.gpus.script(&json!({ "gpus": { "3": { "lost": true } } }))?;
        }
        4 => {
            rig.gpus.script(&json!({}))?;
            for code in [13, 31, 43, 63] {
                rig.gpus.kernel_says(&format!(
                    "NVRM: Xid (PCI:0000:59:00): {code}, pid=1, name=x, soak {number}"
                ))?;
            }
        }
        5 => signal(rig.probe_pid(), Signal::SIGKILL),
        6 => signal(engine.and_then(child_of), Signal::SIGKILL),
        _ => {
            // An operator takes everything for sound again, so that the node serves in the next round.
            std::fs::write(rig.state().join("gpu-clear.json"), json!({ "gpu": null }).to_string())?;
            for number in 0..200 {
                rig.gpus.kernel_says(&format!("usb 1-1: new device {number}"))?;
            }
        }
    }
    Ok(())
}

fn child_of(pid: u32) -> Option<u32> {
    Process::all().ok()?.into_iter().find(|process| process.parent == pid).map(|process| process.pid)
}
