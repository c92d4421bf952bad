//! Commands by the poll path: a controller's order, the agent's core behind its peer port, and the answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cic_agent::core::{Action, Agent, AgentSpec, Booted, Event as AgentEvent, Timing};
use cic_agent::effect::link::Pulse;
use cic_agent::serve::order::{OrderDesk, Ordered};
use cic_agent::serve::peer::{PeerBody, PeerPort};
use cic_common::assignment::{Assignment, EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, Incarnation, OperationId, Term};
use cic_common::report::{Phase, Role};
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::Clock;
use cic_common::tls::config::tcp_server;
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};
use cic_common::wire::order::{ORDER_BYTES_MAX, Order};
use cic_controller::core::{Event, PollFault, SshWord};
use cic_controller::reach::{HostKeys, Reach, ReachSpec, SshSpec};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::parties::{Fleet, HOUR, in_own_runtime, loopback, node_id, within};
use crate::poll::send;

/// Of the leader that the agent follows.
const TERM: Term = Term(5);

/// What the agent's core did: the restarts it ended for, and whether it drains.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Done {
    restarts: Vec<OperationId>,
    is_draining: bool,
}

/// An agent's real core, which follows `TERM`, behind a real peer port, in a runtime of its own.
fn agent(fleet: &Fleet) -> (Runtime, (SocketAddr, watch::Receiver<Done>)) {
    let identity = fleet.identity("n1", HOUR);
    let pulse = Arc::new(Pulse::new(node_id("n1"), Incarnation(1), Clock::start()));
    let (orders, waiting) = OrderDesk::open();
    let port = PeerPort {
        tls: tcp_server(&identity, &fleet.trust).unwrap(),
        pulse,
        edge: Arc::new(|_, _| {
            let body: PeerBody = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
            Box::pin(async move { Response::new(body) })
        }),
        orders,
        files: None,
    };
    in_own_runtime(async || {
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let supervisor = Supervisor::new();
        let inner = supervisor.clone();
        supervisor.spawn("peer port", Kind::Vital, |token| port.run(listener, inner, token));
        let (done, seen) = watch::channel(Done::default());
        supervisor.spawn("core", Kind::Vital, |_| obey(waiting, done));
        (address, seen)
    })
}

async fn obey(mut orders: mpsc::Receiver<Ordered>, done: watch::Sender<Done>) -> TaskResult {
    let spec = AgentSpec {
        node: node_id("n1"),
        role: Role::Gateway,
        incarnation: Incarnation(1),
        timing: Timing::default(),
        mounts: "/mounts".to_owned(),
        has_store: false,
        deadman: None,
    };
    let (mut agent, clock, mut out) = (Agent::new(spec), Clock::start(), Vec::new());
    agent.step(clock.now(), AgentEvent::Booted(Booted::default()), &mut out);
    let model = ModelSpec::at("m", "/m");
    let engine = EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: BTreeMap::new() };
    let assignment = Assignment { deployment: DeploymentName::new("d").unwrap(), model, engine };
    agent.step(clock.now(), AgentEvent::Assigned { term: TERM, assignment }, &mut out);
    while let Some(Ordered { order: Order { operation, term, command }, answer }) = orders.recv().await {
        out.clear();
        agent.step(clock.now(), AgentEvent::Commanded { operation, term, command }, &mut out);
        let outcome = out.iter().find_map(|action| match action {
            Action::Tell(NodeEvent::CommandDone { outcome, .. }) => Some(outcome.clone()),
            _ => None,
        });
        done.send_modify(|done| {
            let is_exit = out.iter().any(|action| matches!(action, Action::Exit { code: 75, .. }));
            done.restarts.extend(is_exit.then_some(operation));
            done.is_draining = matches!(agent.report(clock.now()).phase, Phase::Draining | Phase::Stopped);
        });
        answer.send(outcome.expect("every command has an outcome")).unwrap();
    }
    Ok(())
}

struct Ordering {
    reach: Reach,
    events: mpsc::Receiver<Event>,
    _supervisor: Supervisor,
}

impl Ordering {
    fn start(fleet: &Fleet) -> Self {
        Self::with_ssh(fleet, None)
    }

    fn with_ssh(fleet: &Fleet, ssh: Option<SshSpec>) -> Self {
        let supervisor = Supervisor::new();
        let (sender, events) = mpsc::channel(16);
        let spec = ReachSpec { ssh_port: 22, ssh };
        let identity = fleet.controller_identity();
        let reach = Reach::new(spec, &identity, &fleet.trust, supervisor.clone(), sender).unwrap();
        Self { reach, events, _supervisor: supervisor }
    }

    async fn give(&mut self, address: SocketAddr, order: Order) -> Result<CommandOutcome, PollFault> {
        let of = order.operation;
        let at_once = self.reach.command(node_id("n1"), address.to_string(), order);
        let event = match at_once {
            Some(event) => event,
            None => within("answer", self.events.recv()).await.unwrap(),
        };
        let Event::CommandAnswered { node, operation, result } = event else { panic!("{event:?}") };
        assert_eq!((node, operation), (node_id("n1"), of));
        result
    }
}

fn restart(operation: u64, term: Term) -> Order {
    let command = Command::RestartAgent { reason: "its push path is silent".to_owned() };
    Order { operation: OperationId(operation), term, command }
}

fn drain(operation: u64, term: Term) -> Order {
    let command = Command::Drain { within_ms: 1000, reason: "surplus".to_owned() };
    Order { operation: OperationId(operation), term, command }
}

#[test]
fn an_order_is_answered_by_the_core_and_repeats_of_it_are_harmless() {
    let fleet = Fleet::new();
    let (agents, (address, seen)) = agent(&fleet);
    let (asks, ()) = in_own_runtime(async || {
        let mut ordering = Ordering::start(&fleet);
        for order in [restart(7, TERM), restart(7, TERM), drain(8, TERM), drain(8, TERM), restart(6, TERM)] {
            assert_eq!(ordering.give(address, order).await, Ok(CommandOutcome::Accepted));
        }
        assert_eq!(*seen.borrow(), Done { restarts: vec![OperationId(7)], is_draining: true });
    });
    drop((agents, asks));
}

#[test]
fn an_order_of_an_earlier_term_is_refused_and_nothing_is_done() {
    let fleet = Fleet::new();
    let (agents, (address, seen)) = agent(&fleet);
    let (asks, ()) = in_own_runtime(async || {
        let mut ordering = Ordering::start(&fleet);
        for order in [restart(7, Term(4)), drain(8, Term(4))] {
            let refused = Ok(CommandOutcome::RefusedTerm { newest: TERM });
            assert_eq!(ordering.give(address, order).await, refused);
        }
        assert_eq!(*seen.borrow(), Done::default());
    });
    drop((agents, asks));
}

#[test]
fn only_controllers_may_order_and_only_orders_are_taken() {
    let fleet = Fleet::new();
    let (agents, (address, seen)) = agent(&fleet);
    let (asks, ()) = in_own_runtime(async || {
        let (node, controller) = (fleet.identity("n2", HOUR), fleet.controller_identity());
        let good = serde_json::to_string(&drain(8, TERM)).unwrap();
        let long = format!("{}{good}", " ".repeat(ORDER_BYTES_MAX));
        for (identity, method, body, expected) in [
            (&node, "POST", good.as_str(), StatusCode::FORBIDDEN),
            (&controller, "GET", "", StatusCode::NOT_FOUND),
            (&controller, "POST", "", StatusCode::BAD_REQUEST),
            (&controller, "POST", r#"{"operation":8,"term":5}"#, StatusCode::BAD_REQUEST),
            (&controller, "POST", &long, StatusCode::BAD_REQUEST),
        ] {
            let body = Full::new(Bytes::from(body.to_owned()));
            let request = Request::builder().method(method).uri("/v1/command").body(body).unwrap();
            let (status, text) = send(&fleet, identity, "n1", address, request).await;
            assert_eq!(status, expected, "{method}: {text}");
        }
        assert_eq!(*seen.borrow(), Done::default());
    });
    drop((agents, asks));
}

#[test]
fn an_agent_that_is_gone_or_mute_is_told_apart_within_the_deadline() {
    let fleet = Fleet::new();
    let (asks, ()) = in_own_runtime(async || {
        let mut ordering = Ordering::start(&fleet);
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let began = Instant::now();
        assert_eq!(ordering.give(address, restart(7, TERM)).await, Err(PollFault::Timeout));
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        drop(listener);
        assert_eq!(ordering.give(address, restart(7, TERM)).await, Err(PollFault::Refused));
    });
    drop(asks);
}

#[test]
fn one_order_at_a_time_goes_to_a_node_and_its_repeat_waits_for_the_same_answer() {
    let fleet = Fleet::new();
    let (asks, ()) = in_own_runtime(async || {
        let mut ordering = Ordering::start(&fleet);
        // Accepts and never says a word.
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let give = |order| ordering.reach.command(node_id("n1"), address.clone(), order);
        assert_eq!(give(restart(7, TERM)), None);
        assert_eq!(give(restart(7, TERM)), None);
        let (node, operation) = (node_id("n1"), OperationId(8));
        let busy = Event::CommandAnswered { node, operation, result: Err(PollFault::Timeout) };
        assert_eq!(give(drain(8, TERM)), Some(busy));
        let (node, operation) = (node_id("n1"), OperationId(7));
        let late = Event::CommandAnswered { node, operation, result: Err(PollFault::Timeout) };
        assert_eq!(within("answer", ordering.events.recv()).await, Some(late));
        assert!(ordering.events.try_recv().is_err(), "one answer serves both");
    });
    drop(asks);
}

#[test]
fn a_restart_over_ssh_is_not_run_once_its_lease_is_over() {
    let fleet = Fleet::new();
    let (asks, ()) = in_own_runtime(async || {
        // In the place of ssh: it says nothing, and all is well.
        let ssh = SshSpec {
            program: "/bin/true".into(),
            user: "root".to_owned(),
            key_file: "/dev/null".into(),
            host_keys: HostKeys::Listed("/dev/null".into()),
            command: String::new(),
        };
        let mut ordering = Ordering::with_ssh(&fleet, Some(ssh));
        for may_act in [true, false] {
            let begun =
                ordering.reach.restart(node_id("n1"), "127.0.0.1:7444", OperationId(1), move || may_act);
            assert_eq!(begun, None);
            let event = within("answer", ordering.events.recv()).await.unwrap();
            let Event::RestartedBySsh { result, .. } = event else { panic!("{event:?}") };
            assert_eq!(result.is_ok(), may_act, "{result:?}");
        }
    });
    drop(asks);
}

#[test]
fn without_a_key_and_for_an_odd_address_nothing_is_begun() {
    let fleet = Fleet::new();
    let (asks, ()) = in_own_runtime(async || {
        let ordering = Ordering::start(&fleet);
        let refused = ordering.reach.restart(node_id("n1"), "10.0.0.1:7444", OperationId(1), || true);
        assert!(matches!(refused, Some(Event::RestartedBySsh { result: Err(_), .. })), "{refused:?}");
        let odd = ordering.reach.explain(node_id("n1"), "-oProxyCommand=x:1");
        let word = SshWord::NoAnswer;
        assert_eq!(odd, Some(Event::Explained { node: node_id("n1"), ssh: word }));
    });
    drop(asks);
}
