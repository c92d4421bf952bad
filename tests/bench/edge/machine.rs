//! What else runs on the machine: figures beside a compiler say little of a proxy.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::rig::TICKS_PER_SECOND;

/// The machine is quiet while others take less of its cores: what a kernel and idle daemons do.
const QUIET: f64 = 0.1;

/// One look at it; at 10 ms a tick, a twentieth of a core is seen.
const LOOK: Duration = Duration::from_millis(200);

/// Waits for a quiet machine, all of a run together. On one that is never quiet the run says so in its table.
const PATIENCE: Duration = Duration::from_secs(300);

/// The cores, as one looks at them from a moment on.
#[derive(Debug)]
pub(super) struct Cores {
    since: Instant,
    busy: Duration,
}

impl Cores {
    pub(super) fn now() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let ticks = busy_ticks(&text).context("no figures of the cores in /proc/stat")?;
        Ok(Self { since: Instant::now(), busy: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND) })
    }

    /// The part of all cores that others than `own` took since then, from 0 to 1.
    pub(super) fn taken_by_others(&self, own: Duration) -> anyhow::Result<f64> {
        let now = Self::now()?;
        let others = now.busy.saturating_sub(self.busy).saturating_sub(own);
        #[allow(clippy::cast_precision_loss)]
        let count = std::thread::available_parallelism()?.get() as f64;
        Ok(others.as_secs_f64() / ((now.since - self.since).as_secs_f64() * count))
    }
}

/// What is left of the waits of one run.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: PATIENCE }
    }
}

impl Patience {
    /// Waits until nobody else is at work, while patience lasts.
    pub(super) async fn wait_quiet(&mut self) -> anyhow::Result<()> {
        while !self.left.is_zero() {
            let cores = Cores::now()?;
            tokio::time::sleep(LOOK).await;
            if cores.taken_by_others(Duration::ZERO)? < QUIET {
                break;
            }
            self.left = self.left.saturating_sub(LOOK);
        }
        Ok(())
    }
}

/// The first line of `/proc/stat` without its idle and iowait, and without the time of guests, which is in user and nice
/// too (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|f| f.parse().ok()).collect();
    (fields.len() >= 8).then(|| fields[..3].iter().sum::<u64>() + fields[5..8].iter().sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_idle_time_nor_that_of_guests_is_work() {
        let line = "cpu  1 2 4 1000 500 8 16 32 9999 9999\ncpu0 7 7 7 7 7 7 7 7 7 7\n";
        assert_eq!(busy_ticks(line), Some(63));
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
