//! The rule that stops mass replacement.
//!
//! Every irreversible act asks here first. What is held is said with its reason; nothing is dropped: the plan
//! asks again at the next step.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

/// The brake's limits. Each has a default that suits a small fleet; all are configurable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BrakeRules {
    /// Terminations of VMs that may still be running, per provider within `window`.
    pub terminations_max: u32,
    /// Launches per provider within `window`: the spend limit in VMs.
    pub launches_max: u32,
    pub window: Duration,
    /// This share of a zone's nodes going silent together holds everything there…
    pub silent_share: f32,
    /// …if it is at least this many.
    pub silent_count_min: u32,
    /// A zone that stays silent this long may be given replacements; its own nodes stay untouched.
    pub silent_launch_after: Duration,
}

impl Default for BrakeRules {
    fn default() -> Self {
        Self {
            terminations_max: 5,
            launches_max: 20,
            window: Duration::from_secs(600),
            silent_share: 0.2,
            silent_count_min: 3,
            silent_launch_after: Duration::from_secs(300),
        }
    }
}

/// Why an act is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold(pub String);

/// Silent and all nodes of one zone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) silent: u32,
    pub(super) total: u32,
}

/// The brake: what was done lately, and which zones are silent as a whole.
#[derive(Debug)]
pub struct Brake {
    rules: BrakeRules,
    terminations: BTreeMap<String, VecDeque<Mono>>,
    launches: BTreeMap<String, VecDeque<Mono>>,
    /// Zones under a hold, since when, and the words for it.
    silent_zones: BTreeMap<String, (Mono, String)>,
    all_silent: Option<(Mono, String)>,
}

impl Brake {
    #[must_use]
    pub fn new(rules: BrakeRules) -> Self {
        Self {
            rules,
            terminations: BTreeMap::new(),
            launches: BTreeMap::new(),
            silent_zones: BTreeMap::new(),
            all_silent: None,
        }
    }

    /// Counts the zones anew. Returns the words of holds that began and ended, for the event log.
    pub(super) fn count(&mut self, now: Mono, zones: &BTreeMap<String, Census>) -> Vec<(bool, String)> {
        let mut changes = Vec::new();
        let all = zones.values().fold(Census::default(), |sum, zone| Census {
            silent: sum.silent + zone.silent,
            total: sum.total + zone.total,
        });
        let everything = all.total >= 2 && all.silent == all.total;
        match (&self.all_silent, everything) {
            (None, true) => {
                let text = format!(
                    "all {} nodes are silent together: this controller may be the one cut off",
                    all.total
                );
                changes.push((true, text.clone()));
                self.all_silent = Some((now, text));
            }
            (Some((_, text)), false) => {
                changes.push((false, text.clone()));
                self.all_silent = None;
            }
            (None, false) | (Some(_), true) => {}
        }
        for (zone, census) in zones {
            let is_mass = self.is_mass(*census);
            match (self.silent_zones.contains_key(zone), is_mass) {
                (false, true) => {
                    let text = format!(
                        "{} of {} nodes of zone {zone} are silent together",
                        census.silent, census.total
                    );
                    changes.push((true, text.clone()));
                    self.silent_zones.insert(zone.clone(), (now, text));
                }
                (true, false) => {
                    if let Some((_, text)) = self.silent_zones.remove(zone) {
                        changes.push((false, text));
                    }
                }
                (false, false) | (true, true) => {}
            }
        }
        let gone: Vec<_> =
            self.silent_zones.keys().filter(|zone| !zones.contains_key(*zone)).cloned().collect();
        for zone in gone {
            self.silent_zones.remove(&zone);
        }
        changes
    }

    #[allow(clippy::cast_precision_loss)]
    fn is_mass(&self, census: Census) -> bool {
        census.silent >= self.rules.silent_count_min
            && census.silent as f32 >= self.rules.silent_share * census.total as f32
    }

    /// May a VM that may still be running be terminated?
    ///
    /// # Errors
    /// The hold, with its reason.
    pub fn may_terminate(&mut self, now: Mono, provider: &str, zone: &str) -> Result<(), Hold> {
        if let Some((_, text)) = self.all_silent.as_ref().or_else(|| self.silent_zones.get(zone)) {
            return Err(Hold(text.clone()));
        }
        let recent = recent(&mut self.terminations, now, self.rules.window, provider);
        let limit = self.rules.terminations_max as usize + usize::from(cfg!(feature = "planted-brake-bug"));
        if recent.len() >= limit {
            return Err(Hold(format!(
                "{} terminations at {provider} within {} s; the limit is {}",
                recent.len(),
                self.rules.window.as_secs(),
                self.rules.terminations_max
            )));
        }
        Ok(())
    }

    pub fn terminated(&mut self, now: Mono, provider: &str) {
        recent(&mut self.terminations, now, self.rules.window, provider).push_back(now);
    }

    /// May another VM be launched, beside `pending` that are decided and not yet performed?
    ///
    /// # Errors
    /// The hold, with its reason.
    pub fn may_launch(&mut self, now: Mono, provider: &str, zone: &str, pending: usize) -> Result<(), Hold> {
        if let Some((since, text)) = self.all_silent.as_ref().or_else(|| self.silent_zones.get(zone))
            && now.since(*since) < self.rules.silent_launch_after
        {
            return Err(Hold(text.clone()));
        }
        self.may_launch_in_need(now, provider, pending)
    }

    /// The same for a deployment that users are known to miss: a silence that an edge saw too is no reason to think
    /// that this controller is the one cut off. The limit on spending holds all the same.
    ///
    /// # Errors
    /// The hold, with its reason.
    pub fn may_launch_in_need(&mut self, now: Mono, provider: &str, pending: usize) -> Result<(), Hold> {
        let recent = recent(&mut self.launches, now, self.rules.window, provider);
        if recent.len() + pending >= self.rules.launches_max as usize {
            return Err(Hold(format!(
                "{} launches at {provider} within {} s; the limit is {}",
                recent.len() + pending,
                self.rules.window.as_secs(),
                self.rules.launches_max
            )));
        }
        Ok(())
    }

    /// For a node that nobody misses yet: half of the limit is kept for those that are missed.
    ///
    /// # Errors
    /// The hold, with its reason.
    pub fn may_launch_spare(&mut self, now: Mono, provider: &str, pending: usize) -> Result<(), Hold> {
        let recent = recent(&mut self.launches, now, self.rules.window, provider).len() + pending;
        let most = self.rules.launches_max / 2;
        if recent < most as usize {
            return Ok(());
        }
        let window_s = self.rules.window.as_secs();
        Err(Hold(format!(
            "{recent} launches at {provider} within {window_s} s; spares may be launched up to {most}"
        )))
    }

    pub fn launched(&mut self, now: Mono, provider: &str) {
        recent(&mut self.launches, now, self.rules.window, provider).push_back(now);
    }

    /// When a hold may end by time alone.
    #[must_use]
    pub fn turns_at(&self, now: Mono) -> Option<Mono> {
        let windows = self.terminations.values().chain(self.launches.values());
        let ends = windows.filter_map(|acts| acts.front()).map(|&at| at + self.rules.window);
        let zones = self.silent_zones.values().chain(&self.all_silent);
        let silences = zones.map(|(since, _)| *since + self.rules.silent_launch_after);
        ends.chain(silences).map(|at| at + Duration::from_millis(1)).filter(|&at| at > now).min()
    }

    pub(super) fn holds(&self) -> Vec<String> {
        self.silent_zones.values().chain(&self.all_silent).map(|(_, text)| text.clone()).collect()
    }
}

/// The acts of the last window, those before it forgotten. Bounded by the limits above.
fn recent<'a>(
    acts: &'a mut BTreeMap<String, VecDeque<Mono>>,
    now: Mono,
    window: Duration,
    provider: &str,
) -> &'a mut VecDeque<Mono> {
    let acts = acts.entry(provider.to_owned()).or_default();
    while acts.front().is_some_and(|&at| now.since(at) > window) {
        acts.pop_front();
    }
    acts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Mono {
        Mono::from_millis(s * 1000)
    }

    fn zones(list: &[(&str, u32, u32)]) -> BTreeMap<String, Census> {
        list.iter().map(|&(zone, silent, total)| (zone.to_owned(), Census { silent, total })).collect()
    }

    #[test]
    #[cfg(not(feature = "planted-brake-bug"))]
    fn terminations_beyond_the_window_limit_are_held_until_it_moves_on() {
        let mut brake = Brake::new(BrakeRules { terminations_max: 2, ..BrakeRules::default() });
        for s in [0, 10] {
            assert_eq!(brake.may_terminate(at(s), "p", "z"), Ok(()));
            brake.terminated(at(s), "p");
        }
        assert!(brake.may_terminate(at(600), "p", "z").is_err());
        assert_eq!(brake.may_terminate(at(600), "other", "z"), Ok(()));
        assert_eq!(brake.may_terminate(at(601), "p", "z"), Ok(()));
    }

    #[test]
    fn a_zone_silent_as_a_whole_is_held() {
        for (silent, total, held) in
            [(2, 2, true), (2, 10, false), (3, 15, true), (3, 16, false), (1, 1, false)]
        {
            let mut brake = Brake::new(BrakeRules::default());
            brake.count(at(0), &zones(&[("z", silent, total)]));
            assert_eq!(brake.may_terminate(at(1), "p", "z").is_err(), held, "{silent} of {total}");
        }
    }

    #[test]
    fn silence_in_one_zone_does_not_hold_another() {
        let mut brake = Brake::new(BrakeRules::default());
        let changes = brake.count(at(0), &zones(&[("a", 3, 3), ("b", 0, 3)]));
        assert_eq!(changes.len(), 1);
        assert!(brake.may_terminate(at(1), "p", "a").is_err());
        assert_eq!(brake.may_terminate(at(1), "p", "b"), Ok(()));
    }

    #[test]
    fn a_long_silence_lets_replacements_in_and_still_terminates_nothing() {
        let mut brake = Brake::new(BrakeRules::default());
        brake.count(at(0), &zones(&[("a", 3, 3)]));
        assert!(brake.may_launch(at(299), "p", "a", 0).is_err());
        assert_eq!(brake.may_launch(at(300), "p", "a", 0), Ok(()));
        assert!(brake.may_terminate(at(9000), "p", "a").is_err());
    }
}
