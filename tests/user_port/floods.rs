//! HTTP/2 connections that cost the client little and the server much.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::frames::*;
use super::stand::{RSS_BYTES_MAX, SOON, Stand};

pub(crate) const STREAM_FOREVER: &str =
    r#"{"model":"tiny","prompt":"one","max_tokens":4000,"stream":true,"ignore_eos":true}"#;

fn open(stand: &Stand, settings: &[(u16, u32)]) -> TcpStream {
    let mut stream = stand.connect();
    stream.write_all(&opening(settings)).unwrap();
    stream
}

/// How a flood went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The code of a GOAWAY.
    GoAway(u32),
    /// Closed or reset, without a word that was still there to read.
    Closed,
    /// The other side still has the connection when everything is sent, or the time is over.
    Borne,
}

/// Writes `piece` up to `count` times while the other side lets us, reading what it says. Where it `must_end`, its end
/// is waited for. Returns the outcome, how many pieces were sent, and the most memory that the agent had.
///
/// Nothing else is written: an acknowledgement between a piece and the next would be an error of its own (RFC 9113,
/// 6.10).
fn flood(
    stand: &Stand,
    mut stream: TcpStream,
    count: u32,
    must_end: bool,
    piece: impl Fn(u32) -> Vec<u8>,
) -> (Outcome, u32, u64) {
    // A reader that waits for longer than this lasts has seen no end.
    stream.set_read_timeout(Some(3 * SOON)).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let next = move || read(&mut answers);
    let reader = std::thread::spawn(|| std::iter::from_fn(next).find(|frame| frame.kind == GOAWAY));
    let (mut sent, mut rss_max) = (0, stand.rss());
    let began = Instant::now();
    while sent < count
        && !reader.is_finished()
        && began.elapsed() < SOON
        && stream.write_all(&piece(sent)).is_ok()
    {
        sent += 1;
        if sent % 64 == 0 {
            rss_max = stand.rss().max(rss_max);
        }
    }
    while must_end && !reader.is_finished() && began.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(10)); // bounded wait: SOON
    }
    let is_over = reader.is_finished();
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let outcome = match reader.join().unwrap() {
        _ if !is_over => Outcome::Borne,
        Some(goaway) => Outcome::GoAway(goaway_code(&goaway)),
        None => Outcome::Closed,
    };
    (outcome, sent, rss_max.max(stand.rss()))
}

#[test]
fn floods_end_their_connection_and_hold_up_nobody() {
    let stand = Stand::start(|options| options.with("CIC_EDGE_STALL_CUT_MS", "2000"));
    let id = |n: u32| 2 * n + 1;
    let request = post_block();
    let empty_data = frame(DATA, 0, 1, &[]);
    let begun = frame(HEADERS, END_HEADERS, 1, &request);
    let unended = frame(HEADERS, 0, 1, &request);
    let more = frame(CONTINUATION, 0, 1, &block(&[("x-a", &"a".repeat(1000))]));
    // An entry of the peer's table, put there once and named a thousand times: 4 MB of headers for 1 kB.
    let mut bomb =
        [block(&[(":method", "GET"), (":scheme", "http"), (":path", "/healthz")]), vec![0x40, 1, b'x']]
            .concat();
    bomb.extend([127, 0xa1, 0x1e]);
    bomb.extend([b'a'; 4000]);
    bomb.extend([0x80 | 62; 1000]);
    let first_then =
        |first: Vec<u8>, then: Vec<u8>| move |n: u32| if n == 0 { first.clone() } else { then.clone() };
    const PROTOCOL_ERROR: Option<u32> = Some(1);
    const FRAME_SIZE_ERROR: Option<u32> = Some(6);
    const ENHANCE_YOUR_CALM: Option<u32> = Some(11);
    // What must end by which error of the connection, and what may be borne as long as it is cheap.
    type Piece = Box<dyn Fn(u32) -> Vec<u8>>;
    let floods: Vec<(&str, u32, Option<u32>, Piece)> = vec![
        ("resets as fast as they go", 20_000, ENHANCE_YOUR_CALM, {
            let request = request.clone();
            Box::new(move |n| {
                [
                    frame(HEADERS, END_HEADERS, id(n), &request),
                    frame(RST_STREAM, 0, id(n), &8_u32.to_be_bytes()),
                ]
                .concat()
            })
        }),
        ("resets in one packet", 200, ENHANCE_YOUR_CALM, {
            let request = request.clone();
            Box::new(move |n| {
                let one = |k: u32| {
                    let id = id(n * 100 + k);
                    [
                        frame(HEADERS, END_HEADERS, id, &request),
                        frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()),
                    ]
                    .concat()
                };
                (0..100).flat_map(one).collect()
            })
        }),
        // A window beyond 2^31 - 1 is an error of its stream alone (RFC 9113, 6.9.1).
        ("errors that make the server reset", 20_000, ENHANCE_YOUR_CALM, {
            let request = request.clone();
            Box::new(move |n| {
                [
                    frame(HEADERS, END_HEADERS, id(n), &request),
                    frame(WINDOW_UPDATE, 0, id(n), &[0x7f, 0xff, 0xff, 0xff]),
                ]
                .concat()
            })
        }),
        ("pings", 50_000, None, Box::new(|_| frame(PING, 0, 0, b"12345678").repeat(10))),
        ("settings", 50_000, None, Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(10))),
        ("continuations", 50_000, ENHANCE_YOUR_CALM, Box::new(first_then(unended, more))),
        ("empty data", 50_000, ENHANCE_YOUR_CALM, Box::new(first_then(begun, empty_data.repeat(10)))),
        (
            "a header table bomb",
            1,
            ENHANCE_YOUR_CALM,
            Box::new(move |_| frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)),
        ),
        (
            "an unknown frame of 16 MB",
            1,
            FRAME_SIZE_ERROR,
            Box::new(|_| [&[0xff, 0xff, 0xff, 0xfa, 0, 0, 0, 0, 0][..], &vec![0; 1 << 20]].concat()),
        ),
        ("a stream with an even number", 1, PROTOCOL_ERROR, {
            let request = request.clone();
            Box::new(move |_| frame(HEADERS, END_HEADERS, 2, &request))
        }),
    ];
    for (what, count, end, piece) in floods {
        let (outcome, sent, rss_max) = flood(&stand, open(&stand, &[]), count, end.is_some(), piece);
        println!("{what}: {sent} sent, {outcome:?}, the agent had {} MiB at most", rss_max >> 20);
        if let Some(code) = end {
            // Who writes on into a connection that was closed can lose the GOAWAY to the reset.
            assert!([Outcome::GoAway(code), Outcome::Closed].contains(&outcome), "{what}: {outcome:?}");
        }
        assert!(rss_max < RSS_BYTES_MAX, "{what}: {rss_max}");
        stand.assert_serves_others();
    }
    stand.wait_quiet();
}

#[test]
fn streams_that_open_no_window_free_their_engine_and_pings_keep_nothing() {
    let stand = Stand::start(|options| {
        // On a loaded machine all 50 must be seen running before the first is freed.
        options.with("CIC_EDGE_STALL_CUT_MS", "10000").with_engine("CIC_STANDIN_TOKEN_MS", "20")
    });
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut stream = open(&stand, &[(INITIAL_WINDOW_SIZE, 0)]);
    for number in 0..50 {
        stream.write_all(&post(2 * number + 1, STREAM_FOREVER)).unwrap();
    }
    stand.wait_running(50);
    let after = stand.wait_for("a free engine", || {
        stream.write_all(&frame(PING, 0, 0, b"12345678")).unwrap();
        stand.engine_figure("vllm:num_requests_running") == 0.0
    });
    println!("50 streams without a window: the engine is free after {after:?}");
    stand.wait_quiet();
    // It is told so when it opens one.
    stream.write_all(&frame(WINDOW_UPDATE, 0, 1, &1000_u32.to_be_bytes())).unwrap();
    let reset = read_until(&mut stream, |frame| frame.kind == RST_STREAM && frame.stream == 1);
    assert!(reset.is_some());
    stand.assert_serves_others();
}

#[test]
fn one_connection_has_so_many_streams_and_a_reset_frees_the_engine() {
    let stand = Stand::start(|options| options.with_engine("CIC_STANDIN_TOKEN_MS", "50"));
    let mut stream = open(&stand, &[]);
    for number in 0..101 {
        stream.write_all(&post(2 * number + 1, STREAM_FOREVER)).unwrap();
    }
    let refused = read_until(&mut stream, |frame| frame.kind == RST_STREAM).unwrap();
    assert_eq!(
        (refused.stream, refused.payload.as_slice()),
        (201, &7_u32.to_be_bytes()[..]),
        "REFUSED_STREAM"
    );
    stand.wait_running(100);
    for number in 0..100 {
        stream.write_all(&frame(RST_STREAM, 0, 2 * number + 1, &8_u32.to_be_bytes())).unwrap();
    }
    println!("100 streams reset: the engine is free after {:?}", stand.wait_running(0));
    stand.wait_quiet();
}
