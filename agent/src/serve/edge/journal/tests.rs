use bytes::Bytes;
use hyper::Request;

use cic_common::time::Clock;

use super::noted::{BODIES_BYTES_MAX, TOKENS_MAX};
use super::*;
use crate::serve::edge::request::Buffered;
use crate::serve::edge::user_port::{Upload, Visit};

fn request(key: Option<&str>, body: &str) -> Buffered {
    let mut head =
        Request::post("/v1/completions?a=1").header("content-type", "application/json; charset=utf-8");
    if let Some(key) = key {
        head = head.header("idempotency-key", key);
    }
    let head = head.body(()).unwrap().into_parts().0;
    Buffered::new(head, Upload::of(Bytes::from(body.to_owned())), Visit::default())
}

fn written(journal: &Journal, clock: Clock) -> Vec<Unfinished> {
    journal.under_way(clock).written()
}

#[test]
fn a_request_is_noted_as_long_as_it_lasts() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let first = journal.note("m", &request(Some("k"), r#"{"prompt":"a"}"#), clock.now()).unwrap();
    let stream = request(Some("k"), r#"{"prompt":"b","stream":true}"#);
    let second = journal.note("m", &stream, clock.now()).unwrap();
    second.has_emitted(&[1, 2]);
    let noted = written(&journal, clock);
    let shown: Vec<_> = noted.iter().map(|one| (one.is_stream, one.tokens.clone())).collect();
    assert_eq!(shown, [(false, vec![]), (true, vec![1, 2])]);
    assert!(noted[0].can_be_rerun() && !noted[1].can_be_rerun());
    assert_eq!(noted[0].body.as_deref(), Some(r#"{"prompt":"a"}"#));
    assert_eq!(noted[0].path, "/v1/completions?a=1");
    drop(first);
    assert_eq!(written(&journal, clock).len(), 1);
    drop(second);
    assert_eq!(written(&journal, clock), []);
}

#[test]
fn only_a_named_post_of_json_can_be_run_again() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let unnamed = journal.note("m", &request(None, "{}"), clock.now());
    let head = Request::get("/v1/completions").header("idempotency-key", "k").body(()).unwrap();
    let read = Buffered::new(head.into_parts().0, Upload::of(Bytes::new()), Visit::default());
    let read = journal.note("m", &read, clock.now());
    let form =
        Request::post("/v1/x").header("idempotency-key", "k").header("content-type", "multipart/form-data");
    let form =
        Buffered::new(form.body(()).unwrap().into_parts().0, Upload::of(Bytes::new()), Visit::default());
    let form = journal.note("m", &form, clock.now());
    assert!(written(&journal, clock).iter().all(|one| !one.can_be_rerun()));
    drop((unnamed, read, form));
}

#[test]
fn tokens_that_are_drawn_anew_take_the_place_of_the_first_ones() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let line = journal.note("m", &request(None, "{}"), clock.now()).unwrap();
    let now = || written(&journal, clock).remove(0).tokens;
    line.has_emitted(&[1, 2, 3]);
    line.has_emitted_only(&[1]);
    assert_eq!(now(), [1]);
    line.has_emitted(&[1, 8, 9]);
    assert_eq!(now(), [1, 8, 9]);
}

#[test]
fn of_bodies_beyond_the_bound_those_come_first_that_can_be_run_again() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let large = "x".repeat(BODIES_BYTES_MAX - 1);
    let requests =
        [request(None, &large), request(Some("k"), "yy"), request(Some("j"), &large), request(None, "z")];
    let lines = requests.map(|request| journal.note("m", &request, clock.now()).unwrap());
    let has_body: Vec<bool> = written(&journal, clock).iter().map(|one| one.body.is_some()).collect();
    assert_eq!(has_body, [false, true, false, true]);
    drop(lines);
}

#[test]
fn tokens_beyond_the_bound_are_left_out() {
    let (journal, clock) = (Journal::kept(), Clock::start());
    let many = vec![7; TOKENS_MAX];
    let lines = [&many[..], &[7], &many[1..]].map(|tokens| {
        let line = journal.note("m", &request(None, "{}"), clock.now()).unwrap();
        line.has_emitted(tokens);
        line
    });
    let counts: Vec<usize> = written(&journal, clock).iter().map(|one| one.tokens.len()).collect();
    assert_eq!(counts, [TOKENS_MAX, 0, 0]);
    drop(lines);
}

#[test]
fn nothing_is_noted_where_no_checkpoint_is_written() {
    let clock = Clock::start();
    assert!(Journal::default().note("m", &request(None, "{}"), clock.now()).is_none());
    assert_eq!(written(&Journal::default(), clock), []);
}
