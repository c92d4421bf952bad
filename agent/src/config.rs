//! `/etc/cic/agent.toml`, and `CIC_<SECTION>_<KEY>` over it.

mod edge;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::config::{ConfigMistakes, Key, Kind, Reading, Schema, environment, read};
use cic_common::id::NodeId;
use cic_common::report::Role;
use cic_common::telemetry::{LogFormat, check_filter};
use serde::Deserialize;

pub use self::edge::Edge;
use crate::core::Timing;
use crate::serve::edge::{AdmissionLimits, ScarcitySpec};

mod checkpoint;
mod deadman;
mod model;
mod spot;
mod surge;

pub use checkpoint::Checkpoint;
pub use deadman::Deadman;
pub use model::Model;
pub use spot::Spot;
pub use surge::Surge;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/cic/agent.toml";

/// Longest span a key in seconds or milliseconds may ask for: a day. More is a slip of the unit.
const SPAN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const SCHEMA: Schema = Schema {
    keys: &[
        Key::required("node", "id", Kind::Text),
        Key::optional("node", "role", Kind::Text),
        Key::optional("node", "zone", Kind::Text),
        Key::required("node", "state_dir", Kind::Text),
        Key::optional("node", "launched_by_cic", Kind::Flag),
        Key::optional("controller", "addresses", Kind::TextList),
        Key::optional("controller", "ca_file", Kind::Text),
        Key::optional("controller", "join_token_file", Kind::Text),
        Key::optional("peer", "listen", Kind::Text),
        Key::optional("peer", "advertise", Kind::Text),
        Key::optional("edge", "listen", Kind::Text),
        Key::optional("edge", "continuation", Kind::Flag),
        Key::optional("edge", "in_flight_max", Kind::Integer),
        Key::optional("edge", "queue_max", Kind::Integer),
        Key::optional("edge", "wait_max_s", Kind::Integer),
        Key::optional("surge", "url", Kind::Text),
        Key::optional("surge", "key_file", Kind::Text),
        Key::optional("surge", "models", Kind::TextList),
        Key::optional("surge", "input_microusd_per_million", Kind::Integer),
        Key::optional("surge", "output_microusd_per_million", Kind::Integer),
        Key::optional("surge", "in_flight_max", Kind::Integer),
        Key::optional("surge", "budget_usd_per_hour", Kind::Number),
        Key::optional("surge", "is_for_batch", Kind::Flag),
        Key::optional("edge", "zone_first", Kind::Flag),
        Key::optional("edge", "tls_cert_file", Kind::Text),
        Key::optional("edge", "tls_key_file", Kind::Text),
        Key::optional("edge", "keys_file", Kind::Text),
        Key::optional("edge", "access_log", Kind::Flag),
        Key::optional("edge", "connections_max", Kind::Integer),
        Key::optional("edge", "connections_per_client_max", Kind::Integer),
        Key::optional("edge", "head_within_ms", Kind::Integer),
        Key::optional("edge", "body_within_ms", Kind::Integer),
        Key::optional("edge", "stall_cut_ms", Kind::Integer),
        Key::optional("metrics", "listen", Kind::Text),
        Key::optional("engine", "host_port", Kind::Integer),
        Key::optional("engine", "flags_dir", Kind::Text),
        Key::optional("engine", "failure_window_s", Kind::Integer),
        Key::optional("engine", "start_gate_s", Kind::Integer),
        Key::optional("engine", "stall_suspect_ms", Kind::Integer),
        Key::optional("engine", "stall_kill_ms", Kind::Integer),
        Key::optional("engine", "stop_grace_ms", Kind::Integer),
        Key::optional("engine", "term_mode", Kind::Text),
        Key::optional("model", "verify", Kind::Text),
        Key::optional("model", "share_mib_per_s", Kind::Integer),
        Key::optional("gpu", "probe", Kind::Text),
        Key::optional("gpu", "root", Kind::Text),
        Key::optional("gpu", "kmsg", Kind::Text),
        Key::optional("spot", "cloud", Kind::Text),
        Key::optional("spot", "metadata", Kind::Text),
        Key::optional("spot", "notice_file", Kind::Text),
        Key::optional("spot", "preemption_window_s", Kind::Integer),
        Key::optional("spot", "maintenance_window_s", Kind::Integer),
        Key::optional("spot", "sigterm_is_notice", Kind::Flag),
        Key::optional("spot", "sigterm_window_ms", Kind::Integer),
        Key::optional("spot", "shutdown_window_ms", Kind::Integer),
        Key::optional("checkpoint", "url", Kind::Text),
        Key::optional("checkpoint", "second_url", Kind::Text),
        Key::optional("checkpoint", "every_s", Kind::Integer),
        Key::optional("deadman", "enabled", Kind::Flag),
        Key::optional("deadman", "unconfirmed_s", Kind::Integer),
        Key::optional("deadman", "idle_s", Kind::Integer),
        Key::optional("deadman", "command", Kind::TextList),
        Key::optional("timing", "heartbeat_ms", Kind::Integer),
        Key::optional("timing", "probe_loading_ms", Kind::Integer),
        Key::optional("timing", "probe_serving_ms", Kind::Integer),
        Key::optional("timing", "probe_deadline_ms", Kind::Integer),
        Key::optional("log", "format", Kind::Text),
        Key::optional("log", "filter", Kind::Text),
    ],
};

/// Whether an environment variable of this name lets its owner write to the agent's object stores: that is not the engine's
/// business, nor that of a model's code. An engine's own go into its deployment's `env`.
#[must_use]
pub fn is_credential(variable: &str) -> bool {
    let is_of_stores = ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| variable.starts_with(prefix));
    let is_secret =
        ["KEY", "TOKEN", "SECRET", "CREDENTIAL", "PASSWORD"].iter().any(|word| variable.contains(word));
    is_of_stores && is_secret
}

/// Whether an environment variable of this name changes this program's configuration: not to be inherited by an
/// engine. Others, such as the tags of whoever started the agent, go on to it.
#[must_use]
pub fn is_setting(variable: &str) -> bool {
    SCHEMA.keys.iter().any(|key| {
        let section =
            variable.strip_prefix("CIC_").and_then(|rest| rest.strip_prefix(&key.section.to_uppercase()));
        section.is_some_and(|rest| rest.starts_with('_'))
    })
}

/// An agent's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    pub node: Node,
    pub controller: Controller,
    pub peer: Peer,
    pub edge: Edge,
    pub surge: Surge,
    pub metrics: Metrics,
    pub engine: Engine,
    pub model: Model,
    pub gpu: Gpu,
    pub spot: Spot,
    pub checkpoint: Checkpoint,
    pub deadman: Deadman,
    #[serde(rename = "timing")]
    pub pace: Pace,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Node {
    pub id: NodeId,
    #[serde(default = "replica")]
    pub role: Role,
    pub zone: Option<String>,
    pub state_dir: PathBuf,
    /// Its VM was launched by cic, which gives it back too.
    #[serde(default)]
    pub launched_by_cic: bool,
}

/// Without addresses the agent serves by what it remembers and tells nobody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Controller {
    /// `host:port` of every controller.
    #[serde(default)]
    pub addresses: Vec<String>,
    pub ca_file: Option<PathBuf>,
    pub join_token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Peer {
    #[serde(default = "peer_listen")]
    pub listen: SocketAddr,
    /// `host:port` others reach the peer port by; the port may be 0 for the one that was bound.
    pub advertise: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metrics {
    #[serde(default = "metrics_listen")]
    pub listen: SocketAddr,
}

/// What SIGTERM to the agent means for the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TermMode {
    /// The engine goes on; the next run of the agent adopts it.
    KeepEngine,
    /// The engine is drained and stopped too.
    StopEngine,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Engine {
    /// 127.0.0.1 port of the engine; 0 picks a free one at each start.
    #[serde(default = "host_port")]
    pub host_port: u16,
    /// Where the flags of installed engines are kept; an image can bring them along. This user's cache unless given.
    pub flags_dir: Option<PathBuf>,
    /// Failures of the engine are counted for so long: three of them ask for another node, each makes the next wait longer.
    pub failure_window_s: Option<u64>,
    pub start_gate_s: Option<u64>,
    pub stall_suspect_ms: Option<u64>,
    pub stall_kill_ms: Option<u64>,
    pub stop_grace_ms: Option<u64>,
    #[serde(default = "keep_engine")]
    pub term_mode: TermMode,
}

/// Where the GPUs are looked for. Nothing of it has to be set outside tests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Gpu {
    /// The program that talks to the driver; `cic-gpu-probe` beside the agent unless given.
    pub probe: Option<PathBuf>,
    /// Below this `dev/nvidia0` or `proc/driver/nvidia/version` tells that there is a GPU.
    #[serde(default = "root")]
    pub root: PathBuf,
    #[serde(default = "kmsg")]
    pub kmsg: PathBuf,
}

/// Spans of the core's time table that may be changed, mostly by tests and `cic dev`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pace {
    pub heartbeat_ms: Option<u64>,
    pub probe_loading_ms: Option<u64>,
    pub probe_serving_ms: Option<u64>,
    pub probe_deadline_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Log {
    #[serde(default)]
    pub format: LogFormat,
    #[serde(default = "log_filter")]
    pub filter: String,
}

impl Config {
    /// Reads the file at `path` and this process's environment.
    ///
    /// # Errors
    /// Every mistake in it; the caller prints them and exits with 78.
    pub fn load(path: &Path) -> Result<Self, ConfigMistakes> {
        Self::reading(path, environment()).finish()
    }

    fn reading(path: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Reading<Self> {
        read::<Self>(Some(path), SCHEMA, environment).check(Self::judge)
    }

    /// The core's time table with this configuration's changes.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let default = Timing::default();
        let ms = |changed: Option<u64>, default| changed.map_or(default, Duration::from_millis);
        let start_gate = self.engine.start_gate_s.map_or(default.start_gate, Duration::from_secs);
        Timing {
            heartbeat: ms(self.pace.heartbeat_ms, default.heartbeat),
            probe_loading: ms(self.pace.probe_loading_ms, default.probe_loading),
            probe_serving: ms(self.pace.probe_serving_ms, default.probe_serving),
            probe_deadline: ms(self.pace.probe_deadline_ms, default.probe_deadline),
            failure_window: self.engine.failure_window_s.map_or(default.failure_window, Duration::from_secs),
            start_gate,
            start_gate_max: default.start_gate_max.max(start_gate),
            stall_suspect: ms(self.engine.stall_suspect_ms, default.stall_suspect),
            stall_kill: ms(self.engine.stall_kill_ms, default.stall_kill),
            stop_grace: ms(self.engine.stop_grace_ms, default.stop_grace),
            checkpoint: self.checkpoint.every_s.map_or(default.checkpoint, Duration::from_secs),
            ..default
        }
    }

    /// Where the flags of installed engines are kept: as configured, else in the cache that systemd or this user has
    /// (`CACHE_DIRECTORY`, `XDG_CACHE_HOME`, `HOME`), else in the state directory.
    #[must_use]
    pub fn flags_dir(&self) -> PathBuf {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.engine
            .flags_dir
            .clone()
            .or_else(|| variable("CACHE_DIRECTORY"))
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("cic")))
            .or_else(|| Some(variable("HOME")?.join(".cache/cic")))
            .unwrap_or_else(|| self.node.state_dir.clone())
    }

    /// How the edge deals with scarcity, without its way to the controllers.
    ///
    /// # Errors
    /// When the key of the API outside cannot be read.
    pub fn scarcity(&self) -> anyhow::Result<ScarcitySpec> {
        let default = ScarcitySpec::default();
        let Edge { in_flight_max, queue_max, wait_max_s, .. } = self.edge;
        let limits = AdmissionLimits {
            in_flight_max: in_flight_max.unwrap_or(default.limits.in_flight_max),
            queue_max: queue_max.unwrap_or(default.limits.queue_max),
        };
        let wait_max = wait_max_s.map_or(default.wait_max, Duration::from_secs);
        Ok(ScarcitySpec { limits, wait_max, surge: self.surge.spec()?, tell: None })
    }

    /// `host:port` that others reach the peer port by, once it is bound to `port`.
    #[must_use]
    pub fn advertised(&self, port: u16) -> String {
        match self.peer.advertise.as_deref().and_then(|text| text.rsplit_once(':')) {
            Some((host, "0")) => format!("{host}:{port}"),
            Some((host, fixed)) => format!("{host}:{fixed}"),
            None => SocketAddr::new(self.peer.listen.ip(), port).to_string(),
        }
    }

    fn judge(&self, mistakes: &mut ConfigMistakes) {
        for address in &self.controller.addresses {
            if let Err(what) = check_host_port(address, false) {
                mistakes.push("controller", "addresses", what);
            }
        }
        if !self.controller.addresses.is_empty() && self.controller.ca_file.is_none() {
            mistakes.push(
                "controller",
                "ca_file",
                "missing: a controller is believed by its certificate only",
            );
        }
        for (key, file) in
            [("ca_file", &self.controller.ca_file), ("join_token_file", &self.controller.join_token_file)]
        {
            // The token is used up once and may be gone after; the directory tells a typing slip all the same.
            if let Some(path) = file
                && !(path.is_file() || key == "join_token_file")
            {
                mistakes.push("controller", key, format_args!("no file {}", path.display()));
            }
        }
        match &self.peer.advertise {
            Some(address) => {
                if let Err(what) = check_host_port(address, true) {
                    mistakes.push("peer", "advertise", what);
                }
            }
            None if self.peer.listen.ip().is_unspecified() && !self.controller.addresses.is_empty() => {
                mistakes.push(
                    "peer",
                    "advertise",
                    format_args!("missing: others cannot reach {} (say host:port)", self.peer.listen),
                );
            }
            None => {}
        }
        if !self.node.state_dir.is_absolute() {
            mistakes.push("node", "state_dir", "must be an absolute path");
        }
        self.edge.judge(mistakes);
        self.surge.judge(mistakes);
        self.spot.judge(mistakes);
        self.checkpoint.judge(mistakes);
        self.deadman.judge(mistakes);
        for (section, key, span) in self.spans() {
            if span.is_zero() || span > SPAN_MAX {
                mistakes.push(section, key, "must be more than 0 and at most a day");
            }
        }
        if let Err(error) = check_filter(&self.log.filter) {
            mistakes.push("log", "filter", error);
        }
    }

    fn spans(&self) -> impl Iterator<Item = (&'static str, &'static str, Duration)> {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        [
            ("engine", "failure_window_s", self.engine.failure_window_s.map(s)),
            ("engine", "start_gate_s", self.engine.start_gate_s.map(s)),
            ("engine", "stall_suspect_ms", self.engine.stall_suspect_ms.map(ms)),
            ("engine", "stall_kill_ms", self.engine.stall_kill_ms.map(ms)),
            ("engine", "stop_grace_ms", self.engine.stop_grace_ms.map(ms)),
            ("edge", "head_within_ms", self.edge.head_within_ms.map(ms)),
            ("edge", "body_within_ms", self.edge.body_within_ms.map(ms)),
            ("edge", "stall_cut_ms", self.edge.stall_cut_ms.map(ms)),
            ("timing", "heartbeat_ms", self.pace.heartbeat_ms.map(ms)),
            ("timing", "probe_loading_ms", self.pace.probe_loading_ms.map(ms)),
            ("timing", "probe_serving_ms", self.pace.probe_serving_ms.map(ms)),
            ("timing", "probe_deadline_ms", self.pace.probe_deadline_ms.map(ms)),
            ("checkpoint", "every_s", self.checkpoint.every_s.map(s)),
            ("spot", "preemption_window_s", self.spot.preemption_window_s.map(s)),
            ("spot", "maintenance_window_s", self.spot.maintenance_window_s.map(s)),
            ("spot", "sigterm_window_ms", self.spot.sigterm_window_ms.map(ms)),
            ("spot", "shutdown_window_ms", self.spot.shutdown_window_ms.map(ms)),
        ]
        .into_iter()
        .filter_map(|(section, key, span)| Some((section, key, span?)))
    }
}

fn check_host_port(text: &str, may_be_zero: bool) -> Result<(), String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(0)) if !may_be_zero => Err(format!("{text:?} has port 0")),
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err(format!("{text:?} is not host:port")),
    }
}

fn replica() -> Role {
    Role::Replica
}

fn peer_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7444))
}

fn metrics_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7445))
}

fn host_port() -> u16 {
    8100
}

fn root() -> PathBuf {
    PathBuf::from("/")
}

fn kmsg() -> PathBuf {
    PathBuf::from("/dev/kmsg")
}

fn keep_engine() -> TermMode {
    TermMode::KeepEngine
}

fn log_filter() -> String {
    "info".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str) -> Result<Config, ConfigMistakes> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::reading(&path, []).finish()
    }

    #[test]
    fn two_lines_are_a_whole_configuration() {
        let config = reading("[node]\nid = 'n1'\nstate_dir = '/var/lib/cic'\n").unwrap();
        assert_eq!(config.node.role, Role::Replica);
        assert_eq!(config.edge.listen.port(), 8000);
        assert_eq!(config.engine.host_port, 8100);
        assert_eq!(config.timing(), Timing::default());
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let error = reading(
            "[node]\nid = 'n1'\nstate_dir = 'here'\n[controller]\naddresses = ['nowhere']\n\
             [engine]\nhost_prot = 1\nstart_gate_s = 0\n[log]\nfilter = 'cic=loud'\n",
        )
        .unwrap_err();
        let all = error.to_string();
        for part in [
            "[engine] host_prot: unknown key; did you mean host_port?",
            "[node] state_dir: must be an absolute path",
            "[controller] addresses: \"nowhere\" is not host:port",
            "[controller] ca_file: missing",
            "[peer] advertise: missing",
            "[engine] start_gate_s: must be more than 0",
            "[log] filter:",
        ] {
            assert!(all.contains(part), "{part} is not in\n{all}");
        }
    }

    #[test]
    fn an_advertised_port_of_0_is_the_one_that_was_bound() {
        let base = "[node]\nid = 'n1'\nstate_dir = '/s'\n[peer]\nlisten = '127.0.0.1:0'\n";
        for (advertise, expected) in [
            ("", "127.0.0.1:4321"),
            ("advertise = 'gpu-7:0'\n", "gpu-7:4321"),
            ("advertise = 'gpu-7:9'\n", "gpu-7:9"),
        ] {
            assert_eq!(reading(&format!("{base}{advertise}")).unwrap().advertised(4321), expected);
        }
    }
}
