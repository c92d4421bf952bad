//! What all requests share: the mode the engine is in, its slots and its counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::faults::StopWith;
use crate::generation::Generation;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::reply::{ApiError, unix_seconds};
use crate::request::{Job, Served};

/// Serving <-> Stalled; either -> Draining -> Stuck | Stopping; either -> Stopping; any -> Dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Serving,
    /// `/health` is 200 and no token moves.
    Stalled,
    /// Running requests go on, new ones are refused.
    Draining,
    /// Asked to stop, and hanging with its streams open until it is killed: what vLLM 0.32 does when a drain outlives
    /// its timeout.
    Stuck,
    Stopping(StopWith),
    /// The core has died; the process is about to follow.
    Dead,
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) served: Served,
    pub(crate) started_at_unix: u64,
    pub(crate) slots: Arc<Semaphore>,
    mode: watch::Sender<Mode>,
    metrics: Mutex<Metrics>,
    token_count: AtomicU64,
}

impl Engine {
    pub(crate) fn new(options: Options, max_model_len: usize) -> Arc<Self> {
        Arc::new(Self {
            served: Served { names: options.model_names(), max_model_len },
            started_at_unix: unix_seconds(),
            slots: Arc::new(Semaphore::new(options.max_num_seqs)),
            mode: watch::Sender::new(Mode::Serving),
            metrics: Mutex::new(Metrics::new()),
            token_count: AtomicU64::new(0),
            options,
        })
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    pub(crate) fn watch_mode(&self) -> watch::Receiver<Mode> {
        self.mode.subscribe()
    }

    pub(crate) fn enter(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub(crate) fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the token that is now due, from 1.
    pub(crate) fn count_token(&self) -> u64 {
        self.token_count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// One generation for each answer that the job asks for.
    pub(crate) fn admit(self: &Arc<Self>, job: &Job) -> Result<Vec<Generation>, ApiError> {
        match self.mode() {
            Mode::Serving | Mode::Stalled => {}
            Mode::Draining | Mode::Stuck | Mode::Stopping(_) => {
                return Err(ApiError::internal("cannot schedule new futures after shutdown"));
            }
            Mode::Dead => return Err(ApiError::core_is_dead()),
        }
        if self.options.faults.fail_completions {
            return Err(ApiError::internal("Internal server error"));
        }
        let answers =
            job.prompts.iter().flat_map(|prompt| (0..job.choices).map(move |choice| (prompt, choice)));
        let answers: Vec<_> = answers.collect();
        if let Some(limit) = self.options.max_num_queued_reqs {
            let mut metrics = self.metrics();
            if answers.len() > self.slots.available_permits()
                && metrics.waiting as usize + answers.len() > limit
            {
                metrics.reject();
                return Err(ApiError::queue_is_full());
            }
        }
        let generation = |(index, (prompt, choice)): (usize, &(&Vec<_>, u32))| {
            Generation::new(self.clone(), index, (*prompt).clone(), *choice, job.limits.clone())
        };
        Ok(answers.iter().enumerate().map(generation).collect())
    }
}
