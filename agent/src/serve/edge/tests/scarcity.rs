//! Less than is asked for: full engines, absent replicas, and the way outside.

use std::time::Duration;

use bytes::Bytes;
use cic_common::report::Role;
use cic_common::route::Replica;
use cic_common::wire::message::NodeEvent;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use tokio::sync::mpsc;

use super::super::{AdmissionLimits, NODE_HEADER, Price, ScarcitySpec, SurgeSpec};
use super::stand::*;

fn limits(in_flight_max: u32) -> ScarcitySpec {
    let limits = AdmissionLimits { in_flight_max, ..AdmissionLimits::default() };
    ScarcitySpec { limits, ..ScarcitySpec::default() }
}

/// A request of that class that waits so long.
fn asking(class: &str, wait_s: u32) -> Request<Full<Bytes>> {
    let mut request = request(ASKING);
    request.headers_mut().insert("x-cic-class", HeaderValue::from_str(class).unwrap());
    request.headers_mut().insert("x-cic-wait", HeaderValue::from(wait_s));
    request
}

async fn ask(stand: &Stand, request: Request<Full<Bytes>>) -> Response<Incoming> {
    within("answer", stand.client().await.sender.send_request(request)).await.unwrap()
}

/// Requests that the fake has and does not answer. They end when the result is dropped.
async fn hold(stand: &Stand, fake: &Fake, class: &str, count: u32) -> Vec<tokio::task::JoinHandle<u16>> {
    let before = *fake.asked.borrow();
    let mut held = Vec::new();
    for number in 1..=count {
        let mut client = stand.client().await;
        let request = asking(class, 20);
        held.push(tokio::spawn(async move {
            within("held answer", client.sender.send_request(request)).await.unwrap().status().as_u16()
        }));
        reaches(&fake.asked, before + number).await;
    }
    held
}

fn metric(stand: &Stand, name: &str) -> u64 {
    let text = stand.edge.scarcity_text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

async fn until_metric(stand: &Stand, name: &str, value: u64) {
    within(name, async {
        while metric(stand, name) != value {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn batch_is_shed_before_standard_and_standard_before_those_who_wait_for_each_token() {
    let stand = Stand::scarce(Role::Replica, limits(5)).await;
    let (_feeder, act) = feed();
    let own = stand.fake(Side::Own, act).await;
    stand.admit(&own);
    let _batch = hold(&stand, &own, "batch", 3).await;
    assert_eq!(ask(&stand, asking("batch", 0)).await.status(), StatusCode::TOO_MANY_REQUESTS);
    let _standard = hold(&stand, &own, "standard", 1).await;
    let shed = ask(&stand, asking("standard", 0)).await;
    assert_eq!(shed.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(shed.headers()[RETRY_AFTER], "5", "nothing has ended yet by which to say more");
    let error: serde_json::Value = serde_json::from_str(&text(shed).await).unwrap();
    assert_eq!(
        (&error["error"]["type"], &error["error"]["code"]),
        (&"rate_limit_error".into(), &"replicas_full".into())
    );
    let _critical = hold(&stand, &own, "latency_critical", 1).await;
    assert_eq!(ask(&stand, asking("latency_critical", 0)).await.status(), StatusCode::TOO_MANY_REQUESTS);
    for class in ["batch", "standard", "latency_critical"] {
        assert_eq!(metric(&stand, &format!("cic_agent_edge_shed_requests_total{{class=\"{class}\"}}")), 1);
    }
    let report = stand.edge.report();
    assert_eq!((report.shed_count, report.failure_count, report.in_flight), (3, 0, 5));
}

#[tokio::test]
async fn a_request_without_room_stands_in_line_and_is_let_in_when_a_place_is_free() {
    let stand = Stand::scarce(Role::Replica, limits(1)).await;
    let (feeder, act) = feed();
    let own = stand.fake(Side::Own, act).await;
    stand.admit(&own);
    let mut leaving = stand.client().await;
    let first = leaving.sender.send_request(asking("standard", 20));
    reaches(&own.asked, 1).await;
    let mut client = stand.client().await;
    let second = client.sender.send_request(asking("standard", 20));
    let second = tokio::spawn(within("second answer", second));
    until_metric(&stand, "cic_agent_edge_in_line_requests", 1).await;
    assert_eq!(stand.edge.report().waiting, 1);
    assert_eq!(*own.asked.borrow(), 1);
    leaving.task.cancel();
    drop(first);
    reaches(&own.asked, 2).await;
    feeder.send(GOOD.to_owned()).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().status(), StatusCode::OK);
    stand.until_in_flight(0).await;
}

#[tokio::test]
async fn when_every_peer_is_full_the_soonest_that_expects_room_says_when_to_come_again() {
    let stand = Stand::scarce(Role::Gateway, ScarcitySpec::default()).await;
    let refusal = "HTTP/1.1 429 Full\r\nx-cic-refused: full\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
    let full = stand.fake(Side::Peer, Act::Say(refusal.to_owned())).await;
    stand.admit(&full);
    let answer = ask(&stand, asking("standard", 0)).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers()[RETRY_AFTER], "7");
    // One that is busy is well: it is asked again, and one that has room is found.
    let good = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
    stand.admit(&good);
    for _ in 0..4 {
        assert_eq!(ask(&stand, asking("standard", 0)).await.status(), StatusCode::OK);
    }
    assert!(*full.asked.borrow() > 1);
    assert_eq!(stand.edge.report().failure_count, 0);
}

#[tokio::test]
async fn what_broke_on_one_replica_is_told_of_the_full_one_as_long_as_there_are_retries_and_not_after() {
    for (is_spent, status) in [(false, StatusCode::TOO_MANY_REQUESTS), (true, StatusCode::BAD_GATEWAY)] {
        let stand = Stand::scarce(Role::Gateway, ScarcitySpec::default()).await;
        let refusal =
            "HTTP/1.1 429 Full\r\nx-cic-refused: full\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
        let full = stand.fake(Side::Peer, Act::Say(refusal.to_owned())).await;
        let breaks = stand.fake(Side::Own, Act::Break("HTTP/1.1 200 OK\r\ncontent-le".to_owned())).await;
        let budget = &stand.edge.shared.scarcity.budget;
        let now = stand.edge.now();
        let mut others = 0;
        while is_spent && budget.withdraw(&node(&format!("other{others}")), now) {
            others += 1;
        }
        stand.admit(&breaks);
        // Whichever is tried first, the other one is tried too.
        stand.admit(&full);
        assert_eq!(ask(&stand, asking("standard", 0)).await.status(), status, "spent: {is_spent}");
        assert_ne!(*breaks.asked.borrow(), 0);
    }
}

#[tokio::test]
async fn a_full_peer_that_tells_its_load_is_passed_over_for_one_with_room_and_users_hear_of_no_load() {
    for head in ["429 Full\r\nx-cic-refused: full", "500 Internal Server Error"] {
        let stand = Stand::scarce(Role::Gateway, ScarcitySpec::default()).await;
        let said = format!("HTTP/1.1 {head}\r\nx-cic-load: in_flight=256\r\ncontent-length: 0\r\n\r\n");
        let full = stand.fake(Side::Peer, Act::Say(said)).await;
        stand.admit(&full);
        let answer = ask(&stand, asking("standard", 0)).await;
        assert!(head.starts_with(answer.status().as_str()), "{}", answer.status());
        assert!(!answer.headers().contains_key("x-cic-load"));
        let before = *full.asked.borrow();
        let good = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
        stand.admit(&good);
        for _ in 0..4 {
            assert_eq!(ask(&stand, asking("standard", 0)).await.status(), StatusCode::OK);
        }
        assert_eq!(*full.asked.borrow(), before, "{head}");
    }
}

#[tokio::test]
async fn a_client_that_would_wait_gets_the_replica_that_comes_and_one_that_would_not_is_told_at_once() {
    let (tell, mut told) = mpsc::channel(4);
    let scarcity = ScarcitySpec { tell: Some(tell), ..ScarcitySpec::default() };
    let stand = Stand::scarce(Role::Gateway, scarcity).await;
    // Nobody is told of a model that no deployment has.
    stand.route(Vec::new());
    let at_once = ask(&stand, asking("standard", 0)).await;
    assert_eq!(at_once.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(at_once.headers()[RETRY_AFTER], "5");

    let mut client = stand.client().await;
    let waiting = tokio::spawn(within("answer", client.sender.send_request(asking("standard", 60))));
    let word = within("a word to the controllers", told.recv()).await.unwrap();
    assert_eq!(word, NodeEvent::ReplicasMissing { model: MODEL.to_owned() });
    assert_eq!(stand.edge.report().waiting, 1);
    let good = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    stand.admit(&good);
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!((stand.edge.report().waiting, stand.counted()), (0, (2, 0, 1)));
}

#[tokio::test]
async fn a_replica_that_dies_with_more_requests_than_the_budget_loses_none_of_them() {
    const IN_FLIGHT: u32 = 300;
    let stand = Stand::scarce(Role::Replica, limits(1000)).await;
    let (feeder, act) = feed();
    let dying = stand.fake(Side::Own, act).await;
    stand.admit(&dying);
    let held = hold(&stand, &dying, "standard", IN_FLIGHT).await;
    let good = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    stand.admit(&good);
    drop(feeder);
    for answer in held {
        assert_eq!(answer.await.unwrap(), 200);
    }
    let (requests, retries, failures) = stand.counted();
    assert_eq!((requests, failures), (u64::from(IN_FLIGHT), 0));
    assert!(retries >= u64::from(IN_FLIGHT), "{retries}");
    assert_eq!(metric(&stand, "cic_agent_edge_denied_retries_total"), 0);
}

fn surge(port: u16, budget_microusd_per_hour: u64) -> ScarcitySpec {
    let surge = SurgeSpec {
        url: format!("http://127.0.0.1:{port}/v1").parse().unwrap(),
        authorization: HeaderValue::from_static("Bearer ours"),
        models: [(MODEL.to_owned(), "large".to_owned())].into(),
        price: Price { input_microusd_per_million: 1_000_000, output_microusd_per_million: 2_000_000 },
        in_flight_max: 4,
        budget_microusd_per_hour,
        is_for_batch: false,
    };
    ScarcitySpec { surge: Some(surge), ..ScarcitySpec::default() }
}

/// A fake API outside, and an edge that knows of it.
async fn with_outside(act: Act, budget_microusd: u64, is_allowed: bool) -> (Fake, Stand) {
    let outside = Stand::start(Role::Gateway).await.fake(Side::Own, act).await;
    let stand = Stand::scarce(Role::Gateway, surge(outside.port, budget_microusd)).await;
    stand.route_as(Vec::<Replica>::new(), is_allowed);
    (outside, stand)
}

fn said(body: &str) -> Act {
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nset-cookie: a=b\r\n";
    Act::Say(format!("{head}content-length: {length}\r\n\r\n{body}"))
}

#[tokio::test]
async fn what_no_replica_takes_goes_outside_where_the_route_allows_and_is_marked_counted_and_paid() {
    let body = r#"{"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":3}}"#;
    let (outside, stand) = with_outside(said(body), 1_000_000, true).await;
    let answer = ask(&stand, asking("standard", 20)).await;
    assert_eq!(
        (answer.status(), &answer.headers()[NODE_HEADER]),
        (StatusCode::OK, &"surge".parse().unwrap())
    );
    assert!(answer.headers().get("set-cookie").is_none());
    assert_eq!(text(answer).await, body);
    for (name, value) in [
        ("requests_total", 1),
        ("input_tokens_total", 5),
        ("output_tokens_total", 3),
        ("cost_microdollars_total", 11),
        ("unmetered_requests_total", 0),
        ("in_flight_requests", 0),
        ("budget_left_microdollars", 999_989),
    ] {
        assert_eq!(metric(&stand, &format!("cic_agent_surge_{name}")), value, "{name}");
    }
    // Batch work waits, and is told the truth in the end.
    assert_eq!(ask(&stand, asking("batch", 2)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(*outside.asked.borrow(), 1);
}

#[tokio::test]
async fn nothing_goes_outside_without_the_routes_leave_beside_a_replica_or_beyond_the_budget() {
    for (budget_microusd, is_allowed, has_replica, status) in
        [(1_000_000, false, false, 503), (1_000_000, true, true, 200), (1_000, true, false, 503)]
    {
        let (outside, stand) = with_outside(said(GOOD_BODY), budget_microusd, is_allowed).await;
        let good = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
        if has_replica {
            stand.admit(&good);
        }
        assert_eq!(ask(&stand, asking("standard", 2)).await.status(), status);
        assert_eq!(*outside.asked.borrow(), 0);
        let is_stopped = metric(&stand, "cic_agent_surge_stops_total{reason=\"budget\"}") > 0;
        assert_eq!(is_stopped, budget_microusd == 1_000);
    }
}

#[tokio::test]
async fn an_answer_from_outside_that_only_we_could_mend_is_not_the_users() {
    let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 3\r\n\r\nkey";
    let (outside, stand) = with_outside(Act::Say(refusal.to_owned()), 1_000_000, true).await;
    let answer = ask(&stand, asking("standard", 3)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((*outside.asked.borrow(), metric(&stand, "cic_agent_surge_failures_total")), (2, 2));
}
