//! One poll: over the warm connection, or urgently over fresh ones.

use std::sync::Arc;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::report::Heartbeat;
use cic_common::time::Clock;
use tokio::time::timeout;

use super::connection::Connection;
use crate::core::PollFault;

/// After this share of an urgent poll's time its second connection is tried beside the first: one lost packet must not
/// look like a death.
const SECOND_AFTER: f64 = 1.0 / 3.0;

/// Before the second when the first was refused at once: a restarting agent.
const URGENT_PAUSE: Duration = Duration::from_millis(100);

/// A deadline noticed this much too late says that this process did not run: the silence is ours.
const OWN_STALL: Duration = Duration::from_millis(250);

/// Times that an urgent poll is begun anew for that.
const STALLS_MAX: u32 = 3;

/// An answer and the round trip that it took on an open connection.
pub(super) type Answer = (Heartbeat, Duration);

/// Asks over `warm`, opening it first if need be. Leaves in `warm` what can be used again.
pub(super) async fn routine(
    warm: &mut Option<Connection>,
    node: &NodeId,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
    clock: Clock,
    within: Duration,
) -> Result<Answer, PollFault> {
    let result = timeout(within, async {
        let connection = match warm {
            Some(connection) => connection,
            None => warm.insert(Connection::open(node, address, tls).await?),
        };
        timed(connection, clock).await
    })
    .await
    .unwrap_or(Err(PollFault::Timeout));
    if result.is_err() {
        *warm = None;
    }
    result
}

/// Asks over two fresh connections, so that a stuck one cannot speak for the node; the second begins while the first is
/// still waited for. The first answer counts. Fails when both did, or after `within`.
pub(super) async fn urgent(
    node: &NodeId,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
    clock: Clock,
    within: Duration,
) -> Result<Answer, PollFault> {
    for _ in 0..STALLS_MAX {
        let due = clock.now() + within;
        let result = timeout(within, both(node, address, tls, clock, within)).await;
        match result {
            Ok(result) => return result,
            Err(_) if clock.now().since(due) < OWN_STALL => break,
            Err(_) => {}
        }
    }
    Err(PollFault::Timeout)
}

async fn both(
    node: &NodeId,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
    clock: Clock,
    within: Duration,
) -> Result<Answer, PollFault> {
    let attempt = || async { timed(&mut Connection::open(node, address, tls).await?, clock).await };
    let first = attempt();
    tokio::pin!(first);
    let early = timeout(within.mul_f64(SECOND_AFTER), &mut first).await;
    let was_early = early.is_ok();
    let second = async {
        if was_early {
            tokio::time::sleep(URGENT_PAUSE).await;
        }
        attempt().await
    };
    match early {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => second.await,
        Err(_) => {
            tokio::pin!(second);
            // Cancel-safe: the one that is left is waited for on.
            tokio::select! {
                result = &mut first => match result {
                    Ok(answer) => Ok(answer),
                    Err(_) => second.await,
                },
                result = &mut second => match result {
                    Ok(answer) => Ok(answer),
                    Err(_) => first.await,
                },
            }
        }
    }
}

async fn timed(connection: &mut Connection, clock: Clock) -> Result<Answer, PollFault> {
    let asked_at = clock.now();
    let heartbeat = connection.ask().await?;
    Ok((heartbeat, clock.now().since(asked_at)))
}
