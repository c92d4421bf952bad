//! `serve`: puts a controller together, in the order in which each part needs the ones before it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cic_common::id::Term;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::api::{self, Api};
use crate::backup::{self, Backup, BackupError, FleetMark};
use crate::config::Config;
use crate::core::Fleet;
use crate::driver::{Driver, EVENTS_WAITING_MAX, Inlets, Shells};
use crate::health::{self, Check, Monitor, Severity, Target};
use crate::identity::{self, OwnIdentityError};
use crate::links::{LinksError, LinksSpec};
use crate::ports::{ListenError, Ports, Sockets};
use crate::provision::Provision;
use crate::provision::local::{Local, LocalSpec};
use crate::reach::Reach;
use crate::record::Recorder;
use crate::standing::{Reign, Standing};
use crate::store::{self, Database, Ended, Holder, StoreError, StoreQueue, Taken};

/// Recorded operations on their way back to the core.
const RECORDED_WAITING_MAX: usize = 1024;

/// What the parts get to stop, and then the store to write what they left: 5 s together.
const STOP_WITHIN: Duration = Duration::from_secs(3);
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// A leader's, and how soon another looks for its end at the soonest.
const LEASE_SPAN: Duration = Duration::from_secs(4);
const LEASE_LOOK_MIN: Duration = Duration::from_millis(50);

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
    let sockets = Sockets::bind(config.quic_listen, config.api_listen, Ports::read(&config.state_dir))?;
    let ports = sockets.ports().map_err(io_error("ask for the ports"))?;
    let (authority, identity) = identity::open(&config.tls_dir, &config.id)?;
    let database = Database::open(&config.store_url, config.store_password.as_deref()).await?;
    database.migrate().await?;
    let term = lead(&database, &config).await?;
    let restored = database.restore(term).await?;

    let (front, back) = (Supervisor::new(), Supervisor::new());
    let (told, events) = mpsc::channel(EVENTS_WAITING_MAX);
    let (confirm, recorded) = mpsc::channel(RECORDED_WAITING_MAX);
    let queue = StoreQueue::default();
    let (writer_database, writer_queue) = (database.clone(), queue.clone());
    back.spawn("store", Kind::Vital, move |token| {
        let ended = store::run_writer(writer_database, term, writer_queue, confirm, token);
        async move {
            match ended.await {
                Ended::Stopped => Ok(()),
                Ended::Fenced { newest } => {
                    Err(format!("another controller leads under term {newest}").into())
                }
            }
        }
    });

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
    let links = spec.open(&front, &database, &queue, &told)?;
    let trust = authority.trust().map_err(LinksError::from)?;
    let reach = Reach::new(config.reach, &identity, &trust, front.clone(), told);
    let reach = reach.map_err(LinksError::from)?;
    let shells = Shells { store: queue.clone(), provision, network: Box::new(links.clone()), reach };
    let fleet = Fleet::new(config.timing, config.brake);
    let reigning = queue.clone();
    let standing = Standing::new(move || Some(Reign { term, queue: reigning.clone(), has_standby: false }));
    let mut checks = Vec::new();
    if let Some(spec) = &config.backup {
        let fleet = FleetMark::of(authority.certificate_pem());
        let (backup, every) = (Backup::open(&spec.url, spec.keep, fleet, database.clone())?, spec.every);
        let target = Target::Snapshots { backup: Box::new(backup.clone()), age_max: every * 2 };
        checks.push(Check { name: "snapshots", severity: Severity::Warning, target });
        let leads = standing.clone();
        front.spawn("backup", Kind::Vital, move |token| backup::run(backup, every, leads, token));
    }
    let (driver, outlets) = Driver::new(fleet, clock, Inlets { events, recorded }, shells, recorder);
    let listen = SocketAddr::new(config.api_listen.ip(), ports.api);
    checks.extend(health::every(&database, &outlets, listen, &config.health)?);
    let monitor = Monitor::new(checks, standing);
    let api = Api::new(outlets, database.clone(), queue, clock, config.admin_token.as_deref(), Some(links));
    let api = api.with_checks(monitor.states());
    front.spawn("health", Kind::Vital, move |token| monitor.run(token));

    front.spawn("identity", Kind::Vital, move |token| {
        identity::keep_renewed(authority, identity, clock, token)
    });
    front.spawn("driver", Kind::Vital, move |token| driver.run(restored, token));
    let inner = front.clone();
    front.spawn("api", Kind::Vital, move |token| api::serve(listener, api, inner, token));
    ports.write(&config.state_dir).map_err(io_error("write ports.json"))?;
    info!(%term, quic = ports.quic, api = ports.api, "controller serves");

    wait_for_end(&front, &back).await.map_err(io_error("listen for signals"))?;
    stop(&front, &back, &database).await
}

/// Waits until this controller has the lease.
async fn lead(database: &Database, config: &Config) -> Result<Term, ServeError> {
    let holder = Holder { controller: config.id.clone(), api: format!("http://{}", config.api_listen) };
    let mut is_told = false;
    loop {
        match database.take_lease(&holder, LEASE_SPAN).await? {
            Taken::Yes(term) => return Ok(term),
            Taken::No(lease) => {
                if !is_told {
                    info!(holder = %lease.holder.controller, term = %lease.term, "another controller leads; waiting");
                    is_told = true;
                }
                tokio::time::sleep(lease.left.clamp(LEASE_LOOK_MIN, LEASE_SPAN)).await;
            }
        }
    }
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
    let spec = LocalSpec {
        directory: local.directory.clone(),
        machine_program: std::env::current_exe().map_err(io_error("find this program's file"))?,
        agent_program: local.agent_program.clone(),
        controller_addresses: vec![address],
        ca_pem: ca_pem.to_owned(),
        agent_timing: local.agent_timing.clone(),
        hardware: local.hardware.clone(),
    };
    Ok(Some(Local::new(spec, database.clone())))
}

fn recorder(path: &Path, config: &Config, tasks: &Supervisor) -> Result<Recorder, ServeError> {
    Recorder::create(path, config.timing, config.brake, tasks)
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

/// First all that makes work, then the store that writes down the rest of it.
async fn stop(front: &Supervisor, back: &Supervisor, database: &Database) -> Result<(), ServeError> {
    let stopped = front.stop(STOP_WITHIN).await;
    let stored = back.stop(STORE_WITHIN).await;
    database.close().await;
    if let Err(why) = &stored {
        warn!(why, "store stopped late");
    }
    stopped.and(stored).map_err(ServeError::Task)
}
