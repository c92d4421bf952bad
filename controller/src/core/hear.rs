//! What each event changes in the evidence. No conclusions are drawn here.

use std::time::Duration;

use cic_common::gpu::GpuHealth;
use cic_common::id::{Incarnation, NodeId};
use cic_common::report::{GpuReport, Heartbeat, NodeReport, Role};
use cic_common::time::Mono;
use cic_common::wire::message::Hello;

use super::agreement::{Discord, Path};
use super::belief::{Belief, Cloud};
use super::event::{NodeRecord, PollFault, Polled};
use super::fleet::{Fleet, Listing, Wanted};
use super::instance::{CloudFault, Instance, InstanceState};
use super::node::Node;
use super::open::Open;
use super::trail::Severity;
use super::verdict::{Cause, Leaving};
use super::warning::NoticeWord;
use super::{Action, Deployment, Event, Message};

impl Fleet {
    pub(super) fn hear(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        if !self.is_leading && event.is_for_a_leader() {
            return;
        }
        match event {
            Event::Tick => {}
            Event::Restored(restored) => self.lead(now, restored, out),
            Event::Followed(restored) => self.follow(now, restored, out),
            Event::SteppedDown => self.step_down(),
            Event::Connected(hello) => self.connected(now, hello, out),
            Event::Disconnected { node, incarnation } => self.disconnected(now, &node, incarnation, out),
            Event::Heartbeats(batch) => {
                for heartbeat in batch {
                    self.heartbeat(now, heartbeat, out);
                }
            }
            Event::Told { node, incarnation, event } => self.told(now, &node, incarnation, event, out),
            Event::Polled(polled) => self.polled(now, polled, out),
            Event::PollChannelLost { node } => self.poll_channel_lost(now, &node, out),
            Event::Explained { node, ssh } => self.explained(now, &node, ssh),
            Event::CommandAnswered { node, operation, result } => {
                self.command_answered(now, &node, operation, result, out);
            }
            Event::RestartedBySsh { node, operation, result } => {
                self.restarted_by_ssh(now, &node, operation, result, out);
            }
            Event::Listed { provider, result } => self.listed(now, &provider, result, out),
            Event::Recorded { operation } => self.recorded(now, operation, out),
            Event::Performed { operation, result } => self.performed(now, operation, result, out),
            Event::Deployed(deployment) => self.deployed(now, deployment, out),
            Event::ReplaceAsked { node, reason } => {
                self.asked(now, &node, Cause::ReplaceAsked, &format!("replacement asked for: {reason}"), out);
            }
            Event::DrainAsked { node, reason } => {
                self.asked(now, &node, Cause::DrainAsked, &format!("drain asked for: {reason}"), out);
            }
            Event::OrphanAsked { node, wish, reason } => self.orphan_asked(now, &node, wish, &reason, out),
        }
    }

    pub(super) fn want(&mut self, now: Mono, deployment: Deployment) {
        self.listings
            .entry(deployment.provider.clone())
            .or_insert_with(|| Listing { next_at: now, ..Listing::default() });
        let wanted =
            Wanted { deployment, launch_failures: 0, launch_after: Mono::ZERO, held: None, missing_at: None };
        self.deployments.insert(wanted.deployment.name.clone(), wanted);
        self.is_dirty = true;
    }

    fn deployed(&mut self, now: Mono, mut deployment: Deployment, out: &mut Vec<Action>) {
        let before = self.deployments.get(&deployment.name).map(|old| old.deployment.assignment());
        if let Some(old) = self.deployments.get(&deployment.name) {
            deployment.cluster = old.deployment.cluster.clone();
            deployment.node_next = old.deployment.node_next;
        }
        let text = format!("{} wants {} of {}", deployment.name, deployment.replicas, deployment.model.name);
        out.push(Action::SaveDeployment(deployment.clone()));
        self.note(None, Severity::Info, "deployment", text, out);
        let (name, assignment) = (deployment.name.clone(), deployment.assignment());
        self.want(now, deployment);
        // Running engines stay; where else a model is to be had matters to their next start.
        if before.is_some_and(|before| before != assignment) {
            let of_it = self.nodes.values().filter(|node| node.record.deployment.as_ref() == Some(&name));
            let nodes: Vec<NodeId> = of_it.map(|node| node.record.node.clone()).collect();
            nodes.iter().for_each(|node| self.assign(node, out));
        }
    }

    pub(super) fn connected(&mut self, now: Mono, hello: Hello, out: &mut Vec<Action>) {
        if !self.is_leading && !self.nodes.contains_key(&hello.node) {
            return self.await_row(hello, out);
        }
        if hello.role == Role::Replica && !self.nodes.contains_key(&hello.node) {
            return self.receive_guest(hello, out);
        }
        let Hello { node: id, incarnation, role, address, version: _, keeps_checkpoints, routes: _, report } =
            hello;
        if !self.nodes.contains_key(&id) {
            let record = NodeRecord {
                node: id.clone(),
                role,
                deployment: None,
                zone: String::new(),
                address: None,
                incarnation: Incarnation(0),
                launched_by: None,
                predecessors: Vec::new(),
                keeps_checkpoints: false,
                is_read: false,
                asked: None,
            };
            self.nodes.insert(id.clone(), Node::new(now, record));
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.is_overtaken(incarnation) {
            let text =
                format!("hello of incarnation {incarnation} after {}: ignored", node.record.incarnation);
            self.tell(now, &id, Severity::Warning, "old-incarnation", text, out);
            return;
        }
        self.compare(now, &id, Path::Push, incarnation, &report, out);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let is_new = incarnation != node.record.incarnation;
        if is_new {
            node.begin_incarnation(now, incarnation, report);
        } else {
            node.receive(now, report);
        }
        let is_moved = node.record.address.as_ref() != Some(&address);
        if is_new || is_moved || node.record.keeps_checkpoints != keeps_checkpoints {
            node.record.address = Some(address.clone());
            node.record.keeps_checkpoints = keeps_checkpoints;
            out.push(Action::SaveNode(node.record.clone()));
        }
        node.push.reconnected(now);
        node.poll.schedule(now);
        self.adopt_launched(now, &id, out);
        self.reprieve_launched(now, &id, out);
        if self.is_leading {
            self.settle_heir(&id, out);
        }
        let is_leading = self.is_leading;
        let Some(node) = self.nodes.get(&id) else { return };
        let deployment = node.record.deployment.clone().filter(|_| is_leading && node.leaving.is_none());
        let assignment =
            deployment.and_then(|name| Some(self.deployments.get(&name)?.deployment.assignment()));
        let predecessors = if is_leading { node.record.predecessors.clone() } else { Vec::new() };
        let message = Message::Welcome { term: self.term, assignment, predecessors };
        out.push(Action::Send { node: id.clone(), message });
        self.is_dirty = true;
        self.tell(
            now,
            &id,
            Severity::Info,
            "connected",
            format!("incarnation {incarnation} at {address}"),
            out,
        );
        self.touch(&id);
    }

    /// A node that speaks was launched, whatever its provider answered.
    fn reprieve_launched(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let is_not_launched =
            |node: &Node| node.leaving.as_ref().is_some_and(|l| l.cause == Cause::NotLaunched);
        if self.nodes.get(id).is_some_and(is_not_launched) && !self.is_being_terminated(id) {
            self.set_leaving(id, None);
            self.tell(now, id, Severity::Info, "reprieve", "it was launched after all".to_owned(), out);
        }
    }

    fn disconnected(&mut self, now: Mono, id: &NodeId, incarnation: Incarnation, out: &mut Vec<Action>) {
        self.guests.retain(|guest, hello| guest != id || hello.incarnation != incarnation);
        if self.unrowed.get(id).is_some_and(|hello| hello.incarnation == incarnation) {
            self.unrowed.remove(id);
        }
        let Some(node) = self.nodes.get(id) else { return };
        if incarnation != node.record.incarnation {
            return;
        }
        self.tell(now, id, Severity::Info, "disconnected", "its control stream ended".to_owned(), out);
        self.challenge(now, id, out);
        self.poll_now(now, id, out);
        self.touch(id);
    }

    fn heartbeat(&mut self, now: Mono, heartbeat: Heartbeat, out: &mut Vec<Action>) {
        let timing = self.timing;
        let (id, challenge) = (heartbeat.node.clone(), heartbeat.challenge);
        self.compare(now, &id, Path::Push, heartbeat.incarnation, &heartbeat.report, out);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let is_news = is_news(node.report.as_ref(), &heartbeat.report);
        if node.take(now, heartbeat) {
            node.push.heard(now, challenge, &timing);
            self.is_dirty |= is_news;
            self.touch(&id);
        }
    }

    /// Whether a report agrees with itself and with what the other path brought; its content is not looked at.
    fn compare(
        &mut self,
        now: Mono,
        id: &NodeId,
        path: Path,
        incarnation: Incarnation,
        report: &NodeReport,
        out: &mut Vec<Action>,
    ) {
        let Some(node) = self.nodes.get_mut(id).filter(|node| !node.is_overtaken(incarnation)) else {
            return;
        };
        let discords = node.agreement.hear(incarnation, path, report.state, report.digest());
        for Discord { kind, text } in discords.into_iter().flatten() {
            self.tell(now, id, Severity::Alert, kind, text, out);
        }
    }

    fn polled(&mut self, now: Mono, polled: Polled, out: &mut Vec<Action>) {
        let Polled { node: id, urgent, trip, result } = polled;
        let timing = self.timing;
        if let Ok(heartbeat) = &result
            && heartbeat.node == id
        {
            self.compare(now, &id, Path::Poll, heartbeat.incarnation, &heartbeat.report, out);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.poll.came_back(urgent);
        let result = result.and_then(|heartbeat| {
            let is_its_own = heartbeat.node == id && !node.is_overtaken(heartbeat.incarnation);
            if is_its_own { Ok(heartbeat) } else { Err(PollFault::Answer) }
        });
        let mut suspicion = None;
        match result {
            Ok(heartbeat) => {
                let is_news = is_news(node.report.as_ref(), &heartbeat.report);
                self.is_dirty |= node.take(now, heartbeat) && is_news;
                node.poll.answered(now, trip);
            }
            Err(fault @ PollFault::NotAsked) => {
                node.trail.push(now, format!("urgent poll: {fault}, too many are under way"));
            }
            Err(fault) => {
                node.poll.failed(now, urgent, fault);
                let text = format!("{} poll: {fault}", if urgent { "urgent" } else { "routine" });
                node.trail.push(now, text);
                suspicion = (!urgent && fault == PollFault::Refused).then_some(fault);
            }
        }
        let pause = match node.judged(now, &timing) {
            Belief::Alive if node.has_stale_path(now, &timing) => timing.urgent_interval,
            Belief::Alive | Belief::Unknown => timing.poll_interval + spread(&id, timing.poll_interval / 5),
            Belief::Gone => timing.poll_interval,
            Belief::Silent if now.since(node.belief_since) > timing.partition_grace => timing.poll_interval,
            Belief::Silent | Belief::SuspectPoll | Belief::SuspectPush => timing.urgent_interval,
        };
        if !node.poll.is_asked() {
            node.poll.schedule(now + pause);
        }
        self.touch(&id);
        if suspicion.is_some() {
            self.challenge(now, &id, out);
            self.poll_now(now, &id, out);
        }
    }

    fn poll_channel_lost(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.trail.push(now, "poll connection closed".to_owned());
        self.challenge(now, id, out);
        self.poll_now(now, id, out);
        self.list_soon(now, id);
        self.touch(id);
    }

    fn listed(
        &mut self,
        now: Mono,
        provider: &str,
        result: Result<Vec<Instance>, CloudFault>,
        out: &mut Vec<Action>,
    ) {
        let timing = self.timing;
        let Some(listing) = self.listings.get_mut(provider) else { return };
        let was_failing = std::mem::replace(&mut listing.is_failing, result.is_err());
        listing.is_asked = false;
        self.is_dirty |= !std::mem::replace(&mut listing.has_answered, is_final(&result));
        listing.next_at = now + timing.list_interval;
        if std::mem::take(&mut listing.again) {
            listing.next_at = now;
        }
        let instances = match result {
            Ok(instances) => instances,
            Err(fault) => {
                self.sync(now, provider, Err(&fault), out);
                if !was_failing {
                    self.note(None, Severity::Alert, "cloud-blind", format!("{provider}: {fault}"), out);
                }
                for id in self.nodes_of(provider) {
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.cloud.said(now, Cloud::Failing);
                        self.touch(&id);
                    }
                }
                return;
            }
        };
        if was_failing {
            self.note(None, Severity::Info, "cloud-sees", format!("{provider} answers again"), out);
        }
        let instances = self.own(provider, instances);
        let states: std::collections::BTreeMap<&NodeId, InstanceState> =
            instances.iter().map(|instance| (&instance.node, instance.state)).collect();
        for id in self.nodes_of(provider) {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            let open = node.operation.and_then(|id| self.operations.get(&id));
            let is_launching = open.is_some_and(Open::is_launch);
            let should_be_listed =
                node.cloud.was_listed() || (!is_launching && now.since(node.known_since) > timing.visibility);
            let word = match states.get(&id) {
                Some(InstanceState::Running) => Cloud::Running,
                Some(InstanceState::Stopped) => Cloud::Stopped,
                None if should_be_listed => Cloud::Absent,
                None => continue,
            };
            if node.cloud.word(now, &timing) != word {
                node.trail.push(now, format!("cloud: {word:?}").to_lowercase());
                self.is_dirty = true;
            }
            node.cloud.said(now, word);
            self.touch(&id);
            if word == Cloud::Running {
                self.adopt_launched(now, &id, out);
            }
        }
        self.sync(now, provider, Ok(&instances), out);
        if self.is_leading {
            self.watch_orphans(now, provider, &instances, out);
        }
        let is_in_doubt = |id: &NodeId| {
            self.nodes.get(id).is_some_and(|node| node.doubted_until.is_some_and(|until| now < until))
        };
        if self.nodes_of(provider).iter().any(is_in_doubt)
            && let Some(listing) = self.listings.get_mut(provider)
        {
            listing.next_at = listing.next_at.min(now + timing.list_interval_urgent);
        }
    }

    fn asked(&mut self, now: Mono, id: &NodeId, cause: Cause, reason: &str, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get(id).filter(|node| node.is_ours()) else { return };
        if node.leaving.as_ref().is_some_and(|leaving| !leaving.cause.is_reversible()) {
            return;
        }
        let asked = Leaving { cause, reason: reason.to_owned() };
        self.set_leaving(id, Some(asked.clone()));
        if let Some(node) = self.nodes.get_mut(id) {
            node.record.asked = Some(asked);
            out.push(Action::SaveNode(node.record.clone()));
        }
        self.tell(now, id, Severity::Info, "asked", reason.to_owned(), out);
        self.touch(id);
    }

    pub(super) fn nodes_of(&self, provider: &str) -> Vec<NodeId> {
        let is_of = |node: &Node| {
            let name = node.record.deployment.as_ref();
            name.and_then(|name| self.deployments.get(name))
                .is_some_and(|w| w.deployment.provider == provider)
        };
        self.nodes.iter().filter(|(_, node)| is_of(node)).map(|(id, _)| id.clone()).collect()
    }

    /// Polls at once, on fresh connections, whatever the schedule says.
    pub(super) fn poll_now(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        let Some(address) = node.record.address.clone() else { return };
        if node.poll.ask(true) {
            node.trail.push(now, "urgent poll fired".to_owned());
            let within = self.confirm_within(id);
            out.push(Action::Poll { node: id.clone(), address, urgent: true, within });
        }
    }

    pub(super) fn poll_if_due(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let timing = self.timing;
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.poll.next_at().is_none_or(|at| now < at) || node.poll.is_asked() {
            return;
        }
        let urgent = match node.belief {
            Belief::Alive => node.has_stale_path(now, &timing),
            Belief::Unknown | Belief::Gone => false,
            Belief::SuspectPoll | Belief::SuspectPush | Belief::Silent => true,
        };
        let Some(address) = node.record.address.clone() else { return };
        if node.poll.ask(urgent) {
            let within = if urgent { self.confirm_within(id) } else { timing.poll_within };
            out.push(Action::Poll { node: id.clone(), address, urgent, within });
        }
    }

    /// The provider of `id` is asked for its word soon, or at once if nothing was asked lately.
    pub(super) fn list_soon(&mut self, now: Mono, id: &NodeId) {
        let provider = self
            .nodes
            .get(id)
            .and_then(|node| node.record.deployment.as_ref())
            .and_then(|name| self.deployments.get(name))
            .map(|wanted| wanted.deployment.provider.clone());
        let Some(listing) = provider.and_then(|provider| self.listings.get_mut(&provider)) else { return };
        let last = self.nodes.get(id).map_or(Mono::ZERO, |node| node.cloud.said_at());
        let at = now.max(last + self.timing.list_interval_urgent);
        listing.again |= listing.is_asked && self.nodes.get(id).is_some_and(|n| n.belief_since == now);
        listing.next_at = listing.next_at.min(at);
    }

    pub(super) fn list_providers(&mut self, now: Mono, out: &mut Vec<Action>) {
        for (provider, listing) in &mut self.listings {
            if now >= listing.next_at && !listing.is_asked {
                listing.is_asked = true;
                out.push(Action::ListInstances { provider: provider.clone() });
            }
        }
    }
}

/// Whether a listing says all that asking again soon would.
fn is_final(result: &Result<Vec<Instance>, CloudFault>) -> bool {
    match result {
        Ok(_) | Err(CloudFault::NoCapacity(_) | CloudFault::Refused(_)) => true,
        Err(CloudFault::NoAnswer(_)) => false,
    }
}

/// Whether two reports differ in what the plan, the routes or the verdicts rest on.
fn is_news(old: Option<&NodeReport>, new: &NodeReport) -> bool {
    let basis = |report: &NodeReport| {
        let notice = report.notice.as_ref().map(|notice| (NoticeWord::of(notice), notice.id.clone()));
        (report.phase, report.engine.state, notice, report.wants_replacement.is_some())
    };
    old.is_none_or(|old| basis(old) != basis(new) || !is_same_verdict(&old.gpu, &new.gpu))
}

fn is_same_verdict(old: &GpuReport, new: &GpuReport) -> bool {
    match (old, new) {
        (GpuReport::Seen(old), GpuReport::Seen(new)) => {
            let verdict = |gpu: &GpuHealth| (gpu.index, gpu.verdict.clone());
            old.gpus.iter().map(verdict).eq(new.gpus.iter().map(verdict))
        }
        (
            GpuReport::Absent | GpuReport::Blind { .. } | GpuReport::Wedged { .. } | GpuReport::Seen(_),
            GpuReport::Absent | GpuReport::Blind { .. } | GpuReport::Wedged { .. } | GpuReport::Seen(_),
        ) => old == new,
    }
}

/// A share of `span` that is the same for a node every time, so that polls of many nodes do not coincide.
pub(super) fn spread(id: &NodeId, span: Duration) -> Duration {
    let hash = id
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    span.mul_f64((hash >> 11) as f64 / (1u64 << 53) as f64)
}
