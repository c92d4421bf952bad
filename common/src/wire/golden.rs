//! The bytes of each kind of message, kept in `golden/v1.txt`: the format cannot change unseen.
//!
//! A failing test prints the line that this build would write. Put it into the file only for a *new* message;
//! a changed line is a new wire version.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{self, encode_frame};
use super::message::{
    AgentMessage, Command, CommandOutcome, ControllerMessage, EnrolAnswer, EnrolRequest, Hello, NodeEvent,
    Welcome,
};
use crate::assignment::{Assignment, EngineSpec, ModelSpec, Predecessor, Source};
use crate::gpu::{
    GpuAction, GpuHealth, GpuSummary, GpuVerdict, PciAddress, RecoveryAction, XidSeen, XidSource,
};
use crate::id::{ControllerId, DeploymentName, Incarnation, NodeId, OperationId, Term};
use crate::notice::{BlindSource, Cloud, Confidence, Notice, NoticeKind, SpotReport};
use crate::report::{
    EdgeReport, EngineReport, EngineState, GpuReport, Heartbeat, HostReport, ModelProgress, NodeReport,
    Phase, Role, StateDigest,
};
use crate::route::{Edition, Replica, Route, RouteChange, RoutingChanges, RoutingTable};
use crate::routing::{Policy, Routing};
use crate::units::Bytes;

const FILE: &str = include_str!("golden/v1.txt");

/// One message of one type, with what a test needs to do to bytes of that type.
pub(crate) struct Sample {
    name: &'static str,
    pub(crate) frame: Vec<u8>,
    /// Reads a frame and writes it again.
    rewrite: fn(&[u8]) -> Vec<u8>,
    /// See [`frame::tests::read_all`].
    pub(crate) read_all: fn(&[u8]) -> usize,
}

fn sample<T: Serialize + DeserializeOwned>(name: &'static str, value: &T) -> Sample {
    Sample {
        name,
        frame: encode_frame(value).unwrap(),
        rewrite: |bytes| {
            let value: T = frame::decode_datagram(&bytes[4..]).unwrap();
            encode_frame(&value).unwrap()
        },
        read_all: frame::tests::read_all::<T>,
    }
}

#[test]
fn every_message_has_the_bytes_it_always_had() {
    let kept: Vec<(&str, &str)> = FILE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let samples = samples();
    let missing: Vec<String> = samples
        .iter()
        .map(|sample| (sample.name, hex(&sample.frame)))
        .filter(|(name, bytes)| !kept.contains(&(*name, bytes.as_str())))
        .map(|(name, bytes)| format!("{name} {bytes}"))
        .collect();
    assert!(missing.is_empty(), "not in golden/v1.txt:\n{}", missing.join("\n"));
    assert_eq!(kept.len(), samples.len(), "golden/v1.txt holds a line for a message that is gone");
}

#[test]
fn the_kept_bytes_are_still_understood() {
    for sample in samples() {
        let (_, bytes) = FILE
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(name, _)| *name == sample.name)
            .unwrap_or_else(|| panic!("{} is not in golden/v1.txt", sample.name));
        assert_eq!(hex(&(sample.rewrite)(&unhex(bytes))), bytes, "{}", sample.name);
    }
}

pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = agent_samples();
    samples.extend(controller_samples());
    let enrolled = EnrolAnswer::Enrolled { chain_pem: "-----BEGIN CERTIFICATE-----".to_owned() };
    let refused = EnrolAnswer::Refused { reason: "token was used before".to_owned() };
    samples.extend([
        sample(
            "enrol-request",
            &EnrolRequest { token: "cicj-00ff".to_owned(), node: node(), csr_der: vec![0x30, 0x82, 1, 0] },
        ),
        sample("enrol-answer-enrolled", &enrolled),
        sample("enrol-answer-refused", &refused),
        sample("heartbeat", &heartbeat()),
    ]);
    samples
}

fn agent_samples() -> Vec<Sample> {
    let event = |seq, event| AgentMessage::Event { seq, event };
    let hello = Hello {
        node: node(),
        incarnation: Incarnation(3),
        role: Role::Replica,
        address: "10.0.0.7:7444".to_owned(),
        version: "0.1.0".to_owned(),
        keeps_checkpoints: true,
        routes: Some(Edition { term: Term(2), version: 40 }),
        report: report(),
    };
    let done = |outcome| NodeEvent::CommandDone { operation: OperationId(77), outcome };
    vec![
        sample("agent-hello", &AgentMessage::Hello(hello)),
        sample(
            "agent-event-phase-changed",
            &event(
                1,
                NodeEvent::PhaseChanged {
                    from: Phase::Loading,
                    to: Phase::Serving,
                    reason: "ready".to_owned(),
                },
            ),
        ),
        sample(
            "agent-event-engine-exited",
            &event(2, NodeEvent::EngineExited { pid: Some(4242), how: "signal 9".to_owned() }),
        ),
        sample("agent-event-notice-seen", &event(3, NodeEvent::NoticeSeen { notice: notice() })),
        sample(
            "agent-event-replacement-wanted",
            &event(4, NodeEvent::ReplacementWanted { reason: "3 failures".to_owned() }),
        ),
        sample("agent-event-farewell", &event(5, NodeEvent::Farewell { reason: "SIGTERM".to_owned() })),
        sample("agent-event-command-accepted", &event(300, done(CommandOutcome::Accepted))),
        sample(
            "agent-event-command-refused",
            &event(70_000, done(CommandOutcome::RefusedTerm { newest: Term(9) })),
        ),
        sample(
            "agent-event-xid",
            &event(
                8,
                NodeEvent::Xid {
                    seen: XidSeen {
                        source: XidSource::Kmsg,
                        pci: "0000:3b:00".parse::<PciAddress>().ok(),
                        code: 154,
                        pid: Some(4242),
                        interrupt_info: None,
                        recovery: Some(RecoveryAction::GpuReset),
                        text: "NVRM: Xid (PCI:0000:3b:00): 154".to_owned(),
                    },
                    action: GpuAction::ResetGpu,
                },
            ),
        ),
        sample(
            "agent-event-gpu-changed",
            &event(9, NodeEvent::GpuChanged { text: "1 of 8 unhealthy".to_owned() }),
        ),
        sample(
            "agent-event-engine-stalled",
            &event(10, NodeEvent::EngineStalled { pid: 4242, for_ms: 30_000, is_over: false }),
        ),
        sample(
            "agent-event-replicas-missing",
            &event(11, NodeEvent::ReplicasMissing { model: "tiny".to_owned() }),
        ),
        sample(
            "agent-event-notice-lifted",
            &event(12, NodeEvent::NoticeLifted { source: "azure".to_owned(), id: "n-1".to_owned() }),
        ),
        sample(
            "agent-event-spot-blind",
            &event(
                13,
                NodeEvent::SpotBlind { source: "aws-spot".to_owned(), cause: "status 503".to_owned() },
            ),
        ),
        sample("agent-event-spot-seen", &event(14, NodeEvent::SpotSeen { source: "aws-spot".to_owned() })),
        sample(
            "agent-event-checkpoint-saved",
            &event(
                15,
                NodeEvent::CheckpointSaved {
                    occasion: "notice".to_owned(),
                    bytes: 4096,
                    request_count: 2,
                    took_ms: 38,
                },
            ),
        ),
        sample(
            "agent-event-checkpoint-failed",
            &event(
                16,
                NodeEvent::CheckpointFailed {
                    occasion: "periodic".to_owned(),
                    cause: "no answer".to_owned(),
                    is_lost: true,
                },
            ),
        ),
        sample(
            "agent-event-restored",
            &event(
                17,
                NodeEvent::Restored {
                    from: NodeId::new("llm003").unwrap(),
                    age_ms: 4000,
                    took_ms: 38,
                    unfinished_count: 3,
                    rerun_count: 1,
                    differs: vec!["it ran args --seed 1, wanted --seed 2".to_owned()],
                    skipped: vec!["0001.json: checksum".to_owned()],
                    is_last: true,
                },
            ),
        ),
        sample(
            "agent-event-restore-failed",
            &event(
                18,
                NodeEvent::RestoreFailed {
                    from: NodeId::new("llm003").unwrap(),
                    cause: "no checkpoint".to_owned(),
                },
            ),
        ),
        sample("agent-renew", &AgentMessage::Renew { csr_der: vec![0x30, 0x01, 0xff] }),
    ]
}

fn controller_samples() -> Vec<Sample> {
    let welcome = Welcome {
        controller: ControllerId::new("c1").unwrap(),
        term: Term(2),
        assignment: Some(assignment()),
        predecessors: vec![Predecessor { node: NodeId::new("llm003").unwrap(), is_gone: true }],
        heartbeat_ms: 1000,
    };
    let empty = Welcome { assignment: None, predecessors: Vec::new(), ..welcome.clone() };
    let command = |operation, command| ControllerMessage::Command {
        operation: OperationId(operation),
        term: Term(2),
        command,
    };
    vec![
        sample("controller-welcome", &ControllerMessage::Welcome(welcome)),
        sample("controller-welcome-empty", &ControllerMessage::Welcome(empty)),
        sample("controller-ack", &ControllerMessage::Ack { seq: 300 }),
        sample(
            "controller-assign",
            &ControllerMessage::Assign { term: Term(2), assignment: assignment(), predecessors: Vec::new() },
        ),
        sample("controller-routes", &ControllerMessage::Routes { table: routes() }),
        sample("controller-route-changes", &ControllerMessage::RouteChanges(route_changes())),
        sample(
            "controller-command-drain",
            &command(78, Command::Drain { within_ms: 110_000, reason: "notice".to_owned() }),
        ),
        sample(
            "controller-command-restart-agent",
            &command(79, Command::RestartAgent { reason: "push path lost".to_owned() }),
        ),
        sample("controller-challenge", &ControllerMessage::Challenge { number: 12 }),
        sample(
            "controller-certificate",
            &ControllerMessage::Certificate { chain_pem: "-----BEGIN CERTIFICATE-----".to_owned() },
        ),
        sample(
            "controller-refused",
            &ControllerMessage::Refused { reason: "an older incarnation".to_owned() },
        ),
    ]
}

fn node() -> NodeId {
    NodeId::new("cic-local-here-none-dev-20261124-001-node001").unwrap()
}

fn notice() -> Notice {
    Notice {
        kind: NoticeKind::Terminate,
        source: "azure".to_owned(),
        id: "n-1".to_owned(),
        left_ms: 120_000,
        confidence: Confidence::Announced,
        resources: vec!["vm-7".to_owned()],
    }
}

fn assignment() -> Assignment {
    Assignment {
        deployment: DeploymentName::new("chat").unwrap(),
        model: ModelSpec {
            sources: vec![
                Source::Directory("/mnt/tiny".to_owned()),
                Source::Store("s3://models/tiny".to_owned()),
            ],
            ..ModelSpec::at("tiny", "/models/tiny")
        },
        engine: EngineSpec {
            program: "vllm".to_owned(),
            args: vec!["--max-model-len".to_owned(), "512".to_owned()],
            env: [("VLLM_CPU_KVCACHE_SPACE".to_owned(), "1".to_owned())].into(),
        },
    }
}

fn routes() -> RoutingTable {
    let replica = Replica {
        node: node(),
        address: "10.0.0.7:7444".to_owned(),
        zone: Some("us-east-1a".to_owned()),
        gpu: Some("h200".to_owned()),
    };
    let routing = Routing {
        policy: Policy::LeastLoad,
        prefix_affinity: true,
        tier: 1,
        parameters_b: Some(405),
        gpu_needed: Some("h200".to_owned()),
        surge_allowed: true,
        weight: 10,
    };
    RoutingTable {
        term: Term(2),
        version: 41,
        routes: vec![Route {
            deployment: DeploymentName::new("chat").unwrap(),
            model: "tiny".to_owned(),
            replicas: vec![replica],
            routing,
        }],
    }
}

fn route_changes() -> RoutingChanges {
    let new = routes();
    let Route { deployment, model, replicas, routing } = new.routes[0].clone();
    let removed = vec![NodeId::new("llm003").unwrap()];
    RoutingChanges {
        from: Edition { term: Term(2), version: 40 },
        to: new.edition(),
        removed: vec![DeploymentName::new("old").unwrap()],
        changed: vec![RouteChange { deployment, model, routing, removed, set: replicas }],
    }
}

fn report() -> NodeReport {
    NodeReport {
        model: Some(ModelProgress { done: Bytes(1 << 33), all: Bytes(1 << 37), rate: Bytes(1_200_000_000) }),
        phase: Phase::Serving,
        phase_for_ms: 65_536,
        reason: "engine ready".to_owned(),
        deployment: Some(DeploymentName::new("chat").unwrap()),
        engine: EngineReport {
            state: EngineState::Ready,
            pid: Some(4242),
            is_adopted: true,
            restart_count: 1,
            last_exit: Some("exit code 1".to_owned()),
            drift: None,
        },
        host: HostReport {
            cpu_percent: 12.5,
            load_1m: 0.25,
            memory_used: Bytes::mib(900),
            memory_total: Bytes::mib(4096),
            disk_free: Bytes(1 << 40),
        },
        gpu: GpuReport::Seen(GpuSummary {
            driver_version: Some("580.95.05".to_owned()),
            gpus: vec![
                GpuHealth {
                    index: 0,
                    verdict: GpuVerdict::Healthy,
                    memory_used: Some(Bytes::mib(70_000)),
                    memory_total: Some(Bytes::mib(81_559)),
                    utilization_percent: Some(97),
                    temperature_c: Some(61),
                },
                GpuHealth {
                    index: 1,
                    verdict: GpuVerdict::Unhealthy {
                        action: GpuAction::ResetGpu,
                        reason: "XID 95".to_owned(),
                    },
                    memory_used: None,
                    memory_total: None,
                    utilization_percent: None,
                    temperature_c: None,
                },
            ],
        }),
        edge: EdgeReport {
            in_flight: 3,
            request_count: 1_000,
            retry_count: 2,
            failure_count: 0,
            shed_count: 4,
            waiting: 1,
        },
        notice: Some(notice()),
        spot: SpotReport {
            cloud: Some(Cloud::Azure),
            blind: vec![BlindSource {
                source: "azure".to_owned(),
                for_ms: 3_000,
                cause: "status 503".to_owned(),
            }],
            unread: vec!["file".to_owned()],
        },
        wants_replacement: None,
        state: StateDigest { version: 9, digest: 0x0123_4567_89ab_cdef },
    }
}

fn heartbeat() -> Heartbeat {
    Heartbeat { node: node(), incarnation: Incarnation(3), seq: 86_400, challenge: 12, report: report() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
