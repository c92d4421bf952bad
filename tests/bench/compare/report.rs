//! Plays everything and sets the rules side by side.

use std::num::NonZeroUsize;
use std::thread;

use cic_common::time::Mono;

use super::days::{self, LINKS, RULES, Tally};
use super::episode::Episode;
use super::scenario::{ALL, Scenario};
use super::verdict::Verdict;
use super::{kubernetes, nomad, ours, phi, swim};
use crate::grid::{Grid, Line};
use crate::table::{Row, Table, Target, percentile};

/// Episodes of each scenario, unless told otherwise: the 99th percentile of 300 is the third largest.
pub(crate) const RUNS: NonZeroUsize = NonZeroUsize::new(300).expect("300 is not zero");

/// A detection that took more than this counts as none.
const NEVER_S: f64 = 480.0;

type Rule = (&'static str, fn(&Episode) -> Vec<Verdict>);

const RULE: [Rule; RULES] = [
    ("cic", ours::judge),
    ("Kubernetes", kubernetes::judge),
    ("Nomad", nomad::judge),
    ("phi 8", phi::judge),
    ("SWIM", swim::judge),
];

/// One scenario's figures for one rule.
#[derive(Debug, Default, Clone)]
struct Figures {
    detected_s: Vec<f64>,
    node_days: f64,
    replaced: u64,
    killed: u64,
    out: u64,
}

pub(crate) fn run(runs: NonZeroUsize) -> Table {
    let mut table = Table::default();
    let mut grid =
        Grid { columns: RULE.iter().map(|(name, _)| (*name).to_owned()).collect(), lines: Vec::new() };
    let mut ours = Bounds::default();
    for scenario in &ALL {
        eprintln!("{}: {runs} episodes", scenario.name);
        let mut figures = play(scenario, runs.get() as u64);
        ours.take(scenario, &mut figures[0]);
        lines(scenario, &mut figures, &mut grid);
    }
    let (mut node_days, mut given_back) = (0.0, 0);
    for (loss, days) in LINKS {
        eprintln!("{days} node-days at {} % loss", loss * 100.0);
        let tally = long_run(loss, days);
        node_days += tally.days;
        day_lines(loss, &tally, &mut grid);
        given_back += tally.given_back[0];
    }
    let behind = behind(&grid);
    table.grid = Some(grid);
    table.row("detection p99, crash or freeze, at most 1 % loss", ours.calm_p99_s, "s", Some(3.0));
    table.row("detection p99, crash or freeze, 20 % loss", ours.lossy_p99_s, "s", Some(6.0));
    table.row("healthy nodes killed, all scenarios", ours.killed as f64, "nodes", Some(0.0));
    let name = "given back while cut off from everybody for over 2 min";
    table.row(name, given_back as f64 / node_days * 1000.0, "/1000 node-days", None);
    let target = Some(Target::AtLeast(1e6));
    table.rows.push(Row { name: "evidence".to_owned(), value: node_days, unit: "node-days", target });
    for line in behind {
        println!("a reference is ahead: {line}");
    }
    table
}

/// What is promised of ours.
#[derive(Debug, Default)]
struct Bounds {
    calm_p99_s: f64,
    lossy_p99_s: f64,
    killed: u64,
}

impl Bounds {
    fn take(&mut self, scenario: &Scenario, figures: &mut Figures) {
        self.killed += figures.killed;
        if scenario.is_fatal {
            let p99 = percentile(&mut figures.detected_s, 99.0);
            let is_lossy = scenario.name.contains("20 %");
            let is_own_stall = scenario.name.contains("stalls");
            let bound = if is_lossy { &mut self.lossy_p99_s } else { &mut self.calm_p99_s };
            if !is_own_stall && !scenario.name.contains("5 %") {
                *bound = bound.max(p99);
            }
        }
    }
}

fn play(scenario: &Scenario, runs: u64) -> Vec<Figures> {
    let halves = thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn(move || {
                    let mut figures = vec![Figures::default(); RULES];
                    for number in (0..runs).filter(|number| number % 2 == half) {
                        let episode = scenario.episode(number);
                        for ((_, judge), figures) in RULE.iter().zip(&mut figures) {
                            figures.add(&episode, &judge(&episode));
                        }
                    }
                    figures
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rule panics")).collect::<Vec<_>>()
    });
    let mut sum = vec![Figures::default(); RULES];
    for figures in halves {
        for (sum, part) in sum.iter_mut().zip(figures) {
            sum.detected_s.extend(part.detected_s);
            sum.node_days += part.node_days;
            sum.replaced += part.replaced;
            sum.killed += part.killed;
            sum.out += part.out;
        }
    }
    sum
}

impl Figures {
    fn add(&mut self, episode: &Episode, verdicts: &[Verdict]) {
        for (node, verdict) in verdicts.iter().enumerate() {
            self.node_days += episode.span.as_secs_f64() / 86_400.0;
            let was_well = |at: Option<Mono>| at.is_some_and(|at| episode.is_alive(node, at));
            match episode.nodes[node].dies_at {
                Some(dies) => {
                    // One that was killed alive was never detected; one out of service when it died, at once.
                    let is_fair = verdict.killed_at.is_none_or(|at| at >= dies);
                    let after = verdict.out_at.filter(|_| is_fair).map(|at| at.since(dies).as_secs_f64());
                    self.detected_s.push(after.unwrap_or(NEVER_S));
                }
                None => self.out += u64::from(verdict.was_out),
            }
            self.replaced += u64::from(was_well(verdict.replaced_at));
            self.killed += u64::from(was_well(verdict.killed_at));
        }
    }
}

fn lines(scenario: &Scenario, figures: &mut [Figures], grid: &mut Grid) {
    let name = scenario.name;
    let mut line = |what: &str, unit, values: Vec<f64>| {
        grid.lines.push(Line { name: format!("{name}: {what}"), unit, values });
    };
    if scenario.is_fatal {
        for percent in [50.0, 99.0] {
            let values = figures.iter_mut().map(|f| percentile(&mut f.detected_s, percent)).collect();
            line(&format!("detected, p{percent}"), "s", values);
        }
    } else {
        line("healthy taken out", "nodes", figures.iter().map(|f| f.out as f64).collect());
    }
    let per_days = |count: u64, days: f64| count as f64 / days * 1000.0;
    let replaced = figures.iter().map(|f| per_days(f.replaced, f.node_days)).collect();
    line("false replacements", "/1000 node-days", replaced);
    line("healthy killed", "nodes", figures.iter().map(|f| f.killed as f64).collect());
}

fn long_run(loss: f64, days: u32) -> Tally {
    /// One link's share, so that many are learned anew.
    const SLICE: u32 = 100;
    let slices = days / SLICE;
    let halves = thread::scope(|scope| {
        let play = |half: u32| {
            let mut sum = Tally::default();
            for slice in (0..slices).filter(|slice| slice % 2 == half) {
                let tally = days::play(u64::from(slice) ^ loss.to_bits(), loss, SLICE);
                sum.add(&tally);
            }
            sum
        };
        let threads: Vec<_> = (0..2).map(|half| scope.spawn(move || play(half))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rule panics")).collect::<Vec<_>>()
    });
    let mut sum = Tally::default();
    halves.iter().for_each(|half| sum.add(half));
    sum
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.days += other.days;
        self.polls += other.polls;
        for rule in 0..RULES {
            self.out[rule] += other.out[rule];
            self.replaced[rule] += other.replaced[rule];
            self.given_back[rule] += other.given_back[rule];
        }
    }
}

fn day_lines(loss: f64, tally: &Tally, grid: &mut Grid) {
    let name = format!("healthy, {} % loss, {} node-days", loss * 100.0, tally.days);
    let rate = |counts: [u64; RULES]| counts.iter().map(|n| *n as f64 / tally.days * 1000.0).collect();
    let unit = "/1000 node-days";
    grid.lines.push(Line { name: format!("{name}: taken out"), unit, values: rate(tally.out) });
    grid.lines.push(Line { name: format!("{name}: false replacements"), unit, values: rate(tally.replaced) });
    let name_back = format!("{name}: given back while cut off");
    grid.lines.push(Line { name: name_back, unit, values: rate(tally.given_back) });
    let mut polls = vec![f64::NAN; RULES];
    polls[0] = tally.polls as f64 / tally.days;
    grid.lines.push(Line { name: format!("{name}: urgent polls"), unit: "/node-day", values: polls });
}

/// Where another rule has a smaller figure than ours.
fn behind(grid: &Grid) -> Vec<String> {
    let mut behind = Vec::new();
    for line in &grid.lines {
        let ours = line.values[0];
        for (name, value) in grid.columns.iter().zip(&line.values).skip(1) {
            if *value < ours {
                behind.push(format!("{}: {name} {value:.3}, cic {ours:.3} {}", line.name, line.unit));
            }
        }
    }
    behind
}
