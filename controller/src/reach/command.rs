//! A command over the poll path: a fresh mTLS connection, one order, its outcome.

use std::sync::Arc;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::wire::message::CommandOutcome;
use cic_common::wire::order::Order;
use tokio::time::timeout;

use crate::core::PollFault;
use crate::poll::Connection;

/// Name, TCP, TLS and the answer together. An agent answers from memory; between regions a handshake takes 0.5 s.
const COMMAND_WITHIN: Duration = Duration::from_secs(2);

/// Gives `order` to the agent of `node`. The same order may be given again: the agent carries it out once.
///
/// # Errors
/// Why there is no outcome. After any of them the agent may have taken it.
pub(super) async fn give(
    node: &NodeId,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
    order: &Order,
) -> Result<CommandOutcome, PollFault> {
    let given = async { Connection::open(node, address, tls).await?.order(order).await };
    timeout(COMMAND_WITHIN, given).await.unwrap_or(Err(PollFault::Timeout))
}
