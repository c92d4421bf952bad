//! Two controllers on one PostgreSQL, a fleet of provider `local` with stand-in engines, and a gateway that users ask.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cic_common::ports::lasting_port;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::cut_line::CutLine;
use super::dev_fleet::{binary, find_pids};
use super::http::{Answer, request};
use super::postgres::Postgres;

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// An API answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What the fleet's only deployment is called, and its model.
const NAME: &str = "tiny";

/// The fleet. Everything of it ends with it.
#[derive(Debug)]
pub struct Duo {
    dir: tempfile::TempDir,
    pub controllers: [OneOfTwo; 2],
    gateway: Option<Child>,
    /// Where users ask.
    pub edge: String,
    pub postgres: Postgres,
}

/// One of the controllers.
#[derive(Debug)]
pub struct OneOfTwo {
    pub name: &'static str,
    pub api: String,
    /// Its own line to the database.
    pub line: CutLine,
    quic: String,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Duo {
    /// Starts PostgreSQL, both controllers and `replicas` nodes, and waits until they serve through the gateway. `None`, with
    /// a word, where there is no PostgreSQL.
    ///
    /// # Errors
    /// When something does not come up; the error says what.
    pub fn start(replicas: u16) -> anyhow::Result<Option<Self>> {
        let Some(postgres) = Postgres::start() else { return Ok(None) };
        postgres.database("cic")?;
        let dir = tempfile::tempdir()?;
        let programs = ["cic-controller", "cic-agent", "cic-standin-engine"].map(binary);
        let [controller, agent, engine] = programs;
        let (controller, agent, engine) = (controller?, agent?, engine?);
        let model = dir.path().join("model");
        fs::create_dir_all(&model)?;
        fs::write(model.join("config.json"), r#"{"max_position_embeddings": 4096}"#)?;
        fs::write(model.join("model.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ")?;
        let controllers =
            [OneOfTwo::lay(dir.path(), "c1", &postgres)?, OneOfTwo::lay(dir.path(), "c2", &postgres)?];
        let quics = controllers.each_ref().map(|one| one.quic.clone());
        for (one, other) in controllers.iter().zip(quics.iter().rev()) {
            one.configure(dir.path(), &agent, other, &postgres)?;
        }
        let mut duo = Self { dir, controllers, gateway: None, edge: String::new(), postgres };
        duo.share_authority(&controller)?;
        for index in [0, 1] {
            duo.start_controller(index)?;
        }
        let leader = duo.wait_for("a leader", Duration::from_secs(20), Self::leader)?;
        let wish = json!({
            "model": { "name": NAME, "path": model },
            "engine": { "program": engine },
            "replicas": replicas,
        });
        let answer = duo.controllers[leader].ask("PUT", "/v1/deployments/tiny", Some(&wish.to_string()))?;
        ensure!(answer.status == 200, "deployment: {}: {}", answer.status, answer.body);
        duo.start_gateway(&agent, leader)?;
        duo.wait_for("serving replicas", Duration::from_secs(60), |duo| {
            (duo.serving(leader)? >= usize::from(replicas) && duo.answers()).then_some(())
        })?;
        duo.wait_well()?;
        Ok(Some(duo))
    }

    /// The fleet's directory of VMs.
    #[must_use]
    pub fn fleet(&self) -> PathBuf {
        self.dir.path().join("fleet")
    }

    /// The one whose `/healthz/leader` says 200.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        [0, 1].into_iter().find(|index| self.controllers[*index].leads())
    }

    /// Starts a controller that does not run.
    ///
    /// # Errors
    /// When its program is not there.
    pub fn start_controller(&mut self, index: usize) -> anyhow::Result<()> {
        let one = &mut self.controllers[index];
        let log = File::options().create(true).append(true).open(&one.log)?;
        let mut command = Command::new(binary("cic-controller")?);
        command.args(["serve", "--config"]).arg(&one.config);
        command.env("DUO", self.dir.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        one.child = Some(command.spawn().context("start cic-controller")?);
        Ok(())
    }

    /// Waits until both answer, one of them leads, and the other follows.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_well(&self) -> anyhow::Result<usize> {
        self.wait_for("a leader and a standby", Duration::from_secs(30), |duo| {
            let is_ready = |one: &OneOfTwo| one.status("/healthz/ready") == Some(200);
            let leader = duo.leader()?;
            let is_followed = duo.controllers[1 - leader].role().as_deref() == Some("standby");
            (is_followed && duo.controllers.iter().all(is_ready)).then_some(leader)
        })
    }

    /// All operations as the store has them, oldest first.
    ///
    /// # Errors
    /// When neither controller answers.
    pub fn operations(&self) -> anyhow::Result<Vec<Value>> {
        let answer = self.controllers[self.wait_well()?].ask("GET", "/v1/operations?limit=1000", None)?;
        let mut operations = answer.json()?["operations"].as_array().cloned().context("no operations")?;
        operations.sort_by_key(|operation| operation["id"].as_u64());
        Ok(operations)
    }

    /// Names of the VMs that the provider has.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn machines(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(self.fleet().join("nodes"))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    /// How many replicas serve and are routed, as one of the controllers says.
    #[must_use]
    pub fn serving(&self, index: usize) -> Option<usize> {
        let view = self.controllers[index].ask("GET", "/v1/view", None).ok()?.json().ok()?;
        let serves = |node: &&Value| node["is_routed"] == true && node["report"]["phase"] == "serving";
        Some(view["nodes"].as_array()?.iter().filter(serves).count())
    }

    /// How many nodes one of the controllers believes alive, the gateway among them.
    #[must_use]
    pub fn alive(&self, index: usize) -> Option<usize> {
        let view = self.controllers[index].ask("GET", "/v1/view", None).ok()?.json().ok()?;
        Some(view["nodes"].as_array()?.iter().filter(|node| node["belief"] == "alive").count())
    }

    /// Takes all power from a VM.
    ///
    /// # Errors
    /// When `cic fault` does not.
    pub fn kill_machine(&self, node: &str) -> anyhow::Result<()> {
        let mut command = Command::new(binary("cic")?);
        let output = command.args(["fault", node, "kill", "--dir"]).arg(self.fleet()).output()?;
        ensure!(output.status.success(), "cic fault: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Looks again and again until `look` finds something.
    ///
    /// # Errors
    /// When it finds nothing within `within`; the error holds the ends of the controllers' logs.
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if began.elapsed() > within {
                let logs = self.controllers.each_ref().map(OneOfTwo::last_lines);
                bail!("no {what} within {within:?}\nc1:\n{}\nc2:\n{}", logs[0], logs[1]);
            }
            std::thread::sleep(LOOK); // bounded wait: by `within`
        }
    }

    /// One authority makes both certificates; each controller keeps its own beside it.
    fn share_authority(&self, controller: &Path) -> anyhow::Result<()> {
        let [one, other] = &self.controllers;
        let mut command = Command::new(controller);
        let output = command.args(["init", "--config"]).arg(&one.config).output()?;
        ensure!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
        let [from, to] = [one, other].map(|one| self.dir.path().join(one.name).join("tls"));
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&from)? {
            let path = entry?.path();
            let name = path.file_name().context("a file")?;
            if name != "controller.pem" {
                fs::copy(&path, to.join(name))?;
            }
        }
        Ok(())
    }

    fn start_gateway(&mut self, agent: &Path, leader: usize) -> anyhow::Result<()> {
        let answer =
            self.controllers[leader].ask("POST", "/v1/tokens", Some(r#"{"node":"gateway"}"#))?.json()?;
        let token = answer["token"].as_str().with_context(|| format!("no token in {answer}"))?;
        let home = self.dir.path().join("gateway");
        fs::create_dir_all(home.join("state"))?;
        cic_common::tls::write_secret(&home.join("join-token"), token.as_bytes())?;
        self.edge = format!("127.0.0.1:{}", lasting_port()?);
        let quics = self.controllers.each_ref().map(|one| one.quic.as_str());
        let config = format!(
            "[node]\nid = 'gateway'\nrole = 'gateway'\nzone = 'here'\nstate_dir = '{home}/state'\n\
             [controller]\naddresses = ['{}', '{}']\nca_file = '{}'\njoin_token_file = '{home}/join-token'\n\
             [peer]\nlisten = '127.0.0.1:0'\n[edge]\nlisten = '{}'\n[metrics]\nlisten = '127.0.0.1:0'\n\
             [spot]\ncloud = 'none'\n",
            quics[0],
            quics[1],
            self.dir.path().join("c1/tls/ca.pem").display(),
            self.edge,
            home = home.display(),
        );
        fs::write(home.join("agent.toml"), config)?;
        let log = File::create(home.join("agent.log"))?;
        let mut command = Command::new(agent);
        command.args(["run", "--config"]).arg(home.join("agent.toml"));
        command.env("DUO", self.dir.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.gateway = Some(command.spawn().context("start the gateway")?);
        Ok(())
    }

    /// Whether a request of now is answered by the gateway.
    #[must_use]
    pub fn answers(&self) -> bool {
        let body = json!({ "model": NAME, "prompt": "one two", "max_tokens": 2 }).to_string();
        request(&self.edge, "POST", "/v1/completions", Some(&body), ANSWER_WITHIN)
            .is_ok_and(|answer| answer.status == 200)
    }
}

impl OneOfTwo {
    fn lay(dir: &Path, name: &'static str, postgres: &Postgres) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            api: format!("127.0.0.1:{}", lasting_port()?),
            line: CutLine::lay(postgres.address())?,
            quic: format!("127.0.0.1:{}", lasting_port()?),
            config: dir.join(format!("{name}.toml")),
            log: dir.join(format!("{name}.log")),
            child: None,
        })
    }

    fn configure(
        &self,
        dir: &Path,
        agent: &Path,
        other_quic: &str,
        postgres: &Postgres,
    ) -> anyhow::Result<()> {
        let text = format!(
            "[controller]\nid = '{name}'\nstate_dir = '{root}/{name}'\n[quic]\nlisten = '{quic}'\n\
             [api]\nlisten = '{api}'\n\
             [store]\nurl = 'postgres://cic@{line}/cic?sslmode=disable'\npassword_file = '{password}'\n\
             [local]\ndir = '{root}/fleet'\nagent_program = '{agent}'\ncontroller_address = '{quic}'\n\
             other_controllers = ['{other_quic}']\n",
            name = self.name,
            root = dir.display(),
            quic = self.quic,
            api = self.api,
            line = self.line.address(),
            password = postgres.password_file().display(),
            agent = agent.display(),
        );
        Ok(fs::write(&self.config, text)?)
    }

    /// Asks its API.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<Answer> {
        request(&self.api, method, path, body, ANSWER_WITHIN)
    }

    /// Whether it leads, by its own `/healthz/leader`. One that does not answer leads nobody.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.status("/healthz/leader") == Some(200)
    }

    /// What it says that it is.
    #[must_use]
    pub fn role(&self) -> Option<String> {
        let word =
            request(&self.api, "GET", "/v1/leader", None, Duration::from_millis(500)).ok()?.json().ok()?;
        word["role"].as_str().map(str::to_owned)
    }

    /// The term that it decides under or follows.
    #[must_use]
    pub fn term(&self) -> Option<u64> {
        self.ask("GET", "/v1/leader", None).ok()?.json().ok()?["term"].as_u64()
    }

    fn status(&self, path: &str) -> Option<u16> {
        Some(request(&self.api, "GET", path, None, Duration::from_millis(500)).ok()?.status)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.as_ref().with_context(|| format!("{} does not run", self.name))?.id();
        Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
    }

    /// Waits for its end after a signal that ends it.
    ///
    /// # Errors
    /// When it does not end in 15 s.
    pub fn wait_end(&mut self) -> anyhow::Result<Option<i32>> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if began.elapsed() > Duration::from_secs(15) {
                child.kill()?;
                child.wait()?;
                bail!("{} does not end:\n{}", self.name, self.last_lines());
            }
            std::thread::sleep(LOOK); // bounded wait: 15 s
        }
    }

    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Duo {
    fn drop(&mut self) {
        for child in self.controllers.iter_mut().filter_map(|one| one.child.as_mut()).chain(&mut self.gateway)
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(15) {
            let left = find_pids(&[], self.dir.path());
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(LOOK); // bounded wait: 15 s
        }
    }
}
