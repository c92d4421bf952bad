//! Who is connected, and the newest heartbeat of each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cic_common::id::{Incarnation, NodeId};
use cic_common::report::Heartbeat;
use cic_common::wire::close::CloseCode;
use cic_common::wire::message::{ControllerMessage, Hello, NodeEvent};
use tokio::sync::mpsc;

use super::arrivals::Arrivals;
use super::sequence::Sequence;
use crate::core::Event;
use crate::histogram::Histogram;

/// Messages that wait for one slow node. It is then cut off, and learns the state anew when it is back.
pub(super) const OUTGOING_MAX: usize = 64;

/// To one node's session. Boxed: a queue takes memory for 32 messages at once, 7 KiB a node as they are.
pub(super) type Outgoing = mpsc::Sender<Box<ControllerMessage>>;

/// Nodes whose numbers are remembered. Only certificates of this fleet's authority get this far.
const NODES_MAX: usize = 16_384;

/// One connection, among all that this process ever took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visit(u64);

/// The live connections. Its lock is held for map operations only.
#[derive(Debug, Default)]
pub(super) struct Roster {
    state: Mutex<State>,
    /// From the arrival of each heartbeat to the step that took it.
    beat_spans: Histogram,
}

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<NodeId, Live>,
    /// Newest since the last batch.
    beats: BTreeMap<NodeId, Heartbeat>,
    arrivals: Arrivals,
    /// Outlives the connection, so that an older incarnation or a repeated event is known after a redial.
    known: BTreeMap<NodeId, Known>,
    visit_last: u64,
}

#[derive(Debug)]
struct Live {
    visit: Visit,
    incarnation: Incarnation,
    outgoing: Outgoing,
    connection: quinn::Connection,
}

#[derive(Debug)]
struct Known {
    incarnation: Incarnation,
    taken: Sequence,
    /// Of heartbeats, so that a datagram overtaken by a newer one changes nothing.
    beat_last: u64,
}

/// A newer incarnation of the node is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("incarnation {0} of this node is known")]
pub(super) struct NewerKnown(pub(super) Incarnation);

impl Roster {
    /// Takes a node in and tells the core, both in one moment. An older connection of the node is closed; the
    /// core is not told of its end, since the node is there.
    pub(super) fn enter(
        &self,
        hello: Hello,
        connection: &quinn::Connection,
        outgoing: Outgoing,
        core: mpsc::Permit<'_, Event>,
    ) -> Result<Visit, NewerKnown> {
        let mut state = self.lock();
        let (node, incarnation) = (hello.node.clone(), hello.incarnation);
        state.admit(&node, incarnation)?;
        state.visit_last += 1;
        let visit = Visit(state.visit_last);
        state.beats.remove(&node);
        let live = Live { visit, incarnation, outgoing, connection: connection.clone() };
        if let Some(older) = state.live.insert(node, live) {
            CloseCode::Replaced.close(&older.connection);
        }
        core.send(Event::Connected(hello));
        Ok(visit)
    }

    /// Tells the core that a visit has ended, unless a newer connection has taken its place.
    pub(super) fn leave(&self, node: &NodeId, visit: Visit, core: mpsc::Permit<'_, Event>) {
        let mut state = self.lock();
        if state.live.get(node).is_none_or(|live| live.visit != visit) {
            return;
        }
        if let Some(live) = state.live.remove(node) {
            // A heartbeat from before the end must not be heard after it.
            state.beats.remove(node);
            core.send(Event::Disconnected { node: node.clone(), incarnation: live.incarnation });
        }
    }

    /// Keeps `heartbeat` for the next batch if it is the newest of a visit that is still live.
    pub(super) fn beat(&self, visit: Visit, heartbeat: Heartbeat) {
        let mut state = self.lock();
        let State { live, beats, arrivals, known, .. } = &mut *state;
        let is_live = live
            .get(&heartbeat.node)
            .is_some_and(|live| live.visit == visit && live.incarnation == heartbeat.incarnation);
        let Some(known) = known.get_mut(&heartbeat.node).filter(|_| is_live) else {
            return;
        };
        if heartbeat.seq > known.beat_last {
            known.beat_last = heartbeat.seq;
            arrivals.came();
            beats.insert(heartbeat.node.clone(), heartbeat);
        }
    }

    /// Whether a batch is waiting.
    pub(super) fn has_beats(&self) -> bool {
        !self.lock().beats.is_empty()
    }

    /// Gives the core the newest heartbeat of each node since the last batch.
    pub(super) fn deliver_beats(&self, core: mpsc::Permit<'_, Event>) {
        let mut state = self.lock();
        let beats = std::mem::take(&mut state.beats);
        if !beats.is_empty() {
            state.arrivals.hand_on();
            core.send(Event::Heartbeats(beats.into_values().collect()));
        }
    }

    /// The core has taken the oldest batch.
    pub(super) fn beats_taken(&self) {
        self.lock().arrivals.taken(&self.beat_spans);
    }

    pub(super) fn beat_spans(&self) -> &Histogram {
        &self.beat_spans
    }

    /// Gives the core an event of a live visit, once.
    ///
    /// Whether the event may be acknowledged: false when a newer connection took over, which will repeat it.
    pub(super) fn deliver(
        &self,
        node: &NodeId,
        visit: Visit,
        seq: u64,
        event: NodeEvent,
        core: mpsc::Permit<'_, Event>,
    ) -> bool {
        let mut state = self.lock();
        let Some(incarnation) =
            state.live.get(node).filter(|live| live.visit == visit).map(|live| live.incarnation)
        else {
            return false;
        };
        let Some(known) = state.known.get_mut(node) else {
            return false;
        };
        if !known.taken.is_taken(seq) {
            known.taken.take(seq);
            core.send(Event::Told { node: node.clone(), incarnation, event });
        }
        true
    }

    /// Queues a message for a node. Lost when it is not connected; a node too slow to take it is cut off.
    pub(super) fn send(&self, node: &NodeId, message: ControllerMessage) {
        let state = self.lock();
        if let Some(live) = state.live.get(node)
            && let Err(mpsc::error::TrySendError::Full(_)) = live.outgoing.try_send(Box::new(message))
        {
            CloseCode::Busy.close(&live.connection);
        }
    }

    /// Forgets a node that is gone for good and cuts it off if it is still there.
    pub(super) fn forget(&self, node: &NodeId) {
        let mut state = self.lock();
        state.beats.remove(node);
        match state.live.get(node) {
            // Its entry goes when the session ends and has told the core.
            Some(live) => CloseCode::Done.close(&live.connection),
            None => {
                state.known.remove(node);
            }
        }
    }

    pub(super) fn live_count(&self) -> usize {
        self.lock().live.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Refuses an incarnation older than one that was seen; starts anew with a newer one.
    fn admit(&mut self, node: &NodeId, incarnation: Incarnation) -> Result<(), NewerKnown> {
        match self.known.get(node) {
            Some(known) if known.incarnation > incarnation => return Err(NewerKnown(known.incarnation)),
            Some(known) if known.incarnation == incarnation => return Ok(()),
            Some(_) | None => {}
        }
        if self.known.len() >= NODES_MAX {
            let live = &self.live;
            self.known.retain(|node, _| live.contains_key(node));
        }
        let known = Known { incarnation, taken: Sequence::default(), beat_last: 0 };
        self.known.insert(node.clone(), known);
        Ok(())
    }
}
