//! One simulated agent: what it is, and its connection to the controller.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cic_common::gpu::{GpuHealth, GpuSummary, GpuVerdict};
use cic_common::id::{DeploymentName, Incarnation, NodeId};
use cic_common::notice::{Cloud, SpotReport};
use cic_common::report::{
    EdgeReport, EngineReport, EngineState, GpuReport, Heartbeat, HostReport, NodeReport, Phase, Role,
};
use cic_common::tls::{Identity, Trust, config::quic_client, peer};
use cic_common::units::Bytes;
use cic_common::wire::codec;
use cic_common::wire::frame::{FRAME_BYTES_MAX, FrameWriter, encode_datagram};
use cic_common::wire::message::{AgentMessage, ControllerMessage, Hello};
use quinn::{Connection, Endpoint, RecvStream};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, timeout};

/// Between heartbeats.
const BEAT: Duration = Duration::from_secs(1);

/// Before another attempt.
const REDIAL: Duration = Duration::from_secs(1);

const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// A frame up to this long is read; a longer one is a routing table or changes of one, of which only the bytes are taken.
const READ_BYTES_MAX: usize = 8 << 10;

/// Length and version of a frame, before its body.
const HEAD_BYTES: usize = 6;

/// A node with eight GPUs that serves.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) id: NodeId,
    pub(super) identity: Identity,
    address: String,
    began: Instant,
    seq: AtomicU64,
    challenge: AtomicU64,
    is_connected: AtomicBool,
    has_routes: AtomicBool,
    redial_count: AtomicU64,
    report: NodeReport,
}

impl Agent {
    pub(super) fn new(id: NodeId, identity: Identity, address: String, deployment: DeploymentName) -> Self {
        Self {
            id,
            identity,
            address,
            began: Instant::now(),
            seq: AtomicU64::new(0),
            challenge: AtomicU64::new(0),
            is_connected: AtomicBool::new(false),
            has_routes: AtomicBool::new(false),
            redial_count: AtomicU64::new(0),
            report: report(deployment),
        }
    }

    /// The next heartbeat, for either path.
    pub(super) fn beat(&self) -> Heartbeat {
        let mut report = self.report.clone();
        report.phase_for_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Heartbeat {
            node: self.id.clone(),
            incarnation: Incarnation(1),
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            challenge: self.challenge.load(Ordering::Relaxed),
            report,
        }
    }

    /// Its control stream is open.
    pub(super) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// It was told where the others are.
    pub(super) fn has_routes(&self) -> bool {
        self.has_routes.load(Ordering::Relaxed)
    }

    /// Connections after the first.
    pub(super) fn redial_count(&self) -> u64 {
        self.redial_count.load(Ordering::Relaxed)
    }

    /// Stays connected until the process ends. Heartbeats go out at `phase` and each second after it.
    pub(super) async fn live(
        &self,
        endpoint: &Endpoint,
        controller: SocketAddr,
        trust: &Trust,
        turns: &Semaphore,
        phase: Instant,
    ) {
        loop {
            if let Ok(connection) = self.dial(endpoint, controller, trust, turns).await {
                // However it ended, it is tried again.
                let _ended = self.talk(&connection, phase).await;
                self.redial_count.fetch_add(1, Ordering::Relaxed);
            }
            self.is_connected.store(false, Ordering::Relaxed);
            tokio::time::sleep(REDIAL).await; // bounded wait: one pause
        }
    }

    async fn dial(
        &self,
        endpoint: &Endpoint,
        controller: SocketAddr,
        trust: &Trust,
        turns: &Semaphore,
    ) -> anyhow::Result<Connection> {
        let _turn = turns.acquire().await?;
        let config = quic_client(&self.identity, trust)?;
        let connecting = endpoint.connect_with(config, controller, peer::any_controller())?;
        Ok(timeout(DIAL_WITHIN, connecting).await??)
    }

    async fn talk(&self, connection: &Connection, phase: Instant) -> anyhow::Result<()> {
        let (send, mut receive) = connection.open_bi().await?;
        let mut writer = FrameWriter::new(send);
        let hello = Hello {
            node: self.id.clone(),
            incarnation: Incarnation(1),
            role: Role::Replica,
            address: self.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            keeps_checkpoints: false,
            routes: None,
            report: self.report.clone(),
        };
        writer.write(&AgentMessage::Hello(hello)).await?;
        self.is_connected.store(true, Ordering::Relaxed);
        let passed = u32::try_from(phase.elapsed().as_secs())? + 1;
        let mut beats = tokio::time::interval_at((phase + BEAT * passed).into(), BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // Both only wait for the connection: what one has begun when the other ends is of no use any more.
        tokio::select! {
            result = async {
                loop {
                    beats.tick().await;
                    self.push(connection)?;
                }
            } => result,
            result = self.hear(connection, &mut receive) => result,
        }
    }

    fn push(&self, connection: &Connection) -> anyhow::Result<()> {
        Ok(connection.send_datagram(encode_datagram(&self.beat())?)?)
    }

    async fn hear(&self, connection: &Connection, stream: &mut RecvStream) -> anyhow::Result<()> {
        let mut body = Vec::new();
        loop {
            let mut head = [0; HEAD_BYTES];
            stream.read_exact(&mut head).await?;
            let [a, b, c, d, _, _] = head;
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
            ensure!((2..=FRAME_BYTES_MAX).contains(&length), "a frame of {length} bytes");
            let length = length - 2;
            if length > READ_BYTES_MAX {
                let taken = tokio::io::copy(&mut stream.take(length as u64), &mut tokio::io::sink()).await?;
                ensure!(taken == length as u64, "the stream ended");
                self.has_routes.store(true, Ordering::Relaxed);
                continue;
            }
            body.resize(length, 0);
            stream.read_exact(&mut body).await?;
            match codec::decode(&body).context("a message")? {
                ControllerMessage::Challenge { number } => {
                    self.challenge.store(number, Ordering::Relaxed);
                    self.push(connection)?;
                }
                ControllerMessage::Routes { table } if !table.routes.is_empty() => {
                    self.has_routes.store(true, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
}

fn report(deployment: DeploymentName) -> NodeReport {
    let gpu = |index| GpuHealth {
        index,
        verdict: GpuVerdict::Healthy,
        memory_used: Some(Bytes(71_000_000_000)),
        memory_total: Some(Bytes(85_899_345_920)),
        utilization_percent: Some(93),
        temperature_c: Some(61),
    };
    let gpus = (0..8).map(gpu).collect();
    NodeReport {
        phase: Phase::Serving,
        phase_for_ms: 0,
        reason: "the engine answers".to_owned(),
        deployment: Some(deployment),
        engine: EngineReport { state: EngineState::Ready, pid: Some(4242), ..EngineReport::absent() },
        host: HostReport {
            cpu_percent: 12.5,
            load_1m: 3.0,
            memory_used: Bytes(120_000_000_000),
            memory_total: Bytes(2_000_000_000_000),
            disk_free: Bytes(3_000_000_000_000),
        },
        gpu: GpuReport::Seen(GpuSummary { driver_version: Some("580.95.05".to_owned()), gpus }),
        edge: EdgeReport { in_flight: 12, request_count: 100_000, ..EdgeReport::default() },
        notice: None,
        spot: SpotReport { cloud: Some(Cloud::Aws), blind: Vec::new(), unread: Vec::new() },
        model: None,
        wants_replacement: None,
        state: cic_common::report::StateDigest::default(),
    }
    .sealed(1)
}
