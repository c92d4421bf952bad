//! The controller's `/metrics`, and what happened between two looks at it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use fleet_tests::process::request;

/// A page of ten thousand nodes has several MiB.
const PAGE_WITHIN: Duration = Duration::from_secs(20);

/// One page: each row's name with its labels, and its value.
#[derive(Debug, Default)]
pub(super) struct Page {
    rows: BTreeMap<String, f64>,
}

impl Page {
    pub(super) fn read(api: &str) -> anyhow::Result<Self> {
        let answer = request(api, "GET", "/metrics", None, PAGE_WITHIN)?;
        // What each node says is not looked at, and is most of the page.
        let lines =
            answer.body.lines().filter(|line| !line.starts_with('#') && !line.starts_with("cic_node_"));
        let row = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(Self { rows: lines.filter_map(row).collect() })
    }

    /// NaN where there is no such row.
    pub(super) fn value(&self, name: &str) -> f64 {
        self.rows.get(name).copied().unwrap_or(f64::NAN)
    }

    /// Most that ever waited in a queue, and most that may.
    pub(super) fn queue(&self, name: &str) -> (f64, f64) {
        let of = |metric: &str| self.value(&format!("{metric}{{queue=\"{name}\"}}"));
        (of("cic_queue_waiting_max"), of("cic_queue_bound"))
    }

    /// The bound in milliseconds that `share` of a histogram's spans since `before` do not exceed; NaN without a span.
    pub(super) fn quantile_ms(&self, before: &Self, name: &str, share: f64) -> anyhow::Result<f64> {
        let (start, mut counts) = (format!("{name}_bucket{{le=\""), Vec::new());
        for (row, value) in self.rows.range(start.clone()..).take_while(|(row, _)| row.starts_with(&start)) {
            let bound = row[start.len()..].trim_end_matches("\"}");
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().context("a bound")? };
            counts.push((bound, value - before.rows.get(row).copied().unwrap_or(0.0)));
        }
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = counts.last().map_or(0.0, |(_, count)| *count);
        let first = counts.iter().find(|(_, count)| all > 0.0 && *count >= share * all);
        Ok(first.map_or(f64::NAN, |(bound, _)| bound * 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &[(&str, f64)]) -> Page {
        Page { rows: rows.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect() }
    }

    #[test]
    fn a_quantile_is_of_what_came_between_two_pages() {
        let before = page(&[("s_bucket{le=\"0.001\"}", 100.0), ("s_bucket{le=\"+Inf\"}", 100.0)]);
        let after = page(&[
            ("s_bucket{le=\"0.001\"}", 150.0),
            ("s_bucket{le=\"0.01\"}", 199.0),
            ("s_bucket{le=\"+Inf\"}", 200.0),
            ("s_count", 200.0),
        ]);
        // The bucket of 0.01 is new: nothing was in it before.
        let quantile = |share| after.quantile_ms(&before, "s", share).unwrap();
        assert!((quantile(0.5) - 1.0).abs() < 1e-9);
        assert!(quantile(1.0).is_finite());
        assert!(after.quantile_ms(&after, "s", 0.5).unwrap().is_nan());
    }
}
