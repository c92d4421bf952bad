//! What is wanted of the probe: samples, by the agent on standard input, and its end, by the end of that stream or
//! by a signal.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use cic_common::gpu::ProbeRequest;
use cic_common::wire::frame::{FRAME_BYTES_MAX, decode_datagram};
use nix::sys::signal::{SigSet, Signal, raise};

/// Wishes that wait for the round under way. Once full, whoever wishes waits; a wish for a sample is met by any.
const WISHES_WAITING_MAX: usize = 16;

/// An end in order takes about a second. After this a driver call hangs, and only SIGKILL is left.
const END_WITHIN: Duration = Duration::from_millis(1_700);

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Sample,
    End,
}

/// The wishes as they come.
#[derive(Debug)]
pub(crate) struct Wishes {
    waiting: Receiver<Wish>,
}

impl Wishes {
    /// Listens from now on. Called before any other thread is there: all inherit that signals are left to this.
    ///
    /// # Errors
    /// When signals cannot be blocked.
    pub(crate) fn listen() -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block()?;
        let (wish, waiting) = sync_channel(WISHES_WAITING_MAX);
        let by_signal = wish.clone();
        thread::spawn(move || {
            while signals.wait().is_err() {}
            end(&by_signal);
        });
        thread::spawn(move || {
            let mut requests = io::stdin().lock();
            while let Some(ProbeRequest::Sample) = next_request(&mut requests) {
                if wish.send(Wish::Sample).is_err() {
                    return;
                }
            }
            end(&wish);
        });
        Ok(Self { waiting })
    }

    /// The next wish; `None` when there is none for `span`. Many for a sample are one.
    pub(crate) fn next_within(&self, span: Duration) -> Option<Wish> {
        let mut wish = match self.waiting.recv_timeout(span) {
            Ok(wish) => wish,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => return Some(Wish::End),
        };
        while wish == Wish::Sample
            && let Ok(next) = self.waiting.try_recv()
        {
            wish = next;
        }
        Some(wish)
    }
}

/// Asks for the end in order, and ends without it where a driver call keeps that from happening.
fn end(wish: &SyncSender<Wish>) {
    let _ = wish.try_send(Wish::End);
    thread::sleep(END_WITHIN);
    let _ = raise(Signal::SIGKILL);
}

/// The next request; `None` at the end of the stream and for anything that is none.
fn next_request(stream: &mut impl Read) -> Option<ProbeRequest> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let length =
        usize::try_from(u32::from_be_bytes(length)).ok().filter(|length| *length <= FRAME_BYTES_MAX)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    decode_datagram(&body).ok()
}

#[cfg(test)]
mod tests {
    use cic_common::wire::frame::encode_frame;

    use super::*;

    #[test]
    fn requests_are_read_until_the_stream_ends_or_makes_no_sense() {
        let frame = encode_frame(&ProbeRequest::Sample).unwrap();
        let mut stream = [frame.clone(), frame.clone(), frame[..5].to_vec()].concat();
        let mut read = stream.as_slice();
        assert_eq!(next_request(&mut read), Some(ProbeRequest::Sample));
        assert_eq!(next_request(&mut read), Some(ProbeRequest::Sample));
        assert_eq!(next_request(&mut read), None);
        stream.splice(.., [0xff; 8]);
        assert_eq!(next_request(&mut stream.as_slice()), None);
    }

    #[test]
    fn many_wishes_for_a_sample_are_one_and_an_end_is_not_lost_among_them() {
        let (wish, waiting) = sync_channel(WISHES_WAITING_MAX);
        let wishes = Wishes { waiting };
        for _ in 0..3 {
            wish.send(Wish::Sample).unwrap();
        }
        assert_eq!(wishes.next_within(Duration::ZERO), Some(Wish::Sample));
        assert_eq!(wishes.next_within(Duration::ZERO), None);
        wish.send(Wish::Sample).unwrap();
        wish.send(Wish::End).unwrap();
        assert_eq!(wishes.next_within(Duration::ZERO), Some(Wish::End));
        drop(wish);
        assert_eq!(wishes.next_within(Duration::ZERO), Some(Wish::End));
    }
}
