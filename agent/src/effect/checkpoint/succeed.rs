//! Standing in a lost node's place: what it left is read, and its unfinished requests are run again.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::Clock;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::answers::Answers;
use super::restore::Found;
use super::save::Checkpoints;
use crate::core::{Event, Occasion, Restored};
use crate::serve::edge::{Edge, Unfinished};
use crate::state::{StateDir, StateError, name};

/// Tries to read the stores, which a machine that has just booted may not reach yet.
const TRIES_MAX: u32 = 5;

const PAUSE: Duration = Duration::from_secs(3);

/// A node that was given notice is still there when its successor comes up, and writes its last checkpoint when it goes.
const LOOK: Duration = Duration::from_secs(2);

/// What is older is a node's last word: the longest Spot notice leaves 120 s.
const LAST_AFTER: Duration = Duration::from_secs(150);

/// Requests that are run again at once: users come first.
const RERUNS_AT_ONCE: usize = 4;

/// What it takes.
#[derive(Debug, Clone)]
pub struct Successor {
    pub checkpoints: Checkpoints,
    pub edge: Edge,
    pub events: mpsc::Sender<Event>,
    pub state: StateDir,
    pub clock: Clock,
}

/// Why it ends half-way; the agent's next run begins anew.
#[derive(Debug, thiserror::Error)]
pub enum SuccessionError {
    #[error("the core is gone")]
    NoCore,
    #[error(transparent)]
    State(#[from] StateError),
}

/// A checkpoint, and how long its reading took.
struct Read {
    found: Found,
    took: Duration,
}

impl Successor {
    /// Reads the newest checkpoint of `from`, tells the core what it is, and runs its unfinished requests again once it has
    /// written its last. Repeating all that does no harm.
    ///
    /// # Errors
    /// When the core is gone, or the state directory cannot be written.
    pub async fn succeed(self, from: NodeId) -> Result<(), SuccessionError> {
        let mut read = match self.find(&from).await {
            Ok(read) => read,
            Err(cause) => {
                warn!(%from, cause, "no checkpoint is restored");
                return self.say(Event::Restored { from, result: Err(cause) }).await;
            }
        };
        let requests = loop {
            let (name, is_last) = (read.found.name.clone(), is_last(&read));
            let requests = self.tell(&from, read, is_last).await?;
            if is_last {
                break requests;
            }
            read = self.next(&from, &name).await;
        };
        let answers = Answers::new(self.checkpoints.stores().clone());
        let runs: Vec<_> =
            requests.into_iter().map(|lost| run_again(self.edge.clone(), answers.clone(), lost)).collect();
        futures_util::stream::iter(runs).buffer_unordered(RERUNS_AT_ONCE).collect::<()>().await;
        self.state.write(name::PREDECESSOR, &from).await?;
        self.checkpoints.keep_newest(&from).await;
        Ok(())
    }

    /// Tells the core what was read. Returns the requests that are to be run again.
    async fn tell(
        &self,
        from: &NodeId,
        read: Read,
        is_last: bool,
    ) -> Result<Vec<Unfinished>, SuccessionError> {
        let Read { found, took } = read;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let age_ms = found.age_ms();
        let Found { name, checkpoint, skipped } = found;
        let count = |requests: usize| u32::try_from(requests).unwrap_or(u32::MAX);
        let unfinished_count = count(checkpoint.requests.len());
        let mut again = checkpoint.requests;
        again.retain(|request| is_last && request.can_be_rerun());
        let rerun_count = count(again.len());
        info!(%from, name, age_ms, took_ms, unfinished_count, rerun_count, ?skipped, "checkpoint restored");
        let restored = Restored {
            age_ms,
            took_ms,
            assignment: checkpoint.assignment,
            model_digest: checkpoint.model_digest,
            unfinished_count,
            rerun_count,
            skipped,
        };
        self.say(Event::Restored { from: from.clone(), result: Ok(restored) }).await?;
        Ok(again)
    }

    /// A later checkpoint than `name`, or this one once it is known to be the last. A store that does not answer is asked
    /// again: users are served meanwhile.
    async fn next(&self, from: &NodeId, name: &str) -> Read {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.read(from).await {
                Ok(read) if read.found.name != name || is_last(&read) => return read,
                Ok(_) => {}
                Err(cause) => debug!(%from, cause, "the next checkpoint cannot be read yet"),
            }
        }
    }

    async fn say(&self, event: Event) -> Result<(), SuccessionError> {
        self.events.send(event).await.map_err(|_| SuccessionError::NoCore)
    }

    async fn read(&self, from: &NodeId) -> Result<Read, String> {
        let since = self.clock.now();
        let found = self.checkpoints.stores().newest(from).await?;
        Ok(Read { found, took: self.clock.now().since(since) })
    }

    async fn find(&self, from: &NodeId) -> Result<Read, String> {
        let mut tries = 1;
        loop {
            match self.read(from).await {
                Err(cause) if tries < TRIES_MAX => {
                    tries += 1;
                    info!(%from, cause, "no checkpoint could be read; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }
}

async fn run_again(edge: Edge, answers: Answers, lost: Unfinished) {
    let request_id = &lost.request_id;
    match edge.run_again(&lost).await {
        Ok(done) => match answers.keep(&done.question, &done.answer).await {
            Ok(()) => info!(request_id, "request of a lost node was run again; its answer is kept"),
            Err(cause) => warn!(request_id, cause, "the answer to a lost node's request is not kept"),
        },
        Err(error) => warn!(request_id, %error, "request of a lost node could not be run again"),
    }
}

/// Whether its node will write no other: it was leaving, or has long been silent.
fn is_last(read: &Read) -> bool {
    let age = Duration::from_millis(read.found.age_ms());
    read.found.checkpoint.occasion == Occasion::Leaving || age >= LAST_AFTER
}
