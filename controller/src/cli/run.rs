//! From what was typed to an exit code.

use std::path::Path;
use std::process::ExitCode;

use super::args::{Cli, Command};
use super::client::Client;
use super::closed::is_closed;
use super::endpoint::Endpoint;
use super::failure::Failure;
use super::model::ModelCommand;
use super::{
    apply, ask, deployments, dev, events, fault, health, leader, model, nodes, operations, orphans, plan,
    sync, why,
};
use crate::record::ReplayError;

/// Runs the command; failures go to standard error, one line each.
pub async fn run(cli: Cli) -> ExitCode {
    match perform(cli).await {
        Ok(code) => code,
        Err(failure) => {
            for line in failure.to_string().lines() {
                eprintln!("cic: {line}");
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn perform(cli: Cli) -> Result<ExitCode, Failure> {
    let client = || {
        let client = Client::new(Endpoint::find(cli.api.as_deref())?);
        match &cli.token_file {
            Some(file) => client.with_token(file),
            None => Ok::<_, Failure>(client),
        }
    };
    let performed = match &cli.command {
        Command::Nodes { watch, json } => nodes::nodes(&client()?, *watch, *json).await,
        Command::Deployments { json } => deployments::deployments(&client()?, *json).await,
        Command::Events { node, follow, limit, json } => {
            let wanted =
                events::Wanted { node: node.as_deref(), follow: *follow, limit: *limit, json: *json };
            events::events(&client()?, &wanted).await
        }
        Command::Why { node, json } => why::why(&client()?, node, *json).await,
        Command::Orphans { wish, json } => orphans::orphans(&client()?, wish.as_ref(), *json).await,
        Command::Operations { limit, json } => operations::operations(&client()?, *limit, *json).await,
        Command::Sync { json } => sync::sync(&client()?, *json).await,
        Command::Health { json } => health::health(&client()?, *json).await,
        Command::Apply { file } => apply::apply(&client()?, file).await,
        Command::Drain { node, reason } => ask::act(&client()?, "drain", node, reason.as_deref()).await,
        Command::Replace { node, reason } => ask::act(&client()?, "replace", node, reason.as_deref()).await,
        Command::Plan(args) => return plan::plan(args),
        Command::Model { command: ModelCommand::Push(args) } => model::push(args).await,
        Command::Model { command: ModelCommand::Prewarm(args) } => model::prewarm(&client()?, args).await,
        Command::Leader { json } => leader::leader(&client()?, *json).await,
        Command::Failover => leader::failover(&client()?).await,
        Command::Token { node } => ask::token(&client()?, node).await,
        Command::Replay { file } => replay(file),
        Command::Fault(args) => fault::fault(args).await,
        Command::Dev(args) => dev::run(args, cli.api.as_deref()).await,
    };
    performed.map(|()| ExitCode::SUCCESS)
}

fn replay(file: &Path) -> Result<(), Failure> {
    crate::record::replay(file, &mut std::io::stdout().lock()).map_err(|error| match error {
        ReplayError::Read(error) if is_closed(&error) => Failure::closed(),
        error => Failure::new(format!("{} cannot be replayed: {error}", file.display())),
    })
}
