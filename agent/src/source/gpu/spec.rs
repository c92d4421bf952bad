//! Which probe is run, and how long each thing may take.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the probe's program.
const PROBE: &str = "cic-gpu-probe";

/// Locked by the probe while it runs.
const LOCK: &str = "gpu-probe.lock";

/// What to watch and with what.
#[derive(Debug, Clone)]
pub struct GpuSpec {
    /// Below this a device is looked for: `/` outside tests.
    pub root: PathBuf,
    /// The probe's program.
    pub probe: PathBuf,
    /// Held by the probe, so that one which is stuck in the driver has no company after a restart of the agent.
    pub lock: PathBuf,
    /// Added to the probe's environment, for tests.
    pub environment: Vec<(OsString, OsString)>,
    pub spans: GpuSpans,
}

impl GpuSpec {
    /// With `probe`, or the one beside this program's own file.
    ///
    /// # Errors
    /// When this program's own path is not known.
    pub fn new(state_dir: &Path, probe: Option<PathBuf>) -> io::Result<Self> {
        let probe = match probe {
            Some(probe) => probe,
            None => std::env::current_exe()?.with_file_name(PROBE),
        };
        Ok(Self {
            root: PathBuf::from("/"),
            probe,
            lock: state_dir.join(LOCK),
            environment: Vec::new(),
            spans: GpuSpans::default(),
        })
    }
}

/// How long each thing may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuSpans {
    /// Between two samples of the cheap fields. Polling more often was seen to slow inference down
    /// (open-gpu-kernel-modules #953).
    pub cheap_every: Duration,
    /// Between two samples of all fields.
    pub full_every: Duration,
    /// After this a call is suspected: on a healthy node the slowest group of calls takes well under a second.
    pub call_deadline: Duration,
    /// By this long after a call began it is told to be stuck. It counts from suspicion when the agent itself was
    /// not run for a while (a frozen VM): that is no fault of the driver.
    pub stuck_after: Duration,
    /// How often a stuck call is told again.
    pub retell_every: Duration,
    /// How long a stuck call is told before the probe is killed. Not sooner: the call may come back, a new probe
    /// opens every GPU anew (1 to 3 s each by NVIDIA's "Driver Persistence"), and XIDs are heard meanwhile.
    pub kill_after: Duration,
    /// Pauses before a probe that ended is started again: doubled from the first to the last.
    pub restart_first: Duration,
    pub restart_max: Duration,
    /// Between two looks for a device or a driver that was not there.
    pub retry_every: Duration,
    /// A probe that is told to end has this long: its wait for XIDs takes 0.5 s. All three together are less than
    /// the agent gives its tasks (4 s).
    pub end_within: Duration,
    /// And this long after SIGTERM.
    pub term_within: Duration,
    /// And this long after SIGKILL; then it is stuck in the driver and left behind.
    pub kill_within: Duration,
}

impl Default for GpuSpans {
    fn default() -> Self {
        Self {
            cheap_every: Duration::from_secs(10),
            full_every: Duration::from_secs(60),
            call_deadline: Duration::from_secs(5),
            stuck_after: Duration::from_secs(14),
            retell_every: Duration::from_secs(5),
            kill_after: Duration::from_secs(45),
            restart_first: Duration::from_secs(1),
            restart_max: Duration::from_secs(60),
            retry_every: Duration::from_secs(60),
            end_within: Duration::from_secs(2),
            term_within: Duration::from_millis(1_000),
            kill_within: Duration::from_millis(500),
        }
    }
}
