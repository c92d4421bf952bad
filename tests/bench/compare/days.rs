//! Months of healthy links: nothing but loss and short outages, played from gap to gap.
//!
//! Heartbeats that arrive one after the other change no rule's mind, so a run of them is one step here; every missing one
//! is played. A second without any network comes about once a node-day, as on rented machines, and a longer one once in a
//! hundred.

use std::time::Duration;

use cic_common::time::Mono;
use cic_controller::core::{Rhythm, Timing};
use fleet_tests::world::rng::Rng;

use super::phi::Phi;

/// Node-days of links that lose this share.
pub(super) const LINKS: [(f64, u32); 4] = [(0.0001, 900_000), (0.01, 100_000), (0.05, 10_000), (0.2, 2_000)];

const DAY_S: f64 = 86_400.0;

/// Outages a node-day, and how long they last in the mean.
const SHORT: (f64, f64) = (1.0, 1.0);
const LONG: (f64, f64) = (0.01, 20.0);

/// What the rules did to healthy nodes.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) days: f64,
    /// Taken out of service.
    pub(super) out: [u64; RULES],
    /// Another was ordered in its place.
    pub(super) replaced: [u64; RULES],
    /// Its VM was given back, while it was cut off from everybody.
    pub(super) given_back: [u64; RULES],
    /// Urgent polls of ours.
    pub(super) polls: u64,
}

pub(super) const RULES: usize = 5;

/// Ours, Kubernetes, Nomad, phi, SWIM: the order of the report's columns.
const OURS: usize = 0;
const KUBERNETES: usize = 1;
const NOMAD: usize = 2;
const PHI: usize = 3;
const SWIM: usize = 4;

/// Plays `days` node-days of one link.
pub(super) fn play(seed: u64, loss: f64, days: u32) -> Tally {
    let mut link =
        Link { rng: Rng::new(seed), loss, rhythm: Rhythm::default(), phi: Phi::default(), now_s: 0.0 };
    let mut tally = Tally { days: days.into(), ..Tally::default() };
    let end = f64::from(days) * DAY_S;
    let mut short = link.wait(SHORT.0);
    let mut long = link.wait(LONG.0);
    while link.now_s < end {
        // Heartbeats until the next that is lost.
        let run = (link.unit().ln() / (-loss).ln_1p()).floor().max(0.0);
        let outage = short.min(long);
        if link.now_s + run + 1.0 >= outage {
            link.calm((outage - link.now_s - 1.0).max(0.0));
            let span = if short <= long {
                short += link.wait(SHORT.0);
                link.exponential(SHORT.1)
            } else {
                long += link.wait(LONG.0);
                link.exponential(LONG.1)
            };
            link.outage(span, &mut tally);
            // One that began during the last is part of it.
            while short <= link.now_s {
                short += link.wait(SHORT.0);
            }
            while long <= link.now_s {
                long += link.wait(LONG.0);
            }
        } else {
            link.calm(run);
            link.gap(0.0, &mut tally);
        }
    }
    tally
}

struct Link {
    rng: Rng,
    loss: f64,
    rhythm: Rhythm,
    phi: Phi,
    now_s: f64,
}

impl Link {
    fn unit(&mut self) -> f64 {
        (self.rng.range(1, 1 << 53)) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }

    /// Until the next of as many a day.
    fn wait(&mut self, per_day: f64) -> f64 {
        self.exponential(DAY_S / per_day)
    }

    fn mono(&self) -> Mono {
        Mono::ZERO + Duration::from_secs_f64(self.now_s)
    }

    fn calm(&mut self, beats: f64) {
        let beats = beats.floor();
        if beats >= 1.0 {
            self.now_s += beats;
            self.rhythm.heard_steadily(self.mono(), beats as f32);
            self.phi.calm(beats);
        }
    }

    /// An outage of both paths that begins at a moment between two heartbeats.
    fn outage(&mut self, span_s: f64, tally: &mut Tally) {
        let into = self.unit();
        if into + span_s < 1.0 {
            // Between two heartbeats: nobody sees it.
            return self.calm(1.0);
        }
        self.gap(into + span_s - 1.0, tally);
        let long = |limit_s: f64| span_s > limit_s;
        let (ttl, phase) = (10.0 + 10.0 * self.unit(), self.unit());
        // A lease renewed each 10 s is 50 s old when the outage has lasted 40 to 50 s; nobody is evicted before 350 s.
        tally.out[KUBERNETES] += u64::from(long(50.0 - 10.0 * phase));
        tally.given_back[KUBERNETES] += u64::from(long(350.0 - 10.0 * phase));
        tally.replaced[KUBERNETES] += u64::from(long(350.0 - 10.0 * phase));
        let is_down = long(ttl + 10.0 - ttl * 0.5 * phase);
        tally.out[NOMAD] += u64::from(is_down);
        tally.replaced[NOMAD] += u64::from(is_down);
        tally.given_back[NOMAD] += u64::from(is_down);
        // A probe fails within a second or two; then the suspicion's least timeout of eight members.
        let is_failed = long(1.0 + phase + super::swim::timeout(8, 2.0).as_secs_f64());
        tally.out[SWIM] += u64::from(is_failed);
        tally.replaced[SWIM] += u64::from(is_failed);
        tally.given_back[SWIM] += u64::from(is_failed);
    }

    /// At least one heartbeat is lost, all of those within `blocked_s` of it, and each further one by chance.
    fn gap(&mut self, blocked_s: f64, tally: &mut Tally) {
        let mut missed = 1.0 + blocked_s.floor();
        while self.rng.chance(self.loss) {
            missed += 1.0;
        }
        let silence_s = missed + 1.0;
        let suspect_s = self.rhythm.suspect_after(&Timing::default()).as_secs_f64();
        if silence_s > suspect_s {
            tally.polls += 1;
            let within_s = self.rhythm.confirm_within(Duration::from_millis(5)).as_secs_f64();
            let ends_s = if blocked_s > 0.0 { blocked_s + 1.0 } else { 0.0 };
            let is_heard = silence_s <= suspect_s + within_s || self.answers(suspect_s, within_s, ends_s);
            tally.out[OURS] += u64::from(!is_heard);
            // Silent until an answer comes; each later poll and heartbeat is one more chance. The old one goes when the
            // new one serves.
            let ordered_s = suspect_s + within_s + Timing::default().partition_grace.as_secs_f64();
            let serves_s = ordered_s + super::ours::LAUNCH.as_secs_f64();
            tally.replaced[OURS] += u64::from(!is_heard && blocked_s > ordered_s);
            tally.given_back[OURS] += u64::from(!is_heard && blocked_s > serves_s);
        }
        let is_phi = silence_s > self.phi.down_after().as_secs_f64();
        tally.out[PHI] += u64::from(is_phi);
        tally.replaced[PHI] += u64::from(is_phi);
        tally.given_back[PHI] += u64::from(is_phi);
        self.now_s += silence_s;
        self.rhythm.heard(self.mono(), &Timing::default());
        self.phi.heard(silence_s);
    }

    /// Whether a poll or a prod is answered in the time that it is given, on a link that is back after `ends_s`.
    fn answers(&mut self, from_s: f64, within_s: f64, ends_s: f64) -> bool {
        let until = from_s + within_s;
        let mut prod = from_s;
        while prod < until {
            // Asked again after a probe timeout or more, so that the way there costs time; one datagram comes back.
            if prod >= ends_s && !self.rng.chance(self.loss) && !self.rng.chance(self.loss) {
                return true;
            }
            prod += 0.4;
        }
        self.poll(from_s, until, ends_s) || self.poll(from_s + within_s / 3.0, until, ends_s)
    }

    fn poll(&mut self, from_s: f64, until_s: f64, ends_s: f64) -> bool {
        let mut at = from_s;
        for first_timeout in [1.0, 0.2, 0.2] {
            let mut timeout = first_timeout;
            loop {
                if at >= until_s {
                    return false;
                }
                let passes = at >= ends_s && !self.rng.chance(self.loss) && !self.rng.chance(self.loss);
                if passes {
                    at += 0.006;
                    break;
                }
                at += timeout;
                timeout *= 2.0;
            }
        }
        at <= until_s
    }
}
