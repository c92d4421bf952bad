//! One simulated VM: plays its init system and its network cable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cic_common::supervise::Supervisor;
use cic_common::time::{Clock, Mono, unix_ms};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::agent_config;
use super::cable::{self, Switch};
use super::process::{self, wait_until};
use super::record::{Home, LaunchRecord, METADATA, MachineRecord, POWER_OFF, write};

/// First wait before the agent is started again, doubled each time. `RestartSec` of the shipped unit.
const RESTART_FIRST: Duration = Duration::from_millis(200);

/// Longest wait between starts of the agent.
const RESTART_MAX: Duration = Duration::from_secs(5);

/// An agent that was up this long starts the waits anew.
const UP_ENOUGH: Duration = Duration::from_secs(10);

/// What the VM's processes get between SIGTERM and SIGKILL when it is shut down.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(3);

/// After SIGKILL a process goes unless it hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(2);

/// Between two looks at whether the cloud takes the machine, or something inside powers it off.
const TAKING_LOOK: Duration = Duration::from_millis(50);

/// The metadata service opens a port and writes a line.
const METADATA_WITHIN: Duration = Duration::from_secs(3);

/// Exit codes that the init system takes for an end, not a crash: done, and bad configuration (EX_CONFIG).
const FINAL_EXITS: [i32; 2] = [0, 78];

/// Why a machine did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{0:?} holds no launch record")]
    NoLaunch(PathBuf),
    #[error("a machine already runs in {0:?}")]
    Taken(PathBuf),
    #[error("controller address {0:?} is not ADDRESS:PORT")]
    Address(String),
    #[error("cannot {act}")]
    Io { act: &'static str, source: io::Error },
    #[error("cannot write the agent's configuration")]
    Config(#[from] toml::ser::Error),
    #[error("{0}")]
    Task(String),
}

fn io_error(act: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Io { act, source }
}

/// Runs the VM of the directory `path` until SIGTERM. SIGUSR1 cuts its cable, SIGUSR2 mends it.
///
/// # Errors
/// When the directory holds no launch, another machine runs there, or the cable cannot be laid.
pub async fn run(path: &Path, clock: Clock) -> Result<(), MachineError> {
    // In its own session no terminal's signal reaches it; as subreaper it inherits an engine whose agent died.
    let _ = setsid();
    prctl::set_child_subreaper(true).map_err(|errno| io_error("become subreaper")(errno.into()))?;
    let home = Home::at(path);
    let _lock = take(&home)?;
    let launch = home.launch().map_err(io_error("read the launch record"))?;
    let launch = launch.ok_or_else(|| MachineError::NoLaunch(path.to_owned()))?;
    let controllers = addresses(&launch)?;

    let mut signals = Signals::listen().map_err(io_error("listen for signals"))?;
    let tasks = Supervisor::new();
    let (switch, line) = Switch::new();
    let ports_file = home.state().join("ports.json");
    let cable =
        cable::lay(&tasks, &line, &controllers, ports_file).await.map_err(io_error("lay the cable"))?;
    let metadata = start_metadata(&home, &launch).await?;
    let config = agent_config::render(&home, &launch, &cable)?;
    write(&home.file("agent.toml"), config.as_bytes(), 0o600).map_err(io_error("write agent.toml"))?;
    fs::create_dir_all(home.state()).map_err(io_error("create the state directory"))?;
    // Of an earlier life; only this machine looks at it.
    let _ = fs::remove_file(home.file(POWER_OFF));
    home.write_machine(&MachineRecord {
        fleet: launch.fleet.clone(),
        node: launch.node.clone(),
        operation: launch.operation,
        pid: std::process::id(),
        start_time: process::start_time(std::process::id()).unwrap_or(0),
        cable,
        created_unix_ms: unix_ms(),
    })
    .map_err(io_error("write the machine record"))?;
    info!(node = %launch.node, operation = %launch.operation, "machine runs");

    let mut init = Init {
        home: home.clone(),
        launch,
        clock,
        agent: Agent::Due { at: clock.now() },
        wait: RESTART_FIRST,
        metadata,
    };
    let stopping = tasks.token();
    loop {
        init.start_if_due();
        // Cancel safe: every arm only waits; the signals keep what came between.
        tokio::select! {
            () = init.due() => {}
            _ = signals.child.recv() => init.reap(),
            _ = signals.cut.recv() => { switch.set(true); info!("cable cut"); }
            _ = signals.mend.recv() => { switch.set(false); info!("cable mended"); }
            () = taken(&home) => {
                info!("the cloud takes this machine");
                init.lose_power().await;
                break;
            }
            () = powered_off(&home) => {
                info!("the machine is powered off from inside");
                break;
            }
            _ = signals.stop.recv() => break,
            () = stopping.cancelled() => break,
        }
    }
    init.shut_down().await;
    tasks.stop(KILL_WITHIN).await.map_err(MachineError::Task)
}

/// Resolves when the moment has come at which the cloud takes the machine.
async fn taken(home: &Home) {
    while home.taking().is_none_or(|taking| unix_ms() < taking.at_unix_ms) {
        tokio::time::sleep(TAKING_LOOK).await;
    }
}

/// Resolves when something inside has powered the machine off.
async fn powered_off(home: &Home) {
    while !home.file(POWER_OFF).exists() {
        tokio::time::sleep(TAKING_LOOK).await;
    }
}

/// Starts the metadata service that the VM's cloud has, and waits until it says where it listens. Returns its pid.
async fn start_metadata(home: &Home, launch: &LaunchRecord) -> Result<Option<u32>, MachineError> {
    let Some(program) = &launch.hardware.metadata_program else { return Ok(None) };
    let _ = fs::remove_file(home.file(METADATA));
    let log = OpenOptions::new().create(true).append(true).open(home.file("metadata.log"));
    let log = log.map_err(io_error("open the metadata service's log"))?;
    let errors = log.try_clone().map_err(io_error("open the metadata service's log"))?;
    let mut command = Command::new(program);
    command.arg("--port-file").arg(home.file(METADATA)).envs(home.tag(&launch.node).variables());
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    let mut service = command.spawn().map_err(io_error("start the metadata service"))?;
    if wait_until(METADATA_WITHIN, || home.metadata().is_some()).await {
        return Ok(Some(service.id()));
    }
    let _ = service.kill();
    let late = io::Error::new(io::ErrorKind::TimedOut, "it does not say where it listens");
    Err(MachineError::Io { act: "start the metadata service", source: late })
}

/// At most one machine runs in a home, whoever starts a second. Held until the process ends.
fn take(home: &Home) -> Result<File, MachineError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(home.file("lock"))
        .map_err(io_error("open the lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(MachineError::Taken(home.path().to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(MachineError::Io { act: "lock the home", source }),
    }
}

fn addresses(launch: &LaunchRecord) -> Result<Vec<SocketAddr>, MachineError> {
    let parse = |text: &String| text.parse().map_err(|_| MachineError::Address(text.clone()));
    launch.controller_addresses.iter().map(parse).collect()
}

struct Signals {
    cut: tokio::signal::unix::Signal,
    mend: tokio::signal::unix::Signal,
    stop: tokio::signal::unix::Signal,
    child: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            cut: signal(SignalKind::user_defined1())?,
            mend: signal(SignalKind::user_defined2())?,
            stop: signal(SignalKind::terminate())?,
            child: signal(SignalKind::child())?,
        })
    }
}

/// The agent in its init system's eyes. `Due -> Up -> Due | Ended`.
#[derive(Debug, Clone, Copy)]
enum Agent {
    Due { at: Mono },
    Up { pid: Pid, since: Mono },
    Ended,
}

/// What systemd does on a real VM.
struct Init {
    home: Home,
    launch: LaunchRecord,
    clock: Clock,
    agent: Agent,
    wait: Duration,
    /// Its metadata service's process.
    metadata: Option<u32>,
}

impl Init {
    async fn due(&self) {
        match self.agent {
            Agent::Due { at } => tokio::time::sleep_until(self.clock.instant(at).into()).await,
            Agent::Up { .. } | Agent::Ended => std::future::pending().await,
        }
    }

    fn start_if_due(&mut self) {
        let now = self.clock.now();
        match self.agent {
            Agent::Due { at } if at <= now => {}
            Agent::Due { .. } | Agent::Up { .. } | Agent::Ended => return,
        }
        match self.start() {
            Ok(pid) => {
                info!(%pid, "agent started");
                self.agent = Agent::Up { pid, since: now };
            }
            Err(error) => {
                warn!(%error, program = ?self.launch.agent_program, "agent cannot be started");
                self.again();
            }
        }
    }

    fn start(&self) -> io::Result<Pid> {
        let log = OpenOptions::new().create(true).append(true).open(self.home.file("agent.log"))?;
        let mut command = Command::new(&self.launch.agent_program);
        command.arg("run").arg("--config").arg(self.home.file("agent.toml"));
        // A VM does not inherit what its controller was configured with.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CIC_") {
                command.env_remove(name);
            }
        }
        command.envs(self.home.tag(&self.launch.node).variables());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn()?;
        let id = child.id();
        write(&self.home.file("agent.pid"), format!("{id}\n").as_bytes(), 0o644)?;
        Ok(Pid::from_raw(id.cast_signed()))
    }

    /// Takes every ended child: the agent, and what was orphaned in this VM.
    fn reap(&mut self) {
        loop {
            let (pid, how, is_final) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    (pid, format!("exit code {code}"), FINAL_EXITS.contains(&code))
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("{signal}"), false),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return warn!(%error, "cannot reap"),
            };
            match self.agent {
                Agent::Up { pid: agent, since } if agent == pid => {
                    info!(%pid, how, is_final, "agent ended");
                    if is_final {
                        self.agent = Agent::Ended;
                        continue;
                    }
                    if self.clock.now().since(since) >= UP_ENOUGH {
                        self.wait = RESTART_FIRST;
                    }
                    self.again();
                }
                Agent::Up { .. } | Agent::Due { .. } | Agent::Ended => info!(%pid, how, "orphan ended"),
            }
        }
    }

    fn again(&mut self) {
        self.agent = Agent::Due { at: self.clock.now() + self.wait };
        self.wait = (self.wait * 2).min(RESTART_MAX);
    }

    /// Everything ends at once, as without power.
    async fn lose_power(&mut self) {
        self.agent = Agent::Ended;
        let tag = self.home.tag(&self.launch.node);
        if !process::kill_all(KILL_WITHIN, || tag.processes()).await {
            warn!("processes remain after SIGKILL");
        }
    }

    async fn shut_down(&mut self) {
        let tag = self.home.tag(&self.launch.node);
        if let Agent::Up { pid, .. } = self.agent {
            process::send(pid.as_raw().cast_unsigned(), Signal::SIGTERM);
        }
        if let Some(pid) = self.metadata {
            process::send(pid, Signal::SIGTERM);
        }
        self.agent = Agent::Ended;
        let none_inside = || {
            self.reap();
            tag.processes().is_empty()
        };
        if !wait_until(SHUTDOWN_WITHIN, none_inside).await
            && !process::kill_all(KILL_WITHIN, || tag.processes()).await
        {
            warn!("processes remain after SIGKILL");
        }
        info!("machine stops");
    }
}
