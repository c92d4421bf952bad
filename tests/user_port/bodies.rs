//! Bodies that are too long, come slowly, or are not what they say.

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::stand::{RSS_BYTES_MAX, Stand, error_code, post, rest, statuses};

/// Whether an answer was read although the client went on writing for as long as it was let.
fn flood(stand: &Stand, head: &str, piece: &[u8]) -> (String, u64, u64) {
    let mut stream = stand.connect();
    let mut answers = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || rest(&mut answers));
    stream.write_all(head.as_bytes()).unwrap();
    let (mut sent, mut rss_max) = (0, 0);
    while sent < 1 << 30 && !reader.is_finished() && stream.write_all(piece).is_ok() {
        sent += piece.len() as u64;
        rss_max = stand.rss().max(rss_max);
    }
    (reader.join().unwrap(), sent, rss_max)
}

#[test]
fn a_gigabyte_is_refused_without_being_kept() {
    let stand = Stand::start(|options| options.with("CIC_EDGE_BODY_WITHIN_MS", "10000"));
    let head = |framing: &str| format!("POST /v1/completions HTTP/1.1\r\nhost: edge\r\n{framing}\r\n");
    let megabyte = vec![b' '; 1 << 20];
    let chunk = [b"100000\r\n", megabyte.as_slice(), b"\r\n"].concat();
    for (what, head, piece) in [
        ("with its length", head(&format!("content-length: {}\r\n", 1 << 30)), megabyte.as_slice()),
        ("in chunks", head("transfer-encoding: chunked\r\n"), chunk.as_slice()),
    ] {
        let (answer, sent, rss_max) = flood(&stand, &head, piece);
        println!(
            "1 GiB {what}: 413 after {} MiB were sent; the agent had {} MiB at most",
            sent >> 20,
            rss_max >> 20
        );
        assert_eq!(
            (statuses(&answer), error_code(&answer).as_str()),
            (vec![413], "request_too_large"),
            "{what}"
        );
        assert!(rss_max < RSS_BYTES_MAX, "{what}: {rss_max}");
    }
    // A byte a chunk is six on the wire, and may be no more here either. Whether its length or its time ends it is a
    // matter of how fast this machine is.
    let (answer, sent, rss_max) =
        flood(&stand, &head("transfer-encoding: chunked\r\n"), &b"1\r\n \r\n".repeat(10_000));
    println!(
        "in chunks of a byte: {:?} after {} MiB; the agent had {} MiB at most",
        statuses(&answer),
        sent >> 20,
        rss_max >> 20
    );
    assert!([[413], [408]].contains(&[statuses(&answer)[0]]), "{answer}");
    assert!(rss_max < RSS_BYTES_MAX, "{rss_max}");
    stand.assert_serves_others();
}

#[test]
fn a_body_that_comes_byte_by_byte_is_cut_and_reaches_no_engine() {
    let stand = Stand::start(|options| options.with("CIC_EDGE_BODY_WITHIN_MS", "1500"));
    let prompt_tokens = || stand.engine_figure("vllm:prompt_tokens_total");
    let before = prompt_tokens();
    stand.assert_serves_others();
    let (mut good_count, good_tokens) = (1, prompt_tokens() - before);
    assert!(good_tokens > 0.0);
    let began = Instant::now();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: edge\r\ncontent-length: 1000\r\n\r\n";
    let mut slow: Vec<_> = (0..100).map(|_| stand.connect()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(head.as_bytes()).unwrap());
    let mut readers: Vec<_> = slow.iter().map(|stream| stream.try_clone().unwrap()).collect();
    let reader = std::thread::spawn(move || readers.iter_mut().map(rest).collect::<Vec<_>>());
    while !reader.is_finished() {
        slow.retain_mut(|stream| stream.write_all(b" ").is_ok());
        stand.assert_serves_others();
        good_count += 1;
        assert!(began.elapsed() < Duration::from_secs(60));
    }
    let answers = reader.join().unwrap();
    let late = answers.iter().filter(|answer| statuses(answer) == [408]).count();
    println!("100 slow bodies: {late} answered with 408, all cut after {:?}", began.elapsed());
    assert_eq!(late, 100, "{}", answers[0]);
    assert!(began.elapsed() >= Duration::from_millis(1500));
    stand.wait_quiet();
    assert_eq!(prompt_tokens(), before + good_tokens * f64::from(good_count), "no other reached the engine");
}

#[test]
fn what_is_no_request_is_refused_in_openai_s_shape_and_a_strange_type_is_the_engine_s_to_judge() {
    let stand = Stand::start(|options| options);
    let close = "connection: close\r\n";
    for (body, status, code) in [
        (r#"{"model":"huge","prompt":"a"}"#, 404, "model_not_found"),
        (r#"{"model":"","prompt":"a"}"#, 404, "model_not_found"),
    ] {
        let answer = stand.say(post(body, close).as_bytes());
        assert_eq!((statuses(&answer), error_code(&answer).as_str()), (vec![status], code), "{body}");
    }
    let deep = "[".repeat(100_000);
    for body in ["", "{", "null", "[]", "\u{0}", &deep, r#"{"model":1}"#, r#"{"model":"tiny"}"#] {
        let status = statuses(&stand.say(post(body, close).as_bytes()))[0];
        assert!((400..500).contains(&status), "{status}: {}", body.chars().take(20).collect::<String>());
    }
    for content in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "\u{e9}"] {
        let body = r#"{"model":"tiny","prompt":"a","max_tokens":1}"#;
        let message = post(body, close).replace("application/json", content);
        let status = statuses(&stand.say(message.as_bytes()))[0];
        assert!(status == 200 || (400..500).contains(&status), "{content}: {status}");
    }
    stand.assert_serves_others();
}
