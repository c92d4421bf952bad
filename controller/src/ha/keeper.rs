//! The task that plays the lease protocol against the database, and gives the driver its turns.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use cic_common::id::Term;
use cic_common::supervise::{Kind, Supervisor, TaskHandle, TaskResult};
use cic_common::time::{Clock, Mono};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::leadership::{Leadership, Order, Post};
use super::lease::{Answer, LeaseAction, LeaseEvent, LeaseProtocol, LeaseTiming, Request, Role};
use super::turn::{Reign, Turn, TurnGiver, Turns};
use crate::core::Restored;
use crate::store::{Database, Holder, Renewed, StoreError, StoreQueue, Taken, Write, run_writer};

/// A statement on the lease's row takes milliseconds. Two in a row may be late before a renewal is.
const ASK_WITHIN: Duration = Duration::from_secs(1);

/// What a term left to be stored when it ends; a commit takes some 30 ms, and who waits for the lease waits for this.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);

/// Between two readings of the rows by a standby.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// Between attempts of a new leader to read the rows.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Recorded operations on their way to the core.
const RECORDED_WAITING_MAX: usize = 1024;

/// Wishes that wait.
const ORDERS_WAITING_MAX: usize = 8;

/// Ends of writers that wait to be looked at; one a term.
const ENDS_WAITING_MAX: usize = 16;

type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// What keeping takes.
#[derive(Debug)]
pub struct KeeperSpec {
    pub database: Database,
    pub own: Holder,
    pub clock: Clock,
    pub timing: LeaseTiming,
    /// Where each term's writer runs. They outlive what makes work for them.
    pub tasks: Supervisor,
}

/// The lease's keeper.
pub struct Keeper {
    spec: KeeperSpec,
    protocol: LeaseProtocol,
    turns: TurnGiver,
    post: watch::Sender<Post>,
    orders: mpsc::Receiver<Order>,
    ended: (mpsc::Sender<Term>, mpsc::Receiver<Term>),
    asked: Pending<(Mono, Answer)>,
    reading: Pending<Result<Restored, StoreError>>,
    reign: Option<Reigning>,
    /// Of the term that just ended, whose writes are stored before its lease is released.
    past: Option<Reigning>,
    follow_at: Mono,
    is_following_failed: bool,
    /// The newest term that was seen.
    newest: Term,
    handed_over: Option<(Term, oneshot::Sender<Option<Term>>)>,
    stopped: Option<oneshot::Sender<()>>,
}

/// A term of this controller.
#[derive(Debug)]
struct Reigning {
    term: Term,
    queue: StoreQueue,
    writer: TaskHandle,
    /// Until the driver leads.
    recorded: Option<mpsc::Receiver<cic_common::id::OperationId>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Takes the lease, or learns who has it, and reads the rows: the first turn is given when this returns.
    ///
    /// # Errors
    /// When the database fails: nothing runs yet, so the program can end with the reason.
    pub async fn begin(spec: KeeperSpec) -> Result<(Self, Leadership, Turns), StoreError> {
        let sent = spec.clock.now();
        let taken = spec.database.take_lease(&spec.own, spec.timing.span).await?;
        let post = Post { role: Role::Standby { leader: None }, queue: None };
        let (post, watched) = watch::channel(post);
        let (order, orders) = mpsc::channel(ORDERS_WAITING_MAX);
        let leadership = Leadership { own: spec.own.clone(), post: watched, orders: order };
        let turns = TurnGiver::default();
        let driver = turns.turns();
        let mut keeper = Self {
            protocol: LeaseProtocol::new(spec.timing, sent),
            spec,
            turns,
            post,
            orders,
            ended: mpsc::channel(ENDS_WAITING_MAX),
            asked: None,
            reading: None,
            reign: None,
            past: None,
            follow_at: sent,
            is_following_failed: false,
            newest: Term(0),
            handed_over: None,
            stopped: None,
        };
        let mut asked = Vec::new();
        keeper.protocol.step(sent, LeaseEvent::Tick, &mut asked);
        debug_assert_eq!(asked, [LeaseAction::Ask(Request::Take)]);
        keeper.step(LeaseEvent::Answered { sent, answer: Answer::Took(taken) });
        keeper.reading = None;
        let restored = keeper.spec.database.restore(keeper.newest).await?;
        keeper.read(Ok(restored));
        Ok((keeper, leadership, driver))
    }

    /// Keeps the lease, or waits for it, until `token` is cancelled. Who wants it released says so before.
    ///
    /// # Errors
    /// Never: a database that fails is waited for.
    pub async fn run(mut self, token: CancellationToken) -> TaskResult {
        loop {
            let is_idle = self.reign.is_none() && self.reading.is_none();
            let follow = is_idle.then_some(self.follow_at);
            let wake = self.protocol.deadline().into_iter().chain(follow).min();
            // Cancel safe: queues keep what is not taken, what is asked and read is polled on, a sleep is computed anew.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                (sent, answer) = pending(&mut self.asked) => {
                    self.asked = None;
                    self.step(LeaseEvent::Answered { sent, answer });
                }
                result = pending(&mut self.reading) => {
                    self.reading = None;
                    self.read(result);
                }
                Some(term) = self.ended.1.recv() => self.step(LeaseEvent::Fenced { term }),
                Some(order) = self.orders.recv() => self.obey(order),
                () = sleep_until(&self.spec.clock, wake) => self.step(LeaseEvent::Tick),
            }
            if self.reign.is_none() && self.reading.is_none() && self.spec.clock.now() >= self.follow_at {
                self.follow();
            }
            self.answer_orders();
        }
    }

    fn step(&mut self, event: LeaseEvent) {
        if let LeaseEvent::Answered { answer, .. } = &event {
            self.note_term(answer);
        }
        let mut actions = Vec::new();
        self.protocol.step(self.spec.clock.now(), event, &mut actions);
        for action in actions {
            match action {
                LeaseAction::Ask(request) => self.ask(request),
                LeaseAction::Lead { term } => self.lead(term),
                LeaseAction::StepDown { term } => self.step_down(term),
            }
        }
        self.publish();
    }

    fn note_term(&mut self, answer: &Answer) {
        let seen = match answer {
            Answer::Took(Taken::Yes(term)) => Some(*term),
            Answer::Took(Taken::No(lease)) | Answer::Renewed { renewed: Renewed::Lost(lease), .. } => {
                Some(lease.term)
            }
            Answer::Saw(lease) => lease.as_ref().map(|lease| lease.term),
            Answer::Renewed { renewed: Renewed::Yes, .. } | Answer::Released { .. } | Answer::Nothing => None,
        };
        self.newest = self.newest.max(seen.unwrap_or_default());
    }

    fn publish(&self) {
        let post =
            Post { role: self.protocol.role(), queue: self.reign.as_ref().map(|reign| reign.queue.clone()) };
        self.post.send_if_modified(|current| {
            let is_changed = current.role != post.role || current.queue.is_some() != post.queue.is_some();
            if is_changed {
                *current = post;
            }
            is_changed
        });
    }

    fn ask(&mut self, request: Request) {
        let past = self.past.take();
        let (database, own) = (self.spec.database.clone(), self.spec.own.clone());
        let (sent, span) = (self.spec.clock.now(), self.spec.timing.span);
        self.asked = Some(Box::pin(async move {
            if let (Request::Release { term }, Some(past)) = (request, &past)
                && past.term == term
            {
                past.flush().await;
            }
            if let Some(past) = past {
                past.writer.cancel();
            }
            let answer = match timeout(ASK_WITHIN, ask(&database, &own, request, span)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    debug!(%error, ?request, "lease: the database did not do it");
                    Answer::Nothing
                }
                Err(_) => Answer::Nothing,
            };
            (sent, answer)
        }));
    }

    fn lead(&mut self, term: Term) {
        let queue = StoreQueue::default();
        let (confirm, recorded) = mpsc::channel(RECORDED_WAITING_MAX);
        let (database, written) = (self.spec.database.clone(), queue.clone());
        let end = End { term, told: self.ended.0.clone() };
        let writer = self.spec.tasks.spawn("store", Kind::Passing, move |token| async move {
            let _end = end;
            run_writer(database, term, written, confirm, token).await;
            Ok(())
        });
        info!(%term, controller = %self.spec.own.controller, "this controller leads");
        self.reign = Some(Reigning { term, queue, writer, recorded: Some(recorded) });
        let database = self.spec.database.clone();
        self.reading = Some(Box::pin(async move {
            loop {
                match database.restore(term).await {
                    Ok(restored) => return Ok(restored),
                    Err(error) => warn!(%error, %term, "new leader cannot read the store yet"),
                }
                tokio::time::sleep(READ_AGAIN_AFTER).await;
            }
        }));
    }

    fn step_down(&mut self, term: Term) {
        warn!(%term, newest = %self.newest, "this controller leads no more");
        self.turns.give(Turn::StepDown);
        self.reading = None;
        self.follow_at = self.spec.clock.now();
        self.past = self.reign.take();
    }

    fn follow(&mut self) {
        self.follow_at = self.spec.clock.now() + FOLLOW_EVERY;
        let (database, term) = (self.spec.database.clone(), self.newest);
        self.reading = Some(Box::pin(async move { database.restore(term).await }));
    }

    /// The rows are here. Those of a term that has ended meanwhile were dropped with it.
    fn read(&mut self, result: Result<Restored, StoreError>) {
        match (result, &mut self.reign) {
            (Ok(restored), Some(reign)) => {
                let Some(recorded) = reign.recorded.take() else { return };
                self.turns.give(Turn::Lead(Reign { restored, queue: reign.queue.clone(), recorded }));
            }
            (Ok(restored), None) => {
                self.is_following_failed = false;
                self.follow_at = self.spec.clock.now() + FOLLOW_EVERY;
                self.turns.give(Turn::Follow(restored));
            }
            (Err(error), _) => {
                if !std::mem::replace(&mut self.is_following_failed, true) {
                    warn!(%error, "standby cannot follow the store; it goes by what it read last");
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::HandOver(done) => match &self.reign {
                Some(reign) => {
                    self.handed_over = Some((reign.term, done));
                    self.step(LeaseEvent::HandOver);
                }
                None => drop(done.send(None)),
            },
            Order::Stop(done) => {
                self.stopped = Some(done);
                self.step(LeaseEvent::Stop);
            }
        }
    }

    fn answer_orders(&mut self) {
        if !self.protocol.holds()
            && let Some((term, done)) = self.handed_over.take()
        {
            let _ = done.send(Some(term));
        }
        if self.protocol.is_done()
            && let Some(done) = self.stopped.take()
        {
            let _ = done.send(());
        }
    }
}

impl Reigning {
    /// Waits until all that was queued is stored, but not long.
    async fn flush(&self) {
        let (stored, answer) = oneshot::channel();
        if self.queue.push(Write::Barrier(stored)) && timeout(FLUSH_WITHIN, answer).await.is_err() {
            warn!(term = %self.term, "not all that this term decided was stored; whoever leads next decides it anew");
        }
    }
}

/// Tells the keeper that a term's writer has ended, however it did.
struct End {
    term: Term,
    told: mpsc::Sender<Term>,
}

impl Drop for End {
    fn drop(&mut self) {
        // Full: the keeper has ends enough to look at, and the lease tells the rest.
        let _ = self.told.try_send(self.term);
    }
}

async fn ask(
    database: &Database,
    own: &Holder,
    request: Request,
    span: Duration,
) -> Result<Answer, StoreError> {
    Ok(match request {
        Request::Take => Answer::Took(database.take_lease(own, span).await?),
        Request::Renew { term } => Answer::Renewed { term, renewed: database.renew_lease(term, span).await? },
        Request::Release { term } => {
            database.release_lease(term).await?;
            Answer::Released { term }
        }
        Request::Look => Answer::Saw(database.lease().await?),
    })
}

async fn pending<T>(future: &mut Pending<T>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(clock: &Clock, at: Option<Mono>) {
    match at {
        Some(at) => tokio::time::sleep_until(clock.instant(at).into()).await,
        None => std::future::pending().await,
    }
}
