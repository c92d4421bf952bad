//! One agent by itself, with an engine and without any controller, killed with everything of it at the end.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cic_common::process::{Process, family};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::dev_fleet::{binary, repository, shipped};
use super::http::request;
use super::streams::Streams;

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// An adopted engine serves again within a second.
const SERVES_AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// The agent answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How the agent and its engine are set up.
#[derive(Debug, Clone)]
pub struct SoloOptions {
    pub engine: PathBuf,
    pub model: PathBuf,
    /// Where the model is to be had when it is not there.
    pub sources: Vec<String>,
    pub args: Vec<String>,
    pub engine_env: Vec<(String, String)>,
    /// `CIC_…` settings of the agent, and anything else for its environment.
    pub env: Vec<(String, String)>,
}

impl SoloOptions {
    /// The stand-in engine with a model directory that holds no weights to speak of, below `place`.
    ///
    /// # Errors
    /// When the stand-in was not built or `place` cannot be written.
    pub fn standin(place: &Path) -> anyhow::Result<Self> {
        let model = place.join("model");
        std::fs::create_dir_all(&model)?;
        std::fs::write(model.join("config.json"), r#"{"max_position_embeddings": 4096}"#)?;
        std::fs::write(model.join("model.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ")?;
        let engine = binary("cic-standin-engine")?;
        let (sources, args) = (Vec::new(), Vec::new());
        Ok(Self { engine, model, sources, args, engine_env: Vec::new(), env: Vec::new() })
    }

    /// The real vLLM of `.engine`; `None` where it is not installed.
    ///
    /// # Panics
    /// When it is not installed and CIC_REQUIRE_ENGINE=1 says that it has to be.
    #[must_use]
    pub fn real() -> Option<Self> {
        let root = repository().join(".engine");
        if !root.join("stamp").exists() {
            let is_required = std::env::var("CIC_REQUIRE_ENGINE").is_ok_and(|value| value == "1");
            assert!(!is_required, "CIC_REQUIRE_ENGINE=1, but there is no .engine/: run `cargo xtask engine`");
            eprintln!("skipped: no .engine/ here; `cargo xtask engine` installs the real engine");
            return None;
        }
        let env = [
            ("HF_HUB_OFFLINE", "1"),
            ("TRANSFORMERS_OFFLINE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("DO_NOT_TRACK", "1"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ];
        Some(Self {
            engine: root.join("venv/bin/vllm"),
            model: root.join("tiny-llama"),
            sources: Vec::new(),
            args: vec!["--enforce-eager".to_owned()],
            engine_env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            env: Vec::new(),
        })
    }

    /// One more setting for the agent.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    /// One more variable for the engine.
    #[must_use]
    pub fn with_engine(mut self, key: &str, value: impl Into<String>) -> Self {
        self.engine_env.push((key.to_owned(), value.into()));
        self
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Solo {
    dir: tempfile::TempDir,
    options: SoloOptions,
    child: Child,
}

impl Solo {
    /// Starts an agent that has been told before what to run.
    ///
    /// # Errors
    /// When the agent's program was not built, or the directory cannot be written.
    pub fn start(options: SoloOptions) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let state = dir.path().join("state");
        std::fs::create_dir_all(&state)?;
        let env: serde_json::Map<String, Value> =
            options.engine_env.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let assignment = json!([1, {
            "deployment": "solo",
            "model": { "name": "tiny", "path": options.model, "sources": options.sources },
            "engine": { "program": options.engine, "args": options.args, "env": env },
        }]);
        std::fs::write(state.join("assignment.json"), assignment.to_string())?;
        let config = format!(
            "[node]\nid = 'solo'\nstate_dir = '{}'\n[edge]\nlisten = '127.0.0.1:0'\n[metrics]\nlisten = '127.0.0.1:0'\n\
             [engine]\nhost_port = 0\n[spot]\ncloud = 'none'\n",
            state.display()
        );
        std::fs::write(dir.path().join("agent.toml"), config)?;
        let child = spawn(dir.path(), &options)?;
        Ok(Self { dir, options, child })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        self.child.id()
    }

    /// What the agent says of itself now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn report(&self) -> anyhow::Result<Value> {
        request(&self.address("metrics")?, "GET", "/healthz", None, ANSWER_WITHIN)?.json()
    }

    /// `host:port` of one of its ports: `edge` or `metrics`.
    ///
    /// # Errors
    /// When this run has not written it yet.
    pub fn address(&self, port: &str) -> anyhow::Result<String> {
        let text = std::fs::read(self.state().join("ports.json"))?;
        let ports: Value = serde_json::from_slice(&text)?;
        let number = ports[port].as_u64().filter(|number| *number > 0).context("no such port")?;
        Ok(format!("127.0.0.1:{number}"))
    }

    /// The engine's main process.
    ///
    /// # Errors
    /// When none runs, or the agent does not answer.
    pub fn engine_pid(&self) -> anyhow::Result<u32> {
        let pid = self.report()?["engine"]["pid"].as_u64().context("no engine runs")?;
        Ok(u32::try_from(pid)?)
    }

    /// The port the engine itself listens on.
    ///
    /// # Errors
    /// When none is recorded.
    pub fn engine_address(&self) -> anyhow::Result<String> {
        let record: Value = serde_json::from_slice(&std::fs::read(self.state().join("engine.json"))?)?;
        Ok(format!("127.0.0.1:{}", record["port"].as_u64().context("no port")?))
    }

    /// Waits until `look` finds something in a report.
    ///
    /// # Errors
    /// When it finds nothing within `within`; the error holds the last report and the end of the agent's log.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        let mut last = None;
        while began.elapsed() < within {
            if let Ok(report) = self.report() {
                if let Some(found) = look(&report) {
                    return Ok(found);
                }
                last = Some(report);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                bail!("the agent ended with {status} while waiting for {what}:\n{}", self.log());
            }
            std::thread::sleep(LOOK); // bounded wait: by `within`
        }
        bail!("no {what} within {within:?}; last report {last:#?}\n{}", self.log())
    }

    /// Waits until it serves, and returns the engine's pid.
    ///
    /// # Errors
    /// When it does not within `within`.
    pub fn wait_serving(&mut self, within: Duration) -> anyhow::Result<u32> {
        self.wait_for("serving engine", within, |report| {
            let pid = report["engine"]["pid"].as_u64().filter(|_| report["phase"] == "serving")?;
            u32::try_from(pid).ok()
        })
    }

    /// Sends a signal to the agent and waits for its end, if the signal ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end_agent(&mut self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(LOOK); // bounded wait: 60 s
        }
        bail!("the agent did not end by {signal}")
    }

    /// Starts the agent again, as init would.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        // The ports of the run before are not this one's.
        let _ = std::fs::remove_file(self.state().join("ports.json"));
        self.child = spawn(self.dir.path(), &self.options)?;
        Ok(())
    }

    /// Runs a one-shot command of the agent's program on the same configuration.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<std::process::Output> {
        let config = self.dir.path().join("agent.toml");
        let mut command = Command::new(binary("cic-agent")?);
        command.args(words).arg("--config").arg(config).stdin(Stdio::null());
        command
            .envs(self.options.env.iter().map(|(key, value)| (key, value)))
            .output()
            .context("run cic-agent")
    }

    /// Kills the agent `kills` times under `clients` streams of `tokens` tokens through its edge, and starts it again each
    /// time. Every second life is let to finish its streams first. Returns how many were read to their end.
    ///
    /// # Errors
    /// When the engine is another afterwards, or a stream breaks that no kill was in the way of.
    pub fn kill_under_streams(&mut self, kills: u32, clients: usize, tokens: u32) -> anyhow::Result<u64> {
        let pid = self.engine_pid()?;
        let mut whole = 0;
        for number in 1..=kills {
            let streams = Streams::start(&self.address("edge")?, "tiny", clients, tokens);
            let in_flight = |report: &Value| report["edge"]["in_flight"].as_u64().filter(|count| *count > 0);
            self.wait_for("a stream", SERVES_AGAIN_WITHIN, in_flight)?;
            if number % 2 == 0 {
                let seen = streams.stop();
                ensure!(seen.refused.is_empty() && seen.broken.is_empty(), "life {number}: {seen:?}");
                ensure!(seen.whole > 0, "life {number}: {seen:?}");
                whole += seen.whole;
                self.end_agent(Signal::SIGKILL)?;
            } else {
                self.end_agent(Signal::SIGKILL)?;
                // Those in its own edge go with it, as they must: it carried them.
                let _ = streams.stop();
            }
            self.start_agent()?;
            let now = self.wait_serving(SERVES_AGAIN_WITHIN)?;
            ensure!(now == pid, "after kill {number} the engine is {now}, and was {pid}");
            ensure!(self.report()?["engine"]["is_adopted"] == true, "after kill {number}");
        }
        Ok(whole)
    }

    /// Everything that belongs to this agent, itself included: by its directory in the environment, and their kin.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let tag = self.dir.path().display().to_string();
        let all = Process::all().unwrap_or_default();
        let is_tagged = |process: &Process| {
            let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&tag)
        };
        family(&all, is_tagged).iter().map(|process| process.pid).collect()
    }

    /// What the agent logged, its end.
    #[must_use]
    pub fn log(&self) -> String {
        const CHARS: usize = 6000;
        let text = std::fs::read_to_string(self.dir.path().join("agent.out")).unwrap_or_default();
        let skipped = text.chars().count().saturating_sub(CHARS);
        text.chars().skip(skipped).collect()
    }

    /// Records of how engines ended, oldest first.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn crashes(&self) -> anyhow::Result<Vec<Value>> {
        let Ok(entries) = std::fs::read_dir(self.state().join("crashes")) else { return Ok(Vec::new()) };
        let paths: BTreeSet<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        paths.iter().map(|path| Ok(serde_json::from_slice(&std::fs::read(path)?)?)).collect()
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        let began = Instant::now();
        // Again and again: one may have forked between the look and the signal.
        while began.elapsed() < Duration::from_secs(20) {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            let _ = self.child.try_wait();
            std::thread::sleep(LOOK); // bounded wait: 20 s
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, options: &SoloOptions) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("agent.out"))?;
    Command::new(shipped("cic-agent")?)
        .arg("run")
        .arg("--config")
        .arg(dir.join("agent.toml"))
        .envs(options.env.iter().map(|(key, value)| (key, value)))
        .env("CIC_ENGINE_FLAGS_DIR", dir)
        .env("SOLO_DIR", dir)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start cic-agent")
}
