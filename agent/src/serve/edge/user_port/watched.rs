//! The socket of one connection, with an eye on what it does and does not do.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use cic_common::time::Clock;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits::{KERNEL_SEND_BYTES_MAX, Limits, PING_ANSWER_WITHIN, PING_EVERY};
use super::vigil::{Verdict, Vigil};

/// Kernel's keep-alive probes after which a silent client is gone.
const PROBES_MAX: u32 = 2;

/// What is thrown away at a time of what a client sends after our last byte.
const DISCARD_BYTES: usize = 16 << 10;

/// A socket and its deadlines, shared by the one that reads and writes and the one that looks on.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    shared: Arc<Mutex<Shared>>,
    clock: Clock,
}

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    vigil: Vigil,
}

/// Why a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sentence {
    /// It is told that it ends, and ends when what still comes is answered.
    Close,
    /// It takes nothing of what it is sent.
    Stalled,
    Cut(&'static str),
}

impl Wire {
    pub(super) fn new(stream: TcpStream, limits: &Limits, clock: Clock) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::SndBuf, &KERNEL_SEND_BYTES_MAX)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        let seconds = |span: std::time::Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
        setsockopt(&stream, sockopt::TcpKeepIdle, &seconds(PING_EVERY))?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &(seconds(PING_ANSWER_WITHIN) / PROBES_MAX))?;
        setsockopt(&stream, sockopt::TcpKeepCount, &PROBES_MAX)?;
        let vigil = Vigil::begin(limits, clock.now());
        Ok(Self { shared: Arc::new(Mutex::new(Shared { stream, vigil })), clock })
    }

    /// The side that reads and writes.
    pub(super) fn watched(&self) -> Watched {
        Watched(self.clone())
    }

    /// The head of a request is complete. Counts until the answer has ended.
    pub(super) fn request(&self, is_multiplexed: bool) -> Answering {
        self.lock().vigil.request(is_multiplexed);
        Answering(self.clone())
    }

    /// What is to become of the connection now.
    pub(super) fn look(&self) -> Option<Sentence> {
        let shared = self.lock();
        match shared.vigil.verdict(self.clock.now()) {
            Some(Verdict::HeadLate) => Some(Sentence::Cut("head did not come in time")),
            Some(Verdict::Stalled) => Some(Sentence::Stalled),
            Some(Verdict::Lingered) => Some(Sentence::Cut("closed")),
            Some(Verdict::Idle) => Some(Sentence::Close),
            Some(Verdict::Overstayed) => Some(Sentence::Cut("stays although told that its connection ends")),
            // hyper sees the end by itself, but not when the client has sent something before it that is not its
            // turn to be read.
            None if shared.vigil.is_busy() && has_left(&shared.stream) => {
                Some(Sentence::Cut("client has left"))
            }
            None => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the client has closed its side: then nobody waits for an answer.
fn has_left(stream: &TcpStream) -> bool {
    let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let fd = stream.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(fd, left)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(left)
}

/// One answer under way.
#[derive(Debug)]
pub(super) struct Answering(Wire);

impl Drop for Answering {
    fn drop(&mut self) {
        let now = self.0.clock.now();
        self.0.lock().vigil.answered(now);
    }
}

/// The socket as hyper or rustls sees it.
#[derive(Debug)]
pub(super) struct Watched(Wire);

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let mut shared = self.0.lock();
        ready!(Pin::new(&mut shared.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            shared.vigil.received(self.0.clock.now());
        }
        Poll::Ready(Ok(()))
    }
}

impl Watched {
    fn written(&self, shared: &mut Shared, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(_) => shared.vigil.sent(),
            Poll::Pending => shared.vigil.blocked(self.0.clock.now()),
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.0.lock();
        let polled = Pin::new(&mut shared.stream).poll_write(context, bytes);
        self.written(&mut shared, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.0.lock();
        let polled = Pin::new(&mut shared.stream).poll_write_vectored(context, slices);
        self.written(&mut shared, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP socket holds nothing back.
        Poll::Ready(Ok(()))
    }

    /// Sends the end, and then reads what the client still sends until it ends too: closing before that would reset
    /// the connection and could take the answer with it (RFC 9112, 9.6). [`super::limits::LINGER_MAX`] bounds it.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock();
        ready!(Pin::new(&mut shared.stream).poll_shutdown(context))?;
        shared.vigil.closing(self.0.clock.now());
        let mut thrown_away = [0; DISCARD_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match ready!(Pin::new(&mut shared.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // Gone in whatever way: nothing is left to lose.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
