//! `cic operations`.

use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::table::{Cell, Table};
use crate::core::{Operation, OperationState};

#[derive(Debug, Deserialize)]
struct Operations {
    operations: Vec<Operation>,
}

pub(super) async fn operations(client: &Client, limit: u32, json: bool) -> Result<(), Failure> {
    let path = format!("/v1/operations?limit={limit}");
    if json {
        let answer: Value = client.get(&path).await?;
        println!("{answer:#}");
        return Ok(());
    }
    let Operations { operations } = client.get(&path).await?;
    let mut table = Table::new(["ID", "TERM", "ACT", "STATE", "NODE", "WHY"]);
    for operation in &operations {
        let (tone, outcome) = match &operation.state {
            OperationState::Intended | OperationState::Recorded => (Tone::Plain, String::new()),
            OperationState::Done => (Tone::Good, String::new()),
            OperationState::Failed { reason } => (Tone::Bad, format!(": {reason}")),
        };
        table.row([
            operation.id.to_string().into(),
            operation.term.to_string().into(),
            operation.kind.as_str().into(),
            Cell::new(operation.state.as_str(), tone),
            operation.node.as_str().into(),
            format!("{}{outcome}", operation.reason).into(),
        ]);
    }
    table.print(&Style::of_stdout(), "nothing was done yet");
    Ok(())
}
