//! HTTP/2 by the frame (RFC 9113), for what no library would send.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The preface and SETTINGS of `pairs`.
pub(crate) fn opening(pairs: &[(u16, u32)]) -> Vec<u8> {
    let settings: Vec<u8> =
        pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()
}

/// Headers as HPACK literals (RFC 7541, 6.2.2), without any table.
pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [integer(text.len()), text.as_bytes().to_vec()].concat();
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn integer(mut value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![127];
    value -= 127;
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

pub(crate) fn post_block() -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1/completions"),
        (":authority", "edge"),
        ("content-type", "application/json"),
    ])
}

/// A request with its body, on `stream`.
pub(crate) fn post(stream: u32, body: &str) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &post_block()), frame(DATA, END_STREAM, stream, body.as_bytes())]
        .concat()
}

/// The next frame; `None` at the end, however it comes.
pub(crate) fn read(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).ok()?;
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Some(Frame { kind: head[3], flags: head[4], stream: id, payload })
}

/// Reads on, acknowledging what must be, until `is_it` says so. `None` when the connection ends before.
pub(crate) fn read_until(stream: &mut TcpStream, mut is_it: impl FnMut(&Frame) -> bool) -> Option<Frame> {
    loop {
        let read = read(stream)?;
        let acknowledged = match read.kind {
            SETTINGS if read.flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
            PING if read.flags & ACK == 0 => frame(PING, ACK, 0, &read.payload),
            _ => Vec::new(),
        };
        // An end is seen at the next read.
        let _ = stream.write_all(&acknowledged);
        if is_it(&read) {
            return Some(read);
        }
    }
}

/// The error code of a GOAWAY.
pub(crate) fn goaway_code(frame: &Frame) -> u32 {
    assert_eq!(frame.kind, GOAWAY, "{frame:?}");
    u32::from_be_bytes(frame.payload[4..8].try_into().unwrap())
}
