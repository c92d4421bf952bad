//! Rows of a benchmark, for people and for machines.

use std::fmt::Write as _;

use serde_json::json;

/// One measured number.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// None where nothing is promised.
    pub(crate) target: Option<f64>,
}

impl Row {
    /// A value that is no number meets nothing.
    fn is_met(&self) -> bool {
        self.target.is_none_or(|target| self.value <= target)
    }
}

/// What a benchmark measured. Lower is better in every row so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// Whether every target was met.
    pub(crate) fn is_met(&self) -> bool {
        self.rows.iter().all(Row::is_met)
    }

    pub(crate) fn row(&mut self, name: &str, value: f64, unit: &'static str, target: Option<f64>) {
        self.rows.push(Row { name: name.to_owned(), value, unit, target });
    }

    pub(crate) fn text(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for row in &self.rows {
            let target = row.target.map_or_else(String::new, |target| {
                let met = if row.is_met() { "met" } else { "MISSED" };
                format!("  target {target} {}  {met}", row.unit)
            });
            let _ = writeln!(text, "{:width$}  {:>9.3} {}{target}", row.name, row.value, row.unit);
        }
        text
    }

    /// One JSON object on one line.
    pub(crate) fn json(&self, bench: &str) -> String {
        let row = |row: &Row| json!({ "name": row.name, "value": row.value, "unit": row.unit, "target": row.target, "better": "lower" });
        json!({ "bench": bench, "rows": self.rows.iter().map(row).collect::<Vec<_>>() }).to_string()
    }
}

/// The middle of a sorted list, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.get(half) {
        None => f64::NAN,
        Some(upper) if sorted.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(sorted[half - 1], *upper),
    }
}

/// The smallest value that `percent` of all are no larger than (nearest rank); NaN of none. Sorts the list.
pub(crate) fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle_two() {
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[1.0, 2.0, 4.0, 9.0]) - 3.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_percentile_is_a_value_of_the_list() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        for (percent, value) in [(50.0, 100.0), (99.0, 198.0), (100.0, 200.0)] {
            assert!((percentile(&mut values, percent) - value).abs() < f64::EPSILON);
        }
        assert!(percentile(&mut [], 50.0).is_nan());
    }

    #[test]
    fn one_missed_target_or_a_value_that_is_no_number_misses() {
        let table = |value, target| {
            let good = Row { name: "good".to_owned(), value: 1.0, unit: "s", target: Some(1.0) };
            Table { rows: vec![good, Row { name: "other".to_owned(), value, unit: "s", target }] }
        };
        assert!(table(2.0, Some(2.0)).is_met());
        assert!(table(2.0, None).is_met());
        assert!(!table(2.1, Some(2.0)).is_met());
        assert!(!table(f64::NAN, Some(2.0)).is_met());
    }
}
