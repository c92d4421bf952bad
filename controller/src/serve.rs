//! `serve`: puts a controller together, in the order in which each part needs the ones before it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::{Clock, Mono};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{self, Api};
use crate::backup::{self, Backup, BackupError, FleetMark};
use crate::config::Config;
use crate::core::Fleet;
use crate::driver::{Driver, EVENTS_WAITING_MAX, Inlets, Shells};
use crate::ha::{Keeper, KeeperSpec, Leadership, LeaseTiming};
use crate::health::{self, Check, Monitor, Severity, Target};
use crate::identity::{self, OwnIdentityError};
use crate::links::{LinksError, LinksSpec};
use crate::ports::{ListenError, Ports, Sockets};
use crate::provision::Provision;
use crate::provision::local::{Local, LocalSpec};
use crate::reach::Reach;
use crate::record::Recorder;
use crate::standing::{Reign, Standing};
use crate::store::{Database, Holder, StoreError};
use crate::threads::Threads;

/// What the parts get to stop, and then the store to write what they left: 5 s together.
const STOP_WITHIN: Duration = Duration::from_secs(3);
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// What fails here may fail everywhere: the lead then goes round no faster than this.
const HAND_OVER_EVERY: Duration = Duration::from_secs(300);

/// Why a controller does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("state directory {path:?} cannot be used")]
    State { path: PathBuf, source: io::Error },
    #[error("another controller runs on state directory {0:?}; stop it, or set controller.state_dir")]
    Taken(PathBuf),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("store cannot be used")]
    Store(#[from] StoreError),
    #[error("identity cannot be used")]
    Identity(#[from] OwnIdentityError),
    #[error("nodes cannot be reached")]
    Links(#[from] LinksError),
    #[error("own API has no URL")]
    OwnApi(#[from] hyper::http::Error),
    #[error("snapshots cannot be taken")]
    Backup(#[from] BackupError),
    #[error("record {path:?} cannot be written")]
    Record { path: PathBuf, source: io::Error },
    #[error("cannot {act}")]
    Io { act: &'static str, source: io::Error },
    #[error("{0}")]
    Task(String),
}

/// Runs a controller until SIGTERM or SIGINT. The nodes are left alone then.
///
/// # Errors
/// When a part cannot start, or a vital one ended.
pub async fn serve(config: Config, record: Option<&Path>, clock: Clock) -> Result<(), ServeError> {
    let _lock = take(&config.state_dir)?;
    // Before the ports are open: nobody waits at one for what cannot be answered yet.
    Database::wait_until_there(&config.store_url, config.store_password.as_deref()).await?;
    let sockets = Sockets::bind(config.quic_listen, config.api_listen, Ports::read(&config.state_dir))?;
    let ports = sockets.ports().map_err(io_error("ask for the ports"))?;
    let (authority, identity) = identity::open(&config.tls_dir, &config.id)?;
    let database = Database::open(&config.store_url, config.store_password.as_deref()).await?;
    database.migrate().await?;

    let (threads, here) = (Threads::start().map_err(io_error("start threads"))?, Handle::current());
    let (front, back) = (Supervisor::new().on(here.clone()), Supervisor::new().on(here));
    let (told, events) = mpsc::channel(EVENTS_WAITING_MAX);
    let api_url = config.api_url.clone().unwrap_or_else(|| format!("http://{}", own_api(&config, ports)));
    let own = Holder { controller: config.id.clone(), api: api_url };
    let keeping = (database.clone(), back.clone());
    let spec =
        KeeperSpec { database: keeping.0, own, clock, timing: LeaseTiming::default(), tasks: keeping.1 };
    let (keeper, leadership, turns) = Keeper::begin(spec).await?;

    let local = local(&config, ports, authority.certificate_pem(), &database)?;
    let provision = Provision::new(local, front.clone(), told.clone());
    let recorder = record.map(|path| recorder(path, &config, &back)).transpose()?;
    let authority = Arc::new(authority);
    let (socket, listener) = sockets.into_parts().map_err(io_error("use the sockets"))?;
    let spec = LinksSpec {
        socket,
        controller: config.id.clone(),
        heartbeat_ms: config.heartbeat_ms,
        tls_dir: &config.tls_dir,
        authority: Arc::clone(&authority),
        identity: &identity,
    };
    let links = spec.open(&front, threads.agents(), &database, &leadership, &told)?;
    let trust = authority.trust().map_err(LinksError::from)?;
    let reach = Reach::new(config.reach.clone(), &identity, &trust, front.clone(), told);
    let reach = reach.map_err(LinksError::from)?;
    let standing = standing(&leadership, clock, &config.store_url);
    let mut checks = Vec::new();
    if let Some(spec) = &config.backup {
        let fleet = FleetMark::of(authority.certificate_pem());
        let (backup, every) = (Backup::open(&spec.url, spec.keep, fleet, database.clone())?, spec.every);
        let target = Target::Snapshots { backup: Box::new(backup.clone()), age_max: every * 2 };
        checks.push(Check { name: "snapshots", severity: Severity::Warning, target });
        let leads = standing.clone();
        front.spawn("backup", Kind::Vital, move |token| backup::run(backup, every, leads, token));
    }
    let shells =
        Shells { leadership: leadership.clone(), provision, network: Box::new(links.clone()), reach };
    let fleet = Fleet::new(config.timing, config.brake).of_fleet(config.fleet.clone());
    let (driver, outlets) = Driver::new(fleet, clock, Inlets { events, turns }, shells, recorder);
    checks.extend(health::every(&database, &outlets, own_api(&config, ports), &config.health)?);
    let monitor = Monitor::new(checks, standing);
    let token = config.admin_token.as_deref();
    let api = Api::new(outlets, database.clone(), leadership.clone(), clock, token, Some(links));
    let api = api.with_checks(monitor.states());
    let (wanted, leads) = (monitor.hand_over_wanted(), leadership.clone());
    front.spawn("hand-over", Kind::Vital, move |token| hand_over_when_wanted(wanted, leads, clock, token));
    front.spawn("health", Kind::Vital, move |token| monitor.run(token));

    front.spawn("identity", Kind::Vital, move |token| {
        identity::keep_renewed(authority, identity, clock, token)
    });
    front.on(threads.core()).spawn("driver", Kind::Vital, move |token| driver.run(token));
    let inner = front.clone();
    front.spawn("api", Kind::Vital, move |token| api::serve(listener, api, inner, token));
    back.spawn("lease", Kind::Vital, move |token| keeper.run(token));
    ports.write(&config.state_dir).map_err(io_error("write ports.json"))?;
    info!(role = ?leadership.role(), quic = ports.quic, api = ports.api, "controller serves");

    wait_for_end(&front, &back).await.map_err(io_error("listen for signals"))?;
    if let Err(error) = leadership.stop().await {
        warn!(%error, "others wait for the lease to end");
    }
    stop(&front, &back, &database).await
}

/// Whether this controller leads. A database that several may share is taken to have another that would.
fn standing(leadership: &Leadership, clock: Clock, store_url: &str) -> Standing {
    let (leadership, has_standby) = (leadership.clone(), !store_url.starts_with("sqlite:"));
    Standing::new(move || {
        let term = leadership.may_act(clock.now())?;
        Some(Reign { term, queue: leadership.queue()?, has_standby })
    })
}

/// Leaves the lead to another each time that a critical check wants it, at most once in [`HAND_OVER_EVERY`].
async fn hand_over_when_wanted(
    mut wanted: watch::Receiver<Option<String>>,
    leadership: Leadership,
    clock: Clock,
    token: CancellationToken,
) -> TaskResult {
    let mut last: Option<Mono> = None;
    loop {
        // Cancel safe: both only wait.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
        }
        let why = wanted.borrow_and_update().clone();
        let is_early = last.is_some_and(|at| clock.now().since(at) < HAND_OVER_EVERY);
        let Some(why) = why.filter(|_| !is_early) else { continue };
        last = Some(clock.now());
        match leadership.hand_over().await {
            Ok(term) => warn!(why, ?term, "left the lead to another"),
            Err(error) => warn!(why, %error, "the lead could not be left in time"),
        }
    }
}

/// Where the API listens, as it would be asked there.
fn own_api(config: &Config, ports: Ports) -> SocketAddr {
    SocketAddr::new(config.api_listen.ip(), ports.api)
}

fn io_error(act: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { act, source }
}

/// Two controllers on one state directory would each believe themselves alone. Held until the process ends.
fn take(state_dir: &Path) -> Result<File, ServeError> {
    let state = |source| ServeError::State { path: state_dir.to_owned(), source };
    fs::create_dir_all(state_dir).map_err(state)?;
    let lock = state_dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(lock).map_err(state)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(ServeError::Taken(state_dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(state(source)),
    }
}

fn local(
    config: &Config,
    ports: Ports,
    ca_pem: &str,
    database: &Database,
) -> Result<Option<Local>, ServeError> {
    let Some(local) = &config.local else { return Ok(None) };
    fs::create_dir_all(&local.directory).map_err(io_error("create the directory of provider local"))?;
    let address = match local.controller_address {
        Some(address) => address.to_string(),
        None => format!("127.0.0.1:{}", ports.quic),
    };
    let others = local.other_controllers.iter().map(ToString::to_string);
    let spec = LocalSpec {
        directory: local.directory.clone(),
        machine_program: std::env::current_exe().map_err(io_error("find this program's file"))?,
        agent_program: local.agent_program.clone(),
        controller_addresses: [address].into_iter().chain(others).collect(),
        ca_pem: ca_pem.to_owned(),
        agent_timing: local.agent_timing.clone(),
        hardware: local.hardware.clone(),
        fleet: config.fleet.clone(),
    };
    Ok(Some(Local::new(spec, database.clone())))
}

fn recorder(path: &Path, config: &Config, tasks: &Supervisor) -> Result<Recorder, ServeError> {
    Recorder::create(path, config.timing, config.brake, &config.fleet, tasks)
        .map_err(|source| ServeError::Record { path: path.to_owned(), source })
}

async fn wait_for_end(front: &Supervisor, back: &Supervisor) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Cancel safe: every arm only waits.
    tokio::select! {
        _ = terminate.recv() => info!("told to stop"),
        _ = interrupt.recv() => info!("told to stop"),
        () = front.stopping() => {}
        () = back.stopping() => {}
    }
    Ok(())
}

/// The lease is released by now. First all that makes work, then the store that writes down the rest of it.
async fn stop(front: &Supervisor, back: &Supervisor, database: &Database) -> Result<(), ServeError> {
    let stopped = front.stop(STOP_WITHIN).await;
    let stored = back.stop(STORE_WITHIN).await;
    database.close().await;
    if let Err(why) = &stored {
        warn!(why, "store stopped late");
    }
    stopped.and(stored).map_err(ServeError::Task)
}
