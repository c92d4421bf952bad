//! Routing tables on their way to every agent: encoded once, and sent no faster than the heartbeats can bear.
//!
//! Each agent has the whole table, so a change among n nodes is n tables of n replicas. At 1,000 nodes that is 70 MB, at
//! 10,000 it is 7 GB: sent at once it would take the processor from the heartbeats of those it is about, and each node
//! found silent for want of time would be another change. So the agents are served one after the other, each with the
//! newest table when its turn comes; what changed meanwhile is in it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cic_common::route::RoutingTable;
use cic_common::time::{Clock, Mono};
use cic_common::wire::frame::encode_frame;
use cic_common::wire::message::{ControllerMessage, Welcome};
use tokio::sync::watch;
use tracing::error;

/// What all agents together are sent of tables: a sixth of a core (QUIC takes one for some 300 MB/s). At twice that, five
/// thousand agents on the same two busy cores lost their heartbeats to it. A thousand nodes have a new table within
/// 1.4 s, ten thousand within two and a half minutes; until then edges find out by themselves which replicas do not
/// answer.
const BYTES_PER_SECOND: u64 = 50_000_000;

/// One table, and its frame once somebody asked for it.
#[derive(Debug, Default)]
pub(super) struct Table {
    table: RoutingTable,
    frame: OnceLock<Option<Bytes>>,
}

impl Table {
    /// `None` for one longer than a frame may be: agents keep the one they have.
    pub(super) fn frame(&self) -> Option<Bytes> {
        let encode = || match encode_frame(&ControllerMessage::Routes { table: self.table.clone() }) {
            Ok(frame) => Some(Bytes::from(frame)),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                error!(version = self.table.version, ?cause, "routing table cannot be sent");
                None
            }
        };
        self.frame.get_or_init(encode).clone()
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
        self.newest.send_replace(Arc::new(Table { table, frame: OnceLock::new() }));
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Table>> {
        self.newest.subscribe()
    }

    /// A welcome goes out without the newest table, which follows in its turn like any other: thousands that come back at
    /// once would each have it at once.
    pub(super) fn take_from(&self, message: &mut ControllerMessage) {
        if let ControllerMessage::Welcome(welcome) = message
            && welcome.routes == self.newest.borrow().table
        {
            welcome.routes = RoutingTable::default();
        }
    }

    /// Whether the newest table is still to follow this welcome.
    pub(super) fn follows(&self, welcome: &Welcome) -> bool {
        self.newest.borrow().table.supersedes(&welcome.routes)
    }

    /// When a table of this length may be sent to one more agent.
    pub(super) fn turn(&self, frame_bytes: usize) -> Instant {
        let nanos = (frame_bytes as u64).saturating_mul(1_000_000_000) / BYTES_PER_SECOND;
        let mut next_at = self.next_at.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.clock.now().max(*next_at);
        *next_at = at + Duration::from_nanos(nanos);
        self.clock.instant(at)
    }
}

#[cfg(test)]
mod tests {
    use cic_common::id::{ControllerId, Term};

    use super::*;

    #[test]
    fn tables_are_sent_one_after_the_other_at_the_rate_that_is_allowed() {
        let tables = Tables::default();
        let turns: Vec<Instant> = (0..4).map(|_| tables.turn(1_000_000)).collect();
        for pair in turns.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_millis(20), "{pair:?}");
        }
    }

    #[test]
    fn a_welcome_goes_out_without_the_table_that_follows_it() {
        let tables = Tables::default();
        let table = RoutingTable { version: 7, ..RoutingTable::default() };
        let welcome = |version| Welcome {
            controller: ControllerId::new("c1").expect("a label"),
            term: Term(0),
            assignment: None,
            predecessors: Vec::new(),
            routes: RoutingTable { version, ..RoutingTable::default() },
            heartbeat_ms: 1000,
        };
        // Version sent, version that goes out with the welcome, whether one follows: the last was never published here.
        for (sent, goes_out, follows) in [(7, 0, true), (0, 0, true), (8, 8, false)] {
            tables.publish(table.clone());
            let mut message = ControllerMessage::Welcome(welcome(sent));
            tables.take_from(&mut message);
            let ControllerMessage::Welcome(welcome) = message else { panic!("still a welcome") };
            assert_eq!((welcome.routes.version, tables.follows(&welcome)), (goes_out, follows), "{sent}");
        }
        assert!(!Tables::default().follows(&welcome(0)), "there is no table yet");
    }

    #[test]
    fn every_agent_is_given_the_same_bytes() {
        let tables = Tables::default();
        tables.publish(RoutingTable { version: 7, ..RoutingTable::default() });
        let (one, other) = (tables.subscribe().borrow().frame(), tables.subscribe().borrow().frame());
        assert_eq!(one.as_ref().map(|frame| frame.as_ptr()), other.as_ref().map(|frame| frame.as_ptr()));
        let expected = encode_frame(&ControllerMessage::Routes {
            table: RoutingTable { version: 7, ..RoutingTable::default() },
        });
        assert_eq!(one.expect("short enough"), expected.expect("short enough"));
    }
}
