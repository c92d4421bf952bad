//! The machine's own figures, once a second.

use std::path::PathBuf;
use std::time::Duration;

use cic_common::report::HostReport;
use cic_common::supervise::TaskResult;
use cic_common::units::Bytes;
use nix::sys::statvfs::statvfs;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::core::Event;

/// As often as a heartbeat carries it. Design table: heartbeat 1 s.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Reads the figures until cancelled.
///
/// # Errors
/// When the machine shows no figures at all.
pub async fn watch(state_dir: PathBuf, events: mpsc::Sender<Event>, token: CancellationToken) -> TaskResult {
    let mut host = Host::new(state_dir)?;
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        // Both arms are cancel safe: a tick that is dropped comes again.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        // A figure that finds the queue full is out of date by the time there is room.
        if let Err(mpsc::error::TrySendError::Closed(_)) = events.try_send(Event::HostSampled(host.sample()))
        {
            return Ok(());
        }
    }
}

/// Reads the figures of this machine.
#[derive(Debug)]
pub struct Host {
    system: System,
    state_dir: PathBuf,
}

impl Host {
    /// # Errors
    /// When this system shows no figures.
    pub fn new(state_dir: PathBuf) -> Result<Self, sysinfo::Error> {
        let wanted = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Ok(Self { system: System::new_with_specifics(wanted)?, state_dir })
    }

    /// The figures now; the cpu share is since the last call.
    pub fn sample(&mut self) -> HostReport {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        HostReport {
            cpu_percent: self.system.global_cpu_usage(),
            #[allow(clippy::cast_possible_truncation)]
            load_1m: System::load_average().map_or(0.0, |load| load.one as f32),
            memory_used: Bytes(self.system.used_memory()),
            memory_total: Bytes(self.system.total_memory()),
            disk_free: statvfs(&self.state_dir)
                .map_or(Bytes(0), |disk| Bytes(disk.blocks_available() * disk.fragment_size())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_holds_figures_of_this_machine() {
        let directory = tempfile::tempdir().unwrap();
        let report = Host::new(directory.path().to_owned()).unwrap().sample();
        assert!(report.memory_total > Bytes::mib(64), "{report:?}");
        assert!(report.memory_used <= report.memory_total, "{report:?}");
        assert!(report.disk_free > Bytes(0), "{report:?}");
        assert!((0.0..=100.0).contains(&report.cpu_percent), "{report:?}");
    }
}
