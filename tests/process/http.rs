//! A client of a few lines: one request a connection, blocking, with a deadline.
//!
//! It is not the product's client on purpose: what the product sends is read by something it does not share.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// # Errors
    /// When the body is no JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }
}

/// Sends one request and reads the whole answer.
///
/// # Errors
/// When the connection fails, nothing comes within `within`, or the body ends before its stated length.
pub fn request(
    address: &str,
    method: &str,
    path: &str,
    body: Option<&str>,
    within: Duration,
) -> anyhow::Result<Answer> {
    request_as(address, method, path, &[], body, within)
}

/// The same with headers of its own.
///
/// # Errors
/// As [`request`].
pub fn request_as(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
    within: Duration,
) -> anyhow::Result<Answer> {
    let address: SocketAddr = address.parse().with_context(|| format!("address {address:?}"))?;
    let mut stream = TcpStream::connect_timeout(&address, within).context("connect")?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    let body = body.unwrap_or_default();
    let own: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{own}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).context("send the head")?;
    stream.write_all(body.as_bytes()).context("send the body")?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).context("read the answer")?;
    parse(&raw)
}

fn parse(raw: &[u8]) -> anyhow::Result<Answer> {
    let split = raw.windows(4).position(|w| w == b"\r\n\r\n").context("the answer has no head")?;
    let head = std::str::from_utf8(&raw[..split])?.to_ascii_lowercase();
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    let rest = &raw[split + 4..];
    let body = if header(&head, "transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        unchunk(rest)?
    } else {
        if let Some(length) = header(&head, "content-length")
            && length.parse::<usize>()? != rest.len()
        {
            bail!("the body has {} of {length} bytes", rest.len());
        }
        rest.to_vec()
    };
    Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

fn unchunk(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").context("the body was cut short")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(body);
        }
        if rest.len() < size + 2 {
            bail!("the body was cut short");
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_joined_and_a_cut_one_is_an_error() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let whole = format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!(parse(whole.as_bytes()).expect("whole").body, "abcde");
        assert!(parse(format!("{head}3\r\nabc\r\n2\r\nd").as_bytes()).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc").is_err());
    }
}
