//! The agent's core.

use cic_common::id::{Incarnation, NodeId};
use cic_common::report::{NodeReport, Role};
use cic_common::time::Mono;

use super::{Action, Event, Timing};

/// What an agent is before anything happens.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    pub node: NodeId,
    pub role: Role,
    pub incarnation: Incarnation,
    pub timing: Timing,
}

/// The agent's decisions.
#[derive(Debug)]
pub struct Agent {
    spec: AgentSpec,
}

impl Agent {
    #[must_use]
    pub fn new(spec: AgentSpec) -> Self {
        Self { spec }
    }

    pub fn step(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        let _ = (now, event, out, &self.spec);
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        None
    }

    #[must_use]
    pub fn report(&self, _now: Mono) -> NodeReport {
        NodeReport::booting()
    }
}
