//! One TLS connection to one agent's peer port, driven by whoever holds it.

use std::error::Error;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use cic_common::id::NodeId;
use cic_common::report::Heartbeat;
use cic_common::tls::Peer;
use cic_common::wire::message::CommandOutcome;
use cic_common::wire::order::Order;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::core::PollFault;

/// A heartbeat as JSON is about 1 KiB; with eight GPUs a few.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What an exchange reads into: an answer is read in one or a few pieces.
const READ_BYTES: usize = 2 << 10;

/// An open connection. Nothing happens on it unless one of its methods is being awaited.
///
/// HTTP is spoken anew for each exchange: between two, its queues would hold 20 KiB a node.
pub(crate) struct Connection {
    node: NodeId,
    /// None after an error, or when the agent has closed.
    idle: Option<TlsStream<TcpStream>>,
}

impl Connection {
    /// Connects to `address`, which must show the certificate of `node`.
    pub(crate) async fn open(
        node: &NodeId,
        address: &str,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<Self, PollFault> {
        let stream = TcpStream::connect(address).await.map_err(|error| fault(&error))?;
        stream.set_nodelay(true).map_err(|error| fault(&error))?;
        let name = Peer::Node(node.clone()).server_name();
        let stream =
            TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|error| fault(&error))?;
        Ok(Self { node: node.clone(), idle: Some(stream) })
    }

    /// Asks for a heartbeat. After an error the connection is of no more use.
    pub(super) async fn ask(&mut self) -> Result<Heartbeat, PollFault> {
        let heartbeat: Heartbeat = self.exchange(Method::GET, "/v1/poll", Bytes::new()).await?;
        if heartbeat.node != self.node {
            return Err(PollFault::Answer);
        }
        Ok(heartbeat)
    }

    /// Gives an order and returns what became of it. After an error the connection is of no more use.
    pub(crate) async fn order(&mut self, order: &Order) -> Result<CommandOutcome, PollFault> {
        let json = serde_json::to_vec(order).map_err(|_| PollFault::Answer)?;
        self.exchange(Method::POST, "/v1/command", Bytes::from(json)).await
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, PollFault> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "agent")
            .header(ACCEPT, "application/json")
            .body(Full::new(body))
            .map_err(|_| PollFault::Answer)?;
        let stream = self.idle.take().ok_or(PollFault::Refused)?;
        let (mut sender, connection) = http1::Builder::new()
            .read_buf_exact_size(Some(READ_BYTES))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| fault(&error))?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(|error| fault(&error))?;
            if response.status() != StatusCode::OK {
                return Err(PollFault::Answer);
            }
            let stays = !closes(&response);
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let json = body.map_err(|error| fault(error.as_ref()))?.to_bytes();
            Ok((json, stays))
        };
        let driving = connection.without_shutdown();
        tokio::pin!(exchange, driving);
        let json = tokio::select! {
            // The answer first: a server may close right after it.
            biased;
            result = &mut exchange => {
                let (json, stays) = result?;
                // With nobody left to send, it ends at once and gives back what it was built on. If it cannot, the
                // answer is an answer all the same.
                let parts = driving.await.ok().filter(|parts| stays && parts.read_buf.is_empty());
                self.idle = parts.map(|parts| parts.io.into_inner());
                json
            }
            // What had arrived before the end may still hold the answer.
            ended = &mut driving => match (exchange.await, ended) {
                (Ok((json, _)), _) => json,
                (Err(_), Err(error)) => return Err(fault(&error)),
                (Err(error), Ok(_)) => return Err(error),
            },
        };
        serde_json::from_slice(&json).map_err(|_| PollFault::Answer)
    }

    /// Resolves when the agent closes the idle connection, or says something unasked. Cancel-safe.
    pub(super) async fn closed(&mut self) {
        if let Some(stream) = &mut self.idle {
            // However it ended, it ended; the next poll says why.
            let _ = stream.read_u8().await;
        }
        self.idle = None;
    }
}

fn closes<B>(response: &Response<B>) -> bool {
    response.headers().get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// Finds the reason in an error or its causes.
fn fault(error: &(dyn Error + 'static)) -> PollFault {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return PollFault::Tls;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                return PollFault::Tls;
            }
            return match error.kind() {
                // A dying agent refuses, resets or cuts; one that is cut off is silent or unreachable.
                io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown => PollFault::Timeout,
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => PollFault::Answer,
                _ => PollFault::Refused,
            };
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_parse() {
                return PollFault::Answer;
            }
            if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
                return PollFault::Refused;
            }
        }
        cause = error.source();
    }
    PollFault::Answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_named_by_its_cause() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(fault(&refused), PollFault::Refused);
        let unreachable = io::Error::from(io::ErrorKind::HostUnreachable);
        assert_eq!(fault(&unreachable), PollFault::Timeout);
        let tls = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert_eq!(fault(&tls), PollFault::Tls);
    }
}
