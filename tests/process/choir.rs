//! Many clients that listen to streams at once, while a test knows who sings on which node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::heard::{Ask, Heard};

/// Between two looks of a client that rests.
const LOOK: Duration = Duration::from_millis(20);

/// Fields that tell one kind of request from another, for whoever reads of a failure.
const KINDS: [&str; 4] = ["stream_options", "return_token_ids", "stop", "ignore_eos"];

/// A stream that runs now.
#[derive(Debug, Default, Clone)]
struct Running {
    node: String,
    event_count: usize,
    was_cut: bool,
}

/// Which streams run, and where each of them began.
#[derive(Debug, Default)]
pub struct Board {
    clients: usize,
    running: Mutex<BTreeMap<usize, Running>>,
    cut: Mutex<BTreeSet<usize>>,
}

impl Board {
    /// Streams that have begun on `node` and not been cut since: those that its end would cut.
    #[must_use]
    pub fn on(&self, node: &str) -> usize {
        self.lock().values().filter(|one| is_there(one, node)).count()
    }

    /// Whether a quarter of all clients listen to a stream that has begun on `node`: streams that begin together also end
    /// together, and between two of them an end would cut none.
    #[must_use]
    pub fn is_crowded(&self, node: &str) -> bool {
        self.on(node) * 4 >= self.clients
    }

    /// Streams that run and have at least `event_count` events.
    #[must_use]
    pub fn begun(&self, event_count: usize) -> usize {
        self.lock().values().filter(|one| one.event_count >= event_count).count()
    }

    /// Notes that every stream on `node` was cut just now; returns how many there were.
    pub fn cut(&self, node: &str) -> usize {
        let mut running = self.lock();
        let hit = running.iter_mut().filter(|(_, one)| is_there(one, node));
        let numbers: Vec<usize> = hit
            .map(|(number, one)| {
                one.was_cut = true;
                *number
            })
            .collect();
        let count = numbers.len();
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).extend(numbers);
        count
    }

    /// Streams cut so far, by the number of the request.
    #[must_use]
    pub fn cuts(&self) -> BTreeSet<usize> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, number: usize, node: &str, event_count: usize) {
        let mut running = self.lock();
        let one = running.entry(number).or_default();
        if one.node.is_empty() {
            node.clone_into(&mut one.node);
        }
        one.event_count = event_count;
    }

    fn end(&self, number: usize) {
        self.lock().remove(&number);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_there(one: &Running, node: &str) -> bool {
    one.node == node && one.event_count > 0 && !one.was_cut
}

/// Clients at work. They take one request after the other, from the first again after the last.
#[derive(Debug)]
pub struct Choir {
    pub board: Arc<Board>,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    edge: String,
    asks: Vec<Ask>,
    next: AtomicUsize,
    end: usize,
    stop: AtomicBool,
    rests: AtomicBool,
    /// What each request should hear. Then events are not kept, nor is what was heard right.
    reference: Option<Vec<Heard>>,
    heard: Mutex<Vec<(usize, Heard)>>,
    wrong: Mutex<Vec<String>>,
}

impl Choir {
    /// Starts `clients` clients, for `end` requests at most.
    #[must_use]
    pub fn start(edge: &str, asks: &[Ask], clients: usize, end: usize) -> Self {
        Self::start_with(edge, asks, clients, end, None)
    }

    /// As [`Self::start`], without an end: each stream is compared with its `reference` and forgotten.
    #[must_use]
    pub fn start_for_long(edge: &str, asks: &[Ask], clients: usize, reference: Vec<Heard>) -> Self {
        Self::start_with(edge, asks, clients, usize::MAX, Some(reference))
    }

    fn start_with(
        edge: &str,
        asks: &[Ask],
        clients: usize,
        end: usize,
        reference: Option<Vec<Heard>>,
    ) -> Self {
        let board = Arc::new(Board { clients, ..Board::default() });
        let shared = Arc::new(Shared {
            edge: edge.to_owned(),
            asks: asks.to_vec(),
            next: AtomicUsize::new(0),
            end,
            stop: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            reference,
            heard: Mutex::default(),
            wrong: Mutex::default(),
        });
        let client = |_| {
            let (board, shared) = (Arc::clone(&board), Arc::clone(&shared));
            std::thread::spawn(move || shared.sing(&board))
        };
        let clients = (0..clients).map(client).collect();
        Self { board, shared, clients }
    }

    /// Lets no client begin another stream, or lets them begin again. Those that run go on.
    pub fn rest(&self, rests: bool) {
        self.shared.rests.store(rests, Ordering::Relaxed);
    }

    /// Streams that ended, however they did.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// In what streams differed from the reference, so far.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        self.shared.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every request was made and has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.clients.iter().all(JoinHandle::is_finished)
    }

    /// Lets each client end the stream that it is in; returns what all heard, each with the number of its request.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn stop(mut self) -> Vec<(usize, Heard)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// As [`Self::stop`], with every difference from the reference.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn judged(mut self) -> (Vec<(usize, Heard)>, Vec<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let heard = self.join();
        (heard, self.wrong())
    }

    /// As [`Self::stop`], but every request up to the end is made first.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn finish(mut self) -> Vec<(usize, Heard)> {
        self.join()
    }

    fn join(&mut self) -> Vec<(usize, Heard)> {
        for client in self.clients.drain(..) {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        std::mem::take(&mut *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Choir {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn sing(&self, board: &Board) {
        while !self.stop.load(Ordering::Relaxed) {
            if self.rests.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK); // bounded wait: by whoever lets them rest
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.end {
                return;
            }
            let of_set = number % self.asks.len();
            let mut tell = |node: &str, event_count| board.tell(number, node, event_count);
            let mut heard = Heard::listen(&self.edge, &self.asks[of_set], &mut tell);
            board.end(number);
            if let Some(reference) = &self.reference {
                let found = heard.differences(&reference[of_set]);
                if !found.is_empty() {
                    let ask = &self.asks[of_set];
                    let kind = KINDS.iter().filter(|key| !ask.body[**key].is_null()).copied();
                    let kind = kind.collect::<Vec<_>>().join(" ");
                    let text = format!(
                        "request {of_set} ({} {kind}) begun on {}: {}",
                        ask.path,
                        heard.node,
                        found.join("; ")
                    );
                    self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                }
                heard.events = Vec::new();
            }
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).push((of_set, heard));
        }
    }
}
