//! `cic drain`, `cic replace`, `cic token`: wishes that the controller fulfils.

use serde_json::json;

use super::client::Client;
use super::failure::Failure;
use super::shown::Shown;

/// Asks for `act` (`drain` or `replace`) on a node.
pub(super) async fn act(
    client: &Client,
    act: &str,
    ending: &str,
    reason: Option<&str>,
) -> Result<(), Failure> {
    let shown = Shown::fetch(client).await?;
    let node = &shown.node(ending)?.node;
    let reason = reason.map_or_else(|| format!("asked with `cic {act}`"), str::to_owned);
    client.post(&format!("/v1/nodes/{node}/{act}"), &json!({ "reason": reason })).await?;
    println!("{node}: {act} accepted; `cic why {ending}` shows what comes of it");
    Ok(())
}

pub(super) async fn token(client: &Client, node: &str) -> Result<(), Failure> {
    println!("{}", join_token(client, node).await?);
    Ok(())
}

/// A fresh single-use token.
pub(super) async fn join_token(client: &Client, node: &str) -> Result<String, Failure> {
    let answer = client.post("/v1/tokens", &json!({ "node": node })).await?;
    let token = answer["token"].as_str().map(str::to_owned);
    token.ok_or_else(|| Failure::new(format!("{} gave no token", client.endpoint())))
}
