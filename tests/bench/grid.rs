//! Figures of several programs side by side: a line for each figure, a column for each program.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// The figures. Every line has one value for each column, NaN where there is none.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    pub(crate) columns: Vec<String>,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
}

impl Grid {
    pub(crate) fn text(&self) -> String {
        let label = |line: &Line| format!("{} [{}]", line.name, line.unit);
        let first = self.lines.iter().map(|line| label(line).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> =
            self.columns.iter().map(|name| name.chars().count().max("12345.67".len())).collect();
        let mut text = format!("{:first$}", "");
        for (name, width) in self.columns.iter().zip(&widths) {
            let _ = write!(text, "  {name:>width$}");
        }
        text.push('\n');
        for line in &self.lines {
            let _ = write!(text, "{:first$}", label(line));
            for (value, width) in line.values.iter().zip(&widths) {
                let _ = write!(text, "  {:>width$}", shown(*value));
            }
            text.push('\n');
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let line = |line: &Line| json!({ "name": line.name, "unit": line.unit, "values": line.values });
        json!({ "columns": self.columns, "lines": self.lines.iter().map(line).collect::<Vec<_>>() })
    }
}

/// Three digits that count; thousands whole.
fn shown(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "-".to_owned(),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_stands_below_its_program() {
        let line = Line { name: "speed".to_owned(), unit: "req/s", values: vec![81_400.4, f64::NAN] };
        let grid = Grid { columns: vec!["ours".to_owned(), "a longer name".to_owned()], lines: vec![line] };
        let text = grid.text();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(
            rows,
            ["                   ours  a longer name", "speed [req/s]     81400              -"]
        );
    }

    #[test]
    fn small_values_keep_their_digits() {
        for (value, text) in [(0.0123, "0.012"), (-0.5, "-0.500"), (3.456, "3.46"), (812.6, "813")] {
            assert_eq!(shown(value), text);
        }
    }
}
