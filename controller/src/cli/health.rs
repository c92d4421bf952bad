//! `cic health`: the control plane's own checks.

use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::table::{Cell, Table};

#[derive(Debug, Deserialize)]
struct Answer {
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    severity: String,
    is_up: bool,
    failures: u32,
    cause: Option<String>,
}

pub(super) async fn health(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        let answer: Value = client.get("/v1/health").await?;
        println!("{answer:#}");
        return Ok(());
    }
    let answer: Answer = client.get("/v1/health").await?;
    table(&answer).print(&Style::of_stdout(), "the first checks are under way");
    Ok(())
}

fn table(answer: &Answer) -> Table<4> {
    let mut table = Table::new(["CHECK", "SEVERITY", "STATE", "WHY"]);
    for check in &answer.checks {
        let (state, tone) = match (check.is_up, check.failures) {
            (true, 0) => ("up".to_owned(), Tone::Good),
            (true, failures) => (format!("missed {failures}"), Tone::Odd),
            (false, failures) => (format!("down, missed {failures}"), Tone::Bad),
        };
        table.row([
            check.name.clone().into(),
            check.severity.clone().into(),
            Cell::new(state, tone),
            check.cause.clone().unwrap_or_default().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_up_missed_or_down() {
        let check = |name: &str, is_up, failures, cause: Option<&str>| Check {
            name: name.to_owned(),
            severity: "critical".to_owned(),
            is_up,
            failures,
            cause: cause.map(str::to_owned),
        };
        let checks = vec![
            check("database", true, 0, None),
            check("own_api", true, 1, Some("refused")),
            check("redis", false, 4, Some("refused")),
        ];
        assert_eq!(
            table(&Answer { checks }).lines(&Style::PLAIN),
            [
                "CHECK     SEVERITY  STATE           WHY",
                "database  critical  up",
                "own_api   critical  missed 1        refused",
                "redis     critical  down, missed 4  refused",
            ]
        );
    }
}
