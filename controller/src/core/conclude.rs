//! What follows from a node's evidence, each time that it changes: belief, verdict, and what is asked next.

use cic_common::id::NodeId;
use cic_common::report::GpuReport;
use cic_common::time::Mono;

use super::Action;
use super::belief::{Belief, Freshness};
use super::evidence::span;
use super::fleet::Fleet;
use super::trail::Severity;

impl Fleet {
    /// Draws the belief and the verdict about one node from its evidence, and asks for more where it is thin.
    pub(super) fn conclude(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let timing = self.timing;
        let Some(node) = self.nodes.get_mut(id) else { return };
        let (belief, push) = (node.judged(now, &timing), node.push_freshness(now, &timing));
        let push_turned_stale = push == Freshness::Stale && node.push_was != Freshness::Stale;
        let was = std::mem::replace(&mut node.push_was, push);
        self.push_turned(now, id, was, push);
        let Some(node) = self.nodes.get_mut(id) else { return };
        if belief != node.belief {
            let text = format!("{} -> {belief}: {}", node.belief, node.why(now, &timing));
            let was = node.belief;
            (node.belief, node.belief_since) = (belief, now);
            let severity = if belief.is_routable() || belief == Belief::Unknown {
                Severity::Info
            } else {
                Severity::Warning
            };
            self.is_dirty = true;
            self.tell(now, id, severity, "belief", text, out);
            self.count_flaps(now, id, was, out);
        }
        if push_turned_stale || (belief != Belief::Alive && belief != Belief::Unknown) {
            self.list_soon(now, id);
        }
        if push_turned_stale {
            self.poll_now(now, id, out);
        }
        self.prod_if_due(now, id, out);
        self.is_dirty |= self.nodes.get_mut(id).is_some_and(|node| node.flaps.end_if_due(now));
        self.poll_if_due(now, id, out);
        self.tell_wedge(now, id, out);
        self.heed_advice(now, id, out);
        self.judge_leaving(now, id, out);
        self.recover(now, id, out);
        self.schedule_wake(now, id);
    }

    /// Keeps a node out of the routes for a while if this was one silence of many.
    fn count_flaps(&mut self, now: Mono, id: &NodeId, was: Belief, out: &mut Vec<Action>) {
        let is_crowd = self.is_crowd();
        let Some(node) = self.nodes.get_mut(id) else { return };
        match (was.is_routable(), node.belief) {
            // What befalls many at once is no trait of one.
            (true, Belief::Silent) if is_crowd => {}
            (true, Belief::Silent) => node.flaps.fell_silent(now),
            (false, Belief::Alive | Belief::SuspectPoll | Belief::SuspectPush) if was == Belief::Silent => {
                if let Some((hold, count)) = node.flaps.returned(now) {
                    let text = format!(
                        "silent {count} times within 10 min: out of the routes for {} while others work",
                        span(hold)
                    );
                    self.tell(now, id, Severity::Warning, "flapping", text, out);
                }
            }
            (
                true | false,
                Belief::Unknown
                | Belief::Alive
                | Belief::SuspectPoll
                | Belief::SuspectPush
                | Belief::Silent
                | Belief::Gone,
            ) => {}
        }
    }

    /// A driver that hangs is told of once. The node stays: it serves as long as its words come.
    fn tell_wedge(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        let wedge = node.report.as_ref().and_then(|report| match &report.gpu {
            GpuReport::Wedged { reason } => Some(reason.clone()),
            GpuReport::Absent | GpuReport::Blind { .. } | GpuReport::Seen(_) => None,
        });
        let was_told = std::mem::replace(&mut node.is_wedge_told, wedge.is_some());
        if let Some(reason) = wedge.filter(|_| !was_told) {
            let text = format!("a call into the GPU driver does not come back: {reason}");
            self.tell(now, id, Severity::Alert, "gpu-wedged", text, out);
        }
    }

    fn schedule_wake(&mut self, now: Mono, id: &NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if let Some(at) = node.wake_at.take() {
            self.wakes.remove(&(at, id.clone()));
        }
        if let Some(at) = node.next_turn(now, &self.timing) {
            node.wake_at = Some(at);
            self.wakes.insert((at, id.clone()));
        }
    }
}
