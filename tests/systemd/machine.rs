//! A small machine: systemd as init in systemd-nspawn, and a wire to the client.
//!
//! ```text
//! client  ve-cic 10.213.0.1 ---- host0 10.213.0.2  wire.service, cic-agent.service
//! ```

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cic_common::process::Process;
use fleet_tests::process::request;
use serde_json::Value;

use super::{SOON, apart, files};

pub(crate) const AGENT_UNIT: &str = "cic-agent.service";

/// Its address, and the client's: in a network namespace that has no others.
pub(crate) const THERE: &str = "10.213.0.2";
const HERE: &str = "10.213.0.1";

const NAME: &str = "cic";

/// The client's end of the wire, as systemd-nspawn names it.
const LINK: &str = "ve-cic";

/// Ports of the agent, on this machine alone.
const EDGE_PORT: u16 = 8000;
pub(crate) const METRICS_PORT: u16 = 7445;

/// The agent answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// A running machine. What of it is left when it is dropped ends with the test's namespaces.
#[derive(Debug)]
pub(crate) struct Machine {
    place: PathBuf,
    nspawn: Child,
}

/// A process: its number in the machine, and when it was started.
pub(crate) type Engine = (u64, u64);

impl Machine {
    /// `None` in the process that has run the test in another, and, with a word, where there can be no machine.
    ///
    /// # Panics
    /// When the test has failed there.
    pub(crate) fn boot() -> Option<Self> {
        Some(Self::start(apart::place()?).expect("a machine"))
    }

    fn start(place: PathBuf) -> anyhow::Result<Self> {
        let (root, over) = (place.join("root"), place.join("over"));
        files::lay(&root, &over)?;
        let console = File::create(place.join("console"))?;
        let nspawn = Command::new("systemd-nspawn")
            .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no"])
            .args(["--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no"])
            .args(["--network-veth", "--machine", NAME])
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--overlay-ro=/usr:{}:/usr", over.display()))
            // Cgroups of version 2, as on any current machine.
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("start systemd-nspawn")?;
        let mut machine = Self { place, nspawn };
        machine.wait_until("the wire", SOON, |_| ip(&["link", "show", LINK]).is_ok());
        ip(&["address", "add", &format!("{HERE}/30"), "dev", LINK])?;
        ip(&["link", "set", LINK, "up"])?;
        Ok(machine)
    }

    /// `host:port` of the port for users.
    pub(crate) fn edge(&self) -> String {
        format!("{THERE}:{EDGE_PORT}")
    }

    /// The engine that the agent has on record.
    pub(crate) fn engine(&self) -> Option<Engine> {
        let text = fs::read(self.root().join("var/lib/cic/engine.json")).ok()?;
        let record: Value = serde_json::from_slice(&text).ok()?;
        Some((record["pid"].as_u64()?, record["start_ticks"].as_u64()?))
    }

    /// Puts another configuration in place of the agent's, which is returned.
    pub(crate) fn configure(&self, text: &str) -> String {
        let path = self.root().join("etc/cic/agent.toml");
        let before = fs::read_to_string(&path).expect("a configuration");
        fs::write(&path, text).expect("written");
        before
    }

    /// Waits until `look` finds something in a report of the agent, each over a new connection.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> T {
        let address = format!("{THERE}:{METRICS_PORT}");
        let mut found = None;
        self.wait_until(what, within, |_| {
            let answer = request(&address, "GET", "/healthz", None, ANSWER_WITHIN);
            found = answer.and_then(|answer| answer.json()).ok().and_then(|report| look(&report));
            found.is_some()
        });
        found.expect("it was waited for")
    }

    pub(crate) fn wait_until(&mut self, what: &str, within: Duration, mut is_so: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(self.is_on(), "off while waiting for {what}:\n{}", self.told());
            assert!(began.elapsed() < within, "no {what} within {within:?}:\n{}", self.told());
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn wait_off(&mut self, within: Duration) {
        let began = Instant::now();
        while self.is_on() {
            assert!(began.elapsed() < within, "not off within {within:?}:\n{}", self.told());
            std::thread::sleep(LOOK);
        }
    }

    /// Runs systemctl on the machine.
    pub(crate) fn systemctl(&self, words: &[&str]) {
        let output = self.inside("systemctl", words);
        assert!(output.status.success(), "systemctl {words:?}: {output:?}\n{}", self.told());
    }

    /// What its systemd says of the agent's unit.
    pub(crate) fn property(&self, name: &str) -> String {
        let output = self.inside("systemctl", &["show", "--value", "--property", name, AGENT_UNIT]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What it finds wrong with the agent's unit: a key that it does not know is no failure to it, and does nothing.
    pub(crate) fn complaints(&self) -> String {
        let output = self.inside("systemd-analyze", &["verify", "--man=no", AGENT_UNIT]);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Its journal, a line an entry, oldest first.
    pub(crate) fn journal(&self) -> String {
        let output = Command::new("journalctl")
            .args(["--quiet", "--no-pager", "--output=short-monotonic"])
            .arg(format!("--directory={}", self.root().join("var/log/journal").display()))
            .output()
            .expect("journalctl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Everything that it has said so far.
    pub(crate) fn told(&self) -> String {
        let console = fs::read_to_string(self.place.join("console")).unwrap_or_default();
        format!("console:\n{console}\njournal:\n{}", self.journal())
    }

    fn root(&self) -> PathBuf {
        self.place.join("root")
    }

    fn is_on(&mut self) -> bool {
        matches!(self.nspawn.try_wait(), Ok(None))
    }

    /// The pid of its init as it is seen from here.
    fn init(&self) -> Option<u32> {
        let is_init = |process: &&Process| {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            process.parent == self.nspawn.id() && numbers.split_whitespace().next_back() == Some("1")
        };
        Process::all().ok()?.iter().find(is_init).map(|process| process.pid)
    }

    fn inside(&self, program: &str, words: &[&str]) -> Output {
        let init = self.init().expect("it is on").to_string();
        Command::new("nsenter")
            .args(["--target", &init, "--mount", "--uts", "--ipc", "--net", "--pid", "--", program])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output().context("start ip")?;
    ensure!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
