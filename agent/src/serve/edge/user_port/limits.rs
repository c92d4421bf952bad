//! What one client, and all of them together, may take.

use std::time::Duration;

/// Bounds of a user port that its configuration may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more are closed at once, so that the node keeps its file descriptors for its engine.
    pub connections_max: usize,
    /// Connections of one address (of one /64 with IPv6). Half of all: a proxy before this port may well have most,
    /// yet no single address shuts out the others.
    pub connections_per_client_max: usize,
    /// From the connection, or from the first byte of a later request, to the end of its head. A head is a packet
    /// or two; nginx gives 60 s, Apache 20 s.
    pub head_within: Duration,
    /// From the head to the end of the body. 8 MiB at 2 Mbit/s take 33 s.
    pub body_within: Duration,
    /// A client that takes nothing of what is ready for it for this long is cut off, and its replica freed.
    pub stall_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_client_max: 2048,
            head_within: Duration::from_secs(10),
            body_within: Duration::from_secs(60),
            stall_max: Duration::from_secs(30),
        }
    }
}

/// Between two requests of one connection. Longer than the idle time of the usual clients' pools (OpenAI's Python
/// client: 5 s), so that it is they who close.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(75);

/// No byte of a body for this long: the client is gone or plays dead.
pub(super) const BODY_GAP_MAX: Duration = Duration::from_secs(20);

/// Bytes of a request's head. The longest token that an identity provider makes is about 16 KiB.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;

/// Headers of a request: hyper's own bound for HTTP/1.1, which holds for HTTP/2 too.
pub(super) const HEADERS_MAX: usize = 100;

/// Bytes of request bodies that are held at once, of all clients together: the machine's memory is the engine's.
/// 64 of the longest.
pub(super) const HELD_BODIES_BYTES_MAX: usize = 512 << 20;

/// Answers of one HTTP/2 connection at once: the least that RFC 9113 (6.5.2) recommends.
pub(super) const STREAMS_MAX: u32 = 100;

/// HTTP/2 streams that were reset by the client before they were looked at, and those reset for an error of the
/// client's: more end the connection (CVE-2023-44487, CVE-2025-8671). The first is hyper's default.
pub(super) const STREAMS_PENDING_RESET_MAX: usize = 20;
pub(super) const STREAMS_ERROR_RESET_MAX: usize = 128;

/// What a client may send on one HTTP/2 stream, and on all of a connection, ahead of what was read. At 100 ms of
/// round trip a body still comes with 2.5 MB/s.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 << 10;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// What is held for a client that reads more slowly than its replica writes: in this process a connection of
/// HTTP/1.1 or a stream of HTTP/2 each, and in the kernel a connection each. 1,000 slow readers cost 64 MiB here.
pub(super) const SEND_BYTES_MAX: usize = 64 << 10;
pub(super) const KERNEL_SEND_BYTES_MAX: usize = 128 << 10;

/// A client that answers neither an HTTP/2 ping nor the kernel's keep-alive probes for so long is gone.
pub(super) const PING_EVERY: Duration = Duration::from_secs(20);
pub(super) const PING_ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// From the word that an idle connection ends to its end: HTTP/2 needs a round trip for it (RFC 9113, 6.8), and a
/// client that answers no ping within this time is gone anyway.
pub(super) const LEAVE_WITHIN: Duration = PING_ANSWER_WITHIN;

/// A TLS handshake is two round trips and one signature.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// After our last byte: what a client still sends is read and thrown away for this long, so that the answer it got
/// early (a 413, say) is not lost to a reset.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(1);

/// When the program stops: time for answers under way to end.
pub(super) const FINISH_WITHIN: Duration = Duration::from_secs(2);
