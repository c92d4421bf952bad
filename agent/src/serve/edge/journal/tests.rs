use bytes::Bytes;
use hyper::Request;

use super::*;
use crate::serve::edge::user_port::Visit;

fn request(body: &str) -> Buffered {
    let head = Request::post("/v1/completions").header("idempotency-key", "k").body(()).unwrap();
    Buffered::new(head.into_parts().0, Upload::of(Bytes::from(body.to_owned())), Visit::default())
}

#[test]
fn a_request_is_noted_as_long_as_it_lasts() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let first = journal.note("m", &request(r#"{"prompt":"a"}"#), clock.now()).unwrap();
    let second = journal.note("m", &request(r#"{"prompt":"b","stream":true}"#), clock.now()).unwrap();
    second.has_emitted(&[1, 2]);
    let noted = journal.unfinished(clock);
    let shown: Vec<_> = noted.iter().map(|one| (one.is_stream, one.tokens.clone())).collect();
    assert_eq!(shown, [(false, vec![]), (true, vec![1, 2])]);
    assert!(noted[0].can_be_rerun() && !noted[1].can_be_rerun());
    assert_eq!(noted[0].body.as_deref(), Some(r#"{"prompt":"a"}"#));
    drop(first);
    assert_eq!(journal.unfinished(clock).len(), 1);
    drop(second);
    assert_eq!(journal.unfinished(clock), []);
}

#[test]
fn tokens_that_are_drawn_anew_take_the_place_of_the_first_ones() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let line = journal.note("m", &request("{}"), clock.now()).unwrap();
    let now = || journal.unfinished(clock).remove(0).tokens;
    line.has_emitted(&[1, 2, 3]);
    line.has_emitted(&[1]);
    assert_eq!(now(), [1]);
    line.has_emitted(&[1, 7]);
    line.has_emitted(&[1, 8, 9]);
    assert_eq!(now(), [1, 8, 9]);
}

#[test]
fn bodies_beyond_the_bound_are_left_out_and_their_requests_named() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let large = "x".repeat(BODIES_BYTES_MAX - 1);
    let lines = [&*large, "yy", "z"].map(|body| journal.note("m", &request(body), clock.now()).unwrap());
    let has_body: Vec<bool> = journal.unfinished(clock).iter().map(|one| one.body.is_some()).collect();
    assert_eq!(has_body, [true, false, true]);
    drop(lines);
}

#[test]
fn nothing_is_noted_where_no_checkpoint_is_written() {
    let clock = Clock::start();
    assert!(Journal::default().note("m", &request("{}"), clock.now()).is_none());
    assert_eq!(Journal::default().unfinished(clock), []);
}
