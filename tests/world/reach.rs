//! The controller's other ways to a machine: its ssh port, and orders by the poll path.

use std::time::Duration;

use cic_common::id::{NodeId, OperationId, Term};
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome};
use cic_controller::core::{Event, PollFault, SshWord};

use super::fact::Fact;
use super::happening::{Happening, Ordered};
use super::machine::Host;
use super::network::{Path, Way};
use super::world::World;

/// The shells' own deadlines: for an order, for the identification line, for a login and its command.
const ORDER_WITHIN: Duration = Duration::from_secs(2);
const BANNER_WITHIN: Duration = Duration::from_secs(1);
const RESTART_WITHIN: Duration = Duration::from_secs(20);

/// Login, and the agent's end and start as its init goes about it.
const RESTART_MS: (u64, u64) = (500, 3000);

impl World {
    pub(super) fn order(&mut self, node: &NodeId, operation: OperationId, term: Term, command: Command) {
        let is_drain = matches!(command, Command::Drain { .. });
        self.facts.push(Fact::Commanded { operation, node: node.clone(), is_drain });
        let (now, run) = (self.now(), self.controller.run);
        let Some(index) = self.index(node) else { return };
        let deadline = now + ORDER_WITHIN;
        let ordered = Ordered { node: index, run, operation, term, command, deadline };
        match self.network.reliable(now, index, Path::Poll, Way::Down).filter(|&at| at < deadline) {
            Some(at) => self.queue.push(at, Happening::OrderArrives(Box::new(ordered))),
            None => self.answer_order(&ordered, deadline, Err(PollFault::Timeout)),
        }
    }

    pub(super) fn order_arrives(&mut self, ordered: Ordered) {
        let now = self.now();
        let (node, deadline) = (ordered.node, ordered.deadline);
        let machine = &self.machines[node];
        if machine.host != Host::Up || machine.is_frozen {
            return self.answer_order(&ordered, deadline, Err(PollFault::Timeout));
        }
        let Some(agent_run) = machine.process.as_ref().map(|process| process.run) else {
            return self.answer_order(&ordered, now, Err(PollFault::Refused));
        };
        let Ordered { operation, term, ref command, .. } = ordered;
        let outcome = self.agent_ordered(node, agent_run, operation, term, command.clone());
        let result = outcome.ok_or(PollFault::Answer);
        match self.network.reliable(now, node, Path::Poll, Way::Up).filter(|&at| at < deadline) {
            Some(at) => self.answer_order(&ordered, at, result),
            None => self.answer_order(&ordered, deadline, Err(PollFault::Timeout)),
        }
    }

    fn answer_order(&mut self, ordered: &Ordered, at: Mono, result: Result<CommandOutcome, PollFault>) {
        let node = self.machines[ordered.node].node.clone();
        let event = Event::CommandAnswered { node, operation: ordered.operation, result };
        self.queue.push(at, Happening::ControllerHears { run: ordered.run, event: Box::new(event) });
    }

    pub(super) fn explain(&mut self, node: &NodeId) {
        let (now, run) = (self.now(), self.controller.run);
        let Some(index) = self.index(node) else { return };
        let deadline = now + BANNER_WITHIN;
        let back_at = self.way_to_and_back(now, index).filter(|&at| at < deadline);
        // A signal that stops the agent stops no sshd.
        let (at, ssh) = match (back_at, self.machines[index].host) {
            (Some(at), Host::Up) => (at, SshWord::Banner("SSH-2.0-sim".to_owned())),
            (Some(at), Host::Booting) => (at, SshWord::Refused),
            (Some(_), Host::Down | Host::Ended) | (None, _) => (deadline, SshWord::NoAnswer),
        };
        let event = Event::Explained { node: node.clone(), ssh };
        self.queue.push(at, Happening::ControllerHears { run, event: Box::new(event) });
    }

    pub(super) fn restart_by_ssh(&mut self, node: &NodeId, operation: OperationId) {
        let (now, run) = (self.now(), self.controller.run);
        let Some(index) = self.index(node) else { return };
        let wait = self.rng.ms(RESTART_MS.0, RESTART_MS.1);
        let is_up = self.machines[index].host == Host::Up;
        match self.way_to_and_back(now, index).filter(|_| is_up) {
            Some(at) => self.queue.push(at + wait, Happening::SshRestarts { node: index, run, operation }),
            None => self.answer_restart(index, run, operation, now + RESTART_WITHIN, Err("no answer")),
        }
    }

    pub(super) fn ssh_restarts(&mut self, node: usize, run: u32, operation: OperationId) {
        let now = self.now();
        let machine = &self.machines[node];
        if machine.host != Host::Up || machine.is_frozen {
            // Init waits for a stopped process longer than we wait for init.
            return self.answer_restart(node, run, operation, now + RESTART_WITHIN, Err("not done in time"));
        }
        if machine.process.is_some() {
            self.agent_exits(node);
        } else {
            self.later(Duration::from_millis(20), Happening::AgentStarts { node });
        }
        self.answer_restart(node, run, operation, now, Ok(()));
    }

    fn answer_restart(
        &mut self,
        node: usize,
        run: u32,
        operation: OperationId,
        at: Mono,
        result: Result<(), &str>,
    ) {
        let node = self.machines[node].node.clone();
        let event = Event::RestartedBySsh { node, operation, result: result.map_err(str::to_owned) };
        self.queue.push(at, Happening::ControllerHears { run, event: Box::new(event) });
    }

    fn way_to_and_back(&mut self, now: Mono, node: usize) -> Option<Mono> {
        let there = self.network.reliable(now, node, Path::Poll, Way::Down)?;
        self.network.reliable(there, node, Path::Poll, Way::Up)
    }
}

#[cfg(test)]
mod tests {
    use cic_common::report::Phase;

    use super::*;
    use crate::sim::scenario::Scenario;
    use crate::world::trace::Trace;

    const OPERATION: OperationId = OperationId(1 << 40);

    /// A fleet without faults, until its first node serves.
    fn serving() -> (World, NodeId, Term) {
        let mut world = World::new(Scenario::new(10).setup, Trace::Off);
        while world.advance() {
            let now = world.now();
            let serves = world.machines().iter().find(|machine| machine.is_serving(now));
            if let Some(process) = serves.and_then(|machine| machine.process.as_ref()) {
                let (node, term) = (serves.map(|machine| machine.node.clone()), process.term_heard);
                return (world, node.expect("it serves"), term);
            }
        }
        panic!("nothing is left to come and no node serves");
    }

    /// The first answer of this kind, seen on its way into the controller's core.
    fn answer<T>(world: &mut World, find: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            let next = world.queue.pop().expect("an answer comes");
            world.clock.advance(next.0);
            let found = match &next.1 {
                Happening::ControllerHears { event, .. } => find(event),
                _ => None,
            };
            world.happen(next.1);
            if let Some(found) = found {
                return found;
            }
        }
    }

    fn ordered(event: &Event) -> Option<Result<CommandOutcome, PollFault>> {
        match event {
            Event::CommandAnswered { operation: OPERATION, result, .. } => Some(result.clone()),
            _ => None,
        }
    }

    fn restarted(event: &Event) -> Option<Result<(), String>> {
        match event {
            Event::RestartedBySsh { operation: OPERATION, result, .. } => Some(result.clone()),
            _ => None,
        }
    }

    fn explained(event: &Event) -> Option<SshWord> {
        match event {
            Event::Explained { ssh, .. } => Some(ssh.clone()),
            _ => None,
        }
    }

    #[test]
    fn an_order_by_poll_restarts_the_agent_once_and_an_earlier_terms_is_refused() {
        let (mut world, node, term) = serving();
        let index = world.index(&node).expect("it is there");
        let restart = || Command::RestartAgent { reason: "test".to_owned() };
        world.order(&node, OPERATION, Term(0), restart());
        assert_eq!(answer(&mut world, ordered), Ok(CommandOutcome::RefusedTerm { newest: term }));
        let runs = world.machines()[index].runs;
        world.order(&node, OPERATION, term, restart());
        assert_eq!(answer(&mut world, ordered), Ok(CommandOutcome::Accepted));
        let comes_back = |world: &World| world.machines()[index].is_serving(world.now());
        while !comes_back(&world) {
            assert!(world.advance(), "it comes back");
        }
        assert_eq!(world.machines()[index].runs, runs + 1);
        world.order(&node, OPERATION, term, restart());
        assert_eq!(answer(&mut world, ordered), Ok(CommandOutcome::Accepted));
        assert_eq!(world.machines()[index].runs, runs + 1, "a repeat restarts nothing");
    }

    #[test]
    fn ssh_restarts_an_agent_that_runs_and_explains_a_host_that_does_not() {
        let (mut world, node, _) = serving();
        let index = world.index(&node).expect("it is there");
        world.explain(&node);
        assert_eq!(answer(&mut world, explained), SshWord::Banner("SSH-2.0-sim".to_owned()));
        let runs = world.machines()[index].runs;
        world.restart_by_ssh(&node, OPERATION);
        assert_eq!(answer(&mut world, restarted), Ok(()));
        while world.machines()[index].process.as_ref().is_none_or(|process| process.run == runs) {
            assert!(world.advance(), "it starts anew");
        }
        let phase = |world: &World| {
            let machine = &world.machines()[index];
            let process = machine.process.as_ref()?;
            Some(process.agent.report(process.origin.local(world.now())).phase)
        };
        assert_ne!(phase(&world), Some(Phase::Failed));
        world.host_dies(index, Host::Down);
        world.explain(&node);
        assert_eq!(answer(&mut world, explained), SshWord::NoAnswer);
        world.restart_by_ssh(&node, OPERATION);
        assert!(answer(&mut world, restarted).is_err());
    }
}
