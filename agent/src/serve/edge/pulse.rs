//! Signs of life on the one connection that carries a stream.
//!
//! An engine may say nothing for a long time and be well, and so may its node, which answers whoever asks on a new
//! connection; while the packets of this one connection are lost: a NAT has forgotten it, its path is broken, or TCP
//! sends again ever more rarely after a burst of losses. So a node that passes a stream on to a peer says
//! [`PULSE`] where its engine says nothing, and tells so in the head of its answer. A peer that hears neither events nor
//! this has the stream go on elsewhere.

use std::task::Context;
use std::time::Duration;

use super::quiet::Quiet;

/// The comment that is said; readers of an event stream pass it over, and the peer keeps it from its client.
pub(super) const PULSE: &[u8] = b": cic-pulse\n\n";

/// Between two of them, and from the last of the engine to the first, which takes up to twice as long.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// So many spans of silence, and up to one more, mean that the connection is dead. TCP repeats a packet five times in
/// that time.
const LISTEN_SPAN: Duration = Duration::from_secs(4);
const SILENT_SPANS: u32 = 2;

/// Longest wait for the first bytes of a stream with a pulse.
pub(super) const FIRST_WITHIN: Duration = Duration::from_secs(12);

/// When to say it.
#[derive(Debug)]
pub(super) struct Saying {
    quiet: Quiet,
    /// Spans of quiet that have been seen.
    seen: u32,
    /// The last bytes of the engine, which end an event or do not: what is said within one would spoil it.
    last: [u8; 3],
}

impl Saying {
    pub(super) fn new() -> Self {
        Self { quiet: Quiet::of(SAY_EVERY), seen: 0, last: *b"\n\n\n" }
    }

    /// The engine has said this.
    pub(super) fn heard(&mut self, data: &[u8]) {
        self.quiet.heard();
        for byte in &data[data.len().saturating_sub(self.last.len())..] {
            self.last.rotate_left(1);
            self.last[2] = *byte;
        }
    }

    /// Whether it is to be said now. Wakes its caller when that can change.
    pub(super) fn is_due(&mut self, context: &mut Context<'_>) -> bool {
        let spans = self.quiet.spans(context);
        let is_between_events = self.last.ends_with(b"\n\n") || self.last == *b"\n\r\n";
        let is_due = is_between_events && spans > self.seen;
        self.seen = spans;
        is_due
    }
}

/// Whether it is heard.
#[derive(Debug)]
pub(super) struct Listening(Quiet);

impl Listening {
    pub(super) fn new() -> Self {
        Self(Quiet::of(LISTEN_SPAN))
    }

    /// Bytes came, whatever they say.
    pub(super) fn heard(&mut self) {
        self.0.heard();
    }

    /// Whether nothing has come for too long. Wakes its caller when that can change.
    pub(super) fn is_silent(&mut self, context: &mut Context<'_>) -> bool {
        self.0.spans(context) >= SILENT_SPANS
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    /// Looks once a second, as a reader that is woken does, and says how often it was so.
    async fn looks(seconds: u64, mut look: impl FnMut(&mut Context<'_>) -> bool) -> u32 {
        let mut count = 0;
        for second in 0..=seconds {
            if second > 0 {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            count += u32::from(poll_fn(|context| Poll::Ready(look(context))).await);
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_every_two_seconds_while_the_engine_says_nothing_and_only_between_events() {
        let mut saying = Saying::new();
        assert_eq!(looks(1, |context| saying.is_due(context)).await, 0);
        assert_eq!(looks(20, |context| saying.is_due(context)).await, 10);
        for (data, said) in [
            (&b"data: {}\n\n"[..], 3),
            (b"data: {\"choi", 0),
            (b"ces\":[]}\n", 0),
            (b"\n", 3),
            (b"data: {}\r\n\r\n", 3),
        ] {
            saying.heard(data);
            assert_eq!(looks(8, |context| saying.is_due(context)).await, said, "{data:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_heard_after_eight_seconds_and_within_twelve_and_whoever_says_it_is_never_silent() {
        let mut listening = Listening::new();
        for _ in 0..100 {
            listening.heard();
            assert_eq!(looks(2 * SAY_EVERY.as_secs(), |context| listening.is_silent(context)).await, 0);
        }
        listening.heard();
        assert_eq!(looks(7, |context| listening.is_silent(context)).await, 0);
        assert!(looks(5, |context| listening.is_silent(context)).await > 0);
    }
}
