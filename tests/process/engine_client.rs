//! An engine as a child process, and just enough HTTP to talk to it: what the contract's cases are written with.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cic_common::ports::lasting_port;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub(crate) const MODEL: &str = "tiny";
pub(crate) const CONTEXT: usize = 2048;
/// The real engine has taken up to 175 s to start on a machine under load.
const START_MAX: Duration = Duration::from_secs(400);
pub(crate) const STOP_MAX: Duration = Duration::from_secs(20);
/// For anything that an engine that runs should do soon.
pub(crate) const SOON: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const OFFLINE: [(&str, &str); 5] = [
    ("HF_HUB_OFFLINE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("DO_NOT_TRACK", "1"),
    ("VLLM_CPU_KVCACHE_SPACE", "1"),
];

/// Which engine, and with what.
pub(crate) struct StartedBy {
    pub(crate) program: PathBuf,
    pub(crate) model: PathBuf,
}

impl StartedBy {
    pub(crate) fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn command(&self, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("serve").arg(&self.model).args(["--served-model-name", MODEL, "--enforce-eager"]);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--dtype", "float32"]);
        command.args(["--max-model-len", &CONTEXT.to_string(), "--shutdown-timeout", "0"]);
        command.envs(OFFLINE).stdin(Stdio::null());
        command
    }
}

/// A running engine; its process group is killed when this is dropped, whatever happened.
pub(crate) struct Engine {
    pub(crate) port: u16,
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Engine {
    /// Readiness as the agent sees it: refused, then /health 200, then the model is listed and completes a token.
    pub(crate) fn start(started_by: &StartedBy) -> Result<Self> {
        let port = lasting_port()?;
        let log = tempfile::NamedTempFile::new()?;
        let mut command = started_by.command(port);
        command.stdout(log.reopen()?).stderr(log.reopen()?).process_group(0);
        let child =
            command.spawn().with_context(|| format!("cannot start {}", started_by.program.display()))?;
        let mut engine = Self { port, child, log };
        let outcome = until("/health answers 200", START_MAX, || {
            if let Some(status) = engine.child.try_wait()? {
                bail!("it exited while starting ({status})");
            }
            Ok(engine.get("/health").is_ok_and(|health| health.status == 200))
        });
        outcome.with_context(|| engine.log_end())?;
        engine.complete(json!({"max_tokens": 1}))?;
        Ok(engine)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Reply> {
        self.exchange("GET", path, None)?.into_reply()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.exchange("POST", path, Some(&body.to_string()))?.into_reply()
    }

    pub(crate) fn complete(&self, more: Value) -> Result<Value> {
        self.post("/v1/completions", &completion(more))?.expect(200)
    }

    pub(crate) fn stream(&self, path: &str, body: &Value) -> Result<Exchange> {
        let exchange = self.exchange("POST", path, Some(&body.to_string()))?;
        ensure!(exchange.status == 200, "status {}", exchange.status);
        ensure!(exchange.head.contains("content-type: text/event-stream"), "{}", exchange.head);
        Ok(exchange)
    }

    /// By hand, so that events are read as they come and dropping the exchange closes the connection.
    pub(crate) fn exchange(&self, method: &str, path: &str, body: Option<&str>) -> Result<Exchange> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(SOON))?;
        let body = body.unwrap_or_default();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )?;
        Exchange::read_head(BufReader::new(stream))
    }

    pub(crate) fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(self.get("/metrics")?.text))
    }

    pub(crate) fn is_idle(&self) -> Result<bool> {
        Ok(self.metrics()?.value("vllm:num_requests_running")? == 0.0)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(killpg(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    pub(crate) fn wait_for_exit(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        until("the process exits", STOP_MAX, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("it has exited")
    }

    pub(crate) fn log_end(&self) -> String {
        let mut log = String::new();
        let _ = File::open(self.log.path()).and_then(|mut file| file.read_to_string(&mut log));
        let lines: Vec<&str> = log.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

pub(crate) struct Exchange {
    pub(crate) status: u16,
    head: String,
    body: BufReader<Body>,
}

impl Exchange {
    fn read_head(mut stream: BufReader<TcpStream>) -> Result<Self> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head)? > 0, "the connection closed within the head: {head:?}");
        }
        let head = head.to_ascii_lowercase();
        let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
        let chunk_left = head.contains("transfer-encoding: chunked").then_some(0);
        Ok(Self { status, head, body: BufReader::new(Body { stream, chunk_left }) })
    }

    pub(crate) fn into_reply(mut self) -> Result<Reply> {
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
        Ok(Reply { status: self.status, text })
    }

    pub(crate) fn set_patience(&self, at_most: Duration) -> Result<()> {
        Ok(self.body.get_ref().stream.get_ref().set_read_timeout(Some(at_most))?)
    }

    /// The next event; `None` at `[DONE]`, after which nothing may come.
    pub(crate) fn next(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        ensure!(self.body.read_line(&mut line)? > 0, "the stream ended without [DONE]");
        let data = line.strip_prefix("data: ").with_context(|| format!("not an event: {line:?}"))?.trim_end();
        let mut blank = String::new();
        self.body.read_line(&mut blank)?;
        ensure!(blank == "\n", "no blank line after {line:?}");
        if data == "[DONE]" {
            ensure!(self.body.read_line(&mut blank)? == 0, "more after [DONE]: {blank:?}");
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(data)?))
    }

    pub(crate) fn into_events(mut self) -> Result<Vec<Value>> {
        std::iter::from_fn(|| self.next().transpose()).collect()
    }
}

/// A body as it was before it was cut into chunks, if it was.
struct Body {
    stream: BufReader<TcpStream>,
    chunk_left: Option<usize>,
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let Some(left) = &mut self.chunk_left else { return self.stream.read(into) };
        if *left == 0 {
            let mut size = String::new();
            self.stream.read_line(&mut size)?;
            *left = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            if *left == 0 {
                return Ok(0);
            }
        }
        let most = into.len().min(*left);
        let count = self.stream.read(&mut into[..most])?;
        *left -= count;
        if *left == 0 {
            self.stream.read_line(&mut String::new())?;
        }
        Ok(count)
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn expect(self, status: u16) -> Result<Value> {
        let begin: String = self.text.chars().take(300).collect();
        ensure!(self.status == status, "status {}, not {status}: {begin}", self.status);
        serde_json::from_str(&self.text).with_context(|| format!("no JSON: {begin}"))
    }
}

pub(crate) struct Metrics(String);

impl Metrics {
    /// The first sample of this name; a label that must be there may follow, as in `name{label="value"`.
    pub(crate) fn value(&self, wanted: &str) -> Result<f64> {
        let (name, label) = wanted.split_once('{').unwrap_or((wanted, ""));
        let fits = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
        };
        let line = self.0.lines().find(fits).with_context(|| format!("no metric {wanted}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }
}

pub(crate) fn completion(more: Value) -> Value {
    merged(json!({"model": MODEL, "prompt": "Tell me a story", "max_tokens": 8, "temperature": 0}), more)
}

pub(crate) fn merged(mut into: Value, more: Value) -> Value {
    if let (Value::Object(into), Value::Object(more)) = (&mut into, more) {
        into.extend(more);
    }
    into
}

pub(crate) fn until(what: &str, at_most: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < at_most, "not within {} s: {what}", at_most.as_secs());
        std::thread::sleep(POLL);
    }
    Ok(())
}

pub(crate) fn is_timeout(error: &anyhow::Error) -> bool {
    use std::io::{Error, ErrorKind};
    let io = error.downcast_ref::<Error>();
    io.is_some_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}
