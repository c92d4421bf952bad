//! The port, and the tasks behind it.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cic_common::time::unix_ms;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::aws::{Aws, AwsKey, Scheduled};
use super::azure::{Azure, AzureEvent};
use super::control;
use super::fault::Fault;
use super::gcp::{Gcp, GcpKey};

/// Questions remembered; older ones are forgotten.
const LOG_MAX: usize = 4096;

/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A question, as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is remembered of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
}

impl Logged {
    /// The values of a header, in order.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// An answer before anything is spoiled.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    pub(super) fn ok(content_type: &'static str, body: String) -> Self {
        Self { status: 200, headers: vec![(CONTENT_TYPE_NAME, content_type.to_owned())], body }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

const CONTENT_TYPE_NAME: &str = "content-type";

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) aws: Aws,
    pub(super) gcp: Gcp,
    pub(super) azure: Azure,
    pub(super) faults: BTreeMap<String, Fault>,
    /// First answers of a path come so late.
    pub(super) slow_first: BTreeMap<String, Duration>,
    /// The service's clock is so many milliseconds ahead of the machine's.
    pub(super) clock_ahead_ms: i64,
    log: VecDeque<Logged>,
}

impl State {
    pub(super) fn spoil(&mut self, path: &str, fault: Option<Fault>) {
        self.faults.retain(|spoilt, _| spoilt != path);
        self.faults.extend(fault.map(|fault| (path.to_owned(), fault)));
    }

    pub(super) fn now_unix_ms(&self) -> u64 {
        unix_ms().saturating_add_signed(self.clock_ahead_ms)
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Counts changes, so that a question that hangs is looked at again.
    changed: watch::Sender<u64>,
    connection_count: AtomicUsize,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

/// The services of one VM. Dropping it ends them.
#[derive(Debug)]
pub struct MetadataFake {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinSet<()>,
}

impl MetadataFake {
    /// Serves on a free port of the loopback, or on `port`.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn start(port: u16) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            connection_count: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, serving })
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Closes the port and every connection: new ones are refused.
    pub async fn refuse(&mut self) {
        self.serving.shutdown().await;
    }

    /// Opens the same port again.
    ///
    /// # Errors
    /// When somebody else took it meanwhile.
    pub async fn accept_again(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.serving.spawn(serve(listener, Arc::clone(&self.shared)));
        Ok(())
    }

    /// Runs until the process ends.
    pub async fn run(mut self) {
        while self.serving.join_next().await.is_some() {}
    }

    /// Spoils every answer of `path`, or lets them be right again.
    pub fn fault(&self, path: &str, fault: Option<Fault>) {
        self.shared.change(|state| state.spoil(path, fault));
    }

    /// The next answer of `path` comes only after `span`.
    pub fn slow_first(&self, path: &str, span: Duration) {
        self.shared.change(|state| state.slow_first.extend([(path.to_owned(), span)]));
    }

    /// Sets the service's clock ahead of the machine's.
    pub fn clock_ahead(&self, ms: i64) {
        self.shared.change(|state| state.clock_ahead_ms = ms);
    }

    /// The service's clock.
    #[must_use]
    pub fn now_unix_ms(&self) -> u64 {
        self.shared.lock().now_unix_ms()
    }

    /// AWS: `terminate`, `stop` or `hibernate` in `left`, or nothing.
    pub fn aws_spot(&self, notice: Option<(&str, Duration)>) {
        self.shared.change(|state| {
            let now = state.now_unix_ms();
            state.aws.spot = notice.map(|(action, left)| (action.to_owned(), now + as_ms(left)));
        });
    }

    /// AWS: the moment of the Spot notice is named anew at each read.
    pub fn aws_spot_drifts(&self, ahead: Option<Duration>) {
        self.shared.change(|state| state.aws.spot_drifts_by = ahead.map(as_ms));
    }

    pub fn aws_rebalance(&self, is_advised: bool) {
        self.shared.change(|state| {
            let now = state.now_unix_ms();
            state.aws.rebalance_unix_ms = is_advised.then_some(now);
        });
    }

    pub fn aws_scheduled(&self, events: Vec<Scheduled>) {
        self.shared.change(|state| state.aws.scheduled = events);
    }

    pub fn aws_lifecycle(&self, target: Option<&str>) {
        self.shared.change(|state| state.aws.lifecycle = target.map(str::to_owned));
    }

    /// Puts a notice of the usual kind at `key`, two minutes ahead.
    pub fn aws_notice(&self, key: AwsKey) {
        let left = Duration::from_secs(120);
        match key {
            AwsKey::Spot => self.aws_spot(Some(("terminate", left))),
            AwsKey::Rebalance => self.aws_rebalance(true),
            AwsKey::Scheduled => self.aws_scheduled(vec![Scheduled {
                id: "instance-event-0d59937288b749b32".to_owned(),
                code: "system-reboot".to_owned(),
                state: "active".to_owned(),
                not_before_unix_ms: self.now_unix_ms() + as_ms(left),
            }]),
            AwsKey::Lifecycle => self.aws_lifecycle(Some("Terminated")),
        }
    }

    /// AWS: every token is refused from now on.
    pub fn aws_forget_tokens(&self) {
        self.shared.change(|state| state.aws.forget_tokens());
    }

    pub fn gcp(&self, key: GcpKey, value: &str) {
        self.shared.change(|state| {
            let (kept, version) = state.gcp.value(key);
            if kept != value {
                value.clone_into(kept);
                *version += 1;
            }
        });
    }

    pub fn azure_events(&self, events: Vec<AzureEvent>) {
        self.shared.change(|state| {
            state.azure.events = events;
            state.azure.incarnation += 1;
        });
    }

    /// Azure: the same document with other content, which the real one never sends.
    pub fn azure_events_unnumbered(&self, events: Vec<AzureEvent>) {
        self.shared.change(|state| state.azure.events = events);
    }

    pub fn azure_refuses_start(&self, refuses: bool) {
        self.shared.change(|state| state.azure.refuses_start = refuses);
    }

    /// Azure: what was acknowledged.
    #[must_use]
    pub fn azure_started(&self) -> Vec<String> {
        self.shared.lock().azure.started.clone()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.shared.connection_count.load(Ordering::Relaxed)
    }

    /// The last questions, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<Logged> {
        self.shared.lock().log.iter().cloned().collect()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        // Cancel-safe: a connection not yet accepted waits, one that has ended is told again.
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                shared.connection_count.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&shared);
                let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move {
                    // A client that goes away is no news.
                    let _ = connection.await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

type Body = BoxBody<Bytes, io::Error>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Infallible> {
    let asked = read(request).await;
    if asked.path.starts_with(control::PREFIX) {
        let (status, body) = control::answer(&asked, &shared);
        return Ok(whole(StatusCode::from_u16(status).unwrap_or_default(), body));
    }
    let slow = {
        let mut state = shared.lock();
        if state.log.len() == LOG_MAX {
            state.log.pop_front();
        }
        let Asked { method, path, query, headers, .. } = asked.clone();
        state.log.push_back(Logged { method, path, query, headers });
        state.slow_first.remove(&asked.path)
    };
    if let Some(span) = slow {
        tokio::time::sleep(span).await;
    }
    let mut changes = shared.changed.subscribe();
    let hangs_for = asked.query("timeout_sec").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let began = tokio::time::Instant::now();
    let (reply, fault, now_unix_ms) = loop {
        changes.borrow_and_update();
        let is_over = hangs_for.is_some_and(|span| began.elapsed() >= span);
        if let Some(ready) = reply(&asked, &mut shared.lock(), is_over) {
            break ready;
        }
        let left = hangs_for.map(|span| span.saturating_sub(began.elapsed()));
        // Cancel-safe: only waits.
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(left.unwrap_or(Duration::MAX)) => {}
        }
    };
    Ok(spoilt(reply, fault, now_unix_ms))
}

/// `None` while the question hangs.
fn reply(asked: &Asked, state: &mut State, is_over: bool) -> Option<(Reply, Option<Fault>, u64)> {
    let fault = state.faults.get(&asked.path).copied();
    let now = state.now_unix_ms();
    match fault {
        Some(Fault::Hang) => return None,
        Some(Fault::Status(status)) => return Some((Reply::status(status), None, now)),
        Some(Fault::Truncated | Fault::Empty | Fault::Garbage | Fault::BadTime) | None => {}
    }
    let is_time_bad = fault == Some(Fault::BadTime);
    let reply = if asked.path.starts_with("/computeMetadata/") {
        match state.gcp.answer(asked) {
            Some(reply) => reply,
            // The value as it is, when the time to wait is over.
            None if is_over => {
                let mut at_once = asked.clone();
                at_once.query.clear();
                state.gcp.answer(&at_once)?
            }
            None => return None,
        }
    } else if asked.path.starts_with("/metadata/") {
        state.azure.answer(asked)
    } else {
        state.aws.answer(asked, now, is_time_bad)
    };
    Some((reply, fault, now))
}

fn spoilt(reply: Reply, fault: Option<Fault>, now_unix_ms: u64) -> Response<Body> {
    let mut body = reply.body;
    let length = body.len().max(2);
    match fault.filter(|_| reply.status == 200) {
        Some(Fault::Empty) => body.clear(),
        Some(Fault::Garbage) => body = "{<html>\n<body>".to_owned(),
        Some(Fault::Truncated | Fault::BadTime | Fault::Hang | Fault::Status(_)) | None => {}
    }
    let is_truncated = fault == Some(Fault::Truncated) && reply.status == 200;
    let content: Body = if is_truncated {
        body.truncate(length / 2);
        let pieces = [Ok(Frame::data(Bytes::from(body))), Err(io::Error::other("cut by the fake"))];
        StreamBody::new(futures_util::stream::iter(pieces)).boxed()
    } else {
        Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed()
    };
    let status = StatusCode::from_u16(reply.status).unwrap_or_default();
    let mut response = Response::builder().status(status).header(DATE, http_date(now_unix_ms));
    if is_truncated {
        response = response.header(CONTENT_LENGTH, length);
    }
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(content).unwrap_or_else(|_| whole(StatusCode::INTERNAL_SERVER_ERROR, String::new()))
}

fn whole(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain"));
    response
}

async fn read(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let pairs = head.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let headers =
        head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()));
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: query.map(owned).collect(),
        headers: headers.map(owned).collect(),
        body,
    }
}

fn as_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `2017-09-18T08:22:00Z`
pub(super) fn iso(unix_ms: u64) -> String {
    let text = cic_common::time::utc_text(unix_ms);
    format!("{}Z", &text[..19])
}

/// `21 Jan 2019 09:00:43 GMT`
pub(super) fn rfc2822_without_day(unix_ms: u64) -> String {
    let text = iso(unix_ms);
    let month: usize = text[5..7].parse().unwrap_or(1);
    format!("{} {} {} {} GMT", &text[8..10], MONTHS[month - 1], &text[..4], &text[11..19])
}

/// `Mon, 19 Sep 2016 18:29:47 GMT`
pub(super) fn http_date(unix_ms: u64) -> String {
    // 1 January 1970 was a Thursday.
    let day = usize::try_from(unix_ms / 86_400_000).unwrap_or(0) % 7;
    format!("{}, {}", DAYS[day], rfc2822_without_day(unix_ms))
}

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
