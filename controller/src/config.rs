//! `controller.toml`: what it may say, and every mistake in it at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::config::{ConfigMistakes, Key, Kind, Schema, read};
use cic_common::id::{ControllerId, FleetName};
use cic_common::telemetry::{LogFormat, check_filter};
use serde::Deserialize;

use crate::core::{BrakeRules, Timing};
use crate::reach::ReachSpec;
use crate::store::Address;

mod backup;
mod brake;
mod health;
mod local;
mod ssh;
mod timing;

pub use self::backup::BackupConfig;
use self::backup::RawBackup;
use self::brake::RawBrake;
pub use self::health::HealthConfig;
use self::health::RawHealth;
pub use self::local::LocalConfig;
use self::local::RawLocal;
use self::ssh::RawSsh;
use self::timing::RawTiming;

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
        let local = self.local.build(mistakes);
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

#[cfg(test)]
mod tests;
