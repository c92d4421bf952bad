//! One QUIC connection to one address of a controller.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use cic_common::tls::peer;
use futures_util::future::{FutureExt as _, select_ok};
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::time::timeout;

/// A name server that takes longer is treated as failed; the next attempt asks again.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);

/// Three packets sent at growing distances, all lost. A controller that comes up in between is reached by the
/// second or third.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Addresses tried at once when a name has several.
const ADDRESSES_MAX: usize = 4;

/// Why a controller was not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("name {address} is not resolved")]
    Resolve {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("name {address} has no address")]
    NoAddress { address: String },
    #[error("no UDP socket")]
    Socket(#[source] io::Error),
    #[error("connection cannot be begun")]
    Begin(#[source] quinn::ConnectError),
    #[error("no connection")]
    Connect(#[source] quinn::ConnectionError),
    #[error("no answer within {within:?}")]
    Late { within: Duration },
}

/// A connection and the socket it runs on; a fresh socket each time, so that a NAT's stale entry is left behind.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
}

/// Connects to `host:port`, which must show a controller's certificate.
pub(super) async fn dial(address: &str, config: &ClientConfig) -> Result<Dialled, DialError> {
    let found = timeout(RESOLVE_DEADLINE, tokio::net::lookup_host(address))
        .await
        .map_err(|_| DialError::Late { within: RESOLVE_DEADLINE })?
        .map_err(|source| DialError::Resolve { address: address.to_owned(), source })?;
    let attempts: Vec<_> = found.take(ADDRESSES_MAX).map(|found| connect(found, config).boxed()).collect();
    if attempts.is_empty() {
        return Err(DialError::NoAddress { address: address.to_owned() });
    }
    let (dialled, _) = select_ok(attempts).await?;
    Ok(dialled)
}

async fn connect(address: SocketAddr, config: &ClientConfig) -> Result<Dialled, DialError> {
    let unspecified = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = Endpoint::client(unspecified).map_err(DialError::Socket)?;
    let connecting =
        endpoint.connect_with(config.clone(), address, peer::any_controller()).map_err(DialError::Begin)?;
    let connection = timeout(CONNECT_DEADLINE, connecting)
        .await
        .map_err(|_| DialError::Late { within: CONNECT_DEADLINE })?
        .map_err(DialError::Connect)?;
    Ok(Dialled { connection, endpoint })
}
