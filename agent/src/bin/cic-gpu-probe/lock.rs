//! One probe at a time, also across runs of the agent.
//!
//! A process that hangs inside the driver cannot be killed, and each further one would hang beside it. The kernel
//! gives its lock back only when it has really ended.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use cic_common::gpu::ProbeFault;
use nix::errno::Errno;
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
    /// [`ProbeFault::Stuck`] when it does not; [`ProbeFault::Lock`] when the file cannot be opened or locked.
    pub(crate) fn take(path: &Path) -> Result<Self, ProbeFault> {
        let fault = |error: &dyn std::fmt::Display| ProbeFault::Lock {
            cause: format!("{}: {error}", path.display()),
        };
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let mut file = open().map_err(|error| fault(&error))?;
        for _ in 0..WAIT_STEPS {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(Self { _file: locked }),
                Err((same, Errno::EWOULDBLOCK | Errno::EINTR)) => file = same,
                Err((_, error)) => return Err(fault(&error)),
            }
            std::thread::sleep(WAIT_STEP);
        }
        let cause = format!("an earlier cic-gpu-probe does not end: it holds {}", path.display());
        Err(ProbeFault::Stuck { cause })
    }
}
