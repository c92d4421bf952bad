//! Commands of controllers over the peer port, on their way to the core and back.

use std::time::Duration;

use cic_common::wire::message::CommandOutcome;
use cic_common::wire::order::{ORDER_BYTES_MAX, Order};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Orders that wait for the driver. It takes one in microseconds; the controllers of a fleet are few.
pub const ORDERS_WAITING_MAX: usize = 16;

/// The body is one packet, and the core answers within microseconds. Below the 2 s that a controller waits.
const ANSWER_DEADLINE: Duration = Duration::from_millis(1500);

/// One order with the way back to who gave it.
#[derive(Debug)]
pub struct Ordered {
    pub order: Order,
    pub answer: oneshot::Sender<CommandOutcome>,
}

/// The way to the core. Clones share one queue.
#[derive(Debug, Clone)]
pub struct OrderDesk(mpsc::Sender<Ordered>);

/// Why an order has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderFault {
    #[error("expected {{operation, term, command}} as JSON of at most {ORDER_BYTES_MAX} bytes: {0}")]
    Body(String),
    #[error("the agent did not take it within {ANSWER_DEADLINE:?}; the same order may be sent again")]
    Late,
    #[error("the agent is ending; the same order may be sent again")]
    Ending,
}

impl OrderFault {
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::Late | Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl OrderDesk {
    /// The desk and what is handed in there.
    #[must_use]
    pub fn open() -> (Self, mpsc::Receiver<Ordered>) {
        let (orders, waiting) = mpsc::channel(ORDERS_WAITING_MAX);
        (Self(orders), waiting)
    }

    /// Reads the order in `request`, has the core take it and returns what it says.
    ///
    /// # Errors
    /// When it is no order, or was not taken in time: then it may be taken still.
    pub async fn take(&self, request: Request<Incoming>) -> Result<CommandOutcome, OrderFault> {
        let taken = async {
            let body = Limited::new(request.into_body(), ORDER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| OrderFault::Body(error.to_string()))?;
            let order = serde_json::from_slice(&body.to_bytes());
            let order = order.map_err(|error| OrderFault::Body(error.to_string()))?;
            let (answer, outcome) = oneshot::channel();
            self.0.send(Ordered { order, answer }).await.map_err(|_| OrderFault::Ending)?;
            outcome.await.map_err(|_| OrderFault::Ending)
        };
        timeout(ANSWER_DEADLINE, taken).await.unwrap_or(Err(OrderFault::Late))
    }
}
