//! The controller's core.

use cic_common::time::Mono;

use super::{Action, BrakeRules, Event, Timing, View};

/// What is believed and wanted of every node.
#[derive(Debug)]
pub struct Fleet {
    timing: Timing,
    rules: BrakeRules,
}

impl Fleet {
    #[must_use]
    pub fn new(timing: Timing, rules: BrakeRules) -> Self {
        Self { timing, rules }
    }

    pub fn step(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        let _ = (now, event, out, &self.timing, &self.rules);
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        None
    }

    #[must_use]
    pub fn view(&self, now: Mono) -> View {
        View { now, ..View::default() }
    }
}
