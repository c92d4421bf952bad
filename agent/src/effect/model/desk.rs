//! What is under way on a model's files: one step at a time, the newest.

use std::future::Future;
use std::sync::Arc;

use cic_common::assignment::ModelSpec;
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::fetch::Address;
use super::models::Models;
use crate::core::Event;
use crate::state::{StateDir, name};

/// The files that the last engine was started on.
#[derive(Debug, Serialize, Deserialize)]
pub struct KnownModel {
    pub path: String,
    pub digest: String,
}

/// The nodes near by that serve the model of this name.
pub type NeighboursOf = Arc<dyn Fn(&str) -> Vec<Address> + Send + Sync>;

/// Asks steps for the core.
pub struct Desk {
    models: Models,
    neighbours: NeighboursOf,
    state: StateDir,
    tasks: Supervisor,
    events: mpsc::Sender<Event>,
    /// Ends what is under way.
    current: CancellationToken,
}

impl Desk {
    #[must_use]
    pub fn new(
        models: Models,
        neighbours: NeighboursOf,
        state: StateDir,
        tasks: Supervisor,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { models, neighbours, state, tasks, events, current: CancellationToken::new() }
    }

    /// Ends in `ModelMounted`.
    pub fn mount(&mut self, attempt: u32, model: ModelSpec) {
        let models = self.models.clone();
        self.begin("model mount", async move {
            let result = models.mount(&model).await;
            Event::ModelMounted { attempt, result }
        });
    }

    /// Ends in `ModelMounted`.
    pub fn attach(&mut self, attempt: u32, url: String, model: ModelSpec) {
        let models = self.models.clone();
        self.begin("model attach", async move {
            let result = models.attach(&url, &model).await;
            Event::ModelMounted { attempt, result }
        });
    }

    /// Ends in `ModelVerified`.
    pub fn verify(&mut self, attempt: u32, model: ModelSpec) {
        let (models, events) = (self.models.clone(), self.events.clone());
        self.begin("model verify", async move {
            let result = models.verify(&model, |done, all| tell(&events, attempt, done, all)).await;
            Event::ModelVerified { attempt, result }
        });
    }

    /// Ends in `ModelFetched`.
    pub fn fetch(&mut self, attempt: u32, url: String, model: ModelSpec) {
        let (models, events) = (self.models.clone(), self.events.clone());
        let neighbours = (self.neighbours)(&model.name);
        self.begin("model fetch", async move {
            let tell = |done, all| tell(&events, attempt, done, all);
            let result = models.fetch(&url, &model, &neighbours, tell).await;
            Event::ModelFetched { attempt, result }
        });
    }

    /// Has the files in the page cache before they are asked for, if they come that far; the next step ends it.
    pub fn warm(&mut self, model: ModelSpec) {
        self.current.cancel();
        self.current = CancellationToken::new();
        let (current, models) = (self.current.clone(), self.models.clone());
        self.tasks.spawn("model warm", Kind::Passing, |token| async move {
            // Cancel safe: the process is killed, and what it has read stays read.
            let result = tokio::select! {
                () = token.cancelled() => return TaskResult::Ok(()),
                () = current.cancelled() => return Ok(()),
                result = models.warm(&model) => result,
            };
            match result {
                Ok(seen) => info!(model = model.name, path = model.path, seen, "page cache warmed"),
                Err(fault) => {
                    warn!(model = model.name, path = model.path, %fault, "the page cache is not warmed")
                }
            }
            Ok(())
        });
    }

    /// Ends what is under way; its process is killed, and what it had done is of use to the next.
    pub fn leave(&mut self) {
        self.current.cancel();
    }

    /// Says what the model's files are, and remembers it for a run that finds the engine running. Beside all else.
    pub fn name(&self, attempt: u32, model: ModelSpec) {
        let (models, state, events) = (self.models.clone(), self.state.clone(), self.events.clone());
        self.tasks.spawn("model digest", Kind::Passing, |token| async move {
            // Cancel safe: the program ends.
            let result = tokio::select! {
                () = token.cancelled() => return Ok(()),
                result = models.digest(&model) => result.map_err(|fault| fault.to_string()),
            };
            if let Ok(digest) = &result {
                let known = KnownModel { path: model.path, digest: digest.clone() };
                if let Err(error) = state.write(name::MODEL, &known).await {
                    warn!(%error, "the model's digest is not remembered");
                }
            }
            Ok(events.send(Event::ModelKnown { attempt, result }).await?)
        });
    }

    fn begin(&mut self, name: &'static str, step: impl Future<Output = Event> + Send + 'static) {
        self.current.cancel();
        self.current = CancellationToken::new();
        let (current, events) = (self.current.clone(), self.events.clone());
        self.tasks.spawn(name, Kind::Passing, |token| async move {
            // Cancel safe: a step that is dropped has its process killed, and another is asked for what is still wanted.
            let event = tokio::select! {
                () = token.cancelled() => return TaskResult::Ok(()),
                () = current.cancelled() => return Ok(()),
                event = step => event,
            };
            Ok(events.send(event).await?)
        });
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("models", &self.models).finish_non_exhaustive()
    }
}

/// One word of many: where the core has no time for it, the next will do.
fn tell(events: &mpsc::Sender<Event>, attempt: u32, done_bytes: u64, all_bytes: u64) {
    let _ = events.try_send(Event::ModelProgress { attempt, done_bytes, all_bytes });
}
