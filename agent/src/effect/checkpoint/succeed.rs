//! Standing in a lost node's place: what it left is read, and its unfinished requests are run again.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::{Clock, Mono};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::answers::Answers;
use super::record::Checkpoint;
use super::restore::{Found, names_of, newest};
use super::save::Checkpoints;
use crate::core::{Event, Occasion, Restored};
use crate::serve::edge::{Edge, Unfinished};

/// Tries to find a checkpoint where every store says that there is none: a listing may lag.
const TRIES_MAX: u32 = 5;

/// Between two looks at the stores, which a machine that has just booted may not reach yet. A node that was given notice is
/// still there when its successor comes up, and writes its last checkpoint when it goes.
const LOOK: Duration = Duration::from_secs(2);

/// Looks of the first minutes are this often; then the pause is ten times as long.
const LOOKS_AT_FIRST: u32 = 150;

/// A checkpoint that is so much older than the next one should be is a node's last word.
const SILENT: Duration = Duration::from_secs(150);

/// Whatever is there then counts as the last word: a replacement is ordered half an hour ahead at most.
const LOOK_FOR: Duration = Duration::from_secs(60 * 60);

/// Requests that are run again at once: users come first.
const RERUNS_AT_ONCE: usize = 4;

/// Nobody comes for the answer to a request that began so long ago.
const REQUEST_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// What it takes.
#[derive(Debug, Clone)]
pub struct Successor {
    pub checkpoints: Checkpoints,
    pub edge: Edge,
    pub answers: Answers,
    pub events: mpsc::Sender<Event>,
    pub clock: Clock,
    /// The node will write no more, as the controller says.
    pub is_gone: watch::Receiver<bool>,
}

/// The core is gone: the agent ends, and its next run begins anew.
#[derive(Debug, thiserror::Error)]
#[error("the core is gone")]
pub struct NoCore;

/// A checkpoint, and how long its reading took.
struct Read {
    found: Found,
    took: Duration,
}

impl Successor {
    /// Reads the newest checkpoint of `from` and tells the core what it is; once `from` has written its last, runs its
    /// unfinished requests again, and tells that. Repeating all that does no harm.
    ///
    /// # Errors
    /// When nobody hears it any more.
    pub async fn succeed(mut self, from: NodeId) -> Result<(), NoCore> {
        let until = self.clock.now() + LOOK_FOR;
        let first = match self.first(&from, until).await {
            Ok(first) => first,
            Err(cause) => {
                warn!(%from, cause, "no checkpoint is restored");
                return self.say(Event::Restored { from, result: Err(cause) }).await;
            }
        };
        let name = first.found.name.clone();
        let last = if self.is_last(&first, until) {
            first
        } else {
            let (early, _) = told(&from, &first, &[], false);
            self.say(early).await?;
            self.last(&from, first, until).await
        };
        if !self.is_final(&last) {
            let cause = "it still writes, long after another was put in its place".to_owned();
            return self.say(Event::Restored { from, result: Err(cause) }).await;
        }
        let again = self.worth_running(&last.found.checkpoint).await;
        let (event, age_ms) = told(&from, &last, &again, true);
        info!(%from, first = name, last = last.found.name, age_ms, again = again.len(), "checkpoint restored");
        let (edge, answers) = (&self.edge, &self.answers);
        let runs: Vec<_> =
            again.into_iter().map(|lost| run_again(edge.clone(), answers.clone(), lost)).collect();
        futures_util::stream::iter(runs).buffer_unordered(RERUNS_AT_ONCE).collect::<()>().await;
        self.checkpoints.keep_from(&from, &last.found.name).await;
        // Only now: an heir that is lost before leaves all of it to its own.
        self.say(event).await
    }

    /// The newest checkpoint, as soon as any store can be read.
    async fn first(&mut self, from: &NodeId, until: Mono) -> Result<Read, String> {
        for look in 1.. {
            let (names, missed) = names_of(self.checkpoints.stores(), from).await;
            let cause = match (names.as_slice(), missed.as_slice()) {
                ([], []) if look >= TRIES_MAX && *self.is_gone.borrow() => {
                    return Err(format!("there is no checkpoint of {from}"));
                }
                ([], []) => format!("there is no checkpoint of {from} yet"),
                ([], missed) => missed.join("; "),
                (_, _) => match self.read(from).await {
                    Ok(read) => return Ok(read),
                    // Damaged, all of them, and no other will come.
                    Err(cause) if missed.is_empty() && look >= TRIES_MAX && *self.is_gone.borrow() => {
                        return Err(cause);
                    }
                    Err(cause) => cause,
                },
            };
            if self.clock.now() >= until {
                return Err(cause);
            }
            debug!(%from, cause, "no checkpoint could be read yet");
            self.pause(look).await;
        }
        Err(String::new())
    }

    /// The last one that the node wrote. Of what is read in between nothing is told.
    async fn last(&mut self, from: &NodeId, first: Read, until: Mono) -> Read {
        let mut newest = first;
        for look in 1.. {
            self.pause(look).await;
            let was_gone = *self.is_gone.borrow();
            let (names, _) = names_of(self.checkpoints.stores(), from).await;
            let mut has_looked = !names.is_empty();
            if names.last().is_some_and(|name| *name > newest.found.name) {
                match self.read(from).await {
                    Ok(read) => newest = read,
                    Err(_) => has_looked = false,
                }
            }
            // What it wrote before it was gone was there when we looked.
            if (was_gone && has_looked) || self.is_last(&newest, until) {
                break;
            }
        }
        newest
    }

    /// Until it is time to look again, or the node is gone.
    async fn pause(&mut self, look: u32) {
        let pause = if look <= LOOKS_AT_FIRST { LOOK } else { LOOK * 10 };
        let was_gone = *self.is_gone.borrow_and_update();
        // Cancel safe: both only wait. A sender that is dropped says nothing more.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = self.is_gone.changed(), if !was_gone => {}
        }
    }

    fn is_last(&self, read: &Read, until: Mono) -> bool {
        is_last_word(&read.found.checkpoint, read.found.age_ms()) || self.clock.now() >= until
    }

    /// Whether nothing can come after it.
    fn is_final(&self, read: &Read) -> bool {
        is_last_word(&read.found.checkpoint, read.found.age_ms()) || *self.is_gone.borrow()
    }

    /// Requests that somebody may still come for, and that nobody has run again yet.
    async fn worth_running(&self, checkpoint: &Checkpoint) -> Vec<Unfinished> {
        let age_ms = cic_common::time::unix_ms().saturating_sub(checkpoint.taken_at_ms);
        let mut again = Vec::new();
        for request in &checkpoint.requests {
            let is_old = Duration::from_millis(age_ms.saturating_add(request.for_ms)) > REQUEST_AGE_MAX;
            let Some(question) = request.question().filter(|_| !is_old) else { continue };
            if self.answers.find(&question).await.is_none() {
                again.push(request.clone());
            }
        }
        again
    }

    async fn read(&self, from: &NodeId) -> Result<Read, String> {
        let since = self.clock.now();
        let found = newest(self.checkpoints.stores(), from).await?;
        Ok(Read { found, took: self.clock.now().since(since) })
    }

    async fn say(&self, event: Event) -> Result<(), NoCore> {
        self.events.send(event).await.map_err(|_| NoCore)
    }
}

/// What the core is to know of a checkpoint, and its age.
fn told(from: &NodeId, read: &Read, again: &[Unfinished], is_last: bool) -> (Event, u64) {
    let Read { found, took } = read;
    let count = |requests: usize| u32::try_from(requests).unwrap_or(u32::MAX);
    let age_ms = found.age_ms();
    let restored = Restored {
        age_ms,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        assignment: found.checkpoint.assignment.clone(),
        model_digest: found.checkpoint.model_digest.clone(),
        unfinished_count: count(found.checkpoint.requests.len()),
        rerun_count: count(again.len()),
        skipped: found.skipped.clone(),
        is_last,
    };
    (Event::Restored { from: from.clone(), result: Ok(restored) }, age_ms)
}

/// Whether a node writes no more after this: it was leaving, or the next one is long due.
pub(super) fn is_last_word(checkpoint: &Checkpoint, age_ms: u64) -> bool {
    let due = Duration::from_millis(checkpoint.every_ms).saturating_add(SILENT);
    checkpoint.occasion == Occasion::Leaving || Duration::from_millis(age_ms) >= due
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
