//! `cic sync`: whether the providers list what the store has.

use std::time::Duration;

use cic_common::time::unix_ms;
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::span;
use super::style::{Style, Tone};
use super::table::{Cell, Table};
use crate::core::Drift;

#[derive(Debug, Deserialize)]
struct Answer {
    providers: Vec<Provider>,
    clusters: Vec<Cluster>,
}

#[derive(Debug, Deserialize)]
struct Provider {
    provider: String,
    state: String,
    drift: Vec<Drift>,
    checked_at_ms: u64,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    cluster: String,
    deployment: String,
    status: String,
    node_count: u64,
}

pub(super) async fn sync(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        let answer: Value = client.get("/v1/sync").await?;
        println!("{answer:#}");
        return Ok(());
    }
    let answer: Answer = client.get("/v1/sync").await?;
    let style = Style::of_stdout();
    providers(&answer, unix_ms()).print(&style, "no provider was listed yet");
    if !answer.clusters.is_empty() {
        println!();
        clusters(&answer).print(&style, "");
    }
    Ok(())
}

fn providers(answer: &Answer, now_ms: u64) -> Table<4> {
    let mut table = Table::new(["PROVIDER", "STATE", "CHECKED", "WHY"]);
    for row in &answer.providers {
        let tone = match row.state.as_str() {
            "in_sync" => Tone::Good,
            "syncing" => Tone::Odd,
            _ => Tone::Bad,
        };
        let age = span::text(Duration::from_millis(now_ms.saturating_sub(row.checked_at_ms)));
        let why = row.error.as_ref().map(|error| format!("cannot be listed: {error}")).unwrap_or_default();
        table.row([row.provider.clone().into(), Cell::new(&row.state, tone), age.into(), why.into()]);
        for Drift { node, text, is_expected } in &row.drift {
            let tone = if *is_expected { Tone::Odd } else { Tone::Bad };
            table.row(["".into(), "".into(), "".into(), Cell::new(format!("{node}: {text}"), tone)]);
        }
    }
    table
}

fn clusters(answer: &Answer) -> Table<4> {
    let mut table = Table::new(["CLUSTER", "STATUS", "NODES", "DEPLOYMENT"]);
    for row in &answer.clusters {
        let tone = if row.status == "UP" { Tone::Good } else { Tone::Odd };
        let (cluster, deployment) = (row.cluster.clone(), row.deployment.clone());
        table.row([
            cluster.into(),
            Cell::new(&row.status, tone),
            row.node_count.to_string().into(),
            deployment.into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_a_line_below_its_provider() {
        let answer: Answer = serde_json::from_value(serde_json::json!({
            "providers": [{
                "provider": "local", "state": "diverged", "checked_at_ms": 1000, "error": null,
                "drift": [{ "node": "n1", "text": "not listed", "is_expected": false }],
            }],
            "clusters": [],
        }))
        .expect("an answer");
        assert_eq!(
            providers(&answer, 8000).lines(&Style::PLAIN),
            [
                "PROVIDER  STATE     CHECKED  WHY",
                "local     diverged  7 s",
                "                             n1: not listed",
            ]
        );
    }
}
