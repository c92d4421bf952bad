//! Hello, heartbeats, reliable events, and the end of a connection.

use std::time::{Duration, Instant};

use cic_common::id::{DeploymentName, Incarnation, OperationId, Term};
use cic_common::report::{GpuReport, NodeReport};
use cic_common::route::{Edition, Replica, Route, RoutingChanges, RoutingTable};
use cic_common::routing::Routing;
use cic_common::wire::message::{AgentMessage, Command, ControllerMessage, NodeEvent};
use cic_controller::core::{Event, Message};
use cic_controller::ingest::Refusal;

use crate::hostile::Stranger;
use crate::parties::{Controller, DEADLINE, Fleet, HOUR, Node, in_own_runtime, node_id};

fn farewell(reason: &str) -> NodeEvent {
    NodeEvent::Farewell { reason: reason.to_owned() }
}

#[tokio::test]
async fn a_node_is_heard_and_told() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let mut node = Node::start(&fleet, &fleet.identity("n1", HOUR), 1, controller.address());
    assert_eq!(controller.connected("n1").await, Incarnation(1));
    node.up().await;
    controller.beaten("n1", 0).await;

    let command = Message::Command {
        operation: OperationId(7),
        term: Term(1),
        command: Command::RestartAgent { reason: "test".to_owned() },
    };
    controller.ingest.send(&node_id("n1"), command);
    node.find(|event| match event {
        cic_agent::effect::link::LinkEvent::Core(cic_agent::core::Event::Commanded { operation, .. }) => {
            (operation == OperationId(7)).then_some(())
        }
        _ => None,
    })
    .await;

    for table in [table(5, &[]), table(6, &["n1", "n2"]), table(7, &["n2"])] {
        controller.ingest.publish_routes(table.clone());
        node.find(|event| match event {
            cic_agent::effect::link::LinkEvent::Routes(routes) => (*routes == table).then_some(()),
            _ => None,
        })
        .await;
    }

    node.links.tell(&farewell("test"));
    controller.find(|event| matches!(event, Event::Told { .. }).then_some(())).await;
    assert_eq!(controller.refusals_in_all(), 0);
}

fn table(version: u64, nodes: &[&str]) -> RoutingTable {
    let replica = |node: &&str| Replica {
        node: node_id(node),
        address: "127.0.0.1:1".to_owned(),
        zone: None,
        gpu: None,
    };
    let route = Route {
        deployment: DeploymentName::new("tiny").unwrap(),
        model: "tiny".to_owned(),
        replicas: nodes.iter().map(replica).collect(),
        routing: Routing::default(),
    };
    RoutingTable { term: Term(1), version, routes: vec![route] }
}

#[tokio::test]
async fn one_that_comes_back_is_told_what_changed_and_a_stranger_the_whole() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let tables = [table(5, &["n1", "n2"]), table(6, &["n1", "n2", "n3"])];
    for table in &tables {
        controller.ingest.publish_routes(table.clone());
    }
    let changes = ControllerMessage::RouteChanges(RoutingChanges::between(&tables[0], &tables[1]));
    let whole = ControllerMessage::Routes { table: tables[1].clone() };
    let elsewhere = Edition { term: Term(9), version: 5 };
    for (held, expected) in [(None, &whole), (Some(tables[0].edition()), &changes), (Some(elsewhere), &whole)]
    {
        let mut agent = Stranger::with_certificate(&fleet, "n1", controller.address()).await;
        agent.hello_with("n1", held).await;
        controller.connected("n1").await;
        assert!(matches!(agent.hear().await, ControllerMessage::Welcome(_)));
        assert_eq!(&agent.hear().await, expected, "{held:?}");
    }
}

#[tokio::test]
async fn a_challenge_is_answered_at_once_with_its_number() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let _node = Node::start(&fleet, &fleet.identity("n1", HOUR), 1, controller.address());
    controller.connected("n1").await;
    controller.beaten("n1", 0).await;
    controller.ingest.send(&node_id("n1"), Message::Challenge { number: 42 });
    controller
        .find(|event| match event {
            Event::Heartbeats(beats) => beats.iter().any(|beat| beat.challenge == 42).then_some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn of_many_heartbeats_the_core_hears_the_newest() {
    const COUNT: u64 = 500;
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let node = Node::start(&fleet, &fleet.identity("n1", HOUR), 1, controller.address());
    controller.connected("n1").await;
    let first = controller.beaten("n1", 0).await;

    let mut stranger = Stranger::with_certificate(&fleet, "n2", controller.address()).await;
    stranger.hello("n2", 1).await;
    controller.connected("n2").await;
    // Numbers in a mixed order, the newest somewhere in the middle. Waiting for room, none is lost on the way.
    for number in 1..=COUNT {
        stranger.beat("n2", 1, number * 7 % (COUNT + 1)).await;
    }
    let (mut heard, mut batches) = (0, 0);
    controller
        .find(|event| match event {
            Event::Heartbeats(beats) => {
                for beat in beats.iter().filter(|beat| beat.node == node_id("n2")) {
                    assert!(beat.seq > heard, "{} after {heard}", beat.seq);
                    heard = beat.seq;
                    batches += 1;
                }
                (heard == COUNT).then_some(())
            }
            _ => None,
        })
        .await;
    assert!(batches < COUNT / 2, "{batches} batches for {COUNT} heartbeats");

    node.pulse.set(NodeReport::booting());
    controller.beaten("n1", first).await;
}

#[tokio::test]
async fn a_report_too_long_for_a_packet_is_heard_too() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let node = Node::start(&fleet, &fleet.identity("n1", HOUR), 1, controller.address());
    controller.connected("n1").await;
    let reason = "x".repeat(20_000);
    node.pulse.set(NodeReport { gpu: GpuReport::Blind { reason: reason.clone() }, ..NodeReport::booting() });
    controller
        .find(|event| match event {
            Event::Heartbeats(beats) => beats
                .iter()
                .any(|beat| beat.report.gpu == GpuReport::Blind { reason: reason.clone() })
                .then_some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn a_repeated_event_is_acknowledged_again_and_told_once() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let mut stranger = Stranger::with_certificate(&fleet, "n1", controller.address()).await;
    stranger.hello("n1", 1).await;
    controller.connected("n1").await;
    for seq in [2, 2, 1, 2, 3] {
        stranger.say(&AgentMessage::Event { seq, event: farewell(&seq.to_string()) }).await;
        loop {
            match stranger.hear().await {
                ControllerMessage::Ack { seq: acknowledged } => {
                    assert_eq!(acknowledged, seq);
                    break;
                }
                other => assert!(matches!(other, ControllerMessage::Welcome(_)), "{other:?}"),
            }
        }
    }
    let mut told = Vec::new();
    controller
        .find(|event| {
            if let Event::Told { event: NodeEvent::Farewell { reason }, .. } = event {
                told.push(reason);
            }
            (told.len() == 3).then_some(())
        })
        .await;
    assert_eq!(told, ["2", "1", "3"]);
}

#[tokio::test]
async fn an_event_told_while_no_controller_is_there_arrives_when_one_is() {
    let fleet = Fleet::new();
    let first = Controller::start(&fleet);
    let port = first.address().port();
    first.stop().await;
    let mut node = Node::start(&fleet, &fleet.identity("n1", HOUR), 1, crate::parties::loopback(port));
    node.links.tell(&farewell("early"));
    let mut controller = Controller::start_when_free(&fleet, port).await;
    controller.find(|event| matches!(event, Event::Told { .. }).then_some(())).await;
    node.up().await;
}

#[tokio::test]
async fn a_newer_incarnation_takes_over_and_an_older_one_stays_out() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let identity = fleet.identity("n1", HOUR);
    let mut old = Node::start(&fleet, &identity, 1, controller.address());
    controller.connected("n1").await;
    old.up().await;
    let _new = Node::start(&fleet, &identity, 2, controller.address());
    // The core hears no end of the older: the node is there.
    let next = controller
        .find(|event| match event {
            Event::Connected(hello) => Some(Ok(hello.incarnation)),
            Event::Disconnected { incarnation, .. } => Some(Err(incarnation)),
            _ => None,
        })
        .await;
    assert_eq!(next, Ok(Incarnation(2)));
    assert!(old.down().await.contains("replaced"));
    controller.refused(Refusal::OlderIncarnation, 1).await;
    controller.beaten("n1", 0).await;
    assert_eq!(controller.ingest.connected_count(), 1);
}

#[tokio::test]
async fn the_core_hears_at_once_that_a_node_left() {
    let fleet = Fleet::new();
    let mut controller = Controller::start(&fleet);
    let node = Node::start(&fleet, &fleet.identity("n1", HOUR), 4, controller.address());
    controller.connected("n1").await;
    controller.beaten("n1", 0).await;
    node.links.tell(&farewell("test"));
    let started = Instant::now();
    let (stopped, told) = tokio::join!(node.supervisor.stop(DEADLINE), async {
        let told = controller.find(|event| matches!(event, Event::Told { .. }).then_some(())).await;
        assert_eq!(controller.disconnected("n1").await, Incarnation(4));
        told
    });
    assert_eq!((stopped, told), (Ok(()), ()));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

/// The reset key outlives the run, so the next run's word about old connections is believed.
#[test]
fn a_killed_controller_is_noticed_as_soon_as_it_is_back() {
    let fleet = Fleet::new();
    let (first, mut controller) = in_own_runtime(async || Controller::start(&fleet));
    let address = controller.address();
    let identity = fleet.identity("n1", HOUR);
    let (nodes, mut node) = in_own_runtime(async || Node::start(&fleet, &identity, 1, address));
    first.block_on(async { controller.connected("n1").await });
    nodes.block_on(node.up());
    // Nothing is closed in order: tasks are dropped where they stand, as by a SIGKILL.
    first.shutdown_background();
    drop(controller);

    let (second, mut controller) =
        in_own_runtime(async || Controller::start_when_free(&fleet, address.port()).await);
    let back_at = Instant::now();
    // The next heartbeat, as the driver sends one every second.
    node.pulse.set(NodeReport::booting());
    let reason = nodes.block_on(node.down());
    let noticed_after = back_at.elapsed();
    assert!(reason.contains("reset"), "{reason}");
    assert!(noticed_after < Duration::from_secs(1), "{noticed_after:?}");
    second.block_on(async { controller.connected("n1").await });
    drop(node);
    nodes.shutdown_background();
    second.shutdown_background();
}
