//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Read this machine's GPUs and tell the agent (binary frames on standard output)
#[derive(Debug, Parser)]
#[command(name = "cic-gpu-probe", version)]
pub(crate) struct Args {
    /// Print one sample of everything as JSON for people, and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Between two samples of the cheap fields
    // Polling more often was seen to slow inference down (open-gpu-kernel-modules #953).
    #[arg(long, default_value = "10000")]
    cheap_ms: u64,
    /// Between two samples of all fields
    #[arg(long, default_value = "60000")]
    full_ms: u64,
    /// Locked while this runs: a probe that hangs in the driver keeps others from following it there
    #[arg(long)]
    pub(crate) lock: Option<PathBuf>,
}

impl Args {
    pub(crate) fn cheap_every(&self) -> Duration {
        Duration::from_millis(self.cheap_ms)
    }

    pub(crate) fn full_every(&self) -> Duration {
        Duration::from_millis(self.full_ms)
    }
}
