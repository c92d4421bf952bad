//! Symbols that every driver has. Signatures: nvml.h, as `nvml-wrapper-sys` generated them.
//!
//! SAFETY of all: the caller keeps to nvml.h, which says that out pointers are valid for what is written through
//! them; [`put`] and [`put_text`] refuse null.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use crate::answer::{device_of, number_of, put, put_text, set_of};
use crate::stage::{self, Code, answer, answer_about, answer_for};

/// `nvmlDeviceGetX(device, out)` for one value of one GPU.
macro_rules! values {
    ($($function:ident($kind:ty) = |$gpu:ident| $value:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $function(device: nvmlDevice_t, out: *mut $kind) -> nvmlReturn_t {
            // SAFETY: see above.
            answer_for(stringify!($function), number_of(device), |$gpu| unsafe { put(out, $value) })
        }
    )*};
}

values! {
    nvmlDeviceGetPowerUsage(c_uint) = |gpu| gpu.power_mw;
    nvmlDeviceGetEnforcedPowerLimit(c_uint) = |gpu| gpu.power_limit_mw;
    nvmlDeviceGetPcieReplayCounter(c_uint) = |gpu| gpu.pcie_replays;
    nvmlDeviceGetCurrPcieLinkWidth(c_uint) = |gpu| gpu.pcie_link_width;
    nvmlDeviceGetMaxPcieLinkWidth(c_uint) = |gpu| gpu.pcie_link_width_max;
    nvmlDeviceGetCurrPcieLinkGeneration(c_uint) = |gpu| gpu.pcie_link_generation;
    nvmlDeviceGetMaxPcieLinkGeneration(c_uint) = |gpu| gpu.pcie_link_generation_max;
    nvmlDeviceGetPersistenceMode(nvmlEnableState_t) = |gpu| gpu.persistence;
    nvmlDeviceGetUtilizationRates(nvmlUtilization_t) = |gpu| gpu
        .utilization_percent
        .map(|percent| nvmlUtilization_t { gpu: percent, memory: gpu.memory_utilization_percent });
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    answer("nvmlInit_v2", |script| {
        stage::forget_xids(script);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    answer("nvmlShutdown", |_| Ok(()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: see above.
    answer("nvmlSystemGetDriverVersion", |script| unsafe {
        put_text(out, length as usize, Some(&script.driver_version))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(out: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: see above.
    answer("nvmlSystemGetNVMLVersion", |script| unsafe {
        put_text(out, length as usize, Some(&script.nvml_version))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(out: *mut c_int) -> nvmlReturn_t {
    // SAFETY: see above.
    answer("nvmlSystemGetCudaDriverVersion_v2", |script| unsafe { put(out, Some(script.cuda_version)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(out: *mut c_uint) -> nvmlReturn_t {
    answer("nvmlDeviceGetCount_v2", |script| {
        let count =
            c_uint::try_from(script.numbers().len()).map_err(|_| nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
        // SAFETY: see above.
        unsafe { put(out, Some(count)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut nvmlDevice_t) -> nvmlReturn_t {
    let number = stage::current().numbers().get(index as usize).copied();
    // A GPU that is lost still has a handle, unless the script says otherwise.
    answer_about("nvmlDeviceGetHandleByIndex_v2", number, |_| {
        let number = number.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        // SAFETY: see above.
        unsafe { put(out, Some(device_of(number))) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    out: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetUUID", number_of(device), |gpu| unsafe {
        put_text(out, length as usize, gpu.uuid.as_deref())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    out: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetName", number_of(device), |gpu| unsafe {
        put_text(out, length as usize, gpu.name.as_deref())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, out: *mut nvmlPciInfo_t) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetPciInfo_v3", number_of(device), |gpu| {
        let mut info = nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain: 0,
            bus: 0,
            device: 0,
            pciDeviceId: 0x2330_10de,
            pciSubSystemId: 0,
            busId: [0; 32],
        };
        let length = info.busId.len();
        // SAFETY: `busId` is that long; for `out` see above.
        unsafe {
            put_text(info.busId.as_mut_ptr(), length, gpu.pci.as_deref())?;
            put(out, Some(info))
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetTemperature", number_of(device), |gpu| unsafe { put(out, gpu.temperature_c) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    clock: nvmlClockType_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetClockInfo", number_of(device), |gpu| {
        let value = match clock {
            nvmlClockType_enum_NVML_CLOCK_SM => gpu.clock_sm_mhz,
            nvmlClockType_enum_NVML_CLOCK_MEM => gpu.clock_memory_mhz,
            _ => None,
        };
        // SAFETY: see above.
        unsafe { put(out, value) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetTotalEccErrors", number_of(device), |gpu| {
        let is_corrected = kind == nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED;
        let is_volatile = counter == nvmlEccCounterType_enum_NVML_VOLATILE_ECC;
        let value = match (is_volatile, is_corrected) {
            (true, true) => gpu.ecc_volatile_corrected,
            (true, false) => gpu.ecc_volatile_uncorrected,
            (false, true) => gpu.ecc_aggregate_corrected,
            (false, false) => gpu.ecc_aggregate_uncorrected,
        };
        // SAFETY: see above.
        unsafe { put(out, value) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetMigMode", number_of(device), |gpu| unsafe {
        put(current, gpu.mig)?;
        put(pending, gpu.mig)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    out: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetNvLinkState", number_of(device), |gpu| {
        let state = link_of(&gpu.links, link).map(|_| nvmlEnableState_enum_NVML_FEATURE_ENABLED)?;
        // SAFETY: see above.
        unsafe { put(out, Some(state)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetNvLinkErrorCounter(
    device: nvmlDevice_t,
    link: c_uint,
    counter: nvmlNvLinkErrorCounter_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetNvLinkErrorCounter", number_of(device), |gpu| {
        let [replay, recovery, crc] = link_of(&gpu.links, link)?;
        let value = match counter {
            nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_REPLAY => Some(replay),
            nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_RECOVERY => Some(recovery),
            nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_FLIT => Some(crc),
            _ => None,
        };
        // SAFETY: see above.
        unsafe { put(out, value) }
    })
}

fn link_of(links: &[[u64; 3]], link: c_uint) -> Result<[u64; 3], Code> {
    let code = match links {
        [] => nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
        _ => nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    };
    links.get(link as usize).copied().ok_or(code)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(out: *mut nvmlEventSet_t) -> nvmlReturn_t {
    // SAFETY: see above.
    answer("nvmlEventSetCreate", |_| unsafe { put(out, Some(set_of(stage::create_set()))) })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    answer("nvmlEventSetFree", |_| stage::free_set(set.addr()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    _kinds: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    let number = number_of(device);
    answer_for("nvmlDeviceRegisterEvents", number, |gpu| {
        if !gpu.has_events {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        }
        stage::join_set(set.addr(), number)
    })
}
