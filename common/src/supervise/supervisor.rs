//! A set of named tasks that end together.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

/// What the end of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The program cannot do its work without it: its end before the stop stops the program as failed.
    Vital,
    /// One of many, such as a connection: its end is normal, its failure is logged.
    Passing,
}

/// Spawns tasks, and stops them together. Clones share one set.
#[derive(Debug, Clone)]
pub struct Supervisor {
    tracker: TaskTracker,
    token: CancellationToken,
    shared: Arc<Mutex<Shared>>,
    /// `None`: that of whoever spawns.
    runtime: Option<Handle>,
}

#[derive(Debug, Default)]
struct Shared {
    running: BTreeMap<u64, &'static str>,
    next: u64,
    failed: Option<String>,
}

/// Stops one task when asked; dropping it does nothing.
#[derive(Debug, Clone)]
pub struct TaskHandle {
    token: CancellationToken,
}

impl TaskHandle {
    pub fn cancel(&self) {
        self.token.cancel();
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    #[must_use]
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            token: CancellationToken::new(),
            shared: Arc::default(),
            runtime: None,
        }
    }

    /// The same set, whose tasks run on `runtime` whoever spawns them.
    #[must_use]
    pub fn on(&self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self.clone() }
    }

    /// Cancelled when the program is to stop.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs `work` as a task. It is given a token of its own and must return soon after that is cancelled.
    pub fn spawn<F, W>(&self, name: &'static str, kind: Kind, work: W) -> TaskHandle
    where
        W: FnOnce(CancellationToken) -> F,
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let token = self.token.child_token();
        let number = self.enter(name);
        // In a place of its own: the task below would have room for it twice.
        let future = Box::pin(work(token.clone()));
        let guard = Guard { supervisor: self.clone(), number, name, kind, finished: false };
        let task = async move {
            let mut guard = guard;
            let result = future.await;
            guard.finish(result);
        };
        match &self.runtime {
            Some(runtime) => self.tracker.spawn_on(task, runtime),
            None => self.tracker.spawn(task),
        };
        TaskHandle { token }
    }

    /// Waits until the program is to stop: a signal handler cancelled the token or a vital task ended.
    pub async fn stopping(&self) {
        self.token.cancelled().await;
    }

    /// Cancels every task and waits at most `within`. Returns why the program failed, if a vital task did.
    ///
    /// # Errors
    /// The name and error of the vital task that ended first, or the names of the tasks that are late.
    pub async fn stop(&self, within: Duration) -> Result<(), String> {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(within, self.tracker.wait()).await.is_err() {
            let late: Vec<_> = self.lock().running.values().copied().collect();
            warn!(?late, ?within, "tasks are late to stop");
            return Err(format!("tasks late to stop: {}", late.join(", ")));
        }
        match self.lock().failed.take() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    fn enter(&self, name: &'static str) -> u64 {
        let mut shared = self.lock();
        let number = shared.next;
        shared.next += 1;
        shared.running.insert(number, name);
        number
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a task ends; `Err` says why it could not go on.
pub type TaskResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

struct Guard {
    supervisor: Supervisor,
    number: u64,
    name: &'static str,
    kind: Kind,
    finished: bool,
}

impl Guard {
    fn finish(&mut self, result: TaskResult) {
        self.finished = true;
        let stopping = self.supervisor.token.is_cancelled();
        match (self.kind, result) {
            (Kind::Vital, Err(error)) => self.fail(&error.to_string()),
            (Kind::Vital, Ok(())) if !stopping => self.fail("ended before the program was stopped"),
            (Kind::Passing, Err(error)) => debug!(task = self.name, %error, "task ended"),
            (Kind::Vital | Kind::Passing, Ok(())) => {}
        }
    }

    fn fail(&self, why: &str) {
        error!(task = self.name, why, "vital task failed");
        let mut shared = self.supervisor.lock();
        shared.failed.get_or_insert_with(|| format!("{}: {why}", self.name));
        drop(shared);
        self.supervisor.token.cancel();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.supervisor.lock().running.remove(&self.number);
        if !self.finished {
            match self.kind {
                Kind::Vital => self.fail("panicked"),
                Kind::Passing => error!(task = self.name, "task panicked"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_vital_task_stops_the_others_and_is_named() {
        let supervisor = Supervisor::new();
        supervisor.spawn("reader", Kind::Vital, |token| async move {
            token.cancelled().await;
            Ok(())
        });
        supervisor.spawn("writer", Kind::Vital, |_| async { Err("disk full".into()) });
        supervisor.stopping().await;
        assert_eq!(supervisor.stop(Duration::from_secs(5)).await, Err("writer: disk full".to_owned()));
    }

    #[tokio::test]
    async fn the_end_of_a_passing_task_stops_nothing() {
        let supervisor = Supervisor::new();
        let (done, ended) = tokio::sync::oneshot::channel::<()>();
        supervisor.spawn("visit", Kind::Passing, |_| async move {
            drop(done);
            Err("reset".into())
        });
        assert!(ended.await.is_err());
        assert!(!supervisor.token().is_cancelled());
        assert_eq!(supervisor.stop(Duration::from_secs(5)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_task_that_ignores_its_token_is_named_when_the_deadline_passes() {
        let supervisor = Supervisor::new();
        supervisor.spawn("deaf", Kind::Passing, |_| async {
            std::future::pending::<()>().await;
            Ok(())
        });
        let error = supervisor.stop(Duration::from_millis(10)).await.expect_err("late");
        assert!(error.contains("deaf"), "{error}");
    }
}
