//! `cic-agent run`: brings the parts up in order and takes them down again.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use cic_common::notice::Cloud;
use cic_common::report::Role;
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::Clock;
use cic_common::tls::config::{tcp_client, tcp_server};
use cic_common::tls::{Identity, JoinToken, Trust};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, TermMode};
use crate::core::{Agent, AgentSpec, Booted, Event};
use crate::driver::{Driver, EDGE_WORDS_WAITING_MAX, EVENTS_WAITING_MAX, Shells, Store};
use crate::effect::checkpoint::{Answers, Checkpoints};
use crate::effect::engine::{Checker, Keeper, KeeperSpec};
use crate::effect::link::{EnrolSpec, LinkSpec, Links, Pulse, enrol, load_identity};
use crate::effect::memory::{Found, Memory};
use crate::effect::model::fetch::Address;
use crate::effect::model::{Desk, KnownModel, NeighboursOf};
use crate::serve::edge::{Edge, EdgeSpec, Routes, ScarcitySpec, UserPort};
use crate::serve::files::Shelf;
use crate::serve::gpu_metrics::GpuBoard;
use crate::serve::metrics::MetricsPort;
use crate::serve::order::OrderDesk;
use crate::serve::peer::PeerPort;
use crate::source::gpu::{GpuRequests, GpuSpec};
use crate::source::kmsg::{self, KmsgSpec};
use crate::source::spot::shutdown::ShutdownSpec;
use crate::source::{gpu, host, spot};
use crate::state::{StateDir, boot_id, name};

/// Events of the links that wait for the driver.
const LINK_EVENTS_WAITING_MAX: usize = 256;

/// This very program, also when an upgrade has put another in its place on the disk.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Nodes that one fetch asks: more than it can have pieces from at once.
const NEIGHBOURS_MAX: usize = 16;

/// In the state directory: certificate and key.
pub(crate) const IDENTITY_NAME: &str = "identity.pem";

/// Longest the parts take to stop; connections that are still answering are cut then.
const STOP_WITHIN: Duration = Duration::from_secs(4);

/// Where the ports ended up, for whoever started this agent.
#[derive(Debug, Serialize)]
struct Ports {
    peer: Option<u16>,
    edge: u16,
    metrics: u16,
}

/// Runs the agent until it is told to stop. Returns its exit code.
///
/// # Errors
/// When it cannot start: a port in use, a state directory of another agent, a refused join token.
pub async fn run(config: Config, record: Option<&Path>) -> anyhow::Result<u8> {
    allow_many_files();
    let clock = Clock::start();
    let tasks = Supervisor::new();
    let state = StateDir::open(&config.node.state_dir)?;
    let edge_listener = bind("[edge] listen", config.edge.listen).await?;
    let metrics_listener = bind("[metrics] listen", config.metrics.listen).await?;
    let incarnation = state.next_incarnation()?;
    info!(node = %config.node.id, %incarnation, "agent starts");
    let (events, waiting) = mpsc::channel(EVENTS_WAITING_MAX);
    let mut stop = Stop::listen()?;

    let spec = KeeperSpec {
        node: config.node.id.clone(),
        host_port: config.engine.host_port,
        launcher: PathBuf::from(OWN_PROGRAM),
    };
    let keeper = Keeper::new(spec, state.clone(), clock, tasks.clone(), events.clone());
    // Before anything else can send an event: what was found is where all else starts from.
    let engine = if config.node.role == Role::Replica { keeper.find().await? } else { None };
    let remembered = state.read(name::ASSIGNMENT);
    let known: Option<KnownModel> = state.read(name::MODEL);
    let found_path = keeper.running().borrow().as_ref().map(|record| record.directory().to_owned());
    let model_digest =
        known.filter(|known| found_path.as_ref() == Some(&known.path)).map(|known| known.digest);
    let (gpu_memory, deadman_memory) = (Memory::of(name::GPU), Memory::of(name::DEADMAN));
    // A reboot resets the GPUs, and with them what was known.
    let gpus = gpu_memory.found(&state);
    let gpus = gpus.and_then(|Found { memo, in_this_boot }| in_this_boot.map(|_| memo));
    let restarted_for = state.read(name::RESTART);
    // Over a reboot no time passes.
    let deadman =
        deadman_memory.found(&state).map(|found| (found.memo, found.in_this_boot.unwrap_or_default()));
    let booted = Booted { engine, remembered, gpus, model_digest, restarted_for, deadman };
    events.send(Event::Booted(booted)).await?;
    let (keeping, kept) = (gpu_memory.clone(), state.clone());
    tasks.spawn("gpu memory", Kind::Vital, |token| keeping.keep(kept, token));
    let (keeping, kept) = (deadman_memory.clone(), state.clone());
    tasks.spawn("deadman memory", Kind::Vital, |token| keeping.keep(kept, token));
    let trust = config.controller.ca_file.as_deref().map(Trust::from_file).transpose()?;
    let identity = match &trust {
        // Cancel safe: enrolment keeps nothing until it has a certificate.
        Some(trust) => tokio::select! {
            identity = identify(&config, &state, trust, &tasks) => Some(identity?),
            signal = stop.asked() => {
                info!(signal, "stopped before any controller gave this node a certificate");
                tasks.stop(STOP_WITHIN).await.map_err(anyhow::Error::msg)?;
                return Ok(0);
            }
        },
        None => None,
    };
    let tls = match (&identity, &trust) {
        (Some(identity), Some(trust)) => Some(tcp_client(identity, trust)?),
        _ => None,
    };
    let routes = Routes::remembered(&state);
    let stores = config.checkpoint.stores().map_err(|(key, what)| anyhow!("[checkpoint] {key}: {what}"))?;
    let answers = stores.clone().map(|stores| Answers::new(stores, clock));
    let (edge_words, words_waiting) = mpsc::channel(EDGE_WORDS_WAITING_MAX);
    let edge_spec = EdgeSpec {
        node: config.node.id.clone(),
        role: config.node.role,
        zone: config.node.zone.clone().filter(|_| config.edge.zone_first),
        tls,
        continuation: config.edge.continuation,
        scarcity: ScarcitySpec { tell: Some(edge_words), ..config.scarcity()? },
        answers: answers.clone(),
    };
    let edge = Edge::new(edge_spec, routes.clone(), clock, &tasks);
    let (keeping, kept) = (routes.clone(), state.clone());
    tasks.spawn("routes", Kind::Vital, |token| keeping.keep(kept, token));

    let pulse = Arc::new(Pulse::new(config.node.id.clone(), incarnation, clock));
    let mut ports = Ports {
        peer: None,
        edge: edge_listener.local_addr()?.port(),
        metrics: metrics_listener.local_addr()?.port(),
    };
    let (link_events, link_waiting) = mpsc::channel(LINK_EVENTS_WAITING_MAX);
    let (orders, orders_waiting) = OrderDesk::open();
    let mut links = None;
    if let (Some(identity), Some(trust)) = (&identity, &trust) {
        let listener = bind("[peer] listen", config.peer.listen).await?;
        let port = listener.local_addr()?.port();
        ports.peer = Some(port);
        let (asked, per_second) = (edge.clone(), config.model.share_mib_per_s.saturating_mul(1 << 20));
        let shelf = Shelf::new(keeper.running(), move || asked.has_room(), per_second, clock);
        serve_peers(listener, (identity, trust), &pulse, &edge, (orders, shelf), &tasks)?;
        let spec = LinkSpec {
            controllers: config.controller.addresses.clone(),
            role: config.node.role,
            advertise: config.advertised(port),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            keeps_checkpoints: answers.is_some(),
        };
        links = Some(Links::start(&tasks, spec, identity, trust, &pulse, &link_events)?);
    }
    let (user_port, files) = UserPort::open(edge.clone(), &config.edge.user_port(), clock)?;
    let inner = tasks.clone();
    tasks.spawn("edge", Kind::Vital, |token| user_port.run(edge_listener, inner, token));
    tasks.spawn("edge files", Kind::Vital, |token| files.watch(token));
    let board = GpuBoard::default();
    let (power_off_in, left) = watch::channel(None);
    let page = MetricsPort {
        pulse: Arc::clone(&pulse),
        edge: edge.clone(),
        gpus: board.clone(),
        checkpoints: None,
        power_off_in: left,
    };
    let (node, every) = (config.node.id.clone(), config.timing().checkpoint);
    let checkpoints = stores.map(|stores| Checkpoints::new(node, incarnation, stores, every, clock));
    let page = MetricsPort { checkpoints: checkpoints.clone(), ..page };
    let store = checkpoints.zip(answers).map(|(checkpoints, answers)| Store {
        checkpoints,
        answers,
        page: page.clone(),
    });
    let (metrics, inner) = (page, tasks.clone());
    tasks.spawn("metrics", Kind::Vital, |token| metrics.run(metrics_listener, inner, token));
    state.write(name::PORTS, &ports).await?;

    let gpus = watch_sources(&config, &state, clock, &tasks, &events)?;
    let spot = spot::start(config.spot.spec(), clock, &tasks, events.clone());
    let meaning = Meaning {
        spec: config.spot.shutdown(),
        cloud: spot.cloud(),
        with_engine: config.engine.term_mode == TermMode::StopEngine,
        clock,
    };
    let asked = events.clone();
    tasks.spawn("signals", Kind::Vital, move |token| stop.pass_on(asked, meaning, token));

    let timing = config.timing();
    let has_store = store.is_some();
    let spec = AgentSpec {
        node: config.node.id.clone(),
        role: config.node.role,
        incarnation,
        timing,
        mounts: state.path(name::MOUNTS).display().to_string(),
        has_store,
        deadman: config.deadman.spec(&config.node),
    };
    let record = record.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
    let shells = Shells {
        keeper,
        checker: Checker::new(config.flags_dir()),
        files: Desk::new(
            config.model.looker(&config.node, config.controller.ca_file.as_deref()),
            neighbours_of(&config, &routes),
            state.clone(),
            tasks.clone(),
            events.clone(),
        ),
        gpu_memory,
        deadman_memory,
        power_off: config.deadman.command,
        power_off_in,
        gpus,
        spot,
        board,
        edge,
        routes,
        links,
        pulse,
        state,
        store,
        tasks: tasks.clone(),
        events,
        timing,
        clock,
        record,
    };
    let driver = Driver::new(Agent::new(spec), shells);
    let code = driver.run(waiting, link_waiting, words_waiting, orders_waiting, tasks.token()).await;
    tasks.stop(STOP_WITHIN).await.map_err(anyhow::Error::msg)?;
    Ok(code)
}

fn neighbours_of(config: &Config, routes: &Routes) -> NeighboursOf {
    let (node, zone, routes) = (config.node.id.clone(), config.node.zone.clone(), routes.clone());
    Arc::new(move |model| {
        let near = routes.neighbours(model, &node, zone.as_deref(), NEIGHBOURS_MAX);
        near.into_iter().map(|replica| Address { node: replica.node, at: replica.address }).collect()
    })
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key} = {address} cannot be bound"))
}

const SIGTERM: &str = "SIGTERM";

/// What it takes to tell what a signal means.
struct Meaning {
    spec: ShutdownSpec,
    cloud: watch::Receiver<Option<Cloud>>,
    /// Init wants the engine to end with the agent.
    with_engine: bool,
    clock: Clock,
}

/// Init's and the terminal's wish that the agent ends.
struct Stop {
    term: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves with the next signal's name. Cancel safe: signals are kept until they are taken.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => SIGTERM,
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    async fn pass_on(
        mut self,
        events: mpsc::Sender<Event>,
        meaning: Meaning,
        token: CancellationToken,
    ) -> TaskResult {
        let mut number = 0;
        loop {
            // Cancel safe: see `asked`.
            let signal = tokio::select! {
                () = token.cancelled() => return Ok(()),
                signal = self.asked() => signal,
            };
            number += 1;
            let mut with_engine = meaning.with_engine;
            // Ctrl-C is a person's word and means this program alone.
            if signal == SIGTERM {
                let cloud = *meaning.cloud.borrow();
                let notice = spot::shutdown::notice(&meaning.spec, cloud, meaning.clock.now(), number).await;
                with_engine |= notice.is_some();
                if let Some(notice) = notice
                    && events.send(notice).await.is_err()
                {
                    return Ok(());
                }
            }
            let asked = Event::StopAsked { with_engine, reason: signal.to_owned() };
            if events.send(asked).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Thousands of streams need more descriptors than the 1024 that most systems give at first.
fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it was");
    }
}

/// The identity kept from before, or a new one for the join token.
async fn identify(
    config: &Config,
    state: &StateDir,
    trust: &Trust,
    tasks: &Supervisor,
) -> anyhow::Result<Identity> {
    let identity_path = state.path(IDENTITY_NAME);
    if let Some(identity) = load_identity(&identity_path, &config.node.id)? {
        return Ok(identity);
    }
    let Some(path) = &config.controller.join_token_file else {
        bail!(
            "no certificate yet and no [controller] join_token_file to get one with; `cic token NODE` makes one"
        );
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("[controller] join_token_file = {} cannot be read", path.display()))?;
    let spec = EnrolSpec {
        controllers: config.controller.addresses.clone(),
        node: config.node.id.clone(),
        join_token: JoinToken::parse(text.trim())?,
        trust: trust.clone(),
        identity_path,
    };
    Ok(enrol(&spec, &tasks.token()).await?)
}

fn serve_peers(
    listener: TcpListener,
    (identity, trust): (&Identity, &Trust),
    pulse: &Arc<Pulse>,
    edge: &Edge,
    (orders, files): (OrderDesk, Shelf),
    tasks: &Supervisor,
) -> anyhow::Result<()> {
    let edge = edge.clone();
    let answer = move |request, _peer| {
        let edge = edge.clone();
        Box::pin(async move { edge.answer_peer(request).await }) as crate::serve::peer::PeerReply
    };
    let port = PeerPort {
        tls: tcp_server(identity, trust)?,
        pulse: Arc::clone(pulse),
        edge: Arc::new(answer),
        orders,
        files: Some(files),
    };
    let inner = tasks.clone();
    tasks.spawn("peer port", Kind::Vital, |token| port.run(listener, inner, token));
    Ok(())
}

fn watch_sources(
    config: &Config,
    state: &StateDir,
    clock: Clock,
    tasks: &Supervisor,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<GpuRequests> {
    let (root, to) = (state.root().to_owned(), events.clone());
    tasks.spawn("host figures", Kind::Vital, |token| host::watch(root, to, token));
    if let Some(path) = config.spot.notice_file.clone() {
        let to = events.clone();
        tasks.spawn("notice file", Kind::Vital, move |token| spot::file::watch(path, clock, to, token));
    }
    let kmsg =
        boot_id().map(|boot_id| KmsgSpec { path: config.gpu.kmsg.clone(), boot_id, state: state.clone() });
    if let Some(kmsg) = kmsg {
        let to = events.clone();
        tasks.spawn("kernel log", Kind::Passing, move |token| kmsg::watch(kmsg, clock, to, token));
    }
    let (root, to) = (state.root().to_owned(), events.clone());
    tasks.spawn("gpu clear file", Kind::Vital, move |token| gpu::clear::watch(root, to, token));
    let requests = GpuRequests::default();
    let spec =
        GpuSpec { root: config.gpu.root.clone(), ..GpuSpec::new(state.root(), config.gpu.probe.clone())? };
    let (asked, to) = (requests.clone(), events.clone());
    tasks.spawn("gpu", Kind::Vital, move |token| gpu::watch(spec, clock, to, asked, token));
    Ok(requests)
}
