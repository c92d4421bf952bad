//! One fleet after the other, from small to large.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::page::Page;
use super::silence;
use super::site::{Controller, Site};
use super::swarm::{Condition, Swarm, raise_descriptors};
use crate::rig::Usage;
use crate::table::Table;

/// Nodes of each fleet.
pub(crate) const SIZES: [usize; 3] = [1000, 5000, 10_000];

/// Twice what a bare port of heartbeats took on such a machine, without any state: 36 µs of processor for each at 5,000
/// nodes (107 at 1,000, where fewer share a wake-up) and 41 KiB a connection (`facts/peers.md`).
const CPU_MICROS_MAX: f64 = 72.0;
const CPU_MICROS_SMALL_MAX: f64 = 214.0;
const RSS_KIB_MAX: f64 = 82.0;

/// From this size on the port has enough to do at each wake-up.
const LARGE: usize = 5000;

/// Share of a fleet that falls silent at once, in whole zones: two of twenty.
pub(super) const TAKEN_SHARE: usize = 10;

/// After the last agent was told its routes, before anything is measured: polls have begun and found their pace.
const CALM: Duration = Duration::from_secs(12);

/// Longer than the 10 s between the polls of a node, twice.
const STEADY: Duration = Duration::from_secs(24);

/// Ten thousand handshakes and as many tables, on two cores with those who make them.
const UP_WITHIN: Duration = Duration::from_secs(240);

const LOOK: Duration = Duration::from_millis(200);

/// The page of ten thousand nodes takes the controller tens of milliseconds.
pub(super) const PAGE_LOOK: Duration = Duration::from_secs(1);

/// Silence is measured in the largest fleet only.
pub(crate) fn run(sizes: &[usize]) -> anyhow::Result<Table> {
    let largest = sizes.iter().copied().max().unwrap_or(0);
    raise_descriptors(largest)?;
    let mut table = Table::default();
    let base = rss_without_nodes()?;
    table.row("no nodes: RSS of the controller", base / 1024.0, "MiB", None);
    for size in sizes {
        let mut fleet = Fleet::start(*size)?;
        if let Err(error) = fleet.measure(base, *size == largest, &mut table) {
            // What was measured before is worth seeing, and a fleet that does not come up is a result.
            eprintln!("{size} nodes: {error:#}; the controller's log ends with:\n{}", fleet.controller.log());
            table.row(&format!("{size} nodes: failed"), 1.0, "", Some(0.0));
        }
    }
    Ok(table)
}

/// A fleet of one size. Its processes end with it.
pub(super) struct Fleet {
    pub(super) size: usize,
    pub(super) controller: Controller,
    staying: Swarm,
    pub(super) taken: Swarm,
    pub(super) site: Site,
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// KiB.
fn rss_without_nodes() -> anyhow::Result<f64> {
    let site = runtime()?.block_on(Site::new(0))?;
    let controller = Controller::start(&site)?;
    wait_until("the controller to answer", UP_WITHIN, LOOK, || {
        Ok(Page::read(&controller.api)?.value("cic_settled") > 0.0)
    })?;
    rss_kib(&controller)
}

#[allow(clippy::cast_precision_loss)]
fn rss_kib(controller: &Controller) -> anyhow::Result<f64> {
    Ok(Usage::of(controller.pid())?.rss_bytes as f64 / 1024.0)
}

impl Fleet {
    fn start(size: usize) -> anyhow::Result<Self> {
        let site = runtime()?.block_on(Site::new(size))?;
        let split = size / TAKEN_SHARE;
        let mut taken = Swarm::start(site.path(), &site.tls(), 0..split, size)?;
        let mut staying = Swarm::start(site.path(), &site.tls(), split..size, size)?;
        site.run_machines(staying.pid())?;
        taken.wait_ready()?;
        staying.wait_ready()?;
        let controller = Controller::start(&site)?;
        Ok(Self { size, controller, staying, taken, site })
    }

    #[allow(clippy::cast_precision_loss)]
    fn measure(&mut self, base_kib: f64, is_largest: bool, table: &mut Table) -> anyhow::Result<()> {
        let (size, began) = (self.size, Instant::now());
        for swarm in [&mut self.taken, &mut self.staying] {
            swarm.dial(self.controller.quic)?;
        }
        self.wait_for("connected", |condition| condition.connected)?;
        let connected_after = began.elapsed();
        self.wait_for("told the routes", |condition| condition.routed)?;
        let up_after = began.elapsed();
        self.wait_alive()?;
        std::thread::sleep(CALM); // bounded wait: CALM

        let mut row = |name: &str, value: f64, unit, target| {
            table.row(&format!("{size} nodes: {name}"), value, unit, target);
        };
        row("connected after", connected_after.as_secs_f64(), "s", None);
        row("each told where all others are after", up_after.as_secs_f64(), "s", None);
        let redials = self.condition()?.redials;
        let (before, cpu, since) = (self.page()?, Usage::of(self.controller.pid())?.cpu, Instant::now());
        std::thread::sleep(STEADY); // bounded wait: STEADY
        let usage = Usage::of(self.controller.pid())?;
        let spent = since.elapsed().as_secs_f64();
        let after = self.page()?;
        let beats = after.value("cic_ingest_seconds_count") - before.value("cic_ingest_seconds_count");
        let micros = (usage.cpu - cpu).as_secs_f64() * 1e6 / spent;
        let cpu_max = if size < LARGE { CPU_MICROS_SMALL_MAX } else { CPU_MICROS_MAX };
        row("CPU of the controller, a node and second", micros / size as f64, "µs", Some(cpu_max));
        row("share of one core", micros / 1e4, "%", Some(100.0));
        let rss = (usage.rss_bytes as f64 / 1024.0 - base_kib) / size as f64;
        row("RSS, a node", rss, "KiB", Some(RSS_KIB_MAX));
        row("heartbeats taken, a node and second", beats / size as f64 / spent, "", None);
        row(
            "connections lost while it was steady",
            (self.condition()?.redials - redials) as f64,
            "",
            Some(0.0),
        );
        for share in [0.5, 0.99] {
            let name = format!("arrival of a heartbeat to its step, p{}", share * 100.0);
            row(&name, after.quantile_ms(&before, "cic_ingest_seconds", share)?, "ms", None);
        }
        row("one step of the core, p99", after.quantile_ms(&before, "cic_step_seconds", 0.99)?, "ms", None);
        queues(&format!("{size} nodes"), &after, table);
        if is_largest {
            silence::measure(self, table)?;
        }
        self.controller.ensure_runs()
    }

    pub(super) fn page(&self) -> anyhow::Result<Page> {
        Page::read(&self.controller.api)
    }

    fn condition(&mut self) -> anyhow::Result<Condition> {
        Ok(self.taken.condition()? + self.staying.condition()?)
    }

    fn wait_for(&mut self, what: &str, count: fn(Condition) -> usize) -> anyhow::Result<()> {
        let (size, mut last) = (self.size, Condition::default());
        let waited = wait_until(what, UP_WITHIN, LOOK, || {
            self.controller.ensure_runs()?;
            last = self.condition()?;
            Ok(count(last) == size)
        });
        waited.map_err(|error| error.context(format!("{last:?} of {size}")))
    }

    fn wait_alive(&self) -> anyhow::Result<()> {
        wait_until("all to be believed alive", UP_WITHIN, PAGE_LOOK, || {
            #[allow(clippy::cast_precision_loss)]
            Ok(self.page()?.value("cic_nodes{belief=\"alive\"}") >= self.size as f64)
        })
    }
}

/// Rows of how full each queue ever was, against its bound.
pub(super) fn queues(of: &str, page: &Page, table: &mut Table) {
    for (queue, name) in [
        ("events", "events that waited for the core"),
        ("writes", "writes that waited for the store"),
        ("log", "entries of the event log that waited for the store"),
        ("urgent_polls", "urgent polls that ran or waited"),
    ] {
        let (most, bound) = page.queue(queue);
        table.row(&format!("{of}: most {name} since the start"), most, "", Some(bound));
    }
}

pub(super) fn wait_until(
    what: &str,
    within: Duration,
    pause: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds()? {
        if began.elapsed() > within {
            bail!("not within {within:?}: {what}");
        }
        std::thread::sleep(pause); // bounded wait: `within`
    }
    Ok(())
}
