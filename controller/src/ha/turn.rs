//! What the lease's keeper tells the driver to be: the newest word counts, an older one that was not heard yet is void.

use std::sync::{Arc, Mutex, PoisonError};

use cic_common::id::{OperationId, Term};
use tokio::sync::{Notify, mpsc};

use crate::core::Restored;
use crate::store::StoreQueue;

/// What a controller is to be from now on.
#[derive(Debug)]
pub enum Turn {
    /// The leader.
    Lead(Reign),
    /// A standby, of which these are the rows now.
    Follow(Restored),
    /// A standby; its rows follow.
    StepDown,
}

/// What leading takes. What one term had queued is never written under another: each has a queue of its own.
#[derive(Debug)]
pub struct Reign {
    pub restored: Restored,
    pub queue: StoreQueue,
    /// Operations that the store has safely.
    pub recorded: mpsc::Receiver<OperationId>,
}

impl Reign {
    #[must_use]
    pub fn term(&self) -> Term {
        self.restored.term
    }
}

/// The keeper's end.
#[derive(Debug, Clone, Default)]
pub struct TurnGiver(Arc<Place>);

/// The driver's end.
#[derive(Debug)]
pub struct Turns(Arc<Place>);

#[derive(Debug, Default)]
struct Place {
    turn: Mutex<Option<Turn>>,
    given: Notify,
}

impl TurnGiver {
    /// The other end.
    #[must_use]
    pub fn turns(&self) -> Turns {
        Turns(Arc::clone(&self.0))
    }

    pub fn give(&self, turn: Turn) {
        *self.0.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
        self.0.given.notify_one();
    }
}

impl Turns {
    /// Waits for the next turn. Cancel safe: a turn is only taken when it is returned.
    pub async fn next(&mut self) -> Turn {
        loop {
            if let Some(turn) = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return turn;
            }
            self.0.given.notified().await;
        }
    }
}
