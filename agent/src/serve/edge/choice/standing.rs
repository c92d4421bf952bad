//! What this edge has seen of one replica.

use std::time::Duration;

use cic_common::time::Mono;

use super::circuit::{Circuit, Gate};
use super::load::Load;

/// After a refusal: a draining node is out of the next table, which takes about a second.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// What a peer said of its load longer ago is not counted. In use it says so several times a second; by then half of
/// the usual short answers have ended.
const LOAD_FRESH_FOR: Duration = Duration::from_secs(3);

/// Time to first token seen longer ago is not counted, so that a replica that was slow once is tried again.
const FIRST_TOKEN_FRESH_FOR: Duration = Duration::from_secs(10);

/// Nobody sees the difference below this; several times the hop to a peer and a cached prompt's first token.
const FIRST_TOKEN_FAST: Duration = Duration::from_millis(50);

/// Part of a new sample in the mean, in eighths: a step change is nine tenths there after five requests.
const FIRST_TOKEN_EIGHTHS: u32 = 3;

/// What a peer said of its load, or this node knows of its own.
#[derive(Debug, Clone, Copy)]
struct Told {
    at: Mono,
    load: Load,
    /// In flight from here at that moment, so that the rest is others'.
    from_here: u32,
}

/// Mean time from a streaming request to its first event. Other answers' first byte comes at their end, so that it
/// says how much was asked for, not how fast the replica is: those are left out.
#[derive(Debug, Clone, Copy)]
struct FirstToken {
    at: Mono,
    mean: Duration,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Standing {
    pub(super) in_flight: u32,
    pub(super) last_turn: u64,
    pub(super) circuit: Circuit,
    refused_until: Mono,
    told: Option<Told>,
    first_token: Option<FirstToken>,
}

impl Standing {
    pub(super) fn gate(&self, now: Mono) -> Gate {
        let gate = self.circuit.gate(now);
        if self.refused_until <= now {
            return gate;
        }
        match gate {
            Gate::In => Gate::Out { until: self.refused_until },
            Gate::Doubted { until } | Gate::Out { until } => {
                Gate::Out { until: until.max(self.refused_until) }
            }
        }
    }

    /// Requests it carries: from here, from others as it last said, and once more those that wait in its engine,
    /// since they delay the next one by a whole turn.
    pub(super) fn load(&self, now: Mono) -> u32 {
        let Some(told) = self.told.filter(|told| now.since(told.at) <= LOAD_FRESH_FOR) else {
            return self.in_flight;
        };
        let others = told.load.in_flight.saturating_sub(told.from_here);
        self.in_flight.saturating_add(others).saturating_add(told.load.waiting.unwrap_or(0))
    }

    /// How much longer than nobody notices its first tokens take, in doublings; 0 also where nothing is known.
    pub(super) fn slowness(&self, now: Mono) -> u32 {
        let fresh = self.first_token.filter(|first| now.since(first.at) <= FIRST_TOKEN_FRESH_FOR);
        let times = fresh.map_or(0, |first| first.mean.as_millis() / FIRST_TOKEN_FAST.as_millis());
        times.checked_ilog2().map_or(0, |doublings| doublings + 1)
    }

    pub(super) fn refused(&mut self, now: Mono) {
        self.refused_until = now + REFUSED_FOR;
    }

    pub(super) fn answered(&mut self) {
        self.circuit.answered();
        self.refused_until = Mono::ZERO;
    }

    pub(super) fn loaded(&mut self, now: Mono, load: Load) {
        self.told = Some(Told { at: now, load, from_here: self.in_flight });
    }

    /// Too much rather than too little: what it carries may be ours in part.
    pub(super) fn loaded_without_us(&mut self, now: Mono, load: Load) {
        self.told = Some(Told { at: now, load, from_here: 0 });
    }

    pub(super) fn first_token(&mut self, now: Mono, after: Duration) {
        let mean = match self.first_token.filter(|first| now.since(first.at) <= FIRST_TOKEN_FRESH_FOR) {
            Some(first) => (first.mean * (8 - FIRST_TOKEN_EIGHTHS) + after * FIRST_TOKEN_EIGHTHS) / 8,
            None => after,
        };
        self.first_token = Some(FirstToken { at: now, mean });
    }

    /// Whether it says more than one that was never seen.
    pub(super) fn is_telling(&self, now: Mono) -> bool {
        self.in_flight > 0 || !self.circuit.is_closed() || self.refused_until > now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    #[test]
    fn load_is_ours_and_others_and_what_waits_while_the_word_is_fresh() {
        for (in_flight_then, told, in_flight_now, age_ms, load) in [
            (2, None, 2, 0, 2),
            (2, Some((2, Some(0))), 2, 0, 2),
            (2, Some((7, Some(3))), 2, 0, 10),
            (2, Some((7, None)), 0, 2999, 5),
            (2, Some((7, Some(3))), 4, 3000, 12),
            (2, Some((7, Some(3))), 4, 3001, 4),
            (2, Some((1, Some(0))), 2, 0, 2),
        ] {
            let mut standing = Standing { in_flight: in_flight_then, ..Standing::default() };
            if let Some((in_flight, waiting)) = told {
                standing.loaded(at(0), Load { in_flight, waiting });
            }
            standing.in_flight = in_flight_now;
            assert_eq!(standing.load(at(age_ms)), load, "{told:?} {age_ms} ms ago");
        }
    }

    #[test]
    fn one_that_is_full_looks_full_though_all_of_a_burst_is_on_its_way_to_it() {
        let mut standing = Standing { in_flight: 120, ..Standing::default() };
        standing.loaded_without_us(at(0), Load { in_flight: 256, waiting: None });
        standing.in_flight = 0;
        assert_eq!(standing.load(at(0)), 256);
    }

    #[test]
    fn first_tokens_count_in_doublings_and_only_lately() {
        for (samples_ms, age_ms, slowness) in [
            (&[][..], 0, 0),
            (&[49], 0, 0),
            (&[50], 0, 1),
            (&[120], 0, 2),
            (&[1600], 0, 6),
            (&[1600], 10_001, 0),
            (&[50, 450], 0, 3),
        ] {
            let mut standing = Standing::default();
            for ms in samples_ms {
                standing.first_token(at(0), Duration::from_millis(*ms));
            }
            assert_eq!(standing.slowness(at(age_ms)), slowness, "{samples_ms:?}");
        }
    }

    #[test]
    fn a_refusal_passes_it_over_for_a_second_and_no_longer_the_next_time() {
        let mut standing = Standing::default();
        for ms in [0, 1000, 2000] {
            assert_eq!(standing.gate(at(ms)), Gate::In);
            standing.refused(at(ms));
            assert_eq!(standing.gate(at(ms + 999)), Gate::Out { until: at(ms + 1000) });
        }
        standing.answered();
        assert_eq!(standing.gate(at(2001)), Gate::In);
    }
}
