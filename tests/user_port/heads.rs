//! Heads that come slowly, are too much, or can be read in two ways.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use super::stand::{Stand, error_code, rest, statuses};

const COMPLETION: &str = r#"{"model":"tiny","prompt":"one","max_tokens":1}"#;

#[test]
fn a_head_that_comes_byte_by_byte_is_cut_and_holds_up_nobody() {
    let stand = Stand::start(|options| options.with("CIC_EDGE_HEAD_WITHIN_MS", "1000"));
    let began = Instant::now();
    let mut slow: Vec<_> = (0..200).map(|_| stand.connect()).collect();
    let mut silent = stand.connect();
    let head = "GET /v1/models HTTP/1.1\r\nhost: edge\r\nx-filler: ".bytes().chain(std::iter::repeat(b'a'));
    for byte in head {
        // Written into a connection that was cut, the second byte at the latest fails.
        slow.retain_mut(|stream| stream.write_all(&[byte]).is_ok());
        if slow.is_empty() {
            break;
        }
        stand.assert_serves_others();
        assert!(began.elapsed() < Duration::from_secs(60), "{} are still there", slow.len());
    }
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "who says nothing at all is cut too");
    println!("200 slow heads and a silent one: all cut after {:?}", began.elapsed());

    // After an answer a connection may rest, but a head that has begun may not.
    let mut stream = stand.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: edge\r\n\r\n").unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    stream.write_all(b"GET /heal").unwrap();
    let began = Instant::now();
    rest(&mut stream);
    assert!(began.elapsed() < Duration::from_secs(30));
    stand.assert_small("after slow heads");
}

#[test]
fn a_head_that_is_too_much_is_refused() {
    let stand = Stand::start(|options| options);
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n{headers}\r\n")
    };
    let long = "a".repeat(60 << 10);
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: a\r\n")).collect::<String>();
    for (what, head, status) in [
        ("a header of 60 KiB", get("/healthz", &format!("x-long: {long}\r\n")), 200),
        ("a header of 600 KiB", get("/healthz", &format!("x-long: {}\r\n", long.repeat(10))), 431),
        ("98 headers", get("/healthz", &many(96)), 200),
        ("1000 headers", get("/healthz", &many(1000)), 431),
        ("a target of 70 KiB", get(&format!("/{long}{long}"), ""), 431),
        ("an endless method", "A".repeat(1 << 20), 431),
        ("no HTTP", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".repeat(100), 400),
        ("an unknown version", "GET /healthz HTTP/3.7\r\n\r\n".to_owned(), 400),
    ] {
        let answer = stand.say(head.as_bytes());
        assert_eq!(statuses(&answer).first(), Some(&status), "{what}: {answer}");
    }
    stand.assert_serves_others();
    stand.assert_small("after heads that are too much");
}

#[test]
fn a_message_that_can_be_read_in_two_ways_is_refused_or_ends_its_connection() {
    let stand = Stand::start(|options| options);
    let hidden = "GET /v1/hidden HTTP/1.1\r\nhost: edge\r\n\r\n";
    let post = |headers: &str, body: &str| {
        format!("POST /v1/completions HTTP/1.1\r\nhost: edge\r\n{headers}\r\n{body}{hidden}")
    };
    let (length, chunked) =
        (COMPLETION.len(), format!("{:x}\r\n{COMPLETION}\r\n0\r\n\r\n", COMPLETION.len()));
    let plain = |headers: &str| post(headers, COMPLETION);
    let both = format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n");
    for (what, message, expected) in [
        // Chunked counts, and the connection ends: what follows is never a request (RFC 9112, 6.1).
        ("both framings", post(&both, &chunked), vec![200]),
        (
            "both, the other way round",
            post("transfer-encoding: chunked\r\ncontent-length: 3\r\n", &chunked),
            vec![200],
        ),
        ("two lengths", plain(&format!("content-length: {length}\r\ncontent-length: 3\r\n")), vec![400]),
        ("a list of lengths", plain(&format!("content-length: {length}, 3\r\n")), vec![400]),
        ("a signed length", plain(&format!("content-length: +{length}\r\n")), vec![400]),
        ("a hexadecimal length", plain("content-length: 0x10\r\n"), vec![400]),
        ("a negative length", plain("content-length: -1\r\n"), vec![400]),
        ("a length beyond numbers", plain("content-length: 99999999999999999999999\r\n"), vec![400]),
        ("a coding nobody knows", post("transfer-encoding: xchunked\r\n", &chunked), vec![400]),
        ("chunked, but not last", post("transfer-encoding: chunked, identity\r\n", &chunked), vec![400]),
        ("a space before the colon", post("transfer-encoding : chunked\r\n", &chunked), vec![400]),
        ("a folded header", post("x-a: b\r\n transfer-encoding: chunked\r\n", &chunked), vec![400]),
        ("a chunk size that is none", post("transfer-encoding: chunked\r\n", "zz\r\n"), vec![400]),
        (
            "a chunk longer than it says",
            post("transfer-encoding: chunked\r\n", "1\r\nabc\r\n0\r\n\r\n"),
            vec![400],
        ),
        (
            "a chunk size beyond numbers",
            post("transfer-encoding: chunked\r\n", "fffffffffffffffff\r\na"),
            vec![400],
        ),
        ("a chunk ended by a bare newline", post("transfer-encoding: chunked\r\n", "1\n{\n0\n\n"), vec![400]),
        ("chunked in HTTP/1.0", chunked_1_0(&chunked), vec![400]),
        ("a NUL in a value", plain("x-a: b\0c\r\n"), vec![400]),
        ("a bare return in a value", plain("x-a: b\rc: d\r\n"), vec![400]),
    ] {
        let answer = stand.say(message.as_bytes());
        assert_eq!(statuses(&answer), expected, "{what}: {answer}");
    }
    stand.assert_serves_others();
}

fn chunked_1_0(chunked: &str) -> String {
    format!("POST /v1/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{chunked}")
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let stand = Stand::start(|options| options);
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: edge\r\n{more}\r\n");
    let post = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: edge\r\ncontent-length: {}\r\n\r\n{COMPLETION}",
        COMPLETION.len()
    );
    let ahead = get("/nowhere", "")
        + &post
        + &get("/healthz", "")
        + &post
        + &get("/v1/models/none", "connection: close\r\n");
    assert_eq!(statuses(&stand.say(ahead.as_bytes())), [404, 200, 200, 200, 404]);
}

#[test]
fn old_and_careful_clients_are_understood() {
    let stand = Stand::start(|options| options);
    let answer = stand.say(b"GET /v1/models HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.contains("\"tiny\""), "{answer}");
    let old =
        format!("POST /v1/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n{COMPLETION}", COMPLETION.len());
    let answer = stand.say(old.as_bytes());
    assert!(answer.starts_with("HTTP/1.0 200 OK") && !answer.contains("chunked"), "{answer}");

    let answer = stand.say(b"HEAD /healthz HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n");
    assert_eq!(statuses(&answer), [200]);
    assert!(answer.ends_with("\r\n\r\n") && answer.contains("content-length: "), "{answer}");

    let answer = stand.say(b"GET /healthz HTTP/1.1\nhost: edge\nconnection: close\n\n");
    assert_eq!(statuses(&answer), [200], "a bare newline ends a line of a head");

    // It waits for the word to go on, and gets it; and where its body would be refused, it is not asked for it.
    let mut stream = stand.connect();
    let expecting = |length: usize| {
        format!(
            "POST /v1/completions HTTP/1.1\r\nhost: edge\r\nconnection: close\r\nexpect: 100-continue\r\n\
             content-length: {length}\r\n\r\n"
        )
    };
    stream.write_all(expecting(COMPLETION.len()).as_bytes()).unwrap();
    let mut word = [0; 25];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(COMPLETION.as_bytes()).unwrap();
    assert_eq!(statuses(&rest(&mut stream)), [200]);
    let answer = stand.say(expecting(1 << 30).as_bytes());
    assert_eq!((statuses(&answer), error_code(&answer).as_str()), (vec![413], "request_too_large"));
}
