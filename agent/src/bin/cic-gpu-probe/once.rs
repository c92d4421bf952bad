//! `--once`: one sample of everything, for people.

use std::io::{self, Write as _};
use std::process::ExitCode;

use cic_common::gpu::{GpuInventory, GpuSample, ProbeMessage};
use serde::Serialize;

use crate::nvml;
use crate::round::{Gpus, RoundError};

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    inventory: GpuInventory,
    device_count: u32,
    samples: Vec<GpuSample>,
    lost: Vec<String>,
}

/// Prints it; on a fault says why on standard error and ends with 1.
pub(crate) fn print() -> ExitCode {
    match report().and_then(|report| show(&report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("cic-gpu-probe: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn report() -> Result<Report, String> {
    let nvml = nvml::open().map_err(|fault| fault.to_string())?;
    let inventory = nvml::inventory(&nvml);
    let sampled = Gpus::default().sample(&nvml, true, None);
    // What was read is shown whatever the driver says to the end.
    let _ = nvml.shutdown();
    match sampled {
        Ok(ProbeMessage::Sampled { device_count, samples, lost, .. }) => {
            Ok(Report { inventory, device_count, samples, lost })
        }
        Ok(other) => Err(format!("no sample: {other:?}")),
        Err(RoundError::Driver(fault)) => Err(fault.to_string()),
        Err(RoundError::Deaf(error)) => Err(error.to_string()),
    }
}

fn show(report: &Report) -> Result<(), String> {
    let text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    writeln!(io::stdout(), "{text}").map_err(|error| error.to_string())
}
