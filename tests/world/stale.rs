//! Feeds words that were overtaken, and looks whether they changed anything.
//!
//! The core is told the time first, so that whatever was due has happened and only the old words can have made
//! the difference.

use cic_agent::core::{Action as AgentAction, Event as AgentEvent};
use cic_common::id::{NodeId, OperationId, Term};
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};
use cic_controller::core::{Action, Event, NodeView};

use super::fact::Fact;
use super::happening::Happening;
use super::world::World;

impl World {
    /// What an earlier run of some agent sent arrives now. False when nobody has an earlier run.
    pub(super) fn feed_stale_word(&mut self) -> bool {
        if !self.controller.answers() {
            return false;
        }
        let candidates: Vec<usize> = (0..self.machines.len())
            .filter(|&node| {
                let known = self.controller.newest.get(&node).map(|(incarnation, _)| *incarnation);
                let old = self.machines[node].last_words.as_ref().map(|words| words.incarnation);
                known.zip(old).is_some_and(|(known, old)| old < known)
            })
            .collect();
        if candidates.is_empty() {
            return false;
        }
        let node = candidates[self.rng.index(candidates.len())];
        let Some((kind, event)) = self.stale_event(node) else { return false };
        self.fleet_step(Event::Tick);
        let id = self.machines[node].node.clone();
        let Some(before) = self.node_view(&id) else { return false };
        let mut out = Vec::new();
        self.fleet_hears(event, &mut out);
        let after = self.node_view(&id);
        let acted: Vec<&Action> = out.iter().filter(|action| !matches!(action, Action::Note(_))).collect();
        let changed = if after.as_ref() != Some(&before) {
            Some(format!("{before:?} became {after:?}"))
        } else if !acted.is_empty() {
            Some(format!("it caused {acted:?}"))
        } else {
            None
        };
        self.facts.push(Fact::StaleWord { node, kind, changed });
        true
    }

    fn stale_event(&mut self, node: usize) -> Option<(&'static str, Event)> {
        let machine = &self.machines[node];
        let words = machine.last_words.clone()?;
        let (id, incarnation) = (words.node.clone(), words.incarnation);
        Some(match self.rng.range(0, 3) {
            0 => ("heartbeat", Event::Heartbeats(vec![words])),
            1 => ("hello", Event::Connected(machine.last_hello.clone()?)),
            2 => ("goodbye", Event::Disconnected { node: id, incarnation }),
            _ => {
                let reason = "an earlier run".to_owned();
                let event = NodeEvent::ReplacementWanted { reason };
                ("told", Event::Told { node: id, incarnation, event })
            }
        })
    }

    /// The view of one node without its log of what was seen.
    fn node_view(&self, node: &NodeId) -> Option<NodeView> {
        let view = self.controller.view(self.now())?;
        let known = view.nodes.into_iter().find(|known| known.node == *node)?;
        Some(NodeView { trail: Vec::new(), ..known })
    }

    /// A leader of an earlier term commands a node.
    pub(super) fn feed_stale_term(&mut self) -> bool {
        let now = self.now();
        let candidates: Vec<usize> = (0..self.machines.len())
            .filter(|&node| {
                let machine = &self.machines[node];
                let heard = machine.process.as_ref().map_or(Term(0), |process| process.term_heard);
                heard > Term(0) && !machine.is_frozen
            })
            .collect();
        if candidates.is_empty() {
            return false;
        }
        let node = candidates[self.rng.index(candidates.len())];
        let is_assignment = self.rng.chance(0.3);
        let Some(process) = self.machines[node].process.as_mut() else { return false };
        let run = process.run;
        let term = Term(process.term_heard.0 - 1);
        let event = match (is_assignment, &self.machines[node].remembered) {
            (true, Some((_, assignment))) => {
                let mut assignment = assignment.clone();
                assignment.model.name.push_str("-of-old");
                AgentEvent::Assigned { term, assignment }
            }
            _ => AgentEvent::Commanded {
                operation: OperationId(0),
                term,
                command: Command::Drain { within_ms: 0, reason: "an earlier leader".to_owned() },
            },
        };
        let is_command = matches!(event, AgentEvent::Commanded { .. });
        self.happen(Happening::AgentHears { node, run, event: Box::new(AgentEvent::Tick) });
        let Some(process) = self.machines[node].running(run) else { return false };
        let local = process.origin.local(now);
        let before = process.agent.report(local);
        let mut out = Vec::new();
        process.agent.step(local, event, &mut out);
        let after = process.agent.report(local);
        let is_refusal = |action: &AgentAction| {
            matches!(
                action,
                AgentAction::Tell(NodeEvent::CommandDone {
                    outcome: CommandOutcome::RefusedTerm { newest },
                    ..
                }) if *newest > term
            )
        };
        let acted: Vec<&AgentAction> = out
            .iter()
            .filter(|action| !is_refusal(action) && !matches!(action, AgentAction::Decided { .. }))
            .collect();
        let wrong = if before != after {
            Some(format!("{before:?} became {after:?}"))
        } else if !acted.is_empty() {
            Some(format!("it caused {acted:?}"))
        } else if is_command && !out.iter().any(is_refusal) {
            Some("it was not refused".to_owned())
        } else {
            None
        };
        self.facts.push(Fact::StaleTerm { node, wrong });
        true
    }
}
