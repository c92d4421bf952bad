//! NVML: loaded, initialised, and what it says of itself.

use std::ffi::OsString;

use cic_common::gpu::{GpuInventory, ProbeFault};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// With its version: drivers from 590 on come without the bare `.so`.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Another library in its place, for tests.
const LIBRARY_VARIABLE: &str = "CIC_NVML_LIBRARY";

/// Loads NVML and initialises it, which may take half a minute where no persistence daemon runs.
///
/// # Errors
/// Why no GPU can be read.
pub(crate) fn open() -> Result<Nvml, ProbeFault> {
    let library = std::env::var_os(LIBRARY_VARIABLE).unwrap_or_else(|| OsString::from(LIBRARY));
    Nvml::builder().lib_path(&library).init().map_err(|error| fault_of("nvmlInit", &error))
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
