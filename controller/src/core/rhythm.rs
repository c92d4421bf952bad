//! What one push path is like, and how long its silence must last to mean something.
//!
//! Learned from the heartbeats themselves: how many are lost and how late they come. A calm link is suspected once two
//! heartbeats are missing; one that loses a fifth of them is suspected no later, since that only fires a poll, but the
//! poll is given longer, because its packets are lost too (decision 0024).

use std::time::Duration;

use cic_common::time::Mono;

use super::timing::Timing;

/// Heartbeats that must be missing. One is lost once in 100 s at 1 %: a poll for each would say nothing new.
const MISSED: u32 = 2;

/// Share of a new gap in the learned loss: a half-life of 89 heartbeats. Twice as quick, a link that loses 1 % would be
/// taken for one that loses 4 % each few hours, for two losses close together.
const LOSS_GAIN: f32 = 1.0 / 128.0;

/// Gain of the mean deviation, as Jacobson's for round trips (SIGCOMM 1988).
const LATE_GAIN: f32 = 1.0 / 4.0;

/// Deviations that a heartbeat may come late, as TCP's retransmission timer allows (RFC 6298).
const DEVIATIONS: f32 = 4.0;

/// Least allowance: a scheduler's delay at the agent, one batch of the ingest and one tick.
const ALLOWANCE_MIN: Duration = Duration::from_millis(150);

/// Most allowance: with two missed heartbeats it makes the 3 s of the design table.
const ALLOWANCE_MAX: Duration = Duration::from_secs(1);

/// Heartbeats that one gap may count as lost; a longer one is an outage and says nothing of loss.
const GAP_MAX: u32 = 8;

/// What a poll of a node on a calm link is given: two fresh connections of three round trips each between neighbouring
/// regions, and the retransmission of a packet after the first (200 ms).
const CONFIRM_CALM: Duration = Duration::from_millis(700);

/// On a link that loses more than this, the first retransmission of an opening packet (1 s, RFC 6298) must fit…
const LOSS_SOME: f32 = 0.04;
const CONFIRM_SOME: Duration = Duration::from_millis(1500);

/// …and above this two of them, on both of the poll's connections.
const LOSS_MUCH: f32 = 0.1;
const CONFIRM_MUCH: Duration = Duration::from_millis(3400);

/// Round trips of a fresh connection: TCP, TLS 1.3, the request; and as much again for their spread.
const TRIPS: u32 = 6;

/// One push path's loss and lateness.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Rhythm {
    last_at: Option<Mono>,
    /// Share of the heartbeats that did not come, 0.0 to 1.0.
    loss: f32,
    /// Mean deviation of their arrival, in seconds.
    late_s: f32,
}

impl Rhythm {
    /// A heartbeat arrived. One that was sent between two regular ones, such as the answer to a challenge, is not
    /// learned from.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn heard(&mut self, now: Mono, timing: &Timing) {
        let gap = self.last_at.replace(now).map(|last| now.since(last).as_secs_f32());
        let interval = timing.heartbeat.as_secs_f32();
        let Some(gap) = gap.filter(|gap| *gap >= interval / 2.0) else { return };
        let beats = (gap / interval).round();
        if beats > GAP_MAX as f32 {
            return;
        }
        let late_s = (gap - beats * interval).abs();
        self.late_s += LATE_GAIN * (late_s - self.late_s);
        // Multiplied out, so that a recording is decided alike on every machine; a gap is bounded above.
        let kept = (0..beats as u32).fold(1.0_f32, |kept, _| kept * (1.0 - LOSS_GAIN));
        let missed = beats - 1.0;
        self.loss = (self.loss * kept + missed / beats * (1.0 - kept)).clamp(0.0, 1.0);
    }

    /// As many heartbeats came one after the other, the last of them now: the same as to hear each, in one step.
    pub fn heard_steadily(&mut self, now: Mono, beats: f32) {
        self.loss *= (1.0 - LOSS_GAIN).powf(beats);
        self.late_s *= (1.0 - LATE_GAIN).powf(beats);
        self.last_at = Some(now);
    }

    /// The silence before it means nothing: the path begins anew, with what was learned.
    pub fn begin_anew(&mut self) {
        self.last_at = None;
    }

    /// Share of the heartbeats that are lost, 0.0 to 1.0.
    #[must_use]
    pub fn loss(&self) -> f32 {
        self.loss
    }

    /// The silence after which the path is suspected.
    #[must_use]
    pub fn suspect_after(&self, timing: &Timing) -> Duration {
        let allowance = Duration::from_secs_f32(DEVIATIONS * self.late_s);
        (timing.heartbeat * MISSED + allowance.clamp(ALLOWANCE_MIN, ALLOWANCE_MAX)).min(timing.push_fresh)
    }

    /// What the poll that is to confirm a suspicion is given, with a round trip of `trip` to the node.
    #[must_use]
    pub fn confirm_within(&self, trip: Duration) -> Duration {
        let least = if self.loss > LOSS_MUCH {
            CONFIRM_MUCH
        } else if self.loss > LOSS_SOME {
            CONFIRM_SOME
        } else {
            CONFIRM_CALM
        };
        least.max((trip * TRIPS).min(CONFIRM_MUCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rhythm after these arrivals, in milliseconds.
    fn after(arrivals: impl IntoIterator<Item = u64>) -> Rhythm {
        let mut rhythm = Rhythm::default();
        for at in arrivals {
            rhythm.heard(Mono::from_millis(at), &Timing::default());
        }
        rhythm
    }

    fn suspected_ms(rhythm: &Rhythm) -> u128 {
        rhythm.suspect_after(&Timing::default()).as_millis()
    }

    #[test]
    fn a_calm_link_is_suspected_once_two_heartbeats_are_missing() {
        assert_eq!(suspected_ms(&after([])), 2150);
        assert_eq!(suspected_ms(&after((0..600).map(|n| n * 1000 + n % 7))), 2150);
    }

    #[test]
    fn a_late_link_is_given_as_much_longer_up_to_a_second() {
        let late = |ms: u64| after((0..600).map(|n| n * 1000 + (n % 2) * ms));
        assert_eq!(suspected_ms(&late(100)), 2400);
        assert_eq!(suspected_ms(&late(400)), 3000);
    }

    #[test]
    fn loss_is_learned_from_the_gaps_and_forgotten_when_they_end() {
        let lossy = after((0..2000).filter(|n| n % 5 != 0).map(|n| n * 1000));
        assert!((lossy.loss() - 0.2).abs() < 0.03, "{}", lossy.loss());
        let mut rhythm = lossy;
        for n in 2001..2600 {
            rhythm.heard(Mono::from_millis(n * 1000), &Timing::default());
        }
        assert!(rhythm.loss() < 0.01, "{}", rhythm.loss());
    }

    #[test]
    fn a_steady_run_in_one_step_is_the_same_as_beat_by_beat() {
        let lossy = after((0..500).filter(|n| n % 5 != 0).map(|n| n * 1000));
        let (mut one, mut many) = (lossy, lossy);
        for n in 500..560 {
            many.heard(Mono::from_millis(n * 1000), &Timing::default());
        }
        one.heard_steadily(Mono::from_millis(559_000), 60.0);
        assert!((one.loss() - many.loss()).abs() < 1e-4, "{} {}", one.loss(), many.loss());
        assert_eq!(suspected_ms(&one), suspected_ms(&many));
    }

    #[test]
    fn an_outage_and_an_answer_between_two_beats_teach_nothing() {
        let calm = after((0..100).map(|n| n * 1000));
        let mut cut = calm;
        cut.heard(Mono::from_millis(99_000 + 60_000), &Timing::default());
        assert!((cut.loss() - calm.loss()).abs() < f32::EPSILON);
        let mut asked = calm;
        asked.heard(Mono::from_millis(99_300), &Timing::default());
        assert!((asked.late_s - calm.late_s).abs() < f32::EPSILON);
    }

    #[test]
    fn a_poll_is_given_longer_the_more_is_lost_and_the_farther_the_node_is() {
        let lossy = |every: u64| after((0..4000).filter(|n| n % every != 0).map(|n| n * 1000));
        let near = Duration::from_millis(2);
        let within = |rhythm: Rhythm, trip| rhythm.confirm_within(trip);
        assert_eq!(within(after([]), near), CONFIRM_CALM);
        assert_eq!(within(lossy(100), near), CONFIRM_CALM);
        assert_eq!(within(lossy(15), near), CONFIRM_SOME);
        assert_eq!(within(lossy(5), near), CONFIRM_MUCH);
        assert_eq!(within(after([]), Duration::from_millis(250)), CONFIRM_SOME);
        assert_eq!(within(after([]), Duration::from_secs(9)), CONFIRM_MUCH);
    }
}
