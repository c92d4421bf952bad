//! A client that loops requests through an edge and counts what a user would see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::request;

/// Longest a request may take before the client calls it failed.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// What the client saw.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    pub good: u64,
    /// Each with its cause.
    pub failed: Vec<String>,
    pub longest: Duration,
}

/// Requests in a loop, from several threads, until stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// Starts `clients` loops of short, non-streamed completions.
    #[must_use]
    pub fn start(edge: &str, model: &str, clients: usize) -> Self {
        Self::paced(edge, model, clients, Duration::ZERO)
    }

    /// As [`Self::start`], with a pause after each request.
    #[must_use]
    pub fn paced(edge: &str, model: &str, clients: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let body =
            serde_json::json!({ "model": model, "prompt": "one two three", "max_tokens": 8 }).to_string();
        let client = |_| {
            let (stop, edge, body) = (Arc::clone(&stop), edge.to_owned(), body.clone());
            std::thread::spawn(move || run(&stop, &edge, &body, pause))
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, clients }
    }

    /// Ends the loops and adds up what they saw.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn stop(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let join = |client: JoinHandle<Outcome>| {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        self.clients.drain(..).map(join).fold(Outcome::default(), |mut sum, outcome| {
            sum.good += outcome.good;
            sum.failed.extend(outcome.failed);
            sum.longest = sum.longest.max(outcome.longest);
            sum
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(stop: &AtomicBool, edge: &str, body: &str, pause: Duration) -> Outcome {
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        match request(edge, "POST", "/v1/completions", Some(body), REQUEST_WITHIN) {
            Ok(answer) if answer.status == 200 && answer.body.contains("\"choices\"") => outcome.good += 1,
            Ok(answer) => outcome.failed.push(format!("{}: {}", answer.status, answer.body)),
            Err(error) => outcome.failed.push(format!("{error:#}")),
        }
        outcome.longest = outcome.longest.max(began.elapsed());
        if !pause.is_zero() {
            std::thread::sleep(pause); // bounded wait: a pace, not an order
        }
    }
    outcome
}
