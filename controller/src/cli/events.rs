//! `cic events`.

use std::time::Duration;

use cic_common::time::utc_text;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::failure::Failure;
use super::shown::Shown;
use super::style::{Style, Tone};
use super::table::{Cell, Table};
use crate::core::Severity;

/// Between two looks of `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// One entry of the event log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) at_unix_ms: u64,
    pub(super) node: Option<String>,
    pub(super) severity: Severity,
    pub(super) kind: String,
    pub(super) text: String,
}

#[derive(Debug, Deserialize)]
struct Entries {
    events: Vec<Entry>,
}

/// What is wanted of the log.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) node: Option<&'a str>,
    pub(super) follow: bool,
    pub(super) limit: u32,
    pub(super) json: bool,
}

pub(super) async fn events(client: &Client, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let style = Style::of_stdout();
    let node = match wanted.node {
        Some(ending) => Some(full_name(client, ending).await?),
        None => None,
    };
    let only = node.map(|node| format!("&node={node}")).unwrap_or_default();
    let mut after = None;
    loop {
        let since = after.map(|id: u64| format!("&after={id}")).unwrap_or_default();
        let path = format!("/v1/events?limit={}{since}{only}", wanted.limit);
        let Entries { events } = client.get(&path).await?;
        print(&events, wanted, after.is_none(), &style);
        if !wanted.follow {
            return Ok(());
        }
        after = events.last().map(|entry| entry.id).or(after).or(Some(0));
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// A node that is gone has events still: what fits none that is there is taken for a full name.
async fn full_name(client: &Client, ending: &str) -> Result<String, Failure> {
    let shown = Shown::fetch(client).await?;
    let is_full = cic_common::id::NodeId::new(ending).is_ok() && ending.contains("-node");
    match shown.node(ending) {
        Ok(node) => Ok(node.node.to_string()),
        Err(_) if is_full => Ok(ending.to_owned()),
        Err(failure) => Err(failure),
    }
}

fn print(events: &[Entry], wanted: &Wanted<'_>, is_first: bool, style: &Style) {
    if wanted.json {
        for entry in events {
            println!("{}", serde_json::json!(entry));
        }
        return;
    }
    if events.is_empty() {
        if is_first && !wanted.follow {
            println!("no events");
        }
        return;
    }
    let lines = table(events).lines(style);
    lines.iter().skip(usize::from(!is_first)).for_each(|line| println!("{line}"));
}

pub(super) fn table(events: &[Entry]) -> Table<4> {
    let mut table = Table::new(["TIME (UTC)", "KIND", "NODE", "WHAT"]);
    for entry in events {
        let tone = match entry.severity {
            Severity::Info => Tone::Plain,
            Severity::Warning => Tone::Odd,
            Severity::Alert => Tone::Bad,
        };
        let node = entry.node.as_deref().unwrap_or("-");
        let short = node.rsplit_once("-node").map_or(node, |(cluster, _)| &node[cluster.len() + 1..]);
        table.row([
            utc_text(entry.at_unix_ms).into(),
            Cell::new(entry.kind.as_str(), tone),
            short.into(),
            Cell::new(entry.text.as_str(), tone),
        ]);
    }
    table
}
