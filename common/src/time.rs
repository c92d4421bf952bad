//! Time. This is the only file of the project that reads a clock.
//!
//! A core is handed a [`Mono`]; a shell asks a [`Clock`] for one. The zero of a `Mono` is the start of the
//! process (or of the simulation), so a `Mono` means nothing to another process and is never sent to one.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment on one process's own monotonic line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(Duration);

impl Mono {
    pub const ZERO: Self = Self(Duration::ZERO);

    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

/// Reads the machine's clocks. One a process, copied freely.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose zero is now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    #[must_use]
    pub fn now(&self) -> Mono {
        Mono(self.origin.elapsed())
    }

    /// The instant to wait for so that [`Clock::now`] has reached `moment`.
    #[must_use]
    pub fn instant(&self, moment: Mono) -> Instant {
        self.origin + moment.0
    }

    /// Milliseconds since 1970, for people and for certificates; never compared with another machine's.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        unix_ms()
    }
}

/// Milliseconds since 1970 by this machine's wall clock, 0 before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|span| u64::try_from(span.as_millis()).ok())
        .unwrap_or(0)
}

/// How long this machine has been up, sleep included; `None` where there is no `/proc`.
#[must_use]
pub fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// The UTC calendar date of `unix_ms` as `YYYYMMDD`.
///
/// Civil-from-days after Howard Hinnant's public-domain derivation.
#[must_use]
pub fn utc_date(unix_ms: u64) -> String {
    let (year, month, day) = civil(unix_ms / 86_400_000);
    format!("{year:04}{month:02}{day:02}")
}

/// `unix_ms` as `YYYY-MM-DDTHH:MM:SS.mmmZ`.
#[must_use]
pub fn utc_text(unix_ms: u64) -> String {
    let (year, month, day) = civil(unix_ms / 86_400_000);
    let ms = unix_ms % 86_400_000;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

fn civil(days_since_1970: u64) -> (u64, u64, u64) {
    let z = days_since_1970 + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_never_runs_backwards() {
        let (early, late) = (Mono::from_millis(5), Mono::from_millis(9));
        assert_eq!(late.since(early), Duration::from_millis(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(1), Mono::ZERO);
    }

    #[test]
    fn dates_follow_the_calendar() {
        for (ms, date) in [
            (0, "19700101"),
            (951_782_400_000, "20000229"),
            (1_709_164_800_000, "20240229"),
            (1_795_478_400_000, "20261124"),
        ] {
            assert_eq!(utc_date(ms), date);
        }
        assert_eq!(utc_text(951_782_401_042), "2000-02-29T00:00:01.042Z");
    }
}
