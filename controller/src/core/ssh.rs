//! What a node's ssh port said: an explanation of silence, never a sign of health.

use serde::{Deserialize, Serialize};

/// Answer of the ssh port when it was asked who it is. A VM whose sshd answers runs and has a network; that its agent
/// does not answer is then the agent's own fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshWord {
    /// The identification line, such as `SSH-2.0-OpenSSH_9.2p1`; printable ASCII, 255 bytes at most.
    Banner(String),
    /// The host's kernel answers and no sshd listens.
    Refused,
    /// Nothing came in time: the host, or the way to it, is down.
    NoAnswer,
    /// Something listens there that does not speak ssh.
    NotSsh,
}

impl SshWord {
    /// For `cic why` and the trail.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Banner(line) => format!("its sshd answers ({line}): the VM runs"),
            Self::Refused => "its host answers and no sshd listens".to_owned(),
            Self::NoAnswer => "its ssh port does not answer".to_owned(),
            Self::NotSsh => "its ssh port answers something that is not ssh".to_owned(),
        }
    }
}
