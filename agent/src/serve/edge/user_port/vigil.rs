//! How long one connection may be what it is. Pure: it is told what happens, and when.
//!
//! ```text
//! Fresh --request--> Busy --last one ends--> Idle --first byte (HTTP/1.1)--> Head --request--> Busy
//! ```
//! On HTTP/2 a byte between requests may be a ping: there the time between requests counts alone.

use std::time::Duration;

use cic_common::time::Mono;

use super::limits::{IDLE_MAX, LEAVE_WITHIN, LINGER_MAX, Limits};

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Vigil {
    head_within: Duration,
    stall_max: Duration,
    stage: Stage,
    is_multiplexed: bool,
    /// The socket takes nothing since then.
    blocked_since: Option<Mono>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No request yet.
    Fresh {
        since: Mono,
    },
    /// Some bytes of a head.
    Head {
        since: Mono,
    },
    Busy {
        count: u32,
    },
    Idle {
        since: Mono,
    },
    /// Our last byte is sent.
    Closing {
        since: Mono,
    },
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    HeadLate,
    Idle,
    /// Idle on, after it had time to close.
    Overstayed,
    Stalled,
    Lingered,
}

impl Vigil {
    pub(super) fn begin(limits: &Limits, now: Mono) -> Self {
        let Limits { head_within, stall_max, .. } = *limits;
        let stage = Stage::Fresh { since: now };
        Self { head_within, stall_max, stage, is_multiplexed: false, blocked_since: None }
    }

    /// Bytes came from the client.
    pub(super) fn received(&mut self, now: Mono) {
        if matches!(self.stage, Stage::Idle { .. }) && !self.is_multiplexed {
            self.stage = Stage::Head { since: now };
        }
    }

    /// The head of a request is complete.
    pub(super) fn request(&mut self, is_multiplexed: bool) {
        self.is_multiplexed = is_multiplexed;
        self.stage = match self.stage {
            Stage::Busy { count } => Stage::Busy { count: count + 1 },
            Stage::Closing { since } => Stage::Closing { since },
            Stage::Fresh { .. } | Stage::Head { .. } | Stage::Idle { .. } => Stage::Busy { count: 1 },
        };
    }

    /// The answer to a request has ended, however it did.
    pub(super) fn answered(&mut self, now: Mono) {
        if let Stage::Busy { count } = self.stage {
            self.stage = match count {
                0 | 1 => Stage::Idle { since: now },
                count => Stage::Busy { count: count - 1 },
            };
        }
    }

    /// The socket took bytes.
    pub(super) fn sent(&mut self) {
        self.blocked_since = None;
    }

    /// The socket takes no bytes for now.
    pub(super) fn blocked(&mut self, now: Mono) {
        self.blocked_since.get_or_insert(now);
    }

    /// Nothing more is sent.
    pub(super) fn closing(&mut self, now: Mono) {
        if !matches!(self.stage, Stage::Closing { .. }) {
            self.stage = Stage::Closing { since: now };
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Busy { .. })
    }

    pub(super) fn verdict(&self, now: Mono) -> Option<Verdict> {
        if self.blocked_since.is_some_and(|since| now.since(since) >= self.stall_max) {
            return Some(Verdict::Stalled);
        }
        let (since, within, verdict) = match self.stage {
            Stage::Fresh { since } | Stage::Head { since } => (since, self.head_within, Verdict::HeadLate),
            Stage::Idle { since } if now.since(since) >= IDLE_MAX + LEAVE_WITHIN => {
                return Some(Verdict::Overstayed);
            }
            Stage::Idle { since } => (since, IDLE_MAX, Verdict::Idle),
            Stage::Closing { since } => (since, LINGER_MAX, Verdict::Lingered),
            Stage::Busy { .. } => return None,
        };
        (now.since(since) >= within).then_some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Byte,
        Request,
        Stream,
        Answered,
        Blocked,
        Sent,
        Closing,
    }

    #[test]
    fn every_stage_but_an_answer_under_way_has_its_time() {
        use Event::*;
        type Case<'a> = (&'a [(u64, Event)], u64, Option<Verdict>);
        let cases: [Case<'_>; 20] = [
            (&[], 9, None),
            (&[], 10, Some(Verdict::HeadLate)),
            // Byte by byte does not buy time.
            (&[(1, Byte), (9, Byte)], 10, Some(Verdict::HeadLate)),
            (&[(9, Request)], 600, None),
            (&[(1, Request), (2, Answered)], 76, None),
            (&[(1, Request), (2, Answered)], 77, Some(Verdict::Idle)),
            (&[(1, Request), (2, Answered)], 96, Some(Verdict::Idle)),
            (&[(1, Request), (2, Answered)], 97, Some(Verdict::Overstayed)),
            // Told that its connection ends, but its next request was under way.
            (&[(1, Stream), (2, Answered), (78, Stream), (79, Answered)], 153, None),
            (&[(1, Request), (2, Answered), (50, Byte)], 59, None),
            (&[(1, Request), (2, Answered), (50, Byte), (59, Byte)], 60, Some(Verdict::HeadLate)),
            // A ping is no head, and does not keep a connection either.
            (&[(1, Stream), (2, Answered), (50, Byte)], 60, None),
            (&[(1, Stream), (2, Answered), (76, Byte)], 77, Some(Verdict::Idle)),
            (&[(1, Stream), (1, Stream), (2, Answered)], 600, None),
            (&[(1, Request), (2, Blocked)], 31, None),
            (&[(1, Request), (2, Blocked), (31, Blocked)], 32, Some(Verdict::Stalled)),
            (&[(1, Request), (2, Blocked), (31, Sent), (32, Blocked)], 61, None),
            (&[(1, Request), (2, Answered), (3, Blocked)], 33, Some(Verdict::Stalled)),
            (&[(1, Request), (2, Closing)], 3, Some(Verdict::Lingered)),
            (&[(1, Request), (2, Closing), (2, Answered), (2, Byte)], 3, Some(Verdict::Lingered)),
        ];
        for (events, at_s, expected) in cases {
            let at = |s: u64| Mono::from_millis(s * 1000);
            let mut vigil = Vigil::begin(&Limits::default(), at(0));
            for (s, event) in events {
                match event {
                    Byte => vigil.received(at(*s)),
                    Request => vigil.request(false),
                    Stream => vigil.request(true),
                    Answered => vigil.answered(at(*s)),
                    Blocked => vigil.blocked(at(*s)),
                    Sent => vigil.sent(),
                    Closing => vigil.closing(at(*s)),
                }
            }
            assert_eq!(vigil.verdict(at(at_s)), expected, "{events:?} at {at_s} s");
        }
    }
}
