//! The moments that clouds name, and how far away they are.

use std::time::Duration;

use cic_common::time::{Mono, unix_ms};
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

/// Milliseconds since 1970 of `2017-09-18T08:22:00Z` (AWS), `Mon, 19 Sep 2016 18:29:47 GMT` (Azure, HTTP) or
/// `21 Jan 2019 09:00:43 GMT` (AWS's scheduled events).
pub(super) fn unix_ms_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let moment =
        OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(text, &Rfc2822)).ok()?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok()
}

/// When `moment_unix_ms` is, on this process's line. `said_unix_ms` is the clock of who named it, where that is known; else
/// the VM's own is trusted. A moment that has passed is now, and one beyond `most` is taken for a clock that is wrong.
pub(super) fn deadline(now: Mono, said_unix_ms: Option<u64>, moment_unix_ms: u64, most: Duration) -> Mono {
    let clock = said_unix_ms.unwrap_or_else(unix_ms);
    now + Duration::from_millis(moment_unix_ms.saturating_sub(clock)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_every_cloud_are_read() {
        for (text, expected) in [
            ("2017-09-18T08:22:00Z", Some(1_505_722_920_000)),
            ("2017-09-18T10:22:00+02:00", Some(1_505_722_920_000)),
            ("Mon, 19 Sep 2016 18:29:47 GMT", Some(1_474_309_787_000)),
            ("21 Jan 2019 09:00:43 GMT", Some(1_548_061_243_000)),
            (" 21 Jan 2019 09:00:43 GMT\n", Some(1_548_061_243_000)),
            ("2017-09-18", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(unix_ms_of(text), expected, "{text}");
        }
    }

    #[test]
    fn a_deadline_counts_from_the_clock_of_who_named_it() {
        let now = Mono::from_millis(1_000);
        let most = Duration::from_secs(120);
        for (said, moment, expected) in
            [(1_000_000, 1_030_000, 31_000), (1_000_000, 999_000, 1_000), (1_000_000, 9_000_000, 121_000)]
        {
            assert_eq!(deadline(now, Some(said), moment, most), Mono::from_millis(expected));
        }
    }
}
