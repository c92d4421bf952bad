//! A driver that does what a script says, and probes that load it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cic_agent::core::Event;
use cic_agent::core::gpu::GpuEvent;
use cic_agent::source::gpu::{GpuRequests, GpuSpans, GpuSpec, watch};
use cic_common::gpu::{GpuSample, ProbeMessage, ProbeRequest};
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use cic_common::wire::frame::{FrameError, FrameReader, FrameWriter};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Far longer than anything here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// So long that it never comes.
pub(crate) const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Names the test's directory in the environment of its probes.
const TAG: &str = "STAND";

/// A node with a driver. What a test started there dies with it, also when the test fails.
pub(crate) struct Stand {
    dir: tempfile::TempDir,
}

impl Stand {
    /// A driver of today.
    pub(crate) fn new() -> Self {
        Self::with("libnvml_mock.so")
    }

    /// One that lacks the newer symbols.
    pub(crate) fn of_an_old_driver() -> Self {
        Self::with("libnvml_old.so")
    }

    /// A device and no driver library.
    pub(crate) fn without_library() -> Self {
        let stand = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(stand.path("root/dev")).unwrap();
        std::fs::write(stand.path("root/dev/nvidia0"), "").unwrap();
        stand.script(json!({}));
        stand
    }

    fn with(library: &str) -> Self {
        let stand = Self::without_library();
        stand.install(library);
        stand
    }

    pub(crate) fn install(&self, library: &str) {
        let this = std::env::current_exe().unwrap();
        let built = this.parent().and_then(Path::parent).unwrap().join(library);
        assert!(built.exists(), "no {}: run `cargo build -p nvml-mock -p nvml-old`", built.display());
        std::os::unix::fs::symlink(built, self.library()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn library(&self) -> PathBuf {
        self.path("libnvidia-ml.so.1")
    }

    /// What the driver does from now on; keys as in `tests/nvml/script.rs`.
    pub(crate) fn script(&self, mut script: Value) {
        script["log"] = json!(self.path("calls"));
        std::fs::write(self.path("script.tmp"), script.to_string()).unwrap();
        std::fs::rename(self.path("script.tmp"), self.path("script.json")).unwrap();
    }

    /// Every call into the driver so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn call_count(&self, call: &str) -> usize {
        self.calls().iter().filter(|other| *other == call).count()
    }

    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![
            ("CIC_NVML_LIBRARY".into(), self.library().into()),
            ("CIC_NVML_SCRIPT".into(), self.path("script.json").into()),
            (TAG.into(), self.dir.path().into()),
        ]
    }

    /// Processes of this stand that live.
    pub(crate) fn probes(&self) -> Vec<i32> {
        let tag = format!("{TAG}={}", self.dir.path().display()).into_bytes();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let has_tag = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == tag)
        };
        pids.filter(has_tag).filter(|pid| is_alive(*pid)).collect()
    }

    /// A probe by itself.
    pub(crate) fn probe(&self, args: &[&str]) -> Spoken {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cic-gpu-probe"))
            .args(args)
            .envs(self.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let says = FrameReader::new(child.stdout.take().unwrap());
        let hears = child.stdin.take().map(FrameWriter::new);
        Spoken { child, says, hears }
    }

    /// With spans so short that a test need not wait, and long beside what a loaded machine takes for a call.
    pub(crate) fn spec(&self) -> GpuSpec {
        let ms = Duration::from_millis;
        let mut spec =
            GpuSpec::new(self.dir.path(), Some(env!("CARGO_BIN_EXE_cic-gpu-probe").into())).unwrap();
        spec.root = self.path("root");
        spec.environment = self.environment();
        spec.spans = GpuSpans {
            cheap_every: ms(200),
            full_every: ms(1_000),
            call_deadline: ms(500),
            stuck_after: ms(1_500),
            retell_every: ms(200),
            kill_after: NEVER,
            restart_first: ms(50),
            restart_max: ms(400),
            retry_every: ms(300),
            ..GpuSpans::default()
        };
        spec
    }

    pub(crate) fn watch(&self, spec: GpuSpec) -> Watched {
        let tasks = Supervisor::new();
        let (to, events) = mpsc::channel(64);
        let requests = GpuRequests::default();
        let (sender, wishes) = (to.clone(), requests.clone());
        tasks.spawn("gpu", Kind::Vital, |token| watch(spec, Clock::start(), sender, wishes, token));
        Watched { tasks, to, events, requests }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        for pid in self.probes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub(crate) async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A probe by itself, and what it says.
pub(crate) struct Spoken {
    pub(crate) child: Child,
    says: FrameReader<ChildStdout>,
    hears: Option<FrameWriter<ChildStdin>>,
}

/// All GPUs at one moment.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) is_full: bool,
    pub(crate) device_count: u32,
    pub(crate) samples: Vec<GpuSample>,
    pub(crate) lost: Vec<String>,
}

impl Spoken {
    pub(crate) async fn next(&mut self) -> Result<ProbeMessage, FrameError> {
        timeout(PATIENCE, self.says.next()).await.expect("a word in time")
    }

    /// The next message that `pick` takes.
    pub(crate) async fn next_of<T>(&mut self, mut pick: impl FnMut(ProbeMessage) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.next().await.unwrap()) {
                return picked;
            }
        }
    }

    pub(crate) async fn round(&mut self) -> Round {
        self.next_of(|message| match message {
            ProbeMessage::Sampled { is_full, device_count, samples, lost } => {
                Some(Round { is_full, device_count, samples, lost })
            }
            _ => None,
        })
        .await
    }

    pub(crate) async fn round_until(&mut self, mut is_it: impl FnMut(&Round) -> bool) -> Round {
        loop {
            let round = self.round().await;
            if is_it(&round) {
                return round;
            }
        }
    }

    pub(crate) async fn ask(&mut self) {
        self.hears.as_mut().unwrap().write(&ProbeRequest::Sample).await.unwrap();
    }

    pub(crate) fn close_stdin(&mut self) {
        self.hears = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
    }

    /// Everything it still says, and how it ended.
    pub(crate) async fn end(mut self) -> (Vec<ProbeMessage>, ExitStatus) {
        let mut said = Vec::new();
        while let Ok(message) = self.next().await {
            said.push(message);
        }
        (said, timeout(PATIENCE, self.child.wait()).await.expect("an end in time").unwrap())
    }
}

/// The agent's watch over a stand.
pub(crate) struct Watched {
    tasks: Supervisor,
    pub(crate) to: mpsc::Sender<Event>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) requests: GpuRequests,
}

impl Watched {
    /// The next event that `pick` takes.
    pub(crate) async fn next_of<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(picked) = pick(self.events.recv().await.expect("a watcher")) {
                    return picked;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("an event in time")
    }

    pub(crate) async fn sampled(&mut self) -> Vec<GpuSample> {
        self.next_of(|event| match event {
            Event::Gpu(GpuEvent::Sampled { samples, .. }) => Some(samples),
            _ => None,
        })
        .await
    }

    pub(crate) async fn blind(&mut self) -> String {
        self.next_of(|event| match event {
            Event::Gpu(GpuEvent::Blind { reason }) => Some(reason),
            _ => None,
        })
        .await
    }

    pub(crate) async fn wedged(&mut self) -> (String, u64) {
        self.next_of(|event| match event {
            Event::Gpu(GpuEvent::Wedged { call, for_ms }) => Some((call, for_ms)),
            _ => None,
        })
        .await
    }

    /// As the end of the agent.
    pub(crate) async fn stop(mut self) {
        self.events.close();
        self.tasks.stop(Duration::from_secs(4)).await.unwrap();
    }
}
