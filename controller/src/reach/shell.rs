//! Performs the acts beside the driver, bounded, and answers each once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cic_common::id::{NodeId, OperationId};
use cic_common::supervise::{Kind, Supervisor};
use cic_common::tls::config::{TlsError, tcp_client};
use cic_common::tls::{Identity, Trust};
use cic_common::wire::order::Order;
use tokio::sync::{Semaphore, mpsc};

use super::host::Host;
use super::ssh::SshSpec;
use super::{banner, command, ssh};
use crate::core::{Event, PollFault, SshWord};

/// Acts under way at once. Others wait for their turn; a node has one of each sort at most, which bounds them.
const ACTS_MAX: usize = 64;

/// How nodes are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReachSpec {
    /// Where sshd is asked who it is, and where `ssh` is told to go.
    pub ssh_port: u16,
    /// `None`: agents are not restarted over ssh.
    pub ssh: Option<SshSpec>,
}

/// The ways. Clones share everything.
#[derive(Debug, Clone)]
pub struct Reach {
    spec: Arc<ReachSpec>,
    tls: Arc<rustls::ClientConfig>,
    tasks: Supervisor,
    answers: mpsc::Sender<Event>,
    /// Explanations wait among themselves: they are many when a zone is silent, and an order must not wait for them.
    explanations: Arc<Semaphore>,
    acts: Arc<Semaphore>,
    busy: Busy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Explain,
    Command,
    Restart,
}

/// What is under way for which node, and for which operation.
type Busy = Arc<Mutex<BTreeMap<(NodeId, Sort), Option<OperationId>>>>;

/// Why an act is not begun.
enum Taken {
    /// The very same is under way: its answer serves both.
    Same,
    Other,
}

impl Reach {
    /// Answers arrive on `answers`.
    ///
    /// # Errors
    /// When TLS cannot be configured.
    pub fn new(
        spec: ReachSpec,
        identity: &Identity,
        trust: &Trust,
        tasks: Supervisor,
        answers: mpsc::Sender<Event>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            spec: Arc::new(spec),
            tls: tcp_client(identity, trust)?,
            tasks,
            answers,
            explanations: Arc::new(Semaphore::new(ACTS_MAX)),
            acts: Arc::new(Semaphore::new(ACTS_MAX)),
            busy: Busy::default(),
        })
    }

    /// Begins to ask the ssh port. An event returned is the answer; otherwise it comes later.
    #[must_use]
    pub fn explain(&self, node: NodeId, address: &str) -> Option<Event> {
        let Ok(host) = Host::of_address(address) else {
            return Some(Event::Explained { node, ssh: SshWord::NoAnswer });
        };
        let turn = Turn::take(&self.busy, (node.clone(), Sort::Explain), None).ok()?;
        let port = self.spec.ssh_port;
        self.start("explain", turn, &self.explanations, async move {
            let ssh = banner::ask(&host, port).await;
            Event::Explained { node, ssh }
        });
        None
    }

    /// Begins to give an order. An event returned is the answer; otherwise it comes later.
    #[must_use]
    pub fn command(&self, node: NodeId, address: String, order: Order) -> Option<Event> {
        let operation = order.operation;
        let turn = match Turn::take(&self.busy, (node.clone(), Sort::Command), Some(operation)) {
            Ok(turn) => turn,
            Err(Taken::Same) => return None,
            Err(Taken::Other) => {
                let result = Err(PollFault::Timeout);
                return Some(Event::CommandAnswered { node, operation, result });
            }
        };
        let tls = Arc::clone(&self.tls);
        self.start("command by poll", turn, &self.acts, async move {
            let result = command::give(&node, &address, &tls, &order).await;
            Event::CommandAnswered { node, operation, result }
        });
        None
    }

    /// Begins a restart over ssh. An event returned is the answer; otherwise it comes later. `may_act` is asked when its
    /// turn comes: no node refuses an order of a term that is over on this way.
    #[must_use]
    pub fn restart(
        &self,
        node: NodeId,
        address: &str,
        operation: OperationId,
        may_act: impl Fn() -> bool + Send + 'static,
    ) -> Option<Event> {
        let refused = |node, why: String| Some(Event::RestartedBySsh { node, operation, result: Err(why) });
        let Some(ssh) = self.spec.ssh.clone() else {
            return refused(node, "there is no [ssh] key_file to log in with".to_owned());
        };
        let host = match Host::of_address(address) {
            Ok(host) => host,
            Err(error) => return refused(node, error.to_string()),
        };
        let turn = match Turn::take(&self.busy, (node.clone(), Sort::Restart), Some(operation)) {
            Ok(turn) => turn,
            Err(Taken::Same) => return None,
            Err(Taken::Other) => return refused(node, "an earlier restart is under way".to_owned()),
        };
        let port = self.spec.ssh_port;
        self.start("restart over ssh", turn, &self.acts, async move {
            let result = if may_act() {
                ssh::run(&ssh, &node, &host, port).await.map_err(|error| error.to_string())
            } else {
                Err("this controller's lease ended while it waited for its turn".to_owned())
            };
            Event::RestartedBySsh { node, operation, result }
        });
        None
    }

    fn start(
        &self,
        name: &'static str,
        turn: Turn,
        turns: &Arc<Semaphore>,
        work: impl Future<Output = Event> + Send + 'static,
    ) {
        let (answers, turns) = (self.answers.clone(), Arc::clone(turns));
        self.tasks.spawn(name, Kind::Passing, move |token| async move {
            let answered = async {
                // The semaphore is never closed.
                let place = turns.acquire().await;
                let answer = work.await;
                // Before the answer: the core may ask for the next at once.
                drop((turn, place));
                // Fails only when the driver has gone, and with it all who would care.
                let _ = answers.send(answer).await;
            };
            // Cancel-safe: an answer is of no use once the program stops, and a child dies with its guard.
            tokio::select! {
                () = token.cancelled() => {}
                () = answered => {}
            }
            Ok(())
        });
    }
}

/// One act of one sort at a time on one node.
struct Turn {
    busy: Busy,
    key: (NodeId, Sort),
}

impl Turn {
    fn take(busy: &Busy, key: (NodeId, Sort), operation: Option<OperationId>) -> Result<Self, Taken> {
        let mut taken = lock(busy);
        match taken.get(&key) {
            Some(under_way) if *under_way == operation => return Err(Taken::Same),
            Some(_) => return Err(Taken::Other),
            None => taken.insert(key.clone(), operation),
        };
        drop(taken);
        Ok(Self { busy: Arc::clone(busy), key })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.busy).remove(&self.key);
    }
}

fn lock(busy: &Busy) -> MutexGuard<'_, BTreeMap<(NodeId, Sort), Option<OperationId>>> {
    busy.lock().unwrap_or_else(PoisonError::into_inner)
}
