//! Rows of a benchmark, for people and for machines.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::grid::Grid;

/// What a number is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// One measured number.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// None where nothing is promised.
    pub(crate) target: Option<Target>,
}

impl Row {
    /// A value that is no number meets nothing.
    fn is_met(&self) -> bool {
        self.target.is_none_or(|target| match target {
            Target::AtMost(bound) => self.value <= bound,
            Target::AtLeast(bound) => self.value >= bound,
        })
    }

    fn json(&self) -> Value {
        let (bound, better) = match self.target {
            Some(Target::AtMost(bound)) => (Some(bound), "lower"),
            Some(Target::AtLeast(bound)) => (Some(bound), "higher"),
            None => (None, "either"),
        };
        json!({ "name": self.name, "value": self.value, "unit": self.unit, "target": bound, "better": better })
    }
}

/// What a benchmark measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Figures of several programs side by side, where a benchmark compares such.
    pub(crate) grid: Option<Grid>,
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// Whether every target was met.
    pub(crate) fn is_met(&self) -> bool {
        self.rows.iter().all(Row::is_met)
    }

    /// A number that is to stay at or below `target`, where there is one.
    pub(crate) fn row(&mut self, name: &str, value: f64, unit: &'static str, target: Option<f64>) {
        self.rows.push(Row { name: name.to_owned(), value, unit, target: target.map(Target::AtMost) });
    }

    /// A number that is to stay at or above `target`.
    pub(crate) fn row_at_least(&mut self, name: &str, value: f64, unit: &'static str, target: f64) {
        self.rows.push(Row { name: name.to_owned(), value, unit, target: Some(Target::AtLeast(target)) });
    }

    pub(crate) fn text(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let mut text = self.grid.as_ref().map_or_else(String::new, |grid| grid.text() + "\n");
        for row in &self.rows {
            let met = if row.is_met() { "met" } else { "MISSED" };
            let target = match row.target {
                Some(Target::AtMost(bound)) => format!("  at most {bound} {}  {met}", row.unit),
                Some(Target::AtLeast(bound)) => format!("  at least {bound} {}  {met}", row.unit),
                None => String::new(),
            };
            let _ = writeln!(text, "{:width$}  {:>9.3} {}{target}", row.name, row.value, row.unit);
        }
        text
    }

    /// One JSON object on one line.
    pub(crate) fn json(&self, bench: &str) -> String {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "bench": bench, "rows": rows, "grid": self.grid.as_ref().map(Grid::json) }).to_string()
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
            let good =
                Row { name: "good".to_owned(), value: 1.0, unit: "s", target: Some(Target::AtMost(1.0)) };
            Table { grid: None, rows: vec![good, Row { name: "other".to_owned(), value, unit: "s", target }] }
        };
        for (value, target, is_met) in [
            (2.0, Some(Target::AtMost(2.0)), true),
            (2.1, Some(Target::AtMost(2.0)), false),
            (2.0, Some(Target::AtLeast(2.0)), true),
            (1.9, Some(Target::AtLeast(2.0)), false),
            (2.0, None, true),
            (f64::NAN, Some(Target::AtMost(2.0)), false),
            (f64::NAN, Some(Target::AtLeast(2.0)), false),
        ] {
            assert_eq!(table(value, target).is_met(), is_met, "{value} {target:?}");
        }
    }
}
