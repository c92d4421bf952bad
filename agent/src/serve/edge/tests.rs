//! The whole edge between a real client and fake engines: plain HTTP for the own one, mutual TLS for peers'.

mod scarcity;
mod stand;

use std::sync::Arc;

use cic_common::id::{DeploymentName, Incarnation, Term};
use cic_common::report::Role;
use cic_common::route::{Route, RoutingTable};
use cic_common::routing::Routing;
use cic_common::supervise::Kind;
use cic_common::time::Clock;
use cic_common::tls::config::{tcp_client, tcp_server};
use hyper::StatusCode;
use hyper::header::{HeaderValue, RETRY_AFTER};

use self::stand::*;
use super::answer::Refusal;
use super::choice::Candidate;
use super::lifeline::is_silent;
use super::pool::{Pool, Upstream};
use super::request::EDGE_BODY_BYTES_MAX;
use super::{LAST_RESORT_HEADER, NODE_HEADER, OwnEngine, REFUSED_HEADER};
use crate::core::EdgeMode;
use crate::effect::link::Pulse;
use crate::serve::order::OrderDesk;
use crate::serve::peer::PeerPort;

/// Asks with a replica that acts as `act` before a good one: the client must see nothing but the good answer.
async fn assert_hidden(act: &Act) {
    for (bad_side, good_side, good_name) in [(Side::Own, Side::Peer, "n1"), (Side::Peer, Side::Own, "n0")] {
        let stand = Stand::start(Role::Replica).await;
        let good = stand.fake(good_side, Act::Say(GOOD.to_owned())).await;
        let bad = stand.fake(bad_side, act.clone()).await;
        // The good one has its turn first, so that the bad one has the next.
        stand.admit(&good);
        assert_eq!(text(stand.ask(ASKING).await).await, GOOD_BODY);
        stand.admit(&bad);

        let answer = stand.ask(ASKING).await;
        assert_eq!(answer.headers()[NODE_HEADER], good_name);
        assert_eq!(text(answer).await, GOOD_BODY);
        let bad_count = u32::from(!matches!(act, Act::Refuse));
        assert_eq!((*bad.asked.borrow(), *good.asked.borrow()), (bad_count, 2), "{bad_side:?}");
        assert_eq!(stand.counted(), (2, 1, 0), "{bad_side:?}");
        stand.until_in_flight(0).await;
    }
}

#[tokio::test]
async fn a_replica_that_refuses_connections_is_passed_over() {
    assert_hidden(&Act::Refuse).await;
}

#[tokio::test]
async fn a_connection_closed_before_the_first_body_byte_is_retried() {
    for sent in ["", HALF.split_inclusive("\r\n\r\n").next().unwrap(), STREAM] {
        assert_hidden(&Act::Break(sent.to_owned())).await;
    }
}

#[tokio::test]
async fn a_refusal_by_a_peer_is_retried() {
    let refusal = "HTTP/1.1 503 Busy\r\nx-cic-refused: draining\r\ncontent-length: 0\r\n\r\n";
    assert_hidden(&Act::Say(refusal.to_owned())).await;
}

#[tokio::test]
async fn an_answer_cut_half_way_is_run_again_as_a_whole() {
    assert_hidden(&Act::Break(HALF.to_owned())).await;
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_retried() {
    let error = chunk("data: {\"error\":{\"message\":\"EngineCore died\"}}\n\n");
    assert_hidden(&Act::Say(format!("{STREAM}{error}0\r\n\r\n"))).await;
}

#[tokio::test]
async fn a_stream_that_has_begun_is_passed_on_unbuffered_and_never_retried() {
    for side in [Side::Own, Side::Peer] {
        let stand = Stand::start(Role::Gateway).await;
        let (feeder, act) = feed();
        let dying = stand.fake(side, act).await;
        stand.admit(&dying);
        let first = "data: {\"choices\":[]}\n\n";
        feeder.send(format!("{STREAM}{}", chunk(first))).await.unwrap();
        let answer = stand.ask(ASKING).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let other = if side == Side::Own { Side::Peer } else { Side::Own };
        let other = stand.fake(other, Act::Say(GOOD.to_owned())).await;
        stand.admit(&other);

        let mut body = answer.into_body();
        assert_eq!(frame(&mut body).await.unwrap(), first);
        // Each is fed only once the one before has arrived.
        for event in ["data: 2\n\n", "data: 3\n\n"] {
            feeder.send(chunk(event)).await.unwrap();
            assert_eq!(frame(&mut body).await.unwrap(), event);
        }
        drop(feeder);
        assert!(frame(&mut body).await.is_err());
        stand.until_in_flight(0).await;
        assert_eq!((*dying.asked.borrow(), *other.asked.borrow()), (1, 0));
        assert_eq!(stand.counted(), (1, 0, 1));
    }
}

#[tokio::test]
async fn what_the_client_did_wrong_is_passed_on_and_never_retried() {
    for status in [400, 404, 422, 429] {
        let stand = Stand::start(Role::Replica).await;
        let wrong = format!("HTTP/1.1 {status} No\r\ncontent-length: 5\r\n\r\nwrong");
        let (own, peer) = (
            stand.fake(Side::Own, Act::Say(wrong.clone())).await,
            stand.fake(Side::Peer, Act::Say(wrong)).await,
        );
        stand.admit(&own);
        stand.admit(&peer);
        let answer = stand.ask(ASKING).await;
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(text(answer).await, "wrong");
        assert_eq!(*own.asked.borrow() + *peer.asked.borrow(), 1);
        assert_eq!(stand.counted(), (1, 0, 0));
    }
}

#[tokio::test]
async fn a_request_that_breaks_engines_does_not_break_all_of_them_for_ever() {
    let stand = Stand::start(Role::Replica).await;
    let (own, peer) = (
        stand.fake(Side::Own, Act::Break(String::new())).await,
        stand.fake(Side::Peer, Act::Break(String::new())).await,
    );
    stand.admit(&own);
    stand.admit(&peer);
    assert_eq!(stand.ask(ASKING).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(*own.asked.borrow() + *peer.asked.borrow(), 4);
    assert_eq!(stand.counted(), (1, 3, 1));
}

#[tokio::test]
async fn what_no_replica_could_answer_is_answered_by_the_edge() {
    let stand = Stand::start(Role::Gateway).await;
    let good = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
    stand.admit(&good);
    for (length, status) in [(EDGE_BODY_BYTES_MAX, 200), (EDGE_BODY_BYTES_MAX + 1, 413)] {
        assert_eq!(stand.ask(vec![b' '; length]).await.status(), status, "{length}");
    }
    let answer = stand.ask(r#"{"model":"huge"}"#).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let error: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
    assert_eq!(error["error"]["code"], "model_not_found");
    assert!(error["error"]["message"].as_str().unwrap().contains(MODEL), "{error}");
    assert_eq!((*good.asked.borrow(), stand.counted()), (1, (3, 0, 0)));

    // That it is answered so after the wait is not waited for.
    let none = Refusal::NoReplica { model: MODEL.to_owned(), why: String::new() }.into_response();
    assert_eq!(none.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(none.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn a_request_of_a_peer_is_answered_by_the_own_engine_or_refused_and_never_passed_on() {
    let stand = Stand::start(Role::Replica).await;
    let own = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
    let other = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    stand.admit(&other);
    let edge = stand.edge.clone();
    let port = PeerPort {
        tls: tcp_server(&stand.identity("n0"), &stand.trust).unwrap(),
        pulse: Arc::new(Pulse::new(node("n0"), Incarnation(1), Clock::start())),
        edge: Arc::new(move |request, _| {
            let edge = edge.clone();
            Box::pin(async move { edge.answer_peer(request).await })
        }),
        orders: OrderDesk::open().0,
        files: None,
    };
    let listener = listen().await;
    let upstream =
        Upstream::Peer { node: node("n0"), address: address(listener.local_addr().unwrap().port()).into() };
    let inner = stand.supervisor.clone();
    stand.supervisor.spawn("peer port", Kind::Vital, |token| port.run(listener, inner, token));
    let tls = tcp_client(&stand.identity("n2"), &stand.trust).unwrap();
    let sender = Pool::new(Clock::start(), stand.supervisor.clone(), Some(tls));
    let ask = || within("answer", sender.send_afresh(&upstream, request(ASKING)));

    let refuse = |reason: &str| EdgeMode::Refuse { reason: reason.to_owned() };
    let drain = EdgeMode::Drain { reason: "leaving".to_owned() };
    for (mode, reason) in
        [(None, "no engine runs here"), (Some(refuse("loading")), "loading"), (Some(drain), "leaving")]
    {
        stand.edge.set_own(mode.map(|mode| OwnEngine { model: MODEL.to_owned(), port: own.port, mode }));
        let answer = ask().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()[REFUSED_HEADER], reason);
    }
    assert_eq!((*own.asked.borrow(), *other.asked.borrow()), (0, 0));

    // One that stands still takes what every other replica was asked for before, and nothing else.
    stand.own(own.port, EdgeMode::Reluctant { reason: "stalled".to_owned() });
    assert_eq!(ask().await.unwrap().headers()[REFUSED_HEADER], "stalled");
    let mut last_resort = request(ASKING);
    last_resort.headers_mut().insert(LAST_RESORT_HEADER, HeaderValue::from_static("1"));
    let answer = within("answer", sender.send_afresh(&upstream, last_resort)).await.unwrap();
    assert_eq!(text(answer).await, GOOD_BODY);
    assert_eq!(*own.asked.borrow(), 1);

    stand.admit(&own);
    let answer = ask().await.unwrap();
    assert_eq!(answer.headers()[NODE_HEADER], "n0");
    assert_eq!(text(answer).await, GOOD_BODY);
    assert_eq!((*own.asked.borrow(), *other.asked.borrow()), (2, 0));
    stand.until_in_flight(0).await;
}

#[tokio::test]
async fn a_reluctant_engine_is_asked_last_and_asked_when_it_is_the_last() {
    let stand = Stand::start(Role::Replica).await;
    let own = stand.fake(Side::Own, Act::Say(GOOD.to_owned())).await;
    let peer = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    stand.own(own.port, EdgeMode::Reluctant { reason: "stalled".to_owned() });
    stand.admit(&peer);
    for _ in 0..4 {
        assert_eq!(stand.ask(ASKING).await.headers()[NODE_HEADER], "n1");
    }
    assert_eq!((*own.asked.borrow(), *peer.asked.borrow()), (0, 4));
    stand.route(Vec::new());
    // A user cannot ask for it, and need not.
    let mut client = stand.client().await;
    let mut forged = request(ASKING);
    forged.headers_mut().insert(LAST_RESORT_HEADER, HeaderValue::from_static("1"));
    let answer = within("answer", client.sender.send_request(forged)).await.unwrap();
    assert_eq!(answer.headers()[NODE_HEADER], "n0");
    assert_eq!(*own.asked.borrow(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_and_its_replica() {
    for (side, role) in [(Side::Own, Role::Replica), (Side::Own, Role::Gateway), (Side::Peer, Role::Gateway)]
    {
        for has_begun in [false, true] {
            let stand = Stand::start(role).await;
            let (feeder, act) = feed();
            let fake = stand.fake(side, act).await;
            stand.admit(&fake);
            let mut client = stand.client().await;
            let answer = client.sender.send_request(request(ASKING));
            if has_begun {
                feeder.send(format!("{STREAM}{}", chunk("data: 1\n\n"))).await.unwrap();
                let mut body = within("answer", answer).await.unwrap().into_body();
                assert_eq!(frame(&mut body).await.unwrap(), "data: 1\n\n");
                assert_eq!(stand.edge.report().in_flight, 1);
                client.task.cancel();
            } else {
                reaches(&fake.asked, 1).await;
                assert_eq!(stand.edge.report().in_flight, 1);
                client.task.cancel();
                assert!(within("end", answer).await.is_err());
            }
            reaches(&fake.left, 1).await;
            stand.until_in_flight(0).await;
        }
    }
}

#[tokio::test]
async fn only_a_peer_that_gives_no_answer_of_any_kind_is_silent() {
    let stand = Stand::start(Role::Gateway).await;
    let tls = tcp_client(&stand.identity("n2"), &stand.trust).unwrap();
    let pool = Pool::new(Clock::start(), stand.supervisor.clone(), Some(tls));
    let peer = |port| Upstream::Peer { node: node("n1"), address: address(port).into() };

    let answering = stand.fake(Side::Peer, Act::Say(GOOD.to_owned())).await;
    let refusing = stand.fake(Side::Peer, Act::Refuse).await;
    // Takes a connection and closes it: an agent whose places are all taken.
    let full = listen().await;
    let full_port = full.local_addr().unwrap().port();
    stand.supervisor.spawn("full peer", Kind::Passing, |_| async move {
        loop {
            drop(full.accept().await?);
        }
    });
    // The kernel takes the connection, nobody ever reads from it: a frozen machine.
    let frozen = listen().await;
    for (port, expected) in [
        (answering.port, false),
        (refusing.port, false),
        (full_port, false),
        (frozen.local_addr().unwrap().port(), true),
    ] {
        assert_eq!(within("verdict", is_silent(&pool, &peer(port))).await, expected);
    }
}

#[tokio::test]
async fn the_own_engine_is_chosen_by_its_deployments_newest_wishes() {
    let stand = Stand::start(Role::Replica).await;
    stand.own(1, EdgeMode::Admit);
    for (version, weight) in [(1, 100), (2, 0), (3, 7)] {
        let routing = Routing { weight, ..Routing::default() };
        let deployment = DeploymentName::new("d").unwrap();
        let route =
            Route { deployment, model: MODEL.to_owned(), replicas: Vec::new(), routing: routing.clone() };
        assert!(stand.routes.offer(RoutingTable { term: Term(1), version, routes: vec![route] }));
        for _ in 0..2 {
            let own = stand.edge.candidates(MODEL, false).pop().unwrap();
            assert_eq!(*own, Candidate::new(stand.edge.own(1), None, None, &routing), "weight {weight}");
        }
    }
}
