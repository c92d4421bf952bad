//! Who leads, for all who need to know, and the wishes about it.

use std::time::Duration;

use cic_common::id::Term;
use cic_common::time::Mono;
use tokio::sync::{mpsc, oneshot, watch};

use super::lease::Role;
use crate::store::{Holder, QueueCounts, StoreQueue};

/// A hand-over stores what is queued and releases the lease, each within a second.
const ORDER_WITHIN: Duration = Duration::from_secs(3);

/// What this controller is.
#[derive(Debug, Clone)]
pub struct Post {
    pub role: Role,
    /// The leader's way to the store.
    pub queue: Option<StoreQueue>,
}

/// A wish about the lease. Answered when it is fulfilled.
#[derive(Debug)]
pub(super) enum Order {
    HandOver(oneshot::Sender<Option<Term>>),
    Stop(oneshot::Sender<()>),
}

/// The lease was not released in time; it ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("lease not released within {ORDER_WITHIN:?}; it ends by itself")]
pub struct NotReleased;

/// Who leads. Clones share it.
#[derive(Debug, Clone)]
pub struct Leadership {
    pub(super) own: Holder,
    pub(super) post: watch::Receiver<Post>,
    pub(super) orders: mpsc::Sender<Order>,
}

impl Leadership {
    /// This controller, as it presents itself to the others.
    #[must_use]
    pub fn own(&self) -> &Holder {
        &self.own
    }

    #[must_use]
    pub fn role(&self) -> Role {
        self.post.borrow().role.clone()
    }

    /// The term under which this controller may act at `now`.
    #[must_use]
    pub fn may_act(&self, now: Mono) -> Option<Term> {
        self.post.borrow().role.may_act(now)
    }

    /// The leader's queue in figures; of a standby, which has none, all zero.
    #[must_use]
    pub fn queue_counts(&self) -> QueueCounts {
        self.post.borrow().queue.as_ref().map(StoreQueue::counts).unwrap_or_default()
    }

    /// The leader's way to the store, while this controller leads.
    #[must_use]
    pub fn queue(&self) -> Option<StoreQueue> {
        self.post.borrow().queue.clone()
    }

    /// Leaves the lease to others for a while. The term that ended, if this controller led.
    ///
    /// # Errors
    /// When the lease could not be released in time. This controller acts no more all the same.
    pub async fn hand_over(&self) -> Result<Option<Term>, NotReleased> {
        self.order(Order::HandOver).await
    }

    /// Stores what is queued, releases the lease if it is held, and takes none any more.
    ///
    /// # Errors
    /// As [`Self::hand_over`].
    pub async fn stop(&self) -> Result<(), NotReleased> {
        self.order(Order::Stop).await
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, NotReleased> {
        let (done, answer) = oneshot::channel();
        let asked = async {
            self.orders.send(order(done)).await.map_err(|_| NotReleased)?;
            answer.await.map_err(|_| NotReleased)
        };
        tokio::time::timeout(ORDER_WITHIN, asked).await.unwrap_or(Err(NotReleased))
    }
}
