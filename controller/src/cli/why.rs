//! `cic why NODE`: the evidence behind the last verdict, in order.

use std::time::Duration;

use cic_common::report::NodeReport;
use cic_common::time::unix_ms;
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::condition;
use super::events::{self, Entry};
use super::failure::Failure;
use super::shown::Shown;
use super::span;
use super::style::{Style, Tone};
use super::table::{Cell, Table, printable};

#[derive(Debug, Deserialize)]
struct Why {
    node: String,
    belief: String,
    since_unix_ms: u64,
    why: String,
    leaving: Option<String>,
    #[serde(default)]
    report: Option<NodeReport>,
    trail: Vec<TrailEntry>,
    #[serde(default)]
    events: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct TrailEntry {
    at_unix_ms: u64,
    text: String,
}

pub(super) async fn why(client: &Client, ending: &str, json: bool) -> Result<(), Failure> {
    let shown = Shown::fetch(client).await?;
    let path = format!("/v1/nodes/{}/why", shown.node(ending)?.node);
    if json {
        let answer: Value = client.get(&path).await?;
        println!("{answer:#}");
        return Ok(());
    }
    let why: Why = client.get(&path).await?;
    let style = Style::of_stdout();
    let now = unix_ms();
    let ago = |at: u64| span::text(Duration::from_millis(now.saturating_sub(at)));
    println!("{}", why.node);
    println!("{} for {}: {}", why.belief, ago(why.since_unix_ms), why.why);
    for line in why.report.iter().flat_map(condition::lines) {
        println!("{}", printable(&line));
    }
    if let Some(reason) = &why.leaving {
        println!("leaving: {reason}");
    }
    println!();
    let mut trail = Table::new(["AGO", "SEEN AND CONCLUDED"]);
    for entry in &why.trail {
        trail.row([Cell::new(ago(entry.at_unix_ms), Tone::Faint), entry.text.as_str().into()]);
    }
    trail.print(&style, "nothing was seen of it yet");
    if !why.events.is_empty() {
        println!();
        events::table(&why.events).print(&style, "");
    }
    Ok(())
}
