//! A fleet that runs: its two children, its API, and how it is started and ended.

use std::net::SocketAddr;
use std::time::Duration;

use cic_common::config::EXIT_CONFIG;
use cic_common::ports::lasting_port;
use cic_common::time::{Clock, Mono};
use hyper::Method;

use super::super::ask::join_token;
use super::super::client::Client;
use super::super::endpoint::{DevRecord, Endpoint};
use super::super::failure::Failure;
use super::child::{Kept, Recipe, Turn};
use super::place::Place;
use super::plan::Plan;
use super::{ending, model, start};
use crate::provision::local::process;

/// A controller makes its store and its certificates in less than a second.
const CONTROLLER_WITHIN: Duration = Duration::from_secs(30);

/// Between two questions whether the controller is up.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Lines of a log shown when its program does not start.
const LOG_LINES_SHOWN: usize = 8;

#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) plan: Plan,
    pub(super) place: Place,
    pub(super) client: Client,
    pub(super) clock: Clock,
    pub(super) began: Mono,
    record: DevRecord,
    controller: Option<Kept>,
    gateway: Option<Kept>,
}

impl Fleet {
    pub(super) fn new(plan: Plan, place: Place, clock: Clock) -> Self {
        let pid = std::process::id();
        let record = DevRecord {
            dir: place.dir.clone(),
            is_temporary: place.is_temporary,
            pid,
            start_time: process::start_time(pid).unwrap_or(0),
            api: plan.api.to_string(),
            edge: plan.edge.to_string(),
        };
        let client = Client::new(Endpoint::at(plan.api));
        let began = clock.now();
        Self { plan, place, client, clock, began, record, controller: None, gateway: None }
    }

    /// Starts the controller, sets the deployment, starts the gateway.
    ///
    /// # Errors
    /// When a program ends instead of starting, with the end of its log. The caller ends the rest.
    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        let written =
            |error: std::io::Error| Failure::new(format!("cannot write the fleet's files: {error}"));
        self.record.announce().map_err(written)?;
        if self.plan.model.is_none() {
            model::write_small(&self.place.file("model")).map_err(written)?;
        }
        let quic = SocketAddr::from(([127, 0, 0, 1], lasting_port().map_err(written)?));
        let recipe = start::controller(&self.plan, &self.place, quic).map_err(written)?;
        self.await_controller(recipe).await?;
        let path = format!("/v1/deployments/{}", start::DEPLOYMENT);
        self.client.put(&path, &start::deployment(&self.plan, &self.place)).await?;
        let token = join_token(&self.client, start::GATEWAY).await?;
        let recipe = start::gateway(&self.plan, &self.place, quic, &token).map_err(written)?;
        self.gateway = Some(Kept::start(recipe, self.clock)?);
        Ok(())
    }

    async fn await_controller(&mut self, recipe: Recipe) -> Result<(), Failure> {
        let kept = self.controller.insert(Kept::start(recipe, self.clock)?);
        let client = &self.client;
        let is_up = async {
            while !client
                .send(Method::GET, "/healthz", None::<&()>, ASK_INTERVAL * 20)
                .await
                .is_ok_and(|(status, _)| status.is_success())
            {
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        };
        // Cancel safe: whichever comes first is all that matters.
        let what = tokio::select! {
            up = tokio::time::timeout(CONTROLLER_WITHIN, is_up) => match up {
                Ok(()) => return Ok(()),
                Err(_) => format!("does not answer within {} s", CONTROLLER_WITHIN.as_secs()),
            },
            turn = kept.turn() => match turn {
                Turn::Ended(status) => format!("ended at its start ({status})"),
                Turn::NotStarted(error) => format!("cannot be started: {error}"),
                Turn::Started => "was started twice".to_owned(),
            },
        };
        let failure = Failure::new(format!("the controller {what}; the end of its log:"));
        Err(failure.with(kept.last_lines(LOG_LINES_SHOWN)))
    }

    /// Waits for something to happen to a child, and tells it in one line. Cancel safe.
    ///
    /// # Errors
    /// When a child gives up by itself before the fleet `is_ready`, or says that its configuration is of no use.
    pub(super) async fn turn(&mut self, is_ready: bool) -> Result<String, Failure> {
        let (name, turn, log) = tokio::select! {
            (turn, log) = turn_of(&mut self.controller) => ("controller", turn, log),
            (turn, log) = turn_of(&mut self.gateway) => ("gateway", turn, log),
        };
        match turn {
            // A signal may be a fault on purpose; an exit code is the program's own word.
            Turn::Ended(status)
                if status.code() == Some(i32::from(EXIT_CONFIG))
                    || (!is_ready && status.code().is_some()) =>
            {
                let failure = Failure::new(format!("the {name} ended ({status}); the end of its log:"));
                Err(failure.with(log))
            }
            Turn::Ended(status) => Ok(format!("the {name} ended ({status}) and is started again")),
            Turn::Started => Ok(format!("the {name} runs again")),
            Turn::NotStarted(error) => Ok(format!("the {name} cannot be started: {error}")),
        }
    }

    /// Ends everything, in the order that starts nothing anew: controller, machines, gateway, then what is left.
    /// Returns how many processes had to be ended beside the two children.
    ///
    /// # Errors
    /// Names processes that remain.
    pub(super) async fn end(mut self) -> Result<usize, Failure> {
        if let Some(controller) = self.controller.take() {
            controller.stop().await;
        }
        let ending_machines = ending::end_machines(&self.place.dir);
        let ending_gateway = async {
            if let Some(gateway) = self.gateway.take() {
                gateway.stop().await;
            }
        };
        tokio::join!(ending_machines, ending_gateway);
        let ended = ending::end_processes(&self.place.dir).await;
        self.record.withdraw();
        if self.place.is_temporary && ended.is_ok() {
            let _ = std::fs::remove_dir_all(&self.place.dir);
        }
        ended
    }
}

async fn turn_of(kept: &mut Option<Kept>) -> (Turn, Vec<String>) {
    match kept {
        Some(kept) => {
            let turn = kept.turn().await;
            (turn, kept.last_lines(LOG_LINES_SHOWN))
        }
        None => std::future::pending().await,
    }
}
