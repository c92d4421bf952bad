//! Spans of time as people read and type them.

use std::time::Duration;

/// `850 ms`, `12 s`, `3 min 05 s`, `2 h 07 min`, `4 d 3 h`.
pub(super) fn text(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.as_millis()),
        1..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Reads `30s`, `500ms`, `2m`, `1h`, or a bare number of seconds.
///
/// # Errors
/// Names what was found in place of a span.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a span such as 30s, 500ms or 2m, found {text:?}");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
    let ms_each = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms_each).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_shown_in_its_two_largest_units() {
        for (ms, shown) in [
            (0, "0 ms"),
            (850, "850 ms"),
            (12_900, "12 s"),
            (185_000, "3 min 05 s"),
            (7_620_000, "2 h 07 min"),
            (356_400_000, "4 d 3 h"),
        ] {
            assert_eq!(text(Duration::from_millis(ms)), shown);
        }
    }

    #[test]
    fn a_span_is_read_with_its_unit() {
        for (typed, ms) in [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("7", 7000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(typed), Ok(Duration::from_millis(ms)), "{typed}");
        }
        for wrong in ["", "s", "-3s", "3 days", "1.5s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
