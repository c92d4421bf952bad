//! How much of the traffic may be repeated: retries must not become the load that kills the next replica.
//!
//! Numbers and idea are Finagle's RetryBudget (20 % of the requests, 10 a second for a quiet service, over 10 s). Two
//! things differ here:
//! - An attempt that was refused without having been taken costs nothing: no engine did any work for it, and one
//!   request refuses itself at most once a round and replica, with growing pauses between rounds.
//! - A replica's death is one event. All that it had in flight fails in the same moment, and all of it must be
//!   repeated, be it hundreds. The first failure pays and opens an incident; requests that were *sent before* it are
//!   repeated for nothing, those sent to the same replica later knew better and pay, the first of them for all that
//!   were sent before it fails. That holds for two deaths in the window: one that breaks whatever it is given, be it many
//!   at once, soon pays for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::{Clock, Mono};

/// The share of requests that may be repeated, in percent. Finagle's default.
const RETRY_PERCENT: u64 = 20;

/// Retries a second that even a quiet edge has. Finagle's default.
const RETRY_FLOOR_PER_S: u64 = 10;

/// How far back requests and retries count, in seconds of one bucket each. Finagle's default.
const WINDOW_S: usize = 10;

/// Replicas with an incident that is remembered. A fleet loses fewer in 10 s, or is lost as a whole.
const INCIDENTS_MAX: usize = 1024;

/// One second's counts.
#[derive(Debug, Default, Clone, Copy)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

/// Deaths of one replica within the window that are taken for such. A machine does not come back a third time within 10 s;
/// one that fails more often than that only breaks what it is given.
const INCIDENTS_EACH: u32 = 2;

/// A replica's deaths of late.
#[derive(Debug, Clone, Copy)]
struct Incident {
    first_at: Mono,
    last_at: Mono,
    count: u32,
}

/// What was asked and repeated of late, without a clock.
#[derive(Debug, Default)]
struct Account {
    seconds: [Second; WINDOW_S],
    incidents: BTreeMap<NodeId, Incident>,
}

impl Account {
    fn request(&mut self, now: Mono) {
        self.second(now).requests += 1;
    }

    /// Whether the failure of what `replica` was sent at `sent_at` may be followed by another attempt.
    fn withdraw(&mut self, now: Mono, replica: &NodeId, sent_at: Mono) -> bool {
        let window = Duration::from_secs(WINDOW_S as u64);
        self.incidents.retain(|_, incident| now.since(incident.first_at) < window);
        if self.incidents.get(replica).is_some_and(|incident| sent_at <= incident.last_at) {
            return true;
        }
        if self.left(now) == 0 {
            return false;
        }
        self.second(now).retries += 1;
        if self.incidents.len() < INCIDENTS_MAX {
            let fresh = Incident { first_at: now, last_at: now, count: 0 };
            let incident = self.incidents.entry(replica.clone()).or_insert(fresh);
            if incident.count < INCIDENTS_EACH {
                (incident.last_at, incident.count) = (now, incident.count + 1);
            }
        }
        true
    }

    /// Retries that may still be paid now.
    fn left(&self, now: Mono) -> u64 {
        let current = second_of(now);
        let live = self.seconds.iter().filter(|second| second.number + WINDOW_S as u64 > current);
        let (requests, retries) = live.fold((0, 0), |(requests, retries), second| {
            (requests + second.requests, retries + second.retries)
        });
        let earned = RETRY_FLOOR_PER_S * WINDOW_S as u64 + requests * RETRY_PERCENT / 100;
        earned.saturating_sub(retries)
    }

    fn second(&mut self, now: Mono) -> &mut Second {
        let number = second_of(now);
        // The remainder is below WINDOW_S.
        let second = &mut self.seconds[usize::try_from(number % WINDOW_S as u64).unwrap_or(0)];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }
}

fn second_of(now: Mono) -> u64 {
    now.as_millis() / 1000
}

/// The budget of one edge. Clones share it.
#[derive(Debug, Clone)]
pub(in super::super) struct Budget {
    clock: Clock,
    account: Arc<Mutex<Account>>,
}

impl Budget {
    pub(in super::super) fn new(clock: Clock) -> Self {
        Self { clock, account: Arc::default() }
    }

    /// A request of a user came in.
    pub(in super::super) fn request(&self) {
        let now = self.clock.now();
        self.lock().request(now);
    }

    /// Whether what failed at `replica`, which had it since `sent_at`, may be tried elsewhere: a retry, or the
    /// continuation of a stream. Ask once for each failure that an engine may have worked for.
    pub(in super::super) fn withdraw(&self, replica: &NodeId, sent_at: Mono) -> bool {
        let now = self.clock.now();
        self.lock().withdraw(now, replica, sent_at)
    }

    /// Retries that may still be paid now.
    pub(in super::super) fn left(&self) -> u64 {
        let now = self.clock.now();
        self.lock().left(now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    /// How many of `count` failures of requests sent one by one are repeated, each at a replica of its own.
    fn paid(account: &mut Account, now_ms: u64, count: usize) -> usize {
        (0..count)
            .filter(|number| account.withdraw(at(now_ms), &node(&format!("n{number}-{now_ms}")), at(now_ms)))
            .count()
    }

    #[test]
    fn retries_are_a_share_of_the_traffic_of_late_above_a_floor() {
        for (requests, allowed) in [(0, 100), (4, 100), (100, 120), (5000, 1100)] {
            let mut account = Account::default();
            for _ in 0..requests {
                account.request(at(1_000));
            }
            assert_eq!(paid(&mut account, 5_000, 2000), allowed, "after {requests} requests");
            assert_eq!(paid(&mut account, 10_999, 5), 0);
            // The requests have left the window, the retries have not; then they do too.
            assert_eq!(paid(&mut account, 11_000, 5), 0);
            assert_eq!(paid(&mut account, 15_000, 2000), 100);
        }
    }

    #[test]
    fn all_that_a_dying_replica_had_is_repeated_though_it_is_far_more_than_the_budget() {
        let mut account = Account::default();
        let dead = node("dead");
        for number in 0..900 {
            assert!(account.withdraw(at(20_000 + number), &dead, at(10_000 + number)), "{number}");
        }
        assert_eq!(account.left(at(21_000)), 99, "one event, one retry");
        // Two more die in the same moment.
        for name in ["second", "third"] {
            assert!((0..300).all(|_| account.withdraw(at(21_000), &node(name), at(20_500))));
        }
        assert_eq!(account.left(at(21_000)), 97);
    }

    #[test]
    fn a_replica_that_dies_twice_within_the_window_pays_twice() {
        let mut account = Account::default();
        let dead = node("dead");
        for died_at in [20_000, 24_000] {
            assert!((0..200).all(|number| account.withdraw(at(died_at + number), &dead, at(died_at - 500))));
        }
        assert_eq!(account.left(at(24_500)), 98);
    }

    #[test]
    fn a_replica_that_breaks_all_it_is_given_pays_for_each_and_is_soon_not_repeated() {
        let mut account = Account::default();
        let bad = node("bad");
        // Each is sent after the failure before it, 20 a second.
        let repeated =
            (1..=400).filter(|number| account.withdraw(at(number * 50), &bad, at(number * 50 - 10)));
        let repeated = repeated.count();
        assert!((200..=220).contains(&repeated), "{repeated} of 400 within 20 s at a floor of 10 a second");
    }
}
