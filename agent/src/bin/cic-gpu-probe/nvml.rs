//! NVML: loaded, initialised, and what it says of itself.

use std::ffi::OsString;
use std::io;

use cic_common::gpu::{GpuInventory, ProbeFault};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::voice::Voice;

/// With its version: drivers from 590 on come without the bare `.so`.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Another library in its place, for tests.
const LIBRARY_VARIABLE: &str = "CIC_NVML_LIBRARY";

/// Loads NVML and initialises it, but no GPU yet.
///
/// # Errors
/// Why no GPU can be read.
pub(crate) fn open() -> Result<Nvml, ProbeFault> {
    let library = std::env::var_os(LIBRARY_VARIABLE).unwrap_or_else(|| OsString::from(LIBRARY));
    Nvml::builder().lib_path(&library).init().map_err(|error| fault_of("nvmlInit", &error))
}

/// Opens every GPU once. Where no persistence daemon keeps it open this initialises it, which takes 1 to 3 s each
/// (NVIDIA, Driver Persistence, "application start latency").
///
/// # Errors
/// When nobody listens any more. What the driver answers shows in the first round.
pub(crate) fn open_gpus(nvml: &Nvml, voice: Voice) -> io::Result<()> {
    for index in 0..nvml.device_count().unwrap_or(0) {
        voice.calling(format!("open gpu {index}"))?;
        let _ = nvml.device_by_index(index);
    }
    Ok(())
}

/// What kind of fault an error of `call` is.
pub(crate) fn fault_of(call: &str, error: &NvmlError) -> ProbeFault {
    let cause = match error {
        NvmlError::LibloadingError(error) => error.to_string(),
        other => format!("{call}: {other}"),
    };
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded => {
            ProbeFault::NoDriver { cause }
        }
        NvmlError::LibRmVersionMismatch => ProbeFault::VersionMismatch { cause },
        // The latter is how cgroups keep a container from a device.
        NvmlError::NoPermission | NvmlError::OperatingSystem => ProbeFault::NoPermission { cause },
        _ => ProbeFault::Driver { cause },
    }
}

pub(crate) fn inventory(nvml: &Nvml) -> GpuInventory {
    GpuInventory {
        driver_version: nvml.sys_driver_version().ok(),
        cuda_version: nvml.sys_cuda_driver_version().ok().and_then(|version| version.try_into().ok()),
        nvml_version: nvml.sys_nvml_version().ok(),
    }
}
