//! One request's visit: what the port lets it do, and what is to be said of it at its end.
//!
//! It goes through the edge beside the request. A request from a peer has none: its first edge has done all this.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::route::Class;

use super::denial::Denial;
use super::keys::Key;
use super::limits::Limits;
use super::upload::Room;

/// Names kept of one request: with more attempts than this, which they were matters no more.
const NODES_MAX: usize = 16;

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub(in crate::serve::edge) struct Visit(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    key: Option<Arc<Key>>,
    body_within: Duration,
    room: Room,
    told: Mutex<Told>,
}

/// What the edge said of the request.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) model: Option<String>,
    pub(super) class: Class,
    /// Replicas that were tried, in order.
    pub(super) nodes: Vec<NodeId>,
    pub(super) attempt_count: u32,
    pub(super) bytes_in: u64,
    /// Times that another replica went on with its stream.
    pub(super) continuation_count: u32,
    /// Its stream ended in an error event.
    pub(super) is_cut: bool,
}

impl Visit {
    pub(super) fn new(key: Option<Arc<Key>>, class: Class, limits: &Limits, room: Room) -> Self {
        let told = Mutex::new(Told { class, ..Told::default() });
        Self(Some(Arc::new(Inner { key, body_within: limits.body_within, room, told })))
    }

    /// The request is for `model`.
    pub(in crate::serve::edge) fn asks_for(&self, model: &str) -> Result<(), Denial> {
        self.tell(|told| told.model = Some(model.to_owned()));
        let key = self.0.as_ref().and_then(|inner| inner.key.as_ref());
        match key.is_none_or(|key| key.may_use(model)) {
            true => Ok(()),
            false => Err(Denial::ModelNotAllowed { model: model.to_owned() }),
        }
    }

    /// Name of the client's API key.
    pub(in crate::serve::edge) fn client(&self) -> Option<&str> {
        self.0.as_ref()?.key.as_ref().map(|key| key.name.as_str())
    }

    /// A replica is asked.
    pub(in crate::serve::edge) fn tries(&self, node: &NodeId) {
        self.tell(|told| {
            told.attempt_count += 1;
            if told.nodes.len() < NODES_MAX {
                told.nodes.push(node.clone());
            }
        });
    }

    /// Another replica goes on with its stream.
    pub(in crate::serve::edge) fn continues(&self) {
        self.tell(|told| told.continuation_count += 1);
    }

    /// Its stream ends in an error event.
    pub(in crate::serve::edge) fn is_cut(&self) {
        self.tell(|told| told.is_cut = true);
    }

    pub(super) fn brought(&self, bytes: usize) {
        self.tell(|told| told.bytes_in += bytes as u64);
    }

    /// How long its body may take.
    pub(super) fn body_within(&self) -> Duration {
        self.0.as_ref().map_or_else(|| Limits::default().body_within, |inner| inner.body_within)
    }

    /// Where its body counts. A peer's does not: its first edge has bounded it.
    pub(super) fn room(&self) -> Option<&Room> {
        self.0.as_ref().map(|inner| &inner.room)
    }

    pub(super) fn told(&self) -> Told {
        let told =
            self.0.as_ref().map(|inner| inner.told.lock().unwrap_or_else(PoisonError::into_inner).clone());
        told.unwrap_or_default()
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        if let Some(inner) = &self.0 {
            change(&mut inner.told.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}
