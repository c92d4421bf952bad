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

/// What a benchmark measured. Lower is better in every row so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
}

impl Table {
    pub(crate) fn text(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for row in &self.rows {
            let target = row.target.map_or_else(String::new, |target| {
                let met = if row.value <= target { "met" } else { "MISSED" };
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
