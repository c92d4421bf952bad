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
    /// A hold stays for this long after too few are silent for it: what a cut-off node needs to dial again (3 s an
    /// attempt, 2.5 s between two) and to be heard, several times over.
    pub release_after: Duration,
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
            release_after: Duration::from_secs(30),
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
    /// Zones under a hold.
    silent_zones: BTreeMap<String, Silence>,
    most_silent: Option<Silence>,
}

/// A silence of many, and the hold for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Silence {
    since: Mono,
    text: String,
    /// Since when too few are silent for it. A partition that heals lets nodes back one after the other: the last of
    /// them are no more dead than the first were.
    over_since: Option<Mono>,
}

impl Silence {
    fn begin(now: Mono, text: String) -> Self {
        Self { since: now, text, over_since: None }
    }

    /// Whether the hold may end, with what is counted now.
    fn is_over(&mut self, now: Mono, is_silent: bool, release_after: Duration) -> bool {
        if is_silent {
            self.over_since = None;
            return false;
        }
        now.since(*self.over_since.get_or_insert(now)) >= release_after
    }
}

impl Brake {
    #[must_use]
    pub fn new(rules: BrakeRules) -> Self {
        Self {
            rules,
            terminations: BTreeMap::new(),
            launches: BTreeMap::new(),
            silent_zones: BTreeMap::new(),
            most_silent: None,
        }
    }

    /// Counts the zones anew. Returns the words of holds that began and ended, for the event log.
    pub(super) fn count(&mut self, now: Mono, zones: &BTreeMap<String, Census>) -> Vec<(bool, String)> {
        let mut changes = Vec::new();
        let all = zones.values().fold(Census::default(), |sum, zone| Census {
            silent: sum.silent + zone.silent,
            total: sum.total + zone.total,
        });
        let is_most = all.total >= 2 && (all.silent == all.total || self.is_most(all));
        let release_after = self.rules.release_after;
        if let Some(silence) = &mut self.most_silent {
            if silence.is_over(now, is_most, release_after) {
                changes.push((false, std::mem::take(&mut silence.text)));
                self.most_silent = None;
            }
        } else if is_most {
            let text = format!(
                "{} of {} nodes are silent together: this controller may be the one cut off",
                all.silent, all.total
            );
            changes.push((true, text.clone()));
            self.most_silent = Some(Silence::begin(now, text));
        }
        for (zone, census) in zones {
            let is_mass = self.is_mass(*census);
            if let Some(silence) = self.silent_zones.get_mut(zone) {
                if silence.is_over(now, is_mass, release_after) {
                    changes.push((false, std::mem::take(&mut silence.text)));
                    self.silent_zones.remove(zone);
                }
            } else if is_mass {
                let text =
                    format!("{} of {} nodes of zone {zone} are silent together", census.silent, census.total);
                changes.push((true, text.clone()));
                self.silent_zones.insert(zone.clone(), Silence::begin(now, text));
            }
        }
        let gone: Vec<_> =
            self.silent_zones.keys().filter(|zone| !zones.contains_key(*zone)).cloned().collect();
        for zone in gone {
            self.silent_zones.remove(&zone);
        }
        changes
    }

    /// More than half of all, and as many as a zone's silence needs.
    fn is_most(&self, all: Census) -> bool {
        all.silent >= self.rules.silent_count_min && all.silent * 2 > all.total
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
        if let Some(silence) = self.most_silent.as_ref().or_else(|| self.silent_zones.get(zone)) {
            return Err(Hold(silence.text.clone()));
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
        if let Some(silence) = self.most_silent.as_ref().or_else(|| self.silent_zones.get(zone))
            && now.since(silence.since) < self.rules.silent_launch_after
        {
            return Err(Hold(silence.text.clone()));
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

    /// When a hold ends if nothing happens.
    pub(super) fn turns_at(&self) -> Option<Mono> {
        let silences = self.silent_zones.values().chain(&self.most_silent);
        silences.filter_map(|silence| silence.over_since).map(|at| at + self.rules.release_after).min()
    }

    /// Holds that a standby saw begin last as long as any, now that it leads.
    pub(super) fn begin_anew(&mut self, now: Mono) {
        for silence in self.silent_zones.values_mut().chain(&mut self.most_silent) {
            (silence.since, silence.over_since) = (now, None);
        }
    }

    pub(super) fn holds(&self) -> Vec<String> {
        self.silent_zones.values().chain(&self.most_silent).map(|silence| silence.text.clone()).collect()
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
    fn a_silence_of_more_than_half_of_the_fleet_holds_every_zone() {
        for (a, b, held) in [(3, 0, false), (3, 2, true), (2, 0, false), (2, 2, false)] {
            let mut brake = Brake::new(BrakeRules { silent_share: 1.0, ..BrakeRules::default() });
            brake.count(at(0), &zones(&[("a", a, 4), ("b", b, 3), ("c", 0, 1)]));
            assert_eq!(brake.may_terminate(at(1), "p", "c").is_err(), held, "{a} and {b} of 8");
        }
    }

    #[test]
    fn a_hold_outlasts_the_silence_until_the_last_had_time_to_return() {
        let mut brake = Brake::new(BrakeRules::default());
        brake.count(at(0), &zones(&[("a", 4, 4)]));
        brake.count(at(100), &zones(&[("a", 2, 4)]));
        assert!(brake.may_launch(at(100), "p", "a", 0).is_err(), "two have returned, two may still");
        brake.count(at(110), &zones(&[("a", 3, 4)]));
        brake.count(at(120), &zones(&[("a", 1, 4)]));
        brake.count(at(149), &zones(&[("a", 1, 4)]));
        assert!(brake.may_launch(at(149), "p", "a", 0).is_err(), "the silence came back in between");
        let released = brake.count(at(150), &zones(&[("a", 1, 4)]));
        assert_eq!(released.len(), 2, "{released:?}");
        assert_eq!(brake.may_launch(at(150), "p", "a", 0), Ok(()));
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
