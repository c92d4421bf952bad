//! What a person reads after many seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::rule::Rule;
use super::run::{Outcome, run};
use crate::world::trace::Trace;

/// Sums over many runs.
#[derive(Debug, Default)]
pub struct Summary {
    pub seed_count: u64,
    pub event_count: u64,
    pub virtual_time: Duration,
    pub vm_time: Duration,
    pub rest_max: (Duration, u64),
    pub checks: BTreeMap<Rule, u64>,
    pub injected: BTreeMap<&'static str, u64>,
    /// The lowest failing seed of all runs so far.
    pub failed: Option<u64>,
}

impl Summary {
    pub fn add(&mut self, outcome: &Outcome) {
        self.seed_count += 1;
        self.event_count += outcome.event_count;
        self.virtual_time += outcome.virtual_time;
        self.vm_time += outcome.vm_time;
        self.rest_max = self.rest_max.max((outcome.rest_after, outcome.seed));
        add_counts(&mut self.checks, &outcome.checks);
        add_counts(&mut self.injected, &outcome.injected);
        if outcome.violation.is_some() {
            self.failed = Some(self.failed.map_or(outcome.seed, |seed| seed.min(outcome.seed)));
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.seed_count += other.seed_count;
        self.event_count += other.event_count;
        self.virtual_time += other.virtual_time;
        self.vm_time += other.vm_time;
        self.rest_max = self.rest_max.max(other.rest_max);
        add_counts(&mut self.checks, &other.checks);
        add_counts(&mut self.injected, &other.injected);
        self.failed = [self.failed, other.failed].into_iter().flatten().min();
    }

    /// The table, with how long it took by the wall clock.
    #[must_use]
    pub fn text(&self, wall: Duration) -> String {
        let mut text = String::new();
        let days = self.virtual_time.as_secs_f64() / 86_400.0;
        let (rest, rest_seed) = self.rest_max;
        let _ = writeln!(text, "{:<62} {:>14}", "seeds run", self.seed_count);
        let _ = writeln!(text, "{:<62} {:>14}", "events processed", self.event_count);
        let _ = writeln!(text, "{:<62} {days:>14.1}", "virtual days");
        let _ = writeln!(text, "{:<62} {:>14.1}", "virtual VM days", self.vm_time.as_secs_f64() / 86_400.0);
        let _ = writeln!(text, "{:<62} {:>14.1}", "wall seconds", wall.as_secs_f64());
        let label = format!("longest way to rest, virtual seconds (seed {rest_seed})");
        let _ = writeln!(text, "{label:<62} {:>14}", rest.as_secs());
        let _ = writeln!(text, "\n{:<62} {:>14}", "invariant", "checked");
        for (rule, count) in &self.checks {
            let _ = writeln!(text, "{:<62} {count:>14}", rule.as_str());
        }
        let _ = writeln!(text, "\n{:<62} {:>14}", "fault", "injected");
        for (kind, count) in &self.injected {
            let _ = writeln!(text, "{kind:<62} {count:>14}");
        }
        text
    }
}

/// Everything a person needs to go on with a failed seed. The seed is played again to show its last events.
#[must_use]
pub fn failure_text(seed: u64, commit: &str) -> String {
    let outcome = run(seed, Trace::Tail(std::collections::VecDeque::new()));
    let mut text = String::new();
    if let Trace::Tail(lines) = &outcome.trace {
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
    }
    let violation = outcome.violation.as_ref();
    let rule = violation.map_or("none: the second run did not fail", |violation| violation.rule.as_str());
    let _ = writeln!(text, "\nseed      {seed}");
    let _ = writeln!(text, "commit    {commit}");
    let _ = writeln!(text, "invariant {rule}");
    let _ = writeln!(text, "because   {}", violation.map_or("", |violation| violation.text.as_str()));
    let _ = writeln!(text, "replay    cargo xtask sim --seed {seed} --trace");
    text
}

fn add_counts<K: Ord + Copy>(sums: &mut BTreeMap<K, u64>, counts: &BTreeMap<K, u64>) {
    for (key, count) in counts {
        *sums.entry(*key).or_default() += count;
    }
}
