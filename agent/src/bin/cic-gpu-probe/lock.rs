//! One probe at a time, also across runs of the agent.
//!
//! A process that hangs inside the driver cannot be killed, and each further one would hang beside it. The kernel
//! gives its lock back only when it has really ended.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use cic_common::gpu::ProbeFault;
use nix::fcntl::{Flock, FlockArg};

/// An orderly end takes about a second: the probe of an agent that was killed may still be at it.
const WAIT_STEPS: u32 = 50;
const WAIT_STEP: Duration = Duration::from_millis(100);

/// Held until this is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Waits up to 5 s for an earlier probe to end.
    ///
    /// # Errors
    /// When it does not, or the file cannot be opened.
    pub(crate) fn take(path: &Path) -> Result<Self, ProbeFault> {
        let fault = |cause: String| ProbeFault::Driver { cause };
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let mut file = open().map_err(|error| fault(format!("{}: {error}", path.display())))?;
        for _ in 0..WAIT_STEPS {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(Self { _file: locked }),
                Err((same, _)) => file = same,
            }
            std::thread::sleep(WAIT_STEP);
        }
        Err(fault(format!("an earlier cic-gpu-probe does not end: it holds {}", path.display())))
    }
}
