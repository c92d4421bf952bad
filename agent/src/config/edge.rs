//! `[edge]`: the port for users.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cic_common::config::ConfigMistakes;
use serde::Deserialize;

use crate::serve::edge::{Certificate, KeyRing, Limits, UserPortSpec};

/// Longest wait of a request that may be allowed: its clients give up after 600 s (OpenAI's default).
const WAIT_MAX_S: u64 = 600;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Edge {
    #[serde(default = "edge_listen")]
    pub listen: SocketAddr,
    /// With the key file: the port speaks TLS only. Both are read again when they change.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    /// API keys; none is needed without. Read again when it changes.
    pub keys_file: Option<PathBuf>,
    #[serde(default = "yes")]
    pub access_log: bool,
    pub connections_max: Option<usize>,
    pub connections_per_client_max: Option<usize>,
    pub head_within_ms: Option<u64>,
    pub body_within_ms: Option<u64>,
    pub stall_cut_ms: Option<u64>,
    /// A stream whose replica is lost goes on at another.
    #[serde(default = "yes")]
    pub continuation: bool,
    /// Requests at the own engine at once.
    pub in_flight_max: Option<u32>,
    /// Of them, those that the engine itself says wait.
    pub queue_max: Option<u32>,
    /// Longest a request may ask to wait for a replica.
    pub wait_max_s: Option<u64>,
    /// Replicas in the zone of `[node]` are asked first, as long as they carry no more than the others.
    #[serde(default = "yes")]
    pub zone_first: bool,
}

impl Edge {
    /// How users reach the edge, with what is not set as the port has it.
    #[must_use]
    pub fn user_port(&self) -> UserPortSpec {
        let default = Limits::default();
        let ms = |changed: Option<u64>, default| changed.map_or(default, Duration::from_millis);
        let limits = Limits {
            connections_max: self.connections_max.unwrap_or(default.connections_max),
            connections_per_client_max: self
                .connections_per_client_max
                .unwrap_or(default.connections_per_client_max),
            head_within: ms(self.head_within_ms, default.head_within),
            body_within: ms(self.body_within_ms, default.body_within),
            stall_max: ms(self.stall_cut_ms, default.stall_max),
        };
        let certificate = self.tls_cert_file.clone().zip(self.tls_key_file.clone());
        UserPortSpec { limits, certificate, keys: self.keys_file.clone(), has_access_log: self.access_log }
    }

    pub(super) fn judge(&self, mistakes: &mut ConfigMistakes) {
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(certificate), Some(key)) => {
                if let Err(error) = Certificate::read(certificate, key) {
                    mistakes.push("edge", "tls_cert_file", with_cause(&error));
                }
            }
            (Some(_), None) => mistakes.push("edge", "tls_key_file", "missing: tls_cert_file is set"),
            (None, Some(_)) => mistakes.push("edge", "tls_cert_file", "missing: tls_key_file is set"),
            (None, None) => {}
        }
        if let Some(path) = &self.keys_file
            && let Err(error) = KeyRing::read(path)
        {
            mistakes.push("edge", "keys_file", format_args!("{}: {}", path.display(), with_cause(&error)));
        }
        for (key, most) in [("in_flight_max", self.in_flight_max), ("queue_max", self.queue_max)] {
            if most == Some(0) {
                mistakes.push("edge", key, "must be more than 0");
            }
        }
        if self.wait_max_s.is_some_and(|most| most > WAIT_MAX_S) {
            mistakes.push("edge", "wait_max_s", format_args!("must be at most {WAIT_MAX_S}"));
        }
        for (key, count) in [
            ("connections_max", self.connections_max),
            ("connections_per_client_max", self.connections_per_client_max),
        ] {
            if count == Some(0) {
                mistakes.push("edge", key, "must be at least 1");
            }
        }
    }
}

fn edge_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 8000))
}

fn yes() -> bool {
    true
}

/// With its source, which a line about a configuration has room for.
fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn a_user_port_without_its_files_does_not_start() {
        let edge = |lines: &str| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("agent.toml");
            let text = format!("[node]\nid = 'n1'\nstate_dir = '/var/lib/cic'\n[edge]\n{lines}");
            std::fs::write(&path, text).unwrap();
            Config::reading(&path, []).finish().map_err(|mistakes| mistakes.to_string())
        };
        for (lines, part) in [
            ("tls_cert_file = '/no/cert'", "[edge] tls_key_file: missing"),
            ("tls_key_file = '/no/key'", "[edge] tls_cert_file: missing"),
            ("tls_cert_file = '/no/cert'\ntls_key_file = '/no/key'", "/no/cert cannot be read"),
            ("keys_file = '/no/keys'", "[edge] keys_file: /no/keys: cannot be read"),
            ("connections_max = 0", "[edge] connections_max: must be at least 1"),
            ("stall_cut_ms = 0", "[edge] stall_cut_ms: must be more than 0"),
        ] {
            let mistakes = edge(lines).unwrap_err();
            assert!(mistakes.contains(part), "{part} in {mistakes}");
        }
        let spec = edge("access_log = false\nhead_within_ms = 5").unwrap().edge.user_port();
        assert_eq!((spec.has_access_log, spec.limits.head_within), (false, Duration::from_millis(5)));
        assert_eq!(spec.limits.stall_max, Limits::default().stall_max);
    }
}
