//! `controller.toml`: what it may say, and every mistake in it at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::config::{ConfigMistakes, Key, Kind, Schema, read};
use cic_common::id::{ControllerId, FleetName};
use cic_common::notice::Cloud;
use cic_common::telemetry::{LogFormat, check_filter};
use serde::Deserialize;

use crate::core::{BrakeRules, Timing};
use crate::provision::local::{Checkpoints, Hardware};
use crate::reach::ReachSpec;
use crate::store::Address;

mod backup;
mod health;
mod ssh;

pub use self::backup::BackupConfig;
use self::backup::RawBackup;
pub use self::health::HealthConfig;
use self::health::RawHealth;
use self::ssh::RawSsh;

const SCHEMA: Schema = Schema {
    keys: &[
        Key::optional("controller", "id", Kind::Text),
        Key::optional("controller", "fleet", Kind::Text),
        Key::required("controller", "state_dir", Kind::Text),
        Key::optional("controller", "api_url", Kind::Text),
        Key::optional("quic", "listen", Kind::Text),
        Key::optional("quic", "heartbeat_ms", Kind::Integer),
        Key::optional("api", "listen", Kind::Text),
        Key::optional("api", "admin_token_file", Kind::Text),
        Key::optional("store", "url", Kind::Text),
        Key::optional("store", "password_file", Kind::Text),
        Key::optional("tls", "dir", Kind::Text),
        Key::optional("local", "dir", Kind::Text),
        Key::optional("local", "agent_program", Kind::Text),
        Key::optional("local", "controller_address", Kind::Text),
        Key::optional("local", "other_controllers", Kind::TextList),
        Key::optional("local", "agent_timing", Kind::Free),
        Key::optional("local", "cloud", Kind::Text),
        Key::optional("local", "metadata_program", Kind::Text),
        Key::optional("local", "checkpoint_url", Kind::Text),
        Key::optional("local", "checkpoint_second_url", Kind::Text),
        Key::optional("local", "checkpoint_every_s", Kind::Integer),
        Key::optional("backup", "url", Kind::Text),
        Key::optional("backup", "every_s", Kind::Integer),
        Key::optional("backup", "keep", Kind::Integer),
        Key::optional("health", "prometheus_url", Kind::Text),
        Key::optional("health", "log_url", Kind::Text),
        Key::optional("health", "redis_url", Kind::Text),
        Key::optional("brake", "terminations_max", Kind::Integer),
        Key::optional("brake", "launches_max", Kind::Integer),
        Key::optional("brake", "window_ms", Kind::Integer),
        Key::optional("brake", "silent_share", Kind::Number),
        Key::optional("brake", "silent_count_min", Kind::Integer),
        Key::optional("brake", "silent_launch_after_ms", Kind::Integer),
        Key::optional("ssh", "user", Kind::Text),
        Key::optional("ssh", "key_file", Kind::Text),
        Key::optional("ssh", "port", Kind::Integer),
        Key::optional("ssh", "known_hosts_file", Kind::Text),
        Key::optional("ssh", "program", Kind::Text),
        Key::optional("ssh", "command", Kind::Text),
        Key::optional("timing", "push_fresh_ms", Kind::Integer),
        Key::optional("timing", "challenge_ms", Kind::Integer),
        Key::optional("timing", "poll_interval_ms", Kind::Integer),
        Key::optional("timing", "poll_failures_max", Kind::Integer),
        Key::optional("timing", "urgent_interval_ms", Kind::Integer),
        Key::optional("timing", "partition_grace_ms", Kind::Integer),
        Key::optional("timing", "boot_grace_ms", Kind::Integer),
        Key::optional("timing", "serve_grace_ms", Kind::Integer),
        Key::optional("timing", "settle_ms", Kind::Integer),
        Key::optional("timing", "own_stall_ms", Kind::Integer),
        Key::optional("timing", "list_interval_ms", Kind::Integer),
        Key::optional("timing", "list_interval_urgent_ms", Kind::Integer),
        Key::optional("timing", "list_fresh_ms", Kind::Integer),
        Key::optional("timing", "visibility_ms", Kind::Integer),
        Key::optional("timing", "retry_ms", Kind::Integer),
        Key::optional("timing", "drain_ms", Kind::Integer),
        Key::optional("timing", "operation_deadline_ms", Kind::Integer),
        Key::optional("timing", "orphan_grace_ms", Kind::Integer),
        Key::optional("log", "format", Kind::Text),
        Key::optional("log", "filter", Kind::Text),
    ],
};

/// Between heartbeats. Design table: 1 s.
const HEARTBEAT_MS: u32 = 1000;

/// Faster costs agents and controller more than it tells; slower outlasts the transport's idle timeout of 4 s.
const HEARTBEATS_MS: std::ops::RangeInclusive<u32> = 50..=3000;

/// What the file says, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub id: ControllerId,
    /// The tag of every VM that it launches; it touches no other.
    pub fleet: FleetName,
    /// Absolute.
    pub state_dir: PathBuf,
    pub quic_listen: SocketAddr,
    /// Between heartbeats of an agent.
    pub heartbeat_ms: u32,
    pub api_listen: SocketAddr,
    /// Where other controllers send their clients when this one leads, as `http://HOST:PORT`; `None`: what it listens on.
    pub api_url: Option<String>,
    /// What the token file holds.
    pub admin_token: Option<String>,
    pub store_url: String,
    /// What the password file holds.
    pub store_password: Option<String>,
    pub tls_dir: PathBuf,
    pub local: Option<LocalConfig>,
    pub reach: ReachSpec,
    /// `None`: no snapshots.
    pub backup: Option<BackupConfig>,
    pub health: HealthConfig,
    pub brake: BrakeRules,
    pub timing: Timing,
    pub log_format: LogFormat,
    pub log_filter: String,
}

/// The section of provider `local`.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalConfig {
    /// Absolute.
    pub directory: PathBuf,
    pub agent_program: PathBuf,
    /// None: this controller's own QUIC port on the loopback.
    pub controller_address: Option<SocketAddr>,
    /// `ADDRESS:PORT` of the other controllers, to which agents connect too.
    pub other_controllers: Vec<SocketAddr>,
    pub agent_timing: toml::Table,
    pub hardware: Hardware,
}

impl Config {
    /// Reads the file at `path` with the variables of `environment` over it.
    ///
    /// # Errors
    /// Every mistake, for the caller to print before it exits with 78.
    pub fn read(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigMistakes> {
        let mut built = None;
        let reading = read::<Raw>(Some(path), SCHEMA, environment);
        reading.check(|raw, mistakes| built = raw.build(mistakes)).finish()?;
        built.ok_or_else(|| {
            let mut mistakes = ConfigMistakes::none(Some(path));
            mistakes.push_whole("cannot be used");
            mistakes
        })
    }
}

#[derive(Debug, Deserialize)]
struct Raw {
    controller: RawController,
    quic: RawQuic,
    api: RawApi,
    store: RawStore,
    tls: RawTls,
    local: RawLocal,
    ssh: RawSsh,
    backup: RawBackup,
    health: RawHealth,
    brake: RawBrake,
    timing: RawTiming,
    log: RawLog,
}

#[derive(Debug, Deserialize)]
struct RawController {
    id: Option<String>,
    fleet: Option<String>,
    /// Required, and still optional here: without it the rest can be checked all the same.
    state_dir: Option<PathBuf>,
    api_url: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawQuic {
    listen: Option<String>,
    heartbeat_ms: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct RawApi {
    listen: Option<String>,
    admin_token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct RawStore {
    url: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct RawTls {
    dir: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct RawLocal {
    dir: Option<PathBuf>,
    agent_program: Option<PathBuf>,
    controller_address: Option<String>,
    other_controllers: Option<Vec<String>>,
    #[serde(default)]
    agent_timing: toml::Table,
    cloud: Option<String>,
    metadata_program: Option<PathBuf>,
    checkpoint_url: Option<String>,
    checkpoint_second_url: Option<String>,
    checkpoint_every_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RawBrake {
    terminations_max: Option<u32>,
    launches_max: Option<u32>,
    window_ms: Option<u64>,
    silent_share: Option<f32>,
    silent_count_min: Option<u32>,
    silent_launch_after_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RawTiming {
    push_fresh_ms: Option<u64>,
    challenge_ms: Option<u64>,
    poll_interval_ms: Option<u64>,
    poll_failures_max: Option<u32>,
    urgent_interval_ms: Option<u64>,
    partition_grace_ms: Option<u64>,
    boot_grace_ms: Option<u64>,
    serve_grace_ms: Option<u64>,
    settle_ms: Option<u64>,
    own_stall_ms: Option<u64>,
    list_interval_ms: Option<u64>,
    list_interval_urgent_ms: Option<u64>,
    list_fresh_ms: Option<u64>,
    visibility_ms: Option<u64>,
    retry_ms: Option<u64>,
    drain_ms: Option<u64>,
    operation_deadline_ms: Option<u64>,
    orphan_grace_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RawLog {
    format: Option<String>,
    filter: Option<String>,
}

impl Raw {
    /// None when a mistake leaves nothing to build from; then at least one was pushed.
    fn build(&self, mistakes: &mut ConfigMistakes) -> Option<Config> {
        let id = self.controller.id.clone().unwrap_or_else(|| "controller".to_owned());
        let id = ControllerId::new(id).map_err(|error| mistakes.push("controller", "id", error)).ok();
        let fleet = self.controller.fleet.clone().map_or_else(|| Ok(FleetName::default()), FleetName::new);
        let fleet = fleet.map_err(|error| mistakes.push("controller", "fleet", error)).ok();
        let state_dir = self.controller.state_dir.as_ref();
        let state_dir = state_dir.and_then(|path| absolute("controller", "state_dir", path, mistakes));
        let quic_listen = address("quic", "listen", self.quic.listen.as_deref(), "0.0.0.0:7443", mistakes);
        let api_listen = address("api", "listen", self.api.listen.as_deref(), "127.0.0.1:7480", mistakes);
        let heartbeat_ms = self.quic.heartbeat_ms.unwrap_or(HEARTBEAT_MS);
        if !HEARTBEATS_MS.contains(&heartbeat_ms) {
            let (first, last) = HEARTBEATS_MS.into_inner();
            mistakes.push(
                "quic",
                "heartbeat_ms",
                format_args!("expected {first} to {last}, found {heartbeat_ms}"),
            );
        }
        let admin_token = self.admin_token(mistakes);
        if let Some(listen) = api_listen
            && !listen.ip().is_loopback()
            && self.api.admin_token_file.is_none()
        {
            let what = "missing: the API listens beyond the loopback, so changes need a token";
            mistakes.push("api", "admin_token_file", what);
        }
        let store_url = self
            .store
            .url
            .clone()
            .or_else(|| Some(format!("sqlite:{}", state_dir.as_ref()?.join("controller.db").display())));
        let store_password = self.store.password(store_url.as_deref(), mistakes);
        let api_url = self.api_url(api_listen, store_url.as_deref(), mistakes);
        let is_shared = store_url.as_ref().is_some_and(|url| url.starts_with("postgres"));
        if is_shared && self.controller.id.is_none() {
            mistakes.push("controller", "id", "missing: controllers that share a store must differ in it");
        }
        let tls_dir = self.tls.dir.clone().or_else(|| Some(state_dir.as_ref()?.join("tls")));
        let local = self.local(mistakes);
        let reach = self.ssh.build(state_dir.as_deref(), mistakes);
        let backup = self.backup.build(mistakes);
        let brake = self.brake.over(BrakeRules::default(), mistakes);
        let timing = self.timing.over(Timing::default(), mistakes);
        let timing = Timing { heartbeat: Duration::from_millis(heartbeat_ms.into()), ..timing };
        let (log_format, log_filter) = self.log(mistakes);
        Some(Config {
            id: id?,
            fleet: fleet?,
            state_dir: state_dir?,
            quic_listen: quic_listen?,
            heartbeat_ms,
            api_listen: api_listen?,
            api_url,
            admin_token,
            store_url: store_url?,
            store_password,
            tls_dir: tls_dir?,
            local,
            reach: reach?,
            backup,
            health: self.health.build(mistakes),
            brake,
            timing,
            log_format,
            log_filter,
        })
    }

    /// Redirects lead there, with the client's token, so it says exactly one place.
    fn api_url(
        &self,
        listen: Option<SocketAddr>,
        store_url: Option<&str>,
        mistakes: &mut ConfigMistakes,
    ) -> Option<String> {
        let Some(url) = &self.controller.api_url else {
            let is_shared = store_url.is_some_and(|url| url.starts_with("postgres"));
            if is_shared && listen.is_some_and(|listen| listen.ip().is_unspecified()) {
                let what = "missing: others could not say where this controller's API is, since it listens on every address";
                mistakes.push("controller", "api_url", what);
            }
            return None;
        };
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let is_right = |authority: &&str| {
            let port =
                authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            port.is_some_and(|(host, port)| port > 0 && !host.is_empty())
                && !authority.contains(['/', '?', '#', '@', ' '])
        };
        match authority.filter(is_right) {
            Some(authority) => Some(format!("http://{authority}")),
            None => {
                mistakes.push(
                    "controller",
                    "api_url",
                    format_args!("expected http://HOST:PORT, found {url:?}"),
                );
                None
            }
        }
    }

    fn admin_token(&self, mistakes: &mut ConfigMistakes) -> Option<String> {
        secret("api", "admin_token_file", self.api.admin_token_file.as_ref()?, mistakes)
    }

    fn local(&self, mistakes: &mut ConfigMistakes) -> Option<LocalConfig> {
        let RawLocal {
            dir, agent_program, controller_address, agent_timing, cloud, metadata_program, ..
        } = &self.local;
        let checkpoints = Checkpoints {
            url: self.local.checkpoint_url.clone(),
            second_url: self.local.checkpoint_second_url.clone(),
            every_s: self.local.checkpoint_every_s,
        };
        let Some(directory) = dir else {
            let has_hardware =
                cloud.is_some() || metadata_program.is_some() || checkpoints != Checkpoints::default();
            let has_more =
                agent_program.is_some() || controller_address.is_some() || !agent_timing.is_empty();
            if has_more || has_hardware {
                mistakes.push("local", "dir", "missing: without it there is no provider local");
            }
            return None;
        };
        let directory = absolute("local", "dir", directory, mistakes);
        let agent_program = agent_program.clone().or_else(sibling_agent).unwrap_or_default();
        if !agent_program.is_file() {
            let what = format!("there is no program {}", agent_program.display());
            mistakes.push("local", "agent_program", what);
        }
        let controller_address = controller_address
            .as_deref()
            .and_then(|text| address("local", "controller_address", Some(text), "", mistakes));
        let others = self.local.other_controllers.iter().flatten();
        let other_controllers = others
            .filter_map(|text| address("local", "other_controllers", Some(text), "", mistakes))
            .collect();
        let named = cloud.as_deref().unwrap_or(Cloud::None.as_str());
        let cloud = Cloud::ALL.into_iter().find(|cloud| cloud.as_str() == named);
        if cloud.is_none() {
            let known = Cloud::ALL.map(Cloud::as_str).join(", ");
            mistakes.push("local", "cloud", format_args!("{named:?} is none of {known}"));
        }
        if let Some(path) = metadata_program.as_ref().filter(|path| !path.is_file()) {
            mistakes.push(
                "local",
                "metadata_program",
                format_args!("there is no program {}", path.display()),
            );
        }
        if matches!(cloud, Some(Cloud::Aws | Cloud::Gcp | Cloud::Azure)) && metadata_program.is_none() {
            let what = format_args!("missing: a machine of {named} has a metadata service");
            mistakes.push("local", "metadata_program", what);
        }
        let hardware = Hardware { cloud: cloud?, metadata_program: metadata_program.clone(), checkpoints };
        let agent_timing = agent_timing.clone();
        Some(LocalConfig {
            directory: directory?,
            agent_program,
            controller_address,
            other_controllers,
            agent_timing,
            hardware,
        })
    }

    fn log(&self, mistakes: &mut ConfigMistakes) -> (LogFormat, String) {
        let format = match self.log.format.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                mistakes.push("log", "format", format_args!("expected text or json, found {other:?}"));
                LogFormat::Text
            }
        };
        let filter = self.log.filter.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(error) = check_filter(&filter) {
            mistakes.push("log", "filter", error);
        }
        (format, filter)
    }
}

impl RawStore {
    /// Judges the url, and reads the password that goes with it.
    fn password(&self, url: Option<&str>, mistakes: &mut ConfigMistakes) -> Option<String> {
        let address = url.map(str::parse::<Address>);
        if let Some(Err(error)) = &address {
            mistakes.push("store", "url", error);
        }
        let file = self.password_file.as_ref()?;
        if let Some(Ok(address)) = &address
            && !address.takes_password()
        {
            mistakes.push("store", "password_file", format_args!("{address} takes no password"));
        }
        secret("store", "password_file", file, mistakes)
    }
}

impl RawBrake {
    fn over(&self, defaults: BrakeRules, mistakes: &mut ConfigMistakes) -> BrakeRules {
        let silent_share = self.silent_share.unwrap_or(defaults.silent_share);
        if !(0.0..=1.0).contains(&silent_share) {
            mistakes.push("brake", "silent_share", "expected a share from 0 to 1");
        }
        BrakeRules {
            terminations_max: self.terminations_max.unwrap_or(defaults.terminations_max),
            launches_max: self.launches_max.unwrap_or(defaults.launches_max),
            window: self.window_ms.map_or(defaults.window, Duration::from_millis),
            silent_share,
            silent_count_min: self.silent_count_min.unwrap_or(defaults.silent_count_min),
            silent_launch_after: self
                .silent_launch_after_ms
                .map_or(defaults.silent_launch_after, Duration::from_millis),
            release_after: defaults.release_after,
        }
    }
}

impl RawTiming {
    fn over(&self, defaults: Timing, mistakes: &mut ConfigMistakes) -> Timing {
        let span = |ms: Option<u64>, default| ms.map_or(default, Duration::from_millis);
        let visibility = span(self.visibility_ms, defaults.visibility);
        let orphan_grace = span(self.orphan_grace_ms, defaults.orphan_grace);
        if orphan_grace <= visibility {
            let what = format_args!("must be longer than visibility_ms, {}", visibility.as_millis());
            mistakes.push("timing", "orphan_grace_ms", what);
        }
        Timing {
            heartbeat: defaults.heartbeat,
            push_fresh: span(self.push_fresh_ms, defaults.push_fresh),
            challenge: span(self.challenge_ms, defaults.challenge),
            poll_interval: span(self.poll_interval_ms, defaults.poll_interval),
            poll_within: defaults.poll_within,
            poll_failures_max: self.poll_failures_max.unwrap_or(defaults.poll_failures_max),
            urgent_interval: span(self.urgent_interval_ms, defaults.urgent_interval),
            partition_grace: span(self.partition_grace_ms, defaults.partition_grace),
            boot_grace: span(self.boot_grace_ms, defaults.boot_grace),
            serve_grace: span(self.serve_grace_ms, defaults.serve_grace),
            settle: span(self.settle_ms, defaults.settle),
            own_stall: span(self.own_stall_ms, defaults.own_stall),
            list_interval: span(self.list_interval_ms, defaults.list_interval),
            list_interval_urgent: span(self.list_interval_urgent_ms, defaults.list_interval_urgent),
            list_fresh: span(self.list_fresh_ms, defaults.list_fresh),
            visibility,
            retry: span(self.retry_ms, defaults.retry),
            drain: span(self.drain_ms, defaults.drain),
            operation_deadline: span(self.operation_deadline_ms, defaults.operation_deadline),
            orphan_grace,
        }
    }
}

fn address(
    section: &'static str,
    key: &'static str,
    text: Option<&str>,
    default: &str,
    mistakes: &mut ConfigMistakes,
) -> Option<SocketAddr> {
    let text = text.unwrap_or(default);
    let wrong = |_| mistakes.push(section, key, format_args!("expected ADDRESS:PORT, found {text:?}"));
    text.parse().map_err(wrong).ok()
}

/// What a file holds that is not to be empty, without the white space around it.
fn secret(
    section: &'static str,
    key: &'static str,
    file: &Path,
    mistakes: &mut ConfigMistakes,
) -> Option<String> {
    let mut wrong = |what: String| mistakes.push(section, key, what);
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => wrong(format!("{} is empty", file.display())),
        Ok(text) => return Some(text.trim().to_owned()),
        Err(error) => wrong(format!("{} cannot be read: {error}", file.display())),
    }
    None
}

fn absolute(
    section: &'static str,
    key: &'static str,
    path: &Path,
    mistakes: &mut ConfigMistakes,
) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    mistakes.push(
        section,
        key,
        format_args!("expected an absolute path, found {:?}", path.display().to_string()),
    );
    None
}

/// The agent that was installed beside this program.
fn sibling_agent() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.with_file_name("cic-agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigMistakes> {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("controller.toml");
        std::fs::write(&path, text).expect("writes");
        let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Config::read(&path, environment)
    }

    #[test]
    fn a_state_directory_is_enough() {
        let config = reading("[controller]\nstate_dir = '/var/lib/cic'\n", &[]).expect("right");
        assert_eq!(config.store_url, "sqlite:/var/lib/cic/controller.db");
        assert_eq!(config.tls_dir, Path::new("/var/lib/cic/tls"));
        assert_eq!(config.quic_listen.port(), 7443);
        assert_eq!(config.api_listen.to_string(), "127.0.0.1:7480");
        assert_eq!(
            (config.timing, config.brake, config.local),
            (Timing::default(), BrakeRules::default(), None)
        );
    }

    #[test]
    fn overrides_reach_the_core() {
        let text = "[controller]\nstate_dir = '/s'\nfleet = 'eu-prod'\n[timing]\nsettle_ms = 5\norphan_grace_ms = 61000\n[brake]\nsilent_share = 0.5\n";
        let config = reading(text, &[("CIC_TIMING_DRAIN_MS", "7")]).expect("right");
        assert_eq!(config.timing.settle, Duration::from_millis(5));
        assert_eq!(config.timing.orphan_grace, Duration::from_secs(61));
        assert_eq!(config.fleet.as_str(), "eu-prod");
        assert_eq!(config.timing.drain, Duration::from_millis(7));
        assert!((config.brake.silent_share - 0.5).abs() < f32::EPSILON);
    }

    #[test]
    fn the_password_of_the_store_comes_as_a_file_and_goes_to_postgres_only() {
        let directory = tempfile::tempdir().expect("directory");
        let (file, empty) = (directory.path().join("password"), directory.path().join("empty"));
        std::fs::write(&file, "secret\n").expect("writes");
        std::fs::write(&empty, "\n").expect("writes");
        let with = |url: &str, file: &Path| {
            let text = format!("[controller]\nid = 'a'\nstate_dir = '/s'\n[store]\nurl = '{url}'\n");
            reading(&text, &[("CIC_STORE_PASSWORD_FILE", &file.display().to_string())])
        };
        let config = with("postgres://cic@db.example/cic", &file).expect("right");
        assert_eq!(config.store_password.as_deref(), Some("secret"));
        for (url, file, mistake) in [
            (
                "sqlite:/s/controller.db",
                &file,
                "[store] password_file: sqlite:/s/controller.db takes no password",
            ),
            (
                "postgres://cic:secret@db.example/cic",
                &file,
                "[store] url: holds a password; secrets come as files",
            ),
            ("postgres://cic@db.example/cic", &empty, "empty is empty"),
            ("postgres://cic@db.example/cic", &directory.path().join("none"), "none cannot be read"),
        ] {
            let mistakes = with(url, file).expect_err("wrong");
            assert!(mistakes.lines().len() == 1 && mistakes.to_string().contains(mistake), "{mistakes}");
        }
    }

    #[test]
    fn every_mistake_is_listed_at_once() {
        let text = "[controller]\nid = 'A'\nfleet = 'B_'\nstate_dir = 'here'\nstate = 1\n\
                    [api]\nlisten = '0.0.0.0:7480'\n[quic]\nlisten = 'x'\n[store]\nurl = 'mysql:x'\n\
                    [local]\ndir = '/l'\nagent_program = '/no/such/agent'\n[brake]\nsilent_share = 3\n\
                    [timing]\norphan_grace_ms = 60000\n[log]\nformat = 'xml'\n";
        let mistakes = reading(text, &[]).expect_err("wrong");
        let mut keys: Vec<_> = mistakes
            .lines()
            .iter()
            .filter_map(|line| line.split("toml: ").nth(1)?.split(':').next())
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "[api] admin_token_file",
                "[brake] silent_share",
                "[controller] fleet",
                "[controller] id",
                "[controller] state",
                "[controller] state_dir",
                "[local] agent_program",
                "[log] format",
                "[quic] listen",
                "[store] url",
                "[timing] orphan_grace_ms",
            ]
        );
    }
}
