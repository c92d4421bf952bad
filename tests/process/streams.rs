//! Streams through an edge, each read to its end and judged as a user would.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

/// No event of a stream may take longer.
const EVENT_WITHIN: Duration = Duration::from_secs(30);

/// What became of the streams.
#[derive(Debug, Default, Clone)]
pub struct StreamsSeen {
    pub whole: u64,
    /// Those that broke before the first event: a retry could have hidden them.
    pub refused: Vec<String>,
    /// Those that broke after it, each with the node that served it and the cause.
    pub broken: Vec<(String, String)>,
    /// The longest wait for an event, the first one apart.
    pub longest_gap: Duration,
}

/// Streams in a loop, from several threads, until stopped.
#[derive(Debug)]
pub struct Streams {
    stop: Arc<AtomicBool>,
    edge: Arc<Mutex<String>>,
    clients: Vec<JoinHandle<StreamsSeen>>,
}

impl Streams {
    /// Starts `clients` loops of streamed completions of `tokens` tokens each.
    #[must_use]
    pub fn start(edge: &str, model: &str, clients: usize, tokens: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let edge = Arc::new(Mutex::new(edge.to_owned()));
        let body = json!({
            "model": model, "prompt": "one two three", "max_tokens": tokens, "stream": true, "ignore_eos": true,
        })
        .to_string();
        let client = |_| {
            let (stop, edge, body) = (Arc::clone(&stop), Arc::clone(&edge), body.clone());
            std::thread::spawn(move || {
                let mut seen = StreamsSeen::default();
                while !stop.load(Ordering::Relaxed) {
                    let address = edge.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    run(&address, &body, &mut seen);
                }
                seen
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, edge, clients }
    }

    /// New streams go to another address from now on.
    pub fn redirect(&self, edge: &str) {
        edge.clone_into(&mut self.edge.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the loops, each with the stream it is in, and adds up what they saw.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn stop(mut self) -> StreamsSeen {
        self.stop.store(true, Ordering::Relaxed);
        let join = |client: JoinHandle<StreamsSeen>| {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        self.clients.drain(..).map(join).fold(StreamsSeen::default(), |mut sum, seen| {
            sum.whole += seen.whole;
            sum.refused.extend(seen.refused);
            sum.broken.extend(seen.broken);
            sum.longest_gap = sum.longest_gap.max(seen.longest_gap);
            sum
        })
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(edge: &str, body: &str, seen: &mut StreamsSeen) {
    let mut node = String::new();
    let mut event_count = 0;
    match stream(edge, body, &mut node, &mut event_count, &mut seen.longest_gap) {
        Ok(()) => seen.whole += 1,
        Err(error) if event_count == 0 => {
            seen.refused.push(format!("{error:#}"));
            // An edge that is down must not be asked a million times a second.
            std::thread::sleep(Duration::from_millis(20)); // bounded wait: one pause
        }
        Err(error) => seen.broken.push((node, format!("after {event_count} events: {error:#}"))),
    }
}

/// One stream to its end: only a finish reason other than `abort` before `[DONE]` is success.
fn stream(
    edge: &str,
    body: &str,
    node: &mut String,
    event_count: &mut u64,
    longest_gap: &mut Duration,
) -> anyhow::Result<()> {
    let address: SocketAddr = edge.parse().with_context(|| format!("address {edge:?}"))?;
    let mut socket = TcpStream::connect_timeout(&address, EVENT_WITHIN).context("connect")?;
    socket.set_read_timeout(Some(EVENT_WITHIN))?;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {edge}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).context("send")?;
    let mut lines = BufReader::new(socket).lines();
    let status = lines.next().context("no answer")??;
    ensure!(status.contains(" 200 "), "{status}");
    let (mut finish, mut last_event) = (None, None::<Instant>);
    for line in lines {
        let line = line.context("read")?;
        if let Some(name) = line.strip_prefix("x-cic-node: ") {
            name.trim().clone_into(node);
        }
        let Some(event) = line.strip_prefix("data: ") else { continue };
        let now = Instant::now();
        *longest_gap = last_event.map_or(Duration::ZERO, |last| now - last).max(*longest_gap);
        last_event = Some(now);
        if event == "[DONE]" {
            return match finish.as_deref() {
                Some("length" | "stop") => Ok(()),
                other => bail!("ended with finish reason {other:?}"),
            };
        }
        let event: Value = serde_json::from_str(event).context("an event is no JSON")?;
        ensure!(event["error"].is_null(), "error event: {}", event["error"]);
        *event_count += 1;
        if let Some(reason) = event["choices"][0]["finish_reason"].as_str() {
            finish = Some(reason.to_owned());
        }
    }
    bail!("the body ended without [DONE]")
}
