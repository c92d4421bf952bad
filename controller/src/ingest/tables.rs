//! Routing tables on their way to every agent: what changed, encoded once, and sent no faster than the heartbeats can bear.
//!
//! A whole table is 15 KB at 1,000 nodes and 150 KB at 10,000, so an agent gets one when it comes, and from then on what
//! changed. Even so a change among n nodes is n packets: sent at once they would take the processor from the heartbeats of
//! those they are about, and each node found silent for want of time would be another change. So the agents are served
//! one after the other, each up to the newest table when its turn comes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cic_common::route::{Edition, RoutingChanges, RoutingTable};
use cic_common::time::{Clock, Mono};
use cic_common::wire::frame::encode_frame;
use cic_common::wire::message::ControllerMessage;
use tokio::sync::watch;
use tracing::error;

/// What all agents together are sent of tables: a tenth of a core. At twice that, ten thousand agents on the same two busy
/// cores lost their heartbeats to it. So many that come at once have their first table within a minute; until then edges
/// find out by themselves which replicas do not answer.
const BYTES_PER_SECOND: u64 = 25_000_000;

/// What a change costs however short it is: a wake-up, a packet and its acknowledgement take some 40 µs here, and as much
/// there. Ten thousand agents are told within two seconds; what changes meanwhile goes with it.
const TURN_BYTES_MIN: u64 = 5_000;

/// Changes that are kept for agents that are behind. One further behind is sent the whole table.
const STEPS_MAX: usize = 256;

/// Changes up to this long are sent without a look at how long the whole would be, which would have to be encoded for it.
const SHORT_BYTES: usize = 1024;

/// One change, ready to be sent.
#[derive(Debug, Clone)]
struct Step {
    from: Edition,
    frame: Bytes,
}

/// One table, its frame once somebody asked for it, and the changes that led to it.
#[derive(Debug, Default)]
pub(super) struct Table {
    table: RoutingTable,
    frame: OnceLock<Option<Bytes>>,
    /// Oldest first, each from where the one before ended, the last to this table.
    steps: VecDeque<Step>,
}

impl Table {
    fn after(last: &Self, table: RoutingTable) -> Self {
        let mut steps = last.steps.clone();
        let from = last.edition();
        let changes = || ControllerMessage::RouteChanges(RoutingChanges::between(&last.table, &table));
        match (from != Edition::default()).then(|| encode(&changes(), table.version)).flatten() {
            Some(frame) => steps.push_back(Step { from, frame }),
            None => steps.clear(),
        }
        if steps.len() > STEPS_MAX {
            steps.pop_front();
        }
        Self { table, frame: OnceLock::new(), steps }
    }

    pub(super) fn edition(&self) -> Edition {
        self.table.edition()
    }

    /// The frames that bring an agent here that has the table `from` of this controller, none where it is here or nothing
    /// was published yet: the changes, or the whole where that is shorter.
    pub(super) fn frames_from(&self, from: Option<Edition>) -> Vec<Bytes> {
        if from.unwrap_or_default() == self.edition() || self.edition() == Edition::default() {
            return Vec::new();
        }
        let first = self.steps.iter().position(|step| Some(step.from) == from);
        let steps: Vec<Bytes> = first
            .into_iter()
            .flat_map(|first| self.steps.iter().skip(first))
            .map(|step| step.frame.clone())
            .collect();
        let bytes = byte_count(&steps);
        if bytes > 0 && (bytes <= SHORT_BYTES || self.whole().is_none_or(|whole| bytes <= whole.len())) {
            return steps;
        }
        self.whole().into_iter().collect()
    }

    /// `None` for one longer than a frame may be: agents keep the one they have.
    fn whole(&self) -> Option<Bytes> {
        let message = || ControllerMessage::Routes { table: self.table.clone() };
        self.frame.get_or_init(|| encode(&message(), self.table.version)).clone()
    }
}

/// What frames take together.
pub(super) fn byte_count(frames: &[Bytes]) -> usize {
    frames.iter().map(Bytes::len).sum()
}

fn encode(message: &ControllerMessage, version: u64) -> Option<Bytes> {
    match encode_frame(message) {
        Ok(frame) => Some(Bytes::from(frame)),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            error!(version, ?cause, "routing table cannot be sent");
            None
        }
    }
}

/// The newest table, and whose turn it is.
#[derive(Debug)]
pub(super) struct Tables {
    newest: watch::Sender<Arc<Table>>,
    /// When the next agent's turn is.
    next_at: Mutex<Mono>,
    clock: Clock,
}

impl Default for Tables {
    fn default() -> Self {
        let newest = watch::Sender::new(Arc::default());
        Self { newest, next_at: Mutex::default(), clock: Clock::start() }
    }
}

impl Tables {
    pub(super) fn publish(&self, table: RoutingTable) {
        // One publishes at a time: the driver. What takes a while is done before anybody is kept from reading.
        let last = self.newest.borrow().clone();
        self.newest.send_replace(Arc::new(Table::after(&last, table)));
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Table>> {
        self.newest.subscribe()
    }

    /// When as many bytes may be sent to one more agent.
    pub(super) fn turn(&self, bytes: usize) -> Instant {
        let bytes = (bytes as u64).max(TURN_BYTES_MIN);
        let nanos = bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND;
        let mut next_at = self.next_at.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.clock.now().max(*next_at);
        *next_at = at + Duration::from_nanos(nanos);
        self.clock.instant(at)
    }
}

#[cfg(test)]
mod tests {
    use cic_common::id::{DeploymentName, NodeId, Term};
    use cic_common::route::{Replica, Route};
    use cic_common::routing::Routing;
    use cic_common::wire::codec;

    use super::*;

    fn table(version: u64, nodes: std::ops::Range<usize>) -> RoutingTable {
        let replica = |number| Replica {
            node: NodeId::new(format!("n{number:05}")).expect("a label"),
            address: "10.0.0.1:7444".to_owned(),
            zone: None,
            gpu: None,
        };
        let route = Route {
            deployment: DeploymentName::new("d").expect("a label"),
            model: "m".to_owned(),
            replicas: nodes.map(replica).collect(),
            routing: Routing::default(),
        };
        RoutingTable { term: Term(1), version, routes: vec![route] }
    }

    fn edition(version: u64) -> Option<Edition> {
        Some(Edition { term: Term(1), version })
    }

    /// What an agent has that had `held` and takes these frames.
    fn taken(mut held: RoutingTable, frames: &[Bytes]) -> RoutingTable {
        for frame in frames {
            match codec::decode(&frame[6..]).expect("a message") {
                ControllerMessage::Routes { table } => held = table,
                ControllerMessage::RouteChanges(changes) => changes.apply_to(&mut held).expect("in step"),
                other => panic!("{other:?}"),
            }
        }
        held
    }

    #[test]
    fn turns_come_one_after_the_other_at_the_rate_that_is_allowed() {
        let tables = Tables::default();
        for (bytes, apart) in [(1_000_000, Duration::from_millis(40)), (10, Duration::from_micros(200))] {
            let turns: Vec<Instant> = (0..4).map(|_| tables.turn(bytes)).collect();
            for pair in turns.windows(2) {
                assert!(pair[1] - pair[0] >= apart, "{pair:?}");
            }
        }
    }

    #[test]
    fn an_agent_that_is_behind_is_told_what_changed_and_any_other_the_whole() {
        let tables = Tables::default();
        for version in 1..=4 {
            tables.publish(table(version, usize::try_from(version).expect("small")..1000));
        }
        let newest = tables.subscribe().borrow().clone();
        let whole = newest.frames_from(None)[0].len();
        for (from, frames, is_whole) in [
            (None, 1, true),
            (edition(4), 0, false),
            (edition(3), 1, false),
            (edition(1), 3, false),
            (Some(Edition { term: Term(0), version: 3 }), 1, true),
            (edition(9), 1, true),
        ] {
            let sent = newest.frames_from(from);
            assert_eq!(sent.len(), frames, "{from:?}");
            assert_eq!(sent.iter().any(|frame| frame.len() == whole), is_whole, "{from:?}");
            let held = from.map_or_else(RoutingTable::default, |from| {
                table(from.version, usize::try_from(from.version).expect("small")..1000)
            });
            assert_eq!(taken(held, &sent), newest.table, "{from:?}");
        }
    }

    #[test]
    fn one_far_behind_is_sent_the_whole() {
        let tables = Tables::default();
        let last = STEPS_MAX + 10;
        for version in 1..=last {
            tables.publish(table(version as u64, version..2000));
        }
        let newest = tables.subscribe().borrow().clone();
        assert_eq!(newest.frames_from(edition(2)).len(), 1, "its step is forgotten");
        assert_eq!(newest.frames_from(edition(last as u64 - 5)).len(), 5);
        tables.publish(table(last as u64 + 1, 1990..2000));
        let shorter = tables.subscribe().borrow().clone();
        assert_eq!(shorter.frames_from(edition(last as u64 - 1)).len(), 1, "the whole is the shorter way");
        assert_eq!(
            taken(RoutingTable::default(), &shorter.frames_from(edition(last as u64 - 1))),
            shorter.table
        );
        assert_eq!(
            Table::default().frames_from(edition(3)),
            Vec::<Bytes>::new(),
            "nothing was published yet"
        );
    }

    #[test]
    fn every_agent_is_given_the_same_bytes() {
        let tables = Tables::default();
        tables.publish(table(7, 0..3));
        tables.publish(table(8, 0..4));
        let newest = tables.subscribe().borrow().clone();
        for from in [None, edition(7)] {
            let (one, other) = (newest.frames_from(from), newest.frames_from(from));
            assert_eq!(one[0].as_ptr(), other[0].as_ptr());
        }
    }
}
