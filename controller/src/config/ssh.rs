//! `[ssh]`: how a silent node's agent is started anew.

use std::path::{Path, PathBuf};

use cic_common::config::ConfigMistakes;
use serde::Deserialize;

use super::absolute;
use crate::reach::{DEFAULT_COMMAND, HostKeys, ReachSpec, SshSpec};

/// Where sshd listens unless configured otherwise (RFC 4251).
const PORT: u16 = 22;

/// Keys that nodes showed first, in the state directory.
const OWN_KNOWN_HOSTS: &str = "ssh_known_hosts";

#[derive(Debug, Deserialize)]
pub(super) struct RawSsh {
    user: Option<String>,
    key_file: Option<PathBuf>,
    port: Option<u16>,
    known_hosts_file: Option<PathBuf>,
    program: Option<PathBuf>,
    command: Option<String>,
}

impl RawSsh {
    /// None when a mistake leaves nothing to build from; then at least one was pushed.
    pub(super) fn build(&self, state_dir: Option<&Path>, mistakes: &mut ConfigMistakes) -> Option<ReachSpec> {
        let ssh_port = self.port.unwrap_or(PORT);
        if ssh_port == 0 {
            mistakes.push("ssh", "port", "0 is no port");
        }
        let Some(key_file) = &self.key_file else {
            let has_more = self.user.is_some()
                || self.known_hosts_file.is_some()
                || self.program.is_some()
                || self.command.is_some();
            if has_more {
                mistakes.push("ssh", "key_file", "missing: without it no agent is restarted over ssh");
            }
            return Some(ReachSpec { ssh_port, ssh: None });
        };
        let key_file = file("key_file", key_file, mistakes);
        let user = self.user.clone().unwrap_or_else(|| "root".to_owned());
        if !is_user(&user) {
            mistakes.push("ssh", "user", format_args!("{user:?} is no name of a user"));
        }
        let host_keys = match &self.known_hosts_file {
            Some(path) => file("known_hosts_file", path, mistakes).map(HostKeys::Listed),
            None => state_dir.map(|path| HostKeys::FirstSeen(path.join(OWN_KNOWN_HOSTS))),
        };
        if let Some(HostKeys::FirstSeen(path) | HostKeys::Listed(path)) = &host_keys
            && !is_plain(path)
        {
            let what = format_args!("{:?}: ssh takes no path with a space, a quote or %", path.display());
            mistakes.push("ssh", "known_hosts_file", what);
        }
        let program = self.program.clone().unwrap_or_else(|| PathBuf::from("ssh"));
        if program.is_absolute() && !program.is_file() {
            mistakes.push("ssh", "program", format_args!("there is no program {}", program.display()));
        }
        let command = self.command.clone().unwrap_or_else(|| DEFAULT_COMMAND.to_owned());
        if command.trim().is_empty() {
            mistakes.push("ssh", "command", "is empty: it would open a shell");
        }
        let ssh = SshSpec { program, user, key_file: key_file?, host_keys: host_keys?, command };
        Some(ReachSpec { ssh_port, ssh: Some(ssh) })
    }
}

fn file(key: &'static str, path: &Path, mistakes: &mut ConfigMistakes) -> Option<PathBuf> {
    let path = absolute("ssh", key, path, mistakes)?;
    if !path.is_file() {
        mistakes.push("ssh", key, format_args!("no file {}", path.display()));
    }
    Some(path)
}

fn is_user(text: &str) -> bool {
    let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !text.is_empty() && !text.starts_with('-') && text.bytes().all(is_sign)
}

/// ssh splits the option's value at spaces and expands `%` and `~` in it.
fn is_plain(path: &Path) -> bool {
    let is_odd = |sign: char| sign.is_whitespace() || matches!(sign, '%' | '"' | '\'' | '~' | '\\' | '$');
    path.to_str().is_some_and(|text| !text.contains(is_odd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(change: impl FnOnce(&mut RawSsh)) -> (Option<ReachSpec>, Vec<String>) {
        let mut raw = RawSsh {
            user: None,
            key_file: None,
            port: None,
            known_hosts_file: None,
            program: None,
            command: None,
        };
        change(&mut raw);
        let mut mistakes = ConfigMistakes::none(None);
        let spec = raw.build(Some(Path::new("/var/lib/cic")), &mut mistakes);
        (spec, mistakes.lines().to_vec())
    }

    #[test]
    fn without_a_key_ssh_is_only_asked_who_it_is() {
        let (spec, mistakes) = built(|raw| raw.port = Some(2222));
        assert_eq!((spec, mistakes.len()), (Some(ReachSpec { ssh_port: 2222, ssh: None }), 0));
        let (_, mistakes) = built(|raw| raw.user = Some("cic".to_owned()));
        assert!(mistakes.iter().any(|line| line.contains("[ssh] key_file: missing")), "{mistakes:?}");
    }

    #[test]
    fn a_key_is_enough() {
        let key = tempfile::NamedTempFile::new().unwrap();
        let (spec, mistakes) = built(|raw| raw.key_file = Some(key.path().to_owned()));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let ssh = spec.and_then(|spec| spec.ssh).unwrap();
        assert_eq!((ssh.user.as_str(), ssh.command.as_str()), ("root", "systemctl restart cic-agent"));
        assert_eq!(ssh.host_keys, HostKeys::FirstSeen("/var/lib/cic/ssh_known_hosts".into()));
    }

    #[test]
    fn every_mistake_is_named() {
        let (_, mistakes) = built(|raw| {
            *raw = RawSsh {
                user: Some("-oProxyCommand=x".to_owned()),
                key_file: Some("/no/such/key".into()),
                port: Some(0),
                known_hosts_file: Some("/no such/hosts".into()),
                program: Some("/no/such/ssh".into()),
                command: Some(" ".to_owned()),
            }
        });
        for key in ["user", "key_file", "port", "known_hosts_file", "program", "command"] {
            let named = format!("[ssh] {key}: ");
            assert!(mistakes.iter().any(|line| line.contains(&named)), "{key} is not in {mistakes:?}");
        }
    }
}
