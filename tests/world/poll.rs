//! The poll path: the controller's own requests to each node, and the warm connection that breaks with it.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::report::Heartbeat;
use cic_controller::core::{Event, PollFault, Polled};

use super::agent_host::heartbeat_of;
use super::happening::{Asked, Happening};
use super::machine::Host;
use super::network::{Path, Way};
use super::world::World;

/// Attempts of an urgent poll, one after the other here: each has its share of the time.
const URGENT_ATTEMPTS: u32 = 2;

impl World {
    pub(super) fn poll(&mut self, node: &NodeId, is_urgent: bool, within: Duration) {
        let run = self.controller.run;
        let within = if is_urgent { within / URGENT_ATTEMPTS } else { within };
        let deadline = self.now() + within;
        let Some(node) = self.index(node) else { return };
        self.ask(Asked { node, run, is_urgent, attempt: 1, within, deadline });
    }

    fn ask(&mut self, asked: Asked) {
        let reach = self.network.reliable(self.now(), asked.node, Path::Poll, Way::Down);
        match reach.filter(|&at| at < asked.deadline) {
            Some(at) => self.queue.push(at, Happening::PollArrives(asked)),
            None => self.queue.push(asked.deadline, Happening::PollRunsOut(asked)),
        }
    }

    pub(super) fn poll_arrives(&mut self, asked: Asked) {
        let now = self.now();
        let machine = &mut self.machines[asked.node];
        if machine.host != Host::Up || machine.is_frozen {
            self.queue.push(asked.deadline, Happening::PollRunsOut(asked));
            return;
        }
        let result = match machine.process.as_mut() {
            Some(process) => {
                process.seq += 1;
                machine.is_warm = true;
                Ok(())
            }
            None => Err(PollFault::Refused),
        };
        let result: Result<Heartbeat, PollFault> = match (result, &machine.process) {
            (Ok(()), Some(process)) => Ok(heartbeat_of(machine, process, now)),
            (Ok(()), None) | (Err(_), _) => Err(PollFault::Refused),
        };
        match self.network.reliable(now, asked.node, Path::Poll, Way::Up).filter(|&at| at < asked.deadline) {
            Some(at) => self.answer_poll(asked, at, result),
            None => self.queue.push(asked.deadline, Happening::PollRunsOut(asked)),
        }
    }

    pub(super) fn poll_runs_out(&mut self, asked: Asked) {
        if asked.is_urgent && asked.attempt < URGENT_ATTEMPTS && self.controller.is_running(asked.run) {
            let deadline = self.now() + asked.within;
            self.ask(Asked { attempt: asked.attempt + 1, deadline, ..asked });
            return;
        }
        self.answer_poll(asked, self.now(), Err(PollFault::Timeout));
    }

    fn answer_poll(
        &mut self,
        asked: Asked,
        at: cic_common::time::Mono,
        result: Result<Heartbeat, PollFault>,
    ) {
        let node = self.machines[asked.node].node.clone();
        let event = Event::Polled(Polled { node, urgent: asked.is_urgent, trip: Duration::ZERO, result });
        self.queue.push(at, Happening::ControllerHears { run: asked.run, event: Box::new(event) });
    }

    /// The agent's process ended under a warm connection: its host's kernel says so, if the way is free.
    pub(super) fn poll_channel_breaks(&mut self, node: usize) {
        let now = self.now();
        if !std::mem::replace(&mut self.machines[node].is_warm, false) {
            return;
        }
        if let Some(at) = self.network.reliable(now, node, Path::Poll, Way::Up) {
            let run = self.controller.run;
            let event = Box::new(Event::PollChannelLost { node: self.machines[node].node.clone() });
            self.queue.push(at, Happening::ControllerHears { run, event });
        }
    }
}
