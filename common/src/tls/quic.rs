//! The bounds of the QUIC transport, and the key that outlives a controller.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::write_secret;

/// A peer that says nothing else still says this often that it lives. It equals the heartbeat: often enough to
/// keep a NAT's entry (30 s at the least, RFC 4787), and to have a stateless reset within a second.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A connection this long without a packet is over: three keep-alives may be lost. Nothing waits for it where
/// a faster sign exists (a close, a reset, three missing heartbeats).
pub const IDLE_TIMEOUT_MS: u32 = 4_000;

/// Round trip assumed before one was measured. QUIC's 333 ms (RFC 9002, 6.2.2) would repeat a lost first packet
/// after a second; clouds are within 100 ms of each other, so an agent that dials a controller which is just
/// coming up is heard a third of a second later.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// One control stream, and one being opened while the last closes.
const AGENT_BIDI_STREAMS_MAX: u32 = 2;

/// Heartbeats too long for a datagram, one stream each; a second may overtake the first.
const AGENT_UNI_STREAMS_MAX: u32 = 2;

/// Flow-control window of a stream. A frame may be longer; the window moves as it is read.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// Flow-control window of a connection: all its streams.
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;

/// What may wait unacknowledged for one slow peer before writes wait.
const SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Room for a few heartbeats each way; when it is full the oldest is dropped, which is what a heartbeat wants.
const DATAGRAM_BUFFER_BYTES: usize = 16 << 10;

/// Connections begun and not yet accepted by the application.
const INCOMING_MAX: usize = 256;

/// Bytes kept for one such connection, and for all of them.
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_ALL: u64 = 2 << 20;

/// Resets at most this often. quinn's 20 ms would let a restarted controller free 50 agents a second; a reset
/// is smaller than the packet that caused it, so a thousand a second amplify nothing.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// As quinn's: room for far more connections than a controller has, and every packet carries it.
const CONNECTION_ID_BYTES: usize = 8;

const RESET_KEY_BYTES: usize = 32;

/// Why the reset key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResetKeyError {
    #[error("reset key {} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("reset key {} cannot be written", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the system gives no random bytes")]
    Random,
}

/// The endpoint configuration of a controller whose reset key is kept at `path` (made when missing).
///
/// A controller that was killed could not close its connections. With the same key its next run answers their packets with resets that the agents believe, so that they redial after one
/// packet instead of after [`IDLE_TIMEOUT_MS`] (RFC 9000, 10.3).
///
/// # Errors
/// When the key can neither be read nor made.
pub fn controller_endpoint(path: &Path) -> Result<EndpointConfig, ResetKeyError> {
    let secret = load_or_make(path)?;
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)));
    config.cid_generator(|| Box::new(PlainIds));
    config.min_reset_interval(RESET_INTERVAL);
    Ok(config)
}

/// Random connection ids that any run of a controller answers with a reset.
///
/// quinn's own generator signs its ids with a key drawn at each start and ignores packets with other ids, which
/// would silence the resets that the kept key is for.
#[derive(Debug)]
struct PlainIds;

impl ConnectionIdGenerator for PlainIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        // Ids must differ, not be secret. Without randomness no handshake succeeds anyway.
        if SystemRandom::new().fill(&mut id).is_err() {
            fastrand::fill(&mut id);
        }
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

pub(super) fn client_transport() -> Arc<TransportConfig> {
    let mut transport = transport();
    // A controller opens no streams.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    Arc::new(transport)
}

pub(super) fn bound_server(server: &mut quinn::ServerConfig) {
    let mut transport = transport();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(AGENT_BIDI_STREAMS_MAX));
    transport.max_concurrent_uni_streams(VarInt::from_u32(AGENT_UNI_STREAMS_MAX));
    // Ten segments at once would have each connection keep 16 KiB to send from, for tables that are sent at a pace.
    transport.enable_segmentation_offload(false);
    server
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_ALL);
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    transport
}

fn load_or_make(path: &Path) -> Result<Vec<u8>, ResetKeyError> {
    match std::fs::read(path) {
        Ok(secret) if secret.len() == RESET_KEY_BYTES => return Ok(secret),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(ResetKeyError::Read { path: path.to_owned(), source });
        }
        // Missing, or of another length: losing a reset key costs the agents a few seconds, nothing else.
        _ => {}
    }
    let mut secret = vec![0; RESET_KEY_BYTES];
    SystemRandom::new().fill(&mut secret).map_err(|_| ResetKeyError::Random)?;
    write_secret(path, &secret).map_err(|source| ResetKeyError::Write { path: path.to_owned(), source })?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_key_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reset.key");
        let first = load_or_make(&path).unwrap();
        assert_eq!(load_or_make(&path).unwrap(), first);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(load_or_make(&path).unwrap().len(), RESET_KEY_BYTES);
    }
}
