//! Those who must not come in, and that they disturb nobody.

use std::net::SocketAddr;

use cic_common::id::Incarnation;
use cic_common::report::{Heartbeat, NodeReport, Role};
use cic_common::route::Edition;
use cic_common::time::unix_ms;
use cic_common::tls::config::{quic_client, quic_client_without_certificate, quic_enrol_client};
use cic_common::tls::{CertificateAuthority, Trust, peer};
use cic_common::wire::close::CloseCode;
use cic_common::wire::frame::{FrameReader, FrameWriter, encode_datagram, encode_frame};
use cic_common::wire::message::{AgentMessage, ControllerMessage, Hello};
use cic_controller::ingest::Refusal;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};

use crate::parties::{Controller, Fleet, HOUR, Node, loopback, node_id, within};

/// A client that speaks the wire by hand.
pub(crate) struct Stranger {
    pub(crate) connection: Connection,
    writer: FrameWriter<SendStream>,
    reader: FrameReader<RecvStream>,
    _endpoint: Endpoint,
}

impl Stranger {
    pub(crate) async fn with_certificate(fleet: &Fleet, node: &str, controller: SocketAddr) -> Self {
        let config = quic_client(&fleet.identity(node, HOUR), &fleet.trust).unwrap();
        Self::dial(config, controller).await
    }

    async fn dial(config: ClientConfig, controller: SocketAddr) -> Self {
        let endpoint = Endpoint::client(loopback(0)).unwrap();
        let connecting = endpoint.connect_with(config, controller, peer::any_controller()).unwrap();
        let connection = within("handshake", connecting).await.unwrap();
        let (send, receive) = within("stream", connection.open_bi()).await.unwrap();
        Self {
            connection,
            writer: FrameWriter::new(send),
            reader: FrameReader::new(receive),
            _endpoint: endpoint,
        }
    }

    pub(crate) async fn say(&mut self, message: &AgentMessage) {
        within("room to say", self.writer.write(message)).await.unwrap();
    }

    /// Bytes as they are. The connection may be over already: that is for [`Stranger::closed_as`] to judge.
    async fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = within("room to say", self.writer.get_mut().write_all(bytes)).await;
    }

    pub(crate) async fn hear(&mut self) -> ControllerMessage {
        within("answer", self.reader.next()).await.unwrap()
    }

    pub(crate) async fn hello(&mut self, node: &str, incarnation: u64) {
        self.say(&AgentMessage::Hello(hello(node, incarnation))).await;
    }

    /// A hello of one that has this table of the controller.
    pub(crate) async fn hello_with(&mut self, node: &str, routes: Option<Edition>) {
        self.say(&AgentMessage::Hello(Hello { routes, ..hello(node, 1) })).await;
    }

    pub(crate) async fn beat(&self, node: &str, incarnation: u64, seq: u64) {
        let datagram = encode_datagram(&heartbeat(node, incarnation, seq)).unwrap();
        within("room to beat", self.connection.send_datagram_wait(datagram)).await.unwrap();
    }

    async fn closed_as(&self) -> Option<CloseCode> {
        CloseCode::of(&within("close", self.connection.closed()).await)
    }
}

fn hello(node: &str, incarnation: u64) -> Hello {
    Hello {
        node: node_id(node),
        incarnation: Incarnation(incarnation),
        role: Role::Replica,
        address: "127.0.0.1:1".to_owned(),
        version: "test".to_owned(),
        keeps_checkpoints: false,
        routes: None,
        report: NodeReport::booting(),
    }
}

fn heartbeat(node: &str, incarnation: u64, seq: u64) -> Heartbeat {
    Heartbeat {
        node: node_id(node),
        incarnation: Incarnation(incarnation),
        seq,
        challenge: 0,
        report: NodeReport::booting(),
    }
}

/// A controller with one honest node, which must be there at the end as it was at the beginning.
async fn with_honest_node(fleet: &Fleet) -> (Controller, Node) {
    let mut controller = Controller::start(fleet);
    let node = Node::start(fleet, &fleet.identity("honest", HOUR), 1, controller.address());
    controller.connected("honest").await;
    controller.beaten("honest", 0).await;
    (controller, node)
}

async fn is_undisturbed(controller: &mut Controller, node: &mut Node) {
    node.pulse.set(NodeReport::booting());
    let newest = node.pulse.beat(0).seq;
    controller.beaten("honest", newest.saturating_sub(2)).await;
    node.up().await;
    assert_eq!(node.links.live_count(), 1);
}

#[tokio::test]
async fn without_a_certificate_nobody_says_hello() {
    let fleet = Fleet::new();
    let (mut controller, mut node) = with_honest_node(&fleet).await;
    let config = quic_client_without_certificate(&fleet.trust).unwrap();
    let stranger = Stranger::dial(config, controller.address()).await;
    assert_eq!(stranger.closed_as().await, Some(CloseCode::NoCertificate));
    controller.refused(Refusal::NoCertificate, 1).await;
    is_undisturbed(&mut controller, &mut node).await;
    assert_eq!(controller.refusals_in_all(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_authority_does_not_get_through_the_handshake() {
    let fleet = Fleet::new();
    let (mut controller, mut node) = with_honest_node(&fleet).await;
    let foreign = Fleet::new();
    // It believes our controller, so that only our side can refuse.
    let config = quic_client(&foreign.identity("n1", HOUR), &fleet.trust).unwrap();
    let endpoint = Endpoint::client(loopback(0)).unwrap();
    let connecting = endpoint.connect_with(config, controller.address(), peer::any_controller()).unwrap();
    if let Ok(connection) = within("handshake", connecting).await {
        assert_eq!(CloseCode::of(&within("close", connection.closed()).await), None);
    }
    controller.refused(Refusal::Handshake, 1).await;
    is_undisturbed(&mut controller, &mut node).await;
}

#[tokio::test]
async fn an_agent_does_not_believe_a_controller_of_another_authority() {
    let fleet = Fleet::new();
    let controller = Controller::start(&fleet);
    let directory = tempfile::tempdir().unwrap();
    let foreign = CertificateAuthority::open(directory.path(), unix_ms()).unwrap();
    let trust = Trust::from_pem(foreign.certificate_pem()).unwrap();
    let endpoint = Endpoint::client(loopback(0)).unwrap();
    let config = quic_enrol_client(&trust).unwrap();
    let connecting = endpoint.connect_with(config, controller.address(), peer::any_controller()).unwrap();
    assert!(within("handshake", connecting).await.is_err());
}

#[tokio::test]
async fn a_node_cannot_speak_for_another() {
    let fleet = Fleet::new();
    let (mut controller, mut node) = with_honest_node(&fleet).await;
    let mut stranger = Stranger::with_certificate(&fleet, "n2", controller.address()).await;
    stranger.hello("honest", 99).await;
    assert_eq!(stranger.closed_as().await, Some(CloseCode::WrongName));
    controller.refused(Refusal::WrongName, 1).await;

    let mut stranger = Stranger::with_certificate(&fleet, "n2", controller.address()).await;
    stranger.hello("n2", 1).await;
    controller.connected("n2").await;
    stranger.beat("honest", 1, u64::MAX).await;
    assert_eq!(stranger.closed_as().await, Some(CloseCode::WrongName));
    controller.refused(Refusal::WrongName, 2).await;
    is_undisturbed(&mut controller, &mut node).await;
}

#[tokio::test]
async fn a_controllers_certificate_is_no_nodes() {
    let fleet = Fleet::new();
    let controller = Controller::start(&fleet);
    let config = quic_client(&fleet.controller_identity(), &fleet.trust).unwrap();
    let stranger = Stranger::dial(config, controller.address()).await;
    assert_eq!(stranger.closed_as().await, Some(CloseCode::WrongName));
    controller.refused(Refusal::NotANode, 1).await;
}

#[tokio::test]
async fn bad_frames_are_refused_by_kind_and_disturb_nobody() {
    let fleet = Fleet::new();
    let (mut controller, mut node) = with_honest_node(&fleet).await;
    let good = encode_frame(&AgentMessage::Hello(hello("n2", 1))).unwrap();
    let mut wrong_version = good.clone();
    wrong_version[5] = 200;
    let mut garbage = good.clone();
    garbage.iter_mut().skip(6).for_each(|byte| *byte = 0xff);
    let mut trailing = good.clone();
    trailing[3] += 1;
    trailing.push(0);
    let renew = encode_frame(&AgentMessage::Renew { csr_der: vec![1, 2, 3] }).unwrap();
    let cases = [
        (vec![0xff; 64], Refusal::Oversized, CloseCode::Oversized),
        (wrong_version, Refusal::Version, CloseCode::Version),
        (garbage, Refusal::Garbage, CloseCode::Garbage),
        (trailing, Refusal::Garbage, CloseCode::Garbage),
        (vec![0, 0, 0, 1, 0], Refusal::Garbage, CloseCode::Garbage),
        (renew, Refusal::Garbage, CloseCode::Garbage),
    ];
    for (bytes, kind, code) in cases {
        let before = controller.ingest.refusals().count(kind);
        let mut stranger = Stranger::with_certificate(&fleet, "n2", controller.address()).await;
        stranger.say_bytes(&bytes).await;
        assert_eq!(stranger.closed_as().await, Some(code), "{kind}");
        controller.refused(kind, before + 1).await;
    }
    is_undisturbed(&mut controller, &mut node).await;
    assert_eq!(controller.refusals_in_all(), 6);
}

#[tokio::test]
async fn a_node_that_turns_bad_after_its_hello_is_cut_off() {
    let fleet = Fleet::new();
    let (mut controller, mut node) = with_honest_node(&fleet).await;
    let mut cases = 0;
    for (bytes, as_datagram, kind) in [
        (&[0xff; 16][..], false, Refusal::Oversized),
        (&[0, 1, 0xff, 0xff][..], true, Refusal::Garbage),
        (&[0, 9, 1][..], true, Refusal::Version),
    ] {
        let mut stranger = Stranger::with_certificate(&fleet, "n2", controller.address()).await;
        stranger.hello("n2", 1).await;
        controller.connected("n2").await;
        if as_datagram {
            stranger.connection.send_datagram(bytes.to_vec().into()).unwrap();
        } else {
            stranger.say_bytes(bytes).await;
        }
        assert!(stranger.closed_as().await.is_some());
        controller.disconnected("n2").await;
        controller.refused(kind, 1).await;
        cases += 1;
    }
    is_undisturbed(&mut controller, &mut node).await;
    assert_eq!(controller.refusals_in_all(), cases);
}

#[tokio::test]
async fn noise_on_the_port_is_ignored() {
    let fleet = Fleet::new();
    let (mut controller, mut node) = with_honest_node(&fleet).await;
    let socket = tokio::net::UdpSocket::bind(loopback(0)).await.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..2_000 {
        let length = random.usize(1..1400);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        socket.send_to(&noise, controller.address()).await.unwrap();
    }
    is_undisturbed(&mut controller, &mut node).await;
}
