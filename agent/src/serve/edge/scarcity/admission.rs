//! Who may go to this node's own engine now, who stands in line for it, and who is turned away.
//!
//! vLLM takes all it is sent and serves it first come, first served, so that behind its queue every class waits alike.
//! Here the requests at the engine are bounded instead, and a class may fill a share of the bound: what is kept free
//! of batch work is there when a person asks. Requests of this node's users that find no room stand in a line by
//! class, then by arrival; whoever is first in it gets the place that becomes free, before anyone can overtake. A
//! peer's request never stands here: it is refused at once, since its own edge knows of other replicas.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::route::Class;
use cic_common::time::{Clock, Mono};
use tokio::sync::oneshot;

use super::super::answer::{RETRY_AFTER_MAX, RETRY_AFTER_MIN, RETRY_AFTER_UNSAID};

/// Requests that stand in line, or look elsewhere and keep their place in it. Each holds its body, most of them a few KiB; longer lines only make everyone
/// in them late: at 256 places and 2 s of patience an engine would have to finish 128 requests a second.
const LINE_MAX: u32 = 256;

/// Places that became free lately and are remembered for their pace. The newest 64 of a busy engine span seconds.
const FREED_MAX: usize = 64;

/// A pace older than this says nothing of the next place.
const PACE_FRESH: Duration = Duration::from_secs(60);

/// How much of the own engine may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Requests at the engine at once. vLLM runs 256 (`--max-num-seqs`) and queues the others blindly.
    pub in_flight_max: u32,
    /// Of them, those that the engine itself said wait when it was last probed: it is short of cache then, or runs
    /// fewer than `in_flight_max`. Half of what vLLM runs, since a burst waits for its first steps without harm.
    pub queue_max: u32,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { in_flight_max: 256, queue_max: 128 }
    }
}

/// What a class may fill of a bound; at least one place, so that a bound of one still serves everybody.
///
/// A tenth is kept for those who wait for each token, three tenths from batch work: batch is shed first.
pub(super) fn share(most: u32, class: Class) -> u32 {
    let percent = match class {
        Class::LatencyCritical => 100,
        Class::Standard => 90,
        Class::Batch => 70,
    };
    let share = u64::from(most) * percent / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

/// A place in line. Ordered by class, then by arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    class: Class,
    number: u64,
}

/// The count itself, without clock or wake-ups.
#[derive(Debug)]
struct Ledger {
    limits: AdmissionLimits,
    in_flight: u32,
    engine_waiting: u32,
    line: BTreeSet<Place>,
    /// Those who look elsewhere.
    aside: BTreeSet<Place>,
    places: u64,
    freed: VecDeque<Mono>,
}

impl Ledger {
    fn new(limits: AdmissionLimits) -> Self {
        let (line, aside, freed) = (BTreeSet::new(), BTreeSet::new(), VecDeque::new());
        Self { limits, in_flight: 0, engine_waiting: 0, line, aside, places: 0, freed }
    }

    fn has_room(&self, class: Class) -> bool {
        // All the engine has came through here: what has ended since the probe does not wait any more.
        let waiting = self.engine_waiting.min(self.in_flight);
        self.in_flight < share(self.limits.in_flight_max, class)
            && waiting < share(self.limits.queue_max, class)
    }

    /// Takes a place at the engine. Nobody is overtaken: where there is room for `class`, there was room for all who
    /// stand in line before it, and they were let in.
    fn enter(&mut self, class: Class) -> bool {
        let has_room = self.has_room(class);
        self.in_flight += u32::from(has_room);
        has_room
    }

    /// Takes a place in line; `None` when the line is full for that class.
    fn stand(&mut self, class: Class) -> Option<Place> {
        let length = u32::try_from(self.line.len() + self.aside.len()).unwrap_or(u32::MAX);
        (length < share(LINE_MAX, class)).then(|| {
            self.places += 1;
            let place = Place { class, number: self.places };
            self.line.insert(place);
            place
        })
    }

    fn release(&mut self, now: Mono) -> Vec<Place> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.freed.len() >= FREED_MAX {
            self.freed.pop_front();
        }
        self.freed.push_back(now);
        self.let_in()
    }

    fn probed(&mut self, engine_waiting: u32) -> Vec<Place> {
        self.engine_waiting = engine_waiting;
        self.let_in()
    }

    /// Those of the line for whom there is room now; their places at the engine are taken.
    fn let_in(&mut self) -> Vec<Place> {
        let mut admitted = Vec::new();
        while let Some(place) = self.line.first().copied()
            && self.enter(place.class)
        {
            self.line.remove(&place);
            admitted.push(place);
        }
        admitted
    }

    /// After how long a place for one who comes now should be free, by the pace of late.
    fn retry_after(&self, now: Mono) -> Duration {
        let fresh = self.freed.iter().filter(|at| now.since(**at) <= PACE_FRESH);
        let (count, oldest) = fresh.fold((0u32, now), |(count, oldest), at| (count + 1, oldest.min(*at)));
        if count == 0 {
            return RETRY_AFTER_UNSAID;
        }
        let ahead = u32::try_from(self.line.len()).unwrap_or(u32::MAX).saturating_add(1);
        let each = now.since(oldest) / count;
        each.saturating_mul(ahead).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

/// The gate before the own engine. Clones share it.
#[derive(Debug, Clone)]
pub(in super::super) struct Admission {
    clock: Clock,
    gate: Arc<Mutex<Gate>>,
}

#[derive(Debug)]
struct Gate {
    ledger: Ledger,
    callers: BTreeMap<Place, oneshot::Sender<Slot>>,
}

/// A place at the engine, free again when dropped.
#[derive(Debug)]
pub(in super::super) struct Slot {
    admission: Admission,
}

/// A place in line, given up when dropped.
#[derive(Debug)]
pub(in super::super) struct InLine {
    admission: Admission,
    place: Place,
    called: oneshot::Receiver<Slot>,
}

impl Admission {
    pub(in super::super) fn new(clock: Clock, limits: AdmissionLimits) -> Self {
        let gate = Gate { ledger: Ledger::new(limits), callers: BTreeMap::new() };
        Self { clock, gate: Arc::new(Mutex::new(gate)) }
    }

    /// A place at the engine now, or none.
    pub(in super::super) fn enter(&self, class: Class) -> Option<Slot> {
        let has_entered = self.lock().ledger.enter(class);
        has_entered.then(|| Slot { admission: self.clone() })
    }

    /// A place in line, or none when that is full too.
    pub(in super::super) fn stand(&self, class: Class) -> Option<InLine> {
        let (caller, called) = oneshot::channel();
        let mut gate = self.lock();
        let place = gate.ledger.stand(class)?;
        gate.callers.insert(place, caller);
        // A place may have become free since it was refused one.
        let admitted = gate.ledger.let_in();
        self.call(gate, &admitted);
        Some(InLine { admission: self.clone(), place, called })
    }

    /// What the engine said waits in its own queue.
    pub(in super::super) fn probed(&self, engine_waiting: u64) {
        let waiting = u32::try_from(engine_waiting).unwrap_or(u32::MAX);
        let mut gate = self.lock();
        let admitted = gate.ledger.probed(waiting);
        self.call(gate, &admitted);
    }

    fn rejoin(&self, place: Place) {
        let mut gate = self.lock();
        if gate.ledger.aside.remove(&place) {
            gate.ledger.line.insert(place);
        }
        let admitted = gate.ledger.let_in();
        self.call(gate, &admitted);
    }

    /// When one who is turned away may come again.
    pub(in super::super) fn retry_after(&self) -> Duration {
        self.lock().ledger.retry_after(self.clock.now())
    }

    /// Requests at the engine and in line.
    pub(in super::super) fn occupancy(&self) -> (u32, usize) {
        let gate = self.lock();
        (gate.ledger.in_flight, gate.ledger.line.len())
    }

    fn release(&self) {
        let mut gate = self.lock();
        let admitted = gate.ledger.release(self.clock.now());
        self.call(gate, &admitted);
    }

    /// Gives their places to those who were let in. One who has left gives it back by dropping it.
    fn call(&self, mut gate: std::sync::MutexGuard<'_, Gate>, admitted: &[Place]) {
        let callers: Vec<_> = admitted.iter().map(|place| gate.callers.remove(place)).collect();
        // A place that is given back takes the lock anew.
        drop(gate);
        for caller in callers {
            let slot = Slot { admission: self.clone() };
            match caller {
                Some(caller) => drop(caller.send(slot)),
                None => drop(slot),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InLine {
    /// Leaves the line while another replica is tried: a place at the engine must not lie idle meanwhile. One that was
    /// given already is returned.
    pub(in super::super) fn step_aside(&mut self) -> Option<Slot> {
        let mut gate = self.admission.lock();
        if gate.ledger.line.remove(&self.place) {
            gate.ledger.aside.insert(self.place);
        }
        drop(gate);
        self.called.try_recv().ok()
    }

    /// Goes back to its place in line, which was kept.
    pub(in super::super) fn rejoin(&self) {
        self.admission.rejoin(self.place);
    }

    /// Resolves with the place at the engine. Cancel safe: a place that was given is kept until it is taken.
    pub(in super::super) async fn called(&mut self) -> Slot {
        match (&mut self.called).await {
            Ok(slot) => slot,
            // Taken before, or the gate is gone.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.release();
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let mut gate = self.admission.lock();
        gate.ledger.line.remove(&self.place);
        gate.ledger.aside.remove(&self.place);
        gate.callers.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use Class::{Batch, LatencyCritical, Standard};

    use super::*;

    fn ledger(in_flight_max: u32, queue_max: u32) -> Ledger {
        Ledger::new(AdmissionLimits { in_flight_max, queue_max })
    }

    #[test]
    fn a_class_fills_its_share_of_the_engine_and_batch_is_turned_away_first() {
        for (most, batch, standard, latency_critical) in
            [(256, 179, 230, 256), (100, 70, 90, 100), (10, 7, 9, 10), (2, 1, 1, 2), (1, 1, 1, 1)]
        {
            let mut ledger = ledger(most, 1000);
            for (class, limit) in [(Batch, batch), (Standard, standard), (LatencyCritical, latency_critical)]
            {
                while ledger.enter(class) {}
                assert_eq!(ledger.in_flight, limit, "{class:?} of {most}");
            }
        }
    }

    #[test]
    fn what_waits_in_the_engine_turns_away_too_and_never_counts_for_more_than_is_there() {
        for (in_flight, waiting, batch, standard, latency_critical) in [
            (20, 0, true, true, true),
            (20, 7, false, true, true),
            (20, 9, false, false, true),
            (20, 10, false, false, false),
            // An old figure does not hold the gate of an engine that has nothing left.
            (0, 10, true, true, true),
        ] {
            let mut ledger = ledger(100, 10);
            ledger.in_flight = in_flight;
            ledger.probed(waiting);
            let room = [Batch, Standard, LatencyCritical].map(|class| ledger.has_room(class));
            assert_eq!(room, [batch, standard, latency_critical], "{in_flight} with {waiting} waiting");
        }
    }

    #[test]
    fn a_free_place_goes_to_the_best_class_and_within_it_to_who_came_first() {
        let mut ledger = ledger(1, 10);
        assert!(ledger.enter(Standard));
        let order: Vec<Place> =
            [Batch, Standard, Standard, LatencyCritical].map(|class| ledger.stand(class).unwrap()).into();
        let mut let_in = Vec::new();
        for at in 0..4 {
            let_in.extend(ledger.release(Mono::from_millis(at)));
            assert!(!ledger.enter(LatencyCritical), "the place was given to the line");
        }
        assert_eq!(let_in, [order[3], order[1], order[2], order[0]]);
    }

    #[test]
    fn the_line_is_bounded_and_batch_cannot_fill_it() {
        let mut ledger = ledger(1, 10);
        for (class, length) in [(Batch, 179), (Standard, 230), (LatencyCritical, 256)] {
            while ledger.stand(class).is_some() {}
            assert_eq!(ledger.line.len(), length, "{class:?}");
        }
    }

    #[test]
    fn the_pace_of_late_says_when_to_come_again_within_bounds() {
        let s = |s: u64| Mono::from_millis(s * 1000);
        for (freed_s, in_line, now_s, expected_s) in [
            (&[][..], 0, 100, 5),
            (&[98, 99, 100], 0, 101, 1),
            (&[91, 94, 97], 0, 100, 3),
            (&[91, 94, 97], 3, 100, 12),
            (&[91, 94, 97], 200, 100, 30),
            (&[1, 2, 3], 0, 100, 5),
        ] {
            let mut ledger = ledger(1, 10);
            ledger.in_flight = 10;
            for at in freed_s {
                ledger.release(s(*at));
            }
            for _ in 0..in_line {
                ledger.stand(LatencyCritical);
            }
            assert_eq!(ledger.retry_after(s(now_s)).as_secs(), expected_s, "{freed_s:?}, {in_line} in line");
        }
    }

    #[tokio::test]
    async fn a_place_is_counted_until_it_is_dropped_and_given_on_when_its_taker_has_left() {
        let limits = AdmissionLimits { in_flight_max: 1, queue_max: 10 };
        let admission = Admission::new(Clock::start(), limits);
        let slot = admission.enter(Standard).unwrap();
        assert!(admission.enter(LatencyCritical).is_none());
        let (leaves, mut stays) = (admission.stand(Standard).unwrap(), admission.stand(Standard).unwrap());
        assert_eq!(admission.occupancy(), (1, 2));
        // One who looks elsewhere is not called, and finds its place again.
        assert!(stays.step_aside().is_none());
        assert_eq!(admission.occupancy(), (1, 1));
        stays.rejoin();
        // Called while it leaves: the place must not be lost.
        drop(slot);
        drop(leaves);
        let slot = tokio::time::timeout(Duration::from_secs(5), stays.called()).await.unwrap();
        assert_eq!(admission.occupancy(), (1, 0));
        drop(slot);
        assert_eq!(admission.occupancy(), (0, 0));
    }

    #[tokio::test]
    async fn who_looked_elsewhere_finds_its_place_again_though_the_line_has_filled_behind_it() {
        let limits = AdmissionLimits { in_flight_max: 1, queue_max: 10 };
        let admission = Admission::new(Clock::start(), limits);
        let slot = admission.enter(Standard).unwrap();
        let mut first = admission.stand(Standard).unwrap();
        assert!(first.step_aside().is_none());
        let others: Vec<_> = std::iter::from_fn(|| admission.stand(Standard)).collect();
        assert_eq!(others.len() + 1, share(LINE_MAX, Standard) as usize, "its place is kept");
        first.rejoin();
        drop(slot);
        drop(tokio::time::timeout(Duration::from_secs(5), first.called()).await.unwrap());
    }
}
