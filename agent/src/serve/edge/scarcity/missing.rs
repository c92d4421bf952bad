//! Tells the controllers that users ask for a model and no replica of it is there.
//!
//! A controller that lost sight of a node waits out a partition grace, since it may be the one cut off. An edge that
//! cannot reach it either is the second witness: with its word the controller replaces what it has not heard itself
//! at once (docs/decisions/0017-what-an-edges-word-buys.md). Told again as long as requests go unserved, since a
//! controller forgets it after a while; never oftener than the bounds here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::time::{Clock, Mono};
use cic_common::wire::message::NodeEvent;
use tokio::sync::mpsc;
use tracing::warn;

/// A model must have been missing so long: an agent that is started anew refuses for less.
const MISSING_AFTER: Duration = Duration::from_secs(1);

/// Between two words on one model. The controller goes by a word for 15 s, so that one may be lost.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A request that waits looks at least once a second; this long without a look and the state is over.
const LASTS_WITHOUT_LOOK: Duration = Duration::from_secs(3);

/// Models kept track of; an edge routes a handful. Others are told of once those are over.
const MODELS_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Spell {
    began_at: Mono,
    seen_at: Mono,
    told_at: Option<Mono>,
}

/// Which models are missing since when, without a clock.
#[derive(Debug, Default)]
struct Spells {
    of: BTreeMap<String, Spell>,
}

impl Spells {
    /// A request found no replica of `model`. Whether that is to be told now.
    fn seen(&mut self, now: Mono, model: &str) -> bool {
        self.of.retain(|_, spell| now.since(spell.seen_at) < LASTS_WITHOUT_LOOK);
        if !self.of.contains_key(model) && self.of.len() >= MODELS_MAX {
            return false;
        }
        let fresh = Spell { began_at: now, seen_at: now, told_at: None };
        let spell = self.of.entry(model.to_owned()).or_insert(fresh);
        spell.seen_at = now;
        let is_due = spell.told_at.is_none_or(|at| now.since(at) >= TELL_EVERY);
        if !is_due || now.since(spell.began_at) < MISSING_AFTER {
            return false;
        }
        spell.told_at = Some(now);
        true
    }
}

/// The edge's word to the controllers. Clones share it.
#[derive(Debug, Clone)]
pub(in super::super) struct Missing {
    clock: Clock,
    spells: Arc<Mutex<Spells>>,
    to: Option<mpsc::Sender<NodeEvent>>,
}

impl Missing {
    /// Without `to` there is no controller to tell.
    pub(in super::super) fn new(clock: Clock, to: Option<mpsc::Sender<NodeEvent>>) -> Self {
        Self { clock, spells: Arc::default(), to }
    }

    /// A request found no replica of `model`. Returns whether the controllers were told.
    pub(in super::super) fn seen(&self, model: &str) -> bool {
        let now = self.clock.now();
        let is_due = self.lock().seen(now, model);
        let Some(to) = self.to.as_ref().filter(|_| is_due) else { return false };
        let event = NodeEvent::ReplicasMissing { model: model.to_owned() };
        // One that finds no room is told again after TELL_EVERY.
        let is_told = to.try_send(event).is_ok();
        warn!(model, is_told, "no replica of a model that users ask for");
        is_told
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Spells> {
        self.spells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(spells: &mut Spells, looks_ms: &[u64]) -> Vec<u64> {
        looks_ms.iter().copied().filter(|ms| spells.seen(Mono::from_millis(*ms), "m")).collect()
    }

    #[test]
    fn a_missing_model_is_told_of_after_a_while_and_again_while_it_lasts() {
        let mut spells = Spells::default();
        let looks: Vec<u64> = (0..13_000).step_by(500).collect();
        assert_eq!(told(&mut spells, &looks), [1_000, 6_000, 11_000]);
    }

    #[test]
    fn a_blip_is_not_told_of_and_a_pause_ends_the_state() {
        let mut spells = Spells::default();
        assert_eq!(told(&mut spells, &[0, 900]), [0u64; 0]);
        // Nobody asked for a while: it counts from anew.
        assert_eq!(told(&mut spells, &[10_000, 10_900]), [0u64; 0]);
        assert_eq!(told(&mut spells, &[11_000]), [11_000]);
    }

    #[test]
    fn no_more_models_are_kept_than_the_bound() {
        let mut spells = Spells::default();
        for number in 0..1000 {
            spells.seen(Mono::from_millis(number), &format!("m{number}"));
        }
        assert_eq!(spells.of.len(), MODELS_MAX);
    }
}
