//! `[deadman]`: when a VM that nobody counts on ends itself.

use std::time::Duration;

use cic_common::config::ConfigMistakes;
use cic_common::report::Role;
use serde::Deserialize;

use super::Node;
use crate::core::DeadmanSpec;

/// Longest limit: 30 days. A VM that may idle for longer does not need the switch.
const LIMIT_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// On for a replica whose VM cic launched, unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Deadman {
    pub enabled: Option<bool>,
    pub unconfirmed_s: Option<u64>,
    pub idle_s: Option<u64>,
    /// Program and arguments that end the machine.
    #[serde(default = "power_off")]
    pub command: Vec<String>,
}

impl Deadman {
    /// `None` where the VM does not end itself.
    #[must_use]
    pub fn spec(&self, node: &Node) -> Option<DeadmanSpec> {
        let default = DeadmanSpec::default();
        let is_on = self.enabled.unwrap_or(node.launched_by_cic && node.role == Role::Replica);
        is_on.then(|| DeadmanSpec {
            unconfirmed: self.unconfirmed_s.map_or(default.unconfirmed, Duration::from_secs),
            idle: self.idle_s.map_or(default.idle, Duration::from_secs),
        })
    }

    pub(super) fn judge(&self, mistakes: &mut ConfigMistakes) {
        for (key, limit) in [("unconfirmed_s", self.unconfirmed_s), ("idle_s", self.idle_s)] {
            let limit = limit.map(Duration::from_secs);
            if limit.is_some_and(|limit| limit.is_zero() || limit > LIMIT_MAX) {
                mistakes.push("deadman", key, "must be more than 0 and at most 30 days");
            }
        }
        if self.command.first().is_none_or(String::is_empty) {
            mistakes.push("deadman", "command", "names no program");
        }
    }
}

fn power_off() -> Vec<String> {
    ["systemctl", "poweroff"].map(str::to_owned).into()
}
