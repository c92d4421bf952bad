//! Keeps one engine process: starts or adopts it, watches it, stops it, sweeps after it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::assignment::Assignment;
use cic_common::id::NodeId;
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::Clock;
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::autopsy::autopsy;
use super::launch::Launch;
use super::pidfd::PidFd;
use super::record::spec_digest;
use super::sweep::{Trail, belonging, kill_session, send, sweep};
use super::{Record, Tag, cgroup, log, procfs};
use crate::core::{Activity, EngineEnd, EngineFound, Event};
use crate::state::{StateDir, name};

/// How long the end of an adopted engine goes unseen where the kernel gives no descriptor of it (before Linux 5.3).
const ADOPTED_LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often the log's length is looked at. At 100 MB/s, a flood, it is over its bound by 50 MB at most.
const LOG_LOOK_EVERY: Duration = Duration::from_millis(500);

/// `/proc` of a thousand processes is read in some 20 ms.
const LISTED_WITHIN: Duration = Duration::from_secs(2);

/// Pids remembered of one engine: a tensor-parallel vLLM has some dozens, and compilers come and go.
const PIDS_MAX: usize = 1024;

/// A disk that does not answer must not keep the watch from seeing the engine's end.
const LOG_BOUND_WITHIN: Duration = Duration::from_secs(2);

/// What a keeper must know.
#[derive(Debug, Clone)]
pub struct KeeperSpec {
    pub node: NodeId,
    /// 127.0.0.1 port of the engine; 0 picks a free one at each start.
    pub host_port: u16,
    /// A `cic-agent` program, which starts the engine by its `engine-exec`. Outside tests this very one.
    pub launcher: PathBuf,
}

/// Keeps the node's engine. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: KeeperSpec,
    tag: Tag,
    state: StateDir,
    clock: Clock,
    supervisor: Supervisor,
    events: mpsc::Sender<Event>,
    running: watch::Sender<Option<Record>>,
    /// Of the running engine.
    traces: Mutex<Traces>,
    /// Bytes that were cut off its log.
    log_cut: AtomicU64,
}

/// What is known of the running engine's processes.
#[derive(Debug, Default)]
struct Traces {
    pids: BTreeSet<u32>,
    /// By pid; what one has read that has ended stays counted.
    read_bytes: BTreeMap<u32, u64>,
    stacks: Vec<String>,
}

impl Traces {
    fn saw(&mut self, pids: impl IntoIterator<Item = u32>) {
        for pid in pids {
            if self.pids.len() < PIDS_MAX {
                self.pids.insert(pid);
            }
        }
    }
}

impl Keeper {
    #[must_use]
    pub fn new(
        spec: KeeperSpec,
        state: StateDir,
        clock: Clock,
        supervisor: Supervisor,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let tag = Tag { node: spec.node.clone(), state_dir: state.root().to_owned() };
        let running = watch::Sender::new(None);
        let (traces, log_cut) = (Mutex::default(), AtomicU64::new(0));
        Self {
            shared: Arc::new(Shared {
                spec,
                tag,
                state,
                clock,
                supervisor,
                events,
                running,
                traces,
                log_cut,
            }),
        }
    }

    /// The engine process that is running, as it comes and goes.
    #[must_use]
    pub fn running(&self) -> watch::Receiver<Option<Record>> {
        self.shared.running.subscribe()
    }

    /// Looks for an engine of an earlier run: adopts the recorded one if it is that very process, else kills
    /// whatever carries this node's tag.
    ///
    /// # Errors
    /// When `/proc` cannot be read, so that nobody knows whether it runs.
    pub async fn find(&self) -> io::Result<Option<EngineFound>> {
        let shared = &self.shared;
        let Some(record) = shared.state.read::<Record>(name::ENGINE) else {
            sweep(&shared.tag, None).await;
            return Ok(None);
        };
        if record.is_alive().await? {
            let spec = &record.spec_digest;
            info!(pid = record.pid, port = record.port, spec, "adopt the running engine");
            let found = EngineFound { pid: record.pid, assignment: record.assignment.clone() };
            self.watch(record, None);
            return Ok(Some(found));
        }
        let is_this_boot = record.boot_id == procfs::boot_id().await?;
        sweep(&shared.tag, is_this_boot.then(|| Trail::from(&record))).await;
        shared.state.remove(name::ENGINE).await;
        Ok(None)
    }

    /// Starts an engine; ends in `EngineStarted` or `EngineStartFailed`.
    pub fn start(&self, attempt: u32, assignment: Assignment, directory: String) {
        let keeper = self.clone();
        self.shared.supervisor.spawn("engine start", Kind::Passing, |_| async move {
            let event = match keeper.start_now(assignment, directory).await {
                Ok(pid) => Event::EngineStarted { attempt, pid },
                Err((reason, may_heal)) => Event::EngineStartFailed { attempt, reason, may_heal },
            };
            Ok(keeper.shared.events.send(event).await?)
        });
    }

    /// SIGTERM now, SIGKILL to everything after `grace`; the watch reports the exit. With `autopsy` it is first written
    /// down where the engine's threads are.
    pub fn stop(&self, pid: u32, grace: Duration, autopsy: bool) {
        let keeper = self.clone();
        self.shared.supervisor.spawn("engine stop", Kind::Passing, move |token| async move {
            keeper.stop_now(pid, grace, autopsy, token).await
        });
    }

    /// What the engine `pid` has written and read so far; `None` when it is not the running one, or `/proc` cannot be
    /// read.
    pub async fn activity(&self, pid: u32) -> Option<Activity> {
        let shared = &self.shared;
        let record = shared.running.borrow().clone().filter(|record| record.pid == pid)?;
        let processes = self.processes_of(&record).await;
        let mut read_bytes = BTreeMap::new();
        for pid in &processes {
            read_bytes.insert(*pid, procfs::read_bytes(*pid).await);
        }
        let log_bytes =
            log::length(&shared.state.path(name::ENGINE_LOG)).await + shared.log_cut.load(Ordering::Relaxed);
        let mut traces = shared.traces();
        traces.saw(processes);
        for (pid, bytes) in read_bytes {
            if traces.pids.contains(&pid) {
                traces.read_bytes.insert(pid, bytes);
            }
        }
        Some(Activity { log_bytes, read_bytes: traces.read_bytes.values().sum() })
    }

    /// The engine's processes; empty when `/proc` does not tell in time, as of one that hangs in a driver it may not.
    async fn processes_of(&self, record: &Record) -> Vec<u32> {
        match timeout(LISTED_WITHIN, belonging(&self.shared.tag, Some(Trail::from(record)))).await {
            Ok(Ok(found)) => found.iter().map(|process| process.pid).collect(),
            Ok(Err(error)) => {
                warn!(%error, "engine processes cannot be listed");
                Vec::new()
            }
            Err(_) => {
                warn!(within = ?LISTED_WITHIN, "engine processes are not listed in time");
                Vec::new()
            }
        }
    }

    async fn start_now(&self, assignment: Assignment, directory: String) -> Result<u32, (String, bool)> {
        let shared = &self.shared;
        if let Some(running) = &*shared.running.borrow() {
            return Err((format!("engine pid {} is still running", running.pid), true));
        }
        let port = self.free_port().await?;
        let name = format!("cic-engine-{}-{}", shared.spec.node, shared.clock.unix_ms());
        let cgroup = cgroup::make(&name).await;
        let launch = Launch {
            launcher: &shared.spec.launcher,
            tag: &shared.tag,
            assignment: &assignment,
            directory: &directory,
            port,
            cgroup: cgroup.as_deref(),
            log: &shared.state.path(name::ENGINE_LOG),
        };
        let child = match launch.start().await {
            Ok(child) => child,
            Err(error) => {
                if let Some(cgroup) = &cgroup {
                    cgroup::kill(cgroup).await;
                }
                return Err((with_causes(&error), error.may_heal()));
            }
        };
        // A child that was not waited for keeps its pid and its line in /proc, even if it has ended already.
        let Some(pid) = child.id() else { return Err(("engine ended at once".to_owned(), true)) };
        let (process, boot_id) = match (procfs::process(pid).await, procfs::boot_id().await) {
            (Ok(Some(process)), Ok(boot_id)) => (process, boot_id),
            (Ok(None), Ok(_)) => return Err((format!("/proc shows no engine pid {pid}"), true)),
            (Err(error), _) | (_, Err(error)) => {
                sweep(&shared.tag, None).await;
                return Err((format!("/proc cannot be read: {error}"), true));
            }
        };
        let start_ticks = process.start_ticks;
        let spec_digest = spec_digest(&assignment);
        let directory = Some(directory);
        let record = Record { pid, start_ticks, boot_id, port, cgroup, spec_digest, directory, assignment };
        if let Err(error) = shared.state.write(name::ENGINE, &record).await {
            sweep(&shared.tag, Some(Trail::from(&record))).await;
            return Err((with_causes(&error), true));
        }
        let (program, spec) = (&record.assignment.engine.program, &record.spec_digest);
        info!(pid, port, program, spec, "engine started");
        self.watch(record, Some(child));
        Ok(pid)
    }

    async fn free_port(&self) -> Result<u16, (String, bool)> {
        let port = self.shared.spec.host_port;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
            (format!("port {port} for the engine cannot be had ([engine] host_port): {error}"), true)
        })?;
        listener.local_addr().map(|address| address.port()).map_err(|error| (error.to_string(), true))
    }

    fn watch(&self, record: Record, child: Option<Child>) {
        let keeper = self.clone();
        *self.shared.traces() = Traces { pids: [record.pid].into(), ..Traces::default() };
        self.shared.log_cut.store(0, Ordering::Relaxed);
        self.shared.running.send_replace(Some(record.clone()));
        self.shared.supervisor.spawn("engine watch", Kind::Passing, |token| async move {
            keeper.watch_now(record, child, token).await
        });
    }

    async fn watch_now(&self, record: Record, child: Option<Child>, token: CancellationToken) -> TaskResult {
        let shared = &self.shared;
        let path = shared.state.path(name::ENGINE_LOG);
        let mut looks = tokio::time::interval(LOG_LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let ended = ended(&record, child);
        tokio::pin!(ended);
        let how = loop {
            // Cancel safe: `ended` is polled on by reference, a tick that is dropped comes again.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                how = &mut ended => break how,
                _ = looks.tick() => {
                    match timeout(LOG_BOUND_WITHIN, log::bound(&path)).await {
                        Ok(Ok(cut)) => {
                            shared.log_cut.fetch_add(cut, Ordering::Relaxed);
                        }
                        Ok(Err(error)) => warn!(path = %path.display(), %error, "engine log cannot be bounded"),
                        Err(_) => warn!(path = %path.display(), "engine log cannot be bounded: its disk hangs"),
                    }
                }
            }
        };
        // Those that are still there; a core that outlived its server is known only now.
        let found = self.processes_of(&record).await;
        shared.traces().saw(found);
        let left = sweep(&shared.tag, Some(Trail::from(&record))).await;
        let log_tail = log::tail(&path).await;
        shared.state.remove(name::ENGINE).await;
        shared.running.send_replace(None);
        let Traces { pids, stacks, .. } = std::mem::take(&mut *shared.traces());
        let end = EngineEnd { how, log_tail, pids: pids.into_iter().collect(), left, stacks };
        Ok(shared.events.send(Event::EngineExited { pid: record.pid, end }).await?)
    }

    async fn stop_now(
        &self,
        pid: u32,
        grace: Duration,
        with_autopsy: bool,
        token: CancellationToken,
    ) -> TaskResult {
        let mut running = self.running();
        let record = running.borrow_and_update().clone().filter(|record| record.pid == pid);
        let Some(record) = record else {
            let end = EngineEnd { how: "was not running".to_owned(), ..EngineEnd::default() };
            return Ok(self.shared.events.send(Event::EngineExited { pid, end }).await?);
        };
        if with_autopsy {
            let pids = self.processes_of(&record).await;
            let stacks = autopsy(&pids).await;
            warn!(pid, threads = stacks.len(), first = stacks.first(), "engine is stopped for not moving");
            let mut traces = self.shared.traces();
            traces.saw(pids);
            traces.stacks = stacks;
        }
        match PidFd::open(pid) {
            // Held first and checked after: the signal cannot reach another process.
            Ok(Some(held)) if record.is_alive().await.unwrap_or(false) => held.terminate(),
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "no descriptor of the engine");
                send(pid, Signal::SIGTERM);
            }
        }
        let is_gone = |now: &Option<Record>| now.as_ref().is_none_or(|now| now.pid != pid);
        // All arms are cancel safe.
        tokio::select! {
            _ = running.wait_for(is_gone) => return Ok(()),
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(grace) => {}
        }
        warn!(pid, ?grace, "engine did not end by SIGTERM, killing its session");
        kill_session(Trail::from(&record)).await;
        Ok(())
    }
}

impl Shared {
    fn traces(&self) -> std::sync::MutexGuard<'_, Traces> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of the engine's main process and says how it was, for people.
async fn ended(record: &Record, child: Option<Child>) -> String {
    let Some(mut child) = child else {
        // Held first and checked after: from then on the number cannot come to mean another process.
        let held = PidFd::open(record.pid).inspect_err(|error| warn!(%error, "no descriptor of the engine"));
        while record.is_alive().await.unwrap_or(true) {
            match &held {
                // Its end is looked at once more; what cannot be seen then is asked for at leisure.
                Ok(Some(held)) if held.ended().await.is_ok() => {
                    if record.is_alive().await.unwrap_or(true) {
                        tokio::time::sleep(ADOPTED_LOOK_EVERY).await;
                    }
                }
                Ok(_) | Err(_) => tokio::time::sleep(ADOPTED_LOOK_EVERY).await,
            }
        }
        return "ended; exit status unknown, since an earlier agent run started it".to_owned();
    };
    match child.wait().await {
        Ok(status) => how(status),
        Err(error) => format!("ended; its exit status cannot be read: {error}"),
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
