//! Clients that leave, or stay and take nothing.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::floods::STREAM_FOREVER;
use super::frames::{opening, post};
use super::stand::{SOON, Stand, stream_request};

/// Reads until the first event of a stream is there.
fn read_event(stream: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    let mut piece = [0; 1024];
    while !seen.windows(6).any(|window| window == b"data: ") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return false,
            Ok(length) => seen.extend_from_slice(&piece[..length]),
        }
    }
    true
}

#[test]
fn a_client_that_leaves_before_the_first_byte_stops_its_engine_s_work() {
    // Between the signals no token moves, and nothing but a client that leaves ends what runs: no answer, and neither
    // the agent nor the edge, which wait longer than this test does.
    let stand = Stand::start(|options| {
        options
            .with("CIC_ENGINE_STALL_SUSPECT_MS", "600000")
            .with_engine("CIC_STANDIN_FIRST_TOKEN_MS", "2000")
    });
    let engine = Pid::from_raw(stand.solo.engine_pid().unwrap().cast_signed());
    for (what, behind) in
        [("", ""), (" with more sent behind", "GET /healthz HTTP/1.1\r\nhost: edge\r\n\r\n")]
    {
        let mut stream = stand.connect();
        stream.write_all((stream_request(4000, "") + behind).as_bytes()).unwrap();
        stand.wait_running(1);
        kill(engine, Signal::SIGUSR1).unwrap();
        drop(stream);
        let after = stand.wait_running(0);
        println!("left before the first byte{what}: the engine is free after {after:?}");
        stand.wait_quiet();
        kill(engine, Signal::SIGUSR1).unwrap();
    }
}

#[test]
fn a_client_that_leaves_in_mid_stream_stops_its_engine_s_work() {
    let stand = Stand::start(|options| options.with_engine("CIC_STANDIN_TOKEN_MS", "20"));
    for how in ["close", "half-close"] {
        let mut stream = stand.connect();
        stream.write_all(stream_request(4000, "").as_bytes()).unwrap();
        assert!(read_event(&mut stream));
        stand.wait_running(1);
        match how {
            "close" => drop(stream.try_clone().unwrap()),
            _ => stream.shutdown(Shutdown::Write).unwrap(),
        }
        if how == "close" {
            drop(stream);
        }
        let after = stand.wait_running(0);
        println!("{how} in mid-stream: the engine is free after {after:?}");
        stand.wait_quiet();
    }
}

#[test]
fn what_the_agent_s_own_stop_cuts_is_not_said_to_have_left() {
    let mut stand = Stand::start(|options| options.with_engine("CIC_STANDIN_TOKEN_MS", "20"));
    let mut one = stand.connect();
    one.write_all(stream_request(4000, "").as_bytes()).unwrap();
    let mut two = stand.connect();
    two.write_all(&[opening(&[]), post(1, STREAM_FOREVER)].concat()).unwrap();
    assert!(read_event(&mut one) && read_event(&mut two));
    stand.wait_running(2);
    stand.solo.end_agent(Signal::SIGTERM).unwrap();
    let counts = ["stopped", "client_gone"].map(|end| stand.access_count(&format!("ended=\"{end}\"")));
    assert_eq!(counts, [2, 0], "{}", stand.log());
}

#[test]
fn ten_thousand_clients_that_leave_in_mid_stream_leave_nothing_behind() {
    const CLIENTS: u32 = 10_000;
    const AT_ONCE: usize = 16;
    let stand = Stand::start(|options| {
        options.with_engine("CIC_STANDIN_TOKEN_MS", "20").with_engine("CIC_STANDIN_FIRST_TOKEN_MS", "0")
    });
    stand.assert_serves_others();
    let before = stand.rss();
    let began = Instant::now();
    let (next, seen) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < CLIENTS {
                    let mut stream = stand.connect();
                    stream.write_all(stream_request(1000, "").as_bytes()).unwrap();
                    seen.fetch_add(u32::from(read_event(&mut stream)), Ordering::Relaxed);
                }
            });
        }
    });
    let took = began.elapsed();
    let quiet_after = stand.wait_quiet();
    let after = stand.rss();
    println!(
        "{CLIENTS} left in mid-stream in {took:.1?}: nothing in flight after {quiet_after:?}; the agent had {} MiB \
         before and {} MiB after",
        before >> 20,
        after >> 20
    );
    assert_eq!(seen.into_inner(), CLIENTS);
    assert_eq!(stand.access_count("ended=\"client_gone\""), CLIENTS as usize);
    assert!(after < before + (64 << 20), "{before} -> {after}");
    stand.assert_serves_others();
}

#[test]
fn clients_that_take_nothing_are_cut_and_cost_little() {
    const CLIENTS: u32 = 100;
    let stand = Stand::start(|options| {
        options
            .with("CIC_EDGE_STALL_CUT_MS", "2000")
            .with_engine("CIC_STANDIN_TOKEN_MS", "1")
            .with_engine("CIC_STANDIN_FIRST_TOKEN_MS", "0")
    });
    let before = stand.rss();
    let began = Instant::now();
    let open = || {
        let mut stream = stand.connect();
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
        // 4,000 events are more than what kernels and buffers keep.
        stream.write_all(stream_request(4000, "").as_bytes()).unwrap();
        stream
    };
    let held: Vec<_> = (0..CLIENTS).map(|_| open()).collect();
    stand.wait_for("streams", || stand.engine_figure("vllm:num_requests_running") > f64::from(CLIENTS / 2));
    let mut most = 0;
    stand.wait_for("an end of all streams", || {
        most = stand.rss().max(most);
        stand.engine_figure("vllm:num_requests_running") == 0.0
    });
    println!(
        "{CLIENTS} clients that take nothing: all cut after {:.1?}; the agent had {} MiB before and {} MiB at most",
        began.elapsed(),
        before >> 20,
        most >> 20
    );
    assert!(began.elapsed() < SOON);
    assert_eq!(stand.access_count("ended=\"client_stalled\""), CLIENTS as usize);
    assert!(most < before + u64::from(CLIENTS) * (512 << 10), "{before} -> {most}");
    stand.wait_quiet();
    drop(held);
    stand.assert_serves_others();
}
