//! `[spot]`: where notices of the VM's end come from.

use std::path::PathBuf;
use std::time::Duration;

use cic_common::config::ConfigMistakes;
use cic_common::notice::Cloud;
use serde::Deserialize;

use super::check_host_port;
use crate::source::spot::shutdown::ShutdownSpec;
use crate::source::spot::{ADDRESS, Pace, SpotSpec};

/// What GCP promises every Spot VM; 120 s where it was launched with `preemptionNoticeDuration`.
const PREEMPTION_WINDOW: Duration = Duration::from_secs(30);

/// What is promised to all of GCP's VMs. GPU VMs may be told an hour ahead.
const MAINTENANCE_WINDOW: Duration = Duration::from_secs(60);

/// RunPod's word for the time between SIGTERM and SIGKILL.
const SIGTERM_WINDOW: Duration = Duration::from_secs(5);

/// Of the 30 s that ACPI's soft-off leaves on GCP, less what init needs for the rest.
const SHUTDOWN_WINDOW: Duration = Duration::from_secs(20);

/// Finds out by itself.
const AUTO: &str = "auto";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Spot {
    /// `auto`, or whose machine this is: `aws`, `gcp`, `azure`, `runpod`, `none`.
    #[serde(default = "auto")]
    pub cloud: String,
    /// `host:port` of the metadata service.
    #[serde(default = "metadata")]
    pub metadata: String,
    /// A file in which notices are left.
    pub notice_file: Option<PathBuf>,
    /// GCP: from the notice to the VM's end.
    pub preemption_window_s: Option<u64>,
    /// GCP: from the word of host maintenance to its begin.
    pub maintenance_window_s: Option<u64>,
    /// SIGTERM is the machine's end, whoever's it is; by default only on RunPod.
    pub sigterm_is_notice: Option<bool>,
    /// In a container: from SIGTERM to SIGKILL.
    pub sigterm_window_ms: Option<u64>,
    /// When systemd takes the machine down: from SIGTERM to SIGKILL.
    pub shutdown_window_ms: Option<u64>,
}

impl Spot {
    /// The cloud that is named; `None` to find out.
    fn named(&self) -> Option<Cloud> {
        Cloud::ALL.into_iter().find(|cloud| cloud.as_str() == self.cloud)
    }

    #[must_use]
    pub fn spec(&self) -> SpotSpec {
        SpotSpec {
            cloud: self.named(),
            address: self.metadata.clone(),
            preemption_window: self.preemption_window_s.map_or(PREEMPTION_WINDOW, Duration::from_secs),
            maintenance_window: self.maintenance_window_s.map_or(MAINTENANCE_WINDOW, Duration::from_secs),
            has_file: self.notice_file.is_some(),
            root: PathBuf::from("/"),
            pace: Pace::default(),
        }
    }

    #[must_use]
    pub fn shutdown(&self) -> ShutdownSpec {
        ShutdownSpec {
            sigterm_is_notice: self.sigterm_is_notice,
            sigterm_window: self.sigterm_window_ms.map_or(SIGTERM_WINDOW, Duration::from_millis),
            shutdown_window: self.shutdown_window_ms.map_or(SHUTDOWN_WINDOW, Duration::from_millis),
            root: PathBuf::from("/"),
        }
    }

    pub(super) fn judge(&self, mistakes: &mut ConfigMistakes) {
        if self.cloud != AUTO && self.named().is_none() {
            let known = Cloud::ALL.map(Cloud::as_str).join(", ");
            mistakes.push("spot", "cloud", format_args!("{:?} is none of {AUTO}, {known}", self.cloud));
        }
        if let Err(what) = check_host_port(&self.metadata, false) {
            mistakes.push("spot", "metadata", what);
        }
    }
}

fn auto() -> String {
    AUTO.to_owned()
}

fn metadata() -> String {
    ADDRESS.to_owned()
}
