//! Ten minutes of faults: whether the agent keeps what it once took.
//!
//! An agent with the stand-in engine and eight stand-in GPUs serves requests while, in turn, its engine is killed, stands
//! still with work, loses its core or floods its log, the driver hangs until that is told, a GPU is lost and comes back,
//! faults are told, the probe is killed and `/metrics` is scraped. Memory and descriptors are compared between the end of
//! the first fifth and the end.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use cic_common::process::Process;
use fleet_tests::process::{Load, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::rig::{Bins, Rig, Usage};
use crate::table::Table;

/// Between two faults.
const FAULT_EVERY: Duration = Duration::from_secs(6);

/// What the log is flooded with, over the bound of 64 MiB.
const FLOOD_BYTES: usize = 80 << 20;

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
        // Else ten minutes of failures would be spent in waits between tries.
        ("CIC_ENGINE_FAILURE_WINDOW_S", "5"),
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
    let (mut turn, mut hit_count, mut peak_files) = (0_usize, 0_usize, 0);
    let mut minute = 0;
    while began.elapsed() < span {
        hit_count += usize::from(strike(&mut rig, turn)?);
        turn += 1;
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
                "minute {minute}: {hit_count} of {turn} faults hit, RSS {rss:.1} MiB, {} descriptors",
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
        ("faults injected", hit_count as f64, "", None),
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

/// One fault after the other, each at its turn. False when there was nothing to strike.
fn strike(rig: &mut Rig, turn: usize) -> anyhow::Result<bool> {
    let report = rig.report().unwrap_or_default();
    let engine = report["engine"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let engine = engine.filter(|_| report["phase"] == "serving");
    let signal = |pid: Option<u32>, signal: Signal| {
        pid.is_some_and(|pid| kill(Pid::from_raw(pid.cast_signed()), signal).is_ok())
    };
    Ok(match turn % 9 {
        0 => signal(engine, Signal::SIGKILL),
        // Requests run, so that it stands still with work.
        1 => signal(engine, Signal::SIGUSR1),
        2 => {
            // Until turn 5: 18 s, and by 15 s it is told.
            rig.gpus.script(&json!({ "hang": ["nvmlDeviceGetUtilizationRates"] }))?;
            signal(engine.and_then(child_of), Signal::SIGKILL)
        }
        3 => {
            let mut log = std::fs::File::options().append(true).open(rig.state().join("engine.log"))?;
            std::io::Write::write_all(&mut log, &b"a line like very many others\n".repeat(FLOOD_BYTES / 29))?;
            true
        }
        4 => {
            for code in [13, 31, 43, 63] {
                rig.gpus.kernel_says(&format!(
                    "NVRM: Xid (PCI:0000:59:00): {code}, pid=1, name=x, soak {turn}"
                ))?;
            }
            true
        }
        5 => {
            anyhow::ensure!(report["gpu"]["wedged"].is_object(), "the hang is told: {}", report["gpu"]);
            rig.gpus.script(&json!({ "gpus": { "3": { "lost": true } } }))?;
            true
        }
        // Each second round: one that never lives for a minute is taken for broken.
        6 if turn / 9 % 2 == 1 => signal(rig.probe_pid(), Signal::SIGKILL),
        6 => true,
        7 => {
            rig.gpus.script(&json!({}))?;
            let metrics = rig.address("metrics")?;
            for _ in 0..20 {
                request(&metrics, "GET", "/metrics", None, Duration::from_secs(5))?;
            }
            true
        }
        _ => {
            // An operator takes everything for sound again, so that the node serves in the next round.
            std::fs::write(rig.state().join("gpu-clear.json"), json!({ "gpu": null }).to_string())?;
            for number in 0..200 {
                rig.gpus.kernel_says(&format!("usb 1-1: new device {number}"))?;
            }
            true
        }
    })
}

fn child_of(pid: u32) -> Option<u32> {
    Process::all().ok()?.into_iter().find(|process| process.parent == pid).map(|process| process.pid)
}
