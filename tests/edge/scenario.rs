//! Two hundred streams through an edge that stays, while the replicas behind it are broken, and what became of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fleet_tests::process::{Choir, DevFleet, Heard, Options, Strike, Striker, asks};

/// Counts streams that the edge continued on another replica.
pub(crate) const CONTINUATIONS: &str = "cic_agent_edge_continuations_total";

/// So that a run of kills is no reason for the controller to stop replacing what was killed.
pub(crate) const NO_BRAKE: [(&str, &str); 2] =
    [("CIC_BRAKE_TERMINATIONS_MAX", "1000"), ("CIC_BRAKE_LAUNCHES_MAX", "1000")];

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// One way to break replicas under streams.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) fleet: Options,
    pub(crate) strikes: &'static [Strike],
    /// The run ends once so many streams have ended and so many were cut.
    pub(crate) streams_min: usize,
    pub(crate) cuts_min: usize,
    pub(crate) clients: usize,
    pub(crate) tokens_max: usize,
    pub(crate) serving_min: usize,
    /// No stream begins until a struck replica serves again: engines that start need the processor for themselves.
    pub(crate) rests_between: bool,
    /// From streams on a replica to the strike: a random share of this.
    pub(crate) moment_max: Duration,
    pub(crate) start_within: Duration,
    pub(crate) heal_within: Duration,
    pub(crate) run_within: Duration,
}

impl Scenario {
    /// Starts the fleet, hears every request undisturbed, then again under strikes. `before` is done in between.
    pub(crate) fn run(
        &self,
        before: impl FnOnce(&mut DevFleet) -> anyhow::Result<()>,
    ) -> anyhow::Result<Summary> {
        let mut fleet = DevFleet::start(&self.fleet)?;
        fleet.wait_serving(self.fleet.replicas.into(), self.start_within)?;
        let asks = asks("tiny", self.streams_min, self.tokens_max);
        let began = Instant::now();
        let reference = undisturbed(&fleet.edge, &asks, self.clients * 3)?;
        eprintln!(
            "{}: undisturbed run of {} in {:.1} s",
            self.name,
            asks.len(),
            began.elapsed().as_secs_f64()
        );
        before(&mut fleet)?;

        let began = Instant::now();
        let continued_before = fleet.gateway_metric(CONTINUATIONS)?.unwrap_or(0.0);
        let choir = Choir::start_for_long(&fleet.edge, &asks, self.clients, reference);
        let mut striker = Striker::new(self.strikes, self.serving_min, self.moment_max, self.heal_within);
        let is_over = |choir: &Choir| {
            let continued = match fleet.gateway_metric(CONTINUATIONS) {
                Ok(Some(now)) => (now - continued_before) as usize,
                // An edge that does not count them continues none: the run has failed then, and need not be long.
                Ok(None) => usize::MAX,
                // Asked again soon: where engines start, an answer may be late.
                Err(_) => 0,
            };
            let is_enough = choir.ended() >= self.streams_min && continued >= self.cuts_min;
            is_enough || began.elapsed() > self.run_within
        };
        while !is_over(&choir) {
            choir.rest(self.rests_between);
            let is_healed = striker.wait_healed(&fleet, &|| is_over(&choir))?;
            choir.rest(false);
            if !is_healed || !striker.strike(&fleet, Some(&choir.board), &|| is_over(&choir))? {
                break;
            }
        }
        let board = std::sync::Arc::clone(&choir.board);
        let (heard, failures) = choir.judged();
        let continued = fleet.gateway_metric(CONTINUATIONS)?.map(|now| now - continued_before);
        let summary =
            Summary::of(self, &heard, failures, board.cuts().len(), continued, &striker, began.elapsed());
        println!("{}", summary.line);
        fleet.stop().context("after the run")?;
        Ok(summary)
    }
}

/// Every request once, with nothing in the way. Its answers are what all others are compared with.
pub(crate) fn undisturbed(
    edge: &str,
    asks: &[fleet_tests::process::Ask],
    clients: usize,
) -> anyhow::Result<Vec<Heard>> {
    let mut heard = Choir::start(edge, asks, clients, asks.len()).finish();
    heard.sort_by_key(|(number, _)| *number);
    for (number, heard) in &heard {
        ensure!(heard.is_whole(), "undisturbed request {number}: {}", heard.ending());
    }
    ensure!(heard.len() == asks.len(), "{} of {} were heard", heard.len(), asks.len());
    Ok(heard.into_iter().map(|(_, heard)| heard).collect())
}

/// What became of the streams.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) line: String,
    streams: usize,
    cuts: usize,
    /// None where the edge does not count.
    continued: Option<f64>,
    failures: Vec<String>,
    wanted: (usize, usize),
}

impl Summary {
    fn of(
        scenario: &Scenario,
        heard: &[(usize, Heard)],
        failures: Vec<String>,
        cuts: usize,
        continued: Option<f64>,
        striker: &Striker,
        took: Duration,
    ) -> Self {
        let stall = heard.iter().map(|(_, heard)| heard.stall).max().unwrap_or_default();
        let counted = continued.map_or("not counted".to_owned(), |count| count.to_string());
        let line = format!(
            "{}: {} streams in {:.0} s, {} strikes, {cuts} seen cut, {counted} continued by the edge, {} not as the \
             undisturbed run; longest stall {:.2} s",
            scenario.name,
            heard.len(),
            took.as_secs_f64(),
            striker.struck.len(),
            failures.len(),
            stall.as_secs_f64()
        );
        for (node, strike, cut) in &striker.struck {
            eprintln!("  {strike:?} of {node}: {cut} streams cut");
        }
        let wanted = (scenario.streams_min, scenario.cuts_min);
        Self { line, streams: heard.len(), cuts, continued, failures, wanted }
    }

    /// Every stream is what it would have been, and enough were cut for that to mean something.
    pub(crate) fn check(&self) {
        for (count, example) in tally(&self.failures).values() {
            eprintln!("  {count:>4} as {example}");
        }
        assert!(self.failures.is_empty(), "{} streams differ: {}", self.failures.len(), self.line);
        let continued =
            self.continued.unwrap_or_else(|| panic!("the edge has no {CONTINUATIONS}: {}", self.line));
        let (streams_min, cuts_min) = self.wanted;
        assert!(self.streams >= streams_min, "only {} streams: {}", self.streams, self.line);
        assert!(
            continued as usize >= cuts_min,
            "{continued} continued, {} seen cut: {}",
            self.cuts,
            self.line
        );
    }
}

/// How often each kind of failure occurs, with one of it; what differs in digits only is one kind.
fn tally(failures: &[String]) -> BTreeMap<String, (usize, &String)> {
    const KIND_CHARS: usize = 160;
    let mut tally = BTreeMap::new();
    for failure in failures {
        let what = failure.split_once(": ").map_or(failure.as_str(), |(_, what)| what);
        let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).take(KIND_CHARS).collect();
        tally.entry(kind).or_insert((0, failure)).0 += 1;
    }
    tally
}

/// Waits until `is_so`.
pub(crate) fn wait_until(
    what: &str,
    within: Duration,
    mut is_so: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is_so() {
        ensure!(began.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(LOOK); // bounded wait: by `within`
    }
    Ok(())
}
