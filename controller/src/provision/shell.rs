//! Performs launches, terminations and listings beside the driver, and answers each exactly once.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cic_common::id::{DeploymentName, NodeId, OperationId};
use cic_common::supervise::{Kind, Supervisor};
use tokio::sync::{Semaphore, mpsc};

use super::local::{self, Local};
use crate::core::{CloudFault, Event, UsdPerHour};

/// Acts under way at once. Beyond it an act is answered `NoAnswer`, and the core asks again.
const ACTS_MAX: usize = 64;

/// The longest an act may take before it counts as unanswered: above the local provider's own deadlines, which
/// add up to 5 s for a launch.
const ACT_WITHIN: Duration = Duration::from_secs(15);

/// What a provider is asked to launch, or to find if an earlier try of the same operation made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchOrder {
    pub operation: OperationId,
    pub node: NodeId,
    pub deployment: DeploymentName,
    pub zone: String,
    /// A provider that has prices answers `Refused` rather than launch something dearer.
    pub price_limit: Option<UsdPerHour>,
}

/// The providers of this controller.
#[derive(Debug, Clone)]
pub struct Provision {
    local: Option<Arc<Local>>,
    tasks: Supervisor,
    answers: mpsc::Sender<Event>,
    permits: Arc<Semaphore>,
    busy: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Provision {
    /// Answers arrive on `answers`.
    #[must_use]
    pub fn new(local: Option<Local>, tasks: Supervisor, answers: mpsc::Sender<Event>) -> Self {
        Self {
            local: local.map(Arc::new),
            tasks,
            answers,
            permits: Arc::new(Semaphore::new(ACTS_MAX)),
            busy: Arc::default(),
        }
    }

    /// Starts a launch. An event returned is the answer; otherwise it comes later.
    #[must_use]
    pub fn launch(&self, provider: &str, order: LaunchOrder) -> Option<Event> {
        let (operation, node) = (order.operation, order.node.clone());
        self.act(operation, provider, node, move |local| async move { local.launch(&order).await })
    }

    /// Starts a termination. An event returned is the answer; otherwise it comes later.
    #[must_use]
    pub fn terminate(&self, operation: OperationId, provider: &str, node: NodeId) -> Option<Event> {
        self.act(operation, provider, node.clone(), move |local| async move { local.terminate(&node).await })
    }

    /// Starts a listing. An event returned is the answer; otherwise it comes later.
    #[must_use]
    pub fn list(&self, provider: String) -> Option<Event> {
        let found = self.provider(&provider);
        let answer = move |result| Event::Listed { provider, result };
        let local = match found {
            Ok(local) => local,
            Err(fault) => return Some(answer(Err(fault))),
        };
        self.start("list", async move { local.list().await }, answer)
    }

    fn act<W, F>(&self, operation: OperationId, provider: &str, node: NodeId, work: W) -> Option<Event>
    where
        W: FnOnce(Arc<Local>) -> F,
        F: Future<Output = Result<(), CloudFault>> + Send + 'static,
    {
        let answer = move |result| Event::Performed { operation, result };
        let local = match self.provider(provider) {
            Ok(local) => local,
            Err(fault) => return Some(answer(Err(fault))),
        };
        let Some(turn) = Turn::take(&self.busy, node) else {
            let fault = CloudFault::NoAnswer("an earlier act on this node is under way".to_owned());
            return Some(answer(Err(fault)));
        };
        let work = work(local);
        let work = async move {
            let _turn = turn;
            work.await
        };
        self.start("act", work, answer)
    }

    fn start<T, F, A>(&self, name: &'static str, work: F, answer: A) -> Option<Event>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CloudFault>> + Send + 'static,
        A: FnOnce(Result<T, CloudFault>) -> Event + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return Some(answer(Err(CloudFault::NoAnswer(format!("{ACTS_MAX} acts are under way")))));
        };
        let answers = self.answers.clone();
        self.tasks.spawn(name, Kind::Passing, move |token| async move {
            let _permit = permit;
            let timed = async {
                let late = || Err(CloudFault::NoAnswer(format!("not done within {ACT_WITHIN:?}")));
                let result = tokio::time::timeout(ACT_WITHIN, work).await.unwrap_or_else(|_| late());
                let _ = answers.send(answer(result)).await;
            };
            // An act cut short is found again by its operation id at the next start.
            tokio::select! {
                () = timed => {}
                () = token.cancelled() => {}
            }
            Ok(())
        });
        None
    }

    fn provider(&self, name: &str) -> Result<Arc<Local>, CloudFault> {
        match &self.local {
            Some(local) if name == local::NAME => Ok(Arc::clone(local)),
            Some(_) | None => Err(CloudFault::Refused(format!("no provider {name:?} is configured"))),
        }
    }
}

/// One act at a time on one node: a launch and its repetition never run side by side.
struct Turn {
    busy: Arc<Mutex<BTreeSet<NodeId>>>,
    node: NodeId,
}

impl Turn {
    fn take(busy: &Arc<Mutex<BTreeSet<NodeId>>>, node: NodeId) -> Option<Self> {
        lock(busy).insert(node.clone()).then(|| Self { busy: Arc::clone(busy), node })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.busy).remove(&self.node);
    }
}

fn lock(busy: &Mutex<BTreeSet<NodeId>>) -> MutexGuard<'_, BTreeSet<NodeId>> {
    busy.lock().unwrap_or_else(PoisonError::into_inner)
}
