//! Enrolment, and certificates that renew themselves.

use std::time::Duration;

use cic_agent::effect::link::{EnrolError, EnrolSpec, enrol, load_identity};
use cic_common::report::NodeReport;
use cic_common::time::unix_ms;
use cic_common::tls::config::quic_enrol_client;
use cic_common::tls::{Identity, JoinToken, PendingKey, peer};
use cic_common::wire::frame::{FrameReader, FrameWriter};
use cic_common::wire::message::{EnrolAnswer, EnrolRequest, NodeEvent};
use cic_controller::core::Event;
use cic_controller::ingest::Refusal;
use quinn::Endpoint;
use tokio_util::sync::CancellationToken;

use crate::parties::{Controller, Fleet, HOUR, Node, loopback, node_id, within};

fn spec(fleet: &Fleet, controllers: Vec<String>, node: &str, join_token: JoinToken) -> EnrolSpec {
    EnrolSpec {
        controllers,
        node: node_id(node),
        join_token,
        trust: fleet.trust.clone(),
        identity_path: fleet.path(&format!("{node}-enrolled.pem")),
    }
}

async fn enrol_at(
    fleet: &Fleet,
    controller: &Controller,
    node: &str,
    token: JoinToken,
) -> Result<Identity, EnrolError> {
    let spec = spec(fleet, vec![controller.address().to_string()], node, token);
    within("enrolment", enrol(&spec, &CancellationToken::new())).await
}

#[tokio::test]
async fn a_node_enrols_once_and_is_heard() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let token = controller.join_token();
    let identity = enrol_at(&fleet, &controller, "n1", token).await.unwrap();
    let _node = Node::start(&fleet, &identity, 1, controller.address());
    controller.connected("n1").await;
    controller.beaten("n1", 0).await;

    let path = fleet.path("n1-enrolled.pem");
    assert!(load_identity(&path, &node_id("n1")).unwrap().is_some());
    assert!(load_identity(&path, &node_id("n2")).is_err(), "another node's identity is taken for ours");
    assert!(load_identity(&fleet.path("none.pem"), &node_id("n1")).unwrap().is_none());
}

#[tokio::test]
async fn a_reused_join_token_is_refused_and_disturbs_nobody() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let token = controller.join_token();
    let identity = enrol_at(&fleet, &controller, "n1", token.clone()).await.unwrap();
    let node = Node::start(&fleet, &identity, 1, controller.address());
    controller.connected("n1").await;
    let seq = controller.beaten("n1", 0).await;

    let refused = enrol_at(&fleet, &controller, "n2", token.clone()).await;
    assert!(
        matches!(&refused, Err(EnrolError::Refused { reason, .. }) if reason.contains("used")),
        "{refused:?}"
    );
    let again = enrol_at(&fleet, &controller, "n1", token).await;
    assert!(matches!(again, Err(EnrolError::Refused { .. })), "another key got in with the used token");
    let unknown = enrol_at(&fleet, &controller, "n3", JoinToken::generate().unwrap()).await;
    assert!(matches!(unknown, Err(EnrolError::Refused { .. })));
    controller.refused(Refusal::Token, 3).await;

    node.pulse.set(NodeReport::booting());
    controller.beaten("n1", seq).await;
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_answered_again() {
    let fleet = Fleet::new();
    let controller = Controller::start(&fleet);
    let key = PendingKey::generate().unwrap();
    let request = EnrolRequest {
        token: controller.join_token().to_string(),
        node: node_id("n1"),
        csr_der: key.csr_der().unwrap(),
    };
    let mut answers = Vec::new();
    for _ in 0..2 {
        let endpoint = Endpoint::client(loopback(0)).unwrap();
        let config = quic_enrol_client(&fleet.trust).unwrap();
        let connecting = endpoint.connect_with(config, controller.address(), peer::any_controller()).unwrap();
        let connection = within("handshake", connecting).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        FrameWriter::new(send).write(&request).await.unwrap();
        answers.push(within("answer", FrameReader::new(receive).next::<EnrolAnswer>()).await.unwrap());
    }
    assert!(matches!(answers[0], EnrolAnswer::Enrolled { .. }));
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn a_bad_request_does_not_cost_the_token() {
    let fleet = Fleet::new();
    let controller = Controller::start(&fleet);
    let token = controller.join_token();
    let request =
        EnrolRequest { token: token.to_string(), node: node_id("n1"), csr_der: b"no request".to_vec() };
    let endpoint = Endpoint::client(loopback(0)).unwrap();
    let config = quic_enrol_client(&fleet.trust).unwrap();
    let connecting = endpoint.connect_with(config, controller.address(), peer::any_controller()).unwrap();
    let connection = within("handshake", connecting).await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    FrameWriter::new(send).write(&request).await.unwrap();
    let answer = within("answer", FrameReader::new(receive).next::<EnrolAnswer>()).await.unwrap();
    assert!(matches!(answer, EnrolAnswer::Refused { .. }));
    controller.refused(Refusal::Request, 1).await;
    enrol_at(&fleet, &controller, "n1", token).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_controller_is_asked_until_it_is_there() {
    let fleet = Fleet::new();
    let controller = Controller::start(&fleet);
    let token = controller.join_token();
    // Nobody listens on the first; the second in the list is asked next.
    let silent = std::net::UdpSocket::bind(loopback(0)).unwrap();
    let controllers = vec![silent.local_addr().unwrap().to_string(), controller.address().to_string()];
    let spec = spec(&fleet, controllers, "n1", token);
    within("enrolment", enrol(&spec, &CancellationToken::new())).await.unwrap();

    let stop = CancellationToken::new();
    stop.cancel();
    assert!(matches!(enrol(&spec, &stop).await, Err(EnrolError::Stopped)));
}

/// Three seconds of life, so two renewals pass while the test waits for the first certificate to end.
#[tokio::test]
async fn a_certificate_renews_itself_while_the_link_stays() {
    const SPAN: Duration = Duration::from_secs(3);
    let fleet = Fleet::new();
    let mut controller = Controller::start_on(&fleet, 0, SPAN);
    let token = controller.join_token();
    let identity = enrol_at(&fleet, &controller, "n1", token).await.unwrap();
    let first = identity.validity();
    let mut node = Node::start(&fleet, &identity, 1, controller.address());
    controller.connected("n1").await;
    node.up().await;
    // The core's queue must not fill meanwhile.
    let renewed = async {
        while !(identity.validity().not_before_ms > first.not_before_ms && unix_ms() > first.not_after_ms) {
            controller.ingest.send(&node_id("n1"), cic_controller::core::Message::Challenge { number: 1 });
            controller.event().await;
        }
    };
    within("renewal", renewed).await;
    assert_eq!(
        Identity::load(&fleet.path("n1-enrolled.pem")).unwrap().unwrap().validity(),
        identity.validity()
    );

    // The link is the same as before, and a new handshake with the new certificate succeeds.
    node.links.tell(&NodeEvent::Farewell { reason: "still here".to_owned() });
    controller
        .find(|event| match event {
            Event::Told { .. } => Some(()),
            Event::Disconnected { .. } => panic!("the link was cut by the renewal"),
            _ => None,
        })
        .await;
    let _again = Node::start(&fleet, &identity, 2, controller.address());
    controller.connected("n1").await;
    assert_eq!(controller.refusals_in_all(), 0);
}

#[tokio::test]
async fn an_expired_certificate_does_not_get_in() {
    let fleet = Fleet::new();
    let controller = Controller::start(&fleet);
    let path = fleet.path("n1.pem");
    let long_ago = unix_ms() - 10 * 3_600_000;
    let peer = cic_common::tls::Peer::Node(node_id("n1"));
    let identity = fleet.authority.issue(&path, &peer, HOUR, long_ago).unwrap();
    assert!(load_identity(&path, &node_id("n1")).unwrap().is_none(), "an expired identity counts as none");
    let _node = Node::start(&fleet, &identity, 1, controller.address());
    crate::parties::eventually("handshake refused", || {
        controller.ingest.refusals().count(Refusal::Handshake) > 0
    })
    .await;
    assert_eq!(controller.ingest.connected_count(), 0);
}
