//! The choice itself: a pure function of what is known at one moment, and of what is drawn.

use cic_common::route::Class;
use cic_common::routing::{Policy, TIER_MAX, TIER_MIN};
use cic_common::time::Mono;

use super::affinity::affine;
use super::candidate::Candidate;
use super::circuit::Gate;

/// Preferred replicas may carry this much more each than the least loaded others before those are used too.
#[derive(Debug, Clone, Copy)]
struct Bound {
    times: f64,
    /// Requests on top, so that a few of them in an idle fleet do not count as a crowd.
    plus: f64,
}

/// A tier is left late: what batch jobs may cost, and who gets the good GPUs, is the point of tiers. 16 requests
/// at once are a fraction of an engine's batch (vLLM: 256 and more).
const TIER_BOUND: Bound = Bound { times: 2.0, plus: 16.0 };

/// A zone is left earlier: the way to another costs 1 ms and about a cent for a GB of text.
const ZONE_BOUND: Bound = Bound { times: 1.5, plus: 8.0 };

/// How many ranks a preference tells apart: the three tiers; a zone is near or not.
const RANKS: usize = 3;

/// One candidate at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) candidate: &'a Candidate,
    /// Its place among the candidates.
    pub(super) at: usize,
    pub(super) gate: Gate,
    pub(super) load: u32,
    pub(super) slowness: u32,
    pub(super) last_turn: u64,
    pub(super) is_near: bool,
}

/// What speaks against a candidate, the better the smaller. The order of the fields is the policy.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    load: u32,
    slowness: u32,
    last_turn: u64,
}

/// Which rule had the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Nothing but the health of the others left it alone, or it is the only one.
    Only,
    /// All are out; it is back soonest.
    LeastBad,
    Prefix,
    Policy,
}

impl Seen<'_> {
    fn score(&self) -> Score {
        Score { load: self.load, slowness: self.slowness, last_turn: self.last_turn }
    }
}

/// Picks one of `seen` by the rules of this folder, in their order; returns its place among the candidates. `draw`
/// returns a number below the one it is given.
pub(super) fn choose(
    seen: &mut Vec<Seen<'_>>,
    class: Class,
    prefix: Option<u64>,
    mut draw: impl FnMut(usize) -> usize,
) -> Option<(usize, How)> {
    seen.retain(|one| one.candidate.is_fit);
    if let Some(least_bad) = keep_healthy(seen) {
        return Some((least_bad, How::LeastBad));
    }
    keep_weighty(seen);
    keep_class(seen, class);
    keep_share(seen, &mut draw);
    keep_near(seen);
    let first = match seen.as_slice() {
        [] => return None,
        [only] => return Some((only.at, How::Only)),
        [first, ..] => first.candidate,
    };
    // Replicas of two deployments of one weight can differ here; then the first one's word counts for both.
    if let Some(prefix) = prefix.filter(|_| first.has_affinity)
        && let Some(affine) = affine(seen, prefix)
    {
        return Some((affine.at, How::Prefix));
    }
    let one = match first.policy {
        Policy::PowerOfTwo => less_of_two(seen, &mut draw),
        Policy::RoundRobin => seen.iter().min_by_key(|one| one.last_turn),
        Policy::LeastLoad => seen.iter().min_by_key(|one| one.score()),
    };
    one.map(|one| (one.at, How::Policy))
}

/// Leaves those that are in. When there are none, returns the one that is back soonest.
fn keep_healthy(seen: &mut Vec<Seen<'_>>) -> Option<usize> {
    let out_count = seen.iter().filter(|one| one.gate != Gate::In).count();
    if out_count == 0 {
        return None;
    }
    let is_excused = out_count * 2 > seen.len();
    let until = |one: &Seen<'_>| match one.gate {
        Gate::In => None,
        Gate::Doubted { .. } if is_excused => None,
        Gate::Doubted { until } | Gate::Out { until } => Some(until),
    };
    if seen.iter().all(|one| until(one).is_some()) {
        return seen.iter().min_by_key(|one| until(one).unwrap_or(Mono::ZERO)).map(|one| one.at);
    }
    seen.retain(|one| until(one).is_none());
    None
}

fn keep_weighty(seen: &mut Vec<Seen<'_>>) {
    if seen.iter().any(|one| one.candidate.weight > 0) {
        seen.retain(|one| one.candidate.weight > 0);
    }
}

fn keep_class(seen: &mut Vec<Seen<'_>>, class: Class) {
    match class {
        Class::LatencyCritical => {
            prefer(seen, TIER_BOUND, |one| one.candidate.tier.saturating_sub(TIER_MIN));
        }
        Class::Standard => {}
        Class::Batch => prefer(seen, TIER_BOUND, |one| TIER_MAX.saturating_sub(one.candidate.tier)),
    }
}

fn keep_near(seen: &mut Vec<Seen<'_>>) {
    prefer(seen, ZONE_BOUND, |one| u8::from(!one.is_near));
}

/// Leaves those of the lowest rank, and those of the next too as long as those left carry too much beside the rest.
fn prefer(seen: &mut Vec<Seen<'_>>, bound: Bound, rank: impl Fn(&Seen<'_>) -> u8) {
    let mut ranks = [Sum::default(); RANKS];
    let rank = |one: &Seen<'_>| usize::from(rank(one)).min(RANKS - 1);
    for one in seen.iter() {
        let sum = &mut ranks[rank(one)];
        sum.load += f64::from(one.load);
        sum.count += 1.0;
    }
    let mut kept = Sum::default();
    for (limit, sum) in ranks.iter().enumerate() {
        kept.load += sum.load;
        kept.count += sum.count;
        let others = ranks[limit + 1..].iter().filter_map(Sum::mean).min_by(f64::total_cmp);
        let (Some(mean), Some(others)) = (kept.mean(), others) else { continue };
        if mean <= bound.times * others + bound.plus {
            seen.retain(|one| rank(one) <= limit);
            return;
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    load: f64,
    count: f64,
}

impl Sum {
    fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.load / self.count)
    }
}

/// Draws one by its weight and leaves those of the same weight, so that of each weight as much comes as its replicas
/// are worth together.
fn keep_share(seen: &mut Vec<Seen<'_>>, draw: &mut impl FnMut(usize) -> usize) {
    let weight = |one: &Seen<'_>| usize::from(one.candidate.weight);
    let Some(first) = seen.first().map(weight) else { return };
    if seen.iter().all(|one| weight(one) == first) {
        return;
    }
    let mut drawn = draw(seen.iter().map(weight).sum());
    let mut chosen = first;
    for one in seen.iter() {
        chosen = weight(one);
        if drawn < chosen {
            break;
        }
        drawn -= chosen;
    }
    seen.retain(|one| weight(one) == chosen);
}

fn less_of_two<'s, 'c>(seen: &'s [Seen<'c>], draw: &mut impl FnMut(usize) -> usize) -> Option<&'s Seen<'c>> {
    let first = draw(seen.len());
    // Any of the others, each alike.
    let second = if seen.len() > 1 { (first + 1 + draw(seen.len() - 1)) % seen.len() } else { first };
    [seen.get(first)?, seen.get(second)?].into_iter().min_by_key(|one| one.score())
}
