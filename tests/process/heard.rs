//! One streamed answer as a client hears it: every event with its moment, and what became of the stream.
//!
//! It reads the wire by hand, chunk by chunk: a body that stops without its last chunk is a cut one, whatever came before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// No event may take longer: an edge waits 10 s for a replica.
const EVENT_WITHIN: Duration = Duration::from_secs(45);

/// A streamed request: where it goes and what it says.
#[derive(Debug, Clone)]
pub struct Ask {
    pub path: &'static str,
    pub body: Value,
}

/// What a client heard.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub status: u16,
    /// The replica that the answer began on, by its `x-cic-node` header.
    pub node: String,
    /// Everything before `[DONE]`.
    pub events: Vec<Value>,
    /// `[DONE]`, then the end of the body in order.
    pub is_done: bool,
    /// Why it is not, where the connection says so.
    pub broken: Option<String>,
    /// The longest time between two events.
    pub stall: Duration,
}

impl Heard {
    /// Asks and listens to the end. `tell` gets the node and the count of events after the head and after each event.
    #[must_use]
    pub fn listen(edge: &str, ask: &Ask, tell: &mut dyn FnMut(&str, usize)) -> Self {
        let mut heard = Self::default();
        if let Err(error) = heard.read(edge, ask, tell) {
            heard.broken = Some(format!("{error:#}"));
        }
        heard
    }

    fn read(&mut self, edge: &str, ask: &Ask, tell: &mut dyn FnMut(&str, usize)) -> anyhow::Result<()> {
        let mut body = self.send(edge, ask)?;
        tell(&self.node, 0);
        if self.status != 200 {
            let mut text = String::new();
            body.read_to_string(&mut text).context("read an answer that is no stream")?;
            bail!("status {}: {text}", self.status);
        }
        let mut last: Option<Instant> = None;
        while let Some(data) = next_event(&mut body)? {
            if let Some(last) = last {
                self.stall = self.stall.max(last.elapsed());
            }
            last = Some(Instant::now());
            if data == "[DONE]" {
                let mut rest = String::new();
                body.read_to_string(&mut rest).context("after [DONE]")?;
                // The blank line that ends the event.
                ensure!(rest == "\n", "after [DONE] came {rest:?}");
                self.is_done = true;
                return Ok(());
            }
            self.events.push(serde_json::from_str(&data).with_context(|| format!("no JSON: {data}"))?);
            tell(&self.node, self.events.len());
        }
        bail!("the body ended in order, but without [DONE]")
    }

    fn send(&mut self, edge: &str, ask: &Ask) -> anyhow::Result<BufReader<Chunks>> {
        let address: SocketAddr = edge.parse().with_context(|| format!("address {edge:?}"))?;
        let mut socket = TcpStream::connect_timeout(&address, EVENT_WITHIN).context("connect")?;
        socket.set_read_timeout(Some(EVENT_WITHIN))?;
        let body = ask.body.to_string();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {edge}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            ask.path,
            body.len()
        );
        socket.write_all(head.as_bytes()).context("send")?;
        let mut stream = BufReader::new(socket);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(
                stream.read_line(&mut head).context("read the head")? > 0,
                "closed within the head: {head:?}"
            );
        }
        let head = head.to_ascii_lowercase();
        self.status = head.split_whitespace().nth(1).context("no status")?.parse()?;
        let node = head.lines().find_map(|line| line.strip_prefix("x-cic-node: "));
        self.node = node.unwrap_or_default().trim().to_owned();
        let left = if head.contains("transfer-encoding: chunked") { Left::Chunk(0) } else { Left::Unknown };
        Ok(BufReader::new(Chunks { stream, left }))
    }

    /// The text of the answer, whichever kind it is.
    #[must_use]
    pub fn text(&self) -> String {
        let part = |choice: &Value| {
            let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
            text.unwrap_or_default().to_owned()
        };
        self.choices().map(part).collect()
    }

    /// The error that the stream ended in, if it did.
    #[must_use]
    pub fn error(&self) -> Option<&Value> {
        self.events.iter().map(|event| &event["error"]).find(|error| !error.is_null())
    }

    /// How the answer ended, with what stopped it.
    #[must_use]
    pub fn finish(&self) -> Vec<String> {
        let ends = self.choices().filter(|choice| !choice["finish_reason"].is_null());
        ends.map(|choice| format!("{} {}", choice["finish_reason"], choice["stop_reason"])).collect()
    }

    /// What was counted, where it was asked for.
    #[must_use]
    pub fn usage(&self) -> Vec<&Value> {
        let of_all =
            self.events.iter().filter(|event| event["choices"].as_array().is_some_and(Vec::is_empty));
        of_all.map(|event| &event["usage"]).collect()
    }

    /// Ids of the answer's tokens, where they were asked for.
    #[must_use]
    pub fn token_ids(&self) -> Vec<u64> {
        let ids = |choice: &Value| choice["token_ids"].as_array().cloned().unwrap_or_default();
        self.choices().flat_map(ids).filter_map(|id| id.as_u64()).collect()
    }

    /// Whether a user would call it a whole answer.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let ends = self.finish();
        let is_end = |end: &String| end.starts_with("\"length\"") || end.starts_with("\"stop\"");
        self.is_done && self.error().is_none() && !ends.is_empty() && ends.iter().all(is_end)
    }

    /// How it ended, in a few words.
    #[must_use]
    pub fn ending(&self) -> String {
        match (&self.broken, self.error()) {
            (Some(why), _) => format!("broken after {} events: {why}", self.events.len()),
            (None, Some(error)) => format!("error event after {} events: {error}", self.events.len() - 1),
            (None, None) => format!("[DONE] after {} events, finish {:?}", self.events.len(), self.finish()),
        }
    }

    /// Everything in which a client could tell it from `other`, an undisturbed answer to the same request.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        if !self.is_whole() {
            return vec![self.ending()];
        }
        let mut found = Vec::new();
        if self.text() != other.text() {
            found.push(format!("text: {}", first_difference(&self.text(), &other.text())));
        }
        for (what, mine, others) in [
            ("finish", format!("{:?}", self.finish()), format!("{:?}", other.finish())),
            ("usage", format!("{:?}", self.usage()), format!("{:?}", other.usage())),
            ("token ids", format!("{:?}", self.token_ids()), format!("{:?}", other.token_ids())),
            ("prompt ids", self.prompt_ids(), other.prompt_ids()),
            ("roles", self.roles().to_string(), other.roles().to_string()),
            ("ids, dates and models in one stream", self.names().to_string(), other.names().to_string()),
        ] {
            if mine != others {
                found.push(format!("{what}: {mine}, undisturbed {others}"));
            }
        }
        let (mine, others) = (self.shape(), other.shape());
        // How many events an answer comes in is not promised, so that one of a single event may become two.
        let is_end = |path: &str| path.ends_with("finish_reason") || path.ends_with("stop_reason");
        let differs = |path: &str, kinds: &BTreeSet<&'static str>| {
            let others = others.get(path);
            let without_null: BTreeSet<_> = kinds.iter().copied().filter(|kind| *kind != "null").collect();
            others != Some(kinds) && !(is_end(path) && others == Some(&without_null))
        };
        for (path, kinds) in mine.iter().filter(|(path, kinds)| differs(path, kinds)) {
            found.push(format!("shape: {path} is {kinds:?}, undisturbed {:?}", others.get(path)));
        }
        for path in others.keys().filter(|path| !mine.contains_key(*path)) {
            found.push(format!("shape: {path} is missing"));
        }
        found
    }

    fn choices(&self) -> impl Iterator<Item = &Value> {
        self.events.iter().filter_map(|event| event["choices"].as_array()).flatten()
    }

    fn prompt_ids(&self) -> String {
        let of_event = |event: &Value| {
            [event["prompt_token_ids"].clone(), event["choices"][0]["prompt_token_ids"].clone()]
        };
        let ids = self.events.iter().flat_map(of_event).filter(|ids| !ids.is_null());
        ids.map(|ids| ids.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn roles(&self) -> usize {
        self.choices().filter(|choice| choice["delta"]["role"].is_string()).count()
    }

    /// How many answers it seems to consist of: one.
    fn names(&self) -> usize {
        let name = |event: &Value| format!("{} {} {}", event["id"], event["created"], event["model"]);
        self.events.iter().map(name).collect::<BTreeSet<_>>().len()
    }

    /// The kinds of value at each path over all events: a field too many or of another kind shows here.
    fn shape(&self) -> BTreeMap<String, BTreeSet<&'static str>> {
        let mut shape = BTreeMap::new();
        for event in &self.events {
            add_shape("", event, &mut shape);
        }
        shape
    }
}

fn add_shape(path: &str, value: &Value, shape: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    shape.entry(path.to_owned()).or_default().insert(kind);
    match value {
        Value::Array(items) => items.iter().for_each(|item| add_shape(&format!("{path}[]"), item, shape)),
        Value::Object(fields) => {
            fields.iter().for_each(|(key, field)| add_shape(&format!("{path}.{key}"), field, shape));
        }
        _ => {}
    }
}

fn first_difference(mine: &str, others: &str) -> String {
    let same = mine.chars().zip(others.chars()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| text.chars().skip(same.saturating_sub(10)).take(40).collect::<String>();
    format!("from character {same} on {:?}, undisturbed {:?}", near(mine), near(others))
}

/// The data of the next event; `None` at the end of the body. A line without its end is a cut one.
fn next_event(body: &mut BufReader<Chunks>) -> anyhow::Result<Option<String>> {
    let mut line = String::new();
    loop {
        line.clear();
        if body.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        ensure!(line.ends_with('\n'), "the body ended within {line:?}");
        let data = line.trim_end();
        // A blank line ends an event, a colon begins a comment.
        if data.is_empty() || data.starts_with(':') {
            continue;
        }
        let data = data.strip_prefix("data: ").with_context(|| format!("not an event: {data:?}"))?;
        return Ok(Some(data.to_owned()));
    }
}

#[derive(Debug)]
enum Left {
    /// Of the chunk that is being read.
    Chunk(usize),
    /// The last chunk was read.
    Nothing,
    /// Until the connection closes.
    Unknown,
}

/// A body as it was before it was cut into chunks.
#[derive(Debug)]
struct Chunks {
    stream: BufReader<TcpStream>,
    left: Left,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        use std::io::{Error, ErrorKind};
        let left = match &mut self.left {
            Left::Unknown => return self.stream.read(into),
            Left::Nothing => return Ok(0),
            Left::Chunk(left) => left,
        };
        if *left == 0 {
            let mut size = String::new();
            if self.stream.read_line(&mut size)? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the connection closed within the body"));
            }
            *left = usize::from_str_radix(size.trim(), 16).map_err(Error::other)?;
            if *left == 0 {
                self.left = Left::Nothing;
                return Ok(0);
            }
        }
        let most = into.len().min(*left);
        let count = self.stream.read(&mut into[..most])?;
        if count == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the connection closed within a chunk"));
        }
        *left -= count;
        if *left == 0 {
            self.stream.read_line(&mut String::new())?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(parts: &[&str]) -> Heard {
        let event = |text: &&str| {
            json!({ "id": "a", "created": 1, "model": "m",
                    "choices": [{ "delta": { "content": text }, "finish_reason": null }] })
        };
        let mut events: Vec<Value> = parts.iter().map(event).collect();
        events.push(json!({ "id": "a", "created": 1, "model": "m",
                            "choices": [{ "delta": { "content": "" }, "finish_reason": "stop" }] }));
        Heard { status: 200, events, is_done: true, ..Heard::default() }
    }

    #[test]
    fn the_same_text_in_other_pieces_is_the_same_answer() {
        assert_eq!(chat(&["ab", "c"]).differences(&chat(&["a", "bc"])), Vec::<String>::new());
        assert_eq!(chat(&["ab"]).differences(&chat(&["ac"])).len(), 1);
    }

    #[test]
    fn what_a_client_could_tell_is_told() {
        let whole = chat(&["a"]);
        let changed = |change: &dyn Fn(&mut Heard)| {
            let mut other = whole.clone();
            change(&mut other);
            other.differences(&whole)
        };
        for (change, part) in [
            ((&|heard: &mut Heard| heard.events[0]["id"] = json!("b")) as &dyn Fn(&mut Heard), "ids, dates"),
            (&|heard| heard.events[0]["choices"][0]["token_ids"] = json!([1]), "token ids"),
            (&|heard| heard.events[1]["choices"][0]["finish_reason"] = json!("abort"), "[DONE] after"),
            (&|heard| heard.events[0]["choices"][0]["x"] = json!(null), "shape: .choices[].x"),
            (&|heard| heard.events.push(json!({ "error": { "code": 500 } })), "error event"),
        ] {
            let found = changed(change);
            assert!(found.iter().any(|one| one.contains(part)), "{part}: {found:?}");
        }
        let mut cut = whole.clone();
        (cut.is_done, cut.broken) = (false, Some("the connection closed".to_owned()));
        assert_eq!(cut.differences(&whole), ["broken after 2 events: the connection closed"]);
    }
}
