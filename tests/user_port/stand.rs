//! An agent with an engine, and raw connections to its edge.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use fleet_tests::process::{Answer, Solo, SoloOptions, request};
use serde_json::{Value, json};

/// Everything here takes milliseconds on an idle machine; a loaded one gets time, a broken build still ends.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// What no attack of one test may take the agent's memory beyond. Measured: a debug build that serves begins at about
/// 30 MiB.
pub(crate) const RSS_BYTES_MAX: u64 = 256 << 20;

pub(crate) struct Stand {
    pub(crate) solo: Solo,
    pub(crate) edge: SocketAddr,
    _place: tempfile::TempDir,
}

impl Stand {
    pub(crate) fn start(with: impl FnOnce(SoloOptions) -> SoloOptions) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut solo = Solo::start(with(SoloOptions::standin(place.path()).unwrap())).unwrap();
        solo.wait_serving(SOON).unwrap();
        let edge = solo.address("edge").unwrap().parse().unwrap();
        Self { solo, edge, _place: place }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.edge, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends `bytes` and reads to the end of what comes.
    pub(crate) fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has heard enough may close before all is said.
        let _ = stream.write_all(bytes);
        rest(&mut stream)
    }

    /// Another client's request, which must be answered as ever.
    pub(crate) fn assert_serves_others(&self) {
        let answer = self.complete(1).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    pub(crate) fn complete(&self, tokens: u32) -> anyhow::Result<Answer> {
        let body = json!({ "model": "tiny", "prompt": "one two", "max_tokens": tokens }).to_string();
        request(&self.edge.to_string(), "POST", "/v1/completions", Some(&body), SOON)
    }

    /// What the engine says of a figure of its own.
    pub(crate) fn engine_figure(&self, name: &str) -> f64 {
        let address = self.solo.engine_address().unwrap();
        let text = request(&address, "GET", "/metrics", None, SOON).unwrap().body;
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(-1.0)
    }

    pub(crate) fn wait_running(&self, count: u32) -> Duration {
        self.wait_for(&format!("{count} running requests"), || {
            self.engine_figure("vllm:num_requests_running") == f64::from(count)
        })
    }

    /// Waits until neither the engine nor the edge has a request.
    pub(crate) fn wait_quiet(&self) -> Duration {
        self.wait_for("a quiet engine and edge", || {
            self.engine_figure("vllm:num_requests_running") == 0.0
                && self.solo.report().is_ok_and(|report| report["edge"]["in_flight"] == 0)
        })
    }

    pub(crate) fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < SOON, "no {what} within {SOON:?}\n{}", self.solo.log());
            std::thread::sleep(LOOK);
        }
        began.elapsed()
    }

    /// The agent's memory now.
    pub(crate) fn rss(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.solo.agent_pid())).unwrap();
        let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.unwrap().trim().parse::<u64>().unwrap() << 10
    }

    /// Everything that the agent has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.solo.path().join("agent.out")).unwrap()
    }

    /// How many access lines hold `part`.
    pub(crate) fn access_count(&self, part: &str) -> usize {
        self.log().lines().filter(|line| line.contains("access: request") && line.contains(part)).count()
    }

    pub(crate) fn assert_small(&self, what: &str) {
        let rss = self.rss();
        println!("{what}: the agent has {} MiB", rss >> 20);
        assert!(rss < RSS_BYTES_MAX, "{what}: {rss} bytes");
    }
}

/// A streamed completion's head and body, as one text.
pub(crate) fn stream_request(tokens: u32, more_headers: &str) -> String {
    let body =
        json!({ "model": "tiny", "prompt": "one", "max_tokens": tokens, "stream": true, "ignore_eos": true });
    post(&body.to_string(), more_headers)
}

pub(crate) fn post(body: &str, more_headers: &str) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{more_headers}\r\n{body}",
        body.len()
    )
}

/// Everything until the other side closes or resets.
pub(crate) fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

/// The status of the first answer in `text`, and how many there are.
pub(crate) fn statuses(text: &str) -> Vec<u16> {
    let heads = text.split("HTTP/1.").skip(1);
    heads.filter_map(|head| head.split_whitespace().nth(1)?.parse().ok()).collect()
}

/// The error of an answer, in OpenAI's shape.
pub(crate) fn error_code(text: &str) -> String {
    let json = text
        .find("{\"error\"")
        .and_then(|at| serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>().next()?.ok());
    let error = json.unwrap_or_default()["error"].take();
    assert!(error["message"].is_string() && error["type"].is_string(), "{text}");
    error["code"].as_str().unwrap_or_default().to_owned()
}
