//! `cic-agent checkpoints`: what the stores hold of a node.

use anyhow::{Context as _, anyhow};
use cic_common::id::NodeId;

use crate::config::Config;
use crate::effect::checkpoint::{Checkpoint, Held, all_of};

/// Prints every checkpoint of `node`, newest first. Returns the exit code: 1 when there is none that can be used.
///
/// # Errors
/// When no store is configured, or one of them cannot be used at all.
pub async fn show(config: &Config, node: Option<NodeId>) -> anyhow::Result<u8> {
    let node = node.unwrap_or_else(|| config.node.id.clone());
    let stores = config.checkpoint.stores().map_err(|(key, what)| anyhow!("[checkpoint] {key}: {what}"))?;
    let stores = stores.context("no store is configured ([checkpoint] url)")?;
    let (held, missed) = all_of(&stores, &node).await;
    let mut taken = None;
    for Held { store, name, content } in &held {
        match content {
            Ok(checkpoint) => {
                let mark = if taken.is_none() { "  <- its successor takes this" } else { "" };
                taken.get_or_insert(name);
                println!("{name}  {store}  {}{mark}", line(checkpoint));
            }
            Err(cause) => println!("{name}  {store}  cannot be used: {cause}"),
        }
    }
    for cause in &missed {
        println!("{cause}");
    }
    if held.is_empty() {
        println!("no checkpoint of {node}");
    }
    Ok(u8::from(taken.is_none()))
}

/// `notice, 3 requests (1 to be run again), tiny of dev, model 4f2a…`
fn line(checkpoint: &Checkpoint) -> String {
    let requests = &checkpoint.requests;
    let again = requests.iter().filter(|request| request.can_be_rerun()).count();
    let what = checkpoint.assignment.as_ref().map_or_else(
        || "no engine".to_owned(),
        |assignment| format!("{} of {}", assignment.model.name, assignment.deployment),
    );
    let digest =
        checkpoint.model_digest.as_ref().map_or("not known", |digest| &digest[..digest.len().min(12)]);
    format!(
        "{}, {} requests ({again} to be run again), {what}, model {digest}",
        checkpoint.occasion.as_str(),
        requests.len()
    )
}
