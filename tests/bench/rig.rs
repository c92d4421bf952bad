//! One agent on a machine with eight stand-in GPUs, and the port of a controller that it speaks to, in this process.

use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cic_common::id::{ControllerId, NodeId, Term};
use cic_common::process::Process;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::unix_ms;
use cic_common::tls::{CertificateAuthority, Peer};
use cic_common::wire::message::NodeEvent;
use cic_controller::core::{Event, Message};
use cic_controller::ingest::{Ingest, IngestSpec, JoinRefusal};
use fleet_tests::process::{SoloOptions, StandInGpus, shipped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const NODE: &str = "bench";
const CERTIFICATE_SPAN: Duration = Duration::from_secs(24 * 3600);
const EVENTS_MAX: usize = 4096;

/// What the controller's port heard, and when.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The first message, which carries a whole report.
    Hello,
    /// Handed on by the port at its next batch: every 50 ms.
    Heartbeat,
    Told(NodeEvent),
}

/// The rig. Its agent and all that belongs to it end with it.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    pub(crate) gpus: StandInGpus,
    heard: mpsc::UnboundedReceiver<(Instant, Heard)>,
    supervisor: Supervisor,
    agent: Option<Child>,
    bins: Bins,
    env: Vec<(String, String)>,
}

/// The programs that are measured.
#[derive(Debug, Clone)]
pub(crate) struct Bins {
    pub(crate) agent: PathBuf,
    pub(crate) probe: PathBuf,
}

impl Bins {
    pub(crate) fn built() -> anyhow::Result<Self> {
        Ok(Self { agent: shipped("cic-agent")?, probe: shipped("cic-gpu-probe")? })
    }
}

impl Rig {
    /// Within a runtime.
    pub(crate) fn new(bins: Bins) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        for folder in ["state", "authority", "gpus"] {
            std::fs::create_dir_all(at(folder))?;
        }
        let gpus = StandInGpus::new(&at("gpus"))?;

        let authority = CertificateAuthority::open(&at("authority"), unix_ms())?;
        let issue = |path: &Path, peer| authority.issue(path, &peer, CERTIFICATE_SPAN, unix_ms());
        issue(&at("state/identity.pem"), Peer::Node(NodeId::new(NODE)?))?;
        let identity = issue(&at("authority/controller.pem"), Peer::Controller(ControllerId::new("c1")?))?;
        let supervisor = Supervisor::new();
        let (to_core, core) = mpsc::channel(EVENTS_MAX);
        let spec = IngestSpec {
            controller: ControllerId::new("c1")?,
            heartbeat_ms: 1000,
            identity,
            trust: authority.trust()?,
            authority: Arc::new(authority),
            certificate_span: CERTIFICATE_SPAN,
            reset_key_path: at("authority/reset.key"),
            desk: Arc::new(|_, _| {
                Box::pin(async { Err(JoinRefusal::Token("nobody enrols here".to_owned())) })
            }),
            issue_log: Arc::new(|_, _| {}),
        };
        let ingest = Ingest::start(&supervisor, UdpSocket::bind("127.0.0.1:0")?, spec, to_core)?;
        let config = format!(
            "[node]\nid = '{NODE}'\nstate_dir = '{}'\n[controller]\naddresses = ['{}']\nca_file = '{}'\n\
             [peer]\nlisten = '127.0.0.1:0'\n[edge]\nlisten = '127.0.0.1:0'\n[metrics]\nlisten = '127.0.0.1:0'\n\
             [engine]\nhost_port = 0\n[spot]\ncloud = 'none'\n[gpu]\nprobe = '{}'\n",
            at("state").display(),
            ingest.local_address(),
            at("authority/ca.pem").display(),
            bins.probe.display(),
        );
        std::fs::write(at("agent.toml"), config)?;
        let (tell, heard) = mpsc::unbounded_channel();
        supervisor.spawn("listen", Kind::Passing, |token| listen(ingest, core, tell, token));
        let env = gpus.environment();
        Ok(Self { dir, gpus, heard, supervisor, agent: None, bins, env })
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Gives the agent something to run: the stand-in engine.
    pub(crate) fn with_engine(&self, env: &[(&str, &str)]) -> anyhow::Result<()> {
        let options = SoloOptions::standin(self.dir.path())?;
        let env: serde_json::Map<String, Value> =
            env.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let assignment = json!([1, {
            "deployment": "bench",
            "model": { "name": "tiny", "path": options.model },
            "engine": { "program": options.engine, "args": [], "env": env },
        }]);
        Ok(std::fs::write(self.state().join("assignment.json"), assignment.to_string())?)
    }

    /// One more setting of the agent.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// Starts the agent; returns the moment before its process was made.
    pub(crate) fn start(&mut self) -> anyhow::Result<Instant> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("agent.out"))?;
        let mut command = Command::new(&self.bins.agent);
        command.arg("run").arg("--config").arg(self.dir.path().join("agent.toml"));
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.env("RIG", self.dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let began = Instant::now();
        self.agent = Some(command.spawn().context("start cic-agent")?);
        Ok(began)
    }

    /// SIGKILL, and what is left of it.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    pub(crate) fn agent_pid(&self) -> anyhow::Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.id())
    }

    /// The agent's child that reads the GPUs.
    pub(crate) fn probe_pid(&self) -> Option<u32> {
        let agent = self.agent_pid().ok()?;
        let is_probe = |pid: u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == "cic-gpu-probe")
        };
        Process::all().ok()?.into_iter().find(|p| p.parent == agent && is_probe(p.pid)).map(|p| p.pid)
    }

    /// The next thing heard that `find` finds something in, with its moment.
    pub(crate) async fn hear<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut find: impl FnMut(Heard) -> Option<T>,
    ) -> anyhow::Result<(Instant, T)> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            match tokio::time::timeout_at(deadline, self.heard.recv()).await {
                Ok(Some((at, heard))) => {
                    if let Some(found) = find(heard) {
                        return Ok((at, found));
                    }
                }
                Ok(None) => bail!("the controller's port ended"),
                Err(_) => bail!("no {what} within {within:?}:\n{}", self.log()),
            }
        }
    }

    /// Forgets what was heard so far.
    pub(crate) fn forget(&mut self) {
        while self.heard.try_recv().is_ok() {}
    }

    pub(crate) fn report(&self) -> anyhow::Result<Value> {
        let answer = fleet_tests::process::request(
            &self.address("metrics")?,
            "GET",
            "/healthz",
            None,
            Duration::from_secs(5),
        )?;
        answer.json()
    }

    /// Waits until the agent has a sample of all eight GPUs.
    pub(crate) async fn wait_for_gpus(&self, within: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let report = self.report().unwrap_or_default();
            if report["gpu"]["seen"]["gpus"].as_array().is_some_and(|gpus| gpus.len() == 8) {
                return Ok(());
            }
            ensure!(began.elapsed() < within, "no GPUs in {report:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn address(&self, port: &str) -> anyhow::Result<String> {
        let ports: Value = serde_json::from_slice(&std::fs::read(self.state().join("ports.json"))?)?;
        let number = ports[port].as_u64().filter(|number| *number > 0).context("no such port")?;
        Ok(format!("127.0.0.1:{number}"))
    }

    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("agent.out")).unwrap_or_default();
        text.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let tag = self.dir.path().display().to_string();
        let _ = self.kill();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            let all = Process::all().unwrap_or_default();
            let is_tagged = |process: &Process| {
                let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
                String::from_utf8_lossy(&environment).contains(&tag)
            };
            let left = cic_common::process::family(&all, is_tagged);
            if left.is_empty() {
                break;
            }
            for process in left {
                let _ = kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20)); // bounded wait: 20 s
        }
        self.supervisor.token().cancel();
    }
}

async fn listen(
    ingest: Ingest,
    mut core: mpsc::Receiver<Event>,
    tell: mpsc::UnboundedSender<(Instant, Heard)>,
    token: tokio_util::sync::CancellationToken,
) -> cic_common::supervise::TaskResult {
    loop {
        // Cancel safe: a queue loses nothing.
        let event = tokio::select! {
            () = token.cancelled() => return Ok(()),
            event = core.recv() => event.ok_or("the port ended")?,
        };
        let at = Instant::now();
        match event {
            Event::Connected(hello) => {
                let message = Message::Welcome { term: Term(1), assignment: None, predecessors: Vec::new() };
                ingest.send(&hello.node, message);
                let _ = tell.send((at, Heard::Hello));
            }
            Event::Heartbeats(_) => {
                let _ = tell.send((at, Heard::Heartbeat));
            }
            Event::Told { event, .. } => {
                let _ = tell.send((at, Heard::Told(event)));
            }
            _ => {}
        }
    }
}

/// USER_HZ of Linux, whatever the kernel's own clock.
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// A process at one moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) rss_bytes: u64,
    /// Time on a core since its start, over all threads.
    pub(crate) cpu: Duration,
    pub(crate) file_count: usize,
}

impl Usage {
    /// From `/proc`: `VmRSS`, and the user and system time of all threads, ended ones included, to 10 ms.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let rss: u64 = rss.context("no VmRSS")?.trim().parse()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
        // utime and stime, the 14th and 15th of proc_pid_stat(5); the state after the name is the 3rd.
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        let cpu = Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        let file_count = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { rss_bytes: rss << 10, cpu, file_count })
    }

    /// Of both together; memory that they share counts twice.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            rss_bytes: self.rss_bytes + other.rss_bytes,
            cpu: self.cpu + other.cpu,
            file_count: self.file_count + other.file_count,
        }
    }
}
