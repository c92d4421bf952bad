//! The client: requests in a closed loop on a number of connections, each answer timed and looked at.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::bodies::DONE;
use super::contender::Contender;
use super::figures::{Cell, Figure};
use super::machine::Cores;
use crate::rig::Usage;
use crate::table::percentile;

/// The name that the upstream's model has everywhere here: [`fleet_tests::process::Solo`] gives it.
pub(super) const MODEL: &str = "tiny";

/// Requests before the window: connections are opened, code and caches are warm.
const WARM: Duration = Duration::from_millis(250);

/// Answers are counted for so long. At 10 ms a tick the time on a core is known to 1 %.
const WINDOW: Duration = Duration::from_secs(1);

/// No answer here takes longer than this after the window.
const LATE: Duration = Duration::from_secs(10);

const MIB: f64 = (1 << 20) as f64;

/// Puts the load of `cell` on a contender. `engines` are the processes behind them all.
///
/// # Errors
/// When an answer is none or is not whole: figures of failures say nothing.
pub(super) async fn measure(contender: &Contender, cell: Cell, engines: &[u32]) -> anyhow::Result<Figure> {
    let address = contender.address;
    let mut senders = Vec::new();
    for _ in 0..cell.connection_count() {
        senders.push(connect(address).await?);
    }
    let from = Instant::now() + WARM;
    let window = Window { from, until: from + WINDOW };
    let request = Wanted::new(address, cell.is_stream())?;
    let mut clients = JoinSet::new();
    for sender in senders {
        clients.spawn(client(sender, request.clone(), window));
    }
    tokio::time::sleep_until(window.from.into()).await;
    let (cores, own) = (Cores::now()?, own_cpu(engines)?);
    let before = contender.usage()?;
    tokio::time::sleep_until(window.until.into()).await;
    let after = contender.usage()?;
    let cpu = before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    let own = own_cpu(engines)?.saturating_sub(own) + cpu.unwrap_or_default();
    let others = cores.taken_by_others(own)?;
    let mut seen = Seen::default();
    let joined = async {
        while let Some(one) = clients.join_next().await {
            seen.add(one??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LATE, joined).await.context("answers are late")??;
    Ok(figure(seen, cpu, after, others))
}

/// Samples begun before the window or ended after it are not among those seen.
#[derive(Debug, Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

#[derive(Debug, Default)]
struct Seen {
    whole_ms: Vec<f64>,
    first_ms: Vec<f64>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.whole_ms.extend(other.whole_ms);
        self.first_ms.extend(other.first_ms);
    }
}

#[allow(clippy::cast_precision_loss)]
fn figure(mut seen: Seen, cpu: Option<Duration>, usage: Option<Usage>, others: f64) -> Figure {
    let count = seen.whole_ms.len() as f64;
    Figure {
        rate: count / WINDOW.as_secs_f64(),
        p50_ms: percentile(&mut seen.whole_ms, 50.0),
        p99_ms: percentile(&mut seen.whole_ms, 99.0),
        first_ms: percentile(&mut seen.first_ms, 50.0),
        cpu_us: cpu.map_or(f64::NAN, |cpu| cpu.as_secs_f64() * 1e6 / count),
        rss_mib: usage.map_or(f64::NAN, |usage| usage.rss_bytes as f64 / MIB),
        others,
    }
}

/// Time on a core of this client and of the engines.
fn own_cpu(engines: &[u32]) -> anyhow::Result<Duration> {
    let pids = engines.iter().copied().chain([std::process::id()]);
    pids.map(|pid| Ok(Usage::of(pid)?.cpu)).sum()
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with its sender.
    tokio::spawn(connection);
    Ok(sender)
}

/// One client: the next request as soon as an answer is whole.
async fn client(
    mut sender: SendRequest<Full<Bytes>>,
    wanted: Wanted,
    window: Window,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    loop {
        sender.ready().await.context("the connection was closed")?;
        let began = Instant::now();
        if began >= window.until {
            return Ok(seen);
        }
        let first = exchange(&mut sender, &wanted).await?;
        let ended = Instant::now();
        if began >= window.from && ended <= window.until {
            seen.whole_ms.push((ended - began).as_secs_f64() * 1000.0);
            seen.first_ms.push((first - began).as_secs_f64() * 1000.0);
        }
    }
}

/// One request and its whole answer; the moment of the body's first bytes.
async fn exchange(sender: &mut SendRequest<Full<Bytes>>, wanted: &Wanted) -> anyhow::Result<Instant> {
    let response = sender.send_request(wanted.request()).await?;
    let status = response.status();
    let mut body = response.into_body();
    let (mut first, mut end) = (None, End::default());
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the answer broke off")?;
        if let Some(data) = frame.data_ref() {
            first.get_or_insert_with(Instant::now);
            end.add(data);
        }
    }
    ensure!(status == StatusCode::OK, "answered {status}: {}", String::from_utf8_lossy(&end.bytes));
    ensure!(!wanted.is_stream || end.bytes.ends_with(DONE), "the stream ended without [DONE]");
    first.context("the answer is empty")
}

/// What is sent again and again.
#[derive(Debug, Clone)]
struct Wanted {
    is_stream: bool,
    host: HeaderValue,
    body: Bytes,
}

impl Wanted {
    fn new(address: SocketAddr, is_stream: bool) -> anyhow::Result<Self> {
        let messages = [json!({ "role": "user", "content": "Say one token after another, please." })];
        let body = json!({ "model": MODEL, "messages": messages, "max_tokens": 64, "stream": is_stream });
        let host = HeaderValue::from_str(&address.to_string())?;
        Ok(Self { is_stream, host, body: body.to_string().into() })
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static("/v1/chat/completions");
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }
}

/// The last bytes of an answer, however it was cut into frames.
#[derive(Debug, Default)]
struct End {
    bytes: Vec<u8>,
}

impl End {
    const LENGTH: usize = 256;

    fn add(&mut self, data: &[u8]) {
        if data.len() >= Self::LENGTH {
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(&data[data.len().saturating_sub(Self::LENGTH)..]);
        let surplus = self.bytes.len().saturating_sub(Self::LENGTH);
        self.bytes.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_stream_is_known_however_it_is_cut() {
        for frames in [
            vec![&b"data: {}\n\n"[..], DONE],
            vec![b"data: {}\n\ndata: [DO", b"NE]\n\n"],
            vec![&[b'x'; 300], b"data: [DONE]\n", b"\n"],
            vec![&[&[b'x'; 300], DONE].concat()],
        ] {
            let mut end = End::default();
            frames.iter().for_each(|frame| end.add(frame));
            assert!(end.bytes.ends_with(DONE) && end.bytes.len() <= End::LENGTH);
        }
    }
}
