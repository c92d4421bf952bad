//! The push path: connecting, the control stream, heartbeats, and noticing that the other end is gone.

use std::time::Duration;

use cic_agent::core::Event as AgentEvent;
use cic_common::assignment::Predecessor;
use cic_common::id::Term;
use cic_common::report::Heartbeat;
use cic_common::time::Mono;
use cic_controller::core::{Event, Message};

use super::agent_host::{heartbeat_of, hello_of};
use super::fact::Fact;
use super::happening::Happening;
use super::network::{Path, Way};
use super::session::{IDLE_TIMEOUT, PULSE, Packet, Session, WAITING_MAX};
use super::world::World;

/// A handshake that nobody answers is given up after this.
const HANDSHAKE_MS: (u64, u64) = (1000, 3000);

/// Wait after the first failed attempt to connect; doubled to the maximum.
const CONNECT_WAIT_MS: u64 = 200;
const CONNECT_WAIT_MS_MAX: u64 = 5000;

/// Heartbeats are given to the core in batches this far apart.
const BATCH_MS: u64 = 50;

/// A replaced connection's end may be noticed after its successor's Hello: two tasks, one queue.
const LATE_GOODBYE: f64 = 0.3;

impl World {
    pub(super) fn agent_connects(&mut self, node: usize, run: u32) {
        let now = self.now();
        let Some(process) = self.machines[node].running(run).filter(|process| process.session.is_none())
        else {
            return;
        };
        process.attempts += 1;
        let attempts = process.attempts;
        let reached = self.controller.answers()
            && self.network.passes(now, node, Path::Push, Way::Up)
            && self.network.passes(now, node, Path::Push, Way::Down);
        let trip = reached.then(|| self.network.reliable(now, node, Path::Push, Way::Down)).flatten();
        if let Some(at) = trip {
            let at = at + at.since(now) * 2;
            let controller_run = self.controller.run;
            self.queue.push(at, Happening::Established { node, run, controller_run });
            return;
        }
        let wait_ms = (CONNECT_WAIT_MS << attempts.min(8)).min(CONNECT_WAIT_MS_MAX);
        let wait =
            self.rng.ms(HANDSHAKE_MS.0, HANDSHAKE_MS.1) + self.rng.ms(wait_ms * 3 / 4, wait_ms * 5 / 4);
        self.later(wait, Happening::AgentConnects { node, run });
    }

    pub(super) fn established(&mut self, node: usize, run: u32, controller_run: u32) {
        let now = self.now();
        if !self.controller.is_running(controller_run) {
            self.later(IDLE_TIMEOUT, Happening::AgentConnects { node, run });
            return;
        }
        let machine = &mut self.machines[node];
        let Some(process) = machine.process.as_mut().filter(|p| p.run == run && p.session.is_none()) else {
            return;
        };
        let session = self.sessions.len();
        self.sessions.push(Session::open(now, node, run, controller_run, process.incarnation));
        process.session = Some(session);
        process.attempts = 0;
        process.challenge = 0;
        let unacknowledged: Vec<Packet> = process
            .outbox
            .iter()
            .map(|(seq, event)| Packet::Event { seq: *seq, event: event.clone() })
            .collect();
        let hello = machine.process.as_ref().map(|process| hello_of(machine, node, process, now));
        let hello = hello.into_iter().map(Packet::Hello);
        for packet in hello.chain(unacknowledged) {
            self.send_up(session, packet);
        }
        self.later(PULSE, Happening::Pulse { session });
    }

    pub(super) fn send_up(&mut self, session: usize, packet: Packet) {
        if self.sessions[session].is_open_at_agent {
            self.send(session, Way::Up, packet);
        }
    }

    /// Sends to the node's current connection; lost silently when there is none.
    pub(super) fn send_down(&mut self, node: usize, packet: Packet) {
        if let Some(&session) = self.controller.sessions.get(&node)
            && self.sessions[session].is_open_at_controller
        {
            self.send(session, Way::Down, packet);
        }
    }

    fn send(&mut self, session: usize, way: Way, packet: Packet) {
        let now = self.now();
        let open = &mut self.sessions[session];
        let node = open.node;
        let lane = match way {
            Way::Up => &mut open.up,
            Way::Down => &mut open.down,
        };
        let arrival =
            if lane.waiting.is_empty() { self.network.reliable(now, node, Path::Push, way) } else { None };
        match arrival {
            Some(at) => {
                lane.last_at = lane.last_at.max(at);
                let at = lane.last_at;
                self.queue.push(at, Happening::Delivered { session, way, packet: Box::new(packet) });
            }
            None => {
                lane.waiting.push_back(packet);
                let count = lane.waiting.len();
                if count > WAITING_MAX {
                    let what = "packets waiting on one stream";
                    self.facts.push(Fact::Overfull { what, count, max: WAITING_MAX });
                }
            }
        }
    }

    pub(super) fn delivered(&mut self, session: usize, way: Way, packet: Packet) {
        let open = &self.sessions[session];
        match way {
            Way::Up => {
                let run = open.controller_run;
                if !self.controller.is_running(run) {
                    return;
                }
                if self.controller.is_frozen {
                    let packet = Box::new(packet);
                    self.controller.pile.push(Happening::Delivered { session, way, packet });
                    return;
                }
                self.controller_receives(session, packet);
            }
            Way::Down => {
                let (node, run) = (open.node, open.agent_run);
                if !open.is_open_at_agent || self.machines[node].running(run).is_none() {
                    return;
                }
                if self.machines[node].is_frozen {
                    let packet = Box::new(packet);
                    self.machines[node].pile.push(Happening::Delivered { session, way, packet });
                    return;
                }
                self.agent_receives(session, packet);
            }
        }
    }

    fn controller_receives(&mut self, session: usize, packet: Packet) {
        let now = self.now();
        let node = self.sessions[session].node;
        self.sessions[session].controller_heard_at = now;
        match packet {
            Packet::Hello(hello) => {
                self.sessions[session].is_open_at_controller = true;
                let old = self.controller.sessions.insert(node, session);
                let old = old.filter(|&old| self.sessions[old].is_open_at_controller);
                if let Some(old) = old {
                    let wait = if self.rng.chance(LATE_GOODBYE) { 1 } else { 0 };
                    self.close_at_controller(old, Duration::from_millis(wait));
                }
                self.fleet_step(Event::Connected(hello));
            }
            Packet::Event { seq, event } => {
                let incarnation = self.sessions[session].incarnation;
                let seen = self.controller.told.entry(node).or_insert((incarnation, 0));
                if seen.0 < incarnation {
                    *seen = (incarnation, 0);
                }
                let is_new = seen.0 == incarnation && seq > seen.1;
                if is_new {
                    seen.1 = seq;
                }
                self.send(session, Way::Down, Packet::Ack { seq });
                if is_new {
                    let node = self.machines[node].node.clone();
                    self.fleet_step(Event::Told { node, incarnation, event });
                }
            }
            Packet::Close => {
                if self.sessions[session].is_open_at_controller {
                    self.close_at_controller(session, Duration::ZERO);
                }
            }
            Packet::Message(_) | Packet::Routes(_) | Packet::Ack { .. } => {}
        }
    }

    fn agent_succeeds(&mut self, node: usize, run: u32, term: Term, predecessors: Vec<Predecessor>) {
        for Predecessor { node: predecessor, is_gone } in predecessors {
            self.agent_hears(node, run, AgentEvent::TakesPlaceOf { term, predecessor, is_gone });
        }
    }

    fn agent_receives(&mut self, session: usize, packet: Packet) {
        let now = self.now();
        let (node, run) = (self.sessions[session].node, self.sessions[session].agent_run);
        self.sessions[session].agent_heard_at = now;
        let Some(process) = self.machines[node].running(run) else { return };
        match packet {
            Packet::Message(Message::Welcome { term, assignment, predecessors }) => {
                if let Some(assignment) = assignment {
                    self.agent_hears(node, run, AgentEvent::Assigned { term, assignment });
                }
                self.agent_succeeds(node, run, term, predecessors);
            }
            Packet::Message(Message::Assign { term, assignment, predecessors }) => {
                self.agent_hears(node, run, AgentEvent::Assigned { term, assignment });
                self.agent_succeeds(node, run, term, predecessors);
            }
            Packet::Message(Message::Command { operation, term, command }) => {
                self.agent_hears(node, run, AgentEvent::Commanded { operation, term, command });
            }
            Packet::Message(Message::Challenge { number }) => {
                process.challenge = process.challenge.max(number);
                self.push_heartbeat(node);
            }
            Packet::Routes(table) => {
                if table.supersedes(&process.routes) {
                    process.routes = table;
                }
            }
            Packet::Ack { seq } => process.outbox.retain(|(waiting, _)| *waiting > seq),
            Packet::Hello(_) | Packet::Event { .. } | Packet::Close => {}
        }
    }

    /// Sends the current report as a datagram on the connection, if there is one.
    pub(super) fn push_heartbeat(&mut self, node: usize) {
        let now = self.now();
        let machine = &mut self.machines[node];
        let Some(process) = machine.process.as_mut() else { return };
        let Some(session) = process.session else { return };
        process.seq += 1;
        let arrivals = self.network.datagram(now, node, Path::Push, Way::Up);
        if arrivals == [None, None] {
            return;
        }
        let Some(process) = &machine.process else { return };
        let heartbeat = Box::new(heartbeat_of(machine, process, now));
        if let Some(at) = arrivals[1] {
            self.queue.push(at, Happening::Datagram { session, heartbeat: heartbeat.clone() });
        }
        if let Some(at) = arrivals[0] {
            self.queue.push(at, Happening::Datagram { session, heartbeat });
        }
    }

    pub(super) fn datagram(&mut self, session: usize, heartbeat: Box<Heartbeat>) {
        let now = self.now();
        let open = &mut self.sessions[session];
        if !self.controller.is_running(open.controller_run) {
            return;
        }
        if self.controller.is_frozen {
            self.controller.pile.push(Happening::Datagram { session, heartbeat });
            return;
        }
        if !open.is_open_at_controller {
            return;
        }
        open.controller_heard_at = now;
        let slot = self.controller.mailbox.entry(open.node);
        let newest = slot.or_insert_with(|| (*heartbeat).clone());
        if (newest.incarnation, newest.seq) < (heartbeat.incarnation, heartbeat.seq) {
            *newest = *heartbeat;
        }
        if !self.controller.is_batch_due {
            self.controller.is_batch_due = true;
            let run = self.controller.run;
            let at = Mono::from_millis((now.as_millis() / BATCH_MS + 1) * BATCH_MS);
            self.queue.push(at, Happening::MailboxEmpties { run });
        }
    }

    pub(super) fn mailbox_empties(&mut self) {
        self.controller.is_batch_due = false;
        let batch = std::mem::take(&mut self.controller.mailbox);
        self.fleet_step(Event::Heartbeats(batch.into_values().collect()));
    }

    /// Once a second both ends send something, look at the idle timeout, and what waited for a cut way goes on.
    pub(super) fn pulse(&mut self, session: usize) {
        let now = self.now();
        let open = &self.sessions[session];
        let (node, run, controller_run) = (open.node, open.agent_run, open.controller_run);
        let is_agent_up = !self.machines[node].is_frozen
            && self.machines[node].running(run).is_some_and(|process| process.session == Some(session));
        let is_controller_up = self.controller.is_running(controller_run) && !self.controller.is_frozen;
        if is_agent_up && self.network.passes(now, node, Path::Push, Way::Up) {
            self.sessions[session].controller_heard_at = now;
        }
        if is_controller_up
            && self.sessions[session].is_open_at_controller
            && self.network.passes(now, node, Path::Push, Way::Down)
        {
            self.sessions[session].agent_heard_at = now;
        }
        if is_agent_up && now.since(self.sessions[session].agent_heard_at) > IDLE_TIMEOUT {
            self.sessions[session].close_at_agent();
            if let Some(process) = self.machines[node].running(run) {
                process.session = None;
            }
            let wait = self.rng.ms(CONNECT_WAIT_MS * 3 / 4, CONNECT_WAIT_MS * 5 / 4);
            self.later(wait, Happening::AgentConnects { node, run });
        }
        let is_open = self.sessions[session].is_open_at_controller;
        if !self.controller.is_running(controller_run) {
            self.sessions[session].close_at_controller();
        } else if is_open
            && is_controller_up
            && now.since(self.sessions[session].controller_heard_at) > IDLE_TIMEOUT
        {
            self.close_at_controller(session, Duration::ZERO);
        }
        for way in [Way::Up, Way::Down] {
            self.resend(session, way);
        }
        if !self.sessions[session].is_over() {
            self.later(PULSE, Happening::Pulse { session });
        }
    }

    fn resend(&mut self, session: usize, way: Way) {
        let lane = match way {
            Way::Up => &mut self.sessions[session].up,
            Way::Down => &mut self.sessions[session].down,
        };
        for packet in std::mem::take(&mut lane.waiting) {
            self.send(session, way, packet);
        }
    }

    /// The controller's end of a connection is over, and its core hears of it after `wait`.
    fn close_at_controller(&mut self, session: usize, wait: Duration) {
        self.sessions[session].close_at_controller();
        let open = &self.sessions[session];
        let (node, incarnation) = (open.node, open.incarnation);
        if self.controller.sessions.get(&node) == Some(&session) {
            self.controller.sessions.remove(&node);
        }
        let event = Event::Disconnected { node: self.machines[node].node.clone(), incarnation };
        if wait.is_zero() {
            self.fleet_step(event);
        } else {
            let run = self.controller.run;
            self.later(wait, Happening::ControllerHears { run, event: Box::new(event) });
        }
    }
}
