//! What init's wish that the agent ends means for the node: another run of the agent, or the end of the machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cic_common::notice::{Cloud, Confidence, NoticeKind};
use cic_common::time::Mono;
use tokio::process::Command;
use tracing::warn;

use crate::core::Event;

/// systemd answers from memory over its socket; at the end of a machine it is busy, and asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const ASKED_MAX: u32 = 3;

/// There while systemd is init: `sd_booted(3)`.
const BOOTED: &str = "run/systemd/system";

/// How much time a signal leaves, by what it means.
#[derive(Debug, Clone)]
pub struct ShutdownSpec {
    /// Whether SIGTERM is the machine's end; by default only on RunPod.
    pub sigterm_is_notice: Option<bool>,
    /// From SIGTERM to SIGKILL in a container.
    pub sigterm_window: Duration,
    /// From a shutdown's SIGTERM to the end of the network: the unit's `TimeoutStopSec`, and less than ACPI leaves.
    pub shutdown_window: Duration,
    /// Below which systemd's mark is.
    pub root: PathBuf,
}

/// The notice that a signal is, if it is one. `number` tells signals of one run apart.
pub async fn notice(spec: &ShutdownSpec, cloud: Option<Cloud>, now: Mono, number: u32) -> Option<Event> {
    let is_notice = spec.sigterm_is_notice.unwrap_or(cloud == Some(Cloud::Runpod));
    let (source, kind, window) = if is_notice {
        ("sigterm", NoticeKind::Terminate, spec.sigterm_window)
    } else if is_machine_stopping(&spec.root).await {
        ("shutdown", NoticeKind::Stop, spec.shutdown_window)
    } else {
        return None;
    };
    Some(Event::NoticeSeen {
        kind,
        source: source.to_owned(),
        id: format!("{source}-{number}"),
        deadline: now + window,
        confidence: Confidence::Estimated,
        resources: Vec::new(),
    })
}

/// Whether systemd is taking the machine down, and not only this unit. Where it does not say, it is not.
async fn is_machine_stopping(root: &Path) -> bool {
    if !root.join(BOOTED).is_dir() {
        return false;
    }
    for _ in 0..ASKED_MAX {
        let mut command = Command::new("systemctl");
        command.arg("is-system-running").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(ANSWER_WITHIN, command.output()).await {
            // Its exit code is that of a system that is not all well; the word tells.
            Ok(Ok(output)) => return output.stdout.trim_ascii() == b"stopping",
            Ok(Err(error)) => {
                warn!(%error, "systemctl cannot be asked whether the machine is going down");
                return false;
            }
            Err(_) => {
                warn!(within = ?ANSWER_WITHIN, "systemctl does not say whether the machine is going down");
            }
        }
    }
    false
}
