//! One poll: over the warm connection, or urgently over fresh ones.

use std::sync::Arc;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::report::Heartbeat;
use tokio::time::timeout;

use super::connection::Connection;
use crate::core::PollFault;

/// An agent answers a poll from memory; a second is forty round trips between neighbouring regions.
pub(super) const POLL_DEADLINE: Duration = Duration::from_secs(1);

/// Attempts of an urgent poll: one lost packet or one restarting agent must not look like a death.
const URGENT_ATTEMPTS: u32 = 2;

/// Between the attempts when the first was refused at once.
const URGENT_PAUSE: Duration = Duration::from_millis(100);

/// Asks over `warm`, opening it first if need be. Leaves in `warm` what can be used again.
pub(super) async fn routine(
    warm: &mut Option<Connection>,
    node: &NodeId,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Heartbeat, PollFault> {
    let result = timeout(POLL_DEADLINE, async {
        let connection = match warm {
            Some(connection) => connection,
            None => warm.insert(Connection::open(node, address, tls).await?),
        };
        connection.ask().await
    })
    .await
    .unwrap_or(Err(PollFault::Timeout));
    if result.is_err() {
        *warm = None;
    }
    result
}

/// Asks over fresh connections, so that a stuck one cannot speak for the node.
pub(super) async fn urgent(
    node: &NodeId,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Heartbeat, PollFault> {
    let mut attempt = 1;
    loop {
        let result =
            timeout(POLL_DEADLINE, async { Connection::open(node, address, tls).await?.ask().await })
                .await
                .unwrap_or(Err(PollFault::Timeout));
        if result.is_ok() || attempt == URGENT_ATTEMPTS {
            return result;
        }
        attempt += 1;
        tokio::time::sleep(URGENT_PAUSE).await;
    }
}
