//! A fleet run by the real `cic dev`, taken down at the end whatever happened.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::http::request;
use super::view::View;

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// A folder with the agent and its probe as they are shipped, for benchmarks that measure an agent by itself.
const SHIPPED_VARIABLE: &str = "CIC_BENCH_SHIPPED";

/// From [`Fault::Notice`] to the loss of the node: what Azure and Google Cloud leave, the shortest but RunPod's.
pub const NOTICE_WITHIN: Duration = Duration::from_secs(30);

/// Each engine computes in one thread that sleeps when it waits. By default each takes both cores and spins, so that one that
/// starts beside another that works takes minutes.
pub const ONE_THREAD: [(&str, &str); 3] =
    [("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind")];

/// How `cic dev` is run.
#[derive(Debug, Clone)]
pub struct Options {
    pub replicas: u16,
    /// `standin`, or `vllm` from the repository's `.engine`.
    pub engine: &'static str,
    /// More arguments for every engine.
    pub engine_args: Vec<String>,
    /// `CIC_…` variables for the controller, such as `CIC_TIMING_PARTITION_GRACE_MS`.
    pub env: Vec<(String, String)>,
    /// Whose machines the nodes play.
    pub cloud: &'static str,
    /// More arguments for `cic dev`.
    pub more: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replicas: 2,
            engine: "standin",
            engine_args: Vec::new(),
            env: Vec::new(),
            cloud: "aws",
            more: Vec::new(),
        }
    }
}

/// What `cic fault` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    Freeze,
    KillAgent,
    Partition,
    Mend,
    Notice,
    Lift,
}

impl Fault {
    fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::KillAgent => "kill-agent",
            Self::Partition => "partition",
            Self::Mend => "mend",
            Self::Notice => "notice",
            Self::Lift => "lift",
        }
    }
}

/// A running fleet.
#[derive(Debug)]
pub struct DevFleet {
    child: Child,
    dir: tempfile::TempDir,
    pub api: String,
    pub edge: String,
}

impl DevFleet {
    /// Starts a fleet and waits until its API answers.
    ///
    /// # Errors
    /// When it does not come up; the error holds what it printed.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let output = File::create(dir.path().join("dev.out"))?;
        let fleet_dir = dir.path().join("fleet");
        let mut command = Command::new(binary("cic")?);
        command
            .args(["dev", "--engine", options.engine, "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0"])
            .args(["--replicas", &options.replicas.to_string(), "--cloud", options.cloud])
            .args(options.engine_args.iter().map(|arg| format!("--engine-arg={arg}")))
            .args(&options.more)
            .arg("--engine-dir")
            .arg(repository().join(".engine"))
            .arg("--dir")
            .arg(&fleet_dir)
            .envs(options.env.iter().map(|(key, value)| (key, value)))
            .env("TMPDIR", dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn().context("start cic dev")?;
        let mut fleet = Self { child, dir, api: String::new(), edge: String::new() };
        let record = fleet.wait_for("dev.json", Duration::from_secs(30), |fleet| {
            let text = std::fs::read(fleet.path().join("dev.json")).ok()?;
            serde_json::from_slice::<Value>(&text).ok()
        })?;
        fleet.api = text_of(&record, "api")?;
        fleet.edge = text_of(&record, "edge")?;
        fleet.wait_for("the API", Duration::from_secs(30), |fleet| fleet.view().ok())?;
        Ok(fleet)
    }

    /// The fleet's directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fleet")
    }

    /// What the controller says now.
    ///
    /// # Errors
    /// When the API does not answer, or not with a view.
    pub fn view(&self) -> anyhow::Result<View> {
        View::read(&self.get("/v1/view")?)
    }

    /// Waits until `count` replicas serve and are routed.
    ///
    /// # Errors
    /// When they do not within `within`.
    pub fn wait_serving(&mut self, count: usize, within: Duration) -> anyhow::Result<Vec<String>> {
        self.wait_for("serving replicas", within, |fleet| {
            Some(fleet.view().ok()?.serving()).filter(|serving| serving.len() >= count)
        })
    }

    /// Runs `cic fault NODE KIND`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn fault(&self, node: &str, fault: Fault) -> anyhow::Result<()> {
        let within = format!("{}s", NOTICE_WITHIN.as_secs());
        let more: &[&str] = if fault == Fault::Notice { &["--in", &within] } else { &[] };
        self.run_fault(node, fault, more)
    }

    /// Runs `cic fault NODE notice --cloud CLOUD --in WITHIN`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn give_notice(&self, node: &str, cloud: &str, within: Duration) -> anyhow::Result<()> {
        let within = format!("{}ms", within.as_millis());
        self.run_fault(node, Fault::Notice, &["--cloud", cloud, "--in", &within])
    }

    fn run_fault(&self, node: &str, fault: Fault, more: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(binary("cic")?);
        command.args(["fault", node, fault.as_str(), "--dir"]).arg(self.path()).args(more);
        let output = command.env("TMPDIR", self.dir.path()).output()?;
        if output.status.success() {
            return Ok(());
        }
        bail!("cic fault {node} {}: {}", fault.as_str(), String::from_utf8_lossy(&output.stderr))
    }

    /// Runs `cic drain NODE`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn drain(&self, node: &str) -> anyhow::Result<()> {
        let mut command = Command::new(binary("cic")?);
        let output = command.args(["--api", &self.api, "drain", node]).output()?;
        ensure!(output.status.success(), "cic drain {node}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// `host:port` of the edge of one replica.
    ///
    /// # Errors
    /// When its agent has not written it.
    pub fn edge_of(&self, node: &str) -> anyhow::Result<String> {
        let home = self.path().join("nodes").join(node);
        let ports: Value = serde_json::from_slice(&std::fs::read(home.join("state/ports.json"))?)?;
        Ok(format!("127.0.0.1:{}", ports["edge"].as_u64().context("no edge")?))
    }

    /// Events of the log so far, oldest first.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn events(&self) -> anyhow::Result<Vec<Value>> {
        let answer = self.get("/v1/events?limit=1000")?;
        answer["events"].as_array().cloned().context("the answer has no events")
    }

    /// The controller's process.
    ///
    /// # Errors
    /// When none is found.
    pub fn controller_pid(&self) -> anyhow::Result<i32> {
        find_pids(&["cic-controller", "serve"], &self.path())
            .into_iter()
            .next()
            .context("no controller process")
    }

    /// Processes that still carry this fleet's directory in their command line or environment.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        find_pids(&[], &self.path())
    }

    /// Stops it as Ctrl-C would and returns what it printed.
    ///
    /// # Errors
    /// When it does not end in 30 s, or leaves a process behind.
    pub fn stop(mut self) -> anyhow::Result<String> {
        self.interrupt();
        let status = self.wait_end(Duration::from_secs(30))?;
        let left = self.processes();
        if !left.is_empty() || !status.success() {
            bail!("ended with {status} and left {left:?} running:\n{}", self.output());
        }
        Ok(self.output())
    }

    /// Its end is what is waited for here, and what ends every other wait.
    fn wait_end(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > within {
                bail!("cic dev did not end within {within:?}:\n{}", self.output());
            }
            std::thread::sleep(LOOK); // bounded wait: by `within`
        }
    }

    /// What `cic dev` printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("dev.out")).unwrap_or_default()
    }

    /// Looks again and again until `look` finds something; a look that failed found nothing yet.
    ///
    /// # Errors
    /// When it finds nothing within `within`, or `cic dev` ended.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if began.elapsed() > within {
                bail!("no {what} within {within:?}; {:#?}\n{}", self.view(), self.output());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                bail!("cic dev ended with {status} while waiting for {what}:\n{}", self.output());
            }
            std::thread::sleep(LOOK); // bounded wait: by `within`
        }
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = request(&self.api, "GET", path, None, Duration::from_secs(5))?;
        ensure!(answer.status == 200, "{path}: status {}: {}", answer.status, answer.body);
        answer.json()
    }

    fn interrupt(&self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
    }
}

impl Drop for DevFleet {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) && self.processes().is_empty() {
            return;
        }
        self.interrupt();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(15) && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK); // bounded wait: 15 s
        }
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary of this build, built beforehand.
///
/// # Errors
/// When it was not. One from `$PATH` would test some other build.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("find the running program")?;
    let beside = this.ancestors().map(|dir| dir.join(name)).find(|path| path.is_file());
    beside.with_context(|| {
        format!("no {name} beside {}: run `cargo build --workspace --bins` first", this.display())
    })
}

/// As [`binary`], but as it is shipped where a benchmark says so.
///
/// # Errors
/// When there is none.
pub fn shipped(name: &str) -> anyhow::Result<PathBuf> {
    let Some(directory) = std::env::var_os(SHIPPED_VARIABLE) else { return binary(name) };
    let path = Path::new(&directory).join(name);
    ensure!(path.is_file(), "no {}: `cargo xtask bench NAME --release` builds it", path.display());
    Ok(path)
}

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

fn text_of(record: &Value, key: &str) -> anyhow::Result<String> {
    record[key].as_str().map(str::to_owned).with_context(|| format!("dev.json has no {key}"))
}

/// Living processes whose command line holds every word, and which name `dir` there or in their environment.
pub(super) fn find_pids(words: &[&str], dir: &Path) -> Vec<i32> {
    let dir = dir.to_string_lossy().into_owned();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id().cast_signed();
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
            let environ = String::from_utf8_lossy(&read("environ")).into_owned();
            !command.is_empty()
                && words.iter().all(|word| command.contains(word))
                && (command.contains(&dir) || environ.contains(&dir))
        })
        .collect()
}
