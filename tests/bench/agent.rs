//! What an idle agent costs, how soon it speaks, and how fast it tells of a GPU fault.
//!
//! The agent runs with its probe on the stand-in for NVML (eight GPUs) and heartbeats to the port of a real controller
//! once a second; its `/metrics` is scraped once a second. Debian's prometheus-node-exporter runs beside it for the same
//! time, scraped as often: read the one against the other.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cic_common::wire::message::NodeEvent;
use fleet_tests::process::request;
use serde_json::{Value, json};

use crate::rig::{Bins, Heard, Rig, Usage};
use crate::table::{Table, percentile};

/// Starts measured.
const STARTS: usize = 20;

/// Faults told through the kernel's log, and by the driver's events.
const KMSG_XIDS: usize = 200;
const NVML_XIDS: usize = 40;

const IDLE: Duration = Duration::from_secs(120);

const SOON: Duration = Duration::from_secs(30);

const MIB: f64 = (1 << 20) as f64;

/// Debian's exporter, where it is installed.
const EXPORTER: &str = "/usr/bin/prometheus-node-exporter";

pub(crate) fn run() -> anyhow::Result<Table> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure())
}

async fn measure() -> anyhow::Result<Table> {
    let bins = Bins::built()?;
    let mut table = Table::default();
    sizes(&bins, &mut table)?;
    starts(&bins, &mut table).await?;
    idle(&bins, &mut table).await?;
    faults(&bins, &mut table).await?;
    Ok(table)
}

#[allow(clippy::cast_precision_loss)]
fn sizes(bins: &Bins, table: &mut Table) -> anyhow::Result<()> {
    for (name, path) in [("cic-agent", &bins.agent), ("cic-gpu-probe", &bins.probe)] {
        let length = std::fs::metadata(path)?.len() as f64 / MIB;
        table.row(&format!("{name}: size of this build"), length, "MiB", None);
    }
    Ok(())
}

async fn starts(bins: &Bins, table: &mut Table) -> anyhow::Result<()> {
    let mut rig = Rig::new(bins.clone())?;
    let (mut hellos, mut beats) = (Vec::new(), Vec::new());
    for number in 0..STARTS {
        // The port hands heartbeats on every 50 ms: starts must not keep step with that.
        pause(number).await;
        let began = rig.start()?;
        let is_hello = |heard| matches!(heard, Heard::Hello).then_some(());
        let is_beat = |heard| matches!(heard, Heard::Heartbeat).then_some(());
        let (at, ()) = rig.hear("hello", SOON, is_hello).await?;
        hellos.push((at - began).as_secs_f64() * 1000.0);
        let (at, ()) = rig.hear("heartbeat", SOON, is_beat).await?;
        beats.push((at - began).as_secs_f64() * 1000.0);
        rig.kill()?;
        rig.forget();
    }
    for (name, list, target) in [
        ("exec to hello (a whole report) in the controller", &mut hellos, None),
        ("exec to first heartbeat in the controller, its batches of 50 ms included", &mut beats, Some(50.0)),
    ] {
        table.row(&format!("{name}, median of {STARTS}"), percentile(list, 50.0), "ms", target);
        table.row(&format!("{name}, max of {STARTS}"), percentile(list, 100.0), "ms", None);
    }
    Ok(())
}

async fn idle(bins: &Bins, table: &mut Table) -> anyhow::Result<()> {
    let mut rig = Rig::new(bins.clone())?;
    rig.start()?;
    rig.wait_for_gpus(SOON).await?;
    let exporter = Exporter::start()?;
    let probe = rig.probe_pid().context("the probe runs")?;
    let agent = rig.agent_pid()?;
    let mut watched =
        vec![("cic-agent", agent, Some(15.0), Some(0.3)), ("cic-gpu-probe", probe, Some(10.0), None)];
    if let Some(exporter) = &exporter {
        watched.push(("prometheus-node-exporter", exporter.child.id(), None, None));
    }
    let before: Vec<Usage> = watched.iter().map(|(_, pid, ..)| Usage::of(*pid)).collect::<Result<_, _>>()?;
    let (began, metrics) = (Instant::now(), rig.address("metrics")?);
    let mut peaks = vec![0; watched.len()];
    let mut scrapes = tokio::time::interval(Duration::from_secs(1));
    while began.elapsed() < IDLE {
        scrapes.tick().await;
        scrape(&metrics)?;
        if let Some(exporter) = &exporter {
            scrape(&exporter.address)?;
        }
        for ((_, pid, ..), peak) in watched.iter().zip(&mut peaks) {
            *peak = Usage::of(*pid)?.rss_bytes.max(*peak);
        }
    }
    let spent = began.elapsed().as_secs_f64();
    for (((name, pid, rss_target, cpu_target), before), peak) in watched.into_iter().zip(before).zip(peaks) {
        let after = Usage::of(pid)?;
        #[allow(clippy::cast_precision_loss)]
        table.row(&format!("{name}: peak RSS over {spent:.0} s"), peak as f64 / MIB, "MiB", rss_target);
        let share = (after.cpu - before.cpu).as_secs_f64() / spent * 100.0;
        table.row(&format!("{name}: share of a core over {spent:.0} s"), share, "%", cpu_target);
    }
    Ok(())
}

fn scrape(address: &str) -> anyhow::Result<()> {
    request(address, "GET", "/metrics", None, Duration::from_secs(5)).map(|_| ())
}

/// Debian's exporter on a free port, ended with this.
struct Exporter {
    child: Child,
    address: String,
}

impl Exporter {
    fn start() -> anyhow::Result<Option<Self>> {
        if !Path::new(EXPORTER).exists() {
            eprintln!("skipped: no {EXPORTER}; `apt-get install prometheus-node-exporter` brings the peer");
            return Ok(None);
        }
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let child = Command::new(EXPORTER)
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the exporter")?;
        let exporter = Self { child, address };
        let began = Instant::now();
        while scrape(&exporter.address).is_err() {
            anyhow::ensure!(began.elapsed() < SOON, "the exporter does not answer");
            std::thread::sleep(Duration::from_millis(20)); // bounded wait: SOON
        }
        Ok(Some(exporter))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Buses of the eight GPUs of the default script.
const BUSES: [&str; 8] = ["19", "29", "39", "49", "59", "69", "79", "89"];

async fn faults(bins: &Bins, table: &mut Table) -> anyhow::Result<()> {
    let mut rig = Rig::new(bins.clone())?;
    rig.start()?;
    rig.wait_for_gpus(SOON).await?;
    let xid = |wanted: u32| {
        move |heard| match heard {
            Heard::Told(NodeEvent::Xid { seen, .. }) if seen.code == wanted => Some(()),
            Heard::Told(_) | Heard::Heartbeat | Heard::Hello => None,
        }
    };
    let mut spans = Vec::new();
    for number in 0..KMSG_XIDS {
        // Another GPU and code each time: the same one within five seconds counts once.
        let (bus, code) = (BUSES[number % BUSES.len()], 1 + u32::try_from(number / BUSES.len())?);
        pause(number).await;
        let text = format!("NVRM: Xid (PCI:0000:{bus}:00): {code}, pid=4242, name=python3, bench");
        let at = rig.gpus.kernel_says(&text)?;
        let (heard_at, ()) = rig.hear("XID of the kernel's log", SOON, xid(code)).await?;
        spans.push((heard_at - at).as_secs_f64() * 1000.0);
    }
    row_of(table, "XID in the kernel's log to controller event", &mut spans);
    let mut spans = Vec::new();
    let mut xids: Vec<Value> = Vec::new();
    for number in 0..NVML_XIDS {
        let code = 60 + u32::try_from(number)?;
        pause(number).await;
        xids.push(json!({ "id": number, "gpu": number % 8, "code": code }));
        let at = rig.gpus.script(&json!({ "xids": xids }))?;
        let (heard_at, ()) = rig.hear("XID of the driver", SOON, xid(code)).await?;
        spans.push((heard_at - at).as_secs_f64() * 1000.0);
    }
    row_of(table, "XID in NVML's events to controller event", &mut spans);
    Ok(())
}

/// Between faults, never the same, so that no timer of the agent keeps step with them.
async fn pause(number: usize) {
    let ms = 15 + (number * 37) % 50;
    tokio::time::sleep(Duration::from_millis(ms.try_into().unwrap_or(15))).await; // bounded wait: one pause
}

fn row_of(table: &mut Table, name: &str, spans: &mut [f64]) {
    let count = spans.len();
    table.row(&format!("{name}, median of {count}"), percentile(spans, 50.0), "ms", None);
    table.row(&format!("{name}, p99 of {count}"), percentile(spans, 99.0), "ms", Some(1000.0));
}
